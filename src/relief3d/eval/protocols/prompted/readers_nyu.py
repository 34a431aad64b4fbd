"""NYU Depth v2: the 654 official test pictures as extracted from the labelled Matlab file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.protocols.metric.frames import FrameFile, load_rgb8
from relief3d.io.depth import read_depth
from relief3d.io.names import natural_key

LAYOUT = """\
official_splits/test/<scene>/rgb_00045.jpg (or .png) and sync_depth_00045.png (16-bit millimetres), or
nyu2_test/00000_colors.png and 00000_depth.png (16-bit millimetres)"""

SIZE = (480, 640)
_K = ((518.8579, 0.0, 325.58245 + 0.5), (0.0, 519.46961, 253.73617 + 0.5), (0.0, 0.0, 1.0))
"""Colour camera of the data set's toolbox, moved from centres at integers to +0.5."""


def open_nyu(root: Path) -> list[FrameFile]:
    """Test pictures of NYU Depth v2 in either of the two common extractions.

    Raises:
        InputError: neither layout is there, or a picture has no depth map.
    """
    for folder in (root / "official_splits" / "test", root / "test", root):
        found = _scenes(folder) if folder.is_dir() else []
        if found:
            return found
    for folder in (root / "nyu2_test", root / "data" / "nyu2_test", root):
        found = _flat(folder) if folder.is_dir() else []
        if found:
            return found
    raise InputError(
        "does not look like the test set of NYU Depth v2: it has no <scene>/rgb_*.jpg with sync_depth_*.png below "
        "official_splits/test, and no *_colors.png with *_depth.png below nyu2_test",
        path=root,
        remedy="extract the labelled Matlab file to one of these layouts",
    )


def _scenes(folder: Path) -> list[FrameFile]:
    out = []
    for scene in sorted((p for p in folder.iterdir() if p.is_dir()), key=lambda p: natural_key(p.name)):
        pictures = [p for p in scene.iterdir() if p.name.startswith("rgb_") and p.suffix in (".jpg", ".png")]
        for picture in sorted(pictures, key=lambda p: natural_key(p.name)):
            number = picture.stem.removeprefix("rgb_")
            depth = scene / f"sync_depth_{number}.png"
            out.append(_frame(f"{scene.name}/{number}", scene.name, picture, depth))
    return out


def _flat(folder: Path) -> list[FrameFile]:
    out = []
    for picture in sorted(folder.glob("*_colors.png"), key=lambda p: natural_key(p.name)):
        number = picture.name.removesuffix("_colors.png")
        # This extraction does not say which pictures share a scene.
        out.append(_frame(number, number, picture, folder / f"{number}_depth.png"))
    return out


def _frame(name: str, group: str, picture: Path, depth: Path) -> FrameFile:
    if not depth.is_file():
        raise InputError("the depth map is missing", path=depth, remedy="extract the test set again")
    load = _depth_loader(depth)
    return FrameFile(
        name=name,
        group=group,
        load_image=lambda: _full_size(picture),
        load_depth=load,
        load_valid=lambda: load() > 0,
        K=torch.tensor(_K, dtype=torch.float64),
    )


def _depth_loader(path: Path) -> Callable[[], Tensor]:
    return lambda: read_depth(path, 0.001).values


def _full_size(path: Path) -> Tensor:
    image = load_rgb8(path)
    if tuple(image.shape[-2:]) != SIZE:
        raise InputError(
            f"has {image.shape[-1]} x {image.shape[-2]} pixels, NYU Depth v2 has 640 x 480",
            path=path,
            remedy="use the uncropped pictures, the protocol's intrinsics belong to them",
        )
    return image
