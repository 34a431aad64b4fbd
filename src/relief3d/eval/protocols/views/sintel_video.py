"""MPI Sintel as videos: depth of 14 sequences and camera paths of the same (specification multiview.md 6.1, 6.3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.metric.frames import need_folder
from relief3d.eval.protocols.metric.readers_sintel import LAYOUT, read_cam, read_dpt
from relief3d.eval.protocols.views.camera_rules import CameraSequence, CameraTwin, read_pictures
from relief3d.eval.protocols.views.frame_folders import folder_video, numbered_files
from relief3d.eval.protocols.views.trajectory_rules import TrajectoryProtocol
from relief3d.eval.protocols.views.video_depth_rules import (
    DepthTwin,
    DepthVideo,
    VideoDepthProtocol,
    VideoDepthRules,
)
from relief3d.geometry.transforms import invert_rigid
from relief3d.io.rigid import rigid_from_file

SEQUENCES = (
    "alley_2",
    "ambush_4",
    "ambush_5",
    "ambush_6",
    "cave_2",
    "cave_4",
    "market_2",
    "market_5",
    "market_6",
    "shaman_3",
    "sleeping_1",
    "sleeping_2",
    "temple_2",
    "temple_3",
)
MAX_DEPTH = 70.0


def read_sintel_videos(root: Path) -> list[DepthVideo]:
    """The 14 sequences, final pass, all frames, with exact depth.

    Raises:
        InputError: a sequence, picture or depth map is missing.
    """
    base = _training(root)
    videos = []
    for name in SEQUENCES:
        pictures = _pictures(base, name)
        depths = [base / "depth" / name / f"{p.stem}.dpt" for p in pictures]
        for path in depths:
            if not path.is_file():
                raise InputError(
                    "the depth map is missing", path=path, remedy="unpack Sintel's depth archive as well"
                )
        videos.append(folder_video(name, list(zip(pictures, depths)), read_dpt))
    return videos


def read_sintel_cameras(root: Path) -> list[CameraSequence]:
    """The 14 sequences, final pass, all frames, with exact cameras.

    Raises:
        InputError: a sequence, picture or camera file is missing.
    """
    base = _training(root)
    sequences = []
    for name in SEQUENCES:
        pictures = _pictures(base, name)
        cameras = [base / "camdata_left" / name / f"{p.stem}.cam" for p in pictures]
        for path in cameras:
            if not path.is_file():
                raise InputError(
                    "the camera file is missing", path=path, remedy="unpack Sintel's depth archive as well"
                )
        sequences.append(_camera_sequence(name, pictures, cameras))
    return sequences


def _camera_sequence(name: str, pictures: Sequence[Path], cameras: Sequence[Path]) -> CameraSequence:
    return CameraSequence(
        name,
        [p.name for p in pictures],
        pictures=lambda chosen: read_pictures([pictures[i] for i in chosen]),
        world_from_cam=lambda chosen: torch.stack([_world_from_cam(cameras[i]) for i in chosen]),
    )


def _world_from_cam(path: Path) -> Tensor:
    try:
        return invert_rigid(rigid_from_file(read_cam(path)[1]))
    except ValueError as exc:
        raise InputError(f"the matrix {exc}", path=path) from exc


def _training(root: Path) -> Path:
    return need_folder(root, ("training/final", "final"), "MPI Sintel (training/final)").parent


def _pictures(base: Path, name: str) -> list[Path]:
    return numbered_files(base / "final" / name, (".png",), "pictures")


PROTOCOLS: tuple[Protocol, ...] = (
    VideoDepthProtocol(
        name="sintel_video",
        title="MPI Sintel, 14 sequences (final pass): video depth",
        source="pi3 and SelfEvo evaluation; specification multiview.md 6.1",
        reader=read_sintel_videos,
        rules=VideoDepthRules(max_depth=MAX_DEPTH, post_clip_max=MAX_DEPTH),
        twin=DepthTwin(family="outdoor", moving=3),
        layout=LAYOUT,
        notes=("The papers' tables of this benchmark are images and not in the specification.",),
    ),
    TrajectoryProtocol(
        name="sintel_trajectory",
        title="MPI Sintel, 14 sequences (final pass): camera paths",
        source="pi3 evaluation (evo); specification multiview.md 6.3",
        reader=read_sintel_cameras,
        twin=CameraTwin(
            family="outdoor", moving=3, frames={"smoke": 6, "mini": 20}, clips={"smoke": 2, "mini": 12}
        ),
        layout=LAYOUT,
        notes=("The papers' tables of this benchmark are images and not in the specification.",),
    ),
)
