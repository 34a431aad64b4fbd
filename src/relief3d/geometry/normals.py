"""Surface normals from depth maps."""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.geometry.projection import depth_to_points


def depth_to_normals(
    depth: Tensor, K: Tensor, valid: Tensor | None = None, max_ratio: float = 1.1
) -> tuple[Tensor, Tensor]:
    """Normals by the cross product of differences of neighbouring points.

    Along each axis the difference to the next and to the previous pixel are candidates. A neighbour that is
    missing or whose depth differs by more than the factor ``max_ratio`` belongs to another surface and is left
    out; of two usable ones both are used if they agree, otherwise the one with the smaller jump in depth, so
    normals stay sharp at creases and do not bend at silhouettes. Exact on planes.

    Args:
        depth: (*, H, W) z-depth, 0 or non-finite where unknown.
        K: (*, 3, 3) pixels.
        valid: (*, H, W) bool, further pixels to leave out.
        max_ratio: largest ratio of neighbouring depths on one surface.

    Returns:
        normals (*, H, W, 3), unit length, camera frame, facing the camera, 0 where invalid; and validity
        (*, H, W): a pixel needs a usable neighbour along both axes.
    """
    known = torch.isfinite(depth) & (depth > 0)
    known = known if valid is None else known & valid
    depth = torch.where(known, depth, torch.ones_like(depth))
    points = depth_to_points(depth, K)
    dx, has_x = _difference(points, depth, known, -2, max_ratio)
    dy, has_y = _difference(points, depth, known, -3, max_ratio)
    normal = torch.linalg.cross(dy, dx)
    length_sq = normal.square().sum(-1, keepdim=True)
    good = has_x & has_y & (length_sq[..., 0] > 0)
    unit = normal / torch.where(good[..., None], length_sq, torch.ones_like(length_sq)).sqrt()
    # dy x dx faces the camera already except where a surface is seen at more than 90 degrees by rounding.
    away = (unit * points).sum(-1, keepdim=True) > 0
    unit = torch.where(away, -unit, unit)
    return torch.where(good[..., None], unit, torch.zeros_like(unit)), good


def _difference(
    points: Tensor, depth: Tensor, known: Tensor, dim: int, max_ratio: float
) -> tuple[Tensor, Tensor]:
    """Difference of points (*, H, W, 3) along image axis ``dim`` (-3 rows, -2 columns), and its validity."""
    axis = dim + 1
    size = depth.shape[axis]
    index = torch.arange(size, device=depth.device)
    after, before = (index + 1).clamp(max=size - 1), (index - 1).clamp(min=0)

    def neighbour(where: Tensor, exists: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        other = depth.index_select(axis, where)
        shape = [1] * depth.ndim
        shape[axis] = size
        same = torch.maximum(other, depth) <= max_ratio * torch.minimum(other, depth)
        usable = known & known.index_select(axis, where) & exists.reshape(shape) & same
        return points.index_select(dim, where), usable, (other - depth).detach()

    next_point, has_next, next_jump = neighbour(after, index < size - 1)
    prev_point, has_prev, prev_jump = neighbour(before, index > 0)
    forward, backward = next_point - points, points - prev_point
    # On one smooth surface the jump changes little from one pixel to the next.
    larger = torch.maximum(next_jump.abs(), prev_jump.abs())
    agree = (next_jump + prev_jump).abs() <= 0.5 * larger + 1e-3 * depth
    use_next = has_next & (~has_prev | agree | (next_jump.abs() <= prev_jump.abs()))
    use_prev = has_prev & (~has_next | agree | (prev_jump.abs() < next_jump.abs()))
    total = forward * use_next[..., None] + backward * use_prev[..., None]
    return total, use_next | use_prev
