"""Focal length from point maps: MoGe's focal-and-shift solver, and Weiszfeld's robust focal.

Both suppose square pixels and a principal point in the middle of the picture. MoGe's focal is relative to half the
diagonal of the picture: f_pixels = focal * sqrt(W^2 + H^2) / 2. Sources: MoGe, MoGe-2, DUSt3R; MetricAnything
specification 6.2, 6.4, 6.5 and 9.5.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from relief3d.core.errors import InputError
from relief3d.geometry.projection import pixel_grid
from relief3d.geometry.trust_region import least_squares_in_one_unknown

_SIDE = 64
_LM_STEPS = 60


class FocalShift(NamedTuple):
    """``focal`` (*,) relative to half the diagonal, ``shift`` (*,) to be added to z in the unit of the points."""

    focal: Tensor
    shift: Tensor


class FocalFit(NamedTuple):
    """Focal length (*,) in pixels, z shift (*,), and the robust objective (*, steps + 1), the start first."""

    focal: Tensor
    shift: Tensor
    objective: Tensor


def view_plane_uv(
    height: int,
    width: int,
    aspect: float | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """(H, W, 2) positions of the pixel centres on a view plane whose half diagonal is 1.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        aspect: width / height of the picture; None takes it from the grid.
        device: of the result.
        dtype: of the result.
    """
    a = width / height if aspect is None else aspect
    dtype = torch.get_default_dtype() if dtype is None else dtype
    span_x, span_y = a / math.sqrt(1 + a * a), 1 / math.sqrt(1 + a * a)
    u = torch.linspace(-span_x * (width - 1) / width, span_x * (width - 1) / width, width, dtype=dtype)
    v = torch.linspace(-span_y * (height - 1) / height, span_y * (height - 1) / height, height, dtype=dtype)
    gv, gu = torch.meshgrid(v, u, indexing="ij")
    return torch.stack([gu, gv], dim=-1).to(device)


def focal_to_pixels(focal: Tensor, height: int, width: int) -> Tensor:
    """Focal length in pixels from one relative to half the diagonal."""
    return focal * (0.5 * math.hypot(width, height))


def focal_from_pixels(focal: Tensor, height: int, width: int) -> Tensor:
    """Focal length relative to half the diagonal from one in pixels."""
    return focal / (0.5 * math.hypot(width, height))


def focal_from_fov_x(fov_x: float, aspect: float) -> float:
    """Focal length relative to half the diagonal from the horizontal field of view in radians."""
    return aspect / math.sqrt(1 + aspect * aspect) / math.tan(0.5 * fov_x)


def centred_intrinsics(focal: Tensor, height: int, width: int) -> Tensor:
    """(*, 3, 3) pixels, principal point in the middle, from focal lengths (*,) in pixels."""
    K = focal.new_zeros(*focal.shape, 3, 3)
    K[..., 0, 0] = K[..., 1, 1] = focal
    K[..., 0, 2], K[..., 1, 2], K[..., 2, 2] = 0.5 * width, 0.5 * height, 1.0
    return K


def recover_focal_shift(
    points: Tensor,
    mask: Tensor | None = None,
    focal: Tensor | float | None = None,
    *,
    tolerance: float | None = None,
) -> FocalShift:
    """Focal length and z shift that make an affine point map a pinhole projection.

    Minimises ``sum || f xy / (z + t) - uv ||^2`` over t, with f the best focal for every t (variable projection) or
    given, by Levenberg-Marquardt from t = 0, on a 64 x 64 nearest-neighbour reduction.

    Args:
        points: (*, H, W, 3), shift-free or not.
        mask: (*, H, W) bool, or None for all. Points that are not finite are left out.
        focal: known focal length relative to half the diagonal, a number or (*,).
        tolerance: stop where MoGe's solver does when a step lowers the sum of squares by at most this share; MoGe takes
            1e-3, which on noisy points ends up to some per cent before the minimum. None goes on to the minimum.

    Returns:
        focal (*,) and shift (*,) in the type of the points. With fewer than two points: focal 1 (or the given one) and
        shift 0.

    Raises:
        InputError: shapes do not fit.
    """
    height, width = points.shape[-3:-1]
    lead = points.shape[:-3]
    if points.shape[-1] != 3 or (mask is not None and mask.shape != points.shape[:-1]):
        raise InputError(f"points must be (*, H, W, 3) with a mask (*, H, W), got {tuple(points.shape)}")
    wide = torch.float32 if points.device.type == "mps" else torch.float64
    rows, cols = _nearest(height, points.device), _nearest(width, points.device)
    small = points.detach()[..., rows[:, None], cols, :].reshape(-1, _SIDE * _SIDE, 3).to(wide)
    uv = view_plane_uv(height, width, device=points.device, dtype=wide)[rows[:, None], cols].reshape(-1, 2)
    used = torch.isfinite(small).all(-1)
    if mask is not None:
        used &= mask[..., rows[:, None], cols].reshape(-1, _SIDE * _SIDE)
    small = torch.where(used[..., None], small, torch.ones_like(small))
    known = None
    if focal is not None:
        known = torch.as_tensor(focal, dtype=wide, device=points.device).expand(lead).reshape(-1)
    spread = uv.expand(*small.shape[:-1], 2)
    solver = _solve_shift if tolerance is None else functools.partial(_shift_stopped, tolerance=tolerance)
    shift, best = solver(small[..., :2], small[..., 2], spread, used.to(wide), known)
    enough = used.sum(-1) >= 2
    shift = torch.where(enough, shift, torch.zeros_like(shift))
    best = torch.where(enough, best, torch.ones_like(best) if known is None else known)
    return FocalShift(best.reshape(lead).to(points.dtype), shift.reshape(lead).to(points.dtype))


def _nearest(length: int, device: torch.device) -> Tensor:
    """The source indices that a nearest-neighbour resize to 64 picks."""
    line = torch.arange(length, dtype=torch.float32)[None, None]
    return functional.interpolate(line, size=_SIDE, mode="nearest")[0, 0].long().to(device)


def _project(
    xy: Tensor, z: Tensor, uv: Tensor, w: Tensor, t: Tensor, known: Tensor | None
) -> tuple[Tensor, ...]:
    """Residuals (B, N, 2), their derivative by t, and the focal (B,), for weights w (B, N)."""
    depth = (z + t[:, None])[..., None]
    p = xy / depth
    dp = -p / depth
    wide = w[..., None]
    if known is not None:
        f = known
        df = torch.zeros_like(f)
    else:
        pu, pp = (wide * p * uv).sum((1, 2)), (wide * p * p).sum((1, 2))
        dpu, dpp = (wide * dp * uv).sum((1, 2)), 2 * (wide * p * dp).sum((1, 2))
        safe = torch.where(pp > 0, pp, torch.ones_like(pp))
        f, df = pu / safe, (dpu * safe - pu * dpp) / safe.square()
    return f[:, None, None] * p - uv, df[:, None, None] * p + f[:, None, None] * dp, f


def _shift_step(
    w: Tensor, residual: Tensor, slope: Tensor, uv: Tensor, depth: Tensor, damping: Tensor
) -> Tensor:
    """Damped Gauss-Newton step (B,) of the shift.

    On a plane parallel to the picture any shift fits with another focal length: the slope is then rounding error,
    small beside that of a fixed focal length (about uv / depth), and the step must be 0 and not noise over noise.
    """
    wide = w[..., None]
    gradient = (wide * slope * residual).sum((1, 2))
    curvature = (wide * slope * slope).sum((1, 2))
    noise = 1e-20 * (wide * (uv / depth[..., None]).square()).sum((1, 2)) + torch.finfo(w.dtype).tiny
    return -gradient / (curvature * (1 + damping) + noise)


def _solve_shift(xy: Tensor, z: Tensor, uv: Tensor, w: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt in the one unknown t, for a batch: shift (B,) and focal (B,)."""
    t = torch.zeros_like(z[:, 0])
    damping = torch.full_like(t, 1e-4)
    residual, slope, focal = _project(xy, z, uv, w, t, known)
    cost = (w[..., None] * residual.square()).sum((1, 2))
    for _ in range(_LM_STEPS):
        step = _shift_step(w, residual, slope, uv, z + t[:, None], damping)
        trial = _project(xy, z, uv, w, t + step, known)
        new = (w[..., None] * trial[0].square()).sum((1, 2))
        better = torch.isfinite(new) & (new <= cost)
        small = (step.abs() <= 1e-10 * (1 + t.abs())) | ~torch.isfinite(step)
        t = torch.where(better, t + step, t)
        keep = better[:, None, None]
        residual, slope = torch.where(keep, trial[0], residual), torch.where(keep, trial[1], slope)
        focal, cost = torch.where(better, trial[2], focal), torch.where(better, new, cost)
        damping = torch.where(better, damping * 0.1, damping * 10).clamp(1e-12, 1e12)
        if bool(small.all()):
            break
    return t, focal


def _shift_stopped(
    xy: Tensor, z: Tensor, uv: Tensor, w: Tensor, known: Tensor | None, *, tolerance: float
) -> tuple[Tensor, Tensor]:
    """As :func:`_solve_shift`, with the steps and the end of the solver that MoGe calls."""
    root = w.sqrt()[..., None]

    def evaluate(t: Tensor) -> tuple[Tensor, Tensor]:
        residual, slope, _ = _project(xy, z, uv, w, t, known)
        return (root * residual).flatten(1), (root * slope).flatten(1)

    # See _shift_step for what the floor is.
    floor = 1e-20 * (w[..., None] * (uv / z[..., None]).square()).sum((1, 2)) + torch.finfo(w.dtype).tiny
    t = least_squares_in_one_unknown(evaluate, torch.zeros_like(z[:, 0]), tolerance=tolerance, floor=floor)
    return t, _project(xy, z, uv, w, t, known)[2]


def weiszfeld_scale(
    p: Tensor,
    q: Tensor,
    weights: Tensor | None = None,
    *,
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Scale f that minimises ``sum_i w_i || p_i - f q_i ||`` (lengths, not squares), robust against outliers.

    Starts from least squares; every step weighs the samples by the inverse of their residual, which never increases
    the objective. It converges slowly when gross outliers are many: 10 steps (DUSt3R's number) may be far off.

    Args:
        p: (*, N, 2).
        q: (*, N, 2).
        weights: (*, N) non-negative, or None.
        iterations: at most so many steps.
        tolerance: stop when no scale changes by more than this share; 0 runs all steps.

    Returns:
        f (*,), 0 where nothing counts, and the objective (*, steps + 1) at the start and after every step.
    """
    w = torch.ones_like(p[..., 0]) if weights is None else weights.to(p.dtype).expand(p.shape[:-1])

    def fit(weight: Tensor) -> Tensor:
        up, down = (weight * (p * q).sum(-1)).sum(-1), (weight * (q * q).sum(-1)).sum(-1)
        return torch.where(
            down > 0, up / torch.where(down > 0, down, torch.ones_like(down)), torch.zeros_like(up)
        )

    f = fit(w)
    distance = (p - f[..., None, None] * q).norm(dim=-1)
    objective = [(w * distance).sum(-1)]
    for _ in range(iterations):
        new = fit(w / distance.clamp_min(1e-8))
        change = (new - f).abs()
        f = new
        distance = (p - f[..., None, None] * q).norm(dim=-1)
        objective.append((w * distance).sum(-1))
        if tolerance > 0 and bool((change <= tolerance * f.abs()).all()):
            break
    return f, torch.stack(objective, dim=-1)


def focal_weiszfeld(
    points: Tensor,
    mask: Tensor | None = None,
    *,
    iterations: int = 100,
    tolerance: float = 1e-6,
    max_points: int = 50_000,
) -> FocalFit:
    """Focal length in pixels from a point map in the camera frame, robustly (MetricAnything, equation 6).

    Minimises ``sum || p - f (X/Z, Y/Z) ||`` with p the offset of the pixel from the middle of the picture. The points
    must be in camera space (a shift of z already applied), otherwise the focal length is biased: see
    :func:`focal_shift_weiszfeld`. The result is clipped to [0.1, 20] times max(H, W) / (2 tan 30 deg).

    Args:
        points: (*, H, W, 3); points that are not finite or have z <= 0 are left out.
        mask: (*, H, W) bool, or None for all.
        iterations: 10 for parity with DUSt3R's code.
        tolerance: relative change at which to stop; 0 runs all iterations.
        max_points: larger maps are thinned by a whole step.

    Raises:
        InputError: shapes do not fit, or "no valid pixels".
    """
    xyz, p, used, lead = _thinned(points, mask, max_points)
    used = used & (xyz[..., 2] > 0)
    _require_points(used)
    z = torch.where(used, xyz[..., 2], torch.ones_like(xyz[..., 2]))
    q = torch.where(used[..., None], xyz[..., :2] / z[..., None], torch.zeros_like(p))
    f, objective = weiszfeld_scale(p, q, used.to(p.dtype), iterations=iterations, tolerance=tolerance)
    f = _clip_focal(f, points.shape[-3], points.shape[-2])
    zero = torch.zeros_like(f)
    return FocalFit(*(v.reshape((*lead, *v.shape[1:])).to(points.dtype) for v in (f, zero, objective)))


def focal_shift_weiszfeld(
    points: Tensor,
    mask: Tensor | None = None,
    *,
    iterations: int = 100,
    tolerance: float = 1e-7,
    max_points: int = 50_000,
) -> FocalFit:
    """Focal length in pixels and z shift, robustly: the variant of :func:`focal_weiszfeld` for affine point maps.

    Starts from least squares in both unknowns; then every step weighs the samples by the inverse of their residual,
    solves for f, and takes one damped Gauss-Newton step in the shift where that lowers the objective.

    Args:
        points: (*, H, W, 3) with an unknown shift of z; points that are not finite are left out.
        mask: (*, H, W) bool, or None for all.
        iterations: at most so many steps.
        tolerance: relative change of the objective at which to stop.
        max_points: larger maps are thinned by a whole step.

    Raises:
        InputError: shapes do not fit, or "no valid pixels".
    """
    xyz, p, used, lead = _thinned(points, mask, max_points)
    _require_points(used)
    xyz = torch.where(used[..., None], xyz, torch.ones_like(xyz))
    xy, z, w = xyz[..., :2], xyz[..., 2], used.to(p.dtype)
    t, f = _solve_shift(xy, z, p, w, None)

    def distances(shift: Tensor, focal: Tensor) -> Tensor:
        return (focal[:, None, None] * xy / (z + shift[:, None])[..., None] - p).norm(dim=-1)

    distance = distances(t, f)
    objective = [(w * distance).sum(-1)]
    damping = torch.full_like(t, 1e-4)
    for _ in range(iterations):
        weight = w / distance.clamp_min(1e-8)
        residual, slope, f = _project(xy, z, p, weight, t, None)
        step = _shift_step(weight, residual, slope, p, z + t[:, None], damping)
        trial_f = _project(xy, z, p, weight, t + step, None)[2]
        stay, move = distances(t, f), distances(t + step, trial_f)
        lower = torch.isfinite(move).all(-1) & ((w * move).sum(-1) <= (w * stay).sum(-1))
        t, f = torch.where(lower, t + step, t), torch.where(lower, trial_f, f)
        distance = torch.where(lower[:, None], move, stay)
        damping = torch.where(lower, damping * 0.1, damping * 10).clamp(1e-12, 1e12)
        objective.append((w * distance).sum(-1))
        if bool(((objective[-2] - objective[-1]).abs() <= tolerance * objective[-2]).all()):
            break
    f = _clip_focal(f, points.shape[-3], points.shape[-2])
    return FocalFit(
        *(v.reshape((*lead, *v.shape[1:])).to(points.dtype) for v in (f, t, torch.stack(objective, -1)))
    )


def _thinned(
    points: Tensor, mask: Tensor | None, max_points: int
) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """Points (B, N, 3), pixel offsets (B, N, 2) from the middle, usable (B, N), and the leading shape."""
    if points.shape[-1] != 3 or (mask is not None and mask.shape != points.shape[:-1]):
        raise InputError(f"points must be (*, H, W, 3) with a mask (*, H, W), got {tuple(points.shape)}")
    height, width = points.shape[-3:-1]
    step = max(1, math.ceil(math.sqrt(height * width / max_points)))
    wide = torch.float32 if points.device.type == "mps" else torch.float64
    xyz = points.detach()[..., ::step, ::step, :].to(wide)
    centre = torch.tensor([0.5 * width, 0.5 * height], dtype=wide, device=points.device)
    offset = (pixel_grid(height, width, points.device, wide) - centre)[::step, ::step].reshape(-1, 2)
    flat = xyz.reshape(-1, offset.shape[0], 3)
    used = torch.isfinite(flat).all(-1)
    if mask is not None:
        used = used & mask[..., ::step, ::step].reshape(used.shape)
    return flat, offset.expand(*flat.shape[:-1], 2), used, tuple(points.shape[:-3])


def _require_points(used: Tensor) -> None:
    if used.numel() == 0 or not bool(used.any(-1).all()):
        raise InputError(
            "no valid pixels", remedy="check the mask and that points lie in front of the camera"
        )


def _clip_focal(f: Tensor, height: int, width: int) -> Tensor:
    base = max(height, width) / (2 * math.tan(math.radians(30)))
    return f.clamp(0.1 * base, 20 * base)
