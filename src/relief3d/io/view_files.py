"""Functions that load the parts of a view from files, and the sizes they must have.

Plain functions with plain arguments, so that views can cross process boundaries.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Depth
from relief3d.core.errors import InputError
from relief3d.io.depth import read_depth, read_mask
from relief3d.io.exif import orient_array
from relief3d.io.images import read_image

ASPECT_TOLERANCE = 0.02


def load_rgb(path: Path, max_pixels: int) -> Tensor:
    """(3, H, W) float32 RGB in [0, 1], upright."""
    return read_image(path, max_pixels=max_pixels).rgb


def load_opaque(path: Path, max_pixels: int) -> Tensor:
    """(H, W) bool, True where a picture with transparency is opaque."""
    loaded = read_image(path, max_pixels=max_pixels)
    return torch.ones(loaded.rgb.shape[1:], dtype=torch.bool) if loaded.mask is None else loaded.mask


def load_view_mask(path: Path, size: tuple[int, int], orientation: int, max_pixels: int) -> Tensor:
    """(H, W) bool mask of a picture whose upright size is ``size`` = (width, height).

    A mask drawn on the stored pixels of a photo turned by 90 degrees is turned with it.

    Raises:
        InputError: another size.
    """
    mask = read_mask(path, max_pixels=max_pixels)
    height, width = mask.shape
    if orientation >= 5 and (height, width) == size and width != height:
        mask = orient_array(mask, orientation)
        height, width = mask.shape
    if (width, height) != size:
        raise InputError(
            f"the mask has {width} x {height} pixels, its picture {size[0]} x {size[1]}",
            path=path,
            remedy="resize the mask to the picture (nearest neighbour)",
        )
    return mask


def load_view_depth(
    path: Path, size: tuple[int, int], orientation: int, scale: float | None, metric: bool, max_pixels: int
) -> Depth:
    """Depth of a picture whose upright size is ``size`` = (width, height).

    A map of the stored pixels is turned with the photo; one of another resolution but the same aspect
    ratio (depth sensors of phones) is resampled by nearest neighbour, which invents no values.

    Raises:
        InputError: another aspect ratio.
    """
    depth = read_depth(path, scale, metric, max_pixels=max_pixels)
    height, width = depth.values.shape
    if orientation >= 5 and not _same_aspect((width, height), size) and _same_aspect((height, width), size):
        depth = _turned(depth, orientation)
        height, width = depth.values.shape
    if (width, height) == size:
        return depth
    if not _same_aspect((width, height), size):
        raise InputError(
            f"the depth map has {width} x {height} pixels, its picture {size[0]} x {size[1]}",
            path=path,
            remedy="give depth maps with the field of view of their picture",
        )
    rows = ((torch.arange(size[1]) + 0.5) * (height / size[1])).long().clamp(max=height - 1)
    columns = ((torch.arange(size[0]) + 0.5) * (width / size[0])).long().clamp(max=width - 1)

    def pick(values: Tensor) -> Tensor:
        return values[rows[:, None], columns]

    confidence = None if depth.confidence is None else pick(depth.confidence)
    return Depth(pick(depth.values), pick(depth.valid), depth.metric, confidence)


def _turned(depth: Depth, orientation: int) -> Depth:
    confidence = None if depth.confidence is None else orient_array(depth.confidence, orientation)
    return Depth(
        orient_array(depth.values, orientation),
        orient_array(depth.valid, orientation),
        depth.metric,
        confidence,
    )


def _same_aspect(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return abs(a[0] * b[1] - a[1] * b[0]) <= ASPECT_TOLERANCE * a[0] * b[1]
