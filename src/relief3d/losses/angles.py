"""Angles between directions of predicted and true surfaces, smoothed near 0: shared by the losses of pi3 and MoGe."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMOOTH_BELOW = math.radians(3.0)
MOST = math.radians(90.0)

_CORNERS = (
    (slice(None, -1), slice(None, -1)),
    (slice(None, -1), slice(1, None)),
    (slice(1, None), slice(1, None)),
    (slice(1, None), slice(None, -1)),
)
"""Rows and columns of the four corners of every 2x2 quad, around it."""


def vector_angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle (*,) in [0, pi] between vectors (*, 3) of any length; a right angle, without gradient, for a zero one."""
    usable = ((a != 0).any(-1) & (b != 0).any(-1))[..., None]
    x = a.new_tensor([1.0, 0.0, 0.0])
    a, b = torch.where(usable, a, x), torch.where(usable, b, x.roll(1))
    return torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1))


def smooth(error: Tensor, beta: float) -> Tensor:
    """An error that is not negative: squared below ``beta``, linear above; unchanged for 0."""
    if beta == 0:
        return error
    return torch.where(error < beta, 0.5 * error.square() / beta, error - 0.5 * beta)


def angle_error(a: Tensor, b: Tensor, least: float) -> Tensor:
    """Smoothed angle (*,) between (*, 3), cut off below ``least`` (radians) and above a right angle."""
    return smooth(vector_angle(a, b).clamp(least, MOST), SMOOTH_BELOW)


def corner_normal_error(
    points: Tensor, target: Tensor, usable: Tensor, least: float = math.radians(1.0)
) -> Tensor:
    """Angle errors of the normals at the four corners of every quad, summed; 0 where a corner is not usable.

    Args:
        points: (*, H, W, 3).
        target: (*, H, W, 3), finite.
        usable: (*, H, W) bool.
        least: radians, below which angles count as this.

    Returns:
        (*, H - 1, W - 1).
    """
    p, g = ([x[..., y, s, :] for y, s in _CORNERS] for x in (points, target))
    m = [usable[..., y, s] for y, s in _CORNERS]
    total = torch.zeros_like(p[0][..., 0])
    for i in range(4):
        j, k = (i + 1) % 4, (i - 1) % 4
        a = torch.linalg.cross(p[j] - p[i], p[k] - p[i])
        b = torch.linalg.cross(g[j] - g[i], g[k] - g[i])
        total = total + angle_error(a, b, least) * (m[i] & m[j] & m[k])
    return total
