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
    out. Of two usable ones, each is judged by how well the line through it and the pixel behind it predicts
    this pixel's inverse depth (linear in the picture on a plane): both are used if they do about equally well,
    otherwise the better one. So normals stay sharp at creases, do not bend at silhouettes, average noise on
    smooth surfaces, and are exact on planes.

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
    with torch.no_grad():
        after, error_after = _side(depth, known, dim + 1, 1, max_ratio)
        before, error_before = _side(depth, known, dim + 1, -1, max_ratio)
        # Within noise (a factor of three, or 0.1 % of depth) both sides are as good.
        slack = 1e-3 / depth
        use_after = after & (~before | (error_after <= 3 * error_before + slack))
        use_before = before & (~after | (error_before <= 3 * error_after + slack))
    forward = _shift(points, dim, 1) - points
    backward = points - _shift(points, dim, -1)
    zero = torch.zeros_like(points)
    total = torch.where(use_after[..., None], forward, zero) + torch.where(
        use_before[..., None], backward, zero
    )
    return total, use_after | use_before


def _side(depth: Tensor, known: Tensor, axis: int, step: int, max_ratio: float) -> tuple[Tensor, Tensor]:
    """Whether the neighbour at ``step`` is on the same surface, and its error in predicting inverse depth.

    The error is 0 where the pixel behind the neighbour is unknown.
    """
    size = depth.shape[axis]
    index = torch.arange(size, device=depth.device).reshape([-1] + [1] * (-1 - axis))

    def same(near: Tensor, far: Tensor) -> Tensor:
        return torch.maximum(near, far) <= max_ratio * torch.minimum(near, far)

    one, two = _shift(depth, axis, step), _shift(depth, axis, 2 * step)
    exists_one = (index + step >= 0) & (index + step < size)
    exists_two = (index + 2 * step >= 0) & (index + 2 * step < size)
    usable = known & _shift(known, axis, step) & exists_one & same(one, depth)
    judged = usable & _shift(known, axis, 2 * step) & exists_two & same(two, one)
    error = (2 / one - 1 / two - 1 / depth).abs()
    return usable, torch.where(judged, error, torch.zeros_like(error))


def _shift(values: Tensor, dim: int, step: int) -> Tensor:
    """Value of the pixel ``step`` further along ``dim``; the border repeats."""
    size = values.shape[dim]
    index = (torch.arange(size, device=values.device) + step).clamp(0, size - 1)
    return values.index_select(dim, index)
