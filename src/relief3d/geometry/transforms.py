"""Rigid motions SE(3) and similarities Sim(3) as (*, 4, 4) matrices, with exponential and logarithm.

A similarity is [[s R, t], [0, 1]]. Names say the frames: ``a_from_b`` maps coordinates of frame b to frame a,
so ``a_from_b @ b_from_c == a_from_c``. Tangent vectors are (translation part rho, rotation part phi[, log scale]).
"""

from __future__ import annotations

from functools import reduce

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.rotations import (
    axis_angle_from_matrix,
    cubic_ratio,
    matrix_from_axis_angle,
    sinc,
    skew,
    slerp,
    versine_ratio,
)

# Nodes of the Gauss-Legendre rule for the Sim(3) left Jacobian: exact to rounding for |log scale| <= 50.
_QUADRATURE_NODES = 24


def make_rigid(rotation: Tensor, translation: Tensor) -> Tensor:
    """(*, 4, 4) transform x -> R x + t from (*, 3, 3) and (*, 3); leading dimensions broadcast."""
    lead = torch.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])
    top = torch.cat(
        [rotation.expand(*lead, 3, 3), translation[..., None].expand(*lead, 3, 1).to(rotation.dtype)], dim=-1
    )
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], dim=-2)


def make_similarity(scale: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
    """(*, 4, 4) transform x -> s R x + t from (*,), (*, 3, 3) and (*, 3)."""
    return make_rigid(scale[..., None, None] * rotation, translation)


def split_similarity(transform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale (*,), rotation (*, 3, 3) and translation (*, 3) of a similarity (*, 4, 4)."""
    linear = transform[..., :3, :3]
    scale = torch.linalg.det(linear).clamp_min(torch.finfo(linear.dtype).tiny).pow(1.0 / 3.0)
    return scale, linear / scale[..., None, None], transform[..., :3, 3]


def invert_rigid(transform: Tensor) -> Tensor:
    """Inverse of a rigid transform by transposing its rotation; (*, 4, 4)."""
    rotation_t = transform[..., :3, :3].mT
    return make_rigid(rotation_t, -(rotation_t @ transform[..., :3, 3:])[..., 0])


def invert_similarity(transform: Tensor) -> Tensor:
    """Inverse of a similarity; (*, 4, 4)."""
    linear = transform[..., :3, :3]
    # (sR)^-1 = (sR)^T / s^2, and s^2 is the mean squared column length.
    scale_sq = linear.square().sum((-2, -1), keepdim=True) / 3
    inverse = linear.mT / scale_sq
    return make_rigid(inverse, -(inverse @ transform[..., :3, 3:])[..., 0])


def compose(*transforms: Tensor) -> Tensor:
    """Product of transforms, the last one applied first: ``compose(a_from_b, b_from_c)`` is a_from_c; (*, 4, 4).

    Raises:
        InputError: when called without arguments.
    """
    if not transforms:
        raise InputError("compose needs at least one transform")
    return reduce(torch.matmul, transforms)


def relative_pose(a_from_world: Tensor, b_from_world: Tensor) -> Tensor:
    """b_from_a of two rigid cam_from_world transforms; (*, 4, 4)."""
    return b_from_world @ invert_rigid(a_from_world)


def transform_points(transform: Tensor, points: Tensor) -> Tensor:
    """Apply (*, 4, 4) rigid, similarity or affine transforms to points (*, N, 3) -> (*, N, 3)."""
    return points @ transform[..., :3, :3].mT + transform[..., None, :3, 3]


def transform_directions(transform: Tensor, directions: Tensor) -> Tensor:
    """Rotate (and scale) vectors without translating them; (*, 4, 4), (*, N, 3) -> (*, N, 3)."""
    return directions @ transform[..., :3, :3].mT


def se3_exp(xi: Tensor) -> Tensor:
    """Rigid transform of a twist.

    Args:
        xi: (*, 6) as (rho, phi): rho in length units, phi axis-angle in radians.

    Returns:
        (*, 4, 4).
    """
    rho, phi = xi[..., :3], xi[..., 3:]
    jacobian = so3_left_jacobian(phi)
    return make_rigid(matrix_from_axis_angle(phi), (jacobian @ rho[..., None])[..., 0])


def se3_log(transform: Tensor) -> Tensor:
    """Twist of a rigid transform; (*, 4, 4) -> (*, 6), rotation part of length <= pi radians."""
    phi = axis_angle_from_matrix(transform[..., :3, :3])
    rho = torch.linalg.solve(so3_left_jacobian(phi), transform[..., :3, 3:])[..., 0]
    return torch.cat([rho, phi], dim=-1)


def so3_left_jacobian(phi: Tensor) -> Tensor:
    """Left Jacobian of SO(3), the integral of exp(u phi) over u in [0, 1]; (*, 3) radians -> (*, 3, 3)."""
    angle_sq = phi.square().sum(-1)
    k = skew(phi)
    b, c = versine_ratio(angle_sq)[..., None, None], cubic_ratio(angle_sq)[..., None, None]
    return torch.eye(3, dtype=k.dtype, device=k.device) + b * k + c * (k @ k)


def sim3_exp(xi: Tensor) -> Tensor:
    """Similarity of a tangent vector.

    Args:
        xi: (*, 7) as (rho, phi, sigma): length units, axis-angle radians, natural log of the scale.

    Returns:
        (*, 4, 4).
    """
    rho, phi, sigma = xi[..., :3], xi[..., 3:6], xi[..., 6]
    jacobian = _sim3_jacobian(phi, sigma)
    return make_similarity(sigma.exp(), matrix_from_axis_angle(phi), (jacobian @ rho[..., None])[..., 0])


def sim3_log(transform: Tensor) -> Tensor:
    """Tangent vector of a similarity; (*, 4, 4) -> (*, 7) as (rho, phi, log scale)."""
    scale, rotation, translation = split_similarity(transform)
    phi, sigma = axis_angle_from_matrix(rotation), scale.log()
    rho = torch.linalg.solve(_sim3_jacobian(phi, sigma), translation[..., None])[..., 0]
    return torch.cat([rho, phi, sigma[..., None]], dim=-1)


def _sim3_jacobian(phi: Tensor, sigma: Tensor) -> Tensor:
    """Integral of exp(u sigma) exp(u skew(phi)) over u in [0, 1]; (*, 3), (*,) -> (*, 3, 3).

    Quadrature instead of the closed form, whose coefficients are 0/0 in three different limits.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_QUADRATURE_NODES)
    u = torch.as_tensor(0.5 * (nodes + 1), dtype=phi.dtype, device=phi.device)
    w = torch.as_tensor(0.5 * weights, dtype=phi.dtype, device=phi.device)
    growth = w * (sigma[..., None] * u).exp()
    angle_sq = phi.square().sum(-1, keepdim=True) * u.square()
    a = growth.sum(-1)[..., None, None]
    b = (growth * u * sinc(angle_sq)).sum(-1)[..., None, None]
    c = (growth * u.square() * versine_ratio(angle_sq)).sum(-1)[..., None, None]
    k = skew(phi)
    return a * torch.eye(3, dtype=k.dtype, device=k.device) + b * k + c * (k @ k)


def interpolate_rigid(a: Tensor, b: Tensor, fraction: Tensor) -> Tensor:
    """Pose between two poses: straight line of the origin, shortest arc of the rotation.

    Args:
        a: (*, 4, 4) world_from_cam (interpolating cam_from_world would bend the path).
        b: (*, 4, 4) world_from_cam.
        fraction: (*,), 0 gives ``a`` and 1 gives ``b``.

    Returns:
        (*, 4, 4).
    """
    rotation = slerp(a[..., :3, :3], b[..., :3, :3], fraction)
    origin = torch.lerp(a[..., :3, 3], b[..., :3, 3], fraction[..., None])
    return make_rigid(rotation, origin)


def look_at(eye: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """world_from_cam (OpenCV axes) of a camera at ``eye`` that looks at ``target``.

    Args:
        eye: (*, 3) world positions.
        target: (*, 3) world positions.
        up: (*, 3) world direction that appears upwards in the picture; where it is parallel to the line of
            sight another axis is taken.

    Returns:
        (*, 4, 4).
    """
    eye, target, up = torch.broadcast_tensors(eye, target, up)
    eps = torch.finfo(eye.dtype).eps ** 0.5
    forward = target - eye
    length = forward.norm(dim=-1, keepdim=True)
    ahead = torch.tensor([0.0, 0.0, 1.0], dtype=eye.dtype, device=eye.device).expand_as(eye)
    forward = torch.where(length > 0, forward / length.clamp_min(torch.finfo(eye.dtype).tiny), ahead)
    right = torch.linalg.cross(forward, up)
    axes = torch.eye(3, dtype=eye.dtype, device=eye.device)
    other = torch.linalg.cross(forward, axes[forward.abs().argmin(dim=-1)])
    usable = right.norm(dim=-1, keepdim=True) > eps * up.norm(dim=-1, keepdim=True)
    right = torch.where(usable, right, other)
    right = right / right.norm(dim=-1, keepdim=True)
    down = torch.linalg.cross(forward, right)
    return make_rigid(torch.stack([right, down, forward], dim=-1), eye)
