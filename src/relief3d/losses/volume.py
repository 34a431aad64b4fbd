"""Losses of the volumetric network (FineRecon, VFM-Recon Eq. 10-12; specification 5.1.6 and 5.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BAND = 0.999
"""Truth counts as within the truncation band below this."""


def log_transformed(x: Tensor) -> Tensor:
    """sign(x) ln(|x| + 1): differences near the surface weigh more. Odd; 0 at 0."""
    return x.sign() * torch.log1p(x.abs())


def occupancy_truth(tsdf: Tensor) -> Tensor:
    """Occupancy of a grid of true distances.

    1 within the truncation band, 0 outside, NaN where the distance is unknown; then every cell with an occupied one
    among its 26 neighbours becomes occupied, unknown ones too.

    Args:
        tsdf: (X, Y, Z) signed distance over the truncation in [-1, 1], NaN where unknown.
    """
    unknown = torch.isnan(tsdf)
    occupied = (tsdf.abs() < BAND) & ~unknown
    near = torch.nn.functional.max_pool3d(occupied[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0
    out = near.to(tsdf.dtype)
    return torch.where(unknown & ~near, torch.nan, out)


@dataclass(frozen=True)
class VolumeLoss:
    """() each.

    Attributes:
        total: sum of both.
        distance: mean error of the log-transformed distance over ``surface_points`` points; 0 without any.
        occupancy: mean binary cross-entropy over ``points`` points; 0 without any.
        points: number of points with a truth that enough views see.
        surface_points: those of them near a surface, with a distance, and seen by the point branch.
    """

    total: Tensor
    distance: Tensor
    occupancy: Tensor
    points: Tensor
    surface_points: Tensor


def volume_loss(
    occupancy_logits: Tensor,
    distance_logits: Tensor,
    occupancy: Tensor,
    tsdf: Tensor,
    valid: Tensor,
    seen: Tensor,
) -> VolumeLoss:
    """Binary cross-entropy of occupancy and L1 of the log-transformed distance, as means over their points.

    Args:
        occupancy_logits: (B, N).
        distance_logits: (B, N); the distance is their tanh.
        occupancy: (B, N) 1, 0 or NaN for unknown.
        tsdf: (B, N) true distance over the truncation in [-1, 1], NaN for unknown.
        valid: (B, N) bool, the nearest voxel is seen by enough views.
        seen: (B, N) bool, the point is seen by a view.

    Without any point the result is 0 and still depends on both logits, so that processes stay in step.
    """
    logits, distance = occupancy_logits.float(), distance_logits.float()
    judged = valid & ~torch.isnan(occupancy)
    near = judged & (torch.where(judged, occupancy, 0.0) > 0.5) & ~torch.isnan(tsdf) & seen
    # Values of the others are replaced before any arithmetic, so that no NaN meets a gradient.
    target = torch.where(judged, occupancy, 0.0).float()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    truth = torch.where(near, tsdf, 0.0).float()
    error = (log_transformed(torch.tanh(distance)) - log_transformed(truth)).abs()
    occupancy_part = _mean(entropy, judged) + 0.0 * logits.sum()
    distance_part = _mean(error, near) + 0.0 * distance.sum()
    return VolumeLoss(occupancy_part + distance_part, distance_part, occupancy_part, judged.sum(), near.sum())


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, values, 0.0).sum() / where.sum().clamp_min(1)
