"""Nearest-neighbour reduction of maps with holes: every target pixel takes the nearest valid source pixel."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from relief3d.core.errors import InputError


class MaskedNearest(NamedTuple):
    """Result of :func:`masked_nearest_indices`.

    Attributes:
        rows, cols: (*, h, w) int64 source pixel of every target pixel (the window's nearest pixel where none is valid).
        valid: (*, h, w) bool, some source pixel in the window was valid.
    """

    rows: Tensor
    cols: Tensor
    valid: Tensor

    def take(self, values: Tensor) -> Tensor:
        """Values (*, H, W) at the chosen pixels: (*, h, w); leading dimensions as those of the mask."""
        flat = values.flatten(-2)
        index = (self.rows * values.shape[-1] + self.cols).flatten(-2)
        return flat.gather(-1, index.expand(*flat.shape[:-1], -1)).reshape(
            *flat.shape[:-1], *self.rows.shape[-2:]
        )


def masked_nearest_indices(mask: Tensor, size: tuple[int, int]) -> MaskedNearest:
    """Which valid pixel lies nearest to the centre of every pixel of a smaller grid.

    The window around a target centre has ceil(H/h) x ceil(W/w) source pixels (H, W of the mask, h, w of the target).
    Among equally near pixels the first in row-major order is taken. Source: MoGe's masked nearest resize
    (MetricAnything specification 7.8); unlike a plain nearest resize it does not miss thin valid regions.

    Args:
        mask: (*, H, W) bool.
        size: (h, w).

    Raises:
        InputError: the target size is not positive.
    """
    if min(size) < 1:
        raise InputError(f"cannot resize to {size[0]} x {size[1]} pixels")
    height, width = mask.shape[-2:]
    (rows, dy), (cols, dx) = (
        _windows(length, count, mask.device) for length, count in ((height, size[0]), (width, size[1]))
    )
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((cols >= 0) & (cols < width))[
        None, :, None, :
    ]
    r, c = rows.clamp(0, height - 1), cols.clamp(0, width - 1)
    # (*, h, w, kh, kw): mask and distance of every pixel of every window.
    valid = mask[..., r[:, None, :, None], c[None, :, None, :]] & inside
    distance = (dy.square()[:, None, :, None] + dx.square()[None, :, None, :]).expand(inside.shape)
    outside = torch.where(inside, distance, torch.inf)
    best = torch.where(valid, distance, torch.inf).flatten(-2).argmin(-1)
    any_valid = valid.flatten(-2).any(-1)
    best = torch.where(any_valid, best, outside.flatten(-2).argmin(-1))
    kw = cols.shape[1]
    i = torch.arange(size[0], device=mask.device)[:, None]
    j = torch.arange(size[1], device=mask.device)[None, :]
    return MaskedNearest(r[i, best // kw], c[j, best % kw], any_valid)


def _windows(length: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Source indices (count, k) of the windows along one axis, and their distances from the window's centre."""
    factor = max(1.0, length / count)
    # In float32 from a linspace, as MoGe does: the rounding decides which of two equally near pixels is taken.
    half = 0.5 / count
    centre = torch.linspace(half, 1 - half, count, dtype=torch.float32).to(device) * length
    first = torch.round(centre - factor / 2).long()
    index = first[:, None] + torch.arange(math.ceil(factor), device=device)
    return index, index + 0.5 - centre[:, None]


def masked_nearest_resize(values: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Reduce a map with holes.

    Args:
        values: (*, H, W, C) or, with the mask's number of dimensions, (*, H, W).
        mask: (*, H, W) bool.
        size: (h, w).

    Returns:
        Values (*, h, w, C) or (*, h, w), and validity (*, h, w) bool.

    Raises:
        InputError: sizes do not fit.
    """
    channels = values.ndim == mask.ndim + 1
    if tuple(values.shape[: mask.ndim]) != tuple(mask.shape) or values.ndim - mask.ndim not in (0, 1):
        raise InputError(f"values {tuple(values.shape)} and mask {tuple(mask.shape)} do not fit together")
    found = masked_nearest_indices(mask, size)
    if not channels:
        return found.take(values), found.valid
    planes = values.movedim(-1, 0)
    return torch.stack([found.take(plane) for plane in planes], dim=-1), found.valid
