"""PDSA: the prior fitted to the nearest prompt pixels of every pixel, for one picture or a batch.

The rules are those of Prior Depth Anything's pixel-wise alignment (MetricAnything specification 2.4). Values of the K
neighbours lie in K planes of pixels, so that the sums of the fits run over contiguous memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.nearest_points import nearest_on_grid, prompt_points

NEIGHBOURS = 5
DEGENERATE = 1e-8
_AT_ONCE = 2**14
"""Pixels fitted together: their planes stay in the processor's cache."""


@dataclass(frozen=True)
class PixelwiseOptions:
    """How PDSA is computed.

    Attributes:
        neighbours: K prompt pixels per fit.
        clamp: keep a fit within [half the smallest, twice the largest] prompt disparity of its own neighbours;
            off reproduces Prior Depth Anything.
        jitter: adds uniform noise in [0, 1e-5) to the neighbours' prior, as Prior Depth Anything does against
            rank deficiency; None falls back to a fit of the scale alone where the affine fit is degenerate.
        max_side: fit on a grid of at most that side (training); None fits every pixel.
        refine: what a coarser grid hands to the pixels: ``"values"`` the fitted map, enlarged bilinearly; ``"fits"``
            scale, shift and limits of the nearest cell, applied to the full prior, whose edges stay sharp.
        fewer: accept fewer than ``neighbours`` prompt pixels (radar) and fit with all of them.
    """

    neighbours: int = NEIGHBOURS
    clamp: bool = True
    jitter: torch.Generator | None = None
    max_side: int | None = None
    refine: Literal["values", "fits"] = "values"
    fewer: bool = False


FULL = PixelwiseOptions()
"""Every pixel, clamped."""
PRIOR_DA = PixelwiseOptions(clamp=False)
"""Prior Depth Anything's pixel-wise fit, without its random jitter."""


def align_pixelwise(
    prior: Tensor, prompt: Tensor, mask: Tensor, options: PixelwiseOptions = PixelwiseOptions()
) -> Tensor:
    """PDSA: fit the prior to the nearest prompt pixels of every pixel.

    For a pixel outside the prompt with neighbours j at pixel distance r_j: weights w_j = (1 / r_j) / sum(1 / r),
    minimise sum_j w_j^2 (s x_j + t - y_j)^2, value s x + t. Prompt pixels keep their own disparity.

    Args:
        prior: (H, W) or (B, H, W) disparity of the dense prior, 1/m up to scale and shift.
        prompt: the same shape, disparity of the prompt, 1/m, read where ``mask`` holds.
        mask: the same shape, bool, prompt pixels.
        options: see :class:`PixelwiseOptions`.

    Returns:
        float32 disparity of the same shape, 1/m.

    Raises:
        InputError: shapes differ, or fewer prompt pixels than neighbours in some picture.
    """
    check_maps(prior, prompt, mask)
    if prior.ndim == 2:
        return align_pixelwise(prior[None], prompt[None], mask[None], options)[0]
    points = prompt_points(mask)
    least = int(points.count.min())
    if least < (1 if options.fewer else options.neighbours):
        raise InputError(
            f"not enough known points: {least} of at least {options.neighbours}",
            remedy="give a prompt with more measured pixels inside the picture",
        )
    batch, height, width = prior.shape
    rows, cols = _grid(height, width, options.max_side)
    coarse = (rows, cols) != (height, width)
    place, far = nearest_on_grid(points, (height, width), options.neighbours, (rows, cols))
    offset = torch.arange(batch, device=prior.device) * points.flat.shape[1]
    index = (place + offset[:, None, None]).flatten(1)
    x, y = (v.flatten(1).gather(1, points.flat).reshape(-1).double() for v in (prior, prompt))
    lacking = least < options.neighbours
    at = prior
    if coarse:
        at = F.interpolate(prior[:, None].double(), (rows, cols), mode="bilinear", align_corners=False)[:, 0]
    planes = _fitted(at.reshape(-1), x, y, index, far.flatten(1), lacking, options)
    planes = planes.reshape(5, batch, rows, cols)
    if not coarse:
        filled = planes[0]
    elif options.refine == "values":
        filled = F.interpolate(planes[:1], (height, width), mode="bilinear", align_corners=False)[0]
    else:
        scale, shift, low, high = F.interpolate(planes[1:], (height, width), mode="nearest-exact")
        filled = scale * prior + shift
        if options.clamp:
            filled = filled.clamp(low, high)
    return torch.where(mask, prompt.double(), filled.double()).float()


def _grid(height: int, width: int, max_side: int | None) -> tuple[int, int]:
    if max_side is None or max(height, width) <= max_side:
        return height, width
    factor = max_side / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _fitted(
    at: Tensor, x: Tensor, y: Tensor, index: Tensor, far: Tensor, lacking: bool, options: PixelwiseOptions
) -> Tensor:
    """(5, Q): fitted value where the prior is ``at`` (Q,), scale, shift and limits.

    Neighbours are places (k, Q) in the lists x and y (P,) of the prompt points; ``lacking``: some are infinitely far.
    """
    out = torch.empty(5, at.numel(), dtype=torch.float64, device=at.device)
    for start in range(0, at.numel(), _AT_ONCE):
        piece = slice(start, start + _AT_ONCE)
        which, distance = index[:, piece], far[:, piece].double()
        xs, ys = x[which], y[which]
        low = high = ys
        if lacking:
            missing = torch.isinf(distance)
            low, high = ys.masked_fill(missing, torch.inf), ys.masked_fill(missing, -torch.inf)
        low, high = low.amin(0).mul_(0.5), high.amax(0).mul_(2.0)
        if options.jitter is not None:
            noise = torch.rand(xs.shape, generator=options.jitter, device=options.jitter.device)
            xs += 1e-5 * noise.to(xs)
        # Off the prompt the distance is at least 1 on the full grid; coarse centres may fall onto a prompt pixel.
        # Missing neighbours weigh nothing.
        weight = distance.clamp_min_(0.5).reciprocal_()
        weight /= weight.sum(0)
        scale, shift = fit_planes(xs, ys, weight.square_())
        value = scale * at[piece] + shift
        out[0, piece] = torch.minimum(torch.maximum(value, low), high) if options.clamp else value
        out[1, piece], out[2, piece], out[3, piece], out[4, piece] = scale, shift, low, high
    return out


def fit_planes(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares ``y ~ s x + t`` over the first dimension; the scale alone where ``x`` hardly varies.

    Args:
        x: (P, *) float64 regressor.
        y: (P, *) float64 target.
        w: (P, *) float64 weight of the squared residuals.

    Returns:
        s, t (*,).
    """
    wx, wy = w * x, w * y
    s0, s1, t0 = w.sum(0), wx.sum(0), wy.sum(0)
    s2, t1 = wx.mul_(x).sum(0), wy.mul_(x).sum(0)
    det = s0 * s2 - s1 * s1
    good = det >= DEGENERATE * s0 * s2
    scale = torch.where(
        good, (s0 * t1 - s1 * t0) / torch.where(good, det, torch.ones_like(det)), t1 / s2.clamp_min(1e-300)
    )
    return scale, torch.where(good, (t0 - scale * s1) / s0.clamp_min(1e-300), torch.zeros_like(t0))


def check_maps(prior: Tensor, prompt: Tensor, mask: Tensor) -> None:
    """Raise unless the three have one shape, (H, W) or (B, H, W), and every picture has a prompt pixel."""
    if prior.ndim not in (2, 3) or prompt.shape != prior.shape or mask.shape != prior.shape:
        raise InputError(
            f"prior {tuple(prior.shape)}, prompt {tuple(prompt.shape)} and mask {tuple(mask.shape)} must be (H, W)",
            remedy="resize the prior to the size of the prompt",
        )
    if not bool(mask.flatten(-2).any(-1).all()):
        raise InputError("not enough known points: the prompt is empty")
