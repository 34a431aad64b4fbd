"""Alignment of point sets and depth maps: weighted Umeyama, RANSAC, robust scale and scale-shift.

All functions take any leading dimensions and optional non-negative weights; weight 0 removes a sample, also
when its value is not finite.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.rotations import matrix_from_svd9d

RobustKernel = Literal["huber", "cauchy"]


class Similarity(NamedTuple):
    """x -> scale * rotation @ x + translation, with shapes (*,), (*, 3, 3), (*, 3)."""

    scale: Tensor
    rotation: Tensor
    translation: Tensor

    def apply(self, points: Tensor) -> Tensor:
        """Transform (*, N, 3) points."""
        return self.scale[..., None, None] * points @ self.rotation.mT + self.translation[..., None, :]


class RobustSimilarity(NamedTuple):
    """Result of :func:`robust_umeyama`: similarity and (N,) bool inliers."""

    scale: Tensor
    rotation: Tensor
    translation: Tensor
    inliers: Tensor


def umeyama(src: Tensor, dst: Tensor, weights: Tensor | None = None, with_scale: bool = True) -> Similarity:
    """Similarity that maps ``src`` onto ``dst`` in the least-squares sense (Umeyama 1991, weighted).

    The rotation is always proper (determinant +1), also for planar and mirrored sets. Where the rotation is
    not determined (all points on a line or in one place) one of the best rotations is returned; where the
    scale is not determined (all source points equal) it is 1. Gradients are exact and stay finite.

    Args:
        src: (*, N, 3) points to move.
        dst: (*, N, 3) where they should go.
        weights: (*, N) non-negative, or None for equal weights.
        with_scale: False fixes the scale at 1 (rigid alignment).

    Returns:
        scale (*,), rotation (*, 3, 3), translation (*, 3).

    Raises:
        InputError: when the sets differ in shape or are empty.
    """
    if src.shape != dst.shape or src.shape[-1] != 3 or src.shape[-2] == 0:
        raise InputError(f"cannot align point sets of shapes {tuple(src.shape)} and {tuple(dst.shape)}")
    w = torch.ones_like(src[..., 0]) if weights is None else weights.to(src.dtype).expand(src.shape[:-1])
    used = (w > 0)[..., None]
    src, dst = torch.where(used, src, torch.zeros_like(src)), torch.where(used, dst, torch.zeros_like(dst))
    total = w.sum(-1, keepdim=True)
    w = (w / torch.where(total > 0, total, torch.ones_like(total)))[..., None]
    mean_src, mean_dst = (w * src).sum(-2), (w * dst).sum(-2)
    a, b = src - mean_src[..., None, :], dst - mean_dst[..., None, :]
    covariance = (w * b).mT @ a
    variance = (w * a.square()).sum((-2, -1))
    rotation = matrix_from_svd9d(covariance)
    scale = torch.ones_like(variance)
    # Compare with the coordinates: the variance of equal points is rounding error, not exactly zero.
    floor = (8 * torch.finfo(src.dtype).eps) ** 2 * mean_src.detach().square().sum(-1)
    determined = variance > floor
    if with_scale:
        trace = (rotation * covariance).sum((-2, -1))
        scale = torch.where(determined, trace / torch.where(determined, variance, scale), scale)
    translation = mean_dst - scale[..., None] * (rotation @ mean_src[..., None])[..., 0]
    return Similarity(scale, rotation, translation)


def robust_umeyama(
    src: Tensor,
    dst: Tensor,
    threshold: float,
    generator: torch.Generator,
    iterations: int = 500,
    weights: Tensor | None = None,
    with_scale: bool = True,
) -> RobustSimilarity:
    """Similarity from correspondences of which many may be wrong (RANSAC with the truncated squared cost).

    Args:
        src: (N, 3) points to move.
        dst: (N, 3) where they should go.
        threshold: largest residual of an inlier, in units of ``dst``.
        generator: source of the random samples.
        iterations: number of three-point samples.
        weights: (N,) weights of the final fit; weight 0 removes a correspondence.
        with_scale: False fixes the scale at 1.

    Returns:
        scale (), rotation (3, 3), translation (3,), inliers (N,) bool.

    Raises:
        InputError: with fewer than three usable correspondences.
    """
    usable = torch.isfinite(src).all(-1) & torch.isfinite(dst).all(-1)
    if weights is not None:
        usable &= weights > 0
    index = usable.nonzero()[:, 0]
    count = index.numel()
    if count < 3:
        raise InputError(f"a similarity needs at least 3 correspondences, got {count}")
    s, d = src[index], dst[index]
    samples = torch.rand(iterations, min(count, 64), generator=generator, device=generator.device)
    if count > 64:  # distinct within a sample without permuting all N for every hypothesis
        pool = torch.randint(count, (iterations, 64), generator=generator, device=generator.device)
    else:
        pool = torch.arange(count).expand(iterations, -1)
    triples = pool.to(src.device).gather(1, samples.argsort(dim=1)[:, :3].to(src.device))
    fits = umeyama(s[triples], d[triples], with_scale=with_scale)
    sane = torch.isfinite(fits.scale) & (fits.scale > 0)
    limit = threshold * threshold
    chunk = max(1, 4_000_000 // count)
    costs = [
        (Similarity(*(part[i : i + chunk] for part in fits)).apply(s[None]) - d)
        .square()
        .sum(-1)
        .clamp(max=limit)
        .sum(-1)
        for i in range(0, iterations, chunk)
    ]
    cost = torch.where(sane, torch.cat(costs), torch.inf)
    best = int(cost.argmin())
    fit = Similarity(*(part[best] for part in fits))
    best_cost = cost[best]
    w = torch.ones_like(s[:, 0]) if weights is None else weights[index].to(s.dtype)
    for _ in range(5):  # local refinement while the truncated cost falls
        inside = (fit.apply(s) - d).square().sum(-1) <= limit
        if int(inside.sum()) < 3:
            break
        candidate = umeyama(s, d, w * inside, with_scale=with_scale)
        new_cost = (candidate.apply(s) - d).square().sum(-1).clamp(max=limit).sum()
        if not new_cost < best_cost:
            break
        fit, best_cost = candidate, new_cost
    inliers = torch.zeros(src.shape[0], dtype=torch.bool, device=src.device)
    inliers[index] = (fit.apply(s) - d).square().sum(-1) <= limit
    return RobustSimilarity(*fit, inliers)


def weighted_median(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Exact weighted median along the last dimension, a minimiser of sum w |v - m|.

    Where the weight splits exactly in half the two middle values are averaged (the ordinary median of an even
    count). NaN where all weights are 0.

    Args:
        values: (*, N).
        weights: (*, N) non-negative, or None.

    Returns:
        (*,).
    """
    w = torch.ones_like(values) if weights is None else weights.to(values.dtype).expand(values.shape)
    if values.shape[-1] == 0:
        return values.new_full(values.shape[:-1], torch.nan)
    safe = torch.where(w > 0, values, torch.inf)
    ordered, order = safe.sort(dim=-1)
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    running = w.gather(-1, order).to(wide).cumsum(-1)
    half = 0.5 * running[..., -1:]
    slack = 1e-12 * half  # a tie must not be broken by the rounding of the sum
    last = values.shape[-1] - 1
    low = (running < half - slack).sum(-1, keepdim=True).clamp(max=last)
    high = (running <= half + slack).sum(-1, keepdim=True).clamp(max=last)
    a, b = ordered.gather(-1, low), ordered.gather(-1, high)
    b = torch.where(torch.isfinite(b), b, a)
    median = (a + 0.5 * (b - a)).squeeze(-1)
    return torch.where(half.squeeze(-1) > 0, median, torch.nan)


def _clean(pred: Tensor, target: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    w = torch.ones_like(pred) if weights is None else weights.to(pred.dtype).expand(pred.shape)
    good = torch.isfinite(pred) & torch.isfinite(target) & (w > 0)
    zero = torch.zeros_like(pred)
    return torch.where(good, pred, zero), torch.where(good, target, zero), torch.where(good, w, zero)


def scale_median(pred: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted median of target / pred over samples with pred > 0; (*, N) -> (*,), NaN without samples."""
    p, t, w = _clean(pred, target, weights)
    positive = p > 0
    return weighted_median(t / torch.where(positive, p, torch.ones_like(p)), w * positive)


def scale_l1(pred: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Exact minimiser of sum w |s pred - target|: the median of target / pred with weights w |pred|.

    Args:
        pred: (*, N) values to scale; non-finite samples are skipped.
        target: (*, N) values to reach; non-finite samples are skipped.
        weights: (*, N) or None.

    Returns:
        (*,), NaN where no sample has pred != 0.
    """
    p, t, w = _clean(pred, target, weights)
    nonzero = p != 0
    return weighted_median(t / torch.where(nonzero, p, torch.ones_like(p)), w * p.abs())


def scale_least_squares(pred: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Minimiser of sum w (s pred - target)^2; (*, N) -> (*,), NaN where pred is all zero."""
    p, t, w = _clean(pred, target, weights)
    energy = (w * p * p).sum(-1)
    safe = torch.where(energy > 0, energy, torch.ones_like(energy))
    return torch.where(energy > 0, (w * p * t).sum(-1) / safe, torch.nan)


def scale_shift_least_squares(
    pred: Tensor, target: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and shift that minimise sum w (s pred + b - target)^2.

    Where ``pred`` is constant only one of the two is determined: the shift is then 0 and the scale maps the
    constant to the mean target (scale 1 and a shift when the constant is 0).

    Args:
        pred: (*, N) values to scale; non-finite samples are skipped.
        target: (*, N) values to reach; non-finite samples are skipped.
        weights: (*, N) or None.

    Returns:
        scale (*,) and shift (*,); NaN without samples.
    """
    p, t, w = _clean(pred, target, weights)
    total = w.sum(-1, keepdim=True)
    w = w / torch.where(total > 0, total, torch.ones_like(total))
    mean_p, mean_t = (w * p).sum(-1), (w * t).sum(-1)
    cp = p - mean_p[..., None]
    variance = (w * cp * cp).sum(-1)
    size = (w * p * p).sum(-1).detach()
    determined = variance > (16 * torch.finfo(p.dtype).eps) ** 2 * size
    one = torch.ones_like(variance)
    slope = (w * cp * (t - mean_t[..., None])).sum(-1) / torch.where(determined, variance, one)
    nonzero = mean_p != 0
    constant = torch.where(nonzero, mean_t / torch.where(nonzero, mean_p, one), one)
    scale = torch.where(determined, slope, constant)
    shift = mean_t - scale * mean_p
    empty = total.squeeze(-1) <= 0
    return torch.where(empty, torch.nan, scale), torch.where(empty, torch.nan, shift)


def robust_weights(residual: Tensor, delta: Tensor | float, kernel: RobustKernel) -> Tensor:
    """IRLS weight of a residual (*,) with threshold ``delta`` in the same unit: Huber or Cauchy; (*,) in (0, 1].

    Raises:
        InputError: for an unknown kernel.
    """
    ratio = residual.abs() / delta
    if kernel == "huber":
        return 1 / ratio.clamp_min(1)
    if kernel == "cauchy":
        return 1 / (1 + ratio.square())
    raise InputError(f"unknown robust kernel '{kernel}'", remedy="use huber or cauchy")


def scale_shift_robust(
    pred: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    kernel: RobustKernel = "cauchy",
    delta: float | None = None,
    iterations: int = 50,
) -> tuple[Tensor, Tensor]:
    """Scale and shift by iteratively reweighted least squares.

    Starts from the line through two samples with the least median residual (least median of squares over a
    fixed set of pairs), which stands almost half of the samples being wrong. Without ``delta`` the threshold
    follows the residuals: 1.345 (Huber) or 2.385 (Cauchy) robust standard deviations.

    Args:
        pred: (*, N) values to scale; non-finite samples are skipped.
        target: (*, N) values to reach; non-finite samples are skipped.
        weights: (*, N) or None.
        kernel: "huber" or "cauchy".
        delta: threshold in units of ``target``.
        iterations: at most this many rounds.

    Returns:
        scale (*,) and shift (*,); NaN without samples.
    """
    p, t, w = _clean(pred, target, weights)

    def residuals(scale: Tensor, shift: Tensor) -> Tensor:
        return scale[..., None] * p + shift[..., None] - t

    def spread(residual: Tensor) -> Tensor:
        return weighted_median(residual.detach().abs(), w)

    scale, shift = scale_shift_least_squares(p, t, w)
    if p.shape[-1] == 0:
        return scale, shift
    start = _least_median_line(p.detach(), t.detach(), w)
    better = spread(residuals(*start)) < spread(residuals(scale, shift))
    scale, shift = torch.where(better, start[0], scale), torch.where(better, start[1], shift)
    factor = 1.345 if kernel == "huber" else 2.385
    floor = torch.finfo(p.dtype).eps * 16 * (1e-30 + weighted_median(t.abs(), w))
    for _ in range(iterations):
        residual = residuals(scale, shift)
        if delta is None:
            width = (factor * 1.4826 * spread(residual)).maximum(floor)[..., None]
        else:
            width = torch.full_like(residual[..., :1], delta)
        new = scale_shift_least_squares(p, t, w * robust_weights(residual, width, kernel))
        change = (new[0] - scale).abs().nan_to_num() / (scale.abs().nan_to_num() + floor.nan_to_num(1.0))
        scale, shift = new
        if bool((change < 1e-9).all()):
            break
    return scale, shift


def _least_median_line(p: Tensor, t: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift (*,) of the best of 192 lines through pairs of samples, by the median absolute residual.

    The pairs are spread evenly over the sorted ``p`` with three different distances; no random numbers.
    """
    used = w > 0
    order = torch.where(used, p, torch.inf).argsort(dim=-1)
    count = used.sum(-1, keepdim=True)
    size = min(p.shape[-1], 768)
    steps = (torch.arange(size, device=p.device) + 0.5) / size
    pick = order.gather(-1, (steps * count).long().clamp(max=p.shape[-1] - 1))
    p, t = p.gather(-1, pick), t.gather(-1, pick)
    first = torch.linspace(0, size - 1, 64, device=p.device).long().repeat(3)
    gaps = torch.tensor([size // 2, size // 3, (2 * size) // 3], device=p.device).repeat_interleave(64)
    second = (first + gaps) % size
    rise, run = t[..., second] - t[..., first], p[..., second] - p[..., first]
    steep = run != 0
    scale = torch.where(steep, rise / torch.where(steep, run, torch.ones_like(run)), torch.zeros_like(run))
    shift = t[..., first] - scale * p[..., first]
    residual = (scale[..., None] * p[..., None, :] + shift[..., None] - t[..., None, :]).abs()
    best = residual.median(dim=-1).values.argmin(dim=-1, keepdim=True)
    return scale.gather(-1, best).squeeze(-1), shift.gather(-1, best).squeeze(-1)


def scale_robust(
    pred: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    max_sigma: float = 3.0,
) -> Tensor:
    """Scale from the median of log ratios, repeated after dropping outliers.

    Samples farther than ``max_sigma`` robust standard deviations (1.4826 MAD) from the first median in log
    scale are dropped. Only samples with pred > 0 and target > 0 count.

    Args:
        pred: (*, N) values to scale.
        target: (*, N) values to reach.
        weights: (*, N) or None.
        max_sigma: rejection threshold.

    Returns:
        (*,), NaN without samples.
    """
    p, t, w = _clean(pred, target, weights)
    good = (p > 0) & (t > 0)
    one = torch.ones_like(p)
    ratio = torch.where(good, t, one).log() - torch.where(good, p, one).log()
    w = w * good
    centre = weighted_median(ratio, w)
    deviation = (ratio - centre[..., None]).abs()
    sigma = 1.4826 * weighted_median(deviation, w)
    keep = deviation <= (max_sigma * sigma + 8 * torch.finfo(p.dtype).eps)[..., None]
    return weighted_median(ratio, w * keep).exp()
