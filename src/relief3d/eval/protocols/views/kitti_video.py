"""KITTI as videos: depth of the validation drives of the completion benchmark (specification multiview.md 6.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Protocol, Sample
from relief3d.eval.protocols.metric.frames import need_folder
from relief3d.eval.protocols.views.frame_folders import (
    PICTURE_ENDINGS,
    folder_video,
    numbered_files,
    paired_frames,
    scaled_depth,
)
from relief3d.eval.protocols.views.video_depth_rules import (
    DepthTwin,
    DepthVideo,
    VideoDepthProtocol,
    VideoDepthRules,
)
from relief3d.io.names import natural_key

_SCALE = 1.0 / 256.0
_PICTURES, _DEPTHS = "image_gathered", "groundtruth_depth_gathered"


def read_kitti_videos(root: Path) -> list[DepthVideo]:
    """One video per drive, all frames that are there.

    The papers gather up to 110 frames of each of 13 validation drives into ``image_gathered`` and
    ``groundtruth_depth_gathered``. Where those are absent the 1000 selected frames (``image``, ``groundtruth_depth``)
    are grouped by drive instead: sparser frames of the same drives, cropped to 1216 x 352.

    Raises:
        InputError: the layout is another, or depth maps are missing.
    """
    base = _base(root)
    read = scaled_depth(_SCALE)
    if (base / _PICTURES).is_dir():
        folders = sorted((p for p in (base / _PICTURES).iterdir() if p.is_dir()), key=lambda p: p.name)
        if not folders:
            raise InputError(
                "holds no drives", path=base / _PICTURES, remedy="gather the frames by drive first"
            )
        return [_gathered(folder, base / _DEPTHS / folder.name) for folder in folders]
    drives: dict[str, list[tuple[Path, Path]]] = {}
    pictures = numbered_files(base / "image", (".png",), "pictures")
    for picture in sorted(pictures, key=lambda p: natural_key(p.name)):
        drive, mark, number = picture.stem.partition("_image_")
        if not mark:
            raise InputError("is not named <drive>_image_<number>_image_02.png", path=picture)
        depth = base / "groundtruth_depth" / f"{drive}_groundtruth_depth_{number}.png"
        if not depth.is_file():
            raise InputError("the depth map is missing", path=depth, remedy="unpack the selection again")
        drives.setdefault(f"{drive}_{number.rpartition('_')[2]}", []).append((picture, depth))
    return [folder_video(name, frames, read) for name, frames in drives.items()]


def _gathered(pictures: Path, depths: Path) -> DepthVideo:
    pairs = paired_frames(
        numbered_files(pictures, PICTURE_ENDINGS, "pictures"), numbered_files(depths, (".png",), "depth maps")
    )
    return folder_video(pictures.name, pairs, scaled_depth(_SCALE))


def _sparse(data: Path, samples: Sequence[Sample]) -> str | None:
    if (_base(data) / _PICTURES).is_dir():
        return None
    return "the sparse selection instead of the gathered frames"


def _base(root: Path) -> Path:
    choices = (
        "depth_selection/val_selection_cropped",
        "val_selection_cropped",
        f"{_PICTURES}/..",
        "image/..",
    )
    return need_folder(root, choices, "KITTI's depth selection")


PROTOCOLS: tuple[Protocol, ...] = (
    VideoDepthProtocol(
        name="kitti_video",
        title="KITTI, validation drives with accumulated lidar: video depth",
        source="pi3 and SelfEvo evaluation; specification multiview.md 6.1",
        reader=read_kitti_videos,
        rules=VideoDepthRules(),
        twin=DepthTwin(family="street", path="drive", moving=2),
        deviation=_sparse,
        layout=(
            "[depth_selection/]val_selection_cropped/\n"
            "  image_gathered/<drive>_02/<frame>.png with groundtruth_depth_gathered/<drive>_02/<frame>.png, or\n"
            "  image/<drive>_image_<frame>_image_02.png with groundtruth_depth/<drive>_groundtruth_depth_...png\n"
            "  (1/256 m, 0 unknown)"
        ),
        notes=(
            "The gathered folders are those of the published evaluation code; the plain selection has the same drives "
            "but other frames, so its numbers are comparable only among themselves.",
            "The papers' tables of this benchmark are images and not in the specification.",
        ),
    ),
)
