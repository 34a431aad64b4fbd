"""Lens distortion: OpenCV's polynomial and rational model, and the equidistant fisheye model.

Model equations follow the OpenCV camera model (Brown-Conrady with an optional rational term; Kannala-Brandt
for fisheye). The radial profile of a fitted polynomial usually stops growing somewhere outside the picture;
beyond that radius it folds back and has no inverse. Here that radius is found, the inverse is confined to it
by bisection, and everything outside is reported as invalid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relief3d.core.contract import Distortion

_MAX_RADIUS = 100.0  # tan of 89.4 degrees: a pinhole picture never needs more
_TABLE_SIZE = 4096
_BISECTIONS = 10  # inside one table cell
_NEWTON_STEPS = 12


def distortion_params(distortion: Distortion, like: Tensor) -> Tensor:
    """Coefficients as a tensor of the type and device of ``like``: (8,) for opencv (zero-padded), (4,) for fisheye."""
    size = 8 if distortion.model == "opencv" else 4
    padded = list(distortion.params) + [0.0] * (size - len(distortion.params))
    return torch.tensor(padded, dtype=like.dtype, device=like.device)


def distort_opencv(xy: Tensor, params: Tensor) -> Tensor:
    """OpenCV distortion of normalised coordinates.

    Args:
        xy: (*, N, 2) x/z and y/z.
        params: (*, 8) as (k1, k2, p1, p2, k3, k4, k5, k6).

    Returns:
        (*, N, 2).
    """
    k1, k2, p1, p2, k3, k4, k5, k6 = params[..., None, :].unbind(-1)
    x, y = xy.unbind(-1)
    r2 = x * x + y * y
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    return torch.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        ],
        dim=-1,
    )


def distort_fisheye(xy: Tensor, params: Tensor) -> Tensor:
    """Equidistant fisheye distortion of normalised coordinates (*, N, 2) with params (*, 4) -> (*, N, 2)."""
    r2 = xy.square().sum(-1)
    zero = r2 == 0
    r = torch.where(zero, torch.ones_like(r2), r2).sqrt()
    scale = fisheye_radius(torch.atan(r), params) / r
    return xy * torch.where(zero, torch.ones_like(scale), scale)[..., None]


def fisheye_radius(theta: Tensor, params: Tensor) -> Tensor:
    """Distorted radius theta (1 + k1 theta^2 + ... + k4 theta^8); theta (*, N) radians, params (*, 4)."""
    k1, k2, k3, k4 = params[..., None, :].unbind(-1)
    t = theta * theta
    return theta * (1 + t * (k1 + t * (k2 + t * (k3 + t * k4))))


def distort_normalized(xy: Tensor, distortion: Distortion | None) -> Tensor:
    """Apply a lens to normalised coordinates; (*, N, 2) -> (*, N, 2). None or all zeros change nothing."""
    if distortion is None or distortion.is_identity:
        return xy
    params = distortion_params(distortion, xy)
    return distort_opencv(xy, params) if distortion.model == "opencv" else distort_fisheye(xy, params)


def _profile(distortion: Distortion, t: Tensor) -> Tensor:
    """Radial profile: distorted radius at undistorted radius (opencv) or angle (fisheye) ``t`` (N,)."""
    params = distortion_params(distortion, t)
    if distortion.model == "fisheye":
        return fisheye_radius(t, params)
    k1, k2, _, _, k3, k4, k5, k6 = params.unbind(-1)
    r2 = t * t
    return t * (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))


def monotonic_limit(distortion: Distortion | None) -> float:
    """Largest undistorted radius (opencv; x/z units) or angle from the axis (fisheye; radians) with an inverse.

    The radial profile grows strictly up to it. Profiles that never fold give 100 (opencv, 89.4 degrees) or
    pi (fisheye).
    """
    limit = math.pi if distortion is not None and distortion.model == "fisheye" else _MAX_RADIUS
    if distortion is None or distortion.is_identity:
        return limit
    if distortion.model == "fisheye":
        t = torch.linspace(0, limit, 4001, dtype=torch.float64)
    else:
        fine = torch.linspace(0, 4, 4001, dtype=torch.float64)
        t = torch.cat([fine, torch.logspace(math.log10(4.0), 2, 1001, dtype=torch.float64)[1:]])
    grows = torch.diff(_profile(distortion, t)) > 0
    if bool(grows.all()):
        return limit
    stop = int((~grows).nonzero()[0])
    close = torch.linspace(float(t[max(stop - 1, 0)]), float(t[stop]), 1001, dtype=torch.float64)
    return float(close[int(_profile(distortion, close).argmax())])


def _invert_profile(radius: Tensor, distortion: Distortion, limit: float) -> Tensor:
    """Undistorted radius or angle of distorted ``radius`` (*,), confined to [0, limit], to about 22 bits.

    A table of the profile gives the bracket, bisection narrows it; both are safe where Newton's method is not.
    """
    table = torch.linspace(0, limit, _TABLE_SIZE, dtype=radius.dtype, device=radius.device)
    cell = torch.searchsorted(_profile(distortion, table), radius.contiguous()).clamp(1, _TABLE_SIZE - 1)
    low, high = table[cell - 1], table[cell]
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        below = _profile(distortion, middle) < radius
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


def undistort_normalized_checked(xy: Tensor, distortion: Distortion | None) -> tuple[Tensor, Tensor]:
    """Remove a lens from normalised coordinates.

    The radius is bracketed inside the monotonic range, then Newton's method solves both coordinates.
    The gradient with respect to ``xy`` is that of the exact inverse.

    Args:
        xy: (*, N, 2) distorted.
        distortion: the lens; None changes nothing.

    Returns:
        xy (*, N, 2) and validity (*, N): False where no undistorted point exists (beyond the monotonic range,
        or 90 degrees or more from the axis); there the position is confined to the edge of that range.
    """
    if distortion is None or distortion.is_identity:
        return xy, torch.isfinite(xy).all(-1)
    if distortion.model == "fisheye":
        theta, valid = undistort_angle(xy.square().sum(-1), distortion)
        valid = valid & (theta < math.pi / 2 - 1e-4)
        r2 = xy.square().sum(-1)
        zero = r2 == 0
        scale = (
            torch.tan(theta.clamp(max=math.pi / 2 - 1e-4)) / torch.where(zero, torch.ones_like(r2), r2).sqrt()
        )
        return xy * torch.where(zero, torch.ones_like(scale), scale)[..., None], valid
    target = xy.detach()
    params = distortion_params(distortion, xy)
    limit = monotonic_limit(distortion)
    radius = target.norm(dim=-1)
    finite = torch.isfinite(radius)
    radius = torch.where(finite, radius, torch.zeros_like(radius))
    target = torch.where(finite[..., None], target, torch.zeros_like(target))
    start = _invert_profile(radius, distortion, limit)
    ratio = torch.where(
        radius > 0, start / radius.clamp_min(torch.finfo(xy.dtype).tiny), torch.ones_like(start)
    )
    point = target * ratio[..., None]
    for _ in range(_NEWTON_STEPS):
        step = _solve(_jacobian(point, params), distort_opencv(point, params) - target)
        # A step longer than half the radius range comes from a nearly singular Jacobian; shorten it.
        length = step.norm(dim=-1, keepdim=True)
        step = step * (0.5 * limit / length.clamp_min(0.5 * limit))
        point = point - step
        r = point.norm(dim=-1, keepdim=True)
        point = point * (limit / r.clamp_min(limit))
        if not bool((length > 4 * torch.finfo(xy.dtype).eps * (1 + r)).any()):
            break
    residual = (distort_opencv(point, params) - target).norm(dim=-1)
    tolerance = 1e3 * torch.finfo(xy.dtype).eps * (1 + radius)
    valid = finite & (residual <= tolerance)
    if xy.requires_grad:
        # One more step with the Jacobian held fixed carries the derivative of the exact inverse; its value is 0.
        step = _solve(_jacobian(point, params), xy - target)
        point = point + torch.where(valid[..., None], step - step.detach(), torch.zeros_like(step))
    return point, valid


def _jacobian(xy: Tensor, params: Tensor) -> Tensor:
    """Derivative of :func:`distort_opencv` at xy (*, N, 2) -> (*, N, 2, 2)."""
    k1, k2, p1, p2, k3, k4, k5, k6 = params[..., None, :].unbind(-1)
    x, y = xy.unbind(-1)
    r2 = x * x + y * y
    top = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    bottom = 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
    radial = top / bottom
    slope = (k1 + r2 * (2 * k2 + 3 * r2 * k3) - radial * (k4 + r2 * (2 * k5 + 3 * r2 * k6))) / bottom
    xx = radial + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x
    yy = radial + 2 * y * y * slope + 6 * p1 * y + 2 * p2 * x
    cross = 2 * x * y * slope + 2 * p1 * x + 2 * p2 * y
    return torch.stack([xx, cross, cross, yy], dim=-1).reshape(*xy.shape, 2)


def _solve(jacobian: Tensor, rhs: Tensor) -> Tensor:
    """Solve symmetric 2x2 systems; nearly singular ones give a long step instead of an error."""
    a, b, _, d = jacobian.flatten(-2).unbind(-1)
    det = a * d - b * b
    tiny = torch.finfo(det.dtype).eps
    det = torch.where(det.abs() < tiny, torch.full_like(det, tiny), det)
    x, y = rhs.unbind(-1)
    return torch.stack([(d * x - b * y) / det, (a * y - b * x) / det], dim=-1)


def undistort_normalized(xy: Tensor, distortion: Distortion | None) -> Tensor:
    """Remove a lens from normalised coordinates; (*, N, 2) -> (*, N, 2). See :func:`undistort_normalized_checked`."""
    return undistort_normalized_checked(xy, distortion)[0]


def undistort_angle(radius_sq: Tensor, distortion: Distortion) -> tuple[Tensor, Tensor]:
    """Angle from the optical axis of a fisheye radius.

    Args:
        radius_sq: (*,) squared distorted radius (normalised).
        distortion: a fisheye lens.

    Returns:
        angle (*,) radians in [0, pi] and validity (*,).
    """
    zero = radius_sq == 0
    radius = torch.where(zero, torch.ones_like(radius_sq), radius_sq).sqrt()
    radius = torch.where(zero, torch.zeros_like(radius), radius)
    limit = monotonic_limit(distortion)
    target = radius.detach()
    target = torch.where(torch.isfinite(target), target, torch.zeros_like(target))
    theta = _invert_profile(target, distortion, limit)
    params = distortion_params(distortion, radius)
    for _ in range(_NEWTON_STEPS // 2):
        slope = _fisheye_slope(theta, params)
        theta = (theta - (fisheye_radius(theta, params) - target) / slope).clamp(0, limit)
    valid = (fisheye_radius(theta, params) - target).abs() <= 1e3 * torch.finfo(radius.dtype).eps * (
        1 + target
    )
    if radius.requires_grad:
        theta = theta + (radius - target) / _fisheye_slope(theta, params) * valid
    return theta, valid & torch.isfinite(radius)


def _fisheye_slope(theta: Tensor, params: Tensor) -> Tensor:
    k1, k2, k3, k4 = params[..., None, :].unbind(-1)
    t = theta * theta
    slope = 1 + t * (3 * k1 + t * (5 * k2 + t * (7 * k3 + t * 9 * k4)))
    return slope.clamp_min(torch.finfo(theta.dtype).eps ** 0.5)
