"""Poses and depth of held-out scenes, always beside what constants score (guide to miniature training, section 6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relief3d.core.contract import Batch, Prediction
from relief3d.eval.metrics.cameras import auc_percent, direction_angle_deg, rotation_angle_deg
from relief3d.eval.metrics.depth import evaluate_depth
from relief3d.geometry.transforms import invert_rigid
from relief3d.models.multiview.interface import InferenceOptions, Known, wrap

THRESHOLD_DEG = 30.0


@dataclass(frozen=True)
class Constants:
    """What is known without looking at the pictures, from training scenes.

    Attributes:
        trajectories: (C, N, 4, 4) ``world_from_cam`` of training scenes, views in random order.
        depth_map: (H, W) mean shape of the depth, relative to a sequence's median.
    """

    trajectories: Tensor
    depth_map: Tensor


def constants_of(batch: Batch) -> Constants:
    """Constant answers from a batch of training scenes (not augmented, as many views as are scored)."""
    assert batch.depth is not None
    assert batch.depth_valid is not None
    assert batch.world_from_cam is not None
    known = torch.where(batch.depth_valid, batch.depth, torch.nan).double()
    relative = (known / known.flatten(1).nanmedian(1).values[:, None, None, None]).log().flatten(0, 1)
    mean = relative.nanmean(0)
    return Constants(batch.world_from_cam.double(), torch.nan_to_num(mean, nan=0.0).exp().float())


def pair_angles(poses: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of relative rotations and of signed directions of motion, over all pairs of views.

    Args:
        poses: (..., N, 4, 4) ``world_from_cam``.
        truth: the same shape, or one that broadcasts.

    Returns:
        Degrees (..., N (N - 1) / 2) each; as :func:`relief3d.eval.metrics.cameras.pair_errors`, for many scenes.
    """
    views = truth.shape[-3]
    i, j = torch.combinations(torch.arange(views), 2).unbind(1)
    a, b = (invert_rigid(p.double())[..., i, :, :] @ p.double()[..., j, :, :] for p in (poses, truth))
    a, b = torch.broadcast_tensors(a, b)
    return rotation_angle_deg(a[..., :3, :3], b[..., :3, :3]), direction_angle_deg(
        a[..., :3, 3], b[..., :3, 3]
    )


def area_under_recall(poses: Tensor, truth: Tensor) -> float:
    """AUC@30 in percent over all pairs of all scenes; NaN for poses that are not finite."""
    rotation, direction = pair_angles(poses, truth)
    worst = torch.maximum(rotation, torch.nan_to_num(direction, nan=0.0))
    return auc_percent(worst.flatten(), THRESHOLD_DEG)


def sequence_abs_rel(depth: Tensor, batch: Batch) -> float:
    """AbsRel of (S, N, H, W) depth after one ratio of medians per sequence, averaged over sequences.

    Pixels with truth for which there is no usable depth count with an error of 1, so that leaving hard ones out does
    not help; NaN where a sequence has no usable depth at all.
    """
    assert batch.depth is not None
    assert batch.depth_valid is not None
    usable = batch.depth_valid & torch.isfinite(depth) & (depth > 0)
    if not bool(usable.flatten(1).any(1).all()):
        return float("nan")
    found = evaluate_depth(
        depth.flatten(1, 2), batch.depth.flatten(1, 2), batch.depth_valid.flatten(1, 2), alignment="median"
    )
    return float((found.kept * found.abs_rel + (1 - found.kept)).mean())


@torch.no_grad()
def predict(network: nn.Module, batch: Batch, chunk: int) -> list[Prediction]:
    """Predictions on the CPU, some scenes at a time, in float32."""
    model = wrap(network, InferenceOptions(precision="float32", chunk=None))
    device = next(network.parameters()).device
    out = []
    for first in range(0, len(batch.images), chunk):
        rows = slice(first, first + chunk)
        assert batch.K is not None
        found = model.predict(batch.images[rows].to(device), Known(K=batch.K[rows].to(device)))
        out.append(
            Prediction(
                depth=None if found.depth is None else found.depth.float().cpu(),
                depth_confidence=None if found.depth_confidence is None else found.depth_confidence.cpu(),
                world_from_cam=None if found.world_from_cam is None else found.world_from_cam.float().cpu(),
            )
        )
    return out


def score(network: nn.Module, batch: Batch, chunk: int) -> dict[str, float]:
    """Numbers of a network: ``auc30``, median ``rotation_deg`` and ``direction_deg``, ``abs_rel``."""
    found = predict(network, batch, chunk)
    poses = torch.cat([p.world_from_cam for p in found if p.world_from_cam is not None])
    depth = torch.cat([p.depth for p in found if p.depth is not None])
    assert batch.world_from_cam is not None
    rotation, direction = pair_angles(poses, batch.world_from_cam)
    return {
        "auc30": area_under_recall(poses, batch.world_from_cam),
        "rotation_deg": float(rotation.nanmedian()),
        "direction_deg": float(direction.nanmedian()),
        "abs_rel": sequence_abs_rel(depth, batch),
    }


def score_constants(constants: Constants, batch: Batch) -> dict[str, float]:
    """The same numbers of constant answers: the best of many constant trajectories, chosen with sight of the truth
    (so no constant of these scores more), one depth everywhere, and the mean depth map of training.
    """
    assert batch.depth is not None
    assert batch.world_from_cam is not None
    truth = batch.world_from_cam
    best = max(area_under_recall(c.expand_as(truth), truth) for c in constants.trajectories)
    return {
        "auc30_constant": best,
        "abs_rel_constant": sequence_abs_rel(torch.ones_like(batch.depth), batch),
        "abs_rel_mean_map": sequence_abs_rel(constants.depth_map.expand_as(batch.depth), batch),
    }
