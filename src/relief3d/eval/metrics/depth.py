"""Depth metrics with the usual alignments, batched and masked.

Every metric is a mean over the pixels of one map; batches give one value per map. Where a map has no
valid pixel the functions raise rather than return 0 or NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from relief3d.core.errors import InputError

Alignment = Literal["none", "median", "scale", "scale_shift", "inverse_scale_shift"]
DELTAS = (1.05, 1.1, 1.25, 1.25**2, 1.25**3)


@dataclass(frozen=True)
class DepthMetrics:
    """Metrics of maps with leading shape ``*`` (scalars for a single map).

    Attributes:
        abs_rel: mean |d - g| / g.
        sq_rel: mean (d - g)^2 / g, world units.
        mae, rmse: world units.
        log10: mean |log10 d - log10 g|.
        rmse_log: root mean squared difference of natural logarithms.
        silog: 100 times the standard deviation of the log difference (KITTI).
        delta: share of pixels with max(d/g, g/d) below each of ``DELTAS``, (*, 5).
        within: share of pixels with |d - g| / g at most 1 %, 2 % and 5 %, (*, 3).
        kept: share of the valid reference pixels that the prediction covers.
        scale, shift: alignment applied to the prediction (to its inverse for ``inverse_scale_shift``).
        pixels: number of compared pixels.
    """

    abs_rel: Tensor
    sq_rel: Tensor
    mae: Tensor
    rmse: Tensor
    log10: Tensor
    rmse_log: Tensor
    silog: Tensor
    delta: Tensor
    within: Tensor
    kept: Tensor
    scale: Tensor
    shift: Tensor
    pixels: Tensor

    def as_dict(self) -> dict[str, float]:
        """Means over the batch under the usual names, for reports."""
        out = {
            name: float(getattr(self, name).double().mean())
            for name in ("abs_rel", "sq_rel", "mae", "rmse", "log10", "rmse_log", "silog", "kept")
        }
        names = ("delta_1.05", "delta_1.10", "delta1", "delta2", "delta3")
        out |= {n: float(self.delta[..., i].double().mean()) for i, n in enumerate(names)}
        out |= {
            n: float(self.within[..., i].double().mean())
            for i, n in enumerate(("within_1pct", "within_2pct", "within_5pct"))
        }
        return out | {"pixels": int(self.pixels.sum())}


def evaluate_depth(
    predicted: Tensor,
    reference: Tensor,
    mask: Tensor | None = None,
    *,
    alignment: Alignment = "none",
    min_depth: float = 0.0,
    max_depth: float = float("inf"),
) -> DepthMetrics:
    """Compare z-depth maps.

    A pixel counts when the reference is finite, positive and inside ``[min_depth, max_depth]``, the mask
    holds, and the prediction is finite and positive; ``kept`` is the share of the former that also
    fulfil the latter. Predictions that an alignment makes non-positive are clamped to a thousandth of
    the smallest reference depth.

    Args:
        predicted: (*, H, W), 0 where missing.
        reference: (*, H, W), 0 where unknown.
        mask: (*, H, W) bool or None.
        alignment: ``none``; ``median`` ratio of medians; ``scale`` least squares in depth; ``scale_shift``
            least squares in depth; ``inverse_scale_shift`` least squares in inverse depth.
        min_depth: smallest reference depth that counts, world units.
        max_depth: largest reference depth that counts, world units.

    Raises:
        InputError: when shapes differ, the alignment is unknown, or a map has no valid pixel.
    """
    if predicted.shape != reference.shape or predicted.ndim < 2:
        raise InputError(f"depth maps {tuple(predicted.shape)} and {tuple(reference.shape)} must agree")
    if mask is not None and mask.shape != reference.shape:
        raise InputError(f"mask {tuple(mask.shape)} must have the size of the depth {tuple(reference.shape)}")
    lead = predicted.shape[:-2]
    d = predicted.double().reshape(-1, predicted.shape[-2] * predicted.shape[-1])
    g = reference.double().reshape(d.shape)
    known = torch.isfinite(g) & (g > 0) & (g >= min_depth) & (g <= max_depth)
    if mask is not None:
        known &= mask.reshape(d.shape)
    valid = known & torch.isfinite(d) & (d > 0)
    pixels = valid.sum(-1)
    if d.shape[0] == 0 or bool((pixels == 0).any()):
        raise InputError("no valid pixels", remedy="check the depth maps, their unit and the mask")
    one = torch.ones_like(d)
    d, g = torch.where(valid, d, one), torch.where(valid, g, one)
    scale, shift = _align(d, g, valid, alignment)
    floor = torch.where(valid, g, torch.full_like(g, torch.inf)).amin(-1, keepdim=True) * 1e-3
    if alignment == "inverse_scale_shift":
        inverse = scale[:, None] / d + shift[:, None]
        aligned = 1.0 / torch.where(inverse > 0, inverse, torch.full_like(inverse, 1e-12))
        aligned = torch.minimum(aligned, torch.where(valid, g, 0 * g).amax(-1, keepdim=True) * 1e3)
    else:
        aligned = d * scale[:, None] + shift[:, None]
    aligned = torch.where(valid, torch.maximum(aligned, floor), one)

    weight = valid.double() / pixels[:, None]

    def mean(values: Tensor) -> Tensor:
        return (values * weight).sum(-1)

    error = (aligned - g).abs()
    log_error = aligned.log() - g.log()
    ratio = torch.maximum(aligned / g, g / aligned)
    variance = (mean(log_error**2) - mean(log_error) ** 2).clamp_min(0)
    # Limits are inclusive up to rounding, so that an error of exactly 1 % counts as within 1 %.
    within = torch.stack([mean((error <= g * (p + 1e-12)).double()) for p in (0.01, 0.02, 0.05)], -1)
    delta = torch.stack([mean((ratio < t).double()) for t in DELTAS], -1)

    def shape(values: Tensor) -> Tensor:
        return values.reshape(lead + values.shape[1:])

    return DepthMetrics(
        abs_rel=shape(mean(error / g)),
        sq_rel=shape(mean(error**2 / g)),
        mae=shape(mean(error)),
        rmse=shape(mean(error**2).sqrt()),
        log10=shape(mean(log_error.abs()) / torch.log(torch.tensor(10.0, dtype=torch.float64))),
        rmse_log=shape(mean(log_error**2).sqrt()),
        silog=shape(100 * variance.sqrt()),
        delta=shape(delta),
        within=shape(within),
        kept=shape(pixels / known.sum(-1)),
        scale=shape(scale),
        shift=shape(shift),
        pixels=shape(pixels),
    )


def _align(d: Tensor, g: Tensor, valid: Tensor, alignment: Alignment) -> tuple[Tensor, Tensor]:
    """Scale and shift (B,) of each map."""
    batch = d.shape[0]
    scale, shift = d.new_ones(batch), d.new_zeros(batch)
    if alignment == "none":
        return scale, shift
    if alignment == "median":
        ratios = [g[i, valid[i]].median() / d[i, valid[i]].median() for i in range(batch)]
        return torch.stack(ratios), shift
    w = valid.double()
    if alignment == "scale":
        return (w * d * g).sum(-1) / (w * d * d).sum(-1), shift
    if alignment == "inverse_scale_shift":
        return _line(1.0 / d, 1.0 / g, w)
    if alignment == "scale_shift":
        return _line(d, g, w)
    raise InputError(
        f"unknown depth alignment '{alignment}'",
        remedy="choose none, median, scale, scale_shift or inverse_scale_shift",
    )


def _line(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares slope and offset; a constant map gets slope 1."""
    total = w.sum(-1, keepdim=True)
    mx, my = (w * x).sum(-1, keepdim=True) / total, (w * y).sum(-1, keepdim=True) / total
    spread = (w * (x - mx) ** 2).sum(-1)
    slope = torch.where(
        spread > 1e-18, (w * (x - mx) * (y - my)).sum(-1) / spread.clamp_min(1e-18), torch.ones_like(spread)
    )
    return slope, my[:, 0] - slope * mx[:, 0]
