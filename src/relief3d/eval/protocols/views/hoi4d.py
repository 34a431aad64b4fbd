"""HOI4D: egocentric hand-object videos annotated by OmniWorld, depth and cameras (multiview.md 5.7, 6.1, 6.2)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.metric.frames import need_folder
from relief3d.eval.protocols.views.camera_rules import (
    CameraProtocol,
    CameraSequence,
    CameraTwin,
    choose_sparse,
    read_pictures,
)
from relief3d.eval.protocols.views.frame_folders import (
    PICTURE_ENDINGS,
    folder_video,
    numbered_files,
    paired_frames,
    scaled_depth,
)
from relief3d.eval.protocols.views.omniworld import rigid_stack
from relief3d.eval.protocols.views.sequence_files import without_file
from relief3d.eval.protocols.views.video_depth_rules import (
    PAPER_COLUMNS,
    DepthTwin,
    DepthVideo,
    VideoDepthProtocol,
    VideoDepthRules,
    about_every_tenth,
)
from relief3d.eval.published.selfevo import TABLE_5
from relief3d.geometry.transforms import invert_rigid
from relief3d.io.json_file import read_json_object
from relief3d.io.names import natural_key
from relief3d.io.whole_file import read_utf8

_PICTURES, _ANNOTATIONS, _LIST = "HOI4D_release/images", "OmniWorld-HOI4D", "test_50.csv"
_DEPTH = "prior_depth"


def read_hoi4d_videos(root: Path) -> list[DepthVideo]:
    """Sequences of ``test_50.csv`` (all annotated ones without it) with their depth.

    Depth keeps the stored integers as unit, as the published evaluation does.

    Raises:
        InputError: another layout, or a listed sequence is incomplete.
    """
    videos = []
    for name in _sequences(root, _DEPTH):
        pictures = numbered_files(root / _PICTURES / name, PICTURE_ENDINGS, "pictures")
        maps = numbered_files(root / _ANNOTATIONS / name / _DEPTH, (".png",), "depth maps")
        videos.append(folder_video(name, paired_frames(pictures, maps), scaled_depth(1.0, metric=False)))
    return videos


def read_hoi4d_cameras(root: Path) -> list[CameraSequence]:
    """One sequence per reconstructed split (each has a frame of its own) of the listed sequences.

    Raises:
        InputError: another layout, or a listed sequence is incomplete.
    """
    sequences = []
    for name in _sequences(root, "camera"):
        pictures = numbered_files(root / _PICTURES / name, PICTURE_ENDINGS, "pictures")
        recon = root / _ANNOTATIONS / name / "camera" / "recon"
        files = sorted(recon.glob("split_*/info.json"), key=lambda p: natural_key(p.parent.name))
        if not files:
            raise InputError("holds no split_*/info.json", path=recon, remedy="complete the annotations")
        sequences += [_split(name, file, pictures) for file in files]
    return sequences


def _split(name: str, file: Path, pictures: Sequence[Path]) -> CameraSequence:
    info = read_json_object(file)
    frames, matrices = info.get("split"), info.get("extrinsics")
    if not isinstance(frames, list) or not isinstance(matrices, list) or len(frames) != len(matrices):
        raise InputError("lacks lists 'split' and 'extrinsics' of one length", path=file)
    try:
        cam_from_world = torch.tensor(matrices, dtype=torch.float64)
        indices = [int(i) for i in frames]
    except (TypeError, ValueError) as exc:
        raise InputError(f"holds cameras that are no matrices of numbers ({exc})", path=file) from exc
    if cam_from_world.ndim != 3 or cam_from_world.shape[1:] not in ((4, 4), (3, 4)):
        raise InputError(f"holds cameras of shape {tuple(cam_from_world.shape)}", path=file)
    if indices and not 0 <= min(indices) <= max(indices) < len(pictures):
        raise InputError(
            f"names frame {max(indices)}, but there are {len(pictures)} pictures",
            path=file,
            remedy="decode the whole video to pictures",
        )
    return _camera_sequence(
        f"{name}/{file.parent.name}", name, [pictures[i] for i in indices], cam_from_world
    )


def _camera_sequence(
    name: str, group: str, pictures: Sequence[Path], cam_from_world: Tensor
) -> CameraSequence:
    return CameraSequence(
        name,
        [p.name for p in pictures],
        pictures=lambda chosen: read_pictures([pictures[i] for i in chosen]),
        world_from_cam=lambda chosen: invert_rigid(rigid_stack(cam_from_world[list(chosen)])),
        group=group,
    )


def _sequences(root: Path, inside: str) -> list[str]:
    """Sorted names relative to the annotations."""
    annotations = need_folder(root, (_ANNOTATIONS,), "OmniWorld-HOI4D")
    listed = root / _LIST
    if listed.is_file():
        table = csv.DictReader(io.StringIO(read_utf8(listed)))
        if "Annotation Path" not in (table.fieldnames or ()):
            raise InputError("lacks the column 'Annotation Path'", path=listed)
        names = {(row["Annotation Path"] or "").strip().strip("/") for row in table}
        found = sorted(names - {""})
    else:
        folders = (p.parent for p in annotations.rglob(inside) if p.is_dir())
        found = sorted({p.relative_to(annotations).as_posix() for p in folders})
    if not found:
        raise InputError(
            f"holds no sequence with {inside}", path=annotations, remedy="unpack the annotations"
        )
    return found


_LAYOUT = (
    f"{_PICTURES}/<sequence>/<frame>.png (decoded align_rgb/image.mp4)\n"
    f"{_ANNOTATIONS}/<sequence>/{_DEPTH}/<frame>.png (16 bits, 0 unknown)\n"
    f"{_ANNOTATIONS}/<sequence>/camera/recon/split_*/info.json ('split', 'extrinsics')\n"
    f"{_LIST} (column 'Annotation Path'; all annotated sequences without it)"
)
_LIST_NOTE = f"{_LIST}, the papers' choice of 50 sequences, is not published; without it all sequences count."

PROTOCOLS: tuple[Protocol, ...] = (
    VideoDepthProtocol(
        name="hoi4d",
        title="HOI4D, egocentric hand-object videos: depth",
        source="SelfEvo, Table 5; specification multiview.md 6.1",
        reader=read_hoi4d_videos,
        rules=VideoDepthRules(choose=about_every_tenth),
        rows=TABLE_5.select({key: f"hoi4d.{key}" for key in PAPER_COLUMNS}),
        twin=DepthTwin(family="room", path="handheld", moving=3, frames={"smoke": 22, "mini": 80}),
        deviation=without_file(_LIST, "not the published choice of sequences"),
        layout=_LAYOUT,
        notes=(
            "The layout was confirmed against SelfEvo's published evaluation code.",
            "Depth stays in stored integers, as published; the papers' 'scale & shift' depends on that unit.",
            _LIST_NOTE,
        ),
    ),
    CameraProtocol(
        name="hoi4d_cameras",
        title="HOI4D, egocentric hand-object videos: relative camera poses",
        source="SelfEvo evaluation; specification multiview.md 6.2",
        reader=read_hoi4d_cameras,
        choose=choose_sparse,
        twin=CameraTwin(family="room", path="handheld", moving=3, frames={"smoke": 22, "mini": 80}),
        deviation=without_file(_LIST, "not the published choice of sequences"),
        layout=_LAYOUT,
        notes=(
            "The camera reader of the papers is not published: that 'extrinsics' are world-to-camera with OpenCV axes, "
            "and that every split counts as a sequence, is our reading of the annotations. The published "
            "configuration marks this set as rotation only, so its RRA is the column to trust.",
            "The specification has no figures for this benchmark.",
            _LIST_NOTE,
        ),
    ),
)
