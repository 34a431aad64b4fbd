"""Least squares in one unknown with the steps and the end of MINPACK's ``lmdif`` (More 1978), for a batch at once.

Where published values come from a solver that stops early, only the same steps give the same values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Unknown (B,) to residuals (B, M) and their derivatives (B, M)."""

FIRST_RADIUS = 100.0
RELATIVE_STEP = 1e-8
ACCEPT = 1e-4


def least_squares_in_one_unknown(
    evaluate: Evaluate, start: Tensor, *, tolerance: float, floor: Tensor, steps: int = 100
) -> Tensor:
    """The unknown (B,) that makes the sum of squares least, by Levenberg-Marquardt steps within a trust radius.

    Args:
        evaluate: residuals and slopes; values that are not finite count as a failed step.
        start: (B,).
        tolerance: end when a step lowers the sum of squares, and would have lowered it were the problem linear, by at
            most this share (``ftol``).
        floor: (B,) added to the sum of the squared slopes, so that slopes that are only rounding error give no step.
        steps: at most so many trials.
    """
    t = start
    residual, slope = evaluate(t)
    norm = residual.norm(dim=-1)
    radius = torch.full_like(t, FIRST_RADIUS)
    radius = torch.where(t != 0, FIRST_RADIUS * t.abs(), radius)
    damping = torch.zeros_like(t)
    first = torch.ones_like(t, dtype=torch.bool)
    going = torch.isfinite(norm)
    for _ in range(steps):
        gradient, curvature = (slope * residual).sum(-1), slope.square().sum(-1) + floor
        damping = _damping(gradient, curvature, radius, damping)
        step = -gradient / (curvature + damping)
        length = step.abs()
        radius = torch.where(first, torch.minimum(radius, length), radius)
        trial = evaluate(t + step)
        size = trial[0].norm(dim=-1)
        gain, hoped, along = _gains(norm, size, slope.norm(dim=-1) * length, damping.sqrt() * length)
        ratio = torch.where(hoped > 0, gain / hoped.clamp_min(torch.finfo(t.dtype).tiny), torch.zeros_like(t))
        radius, damping = _next_radius(gain, ratio, along, norm, size, length, radius, damping)
        better = going & (ratio >= ACCEPT)
        t = torch.where(better, t + step, t)
        residual, slope = (torch.where(better[:, None], a, b) for a, b in zip(trial, (residual, slope)))
        norm = torch.where(better, size, norm)
        first = first & ~better
        done = (gain.abs() <= tolerance) & (hoped <= tolerance) & (ratio <= 2)
        done |= (radius <= RELATIVE_STEP * t.abs()) | (length == 0) | ~torch.isfinite(step)
        going = going & ~done
        if not bool(going.any()):
            break
    return t


def _damping(gradient: Tensor, curvature: Tensor, radius: Tensor, before: Tensor) -> Tensor:
    """Damping (B,) with which the step is within a tenth of the radius; 0 where the full step is."""
    full = gradient.abs() / curvature
    exact = gradient.abs() / radius - curvature
    kept = torch.maximum(before, exact).clamp(max=gradient.abs() / radius)
    near = ((gradient.abs() / (curvature + kept) - radius).abs() <= 0.1 * radius) & (kept > 0)
    out = torch.where(near, kept, exact).clamp_min(0.0)
    return torch.where(full <= 1.1 * radius, torch.zeros_like(out), out)


def _gains(norm: Tensor, size: Tensor, linear: Tensor, damped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Share by which a step lowered the sum of squares, by which it should have, and the slope along it."""
    safe = norm.clamp_min(torch.finfo(norm.dtype).tiny)
    gain = torch.where(0.1 * size < norm, 1 - (size / safe).square(), -1.0)
    a, b = (linear / safe).square(), (damped / safe).square()
    return gain, a + 2 * b, -(a + b)


def _next_radius(
    gain: Tensor,
    ratio: Tensor,
    along: Tensor,
    norm: Tensor,
    size: Tensor,
    length: Tensor,
    radius: Tensor,
    damping: Tensor,
) -> tuple[Tensor, Tensor]:
    """Radius and damping after a trial: smaller after a poor one, larger after a good or undamped one."""
    bent = along + 0.5 * gain
    shrink = torch.where(gain >= 0, 0.5, 0.5 * along / torch.where(bent != 0, bent, -1.0))
    shrink = torch.where((0.1 * size >= norm) | ~(shrink >= 0.1), 0.1, shrink)
    poor = ~(ratio > 0.25)
    good = ~poor & ((damping == 0) | (ratio >= 0.75))
    smaller = shrink * torch.minimum(radius, 10 * length)
    radius = torch.where(poor, smaller, torch.where(good, 2 * length, radius))
    damping = torch.where(poor, damping / shrink, torch.where(good, 0.5 * damping, damping))
    return radius, damping
