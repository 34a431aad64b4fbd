"""KITTI depth completion: the 1000 selected validation pictures with the improved (accumulated) depth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.readers.files import usable_K
from relief3d.eval.protocols.metric.frames import FrameFile, load_rgb8, need_folder
from relief3d.io.depth import read_depth
from relief3d.io.names import natural_key
from relief3d.io.whole_file import read_utf8

LAYOUT = """\
depth_selection/val_selection_cropped/image/<drive>_image_<number>_image_02.png (1216 x 352)
depth_selection/val_selection_cropped/groundtruth_depth/<drive>_groundtruth_depth_<number>_image_02.png (1/256 m)
depth_selection/val_selection_cropped/intrinsics/<drive>_image_<number>_image_02.txt (3 x 3, row by row)"""

_SCALE = 1.0 / 256.0


def open_kitti_selection(root: Path) -> list[FrameFile]:
    """Pictures of the official validation selection; the drive is the group.

    Raises:
        InputError: the layout is another, or a picture has no depth map or no intrinsics.
    """
    folder = need_folder(
        root,
        ("depth_selection/val_selection_cropped", "val_selection_cropped", "image/.."),
        "the validation selection of KITTI depth completion",
    )
    pictures = sorted((folder / "image").glob("*.png"), key=lambda p: natural_key(p.name))
    if not pictures:
        raise InputError(
            "holds no pictures (*.png)", path=folder / "image", remedy="unpack the selection again"
        )
    return [_frame(folder, picture) for picture in pictures]


def _frame(folder: Path, picture: Path) -> FrameFile:
    drive, mark, number = picture.stem.partition("_image_")
    if not mark:
        raise InputError("is not named <drive>_image_<number>_image_02.png", path=picture)
    depth = folder / "groundtruth_depth" / f"{drive}_groundtruth_depth_{number}.png"
    if not depth.is_file():
        raise InputError("the depth map is missing", path=depth, remedy="unpack the selection again")
    load = _depth_loader(depth)
    return FrameFile(
        name=f"{drive}/{number}",
        group=drive,
        load_image=lambda: load_rgb8(picture),
        load_depth=load,
        load_valid=lambda: load() > 0,
        K=_intrinsics(folder / "intrinsics" / f"{picture.stem}.txt"),
    )


def _depth_loader(path: Path) -> Callable[[], Tensor]:
    return lambda: read_depth(path, _SCALE).values


def _intrinsics(path: Path) -> Tensor:
    """(3, 3), moved from pixel centres at integers to +0.5."""
    try:
        values = [float(v) for v in read_utf8(path).split()]
    except ValueError as exc:
        raise InputError("does not hold numbers only", path=path) from exc
    if len(values) != 9:
        raise InputError(f"holds {len(values)} numbers, expected 9", path=path)
    K = torch.tensor(values, dtype=torch.float64).reshape(3, 3)
    K[:2, 2] += 0.5
    return usable_K(K, path)
