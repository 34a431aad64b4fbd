"""Conventions of poses and depth in public data sets, turned into ours.

OpenCV camera axes are x right, y down, z forward. Every function returns a rigid ``world_from_cam`` (4, 4) float64 in
a right-handed world.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.projection import pixel_rays
from relief3d.geometry.rotations import matrix_from_quat_wxyz, quat_wxyz_from_matrix
from relief3d.geometry.transforms import invert_rigid, make_rigid
from relief3d.io.rigid import rigid_from_file

__all__ = [
    "invert_rigid",
    "pose_from_quat_xyzw",
    "quat_wxyz_from_matrix",
    "rigid_matrix",
    "rotation_xyz",
    "world_from_ned_camera",
    "z_from_ray_length",
]

_NED_FROM_OPENCV = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
"""x forward, y right, z down from x right, y down, z forward."""


def rigid_matrix(matrix: Tensor, path: Path, what: str = "pose", tolerance: float = 1e-2) -> Tensor:
    """A stored (3, 4) or (4, 4) transform made exactly rigid, (4, 4) float64.

    Raises:
        InputError: it is no rigid transform; names the file.
    """
    try:
        return rigid_from_file(matrix, tolerance=tolerance)
    except ValueError as exc:
        raise InputError(f"the {what} {exc}", path=path, remedy="copy the file again") from exc


def pose_from_quat_xyzw(translation: Tensor, quat_xyzw: Tensor, path: Path) -> Tensor:
    """(*, 4, 4) of (*, 3) and a quaternion (x, y, z, w) (*, 4) that needs not have length 1 exactly.

    Raises:
        InputError: a quaternion is far from length 1 or a number not finite.
    """
    norm = quat_xyzw.norm(dim=-1)
    if not bool(torch.isfinite(translation).all()) or not bool(((norm - 1).abs() < 0.05).all()):
        raise InputError("holds a quaternion that is not of length 1", path=path, remedy="copy it again")
    unit = (quat_xyzw / norm[..., None]).roll(1, -1)
    return make_rigid(matrix_from_quat_wxyz(unit), translation)


def world_from_ned_camera(world_from_body: Tensor) -> Tensor:
    """(*, 4, 4) of a camera whose stored axes are x forward, y right, z down (AirSim, TartanAir).

    The world keeps its own axes (north, east, down: right-handed already).
    """
    return world_from_body @ _NED_FROM_OPENCV


def rotation_xyz(angles: Tensor) -> Tensor:
    """(3, 3) Rz(c) Ry(b) Rx(a) of (a, b, c) radians: turns about the fixed axes x, y, z in that order."""
    (ca, sa), (cb, sb), (cc, sc) = ((math.cos(v), math.sin(v)) for v in angles.tolist())
    x = torch.tensor([[1, 0, 0], [0, ca, -sa], [0, sa, ca]], dtype=torch.float64)
    y = torch.tensor([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]], dtype=torch.float64)
    z = torch.tensor([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]], dtype=torch.float64)
    return z @ y @ x


def z_from_ray_length(length: Tensor, K: Tensor) -> Tensor:
    """z-depth (H, W) float32 of distances from the camera's centre (H, W); unknown (0, NaN) stays 0."""
    rays = pixel_rays(K.to(torch.float64), length.shape[0], length.shape[1])
    z = (length.to(torch.float64) / rays.norm(dim=-1)).to(torch.float32)
    return torch.where(torch.isfinite(z) & (z > 0), z, torch.zeros_like(z))
