"""Pictures that show what the network has learned of a fragment."""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.methods.vfm_recon.volume.fragments import FragmentBatch
from relief3d.models.volume.network import VolumeOutput

CELL = 6
"""Pixels per voxel."""
GREY = 128


def _slice(values: Tensor, index: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(X, Y) means of values (N,) in [-1, 1] over all heights, at fractional grid indices (N, 3); NaN where none."""
    cell = index.round().long()
    flat = cell[:, 0] * shape[1] + cell[:, 1]
    good = (
        torch.isfinite(values)
        & (cell[:, :2] >= 0).all(-1)
        & (cell[:, 0] < shape[0])
        & (cell[:, 1] < shape[1])
    )
    total, count = torch.zeros(shape[0] * shape[1]), torch.zeros(shape[0] * shape[1])
    total.index_add_(0, flat[good], values[good])
    count.index_add_(0, flat[good], torch.ones_like(values[good]))
    return torch.where(count > 0, total / count.clamp_min(1), torch.nan).reshape(shape[0], shape[1])


def _colour(values: Tensor) -> Tensor:
    """(3, X, Y) uint8: blue for -1, white for 0, red for 1, grey for NaN."""
    known = torch.isfinite(values)
    v = torch.where(known, values, 0.0).clamp(-1, 1)
    red, blue = torch.where(v < 0, 1 + v, 1.0), torch.where(v > 0, 1 - v, 1.0)
    out = torch.stack([red, torch.minimum(red, blue), blue])
    return torch.where(known, (out * 255).round(), float(GREY)).to(torch.uint8)


def fragment_panel(batch: FragmentBatch, found: VolumeOutput) -> Tensor:
    """(3, H, W) uint8 of the first fragment: first picture, then seen from above the means over height of occupancy and
    distance, truth left of what is said.
    """
    from relief3d.eval.panels import beside, to_bytes
    from relief3d.models.volume.back_projection import grid_indices

    x = batch.input
    index = grid_indices(x.world_from_grid[0], x.queries[0])

    def above(values: Tensor) -> Tensor:
        cells = _colour(_slice(values, index, x.shape))
        return cells.repeat_interleave(CELL, -2).repeat_interleave(CELL, -1)

    occupied = torch.where(found.valid[0], 2 * torch.sigmoid(found.occupancy[0]) - 1, torch.nan)
    near = batch.occupancy[0] > 0.5
    cells = [
        above(2 * batch.occupancy[0] - 1),
        above(occupied),
        above(torch.where(near, batch.tsdf[0], torch.nan)),
        above(torch.where(near, torch.tanh(found.distance[0]), torch.nan)),
    ]
    picture = to_bytes(x.images[0, 0])
    height = max(picture.shape[-2], *(c.shape[-2] for c in cells))
    padded = [
        torch.nn.functional.pad(c, (0, 0, 0, height - int(c.shape[-2])), value=255) for c in (picture, *cells)
    ]
    return beside(padded, 4)
