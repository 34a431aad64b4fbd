"""The loss of Student-PointMap on student batches: MoGe-2's, and what small networks need besides."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from relief3d.losses.angles import vector_angle
from relief3d.losses.depth_derivatives import masked_mean, wide
from relief3d.losses.moge import no_autocast
from relief3d.losses.moge_objective import WEIGHTS, Label, MogeOptions, Term, moge_loss, moge_truth
from relief3d.methods.metric_anything.students.config import PointLosses
from relief3d.methods.metric_anything.students.samples import StudentBatch
from relief3d.models.metric.pointmap import PointMapOutput
from relief3d.train.task import LossReport

_TERMS: tuple[Term, ...] = ("global", "patch_4", "patch_16", "patch_64", "edge", "metric_scale", "mask")


def point_weights(options: PointLosses) -> Mapping[Label, Mapping[Term, float]]:
    """MoGe-2's weights without the terms whose patches are not named, and with the scale's own."""
    levels = {f"patch_{p.level}" for p in options.patches}
    out: dict[Label, Mapping[Term, float]] = {}
    for label, terms in WEIGHTS.items():
        kept = {t: w for t, w in terms.items() if not t.startswith("patch_") or t in levels}
        if "metric_scale" in kept:
            kept["metric_scale"] = options.metric_scale
        out[label] = kept
    return out


def point_map_loss(
    found: PointMapOutput, batch: StudentBatch, options: PointLosses, generator: torch.Generator
) -> LossReport:
    """Loss of a batch, and its parts before weighting.

    Args:
        found: (B, H, W, ...) of the network.
        batch: on the same device.
        options: weights.
        generator: on that device; chooses the anchors of local patches.
    """
    with no_autocast(found.points):
        truth = moge_truth(batch.depth, batch.depth > 0, batch.K, batch.kinds, sky=batch.sky)
        moge = MogeOptions(options.resolution, options.patches, weights=point_weights(options))
        loss = moge_loss(
            found.points, truth, mask=found.mask, scale=found.scale, options=moge, generator=generator
        )
        total = loss.total
        zero = total.new_zeros(())
        # Every step of every process names the same parts.
        parts: dict[str, Tensor] = {t: loss.terms[t].mean() if t in loss.terms else zero for t in _TERMS}
        for name, weight, term in (
            ("metric_depth", options.metric_depth, _metric_depth),
            ("rays", options.rays, _rays),
        ):
            if weight:
                parts[name] = term(found, truth.points, truth.valid).mean()
                total = total + weight * parts[name]
    return LossReport(total, parts)


def _metric_depth(found: PointMapOutput, points: Tensor, valid: Tensor) -> Tensor:
    """(B,) mean |ln (scale * z) - ln depth|."""
    z = wide(found.points[..., 2])
    scale = torch.ones_like(z[:, 0, 0]) if found.scale is None else wide(found.scale)
    said = z.clamp_min(1e-6).log() + scale.log()[:, None, None]
    true = torch.where(valid, points[..., 2], 1.0).log()
    return masked_mean((said - true).abs(), valid)


def _rays(found: PointMapOutput, points: Tensor, valid: Tensor) -> Tensor:
    """(B,) mean angle in radians between the rays of predicted and true points."""
    true = torch.where(valid[..., None], points, 1.0)
    angle = vector_angle(torch.where(valid[..., None], wide(found.points), true), true)
    return masked_mean(angle, valid)
