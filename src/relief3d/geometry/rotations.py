"""Rotations: matrices, unit quaternions, axis-angle vectors, 6D and 9D parameterisations.

Matrices are (*, 3, 3) and act on column vectors. Quaternions are Hamilton quaternions in (w, x, y, z)
order unless a name says ``xyzw``. Angles are radians. All conversions are differentiable; gradients are
finite at the identity and at half turns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.core.errors import InputError

# Below this squared angle the power series is used. With ten terms the truncation error at 1 is < 1e-17,
# while closed forms such as (x - sin x) / x^3 have already lost digits in float32.
_SERIES_LIMIT = 1.0
_TERMS = 10


def _alternating_series(x: Tensor, first: int) -> Tensor:
    """sum_n (-x)^n / (2n + first)! by Horner's rule; x (*,)."""
    factorials = [1.0]
    for n in range(1, 2 * _TERMS + first + 1):
        factorials.append(factorials[-1] * n)
    result = torch.zeros_like(x)
    for n in reversed(range(_TERMS)):
        result = (-1.0) ** n / factorials[2 * n + first] + x * result
    return result


def _series_or_closed(angle_sq: Tensor, first: int) -> Tensor:
    small = angle_sq < _SERIES_LIMIT
    series = _alternating_series(torch.where(small, angle_sq, torch.zeros_like(angle_sq)), first)
    square = torch.where(small, torch.ones_like(angle_sq), angle_sq)
    angle = square.sqrt()
    if first == 1:
        closed = angle.sin() / angle
    elif first == 2:
        closed = 2.0 * (0.5 * angle).sin().square() / square
    else:
        closed = (angle - angle.sin()) / (square * angle)
    return torch.where(small, series, closed)


def sinc(angle_sq: Tensor) -> Tensor:
    """sin(a) / a as a smooth function of a^2 (*,); 1 at zero."""
    return _series_or_closed(angle_sq, 1)


def versine_ratio(angle_sq: Tensor) -> Tensor:
    """(1 - cos(a)) / a^2 as a smooth function of a^2 (*,); 1/2 at zero."""
    return _series_or_closed(angle_sq, 2)


def cubic_ratio(angle_sq: Tensor) -> Tensor:
    """(a - sin(a)) / a^3 as a smooth function of a^2 (*,); 1/6 at zero."""
    return _series_or_closed(angle_sq, 3)


def skew(v: Tensor) -> Tensor:
    """Cross-product matrix: ``skew(v) @ u == cross(v, u)``; (*, 3) -> (*, 3, 3)."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], dim=-1).reshape(*v.shape[:-1], 3, 3)


def unskew(m: Tensor) -> Tensor:
    """Vector of the antisymmetric part of a matrix, the inverse of :func:`skew`; (*, 3, 3) -> (*, 3)."""
    return 0.5 * torch.stack(
        [m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]], dim=-1
    )


def matrix_from_axis_angle(axis_angle: Tensor) -> Tensor:
    """Rotation matrix of an axis-angle vector (Rodrigues' formula), the exponential of SO(3).

    Args:
        axis_angle: (*, 3), direction is the axis, length is the angle in radians (any length).

    Returns:
        (*, 3, 3).
    """
    angle_sq = axis_angle.square().sum(-1)
    k = skew(axis_angle)
    a = sinc(angle_sq)[..., None, None]
    b = versine_ratio(angle_sq)[..., None, None]
    return torch.eye(3, dtype=k.dtype, device=k.device) + a * k + b * (k @ k)


def axis_angle_from_matrix(matrix: Tensor) -> Tensor:
    """Axis-angle vector of a rotation matrix, the logarithm of SO(3), stable at 0 and near pi.

    At exactly pi the axis is defined up to sign; the sign with a positive largest component is taken.

    Args:
        matrix: (*, 3, 3).

    Returns:
        (*, 3), length in [0, pi] radians.
    """
    return axis_angle_from_quat_wxyz(quat_wxyz_from_matrix(matrix))


so3_exp = matrix_from_axis_angle
so3_log = axis_angle_from_matrix


def quat_wxyz_from_matrix(matrix: Tensor) -> Tensor:
    """Unit quaternion of a rotation matrix with w >= 0.

    Shepperd's method: of the four products 4 q_i q the one with the largest q_i is normalised, so no digit
    is lost for any angle.

    Args:
        matrix: (*, 3, 3).

    Returns:
        (*, 4) as (w, x, y, z).
    """
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = matrix.flatten(-2).unbind(-1)
    x, y, z = m21 - m12, m02 - m20, m10 - m01
    xy, xz, yz = m10 + m01, m02 + m20, m12 + m21
    squares = torch.stack(
        [1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], dim=-1
    )
    tw, tx, ty, tz = squares.unbind(-1)
    rows = torch.stack([tw, x, y, z, x, tx, xy, xz, y, xy, ty, yz, z, xz, yz, tz], dim=-1)
    rows = rows.reshape(*squares.shape[:-1], 4, 4)
    best = squares.argmax(dim=-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    return canonical_quat(normalize_quat(rows.gather(-2, best).squeeze(-2)))


def normalize_quat(quat: Tensor) -> Tensor:
    """Quaternion of length 1; (*, 4) -> (*, 4). Zero becomes the identity (w first)."""
    norm_sq = quat.square().sum(-1, keepdim=True)
    zero = norm_sq == 0
    one = torch.zeros_like(quat)
    one[..., 0] = 1
    return torch.where(zero, one, quat / torch.where(zero, torch.ones_like(norm_sq), norm_sq).sqrt())


def canonical_quat(quat_wxyz: Tensor) -> Tensor:
    """The one of q and -q with w >= 0; (*, 4)."""
    return torch.where(quat_wxyz[..., :1] < 0, -quat_wxyz, quat_wxyz)


def matrix_from_quat_wxyz(quat_wxyz: Tensor) -> Tensor:
    """Rotation matrix of a quaternion of any non-zero length.

    Args:
        quat_wxyz: (*, 4) as (w, x, y, z); zero gives the identity.

    Returns:
        (*, 3, 3).
    """
    w, x, y, z = normalize_quat(quat_wxyz).unbind(-1)
    entries = [
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    ]
    return torch.stack(entries, dim=-1).reshape(*quat_wxyz.shape[:-1], 3, 3)


def quat_xyzw_from_wxyz(quat_wxyz: Tensor) -> Tensor:
    """Reorder (w, x, y, z) to (x, y, z, w); (*, 4)."""
    return quat_wxyz.roll(-1, dims=-1)


def quat_wxyz_from_xyzw(quat_xyzw: Tensor) -> Tensor:
    """Reorder (x, y, z, w) to (w, x, y, z); (*, 4)."""
    return quat_xyzw.roll(1, dims=-1)


def multiply_quat(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product of (w, x, y, z) quaternions: rotates by ``b``, then by ``a``; (*, 4)."""
    aw, av, bw, bv = a[..., :1], a[..., 1:], b[..., :1], b[..., 1:]
    w = aw * bw - (av * bv).sum(-1, keepdim=True)
    return torch.cat([w, aw * bv + bw * av + torch.linalg.cross(av, bv)], dim=-1)


def conjugate_quat(quat_wxyz: Tensor) -> Tensor:
    """Inverse of a unit quaternion; (*, 4)."""
    return torch.cat([quat_wxyz[..., :1], -quat_wxyz[..., 1:]], dim=-1)


def quat_wxyz_from_axis_angle(axis_angle: Tensor) -> Tensor:
    """Unit quaternion of an axis-angle vector; (*, 3) radians -> (*, 4)."""
    half_sq = 0.25 * axis_angle.square().sum(-1, keepdim=True)
    # cos h = 1 - h^2 (1 - cos h)/h^2 keeps the gradient finite at zero.
    return torch.cat([1 - half_sq * versine_ratio(half_sq), 0.5 * sinc(half_sq) * axis_angle], dim=-1)


def axis_angle_from_quat_wxyz(quat_wxyz: Tensor) -> Tensor:
    """Axis-angle vector of a quaternion of any non-zero length; (*, 4) -> (*, 3), length <= pi radians."""
    quat = canonical_quat(quat_wxyz)
    w, v = quat[..., :1], quat[..., 1:]
    norm_sq = v.square().sum(-1, keepdim=True)
    small = norm_sq < 0.01 * w * w
    w_small = torch.where(small, w, torch.ones_like(w))
    t_sq = torch.where(small, norm_sq, torch.zeros_like(norm_sq)) / w_small.square()
    series = torch.zeros_like(t_sq)
    for n in reversed(range(_TERMS)):  # atan(t) / t
        series = (-1.0) ** n / (2 * n + 1) + t_sq * series
    # The zero quaternion falls through to the closed branch with norm 0; it is mapped to zero rotation.
    degenerate = small | (norm_sq == 0)
    norm = torch.where(degenerate, torch.ones_like(norm_sq), norm_sq).sqrt()
    closed = 2 * torch.atan2(norm, torch.where(degenerate, torch.ones_like(w), w)) / norm
    return torch.where(small, 2 / w_small * series, closed) * v


def slerp(a: Tensor, b: Tensor, fraction: Tensor) -> Tensor:
    """Rotation between two matrices along the shortest arc.

    Args:
        a: (*, 3, 3).
        b: (*, 3, 3).
        fraction: (*,), 0 gives ``a``, 1 gives ``b``; values outside extrapolate.

    Returns:
        (*, 3, 3).
    """
    return a @ matrix_from_axis_angle(fraction[..., None] * axis_angle_from_matrix(a.mT @ b))


def rotation_angle(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Angle between two rotations (or of one), with atan2 so that small angles and half turns are exact.

    Args:
        a: (*, 3, 3).
        b: (*, 3, 3), by default the identity.

    Returns:
        (*,) radians in [0, pi]. The gradient at angle 0 is taken as 0.
    """
    relative = a if b is None else a.mT @ b
    quat = quat_wxyz_from_matrix(relative)
    norm_sq = quat[..., 1:].square().sum(-1)
    zero = norm_sq == 0
    norm = torch.where(zero, torch.ones_like(norm_sq), norm_sq).sqrt()
    return torch.where(zero, torch.zeros_like(norm), 2 * torch.atan2(norm, quat[..., 0]))


def matrix_from_rot6d(rot6d: Tensor) -> Tensor:
    """Rotation from the first two columns after Gram-Schmidt (Zhou et al. 2019, "On the continuity of rotations").

    Args:
        rot6d: (*, 6), first column then second column, any length. Where the columns are zero or parallel a
            coordinate axis replaces the undefined direction, so the result is always a rotation.

    Returns:
        (*, 3, 3).
    """
    a, b = rot6d[..., :3], rot6d[..., 3:]
    axes = torch.eye(3, dtype=rot6d.dtype, device=rot6d.device)
    tiny = torch.finfo(rot6d.dtype).eps * 16
    c0 = _unit_or(a, axes[0].expand_as(a), torch.zeros_like(a[..., :1]))
    rest = b - (c0 * b).sum(-1, keepdim=True) * c0
    spare = axes[c0.abs().argmin(dim=-1)]
    spare = spare - (c0 * spare).sum(-1, keepdim=True) * c0
    c1 = _unit_or(rest, spare, tiny * b.norm(dim=-1, keepdim=True).detach())
    c1 = _unit_or(c1 - (c0 * c1).sum(-1, keepdim=True) * c0, spare, torch.zeros_like(a[..., :1]))
    return torch.stack([c0, c1, torch.linalg.cross(c0, c1)], dim=-1)


def _unit_or(v: Tensor, fallback: Tensor, limit: Tensor) -> Tensor:
    """Unit vector of v where |v| > limit, else fallback / |fallback|; (*, 3), limit (*, 1)."""
    # Dividing by the largest entry first keeps the square from under- or overflowing.
    biggest = v.detach().abs().amax(dim=-1, keepdim=True)
    scaled = v / torch.where(biggest > 0, biggest, torch.ones_like(biggest))
    bad = (biggest == 0) | (scaled.detach().norm(dim=-1, keepdim=True) * biggest <= limit)
    chosen = torch.where(bad, fallback, scaled)
    return chosen / chosen.square().sum(-1, keepdim=True).sqrt()


def rot6d_from_matrix(matrix: Tensor) -> Tensor:
    """First two columns of a rotation; (*, 3, 3) -> (*, 6)."""
    return matrix[..., :2].mT.flatten(-2)


def matrix_from_svd9d(m: Tensor) -> Tensor:
    """Nearest rotation in the Frobenius norm (special orthogonal Procrustes; Levinson et al. 2020).

    The gradient is exact and depends only on 1 / (s_i + s_j) of the signed singular values, so equal
    singular values (the identity) are harmless; where s_i + s_j vanishes the rotation itself is undefined
    and the gradient of that direction is 0. Second derivatives are not provided.

    Args:
        m: (*, 3, 3) or (*, 9) row by row, any real matrix.

    Returns:
        (*, 3, 3), NaN where the matrix is not finite.
    """
    if m.shape[-1] == 9:
        m = m.reshape(*m.shape[:-1], 3, 3)
    if m.shape[-2:] != (3, 3):
        raise InputError(f"expected (*, 3, 3) or (*, 9), got {tuple(m.shape)}")
    with torch.no_grad():
        finite = torch.isfinite(m).all(-1, keepdim=True).all(-2, keepdim=True)
        u, s, vh = torch.linalg.svd(torch.where(finite, m.detach(), torch.zeros_like(m)))
        sign = torch.where(torch.linalg.det(u @ vh) < 0, -1.0, 1.0).to(m.dtype)
        signs = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], dim=-1)
        rotation = torch.where(finite, (u * signs[..., None, :]) @ vh, torch.nan)
        signed = s * signs
        sums = signed[..., :, None] + signed[..., None, :]
        limit = 16 * torch.finfo(m.dtype).eps * s[..., :1, None]
        inverse = torch.where(sums > limit, 1 / torch.where(sums > limit, sums, torch.ones_like(sums)), 0.0)
        v = vh.mT
    if not m.requires_grad:
        return rotation
    # m = R P with P symmetric: a change dm turns R by the skew matrix W that solves R'dm - dm'R = W P + P W.
    # Its value at m is zero, so only the derivative survives.
    x = vh @ rotation.mT @ m @ v
    turn = (x - x.mT) * inverse
    return rotation + rotation @ v @ (turn - turn.detach()) @ vh
