"""The depth of a keyframe from the submaps that hold it (VFM-Recon, Eq. 6; specification 2.7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.methods.vfm_recon.config import OverlapConfig
from relief3d.methods.vfm_recon.submaps import Submap


@dataclass(frozen=True)
class Prediction:
    """One submap's aligned depth of a keyframe.

    Attributes:
        depth: (H, W) float32 in the unit of the scene.
        valid: (H, W) bool, believed pixels.
        weight: (H, W) or () non-negative weight in a blend.
    """

    depth: Tensor
    valid: Tensor
    weight: Tensor


def triangle_window(place: int, count: int) -> float:
    """Weight of a place in a submap: 1 in the middle, falling evenly to 1 / (count / 2 + 1 / 2) at the ends."""
    half = (count + 1) / 2
    return 1 - abs(place - (count - 1) / 2) / half


def home(places: Sequence[tuple[int, int]], submaps: Sequence[Submap]) -> tuple[int, int]:
    """Of a keyframe's (submap, place) the one nearest to the middle of its submap; the earlier of equals."""
    return min(places, key=lambda p: (abs(p[1] - (len(submaps[p[0]].frames) - 1) / 2), p[0]))


def blend(predictions: Sequence[Prediction], max_difference: float) -> tuple[Tensor, Tensor, float]:
    """Weighted mean of log depth; pixels on which predictions differ by more than ``max_difference`` are dropped.

    Pixels that only one submap believes keep its value.

    Args:
        predictions: of one keyframe, maps of one size.
        max_difference: largest ratio minus 1.

    Returns:
        depth (H, W) float32, 0 where invalid; validity (H, W); share of the pixels with several predictions that
        were dropped.
    """
    first = predictions[0]
    if len(predictions) == 1:
        return torch.where(first.valid, first.depth, torch.zeros_like(first.depth)), first.valid, 0.0
    total, weights = torch.zeros_like(first.depth), torch.zeros_like(first.depth)
    low, high = torch.full_like(total, torch.inf), torch.zeros_like(total)
    count = torch.zeros_like(total, dtype=torch.int64)
    for p in predictions:
        # Where everything has weight 0 the plain mean counts.
        w = torch.where(p.valid, p.weight.clamp_min(1e-6), torch.zeros_like(total))
        total += w * torch.where(p.valid, p.depth, torch.ones_like(total)).log()
        weights += w
        low = torch.where(p.valid, torch.minimum(low, p.depth), low)
        high = torch.where(p.valid, torch.maximum(high, p.depth), high)
        count += p.valid
    several = count > 1
    differ = several & (high > (1 + max_difference) * low)
    valid = (count > 0) & ~differ
    depth = torch.where(valid, (total / weights.clamp_min(1e-12)).exp(), torch.zeros_like(total))
    share = float(differ.sum()) / max(1, int(several.sum()))
    return depth, valid, share


def combine(
    predictions: Sequence[Prediction], central: int, config: OverlapConfig
) -> list[tuple[Tensor, Tensor, float, float]]:
    """What represents a keyframe: (depth, validity, weight of the whole map, share of disagreeing pixels) each.

    Args:
        predictions: of the keyframe's submaps.
        central: which of them is the keyframe's home.
        config: see :class:`OverlapConfig`.
    """
    if config.mode == "blend":
        depth, valid, share = blend(predictions, config.max_difference)
        return [(depth, valid, 1.0, share)]
    chosen = [predictions[central]] if config.mode == "centre" else list(predictions)
    return [
        (torch.where(p.valid, p.depth, torch.zeros_like(p.depth)), p.valid, 1.0 / len(chosen), 0.0)
        for p in chosen
    ]
