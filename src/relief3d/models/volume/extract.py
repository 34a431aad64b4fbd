"""From volume features to a surface: occupied voxels, fine points inside them, their distances, marching cubes.

The number of fine points per voxel is free (specification 6.4 to 6.6): the network was trained on points, not voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.fusion.block_update import Volume, pack_blocks
from relief3d.fusion.marching_cubes import extract_blocks

BLOCK = 16
"""Fine voxels along the edge of a block of the sparse grid that marching cubes runs on."""
FINENESS = (1, 2, 4)


@dataclass(frozen=True)
class FineDistances:
    """Signed distances of fine points inside coarse voxels.

    Attributes:
        index: (M, 3) int32 coarse voxels.
        values: (M, r^3) float32 in [-1, 1], positive in front of the surface; NaN for points without a value. The last
            axis runs over z, y, x of the point inside its voxel, z fastest.
        rate: fine points along the edge of a voxel, r.
    """

    index: Tensor
    values: Tensor
    rate: int


def fine_offsets(rate: int, device: torch.device | str = "cpu") -> Tensor:
    """(r^3, 3) positions of the fine points of a voxel relative to its grid point, in voxels: (k + 0.5) / r - 0.5.

    Raises:
        InputError: a rate other than 1, 2, 4.
    """
    if rate not in FINENESS:
        raise InputError(f"there are 1, 2 or 4 fine points along a voxel, not {rate}")
    axis = (torch.arange(rate, device=device, dtype=torch.float32) + 0.5) / rate - 0.5
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)


def fine_distances(
    index: Tensor, rate: int, max_points: int, distance: Callable[[Tensor], Tensor]
) -> FineDistances:
    """Distances of all fine points of some voxels.

    Args:
        index: (M, 3) coarse voxels.
        rate: fine points along the edge of a voxel.
        max_points: at a time.
        distance: (N, 3) fractional coarse indices to (N,) distances.
    """
    offsets = fine_offsets(rate, index.device)
    step = max(1, max_points // len(offsets))
    found = []
    for part in index.split(step):
        points = (part[:, None].to(torch.float32) + offsets).flatten(0, 1)
        found.append(distance(points).unflatten(0, (len(part), -1)).float().cpu())
    values = torch.cat(found) if found else torch.zeros(0, len(offsets))
    return FineDistances(index.to("cpu", torch.int32), values, rate)


def joined(parts: list[FineDistances], rate: int) -> FineDistances:
    """Those of several tiles together; no voxel may be in two of them."""
    if not parts:
        return FineDistances(torch.zeros(0, 3, dtype=torch.int32), torch.zeros(0, rate**3), rate)
    return FineDistances(torch.cat([p.index for p in parts]), torch.cat([p.values for p in parts]), rate)


def surface(fine: FineDistances, origin: tuple[float, float, float], voxel_size: float) -> Mesh:
    """The zero level; faces at points without a value do not exist.

    Args:
        fine: distances.
        origin: world position of coarse voxel (0, 0, 0).
        voxel_size: coarse, world units.

    Returns:
        Triangles in the world, counter-clockwise seen from free space; empty when there is no surface.
    """
    rate, fine_size = fine.rate, voxel_size / fine.rate
    coarse = BLOCK // rate  # coarse voxels along the edge of a block
    index = fine.index.long()
    blocks, place = torch.unique(torch.div(index, coarse, rounding_mode="floor"), dim=0, return_inverse=True)
    tsdf = torch.full((len(blocks), BLOCK, BLOCK, BLOCK), torch.nan)
    inner = (index % coarse) * rate
    offsets = torch.stack(torch.meshgrid(*(torch.arange(rate),) * 3, indexing="ij"), -1).reshape(-1, 3)
    at = inner[:, None] + offsets
    tsdf[place[:, None], at[..., 0], at[..., 1], at[..., 2]] = fine.values
    known = torch.isfinite(tsdf)
    flat = torch.where(known, tsdf, 1.0).flatten(1)
    keys = pack_blocks(blocks)
    order = torch.argsort(keys)
    mesh = extract_blocks(
        Volume(flat, known.float().flatten(1), None), keys[order], order, BLOCK, fine_size, 1.0
    )
    # Fine point 0 lies half a coarse voxel less half a fine one before coarse point 0.
    first = torch.tensor(origin) - 0.5 * voxel_size + 0.5 * fine_size
    return Mesh(mesh.vertices + first, mesh.faces)
