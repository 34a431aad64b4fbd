"""Exact robust alignment of values and point maps: truncated L1, with or without a shift.

Every solver minimises a sum of ``min(trunc, w |a x + b - y|)``: for a fixed shift the cost is piecewise linear in the
scale with minima only at the ratios y/x, so all of them are evaluated at once with prefix sums over sorted
breakpoints. A shift is found by trying every sample as an anchor (the optimal line passes through a sample).
Source: the alignment of MoGe and MoGe-2, MetricAnything specification 7.8. Sums are made in float64; results have the
type of the input and are differentiable with respect to the samples they were computed from.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.alignment import scale_shift_least_squares

_CHUNK_VALUES = 1 << 21
"""Values that the search over anchors sorts at a time: bounds its memory to some hundred MB."""


class TruncatedFit(NamedTuple):
    """Result of :func:`align_trunc`, all (*,): scale, loss, and index (int64) of the sample that fixes the scale."""

    scale: Tensor
    loss: Tensor
    sample: Tensor


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _spread(x: Tensor, y: Tensor, weights: Tensor | None, values: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Equal shapes, and weight 0 (with harmless values) where anything is not finite or the weight not positive."""
    if x.shape[-values:] != y.shape[-values:] or x.shape[-values] == 0:
        raise InputError(f"cannot align values of shapes {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = torch.broadcast_tensors(x, y)
    flat = x.shape[: x.ndim - values + 1]
    w = (
        torch.ones(flat, dtype=x.dtype, device=x.device)
        if weights is None
        else weights.to(x.dtype).expand(flat)
    )
    finite = torch.isfinite(x) & torch.isfinite(y)
    good = (w > 0) & torch.isfinite(w) & (finite if values == 1 else finite.all(-1))
    keep = good if values == 1 else good[..., None]
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    return torch.where(keep, x, zero), torch.where(keep, y, zero), torch.where(good, w, zero)


def align_trunc(
    x: Tensor, y: Tensor, weights: Tensor | None = None, trunc: float | None = None
) -> TruncatedFit:
    """Scale a that minimises ``sum_i min(trunc, w_i |a x_i - y_i|)``, exactly.

    Without ``trunc`` it is the lower weighted median of y/x with weights w |x|: the first of the sorted ratios at
    which the running weight reaches half.

    Args:
        x: (*, N) values to scale; samples that are not finite count nothing.
        y: (*, N) values to reach.
        weights: (*, N) non-negative, or None for ones.
        trunc: largest cost of one sample; None for the plain L1.

    Returns:
        scale (*,), loss (*,) and the index of the sample with scale = y/x. Where no sample has weight and x != 0 the
        scale is NaN and the sample 0.

    Raises:
        InputError: shapes differ, no samples, or ``trunc`` is not positive.
    """
    if trunc is not None and not trunc > 0:
        raise InputError(f"the truncation must be positive, got {trunc}")
    x, y, w = _spread(x, y, weights)
    wide = _wide(x.device)
    index = _best_index(x.detach().to(wide), y.detach().to(wide), w.detach().to(wide), trunc)
    chosen_x, chosen_y = (v.gather(-1, index[..., None])[..., 0] for v in (x, y))
    usable = (w.gather(-1, index[..., None])[..., 0] > 0) & (chosen_x != 0)
    scale = torch.where(
        usable, chosen_y / torch.where(usable, chosen_x, torch.ones_like(chosen_x)), torch.nan
    )
    cost = w * (scale.nan_to_num(0.0)[..., None] * x - y).abs()
    loss = (cost if trunc is None else cost.clamp(max=trunc)).sum(-1)
    return TruncatedFit(scale, loss, index)


def _best_index(x: Tensor, y: Tensor, w: Tensor, trunc: float | None) -> Tensor:
    """Index (*,) of the sample whose ratio y/x is the best scale; all inputs (*, N) clean and wide."""
    sign = torch.where(x < 0, -1.0, 1.0).to(x.dtype)
    x, y = x * sign, y * sign
    wx, wy = w * x, w * y
    used = wx > 0
    one = torch.ones_like(x)
    # What cannot fix the scale is sorted to the end with weight 0.
    ratio = torch.where(used, y / torch.where(used, x, one), torch.inf)
    ordered, order = ratio.sort(dim=-1, stable=True)
    running = wx.gather(-1, order).cumsum(-1)
    if trunc is None:
        first = (2 * running - running[..., -1:] >= 0).to(torch.uint8).argmax(-1, keepdim=True)
        return order.gather(-1, first)[..., 0]
    cost = _truncated_costs(ordered, order, running, wx, wy, used, trunc)
    return order.gather(-1, cost.argmin(-1, keepdim=True))[..., 0]


def _truncated_costs(
    ordered: Tensor, order: Tensor, running: Tensor, wx: Tensor, wy: Tensor, used: Tensor, trunc: float
) -> Tensor:
    """Truncated cost (*, N) at every sorted ratio, up to a constant; infinite where the ratio is not usable.

    Sample i costs ``trunc`` up to B = (wy - trunc)/(wx), falls to 0 at A = y/x, and rises to ``trunc`` again at
    C = (wy + trunc)/(wx). With sums over the samples whose breakpoint is at most a,
    cost(a) = const - trunc (n_B - n_C) + (Y_B - a X_B) - 2 (Y_A - a X_A) + (Y_C - a X_C).
    """
    a = ordered
    finite = torch.isfinite(a)
    a = torch.where(finite, a, torch.zeros_like(a))
    cost = -2 * (wy.masked_fill(~used, 0).gather(-1, order).cumsum(-1) - a * running)
    safe = torch.where(used, wx, torch.ones_like(wx))
    for side in (-1.0, 1.0):
        points = torch.where(used, (wy + side * trunc) / safe, torch.inf)
        points, where = points.sort(dim=-1)
        count = torch.searchsorted(points, a, right=True)
        before = (count - 1).clamp_min(0)
        some = count > 0
        for values, factor in ((wx, -a), (wy, torch.ones_like(a))):
            summed = values.masked_fill(~used, 0).gather(-1, where).cumsum(-1).gather(-1, before)
            cost = cost + torch.where(some, summed, torch.zeros_like(summed)) * factor
        cost = cost + side * trunc * count.to(a.dtype)
    return torch.where(finite, cost, torch.inf)


def align_depth_affine(
    x: Tensor, y: Tensor, weights: Tensor | None = None, trunc: float | None = None
) -> tuple[Tensor, Tensor]:
    """Scale a and shift b that minimise ``sum_i min(trunc, w_i |a x_i + b - y_i|)``, exactly; O(N^2 log N).

    Args:
        x: (*, N) values, such as depth or disparity.
        y: (*, N) values to reach.
        weights: (*, N) non-negative, or None.
        trunc: largest cost of one sample, or None.

    Returns:
        scale (*,) and shift (*,); NaN where fewer than two different values count.

    Raises:
        InputError: as :func:`align_trunc`.
    """
    x, y, w = _spread(x, y, weights)
    scale, shift = _align_with_anchor(x[..., None], y[..., None], w, (True,), trunc)
    return scale, shift[..., 0]


def align_points_scale(
    points: Tensor, target: Tensor, weights: Tensor | None = None, trunc: float | None = None
) -> Tensor:
    """Scale a that minimises the sum over points and coordinates of ``min(trunc, w |a p - q|)``.

    Args:
        points: (*, N, 3).
        target: (*, N, 3) in the unit wanted.
        weights: (*, N) non-negative, or None.
        trunc: largest cost of one coordinate, or None.

    Returns:
        (*,); NaN where nothing counts.

    Raises:
        InputError: as :func:`align_trunc`.
    """
    p, q, w = _spread(points, target, weights, values=2)
    return align_trunc(p.flatten(-2), q.flatten(-2), _per_coordinate(w, p.shape[-1]), trunc).scale


def align_points_scale_z_shift(
    points: Tensor, target: Tensor, weights: Tensor | None = None, trunc: float | None = None
) -> tuple[Tensor, Tensor]:
    """Scale a and shift t = (0, 0, t_z) that minimise the sum of ``min(trunc, w |a p + t - q|)`` over coordinates.

    Every point with weight is tried as anchor (its z is matched exactly), the best kept: exact, O(N^2 log N).

    Args:
        points: (*, N, 3).
        target: (*, N, 3).
        weights: (*, N) non-negative, or None.
        trunc: largest cost of one coordinate, or None.

    Returns:
        scale (*,) and shift (*, 3); NaN where nothing counts.

    Raises:
        InputError: as :func:`align_trunc`.
    """
    p, q, w = _spread(points, target, weights, values=2)
    return _align_with_anchor(p, q, w, (False, False, True), trunc)


def align_points_scale_xyz_shift(
    points: Tensor, target: Tensor, weights: Tensor | None = None, trunc: float | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and shift (*, 3) as :func:`align_points_scale_z_shift`, the shift along all axes.

    One point is matched exactly in all coordinates (MoGe's rule); the result is the best of these, which need not be
    the optimum over all shifts.
    """
    p, q, w = _spread(points, target, weights, values=2)
    return _align_with_anchor(p, q, w, (True, True, True), trunc)


def align_points_z_shift(
    points: Tensor, target: Tensor, weights: Tensor | None = None, trunc: float | None = None
) -> Tensor:
    """Shift (*, 3) along z alone that minimises ``sum_i min(trunc, w_i |z_i + t - z'_i|)``; (*, N, 3) twice.

    Raises:
        InputError: as :func:`align_trunc`.
    """
    p, q, w = _spread(points, target, weights, values=2)
    shift = align_trunc(torch.ones_like(p[..., 2]), q[..., 2] - p[..., 2], w, trunc).scale
    return torch.stack([torch.zeros_like(shift), torch.zeros_like(shift), shift], dim=-1)


def align_points_xyz_shift(
    points: Tensor, target: Tensor, weights: Tensor | None = None, trunc: float | None = None
) -> Tensor:
    """Translation (*, 3) that minimises the sum of ``min(trunc, w |p + t - q|)``, each axis for itself.

    Args:
        points: (*, N, 3).
        target: (*, N, 3).
        weights: (*, N) non-negative, or None.
        trunc: largest cost of one coordinate, or None.

    Returns:
        (*, 3); NaN where nothing counts.

    Raises:
        InputError: as :func:`align_trunc`.
    """
    p, q, w = _spread(points, target, weights, values=2)
    change = (q - p).mT
    return align_trunc(torch.ones_like(change), change, w[..., None, :].expand(change.shape), trunc).scale


def align_disparity_least_squares(
    depth: Tensor, target: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale a and shift b that minimise ``sum w (a / depth + b - 1 / target)^2``.

    Args:
        depth: (*, N) positive depth; samples that are not positive count nothing.
        target: (*, N) true depth, likewise.
        weights: (*, N) non-negative, or None.

    Returns:
        scale (*,) and shift (*,) in inverse units of ``target``; NaN without samples.
    """
    depth, target = torch.broadcast_tensors(depth, target)
    good = (depth > 0) & (target > 0)
    w = torch.ones_like(depth) if weights is None else weights.to(depth.dtype).expand(depth.shape)
    one, wide = torch.ones_like(depth), _wide(depth.device)
    inverse = [(1 / torch.where(good, v, one)).to(wide) for v in (depth, target)]
    scale, shift = scale_shift_least_squares(inverse[0], inverse[1], (w * good).to(wide))
    return scale.to(depth.dtype), shift.to(depth.dtype)


def _per_coordinate(w: Tensor, coordinates: int) -> Tensor:
    return w[..., None].expand(*w.shape, coordinates).flatten(-2)


def _align_with_anchor(
    p: Tensor, q: Tensor, w: Tensor, shifted: tuple[bool, ...], trunc: float | None
) -> tuple[Tensor, Tensor]:
    """Scale (*,) and shift (*, D) over all anchors; p, q (*, N, D) clean, ``shifted`` says which axes may move."""
    lead, count, size = p.shape[:-2], p.shape[-2], p.shape[-1]
    axes = torch.tensor(shifted, dtype=p.dtype, device=p.device)
    p, q, w = p.reshape(-1, count, size), q.reshape(-1, count, size), w.reshape(-1, count)
    anchor, active = _best_anchors(p.detach(), q.detach(), w.detach(), axes, trunc)
    # From the two samples that fix the line, so that gradients reach them.
    which = torch.arange(p.shape[0], device=p.device)
    point, axis = active // size, active % size
    x = p[which, point, axis] - p[which, anchor, axis] * axes[axis]
    y = q[which, point, axis] - q[which, anchor, axis] * axes[axis]
    usable = (w[which, anchor] > 0) & (w[which, point] > 0) & (x != 0)
    # NaN is put in last: in a product it would reach gradients through zeros.
    ratio = y / torch.where(usable, x, torch.ones_like(x))
    scale = torch.where(usable, ratio, torch.nan)
    shift = (q[which, anchor] - ratio[:, None] * p[which, anchor]) * axes
    shift = torch.where(usable[:, None], shift, torch.nan)
    return scale.reshape(lead), shift.reshape(*lead, size)


def _best_anchors(
    p: Tensor, q: Tensor, w: Tensor, axes: Tensor, trunc: float | None
) -> tuple[Tensor, Tensor]:
    """Anchor point (B,) and active coordinate (B,) of the least loss for p, q (B, N, D) and w (B, N)."""
    batch, count, size = p.shape
    best = torch.full((batch,), torch.inf, dtype=p.dtype, device=p.device)
    anchor = torch.zeros(batch, dtype=torch.long, device=p.device)
    active = torch.zeros_like(anchor)
    # Points with weight first: only they are anchors.
    order = (w <= 0).to(torch.uint8).argsort(dim=-1, stable=True)
    rows = max(1, _CHUNK_VALUES // (count * size))
    problems = max(1, rows // count)
    for b0 in range(0, batch, problems):
        block = slice(b0, b0 + problems)
        weights = _per_coordinate(w[block], size)[:, None]
        used = int((w[block] > 0).sum(-1).max())
        for k0 in range(0, used, max(1, rows // len(w[block]))):
            part = order[block, k0 : min(k0 + max(1, rows // len(w[block])), used)]
            p0, q0 = (v[block].gather(1, part[..., None].expand(-1, -1, size)) * axes for v in (p, q))
            x = (p[block][:, None] - p0[:, :, None]).flatten(-2)
            y = (q[block][:, None] - q0[:, :, None]).flatten(-2)
            fit = align_trunc(x, y, weights.expand(x.shape), trunc)
            counts = torch.isfinite(fit.scale) & (w[block].gather(1, part) > 0)
            loss, least = torch.where(counts, fit.loss, torch.inf).min(-1, keepdim=True)
            better = loss[:, 0] < best[block]
            best[block] = torch.where(better, loss[:, 0], best[block])
            anchor[block] = torch.where(better, part.gather(1, least)[:, 0], anchor[block])
            active[block] = torch.where(better, fit.sample.gather(1, least)[:, 0], active[block])
    return anchor, active
