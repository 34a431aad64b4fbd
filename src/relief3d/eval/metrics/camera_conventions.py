"""Camera errors in the exact conventions of the multi-view papers (specification multiview.md 6.2, 6.3, 6.5).

:mod:`relief3d.eval.metrics.cameras` holds this project's own conventions. The functions here reproduce what the
evaluation code behind the published tables computes, each under its own name, in float64:

* :func:`pi3_pair_errors`: relative pose ``T_j T_i^-1`` of world-to-camera matrices, so that translation directions
  stand in camera j (VGGT, pi3, SelfEvo);
* :func:`map_anything_pair_errors`: ``T_i^-1 T_j`` of camera-to-world matrices, directions in camera i. Rotation errors
  are equal, translation errors differ when rotations are wrong;
* :func:`auc_unit_bins`: histogram with the T bins [0, 1), ..., [T - 1, T];
* :func:`auc_torch_bins`: the variant with T + 1 bins over [0, T]; never mix the two;
* :func:`ate_rigid_mean` (map-anything) and :func:`ate_sim3_rmse`, :func:`rpe_sim3` (evo, as pi3 calls it).

The sign of a translation direction is ignored everywhere. A pair whose true cameras share one centre has no direction;
these conventions count it with 90 degrees, whatever was predicted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.metrics.cameras import RelativeErrors, TrajectoryErrors, ate, rpe
from relief3d.geometry.rotations import quat_wxyz_from_matrix
from relief3d.geometry.transforms import invert_rigid

NOT_FINITE_DEG = 1e6
"""What an error counts that is not a number."""
WORST_ROTATION_DEG = 180.0
WORST_TRANSLATION_DEG = 90.0
_TINY = 1e-15


@dataclass(frozen=True)
class PairAngles:
    """Errors of all pairs i < j in the order (0,1), (0,2), ..., (1,2), ...; (P,) float64 degrees each."""

    rotation: Tensor
    translation: Tensor

    @property
    def worst(self) -> Tensor:
        """(P,) the larger of both."""
        return torch.maximum(self.rotation, self.translation)


def worst_angles(views: int) -> PairAngles:
    """Errors of N views of which nothing is known: 180 degrees of rotation and 90 of translation for every pair."""
    count = views * (views - 1) // 2
    return PairAngles(
        torch.full((count,), WORST_ROTATION_DEG, dtype=torch.float64),
        torch.full((count,), WORST_TRANSLATION_DEG, dtype=torch.float64),
    )


def pair_indices(views: int) -> Tensor:
    """(P, 2) int64 indices i < j of all unordered pairs of N views, P = N (N - 1) / 2."""
    return torch.combinations(torch.arange(views), 2).reshape(-1, 2)


def pi3_pair_errors(pred_cam_from_world: Tensor, true_cam_from_world: Tensor) -> PairAngles:
    """Errors of all relative poses ``T_j T_i^-1`` of world-to-camera matrices (section 6.2).

    Rotation: ``arccos(1 - 2 max(1 - <q, q*>^2, 1e-15))`` of unit quaternions. Translation: the angle between the lines
    of the two directions, in [0, 90]. Perfect poses therefore have an error of about 4e-6 degrees, not 0.

    Args:
        pred_cam_from_world: (N, 4, 4), any gauge and scale; entries may be non-finite where a model failed.
        true_cam_from_world: (N, 4, 4).

    Returns:
        Errors in degrees; :data:`NOT_FINITE_DEG` where a pair is not finite.

    Raises:
        InputError: shapes differ, or fewer than two views.
    """
    pred, true = _checked(pred_cam_from_world, true_cam_from_world)
    i, j = pair_indices(true.shape[0]).unbind(-1)
    return _angles(pred[j] @ invert_rigid(pred[i]), true[j] @ invert_rigid(true[i]))


def map_anything_pair_errors(pred_world_from_cam: Tensor, true_world_from_cam: Tensor) -> PairAngles:
    """Errors of all relative poses ``T_i^-1 T_j`` of camera-to-world matrices (section 6.2, last paragraph).

    Args:
        pred_world_from_cam: (N, 4, 4), any gauge and scale; entries may be non-finite where a model failed.
        true_world_from_cam: (N, 4, 4).

    Returns:
        Errors in degrees; :data:`NOT_FINITE_DEG` where a pair is not finite.

    Raises:
        InputError: shapes differ, or fewer than two views.
    """
    pred, true = _checked(pred_world_from_cam, true_world_from_cam)
    i, j = pair_indices(true.shape[0]).unbind(-1)
    return _angles(invert_rigid(pred[i]) @ pred[j], invert_rigid(true[i]) @ true[j])


def pair_baselines(true_world_from_cam: Tensor) -> Tensor:
    """(P,) distances of the camera centres of all pairs i < j, in the unit of (N, 4, 4) camera-to-world poses."""
    centres = true_world_from_cam.double()[:, :3, 3]
    i, j = pair_indices(centres.shape[0]).unbind(-1)
    return (centres[i] - centres[j]).norm(dim=-1)


def accuracy_percent(errors: Tensor, threshold: float) -> float:
    """Percentage of errors (P,) strictly below the threshold: RRA@k of rotation, RTA@k of translation errors.

    Raises:
        InputError: no pairs.
    """
    _need_pairs(errors)
    return 100.0 * float((errors < threshold).double().mean())


def auc_unit_bins(worst: Tensor, threshold: int) -> float:
    """Area under the accuracy curve in percent: mean of the cumulative shares of the bins [0,1), ..., [T-1,T].

    The last bin is closed. Errors above T are in no bin but count in the number of pairs.

    Args:
        worst: (P,) degrees, the larger of rotation and translation error.
        threshold: T, whole degrees.

    Raises:
        InputError: no pairs, or a threshold below 1.
    """
    whole = _whole(threshold)
    return _cumulative_mean(worst, torch.arange(whole + 1, dtype=torch.float64))


def auc_torch_bins(worst: Tensor, threshold: int) -> float:
    """The variant with T + 1 equal bins over [0, T] (``torch.histc``), in percent; otherwise as :func:`auc_unit_bins`.

    Raises:
        InputError: no pairs, or a threshold below 1.
    """
    whole = _whole(threshold)
    return _cumulative_mean(worst, torch.linspace(0, whole, whole + 2, dtype=torch.float64))


def ate_rigid_mean(pred_world_from_cam: Tensor, true_world_from_cam: Tensor) -> float:
    """Mean distance of camera centres after a rigid alignment without scale (map-anything's "pose_ate_rmse", 6.5).

    Args:
        pred_world_from_cam: (N, 4, 4), with translations already normalised.
        true_world_from_cam: (N, 4, 4).

    Raises:
        InputError: shapes differ, fewer than three views, or poses that are not finite.
    """
    return _trajectory(pred_world_from_cam, true_world_from_cam, with_scale=False).mean


def ate_sim3_rmse(pred_world_from_cam: Tensor, true_world_from_cam: Tensor) -> float:
    """Root mean squared distance of camera centres after Umeyama's similarity, in the unit of the truth (6.3).

    Args:
        pred_world_from_cam: (N, 4, 4), any gauge and scale.
        true_world_from_cam: (N, 4, 4).

    Raises:
        InputError: shapes differ, fewer than three views, or poses that are not finite.
    """
    return _trajectory(pred_world_from_cam, true_world_from_cam, with_scale=True).rmse


def rpe_sim3(pred_world_from_cam: Tensor, true_world_from_cam: Tensor, delta: int = 1) -> RelativeErrors:
    """Relative pose error of all pairs (i, i + delta) after the similarity of :func:`ate_sim3_rmse` (6.3).

    Rotation and translation of the alignment cancel in a relative pose; only its scale matters.

    Args:
        pred_world_from_cam: (N, 4, 4), any gauge and scale.
        true_world_from_cam: (N, 4, 4).
        delta: frames between the two views.

    Raises:
        InputError: shapes differ, fewer than three views or not more than ``delta``, or poses that are not finite.
    """
    scale = _trajectory(pred_world_from_cam, true_world_from_cam, with_scale=True).scale
    errors = rpe(list(pred_world_from_cam), list(true_world_from_cam), delta=delta, scale=scale)
    if errors is None:
        raise InputError(f"no two of {pred_world_from_cam.shape[0]} views are {delta} frames apart")
    return errors


def _checked(pred: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    if pred.shape != true.shape or true.ndim != 3 or true.shape[1:] != (4, 4):
        raise InputError(
            f"predicted poses {tuple(pred.shape)} and true poses {tuple(true.shape)} must both be (N, 4, 4)"
        )
    if true.shape[0] < 2:
        raise InputError("camera errors need at least two views")
    return pred.double(), true.double()


def _angles(pred: Tensor, true: Tensor) -> PairAngles:
    q, r = quat_wxyz_from_matrix(pred[:, :3, :3]), quat_wxyz_from_matrix(true[:, :3, :3])
    loss = (1 - (q * r).sum(-1).square()).clamp_min(_TINY)
    rotation = torch.rad2deg(torch.arccos(1 - 2 * loss))
    a, b = (t[:, :3, 3] / (t[:, :3, 3].norm(dim=-1, keepdim=True) + _TINY) for t in (pred, true))
    loss = (1 - (a * b).sum(-1).square()).clamp_min(_TINY)
    translation = torch.rad2deg(torch.arccos((1 - loss).clamp_min(0).sqrt()))
    translation = torch.minimum(translation, (180 - translation).abs())
    finite = torch.isfinite(pred).flatten(1).all(-1) & torch.isfinite(true).flatten(1).all(-1)
    return PairAngles(_finite(rotation, finite), _finite(translation, finite))


def _finite(angle: Tensor, finite: Tensor) -> Tensor:
    return torch.where(finite & torch.isfinite(angle), angle, torch.full_like(angle, NOT_FINITE_DEG))


def _need_pairs(errors: Tensor) -> None:
    if errors.numel() == 0:
        raise InputError("no pairs of cameras to measure")


def _whole(threshold: int) -> int:
    if threshold < 1 or int(threshold) != threshold:
        raise InputError(f"the area under the curve needs a whole number of degrees, got {threshold}")
    return int(threshold)


def _cumulative_mean(errors: Tensor, edges: Tensor) -> float:
    _need_pairs(errors)
    values = errors.detach().double().cpu()
    inside = values[values <= edges[-1]]
    bins = torch.bucketize(
        inside, edges[1:-1], right=True
    )  # an inner edge opens the next bin; the last is closed
    counts = torch.bincount(bins, minlength=edges.numel() - 1)
    return 100.0 * float(counts.cumsum(0).double().mean()) / values.numel()


def _trajectory(pred: Tensor, true: Tensor, with_scale: bool) -> TrajectoryErrors:
    pred, true = _checked(pred, true)
    if not bool(torch.isfinite(pred).all() and torch.isfinite(true).all()):
        raise InputError("camera poses to align must be finite")
    errors = ate(list(pred), list(true), with_scale=with_scale)
    if errors is None:
        raise InputError(f"aligning trajectories needs at least three views, got {true.shape[0]}")
    if not math.isfinite(errors.rmse):
        raise InputError("camera poses to align are too far apart to be measured", remedy="check their unit")
    return errors
