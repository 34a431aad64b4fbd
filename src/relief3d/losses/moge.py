"""MoGe-2's losses term by term: points up to scale and shift, edges, normals, mask, metric scale.

Every term gives one value per picture, (B,), finite and 0 (with a zero gradient) where nothing is valid. True points
are in the camera frame in metres or another unit; predicted ones are affine. Alignments are exact minimisers
(:mod:`relief3d.geometry.affine_alignment`), differentiable with respect to the samples that fix them. Everything is
computed in float32 at least, also under autocast. Source: MoGe and MoGe-2 (Wang et al. 2025); MetricAnything
specification 7.8, and MoGe's published training code for the order of reductions.
"""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.affine_alignment import align_points_scale_z_shift
from relief3d.geometry.masked_resize import masked_nearest_resize
from relief3d.losses.angles import angle_error, corner_normal_error, smooth, vector_angle
from relief3d.losses.depth_derivatives import masked_mean, wide

NEAREST = 1e-5
"""Depth below which the weight 1 / z no longer grows."""
NEAREST_ALIGNED = 1e-2
"""The same for the alignment."""
HEAVIEST = 10.0
"""Largest weight, in units of the mean weight."""
LEAST_EDGE_ANGLE = math.radians(0.1)


class GlobalFit(NamedTuple):
    """Result of :func:`global_loss`.

    Attributes:
        loss: (B,).
        scale: (B,) true units per unit of the prediction, without gradient; 0 where no positive scale was found.
        shift: (B, 3) true units, along z alone, without gradient.
    """

    loss: Tensor
    scale: Tensor
    shift: Tensor


def no_autocast(values: Tensor) -> contextlib.AbstractContextManager[object]:
    """Full precision inside."""
    return torch.autocast(values.device.type, enabled=False)


def used_vectors(found: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted and true vectors (B, H, W, 3) of one type, harmless where they are not valid: 0 and 1.

    Raises:
        InputError: shapes do not fit.
    """
    if (
        found.shape != target.shape
        or target.shape[-1] != 3
        or valid.shape != target.shape[:-1]
        or target.ndim != 4
    ):
        raise InputError(
            f"predictions {tuple(found.shape)} and truth {tuple(target.shape)} must be (B, H, W, 3) with a mask "
            f"(B, H, W), not {tuple(valid.shape)}"
        )
    if valid.dtype != torch.bool:
        raise InputError(f"the mask must be boolean, not {valid.dtype}")
    found = wide(found)
    keep = valid[..., None]
    return torch.where(keep, found, 0.0), torch.where(keep, target.to(found.dtype), 1.0)


def global_loss(
    points: Tensor,
    target: Tensor,
    valid: Tensor,
    *,
    resolution: int = 64,
    trunc: float = 1.0,
    beta: float = 0.0,
    sparsity_aware: bool = False,
) -> GlobalFit:
    """Distance after the best scale and z shift, weighted by 1 / z.

    Args:
        points: (B, H, W, 3) predicted.
        target: (B, H, W, 3) true; anything outside of ``valid``.
        valid: (B, H, W) bool.
        resolution: side of the masked nearest reduction on which the alignment is computed.
        trunc: cost of a coordinate, relative to its depth, at which the alignment stops caring.
        beta: errors relative to depth below which they are squared.
        sparsity_aware: divide by the share of valid pixels over that of valid cells of the reduction.

    Raises:
        InputError: shapes do not fit.
    """
    with no_autocast(points):
        points, target = used_vectors(points, target, valid)
        both, cells = masked_nearest_resize(torch.cat([points, target], -1), valid, (resolution, resolution))
        p, g = both[..., :3].flatten(1, 2), both[..., 3:].flatten(1, 2)
        weight = cells.flatten(1) / g[..., 2].clamp_min(NEAREST_ALIGNED)
        scale, shift = align_points_scale_z_shift(p, g, weight, trunc)
        found = scale > 0
        scale = torch.where(found, scale, 0.0)
        shift = torch.where(found[:, None], shift, 0.0)
        used = valid & found[:, None, None]
        aligned = scale[:, None, None, None] * points + shift[:, None, None, :]
        weight = used / target[..., 2].clamp_min(NEAREST)
        mean = masked_mean(weight, valid)
        weight = torch.minimum(weight, HEAVIEST * mean[:, None, None])
        loss = _weighted_distance(aligned, target, used, weight, beta)
        if sparsity_aware:
            share, reduced = (m.flatten(1).float().mean(1) for m in (valid, cells))
            loss = loss / (share / reduced.clamp_min(1e-7) + 1e-7)
        return GlobalFit(loss, scale.detach(), shift.detach())


def _weighted_distance(points: Tensor, target: Tensor, used: Tensor, weight: Tensor, beta: float) -> Tensor:
    """(B,) mean over all pixels and coordinates, used or not; what is not used has no gradient."""
    difference = torch.where(used[..., None], points - target, 0.0)
    return smooth(difference.abs() * weight[..., None], beta).flatten(1).mean(1)


def edge_loss(points: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """(B,) angle between predicted and true differences of neighbouring points, over 2 max(H, W).

    Neither scale nor shift of the prediction matters. Shapes as in :func:`global_loss`.
    """
    with no_autocast(points):
        points, target = used_vectors(points, target, valid)
        total = torch.zeros(len(points), dtype=points.dtype, device=points.device)
        for axis in (1, 2):
            size = points.shape[axis]
            a, b, m = (
                (x.narrow(axis, 0, size - 1), x.narrow(axis, 1, size - 1)) for x in (points, target, valid)
            )
            error = angle_error(a[0] - a[1], b[0] - b[1], LEAST_EDGE_ANGLE)
            total = total + _mean_of_used(error, m[0] & m[1])
        return total / (2 * max(points.shape[1:3]))


def normal_loss(points: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """(B,) angle between the normals of predicted and true points at the corners of 2x2 quads, over 4 max(H, W)."""
    with no_autocast(points):
        points, target = used_vectors(points, target, valid)
        error = corner_normal_error(points, target, valid)
        return _mean(error) / (4 * max(points.shape[1:3]))


def normal_map_loss(normals: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """(B,) mean over all pixels of the squared angle to the true normal where that is valid; (B, H, W, 3) twice."""
    with no_autocast(normals):
        angle = vector_angle(*used_vectors(normals, target, valid))
        return _mean_of_used(angle.square(), valid)


def mask_loss(probability: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """(B,) binary cross entropy over all pixels, of those that are known to have a surface (or not).

    Args:
        probability: (B, H, W) of a surface.
        positive: (B, H, W) bool, there is one.
        negative: (B, H, W) bool, there is none (sky).
    """
    with no_autocast(probability):
        probability = wide(probability)
        error = torch.nn.functional.binary_cross_entropy(
            probability, positive.to(probability.dtype), reduction="none"
        )
        return _mean_of_used(error, positive | negative)


def mask_square_loss(probability: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """(B,) squared error instead of :func:`mask_loss`, as MoGe's first version has it."""
    with no_autocast(probability):
        probability = wide(probability)
        error = negative * probability.square() + positive * (1 - probability).square()
        return _mean(error)


def metric_scale_loss(scale: Tensor, aligned: Tensor, metric: Tensor | None = None) -> Tensor:
    """(B,) squared difference of logarithms of the predicted scale and that of the alignment.

    Args:
        scale: (B,) predicted, positive.
        aligned: (B,) of :func:`global_loss`; those that are not positive count nothing.
        metric: (B,) bool, the truth is in metres; None for all.
    """
    with no_autocast(scale):
        used = aligned > 0
        used = used if metric is None else used & metric
        target = torch.where(used, aligned.detach(), 1.0)
        predicted = torch.where(used, wide(scale), 1.0)
        return (predicted.log() - target.log()).square()


def _mean(error: Tensor) -> Tensor:
    """(B,) of (B, H, W); 0 without pixels."""
    return error.flatten(1).sum(1) / max(1, error[0].numel())


def _mean_of_used(error: Tensor, used: Tensor) -> Tensor:
    """(B,) mean over all pixels, where those that are not used count 0."""
    return _mean(torch.where(used, error, 0.0))
