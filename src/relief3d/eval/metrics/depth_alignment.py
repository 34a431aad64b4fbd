"""Alignments of predicted to true depth as the video-depth papers compute them, and the errors that follow.

Everything works on vectors of masked pixels, in the unit of the truth, with sums in double precision. Source:
specification multiview.md 6.1 (pi3 and SelfEvo, in the line of CUT3R). The alignments, by name:

``metric``        nothing is changed.
``median``        ratio of the medians (``torch.median``: the LOWER median of an even count).
``lstsq_scale``   scale that minimises the squared error.
``scale``         ten reweighted steps towards the scale that minimises the absolute error, then at least 1e-3.
``scale_shift``   at most 1000 steps of Adam on scale and shift. The steps are so small that neither can travel much
                  farther than a thousand learning rates (0.1): the result is not the optimum and depends on the unit.
                  Kept because published tables use it.
``lstsq``         scale and shift that minimise the squared error.
``lad``           scale and shift that minimise the absolute error, to rounding: what ``scale_shift`` aims at.

An alignment belongs to a whole video (``"video"``, the papers' rule) or to every frame (``"frame"``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.metrics.depth_errors import DELTA_BASE, check_truth
from relief3d.eval.metrics.least_absolute import fit_line

DepthAlignment = Literal["metric", "median", "lstsq_scale", "scale", "scale_shift", "lstsq", "lad"]
AlignmentScope = Literal["video", "frame"]
SMALLEST_SCALE = 1e-3
SMALLEST_LOG_DEPTH = 1e-5
_BLOCK = 1 << 15


@dataclass(frozen=True)
class ScaleShift:
    """Aligned depth is ``scale * depth + shift``."""

    scale: float
    shift: float = 0.0


@dataclass(frozen=True)
class AlignedErrors:
    """Errors of one video after alignment.

    Attributes:
        abs_rel: mean |p - g| / g.
        sq_rel: mean (p - g)^2 / g, unit of the depth.
        rmse: unit of the depth.
        log_rmse: natural logarithm, of the prediction raised to at least 1e-5.
        delta1, delta2, delta3: share with max(p/g, g/p) < 1.25^k, strict, of the raised prediction.
        pixels: number of pixels.
        fits: one alignment per video, or per frame that has valid pixels.
    """

    abs_rel: float
    sq_rel: float
    rmse: float
    log_rmse: float
    delta1: float
    delta2: float
    delta3: float
    pixels: int
    fits: tuple[ScaleShift, ...]


def fit_alignment(
    predicted: Tensor, truth: Tensor, method: DepthAlignment, learning_rate: float = 1e-4
) -> ScaleShift:
    """The alignment of that name; see the description of the module.

    Args:
        predicted: (P,) finite depth, any unit.
        truth: (P,) positive depth.
        method: name of the alignment.
        learning_rate: of ``scale_shift`` (1e-4; the papers use 1e-3 for NYU).

    Raises:
        InputError: shapes differ, "no valid pixels", predictions that are not finite, truth that is not positive, or an
            unknown name.
    """
    _check(predicted, truth)
    if method == "metric":
        return ScaleShift(1.0)
    if method == "median":
        return ScaleShift(_median_ratio(predicted, truth))
    if method == "lstsq_scale":
        _, _, pp, pg, _ = _moments(predicted, truth)
        return ScaleShift(pg / pp if pp > 0 else 1.0)
    if method == "scale":
        return ScaleShift(scale_reweighted(predicted, truth))
    if method == "scale_shift":
        return scale_shift_adam(predicted, truth, learning_rate)
    if method == "lstsq":
        return scale_shift_lstsq(predicted, truth)
    if method == "lad":
        return ScaleShift(*fit_line(predicted, truth))
    raise InputError(
        f"unknown depth alignment '{method}'",
        remedy="choose metric, median, lstsq_scale, scale, scale_shift, lstsq or lad",
    )


def aligned_depth_errors(
    predicted: Tensor,
    truth: Tensor,
    mask: Tensor,
    method: DepthAlignment,
    *,
    scope: AlignmentScope = "video",
    post_clip_max: float | None = None,
    learning_rate: float = 1e-4,
) -> AlignedErrors:
    """Align and measure one video: mean over all masked pixels of all frames.

    Args:
        predicted: (N, H, W) depth of one video.
        truth: (N, H, W), positive inside the mask.
        mask: (N, H, W) bool.
        method: see the description of the module.
        scope: one alignment for the video, or one per frame (frames without valid pixels are left out).
        post_clip_max: the aligned prediction is lowered to at most this (unit of the truth).
        learning_rate: of ``scale_shift``.

    Raises:
        InputError: as :func:`fit_alignment`.
    """
    parts = masked_parts(predicted, truth, mask, scope)
    return aligned_pixel_errors(parts, method, post_clip_max=post_clip_max, learning_rate=learning_rate)


def masked_parts(
    predicted: Tensor, truth: Tensor, mask: Tensor, scope: AlignmentScope = "video"
) -> list[tuple[Tensor, Tensor]]:
    """Masked pixels of (N, H, W) maps as (P,) pairs, one per alignment: the video, or each frame with valid pixels.

    Raises:
        InputError: shapes differ, or an unknown scope.
    """
    if predicted.shape != truth.shape or mask.shape != truth.shape or truth.ndim != 3:
        raise InputError(
            f"prediction {tuple(predicted.shape)}, truth {tuple(truth.shape)} and mask {tuple(mask.shape)} "
            "must all be (N, H, W)"
        )
    if scope == "video":
        return [(predicted[mask], truth[mask])]
    if scope == "frame":
        return [(p[m], g[m]) for p, g, m in zip(predicted, truth, mask) if bool(m.any())]
    raise InputError(f"unknown scope of an alignment '{scope}'", remedy="choose video or frame")


def aligned_pixel_errors(
    parts: list[tuple[Tensor, Tensor]],
    method: DepthAlignment,
    *,
    post_clip_max: float | None = None,
    learning_rate: float = 1e-4,
) -> AlignedErrors:
    """As :func:`aligned_depth_errors` for pixels that are masked already: (P,) pairs, one alignment each."""
    if not parts:
        raise InputError("no valid pixels", remedy="check the depth range, the unit and the mask")
    fits = [fit_alignment(p, g, method, learning_rate) for p, g in parts]
    sums = torch.stack([_error_sums(p, g, f, post_clip_max) for (p, g), f in zip(parts, fits)]).sum(0)
    pixels = sum(g.numel() for _, g in parts)
    abs_rel, sq_rel, square, log_square, delta1, delta2, delta3 = (sums / pixels).tolist()
    rmse, log_rmse = math.sqrt(square), math.sqrt(log_square)
    return AlignedErrors(abs_rel, sq_rel, rmse, log_rmse, delta1, delta2, delta3, pixels, tuple(fits))


def scale_reweighted(predicted: Tensor, truth: Tensor, steps: int = 10) -> float:
    """Weiszfeld's iteration from mean(g) / mean(p): w = 1 / (|s p - g| + 1e-8), s = sum w p g / sum w p^2.

    Whenever a residual is nearly 0 its weight outgrows all others and pulls s to that pixel, so the result depends on
    rounding in the fourth digit. Therefore this works in the precision of its arguments and sums whole vectors, as the
    papers' code does (single precision); other hardware or another number of threads may still differ that much.
    """
    p, g = predicted, truth.to(predicted.dtype)
    s = g.mean() / p.mean()
    squared = p.square()
    for _ in range(steps):
        w = (s * p).sub_(g).abs_().add_(1e-8).reciprocal_()
        top = (w * p).mul_(g).sum()
        s = top / w.mul_(squared).sum()
    if not math.isfinite(float(s)):
        raise InputError(
            "the predicted depth is 0 on average, so no scale can be found",
            remedy="check that the prediction is depth and not empty",
        )
    return max(float(s), SMALLEST_SCALE)


def scale_shift_lstsq(predicted: Tensor, truth: Tensor) -> ScaleShift:
    """Least squares; a constant prediction gets scale 1 and the shift to the mean."""
    sum_p, sum_g, *_ = _moments(predicted, truth)
    n = predicted.numel()
    mean_p, mean_g = sum_p / n, sum_g / n
    variance, covariance = 0.0, 0.0
    for p, g in _blocks(predicted, truth):
        p = p - mean_p
        variance += float(p @ p)
        covariance += float(p @ (g - mean_g))
    # Equal values differ by rounding only.
    determined = variance > n * (1e-12 * mean_p) ** 2
    scale = covariance / variance if determined else 1.0
    return ScaleShift(scale, mean_g - scale * mean_p)


def scale_shift_adam(
    predicted: Tensor,
    truth: Tensor,
    learning_rate: float = 1e-4,
    max_steps: int = 1000,
    tolerance: float = 1e-6,
) -> ScaleShift:
    """The papers' "scale & shift": Adam (0.9, 0.999, 1e-8) on sum |s p + t - g| from the ratio of medians and 0.

    Stops after the step whose loss differs from the one before by less than ``tolerance``. The gradient is written
    out, which gives the same steps as automatic differentiation; numbers are double instead of single precision.
    """
    s, t = _median_ratio(predicted, truth), 0.0
    loss_at = _NearbySum(predicted, truth, radii=[learning_rate * k for k in (200, 40, 8)])
    first, second, before = [0.0, 0.0], [0.0, 0.0], None
    for step in range(1, max_steps + 1):
        loss, *gradient = loss_at(s, t)
        moves = []
        for i, slope in enumerate(gradient):
            first[i] = 0.9 * first[i] + 0.1 * slope
            second[i] = 0.999 * second[i] + 0.001 * slope * slope
            size = math.sqrt(second[i] / (1 - 0.999**step)) + 1e-8
            moves.append(learning_rate * first[i] / (1 - 0.9**step) / size)
        s, t = s - moves[0], t - moves[1]
        if before is not None and abs(before - loss) < tolerance:
            break
        before = loss
    return ScaleShift(s, t)


class _NearbySum:
    """sum |s p + t - g| and its gradient, fast while (s, t) moves little.

    A pixel whose residual cannot change its sign within a radius contributes linearly there, so it is summed once.
    Nested radii keep ever smaller sets of pixels that may change; the value stays exact.
    """

    def __init__(self, predicted: Tensor, truth: Tensor, radii: list[float]) -> None:
        # Per level: centre (s, t), radius, undecided pixels (p, g), and the sums of sign * (p, 1, g) of all others.
        zeros = (0.0, 0.0, 0.0)
        self._levels = [(0.0, 0.0, math.inf, predicted, truth, zeros)]
        self._radii = radii

    def __call__(self, s: float, t: float) -> tuple[float, float, float]:
        """Sum and its derivatives by s and t (0 where a residual is exactly 0)."""
        # A small ball may stick out of the larger one it was cut from, so every level has to hold the point.
        held = [max(abs(s - at_s), abs(t - at_t)) <= radius for at_s, at_t, radius, *_ in self._levels]
        if False in held:
            del self._levels[held.index(False) :]
        while len(self._levels) <= len(self._radii):
            self._narrow(s, t, self._radii[len(self._levels) - 1])
        _, _, _, predicted, truth, (a, b, c) = self._levels[-1]
        loss, by_s, by_t = s * a + t * b - c, a, b
        for p, g in _blocks(predicted, truth):
            residual = s * p + t - g
            sign = residual.sign()
            loss += float(residual.abs_().sum())
            by_s += float(sign @ p)
            by_t += float(sign.sum())
        return loss, by_s, by_t

    def _narrow(self, s: float, t: float, radius: float) -> None:
        _, _, _, predicted, truth, (a, b, c) = self._levels[-1]
        kept: list[tuple[Tensor, Tensor]] = []
        for p, g in _blocks(predicted, truth):
            residual = s * p + t - g
            # A little more than the radius, so that rounding cannot hide a change of sign.
            open_ = residual.abs() <= (p.abs() + 1) * (radius * (1 + 1e-9)) + 1e-9 * g
            sign = residual.sign_().masked_fill_(open_, 0.0)
            a, b, c = a + float(sign @ p), b + float(sign.sum()), c + float(sign @ g)
            kept.append((p[open_], g[open_]))
        p, g = (torch.cat(x) for x in zip(*kept)) if kept else (predicted, truth)
        self._levels.append((s, t, radius, p, g, (a, b, c)))


def _check(predicted: Tensor, truth: Tensor) -> None:
    if predicted.ndim != 1 or predicted.shape != truth.shape:
        raise InputError(
            f"pixels to align must be two vectors of one length, got {tuple(predicted.shape)} "
            f"and {tuple(truth.shape)}"
        )
    if truth.numel() == 0:
        raise InputError("no valid pixels", remedy="check the depth range, the unit and the mask")
    check_truth(truth)
    if not math.isfinite(float(predicted.sum(dtype=torch.float64))):
        raise InputError(
            "the prediction holds values that are not numbers where the truth is known",
            remedy="fill those pixels; the published protocol has no rule for them",
        )


def _median_ratio(predicted: Tensor, truth: Tensor) -> float:
    middle = float(predicted.median())
    if middle == 0:
        raise InputError(
            "the median of the predicted depth is 0, so no scale can be found",
            remedy="check that the prediction is depth and not empty",
        )
    return float(truth.median()) / middle


def _blocks(predicted: Tensor, truth: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Double-precision pieces that fit the cache of a CPU; all at once elsewhere.

    They are also too small for torch to split among threads: handing over would cost more than it gains.
    """
    size = _BLOCK if predicted.device.type == "cpu" else max(1, predicted.numel())
    for start in range(0, predicted.numel(), size):
        yield predicted[start : start + size].double(), truth[start : start + size].double()


def _moments(predicted: Tensor, truth: Tensor) -> tuple[float, float, float, float, float]:
    """Sums of p, g, p^2, p g, g^2."""
    out = torch.zeros(5, dtype=torch.float64)
    for p, g in _blocks(predicted, truth):
        out += torch.stack([p.sum(), g.sum(), p @ p, p @ g, g @ g]).cpu()
    a, b, c, d, e = out.tolist()
    return a, b, c, d, e


def _error_sums(predicted: Tensor, truth: Tensor, fit: ScaleShift, post_clip_max: float | None) -> Tensor:
    """(7,) sums of |e|/g, e^2/g, e^2, (ln p - ln g)^2 and the three counts of the delta measures."""
    out = torch.zeros(7, dtype=torch.float64)
    for p, g in _blocks(predicted, truth):
        p = fit.scale * p + fit.shift
        if post_clip_max is not None:
            p = p.clamp_(max=post_clip_max)
        error = (p - g).abs_()
        relative = error / g
        p = p.clamp_(min=SMALLEST_LOG_DEPTH)
        over = p / g
        ratio = torch.maximum(over, g / p)
        shares = [(ratio < DELTA_BASE**k).sum().double() for k in (1, 2, 3)]
        logs = over.log_()
        means = [relative.sum(), relative @ error, error @ error, logs @ logs]
        out += torch.stack([*means, *shares]).cpu()
    return out
