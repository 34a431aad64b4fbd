"""What is read out of a volume: trilinear features at points, validity, and the two heads (specification 4.7, 4.8)."""

from __future__ import annotations

import torch
from torch import Tensor


def _grid_values(index: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Positions for ``grid_sample``: grid points are pixel centres, and the order is z, y, x."""
    size = torch.tensor(shape, dtype=index.dtype, device=index.device)
    return ((2 * index + 1) / size - 1).flip(-1)


def sample_volume(volume: Tensor, index: Tensor) -> Tensor:
    """Trilinear values at fractional grid indices; 0 beyond the outermost grid points.

    Args:
        volume: (C, X, Y, Z).
        index: (N, 3), 0 at the first grid point.

    Returns:
        (C, N) of the volume's type.
    """
    shape = (int(volume.shape[1]), int(volume.shape[2]), int(volume.shape[3]))
    with torch.autocast(volume.device.type, enabled=False):
        kind = volume.dtype if volume.dtype == torch.float64 else torch.float32
        grid = _grid_values(index.to(kind), shape)[None, None, None]
        found = torch.nn.functional.grid_sample(
            volume[None].to(kind), grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
    return found[0, :, 0, 0].to(volume.dtype)


def sample_mask(mask: Tensor, index: Tensor) -> Tensor:
    """(N,) bool of a (X, Y, Z) mask at the grid points nearest to fractional indices (N, 3); False outside."""
    shape = torch.tensor(mask.shape, device=index.device)
    cell = torch.floor(index + 0.5).long()
    inside = ((cell >= 0) & (cell < shape)).all(-1)
    cell = torch.where(inside[:, None], cell, 0)
    return inside & mask[cell[:, 0], cell[:, 1], cell[:, 2]]
