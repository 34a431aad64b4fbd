"""Voxel occupancy over [-1, 1]^3: cells that hold surface samples, and cells inside a surface.

Cells are numbered on one endless lattice whose origin is the lower corner of the cube, so that parts of a prediction
that ICP turned out of the cube still count in the union.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.eval.metrics.icp import checked_points

_EDGE = 1e-6
"""Points this far outside the cube are on its faces up to rounding."""
_OFFSET = (1.37e-7, 2.71e-7)
"""Shift of the rays off the lattice, so that none runs through an edge of an axis-aligned model."""
_BITS = 20
_PAIRS = 1 << 21
_FEWEST_VOTES = 2


def occupied_cells(points: Tensor, grid: int = 64) -> Tensor:
    """Sorted numbers (C,) int64 of the cells that hold at least one of (N, 3) points.

    Raises:
        InputError: no points, points that are not finite, or a grid without cells.
    """
    if grid < 1:
        raise InputError(f"a voxel grid needs at least one cell per axis, got {grid}")
    points = checked_points(points, "the voxel grid")
    inside = points.abs() <= 1 + _EDGE
    points = torch.where(inside, points.clamp(-1, 1), points)
    cells = torch.floor((points + 1) * (grid / 2)).long()
    # A point on the upper face belongs to the last cell of the cube.
    cells = torch.where(inside, cells.clamp(0, grid - 1), cells)
    return _numbers(cells)


def solid_cells(mesh: Mesh, grid: int = 64) -> Tensor:
    """Sorted numbers (C,) int64 of the cells whose centres lie inside a surface.

    Inside by the parity of crossings along each of the three axes, decided by majority: exact for closed surfaces,
    tolerant of small holes.

    Args:
        mesh: of any size around the cube [-1, 1]^3.
        grid: cells per axis of the cube.

    Raises:
        InputError: positions that are not finite, or a grid without cells.
    """
    if grid < 1:
        raise InputError(f"a voxel grid needs at least one cell per axis, got {grid}")
    vertices = checked_points(mesh.vertices, "the voxel grid")
    # In units of cells: centres lie at integers plus one half.
    vertices = (vertices + 1) * (grid / 2)
    low = [math.floor(v) for v in vertices.amin(0).tolist()]
    size = [math.ceil(v) - a + 1 for v, a in zip(vertices.amax(0).tolist(), low)]
    triangles = (vertices - torch.tensor(low, dtype=torch.float64))[mesh.faces.cpu()]
    votes = torch.zeros(size, dtype=torch.int8)
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        parity = _parity(triangles[..., [u, v, axis]], (size[u], size[v], size[axis]))
        # From (u, v, axis) back to (x, y, z).
        order = [(u, v, axis).index(k) for k in range(3)]
        votes += parity.permute(order).to(torch.int8)
    return _numbers(torch.nonzero(votes >= _FEWEST_VOTES) + torch.tensor(low))


def set_iou(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two sets of distinct cell numbers; 0 when both are empty."""
    both = int(torch.isin(a, b, assume_unique=True).sum())
    union = a.numel() + b.numel() - both
    return both / union if union else 0.0


def _numbers(cells: Tensor) -> Tensor:
    half = 1 << (_BITS - 1)
    if cells.numel() and bool((cells.abs() >= half).any()):
        raise InputError("points to voxelise lie too far from the cube [-1, 1]")
    x, y, z = (cells + half).unbind(-1)
    return torch.unique(((x << _BITS) + y << _BITS) + z)


def _parity(triangles: Tensor, size: tuple[int, int, int]) -> Tensor:
    """(U, V, W) bool: whether an odd number of triangles lies below each cell centre along the last axis.

    Args:
        triangles: (F, 3, 3) corners with coordinates (u, v, w) in cells.
        size: cells along u, v and w.
    """
    count_u, count_v, count_w = size
    flat = triangles[..., :2] - torch.tensor(_OFFSET, dtype=torch.float64)
    first = torch.ceil(flat.amin(1) - 0.5).long().clamp_min(0)
    last = torch.floor(flat.amax(1) - 0.5).long()
    last = torch.minimum(last, torch.tensor([count_u - 1, count_v - 1]))
    extent = (last - first + 1).clamp_min(0)
    columns = extent.prod(1)
    crossings = torch.zeros(count_u * count_v * (count_w + 1), dtype=torch.int64)
    some = torch.nonzero(columns)[:, 0]
    ends = torch.cumsum(columns[some], 0)
    begin = 0
    while begin < some.numel():
        # As many triangles at a time as keep the pairs of triangle and column bounded.
        base = int(ends[begin - 1]) if begin else 0
        stop = max(begin + 1, int(torch.searchsorted(ends, base + _PAIRS, right=True)))
        part = some[begin:stop]
        begin = stop
        face = part.repeat_interleave(columns[part])
        start = torch.cumsum(columns[part], 0) - columns[part]
        rank = torch.arange(face.numel()) - start.repeat_interleave(columns[part])
        iu = first[face, 0] + rank // extent[face, 1]
        iv = first[face, 1] + rank % extent[face, 1]
        centre = torch.stack([iu, iv], 1).double() + 0.5
        a, b, c = flat[face].unbind(1)
        weights = torch.stack([_cross(b - centre, c - centre), _cross(c - centre, a - centre)], 1)
        weights = torch.cat([weights, _cross(a - centre, b - centre)[:, None]], 1)
        hit = (weights > 0).all(1) | (weights < 0).all(1)
        weights, face, iu, iv = weights[hit], face[hit], iu[hit], iv[hit]
        height = (weights * triangles[face][..., 2]).sum(1) / weights.sum(1)
        above = torch.ceil(height - 0.5).long().clamp(0, count_w)
        crossings.index_add_(0, (iu * count_v + iv) * (count_w + 1) + above, torch.ones_like(above))
    total = crossings.reshape(count_u, count_v, count_w + 1).cumsum(-1)[..., :count_w]
    return total % 2 == 1


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
