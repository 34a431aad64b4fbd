"""BEDLAM2.0: rendered people and moving cameras, depth and cameras (specification multiview.md 5.7, 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from relief3d.core.errors import InputError
from relief3d.data.readers.bedlam2 import read_world_depth, unreal_world_from_cam
from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.views.camera_rules import (
    CameraProtocol,
    CameraSequence,
    CameraTwin,
    choose_sparse,
    read_pictures,
)
from relief3d.eval.protocols.views.frame_folders import folder_video, numbered_files
from relief3d.eval.protocols.views.sequence_files import without_file
from relief3d.eval.protocols.views.video_depth_rules import (
    PAPER_COLUMNS,
    DepthTwin,
    DepthVideo,
    VideoDepthProtocol,
    VideoDepthRules,
    about_every_tenth,
)
from relief3d.eval.published.selfevo import TABLE_4
from relief3d.io.json_file import read_json_object

_LIST = "test_sequences.json"


@dataclass(frozen=True)
class _Sequence:
    name: str
    pictures: tuple[Path, ...]
    depth: Path
    meta: Path


def read_bedlam2_videos(root: Path) -> list[DepthVideo]:
    """Sequences with rendered depth.

    Raises:
        InputError: another layout, or a depth map is missing.
    """
    videos = []
    for sequence in _sequences(root):
        pairs = [(p, sequence.depth / f"{p.stem}.exr") for p in sequence.pictures]
        for _, path in pairs:
            if not path.is_file():
                raise InputError("the depth map is missing", path=path, remedy="unpack the depth archives")
        videos.append(folder_video(sequence.name, pairs, read_world_depth))
    return videos


def read_bedlam2_cameras(
    root: Path, stride: int | None = None, subsequences: int = 1
) -> list[CameraSequence]:
    """Sequences with cameras.

    Args:
        root: of the data set.
        stride: None takes whole sequences and leaves the choice of frames to the protocol; otherwise
            :func:`strided_subsequences` of every sequence, each a sequence of its own with all its frames.
        subsequences: how many of them.

    Raises:
        InputError: another layout, or a camera file is missing.
    """
    out = []
    for sequence in _sequences(root):
        metas = [sequence.meta / f"{p.stem}_meta.json" for p in sequence.pictures]
        for path in metas:
            if not path.is_file():
                raise InputError("the camera file is missing", path=path, remedy="unpack the ground truth")
        if stride is None:
            out.append(_camera_sequence(sequence, metas, sequence.name, None))
            continue
        for chosen in strided_subsequences(len(metas), stride, subsequences):
            out.append(_camera_sequence(sequence, metas, f"{sequence.name}/from{chosen[0]:04d}", chosen))
    return out


def strided_subsequences(count: int, stride: int, number: int, least: int = 3) -> list[tuple[int, ...]]:
    """Every ``stride``-th frame from offsets spread over [0, stride - 1]; those with fewer than ``least`` are left out.

    SelfEvo's evaluation code has this option for BEDLAM2.0; which values the paper used is not published.

    Raises:
        InputError: a stride or number below 1.
    """
    if stride < 1 or number < 1:
        raise InputError(f"strided subsequences need positive numbers, got stride {stride}, number {number}")
    offsets = np.unique(np.round(np.linspace(0, stride - 1, min(number, stride))).astype(int))
    runs = [tuple(range(int(o), count, stride)) for o in offsets]
    return [run for run in runs if len(run) >= least]


def _camera_sequence(
    sequence: _Sequence, metas: Sequence[Path], name: str, chosen: tuple[int, ...] | None
) -> CameraSequence:
    return CameraSequence(
        name,
        [p.name for p in sequence.pictures],
        pictures=lambda frames: read_pictures([sequence.pictures[i] for i in frames]),
        world_from_cam=lambda frames: torch.stack(
            [unreal_world_from_cam(read_json_object(metas[i]), metas[i]) for i in frames]
        ),
        group=sequence.name,
        chosen=chosen,
    )


def _sequences(root: Path) -> list[_Sequence]:
    listed = root / _LIST
    wanted = read_json_object(listed) if listed.is_file() else None
    sessions = sorted(p for p in root.glob("*/") if (p / "png" / p.name / "png").is_dir())
    found = []
    for session in sessions:
        allowed = None if wanted is None else set(wanted.get(session.name, ()))
        folders = sorted(
            p for p in (session / "png" / session.name / "png").iterdir() if p.name.startswith("seq_")
        )
        for folder in folders:
            if allowed is not None and folder.name not in allowed:
                continue
            found.append(
                _Sequence(
                    f"{session.name}/{folder.name}",
                    tuple(numbered_files(folder, (".png",), "pictures")),
                    session / "depth" / session.name / "exr_depth" / folder.name,
                    session / "groundtruth" / session.name / "ground_truth" / "meta_exr_depth" / folder.name,
                )
            )
    if not found:
        raise InputError(
            "holds no <session>/png/<session>/png/seq_*"
            + (f" named in {_LIST}" if wanted is not None else ""),
            path=root,
            remedy="unpack the picture archives of BEDLAM2.0, each session into its own folder",
        )
    return found


_LAYOUT = (
    "<session>/png/<session>/png/seq_000000/seq_000000_0000.png\n"
    "<session>/depth/<session>/exr_depth/seq_000000/seq_000000_0000.exr (WorldDepth, centimetres)\n"
    "<session>/groundtruth/<session>/ground_truth/meta_exr_depth/seq_000000/seq_000000_0000_meta.json\n"
    f'{_LIST} (optional: {{"<session>": ["seq_000000", ...]}})'
)
_NOTES = (
    "Layout and camera convention were confirmed against SelfEvo's published evaluation code. The paper's list of 300 "
    f"test sequences is not published: without {_LIST} all sequences count.",
    f"{TABLE_4.rows[0].source}: {TABLE_4.note}",
)

PROTOCOLS: tuple[Protocol, ...] = (
    VideoDepthProtocol(
        name="bedlam2",
        title="BEDLAM2.0, rendered people and moving cameras: video depth",
        source="SelfEvo, Table 4; specification multiview.md 6.1",
        reader=read_bedlam2_videos,
        rules=VideoDepthRules(choose=about_every_tenth),
        rows=TABLE_4.select({key: f"bedlam2.{key}" for key in PAPER_COLUMNS}),
        twin=DepthTwin(family="room", path="walk", moving=4, frames={"smoke": 22, "mini": 80}),
        deviation=without_file(_LIST, "not the published choice of sequences"),
        layout=_LAYOUT,
        notes=(
            *_NOTES,
            "The depth part of this evaluation is not published: every tenth frame and no largest depth are taken from "
            "the paper's other data sets, and the unit and the channel from descriptions of the data.",
        ),
    ),
    CameraProtocol(
        name="bedlam2_cameras",
        title="BEDLAM2.0, rendered people and moving cameras: relative camera poses",
        source="SelfEvo, Table 4; specification multiview.md 6.2",
        reader=read_bedlam2_cameras,
        choose=choose_sparse,
        rows=TABLE_4.select({key: f"bedlam2.{key}" for key in ("auc_5", "auc_15", "auc_30")}),
        twin=CameraTwin(family="room", path="walk", moving=4, frames={"smoke": 22, "mini": 80}),
        deviation=without_file(_LIST, "not the published choice of sequences"),
        layout=_LAYOUT,
        notes=(
            *_NOTES,
            "The paper's code can also evaluate strided subsequences of this set; which it used is not published. "
            "read_bedlam2_cameras(stride=...) gives them; the protocol takes about every tenth frame.",
        ),
    ),
)
