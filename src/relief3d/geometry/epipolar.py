"""Two-view geometry: essential and fundamental matrices, epipolar distances, relative pose.

For views a and b the convention is ``x_b^T F x_a = 0``. Pixels have centres at +0.5.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from relief3d.geometry.rotations import skew
from relief3d.geometry.transforms import make_rigid, relative_pose
from relief3d.geometry.triangulation import triangulate_midpoint


class RelativePose(NamedTuple):
    """b_from_a (*, 4, 4) with a translation of length 1, points in front (*,), and which points (*, N)."""

    b_from_a: Tensor
    in_front: Tensor
    mask: Tensor


def homogeneous(xy: Tensor) -> Tensor:
    """Append 1; (*, 2) -> (*, 3)."""
    return torch.cat([xy, torch.ones_like(xy[..., :1])], dim=-1)


def essential_from_poses(cam_from_world_a: Tensor, cam_from_world_b: Tensor) -> Tensor:
    """E = [t]_x R of b_from_a, so that normalised x_b^T E x_a = 0; (*, 4, 4) twice -> (*, 3, 3)."""
    b_from_a = relative_pose(cam_from_world_a, cam_from_world_b)
    return skew(b_from_a[..., :3, 3]) @ b_from_a[..., :3, :3]


def inverse_intrinsics(K: Tensor) -> Tensor:
    """Inverse of a pinhole matrix with last row (0, 0, 1), in closed form; (*, 3, 3)."""
    fx, skewness, cx = K[..., 0, 0], K[..., 0, 1], K[..., 0, 2]
    fy, cy = K[..., 1, 1], K[..., 1, 2]
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    entries = [1 / fx, -skewness / (fx * fy), (skewness * cy - cx * fy) / (fx * fy)]
    entries += [zero, 1 / fy, -cy / fy, zero, zero, one]
    return torch.stack(entries, dim=-1).reshape(K.shape)


def fundamental_from_essential(E: Tensor, K_a: Tensor, K_b: Tensor) -> Tensor:
    """F = K_b^-T E K_a^-1; (*, 3, 3)."""
    return inverse_intrinsics(K_b).mT @ E @ inverse_intrinsics(K_a)


def essential_from_fundamental(F: Tensor, K_a: Tensor, K_b: Tensor) -> Tensor:
    """E = K_b^T F K_a; (*, 3, 3)."""
    return K_b.mT @ F @ K_a


def fundamental_from_poses(
    cam_from_world_a: Tensor, cam_from_world_b: Tensor, K_a: Tensor, K_b: Tensor
) -> Tensor:
    """F with pixel x_b^T F x_a = 0; (*, 4, 4), (*, 4, 4), (*, 3, 3), (*, 3, 3) -> (*, 3, 3)."""
    return fundamental_from_essential(essential_from_poses(cam_from_world_a, cam_from_world_b), K_a, K_b)


def epipolar_lines(F: Tensor, xy_a: Tensor) -> Tensor:
    """Lines (*, N, 3) in view b of pixels (*, N, 2) in view a, scaled so that line . (x, y, 1) is in pixels."""
    lines = homogeneous(xy_a) @ F.mT
    norm = lines[..., :2].norm(dim=-1, keepdim=True)
    return lines / norm.clamp_min(torch.finfo(lines.dtype).tiny)


def _residual(F: Tensor, xy_a: Tensor, xy_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Algebraic residual x_b' F x_a and squared gradient lengths in both pictures, (*, N) each."""
    a, b = homogeneous(xy_a), homogeneous(xy_b)
    in_b, in_a = a @ F.mT, b @ F
    return (b * in_b).sum(-1), in_a[..., :2].square().sum(-1), in_b[..., :2].square().sum(-1)


def sampson_distance(F: Tensor, xy_a: Tensor, xy_b: Tensor, squared: bool = False) -> Tensor:
    """First-order distance of a correspondence to the epipolar constraint (Sampson).

    Args:
        F: (*, 3, 3), x_b^T F x_a = 0 (or E with normalised coordinates; the unit follows the coordinates).
        xy_a: (*, N, 2) pixels in view a.
        xy_b: (*, N, 2) pixels in view b.
        squared: return pixels squared.

    Returns:
        (*, N) pixels. A point on both epipoles satisfies the constraint and gets 0.
    """
    e, in_a, in_b = _residual(F, xy_a, xy_b)
    denominator = (in_a + in_b).clamp_min(torch.finfo(e.dtype).tiny)
    return e.square() / denominator if squared else e.abs() / denominator.sqrt()


def epipolar_distance(F: Tensor, xy_a: Tensor, xy_b: Tensor, squared: bool = False) -> Tensor:
    """Symmetric distance: root mean square of the point-to-line distances in both pictures.

    Args:
        F: (*, 3, 3), x_b^T F x_a = 0.
        xy_a: (*, N, 2) pixels in view a.
        xy_b: (*, N, 2) pixels in view b.
        squared: return pixels squared.

    Returns:
        (*, N) pixels.
    """
    e, in_a, in_b = _residual(F, xy_a, xy_b)
    tiny = torch.finfo(e.dtype).tiny
    harmonic = 0.5 * (1 / in_a.clamp_min(tiny) + 1 / in_b.clamp_min(tiny))
    return e.square() * harmonic if squared else e.abs() * harmonic.sqrt()


def decompose_essential(E: Tensor) -> tuple[Tensor, Tensor]:
    """The four relative poses of an essential matrix.

    Args:
        E: (*, 3, 3).

    Returns:
        rotations (*, 4, 3, 3) and unit translations (*, 4, 3) of b_from_a.
    """
    u, _, vh = torch.linalg.svd(E)
    # E and -E are the same constraint, so both factors can be made proper rotations.
    u = u * torch.where(torch.linalg.det(u) < 0, -1.0, 1.0).to(u.dtype)[..., None, None]
    vh = vh * torch.where(torch.linalg.det(vh) < 0, -1.0, 1.0).to(u.dtype)[..., None, None]
    w = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=E.dtype, device=E.device)
    first, second, t = u @ w @ vh, u @ w.mT @ vh, u[..., 2]
    return torch.stack([first, first, second, second], dim=-3), torch.stack([t, -t, t, -t], dim=-2)


def pose_from_essential(E: Tensor, xy_a: Tensor, xy_b: Tensor, weights: Tensor | None = None) -> RelativePose:
    """The relative pose with most points in front of both cameras.

    Args:
        E: (*, 3, 3).
        xy_a: (*, N, 2) normalised coordinates (x/z, y/z) in view a.
        xy_b: (*, N, 2) normalised coordinates in view b.
        weights: (*, N) vote of each correspondence, or None.

    Returns:
        b_from_a with unit translation, the votes, and the points in front of both cameras.
    """
    rotations, translations = decompose_essential(E)
    ray_a = homogeneous(xy_a)[..., None, :, :].expand(*rotations.shape[:-2], *xy_a.shape[-2:-1], 3)
    a_from_b = rotations.mT
    centre_b = -(a_from_b @ translations[..., None])[..., 0]
    ray_b = homogeneous(xy_b)[..., None, :, :] @ a_from_b.mT
    _, front = triangulate_midpoint(torch.zeros_like(centre_b), ray_a, centre_b, ray_b)
    votes = front.to(E.dtype) if weights is None else front * weights[..., None, :].to(E.dtype)
    total = votes.sum(-1)
    best = total.argmax(dim=-1, keepdim=True)
    rotation = rotations.take_along_dim(best[..., None, None], dim=-3).squeeze(-3)
    translation = translations.take_along_dim(best[..., None], dim=-2).squeeze(-2)
    mask = front.take_along_dim(best[..., None], dim=-2).squeeze(-2)
    return RelativePose(
        make_rigid(rotation, translation), total.take_along_dim(best, dim=-1).squeeze(-1), mask
    )


def fundamental_eight_point(xy_a: Tensor, xy_b: Tensor, weights: Tensor | None = None) -> Tensor:
    """Fundamental matrix from eight or more correspondences (normalised eight-point method, Hartley 1997).

    Args:
        xy_a: (*, N, 2) pixels in view a.
        xy_b: (*, N, 2) pixels in view b.
        weights: (*, N) or None.

    Returns:
        (*, 3, 3) of rank 2 and Frobenius norm 1. With normalised coordinates it estimates E.
    """
    w = torch.ones_like(xy_a[..., 0]) if weights is None else weights.to(xy_a.dtype)
    a, to_a = _normalised(xy_a, w)
    b, to_b = _normalised(xy_b, w)
    rows = (b[..., :, None] * a[..., None, :]).flatten(-2) * w[..., None]
    _, _, vh = torch.linalg.svd(rows, full_matrices=rows.shape[-2] < 9)
    u, s, vt = torch.linalg.svd(vh[..., 8, :].reshape(*vh.shape[:-2], 3, 3))
    s = torch.cat([s[..., :2], torch.zeros_like(s[..., 2:])], dim=-1)
    F = to_b.mT @ (u * s[..., None, :]) @ vt @ to_a
    return F / F.norm(dim=(-2, -1), keepdim=True)


def _normalised(xy: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Homogeneous coordinates moved to mean 0 and mean distance sqrt(2), and the (*, 3, 3) matrix that does it."""
    total = w.sum(-1).clamp_min(torch.finfo(xy.dtype).tiny)
    mean = (w[..., None] * xy).sum(-2) / total[..., None]
    spread = (w * (xy - mean[..., None, :]).norm(dim=-1)).sum(-1) / total
    scale = 2**0.5 / spread.clamp_min(torch.finfo(xy.dtype).eps)
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    entries = [scale, zero, -scale * mean[..., 0], zero, scale, -scale * mean[..., 1], zero, zero, one]
    matrix = torch.stack(entries, dim=-1).reshape(*scale.shape, 3, 3)
    return homogeneous(xy) @ matrix.mT, matrix
