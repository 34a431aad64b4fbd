"""Which point of the scene lies under a click."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relief3d.core.contract import Scene


def pickable_points(scene: Scene) -> Tensor:
    """(N, 3) float64 positions a click can hit: mesh vertices, else fused points, else sparse points."""
    if scene.mesh is not None and scene.mesh.vertices.shape[0]:
        xyz = scene.mesh.vertices
    elif scene.points is not None and scene.points.xyz.shape[0]:
        xyz = scene.points.xyz
    elif scene.sparse is not None:
        xyz = scene.sparse.xyz
    else:
        xyz = torch.zeros((0, 3))
    xyz = xyz.to(torch.float64)
    return xyz[torch.isfinite(xyz).all(dim=-1)]


def point_on_ray(
    xyz: Tensor, origin: Tensor, direction: Tensor, tolerance: float = math.radians(1.0)
) -> Tensor | None:
    """The point nearest to the eye among those close to a ray.

    Args:
        xyz: (N, 3) candidates.
        origin: (3,) start of the ray.
        direction: (3,) its direction, of any length.
        tolerance: half opening angle in radians of the cone that counts as hit. Within it, a point wins by its
            distance along the ray, made longer for points off the axis so that the click's own surface is preferred.

    Returns:
        (3,) the point, or None when nothing lies in the cone.
    """
    direction = direction / direction.norm()
    offset = xyz - origin
    along = offset @ direction
    across = (offset - along[:, None] * direction).norm(dim=-1)
    angle = torch.atan2(across, along)
    hit = torch.nonzero((along > 0) & (angle < tolerance)).squeeze(1)
    if hit.shape[0] == 0:
        return None
    cost = along[hit] * (1 + 0.05 * (angle[hit] / tolerance) ** 2)
    return xyz[hit[cost.argmin()]]
