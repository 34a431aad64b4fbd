"""Errors of depth-like maps after normalisation and between their derivatives on several scales.

Everything works on maps (B, H, W) with a mask and gives one value per map, so that pictures of one size go together.
Sources: Depth Pro (MAGE, MSGE, MALE and their SSI forms) and MetricAnything equations 9 and 10; the pyramid with holes
is our choice (MetricAnything specification 7.3 and 7.4).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.errors import InputError

SCALES = 6
MAD_FLOOR = 1e-6
LEAST_SIDE = 4
"""Levels with a shorter side add nothing (the sum is still divided by the number of scales)."""

MadMode = Literal["median", "mean"]
Derivative = Literal["scharr", "scharr_squared", "laplace"]

_SCHARR = ((-3.0, 0.0, 3.0), (-10.0, 0.0, 10.0), (-3.0, 0.0, 3.0))
_LAPLACE = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
_BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)


def wide(values: Tensor) -> Tensor:
    """The values in float32, or float64 when they are that already."""
    return values if values.dtype == torch.float64 else values.float()


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """(B,) mean of (B, H, W) over the mask; 0 where it is empty."""
    kept = torch.where(valid, values, torch.zeros_like(values))
    return kept.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp_min(1)


def masked_median(values: Tensor, valid: Tensor) -> Tensor:
    """(B,) lower median of (B, H, W) over the mask, 0 where it is empty; gradients reach the middle element."""
    middle = values.masked_fill(~valid, torch.nan).flatten(1).nanmedian(dim=1).values
    return torch.where(valid.flatten(1).any(1), middle, torch.zeros_like(middle))


def ssi_normalise(
    values: Tensor, valid: Tensor, mode: MadMode = "median", floor: float = MAD_FLOOR
) -> Tensor:
    """Maps without scale and shift: ``(x - median) / max(MAD, floor)``; gradients flow through both.

    Args:
        values: (B, H, W).
        valid: (B, H, W) bool, the pixels that fix median and MAD.
        mode: MAD is the median of |x - median| (the formula of the paper) or its mean (the words of the paper, and
            Depth Pro). With the median a map whose larger half has one value is divided by ``floor`` alone.
        floor: smallest divisor.

    Returns:
        (B, H, W), 0 outside of the mask.

    Raises:
        InputError: unknown mode.
    """
    if mode not in ("median", "mean"):
        raise InputError(f"unknown deviation '{mode}'", remedy="use median or mean")
    clean = torch.where(valid, values, torch.zeros_like(values))
    centred = clean - masked_median(clean, valid)[:, None, None]
    average = masked_median if mode == "median" else masked_mean
    spread = average(centred.abs(), valid).clamp_min(floor)
    return torch.where(valid, centred / spread[:, None, None], torch.zeros_like(centred))


def ssi_mae(
    found: Tensor, target: Tensor, valid: Tensor, *, mode: MadMode = "median", trim: float = 0.0
) -> Tensor:
    """(B,) mean absolute difference of the normalised maps, without the largest share ``trim``."""
    error = ssi_normalise(found, valid, mode) - ssi_normalise(target, valid, mode)
    return trimmed_mean(error.abs(), valid, trim)


def trimmed_mean(values: Tensor, valid: Tensor, trim: float) -> Tensor:
    """Mean over the mask without the largest ``ceil(trim * n)`` values of each map.

    Args:
        values: (B, H, W).
        valid: (B, H, W) bool with n pixels.
        trim: share in [0, 1).

    Returns:
        (B,), 0 where nothing is left; the choice of values carries no gradient.

    Raises:
        InputError: the share is outside [0, 1).
    """
    if not 0 <= trim < 1:
        raise InputError(f"the share of dropped errors is {trim}, not in [0, 1)")
    if trim == 0:
        return masked_mean(values, valid)
    count = valid.flatten(1).sum(1)
    # 0.07 * 100 is 7.000000000000001 in floating point: without the small number 8 would be dropped.
    kept = count - torch.ceil(trim * count.double() - 1e-9).long()
    ranked = values.masked_fill(~valid, torch.inf).flatten(1).sort(dim=1).values
    smallest = torch.arange(ranked.shape[1], device=values.device)[None] < kept[:, None]
    return torch.where(smallest, ranked, torch.zeros_like(ranked)).sum(1) / kept.clamp_min(1)


def derivative_error(
    residual: Tensor, valid: Tensor, kind: Derivative = "scharr", scales: int = SCALES
) -> Tensor:
    """Derivatives of a difference of two maps, averaged over the pixels of each scale and then over scales.

    Derivatives are linear, so the difference is filtered once. Each scale is the one before it, blurred by
    [1, 4, 6, 4, 1] / 16 over known pixels, at even rows and columns; a pixel stays known when at least half of the
    weight is. A derivative counts where all nine pixels are known.

    Args:
        residual: (B, H, W) prediction minus truth.
        valid: (B, H, W) bool.
        kind: ``"scharr"`` |gx| + |gy| (MAGE), ``"scharr_squared"`` gx^2 + gy^2 (MSGE), ``"laplace"`` |laplacian|
            (MALE). Scharr's kernel is scaled to give 1 on a ramp of 1 per pixel.
        scales: number of levels, the first being the full resolution.

    Returns:
        (B,).

    Raises:
        InputError: unknown kind, or no scale.
    """
    if kind not in ("scharr", "scharr_squared", "laplace") or scales < 1:
        raise InputError(f"no derivative error '{kind}' with {scales} scales")
    values = torch.where(valid, residual, torch.zeros_like(residual))
    known, total = valid, residual.new_zeros(residual.shape[0])
    for level in range(scales):
        if min(values.shape[-2:]) < LEAST_SIDE:
            break
        total = total + _one_scale(values, known, kind)
        if level + 1 < scales:
            values, known = _coarser(values, known)
    return total / scales


def ssi_derivative_error(
    found: Tensor,
    target: Tensor,
    valid: Tensor,
    *,
    kind: Derivative = "scharr",
    mode: MadMode = "median",
    scales: int = SCALES,
) -> Tensor:
    """(B,) the same between normalised maps; SSI-MAGE of the paper with the default kind."""
    residual = ssi_normalise(found, valid, mode) - ssi_normalise(target, valid, mode)
    return derivative_error(residual, valid, kind, scales)


def _one_scale(values: Tensor, known: Tensor, kind: Derivative) -> Tensor:
    whole = F.avg_pool2d(known[:, None].to(values.dtype), 3, stride=1)[:, 0] > 1 - 1e-4
    if kind == "laplace":
        return masked_mean(_filtered(values, _LAPLACE).abs(), whole)
    across = _filtered(values, _SCHARR) / 32
    down = _filtered(values, tuple(zip(*_SCHARR, strict=True))) / 32
    if kind == "scharr":
        return masked_mean(across.abs() + down.abs(), whole)
    return masked_mean(across.square() + down.square(), whole)


def _filtered(values: Tensor, kernel: tuple[tuple[float, ...], ...]) -> Tensor:
    """Correlation (B, H - 2, W - 2) with a 3 x 3 kernel."""
    return F.conv2d(values[:, None], values.new_tensor(kernel)[None, None])[:, 0]


def _coarser(values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    weight = known.to(values.dtype)
    blurred = _blurred(torch.stack([values * weight, weight], 1))[..., ::2, ::2]
    share = blurred[:, 1]
    kept = share >= 0.5 - 1e-6
    return torch.where(kept, blurred[:, 0] / share.clamp_min(0.25), torch.zeros_like(share)), kept


def _blurred(maps: Tensor) -> Tensor:
    kernel = maps.new_tensor(_BINOMIAL) / sum(_BINOMIAL)
    flat = F.pad(maps.flatten(0, 1)[:, None], (2, 2, 2, 2), mode="replicate")
    flat = F.conv2d(F.conv2d(flat, kernel[None, None, None]), kernel[None, None, :, None])
    return flat[:, 0].unflatten(0, maps.shape[:2])
