"""Losses of the lean prompted network (:mod:`relief3d.models.metric.refiner`), in log inverse depth.

Errors are relative (a log), so near and far count alike; measured truth loses its worst fifth, as in the teacher's
robust mean (MetricAnything, section 3.2), and has no say about outlines, since sensors and reconstructions blur them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.losses.depth_derivatives import derivative_error, masked_mean, trimmed_mean, wide

_FAR = 3.0
"""Largest error of log inverse depth that counts (a factor of twenty)."""
_WIDTH = 0.03
"""Scale of the Laplace distribution about each candidate, in log inverse depth."""
_HOPELESS = 20.0
_OUTLINE = 0.1
"""Difference of log inverse depth within two pixels that makes an outline."""


@dataclass(frozen=True)
class PromptedOptions:
    """Weights.

    Attributes:
        value: on the error of the result.
        error: on how well the network knows its own error (Laplace likelihood; gradients stop at the result).
        mixture: on the error of the choice among candidates.
        choice: on how unlikely the choice makes the truth (see :func:`unlikelihood`), so that outlines are decided and
            not averaged.
        edges: on derivatives over several scales, for exact truth.
        outlines: how much more pixels within two of an outline of exact truth count.
        doubt: on telling wrong points from right ones.
        trim: share of the worst pixels left out where truth is measured.
        wrong: difference of log inverse depth beyond which a point counts as wrong.
        balance: divide a sample's loss by the error of its triangulated points plus ``floor``, so that easy prompts
            count as much as hard ones: what is asked for is to be better than interpolation everywhere.
        floor: see ``balance``; also what the quotient is multiplied with.
    """

    value: float = 1.0
    error: float = 0.05
    mixture: float = 0.5
    choice: float = 0.1
    edges: float = 0.5
    outlines: float = 4.0
    doubt: float = 0.05
    trim: float = 0.2
    wrong: float = 0.1
    balance: bool = True
    floor: float = 0.02


@dataclass(frozen=True)
class PromptedLoss:
    """(B,) each: their weighted sum, and the terms without weights."""

    total: Tensor
    value: Tensor
    error: Tensor
    mixture: Tensor
    choice: Tensor
    edges: Tensor
    doubt: Tensor


def prompted_loss(
    log_inverse: Tensor,
    log_error: Tensor,
    mixture: Tensor,
    doubt: Tensor,
    truth: Tensor,
    valid: Tensor,
    exact: Tensor,
    off: Tensor,
    known: Tensor,
    interpolated: Tensor,
    unlikely: Tensor,
    options: PromptedOptions = PromptedOptions(),
) -> PromptedLoss:
    """Loss of every sample.

    Args:
        log_inverse: (B, H, W) result.
        log_error: (B, H, W) log of its expected absolute error.
        mixture: (B, H, W) choice among candidates.
        doubt: (B, P) logit that a point is wrong.
        truth: (B, H, W) log inverse depth in the same units; anything outside of ``valid``.
        valid: (B, H, W) bool.
        exact: (B,) bool, whether truth is rendered rather than measured.
        off: (B, P) value of each point less the truth at its place.
        known: (B, P) bool, which of these are points with a truth.
        interpolated: (B, H / 2, W / 2) triangulated points, against which samples are balanced.
        unlikely: (B, H, W) see :func:`unlikelihood`.
        options: weights.
    """
    log_inverse, log_error, mixture, doubt = (wide(t) for t in (log_inverse, log_error, mixture, doubt))
    truth = torch.where(valid, truth, log_inverse.detach())
    error = (log_inverse - truth).abs().clamp(max=_FAR)
    chosen = (mixture - truth).abs().clamp(max=_FAR)

    weight = torch.where(valid, 1 + options.outlines * near_outline(truth, valid), 0.0)

    def mean(values: Tensor) -> Tensor:
        whole = (weight * values).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1)
        return torch.where(exact, whole, trimmed_mean(values, valid, options.trim))

    likelihood = masked_mean(error.detach() * torch.exp(-log_error) + log_error, valid)
    edges = torch.where(
        exact, derivative_error(log_inverse - truth, valid, scales=4), torch.zeros_like(likelihood)
    )
    wrong = F.binary_cross_entropy_with_logits(doubt, (off.abs() > options.wrong).float(), reduction="none")
    doubted = torch.where(known, wrong, 0.0).sum(1) / known.sum(1).clamp(min=1)
    value, mixed, choice = mean(error), mean(chosen), mean(unlikely)
    shape = options.value * value + options.mixture * mixed + options.edges * edges
    if options.balance:
        plain = (_doubled(wide(interpolated)) - truth).abs().clamp(max=_FAR)
        shape = shape * (options.floor / (mean(plain).detach() + options.floor))
    total = shape + options.error * likelihood + options.doubt * doubted + options.choice * choice
    return PromptedLoss(total, value, likelihood, mixed, choice, edges, doubted)


def near_outline(truth: Tensor, valid: Tensor) -> Tensor:
    """(B, H, W) 1 where known log inverse depth differs by a tenth within two pixels, else 0."""
    nearest = F.max_pool2d(torch.where(valid, truth, -torch.inf), 5, 1, 2)
    farthest = -F.max_pool2d(torch.where(valid, -truth, -torch.inf), 5, 1, 2)
    return (nearest - farthest > _OUTLINE).to(truth.dtype)


def unlikelihood(candidates: Tensor, log_weight: Tensor, truth: Tensor) -> Tensor:
    """Negative log likelihood of the truth under a mixture of Laplace distributions about the candidates.

    Only the weights learn from it: the values are told where they are wrong by the error of the result.

    Args:
        candidates: (B, C, H, W) log inverse depth.
        log_weight: (B, C, H, W) log of weights that sum to one.
        truth: (B, H, W) in the same units, finite everywhere.

    Returns:
        (B, H, W), without the constant of normalisation.
    """
    far = (wide(candidates).detach() - truth[:, None]).abs() / _WIDTH
    return -(wide(log_weight) - far.clamp(max=_HOPELESS)).logsumexp(1)


def _doubled(coarse: Tensor) -> Tensor:
    """(B, h, w) to (B, 2h, 2w), cell by cell."""
    return coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
