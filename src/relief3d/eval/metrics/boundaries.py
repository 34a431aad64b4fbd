"""Sharpness of occluding contours: Depth Pro's boundary F1 and matte recall, and MoGe's variant.

Depth Pro works on inverse depth x = 1 / max(d, 1e-6): between two neighbours there is a contour of threshold t where
the nearer exceeds the farther by a factor above t. Four maps (nearer pixel on the right, left, bottom, top) are scored
apart and averaged; thresholds run from 1.05 to 1.25 in ten steps, weighted by themselves. The released F1 thins
nothing; only the recall against mattes keeps the strongest pixel of every run. Sources: Depth Pro (Bochkovskii et al.
2025), MoGe-2; MetricAnything specification 9.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.metrics.depth_errors import check_maps

DEPTHPRO_FIRST, DEPTHPRO_LAST, STEPS = 1.05, 1.25, 10
MOGE_FIRST, MOGE_LAST = 0.05, 0.25
MATTE_LEVEL = 0.1
MIN_DEPTH = 1e-6


@dataclass(frozen=True)
class BoundaryScores:
    """Plain ratios of one picture.

    Attributes:
        score: F1 averaged over the thresholds with their weights.
        f1, precision, recall: (T,) float64 per threshold.
        thresholds: (T,) float64.
    """

    score: float
    f1: Tensor
    precision: Tensor
    recall: Tensor
    thresholds: Tensor


def boundary_thresholds(first: float = DEPTHPRO_FIRST, last: float = DEPTHPRO_LAST) -> tuple[Tensor, Tensor]:
    """Ten thresholds and their weights t / sum(t), float64."""
    thresholds = torch.linspace(first, last, STEPS, dtype=torch.float64)
    return thresholds, thresholds / thresholds.sum()


def boundary_f1(
    predicted: Tensor, truth: Tensor, mask: Tensor | None = None, thresholds: Tensor | None = None
) -> BoundaryScores:
    """Depth Pro's boundary F1 of one depth map, without thinning.

    Precision and recall are means over the four maps of their own shares (not pooled counts). A map without true
    contours counts a recall of 0, so that the score is 1 only where the truth has contours of every strength in all
    four directions.

    Args:
        predicted: (H, W) depth; any scale (the score does not depend on it).
        truth: (H, W) depth.
        mask: (H, W) bool: pairs with an invalid end are left out of both maps. None is the official rule, under which
            unknown depth (0) becomes very near and makes false contours.
        thresholds: (T,) float64 rising; None for the ten of the paper. The score weighs them by themselves.

    Raises:
        InputError: shapes differ, "no valid pixels", or the prediction is not a number where it counts.
    """
    limits = boundary_thresholds()[0] if thresholds is None else thresholds.double()
    x, y = _inverse(predicted, truth, mask)
    shares = []
    for (x_far, x_near), (y_far, y_near), keep in _pairs(x, y, mask):
        # Both directions across one pair: the nearer pixel is the second, or the first.
        for a, b, c, d in ((x_near, x_far, y_near, y_far), (x_far, x_near, y_far, y_near)):
            found, true, both = _strengths(a / b, c / d, keep, limits)
            shares.append((both / found.clamp_min(1), both / true.clamp_min(1)))
    precision = torch.stack([p for p, _ in shares]).mean(0)
    recall = torch.stack([r for _, r in shares]).mean(0)
    f1 = _harmonic(precision, recall)
    return BoundaryScores(float((f1 * limits).sum() / limits.sum()), f1, precision, recall, limits)


def has_all_contours(truth: Tensor, mask: Tensor | None = None) -> bool:
    """Whether the truth has contours above the largest threshold in all four maps: a perfect prediction scores 1."""
    return bool((boundary_f1(truth, truth, mask).recall > 1 - 1e-9).all())


def matte_recall(predicted: Tensor, matte: Tensor, thresholds: Tensor | None = None) -> float:
    """Depth Pro's recall of an object's outline, given as a matte, by thinned depth contours.

    Args:
        predicted: (H, W) depth.
        matte: (H, W) share of the foreground; above 0.1 is foreground, which is taken to be nearer.
        thresholds: (T,) float64, or None for the ten of the paper.

    Returns:
        Mean over the four maps, averaged over the thresholds with their weights.

    Raises:
        InputError: shapes differ, the matte has no outline, or the prediction is not a number.
    """
    limits = boundary_thresholds()[0] if thresholds is None else thresholds.double()
    x, _ = _inverse(predicted, predicted, None)
    front = matte > MATTE_LEVEL
    if front.shape != x.shape:
        raise InputError(f"prediction {tuple(x.shape)} and matte {tuple(front.shape)} must have one shape")
    outlines = {
        "right": front[:, 1:] & ~front[:, :-1],
        "left": front[:, :-1] & ~front[:, 1:],
        "bottom": front[1:] & ~front[:-1],
        "top": front[:-1] & ~front[1:],
    }
    if not any(bool(o.any()) for o in outlines.values()):
        raise InputError("no valid pixels: the matte has no outline", remedy="leave this picture out")
    total = 0.0
    for limit in limits.tolist():
        thinned = thinned_edges(predicted, limit)
        shares = [
            float((thinned[side] & outline).sum()) / max(int(outline.sum()), 1)
            for side, outline in outlines.items()
        ]
        total += limit * sum(shares) / len(shares)
    return total / float(limits.sum())


def thinned_edges(depth: Tensor, threshold: float) -> dict[str, Tensor]:
    """Contours of a depth map after non-maximum suppression.

    In every maximal run of adjacent contour pixels (along the rows for right and left, along the columns for bottom
    and top) only the one with the largest ratio stays, the first of equals.

    Args:
        depth: (H, W).
        threshold: ratio of inverse depths, above 1.

    Returns:
        ``right`` and ``left`` (H, W - 1), ``bottom`` and ``top`` (H - 1, W) bool; the name says where the nearer
        pixel of the pair is.
    """
    x, _ = _inverse(depth, depth, None)
    return {
        "right": _thin(x[:, 1:] / x[:, :-1], threshold),
        "left": _thin(x[:, :-1] / x[:, 1:], threshold),
        "bottom": _thin((x[1:] / x[:-1]).T, threshold).T,
        "top": _thin((x[:-1] / x[1:]).T, threshold).T,
    }


def moge_boundary_f1(predicted: Tensor, truth: Tensor, mask: Tensor, radius: int = 1) -> float:
    """MoGe's boundary F1 (not the one of the table): all neighbours within ``radius``, counts pooled over them.

    A neighbour lies behind a contour of strength t where it is more than 1 + t times deeper than the centre; t from
    0.05 to 0.25 in ten steps, weighted by itself. Centres nearer than ``radius`` to the border do not count.

    Args:
        predicted: (H, W) positive depth.
        truth: (H, W) positive depth inside the mask.
        mask: (H, W) bool.
        radius: 1 to 3 in MoGe's evaluation.

    Raises:
        InputError: shapes differ, "no valid pixels", or the picture is smaller than the neighbourhood.
    """
    check_maps(predicted, truth, mask)
    height, width = truth.shape
    if min(height, width) <= 2 * radius:
        raise InputError(f"a picture of {width} x {height} pixels is too small for radius {radius}")
    if not bool(mask.any()):
        raise InputError("no valid pixels", remedy="check the depth map and its mask")
    steps, weights = boundary_thresholds(MOGE_FIRST, MOGE_LAST)
    limits = 1 + steps
    p, g = (torch.where(mask, v, torch.ones_like(v)) for v in (predicted, truth))
    # Only centres with some neighbour above the lowest limit, in either map, can count.
    at = mask[radius:-radius, radius:-radius] & (
        _deeper_nearby(p, radius, float(limits[0])) | _deeper_nearby(g, radius, float(limits[0]))
    )
    rows, cols = at.nonzero(as_tuple=True)
    centre = (rows + radius) * width + cols + radius
    p, g, known = p.flatten(), g.flatten(), mask.flatten()
    p_centre, g_centre = p[centre], g[centre]
    total = torch.zeros(3, steps.numel(), dtype=torch.float64)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if 0 < dy * dy + dx * dx <= radius * radius:
                there = centre + dy * width + dx
                ratios = p[there] / p_centre, g[there] / g_centre
                total += torch.stack(_strengths(*ratios, known[there], limits))
    found, true, both = total
    f1 = _harmonic(both / found.clamp_min(1), both / true.clamp_min(1))
    return float((f1 * weights).sum())


def _inverse(predicted: Tensor, truth: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if predicted.ndim != 2:
        raise InputError(f"boundaries are measured on one (H, W) map, got {tuple(predicted.shape)}")
    valid = torch.ones_like(truth, dtype=torch.bool) if mask is None else mask
    check_maps(predicted, truth, valid)
    if not bool(valid.any()) or min(truth.shape) < 2:
        raise InputError("no valid pixels", remedy="check the depth map and its mask")
    if bool((torch.isnan(predicted) & valid).any()):
        raise InputError("the prediction holds NaN where the truth is known", remedy="fill the holes first")
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    x, y = (1 / v.to(dtype).clamp_min(MIN_DEPTH) for v in (predicted, truth))
    return x, y


def _pairs(
    x: Tensor, y: Tensor, mask: Tensor | None
) -> Iterator[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor | None]]:
    """Both maps split into first and second pixel of all horizontal, then all vertical pairs."""
    for turned in (False, True):
        a, b, m = (v if v is None or not turned else v.T for v in (x, y, mask))
        assert a is not None and b is not None
        keep = None if m is None else m[:, 1:] & m[:, :-1]
        yield (a[:, :-1], a[:, 1:]), (b[:, :-1], b[:, 1:]), keep


def _strengths(
    predicted: Tensor, truth: Tensor, keep: Tensor | None, limits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts (T,) float64 of ratios above every limit: predicted, true, both.

    Each pair gets the number of limits it exceeds; histograms of these numbers give the counts of all thresholds.
    """
    # "At least", because the limit is rounded to the type of the ratios here; bucketize below is exact.
    lowest = limits[0].to(predicted.device, predicted.dtype)
    found, true = predicted >= lowest, truth >= lowest
    if keep is not None:
        found, true = found & keep, true & keep
    some = found | true
    edges = limits.to(predicted.device)
    p = torch.bucketize(torch.where(found, predicted, 0)[some].double(), edges)
    g = torch.bucketize(torch.where(true, truth, 0)[some].double(), edges)
    size = limits.numel() + 1

    def above(levels: Tensor) -> Tensor:
        counts = torch.bincount(levels, minlength=size).double()
        return counts.flip(0).cumsum(0).flip(0)[1:].cpu()

    return above(p), above(g), above(torch.minimum(p, g))


def _deeper_nearby(depth: Tensor, radius: int, limit: float) -> Tensor:
    """Inner pixels (H - 2r, W - 2r) whose square neighbourhood holds a depth more than ``limit`` times their own."""
    highest = torch.nn.functional.max_pool2d(depth[None, None], 2 * radius + 1, stride=1)[0, 0]
    return (highest / depth[radius:-radius, radius:-radius]).double() > limit


def _harmonic(precision: Tensor, recall: Tensor) -> Tensor:
    total = precision + recall
    return torch.where(total > 0, 2 * precision * recall / total.clamp_min(1e-300), torch.zeros_like(total))


def _thin(ratio: Tensor, threshold: float) -> Tensor:
    """Keep the largest ratio of every run along the rows."""
    above = ratio.double() > threshold
    start = above.clone()
    start[:, 1:] &= ~above[:, :-1]
    run = start.flatten().long().cumsum(0).reshape(above.shape)[above] - 1
    values = ratio[above].double()
    count = int(start.sum())
    top = torch.full((count,), -torch.inf, dtype=torch.float64, device=ratio.device)
    top.scatter_reduce_(0, run, values, "amax")
    place = torch.arange(run.numel(), device=ratio.device)
    candidate = torch.where(values == top[run], place, run.numel())
    first = torch.full((count,), run.numel(), dtype=torch.long, device=ratio.device)
    first.scatter_reduce_(0, run, candidate, "amin")
    out = torch.zeros_like(above)
    out[above] = first[run] == place
    return out
