"""Losses of the prompted teacher and of the prompt-free depth student (MetricAnything specification 7.1 to 7.7).

A loss takes what the network gives, canonical inverse depth C = fx / (w D), resizes it bilinearly to the size of each
sample's truth and never resamples truth. Samples may differ in size; each gives one value, the mean over samples with
at least 64 usable pixels is returned. Everything is computed in float32 also under autocast.

What the constant of the distance-balanced loss can do: without clamping, C only divides the error by ln C, and the
gradient term does not see it at all. With ``"clamp"`` it is also the range in metres beyond which depth saturates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.losses.depth_derivatives import (
    MadMode,
    masked_mean,
    ssi_derivative_error,
    ssi_mae,
    trimmed_mean,
    wide,
)

LEAST_PIXELS = 64
TRIM = 0.2
CONSTANT = 400.0
PURE_FLOOR = 1e-4
"""Smallest inverse depth (1/m) of a prediction where nothing is clamped, so that a network's zeros have a logarithm."""
LABEL_RANGE = (1e-3, 400.0)
"""Metres between which a pseudo label counts."""

Space = Literal["balanced", "depth", "log_depth", "inverse_depth"]
DlogMode = Literal["clamp", "pure"]


@dataclass(frozen=True)
class DepthTarget:
    """Truth of one sample.

    Attributes:
        depth: (H, W) z-depth in metres; anything outside of ``valid`` may stand there, NaN too.
        valid: (H, W) bool.
        fx_over_width: focal length over width, both in pixels of one picture.
        synthetic: rendered, so that every pixel can be believed.
        metric: depth is in metres; otherwise only terms blind to scale and shift apply.
        depth_range: metres between which truth counts, ends included.
    """

    depth: Tensor
    valid: Tensor
    fx_over_width: float = 1.0
    synthetic: bool = False
    metric: bool = True
    depth_range: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self) -> None:
        if self.depth.ndim != 2 or self.depth.shape != self.valid.shape or self.valid.dtype != torch.bool:
            raise InputError(
                f"true depth {tuple(self.depth.shape)} and validity {tuple(self.valid.shape)} must be (H, W), "
                "validity boolean"
            )
        if not (self.fx_over_width > 0 and math.isfinite(self.fx_over_width)):
            raise InputError(f"focal length over width is {self.fx_over_width}, not positive")

    def usable(self) -> Tensor:
        """(H, W) bool: valid, finite, positive and within the range."""
        low, high = self.depth_range
        d = self.depth
        return self.valid & torch.isfinite(d) & (d > 0) & (d >= low) & (d <= high)


@dataclass(frozen=True)
class TeacherOptions:
    """Weights of the teacher's loss; the defaults are the paper's."""

    absolute: float = 15.0
    gradient: float = 5.0
    trim: float = TRIM
    mad: MadMode = "median"


@dataclass(frozen=True)
class StudentOptions:
    """The student's loss; the defaults are the paper's.

    Attributes:
        absolute, gradient: weights.
        space: ``"balanced"`` is the paper's; the others are the objectives it is compared with (Tab 14). The gradient
            term is taken in the same space.
        constant: C of the balanced space, metres.
        mode: ``"clamp"`` limits depth to [1/C, C] metres in prediction and truth, in every space; ``"pure"`` does not
            (a prediction still counts at most 10 km).
        mad: see :func:`relief3d.losses.depth_derivatives.ssi_normalise`.
    """

    absolute: float = 10.0
    gradient: float = 2.0
    space: Space = "balanced"
    constant: float = CONSTANT
    mode: DlogMode = "clamp"
    mad: MadMode = "median"

    def __post_init__(self) -> None:
        if not self.constant > 1:
            raise InputError(f"the constant of the distance-balanced loss is {self.constant}, not above 1")
        if self.space not in ("balanced", "depth", "log_depth", "inverse_depth"):
            raise InputError(f"unknown space '{self.space}' of the depth loss")
        if self.mode not in ("clamp", "pure"):
            raise InputError(f"unknown mode '{self.mode}'", remedy="use clamp or pure")


@dataclass(frozen=True)
class DepthLoss:
    """A loss and its parts, () each; parts are without weights.

    Attributes:
        total: weighted sum, mean over the samples that count; 0 with gradient when none does.
        absolute: mean of the absolute term.
        gradient: mean of the gradient term over the samples that have one.
        counted: number of samples that count.
    """

    total: Tensor
    absolute: Tensor
    gradient: Tensor
    counted: int


def canonical_inverse_depth(depth: Tensor, fx_over_width: float | Tensor) -> Tensor:
    """C = fx / (w D) of positive depth in metres; broadcasts."""
    return fx_over_width / depth


def depth_from_canonical(canonical: Tensor, fx_over_width: float | Tensor) -> Tensor:
    """D = fx / (w C) in metres, with 1/D between 1e-4 and 1e4 as Depth Pro clamps it; broadcasts."""
    return 1.0 / (canonical / fx_over_width).clamp(1e-4, 1e4)


def dlog(depth: Tensor, constant: float = CONSTANT, mode: DlogMode = "pure") -> Tensor:
    """Distance-balanced depth 1 - ln(D) / ln(C) (paper, equation 5): 1 at 1 m, 0 at C metres, 2 at 1/C metres."""
    if mode == "clamp":
        depth = depth.clamp(1.0 / constant, constant)
    return 1.0 - torch.log(depth) / math.log(constant)


def limited(inverse: Tensor, low: float, high: float) -> Tensor:
    """``inverse`` between ``low`` and ``high``, with the gradient of no limit at all.

    A network that ends in a ReLU would never leave 0 again otherwise.
    """
    inside = (inverse >= low) & (inverse <= high)
    bounded = inverse.detach().clamp(low, high)
    return torch.where(inside, inverse, bounded + (inverse - inverse.detach()))


def teacher_loss(
    canonical: Tensor | Sequence[Tensor],
    targets: Sequence[DepthTarget],
    options: TeacherOptions = TeacherOptions(),
) -> DepthLoss:
    """15 times the absolute error of canonical inverse depth plus, on rendered data, 5 times SSI-MAGE.

    Real data drop the largest 20 % of each picture's errors. Without metric scale the absolute error is taken between
    normalised maps (Depth Pro's rule for rendered data; for real data our choice, with the same trimming).

    Args:
        canonical: (B, 1, h, w) or (B, h, w) of the network, or B maps (h_i, w_i).
        targets: B truths of any sizes.
        options: weights.

    Raises:
        InputError: numbers of maps and truths differ.
    """

    def parts(found: Tensor, group: _Group) -> tuple[Tensor, Tensor, Tensor]:
        factor = group.fx_over_width
        truth = canonical_inverse_depth(group.depth, factor)
        error = (found - truth).abs()
        plain = masked_mean(error, group.valid)
        robust = trimmed_mean(error, group.valid, options.trim)
        absolute = torch.where(group.synthetic, plain, robust)
        if not bool(group.metric.all()):
            blind = ssi_mae(found, truth, group.valid, mode=options.mad)
            blind_robust = ssi_mae(found, truth, group.valid, mode=options.mad, trim=options.trim)
            blind = torch.where(group.synthetic, blind, blind_robust)
            absolute = torch.where(group.metric, absolute, blind)
        gradient = torch.zeros_like(absolute)
        if bool(group.synthetic.any()):
            gradient = ssi_derivative_error(found, truth, group.valid, mode=options.mad)
        return absolute, gradient, group.synthetic

    return _collect(canonical, targets, parts, (options.absolute, options.gradient))


def student_loss(
    canonical: Tensor | Sequence[Tensor],
    targets: Sequence[DepthTarget],
    options: StudentOptions = StudentOptions(),
) -> DepthLoss:
    """10 times the L1 distance in the chosen space plus 2 times SSI-MAGE in the same space.

    Args:
        canonical: as :func:`teacher_loss`.
        targets: B truths, pseudo labels or rendered; give pseudo labels ``LABEL_RANGE`` as their range.
        options: weights and space.

    Raises:
        InputError: numbers of maps and truths differ.
    """
    floor = 1.0 / options.constant if options.mode == "clamp" else PURE_FLOOR
    ceiling = options.constant if options.mode == "clamp" else 1.0 / PURE_FLOOR

    def parts(found: Tensor, group: _Group) -> tuple[Tensor, Tensor, Tensor]:
        truth = 1.0 / group.depth
        if options.mode == "clamp":
            truth = truth.clamp(floor, ceiling)
        a = in_space(limited(found / group.fx_over_width, floor, ceiling), options)
        b = in_space(truth, options)
        absolute = masked_mean((a - b).abs(), group.valid)
        if not bool(group.metric.all()):
            absolute = torch.where(group.metric, absolute, ssi_mae(a, b, group.valid, mode=options.mad))
        gradient = ssi_derivative_error(a, b, group.valid, mode=options.mad)
        return absolute, gradient, torch.ones_like(group.synthetic)

    return _collect(canonical, targets, parts, (options.absolute, options.gradient))


def in_space(inverse: Tensor, options: StudentOptions) -> Tensor:
    """Positive inverse depth (1/m) in the space of the loss."""
    if options.space == "balanced":
        return 1.0 + torch.log(inverse) / math.log(options.constant)
    if options.space == "depth":
        return 1.0 / inverse
    return -torch.log(inverse) if options.space == "log_depth" else inverse


@dataclass(frozen=True)
class _Group:
    """Samples of one size: maps (B, H, W), facts (B,) or (B, 1, 1). Depth is 1 where it is not usable."""

    depth: Tensor
    valid: Tensor
    fx_over_width: Tensor
    synthetic: Tensor
    metric: Tensor


_Parts = Callable[[Tensor, _Group], tuple[Tensor, Tensor, Tensor]]


def _collect(
    canonical: Tensor | Sequence[Tensor],
    targets: Sequence[DepthTarget],
    parts: _Parts,
    weights: tuple[float, float],
) -> DepthLoss:
    """Means over samples, which are worked on together where they have one size."""
    maps = _maps(canonical, len(targets))
    sizes: dict[tuple[object, ...], list[int]] = {}
    for index, target in enumerate(targets):
        sizes.setdefault((*target.depth.shape, *maps[index].shape), []).append(index)
    total, absolute, gradient, counts, graded = [], [], [], [], []
    with torch.autocast(maps[0].device.type, enabled=False):
        for members in sizes.values():
            chosen = [targets[i] for i in members]
            found = torch.stack([wide(maps[i]) for i in members])
            group = _group(chosen, found)
            found = _resized(found, group.depth.shape[-2:])
            usable = group.valid.flatten(1).sum(1) >= LEAST_PIXELS
            one, two, has = parts(found, group)
            has = has & usable
            one = torch.where(usable, one, torch.zeros_like(one))
            two = torch.where(has, two, torch.zeros_like(two))
            # Ties every sample to the graph, also those that do not count.
            anchor = 0.0 * torch.where(torch.isfinite(found), found, torch.zeros_like(found)).sum((-1, -2))
            total.append(weights[0] * one + weights[1] * two + anchor)
            absolute.append(one.detach())
            gradient.append(two.detach())
            counts.append(usable)
            graded.append(has)
        counted, with_gradient = torch.cat(counts).sum(), torch.cat(graded).sum()
        return DepthLoss(
            torch.cat(total).sum() / counted.clamp_min(1),
            torch.cat(absolute).sum() / counted.clamp_min(1),
            torch.cat(gradient).sum() / with_gradient.clamp_min(1),
            int(counted),
        )


def _maps(canonical: Tensor | Sequence[Tensor], count: int) -> list[Tensor]:
    maps = list(canonical)
    if len(maps) != count or not maps:
        raise InputError(f"{len(maps)} predicted maps for {count} truths")
    maps = [m[0] if m.ndim == 3 and m.shape[0] == 1 else m for m in maps]
    if any(m.ndim != 2 for m in maps):
        raise InputError(
            f"predicted depth must be (B, 1, h, w) or (B, h, w), got {tuple(maps[0].shape)} each"
        )
    return maps


def _group(targets: Sequence[DepthTarget], found: Tensor) -> _Group:
    device, dtype = found.device, found.dtype
    valid = torch.stack([t.usable() for t in targets]).to(device)
    depth = torch.stack([t.depth for t in targets]).to(device, dtype)
    return _Group(
        torch.where(valid, depth, torch.ones_like(depth)),
        valid,
        torch.tensor([t.fx_over_width for t in targets], device=device, dtype=dtype)[:, None, None],
        torch.tensor([t.synthetic for t in targets], device=device),
        torch.tensor([t.metric for t in targets], device=device),
    )


def _resized(found: Tensor, size: torch.Size) -> Tensor:
    if found.shape[-2:] == size:
        return found
    return F.interpolate(found[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
