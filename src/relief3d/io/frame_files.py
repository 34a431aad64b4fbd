"""Pictures, depth maps and masks that a frame of a camera file names: opened on demand, sizes checked.

Plain functions with plain arguments, so that views can cross process boundaries.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Depth
from relief3d.io.depth import read_depth, read_mask
from relief3d.io.images import read_image
from relief3d.io.json_file import Record


def load_frame_image(frame: Record, path: Path, size: tuple[int, int]) -> Tensor:
    """(3, H, W) float32 RGB of the picture; InputError when it is not ``size`` = (width, height)."""
    rgb = read_image(path).rgb
    _same_size(frame, rgb, size, "picture")
    return rgb


def load_frame_depth(
    frame: Record, path: Path, scale: float | None, metric: bool, size: tuple[int, int]
) -> Depth:
    """The depth map, ``scale`` metres (or scene units) per stored unit; InputError when it is not ``size``."""
    depth = read_depth(path, scale=scale, metric=metric)
    _same_size(frame, depth.values, size, "depth map")
    return depth


def load_frame_mask(frame: Record, paths: tuple[Path, ...], size: tuple[int, int]) -> Tensor:
    """(H, W) bool union of the masks; InputError when one is not ``size`` = (width, height)."""
    union = torch.zeros(size[1], size[0], dtype=torch.bool)
    for path in paths:
        mask = read_mask(path)
        _same_size(frame, mask, size, "mask")
        union |= mask
    return union


def _same_size(frame: Record, tensor: Tensor, size: tuple[int, int], what: str) -> None:
    height, width = tensor.shape[-2:]
    if (width, height) != size:
        raise frame.error(f"the {what} has {width}x{height} pixels but the camera {size[0]}x{size[1]}")
