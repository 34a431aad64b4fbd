"""Fill sparse metric depth under the guidance of a dense prior, without parameters to learn.

All fits run in inverse depth (disparity, 1/m): ``x`` is the prior's disparity, ``y`` the prompt's, and inv(0) = 0.
Two maps come out: PDSA, an affine fit of the prior to the nearest prompt pixels of every pixel, and GMDR, one affine
fit for the whole picture. The MetricAnything paper names both without an equation; the rules here are those of
Prior Depth Anything's pixel-wise and global alignment, with See3D's locally weighted regression as an option.
Neighbours come from scipy's KD-tree on the CPU and from a chunked search in torch elsewhere; no compiled extra.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.pixelwise_alignment import (
    FULL,
    NEIGHBOURS,
    PRIOR_DA,
    PixelwiseOptions,
    align_pixelwise,
    check_maps,
    fit_planes,
)

__all__ = [
    "FLOOR",
    "FULL",
    "MIN_DEPTH",
    "NEIGHBOURS",
    "PRIOR_DA",
    "GlobalFit",
    "GlobalOptions",
    "PixelwiseOptions",
    "PromptCondition",
    "align_global",
    "align_pixelwise",
    "fill_holes",
    "fit_affine",
    "inverse",
    "nearest_known",
    "prompt_condition",
    "prompt_conditions",
]

MIN_DEPTH = 1e-4
"""Depth at or below this is a hole."""

_CHUNK = 2**22
"""Distances that the search without a tree holds at once."""
_HUBER = 1.345 * 1.4826
_HUBER_STEPS = 3
_LWLR_GRID = 64
_LWLR_RIDGE = 1e-3
FLOOR = 1e-3
"""Disparity that replaces non-positive values of the global fit, 1/m."""


@dataclass(frozen=True)
class GlobalOptions:
    """How GMDR is computed.

    Attributes:
        mode: ``"global"`` one affine fit; ``"lwlr"`` See3D's locally weighted linear regression, whose ridge pulls
            scale and shift to 0 far from every point.
        robust: ``"huber"`` reweights the global fit three times (delta 1.345 * 1.4826 MAD).
        bandwidth: of the weights of ``"lwlr"``, as a share of the picture's diagonal; the ridge is a thousandth of
            the mean squared prior.
        scale_only_below: with fewer points only a scale is fitted (10 for radar); 0 never.
    """

    mode: Literal["global", "lwlr"] = "global"
    robust: Literal["huber"] | None = None
    bandwidth: float = 0.1
    scale_only_below: int = 0


@dataclass(frozen=True)
class GlobalFit:
    """A global alignment.

    Attributes:
        disparity: (H, W) float32, positive, 1/m.
        scale, shift: of the one fit for all points (of the starting fit for ``"lwlr"``).
        residual: median |s x + t - y| over the prompt, 1/m.
    """

    disparity: Tensor
    scale: float
    shift: float
    residual: float


@dataclass(frozen=True)
class PromptCondition:
    """What the conditioned head sees.

    Attributes:
        values: (3, H, W) float32: PDSA, GMDR (1/m, or canonical with a focal length), and the prompt mask.
        fit: the global fit in 1/m, for diagnostics.
        points: number of prompt pixels.
    """

    values: Tensor
    fit: GlobalFit
    points: int


def inverse(depth: Tensor) -> Tensor:
    """1 / depth of any shape with inv(0) = 0; values that are not finite or not positive count as 0."""
    known = torch.isfinite(depth) & (depth > 0)
    return torch.where(
        known, 1.0 / torch.where(known, depth, torch.ones_like(depth)), torch.zeros_like(depth)
    )


def nearest_known(known: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest marked pixels of every query position.

    Args:
        known: (H, W) bool with at least k marked pixels.
        queries: (Q, 2) positions (column, row) in pixels, integer at pixels.
        k: number of neighbours; which of two equally distant ones comes first is arbitrary but repeatable.

    Returns:
        (Q, k) int64 positions in the row-major flattened picture, and (Q, k) float64 distances in pixels, ascending.

    Raises:
        InputError: fewer than k marked pixels.
    """
    flat = torch.nonzero(known.reshape(-1))[:, 0]
    if flat.numel() < k:
        raise InputError(
            f"not enough known points: {flat.numel()} of at least {k}",
            remedy="give a prompt with more measured pixels inside the picture",
        )
    width = known.shape[1]
    points = torch.stack([flat % width, flat // width], -1).double()
    queries = queries.to(points)
    if known.device.type == "cpu":
        try:
            from scipy.spatial import cKDTree
        except ImportError:
            pass
        else:
            far, near = cKDTree(points.numpy()).query(queries.numpy(), k=[*range(1, k + 1)], workers=-1)
            return flat[torch.from_numpy(near).long()], torch.from_numpy(far)
    return _search(flat, points, queries, k)


def _search(flat: Tensor, points: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same as :func:`nearest_known` by comparing all pairs, a chunk of queries at a time."""
    near, far = [], []
    for part in queries.split(max(1, _CHUNK // len(points))):
        # Squared distances of small integers are exact in float64, so ties stay ties.
        squared = (part[:, None, 0] - points[None, :, 0]).square()
        squared += (part[:, None, 1] - points[None, :, 1]).square()
        values, index = squared.topk(k, dim=1, largest=False, sorted=True)
        near.append(flat[index])
        far.append(values.sqrt())
    if not near:
        return flat.new_zeros(0, k), points.new_zeros(0, k)
    return torch.cat(near), torch.cat(far)


def fill_holes(
    depth: Tensor, valid: Tensor | None = None, *, k: int = NEIGHBOURS, where: Tensor | None = None
) -> Tensor:
    """Replace every hole by the plain mean of its k nearest valid pixels.

    Args:
        depth: (H, W) metres.
        valid: (H, W) bool, where depth is known; depth above 1e-4 when None.
        k: neighbours.
        where: (H, W) bool, the only holes to fill; all of them when None.

    Returns:
        (H, W) of the depth's type; valid pixels unchanged.

    Raises:
        InputError: fewer than k valid pixels.
    """
    valid = depth > MIN_DEPTH if valid is None else valid
    holes = ~valid if where is None else ~valid & where
    near, _ = nearest_known(valid, torch.nonzero(holes).flip(-1), k)
    out = depth.clone()
    out[holes] = depth.reshape(-1)[near].mean(-1)
    return out


def fit_affine(x: Tensor, y: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Least squares ``y ~ s x + t`` over the last dimension; the scale alone where ``x`` hardly varies.

    Args:
        x: (*, P) regressor.
        y: (*, P) target.
        weight: (*, P) of the squared residuals; 1 when None.

    Returns:
        s, t (*,) float64.
    """
    w = torch.ones_like(x) if weight is None else weight
    return fit_planes(*(v.double().movedim(-1, 0) for v in (x, y, w)))


def _centres(rows: int, cols: int, height: int, width: int, device: torch.device) -> Tensor:
    """(rows * cols, 2) centres of a coarse grid in the fine grid's integer pixel positions."""
    v = (torch.arange(rows, device=device, dtype=torch.float64) + 0.5) * (height / rows) - 0.5
    u = (torch.arange(cols, device=device, dtype=torch.float64) + 0.5) * (width / cols) - 0.5
    gv, gu = torch.meshgrid(v, u, indexing="ij")
    return torch.stack([gu, gv], -1).reshape(-1, 2)


def align_global(
    prior: Tensor, prompt: Tensor, mask: Tensor, options: GlobalOptions = GlobalOptions()
) -> GlobalFit:
    """GMDR: fit the prior to all prompt pixels at once; prompt pixels are not overwritten.

    Args:
        prior: (H, W) disparity of the dense prior.
        prompt: (H, W) disparity of the prompt, 1/m, read where ``mask`` holds.
        mask: (H, W) bool, prompt pixels.
        options: see :class:`GlobalOptions`.

    Raises:
        InputError: shapes differ, no prompt pixel, or options that do not go together.
    """
    check_maps(prior, prompt, mask)
    if options.mode == "lwlr" and options.robust:
        raise InputError("the robust fit is for the global mode", remedy="use mode 'global' with 'huber'")
    x, y = prior[mask].double(), prompt[mask].double()
    if x.numel() < options.scale_only_below:
        scale, shift = (x * y).sum() / (x * x).sum().clamp_min(1e-300), x.new_zeros(())
    else:
        scale, shift = fit_affine(x, y)
        if options.robust == "huber":
            scale, shift = _huber(x, y, scale, shift)
    if options.mode == "lwlr":
        out = _lwlr(prior, x, y, mask, options.bandwidth)
    else:
        out = scale * prior.double() + shift
    residual = (out[mask] - y).abs().median()
    out = torch.where(out > 0, out, torch.full_like(out, FLOOR))
    return GlobalFit(out.float(), float(scale), float(shift), float(residual))


def _huber(x: Tensor, y: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    for _ in range(_HUBER_STEPS):
        residual = y - (scale * x + shift)
        delta = _HUBER * (residual - residual.median()).abs().median()
        if float(delta) <= 0:  # at least half of the points are met exactly
            break
        scale, shift = fit_affine(x, y, delta / residual.abs().clamp_min(float(delta)))
    return scale, shift


def _lwlr(prior: Tensor, x: Tensor, y: Tensor, mask: Tensor, bandwidth: float) -> Tensor:
    """Fits on a coarse grid with Gaussian weights and a ridge; scale and shift are interpolated, not the map."""
    height, width = prior.shape
    rows, cols = min(_LWLR_GRID, height), min(_LWLR_GRID, width)
    b = bandwidth * math.hypot(height, width)
    ridge = _LWLR_RIDGE * float((x * x).mean())
    points = torch.nonzero(mask).flip(-1).double()
    moments = torch.stack([torch.ones_like(x), x, x * x, y, x * y], -1)
    sums = []
    for part in _centres(rows, cols, height, width, prior.device).split(max(1, _CHUNK // len(points))):
        squared = (part[:, None] - points[None]).square().sum(-1)
        sums.append(torch.exp(-squared / (2 * b * b)) / math.sqrt(2 * math.pi) @ moments)
    s0, s1, s2, t0, t1 = torch.cat(sums).unbind(-1)
    a, d = s2 + ridge, s0 + ridge
    det = a * d - s1 * s1
    fit = torch.stack([(d * t1 - s1 * t0) / det, (a * t0 - s1 * t1) / det]).reshape(1, 2, rows, cols)
    scale, shift = F.interpolate(fit, (height, width), mode="bilinear", align_corners=False)[0]
    return scale * prior.double() + shift


def prompt_condition(
    prior: Tensor,
    prompt_depth: Tensor,
    mask: Tensor | None = None,
    *,
    pixelwise: PixelwiseOptions = FULL,
    overall: GlobalOptions = GlobalOptions(),
    fx_over_width: float | None = None,
) -> PromptCondition:
    """The three channels of the conditioned head, in the paper's order.

    Args:
        prior: (H, W) disparity of the dense prior.
        prompt_depth: (H, W) metres, 0 where unknown.
        mask: (H, W) bool; depth above 1e-4 when None.
        pixelwise: options of PDSA.
        overall: options of GMDR.
        fx_over_width: focal length over picture width, both in pixels of one picture: puts both maps into the
            canonical space C = fx / (w D). None keeps 1/m.

    Raises:
        InputError: as the two alignments.
    """
    mask = (prompt_depth > MIN_DEPTH) if mask is None else mask
    prompt = inverse(prompt_depth)
    near = align_pixelwise(prior, prompt, mask, pixelwise)
    fit = align_global(prior, prompt, mask, overall)
    factor = 1.0 if fx_over_width is None else fx_over_width
    values = torch.stack([near * factor, fit.disparity * factor, mask.float()])
    return PromptCondition(values, fit, int(mask.sum()))


def prompt_conditions(
    prior: Tensor,
    prompt_depth: Tensor,
    mask: Tensor | None = None,
    *,
    pixelwise: PixelwiseOptions = FULL,
    overall: GlobalOptions = GlobalOptions(),
    fx_over_width: Tensor | None = None,
) -> Tensor:
    """The conditions of a batch, for training: neighbours and local fits of all pictures together.

    Args:
        prior: (B, H, W) disparity of the dense prior.
        prompt_depth: (B, H, W) metres, 0 where unknown.
        mask: (B, H, W) bool; depth above 1e-4 when None.
        pixelwise: options of PDSA.
        overall: options of GMDR.
        fx_over_width: (B,) see :func:`prompt_condition`.

    Returns:
        (B, 3, H, W) float32.

    Raises:
        InputError: as the two alignments.
    """
    mask = (prompt_depth > MIN_DEPTH) if mask is None else mask
    prompt = inverse(prompt_depth)
    near = align_pixelwise(prior, prompt, mask, pixelwise)
    everywhere = [
        align_global(x, y, m, overall).disparity for x, y, m in zip(prior, prompt, mask, strict=True)
    ]
    maps = torch.stack([near, torch.stack(everywhere)], 1)
    if fx_over_width is not None:
        maps = maps * fx_over_width.to(maps)[:, None, None, None]
    return torch.cat([maps, mask[:, None].to(maps)], 1)
