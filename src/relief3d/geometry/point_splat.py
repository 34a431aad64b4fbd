"""Points of a ranging sensor drawn into a picture as a sparse depth map, nearest surface first.

A pixel covers a whole square, so with pixel centres at +0.5 a point belongs to the pixel ``floor(u), floor(v)``.
Source: the projection rule of MetricAnything's data preparation (specification section 1.2).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.projection import project

MIN_Z = 0.1
"""Metres in front of the camera from which on a point counts (our choice)."""

OCCLUSION_SHARE = 0.1
"""A point is hidden when a neighbour is nearer than (1 - share) times its own depth."""


def splat_index(
    points: Tensor, K: Tensor, size: tuple[int, int], *, z_min: float = MIN_Z
) -> tuple[Tensor, Tensor]:
    """Pixels in which points fall.

    Args:
        points: (P, 3) in the camera frame (OpenCV axes), metres.
        K: (3, 3) pixels, centres at +0.5.
        size: (H, W) of the picture.
        z_min: points with z at or below it are left out.

    Returns:
        kept (M,) int64 indices of the points inside the picture, and flat (M,) int64 pixels ``row * W + column``.

    Raises:
        InputError: the points are not (P, 3).
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f"points must be (P, 3), got {tuple(points.shape)}")
    height, width = size
    xy, _ = project(points.double(), K.to(points.device, torch.float64))
    ahead = torch.isfinite(points).all(-1) & (points[:, 2] > z_min)
    # Positions far outside would overflow an integer, so they are compared as floating-point numbers.
    u, v = xy.floor().unbind(-1)
    inside = ahead & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    kept = inside.nonzero().squeeze(1)
    return kept, v[kept].long() * width + u[kept].long()


def splat_depth(points: Tensor, K: Tensor, size: tuple[int, int], *, z_min: float = MIN_Z) -> Tensor:
    """Sparse z-depth map of points; where several fall into one pixel the nearest wins.

    Args:
        points: (P, 3) in the camera frame, metres; P may be 0.
        K: (3, 3) pixels, centres at +0.5.
        size: (H, W) of the picture.
        z_min: see :func:`splat_index`.

    Returns:
        (H, W) of the type of ``points``, 0 where no point falls.
    """
    height, width = size
    kept, flat = splat_index(points, K, size, z_min=z_min)
    depth = points.new_full((height * width,), float("inf"))
    depth = depth.scatter_reduce(0, flat, points[kept, 2], reduce="amin")
    return torch.where(torch.isinf(depth), torch.zeros_like(depth), depth).reshape(height, width)


def occlusion_radius(width: int) -> int:
    """Half side of the occlusion window in pixels: 2 at a width of 640, in proportion elsewhere, at least 1."""
    return max(1, round(2 * width / 640))


def drop_occluded(depth: Tensor, *, radius: int | None = None, share: float = OCCLUSION_SHARE) -> Tensor:
    """Remove pixels of a sparse depth map that a nearer neighbour should hide.

    A lidar above the camera sees over things; its far points then land between near ones.

    Args:
        depth: (H, W) sparse z-depth, 0 where unknown.
        radius: k of the (2k + 1) x (2k + 1) window; :func:`occlusion_radius` of the width when None.
        share: a pixel goes when another in its window has ``z < (1 - share)`` times its own z.

    Returns:
        (H, W), 0 where unknown or hidden.
    """
    k = occlusion_radius(depth.shape[-1]) if radius is None else radius
    nearness = torch.where(depth > 0, -depth, torch.full_like(depth, float("-inf")))
    nearest = -F.max_pool2d(nearness[None, None], 2 * k + 1, stride=1, padding=k)[0, 0]
    return torch.where(nearest < (1 - share) * depth, torch.zeros_like(depth), depth)
