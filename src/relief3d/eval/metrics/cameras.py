"""Camera metrics: relative rotation and translation accuracy, AUC, ATE and RPE.

Pairwise metrics need no alignment. For a pair (i, j) the relative pose is
``T_ij = cam_from_world_i @ world_from_cam_j``. Its rotation error is the geodesic angle between the
estimated and the reference rotation. Its translation error is the angle between the two translation
directions, because the scale of structure from motion is free.

Two conventions of the translation error are in use:

* ``"signed"`` (the default here): the full angle in [0, 180] degrees. A camera that moved backwards
  instead of forwards is 180 degrees wrong.
* ``"unsigned"`` (PoseDiffusion, VGGT and others): the angle between the lines, folded to [0, 90]
  degrees. A reversed direction counts as right.

Two conventions of the area under the curve of ``max(rotation error, translation error)``:

* ``"exact"`` (the default here): the integral of the recall curve from 0 to the threshold divided by the
  threshold, which equals the mean over pairs of ``max(0, 1 - error / threshold)``.
* ``"degree_bins"``: the mean of the recall at 1, 2, ..., threshold degrees (histogram of whole degrees),
  which is slightly higher.

A view without an estimate fails in every pair that contains it (error 180 degrees), so the number of pairs
is always that of the reference and a method gains nothing by leaving hard views out. A pair whose reference
cameras share one centre has no translation direction: it counts with its rotation error alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.alignment import umeyama

TranslationConvention = Literal["signed", "unsigned"]
AucConvention = Literal["exact", "degree_bins"]
FAILED_DEG = 180.0
DEFAULT_THRESHOLDS = (3.0, 5.0, 15.0, 30.0)


@dataclass(frozen=True)
class PairErrors:
    """Errors of all view pairs i < j, in degrees.

    Attributes:
        pairs: (P, 2) int64 view indices.
        rotation: (P,) float64; 180 for pairs with a view that has no estimate.
        translation: (P,) float64; 180 for failed pairs, NaN where the reference has no direction.
    """

    pairs: Tensor
    rotation: Tensor
    translation: Tensor

    @property
    def worst(self) -> Tensor:
        """(P,) the larger of both errors; the rotation error where the direction is undefined."""
        translation = torch.nan_to_num(self.translation, nan=0.0)
        return torch.maximum(self.rotation, translation)


@dataclass(frozen=True)
class TrajectoryErrors:
    """Errors after one global alignment, in the unit of the reference.

    Attributes:
        rmse, mean, median, max: statistics of the distances between camera centres.
        rotation_mean_deg: mean angle between aligned and reference orientations.
        scale: factor applied to the estimate (1 for a rigid alignment).
        count: number of views compared.
        path_length: length of the reference path through the compared views, in their order.
    """

    rmse: float
    mean: float
    median: float
    max: float
    rotation_mean_deg: float
    scale: float
    count: int
    path_length: float


@dataclass(frozen=True)
class CameraReport:
    """What :func:`evaluate_cameras` measures; all shares and areas are percentages."""

    registered: int
    total: int
    auc: dict[str, float] = field(default_factory=dict)
    rra: dict[str, float] = field(default_factory=dict)
    rta: dict[str, float] = field(default_factory=dict)
    ate_sim3: TrajectoryErrors | None = None
    ate_rigid: TrajectoryErrors | None = None
    rpe: RelativeErrors | None = None


@dataclass(frozen=True)
class RelativeErrors:
    """Relative pose error of views ``delta`` apart: translation in the reference's unit, rotation in degrees."""

    translation_rmse: float
    translation_mean: float
    rotation_rmse_deg: float
    rotation_mean_deg: float
    count: int


def _as_poses(poses: Sequence[Tensor | None] | Tensor) -> tuple[Tensor, Tensor]:
    """Stack poses to (N, 4, 4) float64 with identity where missing, and an (N,) flag of the present ones."""
    rows, present = [], []
    for pose in poses:
        known = pose is not None and bool(torch.isfinite(torch.as_tensor(pose)).all())
        present.append(known)
        rows.append(
            torch.as_tensor(pose, dtype=torch.float64) if known else torch.eye(4, dtype=torch.float64)
        )
    if not rows:
        return torch.zeros(0, 4, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.bool)
    return torch.stack(rows), torch.tensor(present)


def _invert(T: Tensor) -> Tensor:
    out = torch.zeros_like(T)
    R = T[..., :3, :3].transpose(-1, -2)
    out[..., :3, :3] = R
    out[..., :3, 3] = -(R @ T[..., :3, 3:])[..., 0]
    out[..., 3, 3] = 1.0
    return out


def rotation_angle_deg(Ra: Tensor, Rb: Tensor) -> Tensor:
    """Geodesic angle between rotations (*, 3, 3), in degrees (*,); exact near 0 and 180.

    Uses ``2 asin(|Ra - Rb|_F / (2 sqrt 2))``, which keeps full precision for small angles where the
    arc cosine of the trace loses half of the digits.
    """
    chord = torch.linalg.matrix_norm(Ra - Rb) / (2.0 * 2.0**0.5)
    return torch.rad2deg(2.0 * torch.asin(chord.clamp(max=1.0)))


def direction_angle_deg(a: Tensor, b: Tensor) -> Tensor:
    """Angle in [0, 180] degrees between vectors (*, 3); NaN where ``b`` is zero, 180 where only ``a`` is."""
    cross = torch.linalg.vector_norm(torch.linalg.cross(a, b), dim=-1)
    angle = torch.rad2deg(torch.atan2(cross, (a * b).sum(-1)))
    na, nb = torch.linalg.vector_norm(a, dim=-1), torch.linalg.vector_norm(b, dim=-1)
    angle = torch.where(na > 0, angle, torch.full_like(angle, FAILED_DEG))
    return torch.where(nb > 0, angle, torch.full_like(angle, float("nan")))


def pair_errors(
    estimated: Sequence[Tensor | None] | Tensor,
    reference: Sequence[Tensor | None] | Tensor,
    *,
    translation: TranslationConvention = "signed",
    min_baseline: float = 1e-9,
) -> PairErrors:
    """Relative pose errors of all pairs of views that have a reference.

    Args:
        estimated: N ``world_from_cam`` (4, 4), None for views that were not registered.
        reference: N ``world_from_cam`` (4, 4), None for views without reference (their pairs are left out).
        translation: see the module's description.
        min_baseline: reference centres closer than this (reference units) have no direction.

    Raises:
        InputError: when the two lists differ in length.
    """
    est, has_est = _as_poses(estimated)
    ref, has_ref = _as_poses(reference)
    if est.shape[0] != ref.shape[0]:
        raise InputError(f"{est.shape[0]} estimated cameras but {ref.shape[0]} reference cameras")
    index = torch.nonzero(has_ref)[:, 0]
    pairs = torch.combinations(index, 2) if index.numel() >= 2 else torch.zeros(0, 2, dtype=torch.int64)
    i, j = pairs[:, 0], pairs[:, 1]
    rel_est, rel_ref = _invert(est[i]) @ est[j], _invert(ref[i]) @ ref[j]
    rotation = rotation_angle_deg(rel_est[:, :3, :3], rel_ref[:, :3, :3])
    t_ref = rel_ref[:, :3, 3]
    apart = torch.linalg.vector_norm(t_ref, dim=-1, keepdim=True) > min_baseline
    t_ref = torch.where(apart, t_ref, torch.zeros_like(t_ref))
    angle = direction_angle_deg(rel_est[:, :3, 3], t_ref)
    if translation == "unsigned":
        angle = torch.minimum(angle, 180.0 - angle)
    failed = ~(has_est[i] & has_est[j])
    rotation = torch.where(failed, torch.full_like(rotation, FAILED_DEG), rotation)
    angle = torch.where(failed, torch.full_like(angle, FAILED_DEG), angle)
    return PairErrors(pairs, rotation, angle)


def recall_percent(errors_deg: Tensor, threshold_deg: float) -> float:
    """Percentage of errors (P,) below the threshold; NaN entries are left out; NaN without entries.

    This is RRA@threshold for rotation errors and RTA@threshold for translation errors.
    """
    errors = errors_deg[~torch.isnan(errors_deg)]
    if errors.numel() == 0:
        return float("nan")
    return 100.0 * float((errors < threshold_deg).to(torch.float64).mean())


def auc_percent(errors_deg: Tensor, threshold_deg: float, convention: AucConvention = "exact") -> float:
    """Area under the recall curve up to the threshold, in percent; NaN without pairs.

    Args:
        errors_deg: (P,) errors, usually :attr:`PairErrors.worst`.
        threshold_deg: upper end of the curve; a whole number for ``"degree_bins"``.
        convention: see the module's description.
    """
    if errors_deg.numel() == 0:
        return float("nan")
    errors = errors_deg.to(torch.float64)
    if convention == "exact":
        return 100.0 * float((1.0 - errors / threshold_deg).clamp(min=0.0).mean())
    if float(threshold_deg) != int(threshold_deg):
        raise InputError(f"AUC over whole degrees needs a whole threshold, got {threshold_deg}")
    recalls = [recall_percent(errors, float(t)) for t in range(1, int(threshold_deg) + 1)]
    return sum(recalls) / len(recalls)


def ate(
    estimated: Sequence[Tensor | None] | Tensor,
    reference: Sequence[Tensor | None] | Tensor,
    *,
    with_scale: bool = True,
) -> TrajectoryErrors | None:
    """Absolute trajectory error after a least-squares alignment of the camera centres (Umeyama 1991).

    Args:
        estimated: N ``world_from_cam`` (4, 4) or None.
        reference: the same; views with both are compared.
        with_scale: similarity (True) or rigid alignment.

    Returns:
        The errors, or None when fewer than three views can be compared.
    """
    est, has_est = _as_poses(estimated)
    ref, has_ref = _as_poses(reference)
    both = has_est & has_ref
    if int(both.sum()) < 3:
        return None
    est, ref = est[both], ref[both]
    s, R, t = umeyama(est[:, :3, 3], ref[:, :3, 3], with_scale=with_scale)
    centres = s * est[:, :3, 3] @ R.T + t
    distance = torch.linalg.vector_norm(centres - ref[:, :3, 3], dim=-1)
    turned = rotation_angle_deg(R @ est[:, :3, :3], ref[:, :3, :3])
    steps = torch.linalg.vector_norm(ref[1:, :3, 3] - ref[:-1, :3, 3], dim=-1)
    return TrajectoryErrors(
        rmse=float(distance.square().mean().sqrt()),
        mean=float(distance.mean()),
        median=float(distance.quantile(0.5)),
        max=float(distance.max()),
        rotation_mean_deg=float(turned.mean()),
        scale=float(s),
        count=int(both.sum()),
        path_length=float(steps.sum()),
    )


def rpe(
    estimated: Sequence[Tensor | None] | Tensor,
    reference: Sequence[Tensor | None] | Tensor,
    *,
    delta: int = 1,
    scale: float = 1.0,
) -> RelativeErrors | None:
    """Relative pose error of views ``delta`` apart (Sturm et al. 2012): ``inv(ref_rel) @ est_rel``.

    Args:
        estimated: N ``world_from_cam`` (4, 4) in order, or None.
        reference: the same; steps with a gap are skipped.
        delta: distance of the two views in the list.
        scale: factor from the estimate's unit to the reference's (``ate(...).scale``).

    Returns:
        The errors, or None without any pair.
    """
    est, has_est = _as_poses(estimated)
    ref, has_ref = _as_poses(reference)
    both = has_est & has_ref
    if delta < 1:
        raise InputError(f"the step of the relative pose error must be at least 1, got {delta}")
    use = both[:-delta] & both[delta:] if both.numel() > delta else torch.zeros(0, dtype=torch.bool)
    if not bool(use.any()):
        return None
    est = est.clone()
    est[:, :3, 3] *= scale
    rel_est = (_invert(est[:-delta]) @ est[delta:])[use]
    rel_ref = (_invert(ref[:-delta]) @ ref[delta:])[use]
    diff = _invert(rel_ref) @ rel_est
    shift = torch.linalg.vector_norm(diff[:, :3, 3], dim=-1)
    turn = rotation_angle_deg(diff[:, :3, :3], torch.eye(3, dtype=torch.float64).expand_as(diff[:, :3, :3]))
    return RelativeErrors(
        translation_rmse=float(shift.square().mean().sqrt()),
        translation_mean=float(shift.mean()),
        rotation_rmse_deg=float(turn.square().mean().sqrt()),
        rotation_mean_deg=float(turn.mean()),
        count=int(use.sum()),
    )


def evaluate_cameras(
    estimated: Sequence[Tensor | None] | Tensor,
    reference: Sequence[Tensor | None] | Tensor,
    *,
    thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
    translation: TranslationConvention = "signed",
    auc_convention: AucConvention = "exact",
) -> CameraReport:
    """All camera metrics of one reconstruction.

    Args:
        estimated: N ``world_from_cam`` (4, 4), None where unknown.
        reference: the same, in the same order.
        thresholds: degrees for RRA, RTA and AUC.
        translation: see the module's description.
        auc_convention: see the module's description.

    Raises:
        InputError: when fewer than two views have a reference, or the lists differ in length.
    """
    errors = pair_errors(estimated, reference, translation=translation)
    if errors.pairs.numel() == 0:
        raise InputError("camera evaluation needs at least two views with a reference pose")
    _, has_est = _as_poses(estimated)
    _, has_ref = _as_poses(reference)
    similarity = ate(estimated, reference, with_scale=True)
    names = {f"{t:g}": float(t) for t in thresholds}
    return CameraReport(
        registered=int((has_est & has_ref).sum()),
        total=int(has_ref.sum()),
        auc={name: auc_percent(errors.worst, t, auc_convention) for name, t in names.items()},
        rra={name: recall_percent(errors.rotation, t) for name, t in names.items()},
        rta={name: recall_percent(errors.translation, t) for name, t in names.items()},
        ate_sim3=similarity,
        ate_rigid=ate(estimated, reference, with_scale=False),
        rpe=None if similarity is None else rpe(estimated, reference, scale=similarity.scale),
    )
