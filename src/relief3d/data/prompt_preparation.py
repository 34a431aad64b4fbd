"""A user's prompt made ready for the network, and what it and the prior say about each other."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.metric_prompt import MetricPrompt
from relief3d.data.prompt_alignment import (
    FULL,
    GlobalFit,
    GlobalOptions,
    PixelwiseOptions,
    align_global,
    inverse,
    prompt_condition,
)

_FEW_FOR_AFFINE = 10
_INLIER = 0.15
_LEAST_AGREEING = 0.25


@dataclass(frozen=True)
class PromptFacts:
    """What a prompt and a prior say about each other.

    Attributes:
        points: prompt pixels.
        scale, shift: of the robust global fit in inverse depth, ``y ~ scale x + shift``.
        residual: its median absolute residual, 1/m.
        agreeing: share of points within 15 % of the fit, in inverse depth.
        ratio: median of prompt depth over prior depth; means something when the prior is metric.
    """

    points: int
    scale: float
    shift: float
    residual: float
    agreeing: float
    ratio: float


@dataclass(frozen=True)
class PreparedPrompt:
    """The condition of the network and what the user should know.

    Attributes:
        condition: (3, H, W): PDSA, GMDR, mask.
        facts: agreement of prompt and prior.
        fit: the global fit.
        notes: of the prompt and of this step.
    """

    condition: Tensor
    facts: PromptFacts
    fit: GlobalFit
    notes: tuple[str, ...]


def prepare_prompt(
    prompt: MetricPrompt,
    prior: Tensor | None = None,
    *,
    metric_prior: bool = False,
    pixelwise: PixelwiseOptions = FULL,
    overall: GlobalOptions | None = None,
    fx_over_width: float | None = None,
) -> PreparedPrompt:
    """Fill a prompt under the guidance of a prior.

    Without a prior its disparity counts as 1 everywhere: PDSA then is the mean of the five nearest prompt points in
    inverse depth, weighted by 1 / distance^2, and GMDR their mean everywhere.

    Args:
        prompt: checked.
        prior: (H, W) disparity of the dense prior, or None.
        metric_prior: the prior is in 1/m, so that a prompt in another unit stands out.
        pixelwise: options of PDSA; fewer points than neighbours are fitted with all there are.
        overall: options of GMDR; by default the scale alone below ten points.
        fx_over_width: see :func:`relief3d.data.prompt_alignment.prompt_condition`.

    Raises:
        InputError: the prior has another size or no positive value, or prompt and metric prior differ by a unit.
    """
    guided = prior is not None
    if prior is None:
        prior = torch.ones_like(prompt.depth)
    if prior.shape != prompt.depth.shape:
        raise InputError(
            f"the prior has {tuple(prior.shape)} pixels, the prompt {tuple(prompt.depth.shape)}",
            remedy="resize the prior to the picture",
        )
    prior = torch.where(torch.isfinite(prior), prior, torch.zeros_like(prior))
    if not bool((prior[prompt.mask] > 0).any()):
        raise InputError("the prior is not positive at any prompt point")
    facts = prompt_facts(prompt, prior)
    if metric_prior and (hint := unit_hint(facts.ratio)):
        raise InputError(hint, remedy="give the unit of the prompt")
    notes = prompt.notes
    if guided and facts.points >= _FEW_FOR_AFFINE and facts.agreeing < _LEAST_AGREEING:
        notes = (
            *notes,
            f"only {100 * facts.agreeing:.0f} % of the prompt agrees with the prior: it may consist of outliers",
        )
    few = replace(pixelwise, fewer=True)
    overall = overall or GlobalOptions(scale_only_below=_FEW_FOR_AFFINE)
    made = prompt_condition(
        prior, prompt.depth, prompt.mask, pixelwise=few, overall=overall, fx_over_width=fx_over_width
    )
    return PreparedPrompt(made.values, facts, made.fit, notes)


def prompt_facts(prompt: MetricPrompt, prior: Tensor) -> PromptFacts:
    """How well a prior (H, W) disparity and a prompt go together, after one robust affine fit."""
    options = GlobalOptions(robust="huber", scale_only_below=_FEW_FOR_AFFINE)
    y = inverse(prompt.depth)
    fit = align_global(prior, y, prompt.mask, options)
    x, y = prior[prompt.mask].double(), y[prompt.mask].double()
    agreeing = ((fit.scale * x + fit.shift - y).abs() < _INLIER * y).double().mean()
    ratio = (x / y)[x > 0]
    return PromptFacts(
        prompt.points,
        fit.scale,
        fit.shift,
        fit.residual,
        float(agreeing),
        float(ratio.median()) if ratio.numel() else math.nan,
    )


def unit_hint(ratio: float) -> str | None:
    """A sentence when prompt depth over metric depth looks like another unit (1000, 100 and their inverses)."""
    for factor, name in ((1000.0, "millimetres"), (100.0, "centimetres"), (0.001, "kilometres")):
        if factor / 2.2 < ratio < factor * 2.2:
            return f"the prompt is {ratio:.4g} times as far as the picture suggests: it looks like {name}"
    return None
