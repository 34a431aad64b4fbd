"""Robust similarity between predicted and given cameras from orientations and centres together.

Aligning centres alone (Umeyama) is ill posed for one camera, for cameras in one place and for cameras on a line, though
the orientations determine the rotation in every case. With residuals of both kinds and independent Gaussian errors the
best rotation is still a single orthogonal Procrustes problem: it maximises ``tr(R' M)`` with
``M = sum_i G_i P_i' / sigma_r^2 + s sum_i b_i a_i' / sigma_c^2`` (predicted and given orientations P_i, G_i, centred
centres a_i, b_i), so no case needs a rule of its own. The deviations sigma are estimated from the residuals, and wrong
cameras are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.geometry.alignment import weighted_median
from relief3d.geometry.rotations import matrix_from_svd9d, rotation_angle
from relief3d.geometry.transforms import make_similarity

LEAST_ROTATION = 1e-5
"""Radians: deviation of orientations is not believed to be smaller."""

LEAST_CENTRE = 1e-6
"""Likewise for centres, over their spread."""

CUT = 4.0
"""Cameras farther than this many robust deviations are left out."""

FORGIVEN_ROTATION, FORGIVEN_CENTRE = 0.0175, 0.02
"""Radians, and share of the spread, within which no camera is left out, however well the others agree."""

WEAK_CENTRES = 0.5
"""Centres whose residual exceeds this share of their spread tell no scale."""

WEAK_PARALLAX = 0.01
"""Spread of the centres over the median depth below which the scale is a guess."""

MOST_PAIRED = 256
"""Cameras whose pairs are compared for the first scale."""

ROUNDS = 10


@dataclass(frozen=True)
class PoseFit:
    """Similarity between two sets of cameras.

    Attributes:
        similarity: (4, 4) float64, given world from predicted world.
        scale_from_centres: what the centres say, None where they say nothing.
        inliers: (N,) bool cameras that agree.
        warnings: what was not determined, or who disagreed.
    """

    similarity: Tensor
    scale_from_centres: float | None
    inliers: Tensor
    warnings: tuple[str, ...]


def pose_similarity(
    predicted: Tensor,
    given: Tensor,
    *,
    depth: float | None = None,
    scale: float | None = None,
    fallback: float | None = None,
) -> PoseFit:
    """Similarity that takes predicted cameras to given ones.

    Args:
        predicted: (N, 4, 4) float64 world_from_cam, N >= 1.
        given: (N, 4, 4) float64 world_from_cam in another world.
        depth: median depth in the predicted unit, to tell a short baseline; None if unknown.
        scale: fixes the scale; None to estimate it.
        fallback: scale where the centres tell none; 1 when None.

    The scale starts from the median over pairs of cameras and the rotation from the camera that agrees best with the
    others, so that a quarter of the cameras may be wrong.
    """
    P, G = predicted[:, :3, :3], given[:, :3, :3]
    a, b = predicted[:, :3, 3], given[:, :3, 3]
    count = len(P)
    rotation = _median_rotation(G @ P.mT)
    found, spread = _pair_scale(a, b, rotation)
    inliers = torch.ones(count, dtype=torch.bool)
    for _ in range(ROUNDS):
        s = scale if scale is not None else (found if found is not None else fallback or 1.0)
        shift = _middle(b - s * a @ rotation.mT, inliers)
        turn = rotation_angle(rotation @ P, G)
        miss = (b - s * a @ rotation.mT - shift).norm(dim=-1)
        sigma_r, sigma_c = _deviations(turn, miss, inliers, spread)
        inliers = _agree(turn, miss, sigma_r, sigma_c, spread)
        if found is None:
            rotation = matrix_from_svd9d((G[inliers] @ P[inliers].mT).sum(0))
        else:
            rotation, found = _procrustes(P, G, a, b, inliers, s, _ratio(sigma_r, sigma_c, spread, count))
    if found is not None and count > 1:
        rest = b[inliers] - (found * a[inliers] @ rotation.mT)
        rest = (rest - rest.mean(0)).square().sum(-1).mean().sqrt()
        extent = (b[inliers] - b[inliers].mean(0)).square().sum(-1).mean().sqrt()
        if found <= 0 or rest > WEAK_CENTRES * extent:
            found = None
    s = scale if scale is not None else (found if found is not None else fallback or 1.0)
    shift = (b - s * a @ rotation.mT)[inliers].mean(0)
    warnings = _complaints(a, b, inliers, found, depth, scale is None and fallback is None)
    fit = make_similarity(torch.tensor(s, dtype=torch.float64), rotation, shift)
    return PoseFit(fit, found, inliers, tuple(warnings))


def _median_rotation(candidates: Tensor) -> Tensor:
    """Of (N, 3, 3) rotations the one with the least sum of angles to the others, improved by Weiszfeld's rounds."""
    some = candidates[:: max(1, len(candidates) // MOST_PAIRED)]
    angles = rotation_angle(some[:, None].expand(-1, len(some), 3, 3), some[None].expand(len(some), -1, 3, 3))
    best = some[angles.sum(1).argmin()]
    for _ in range(ROUNDS):
        weight = 1 / rotation_angle(best.expand_as(candidates), candidates).clamp_min(1e-6)
        best = matrix_from_svd9d((weight[:, None, None] * candidates).sum(0))
    return best


def _pair_scale(a: Tensor, b: Tensor, rotation: Tensor) -> tuple[float | None, float]:
    """Median over pairs of how much longer ``b`` is along the turned ``a``, and the median length in ``b``."""
    step = max(1, len(a) // MOST_PAIRED)
    a, b = a[::step] @ rotation.mT, b[::step]
    i, j = torch.triu_indices(len(a), len(a), 1)
    da, db = a[i] - a[j], b[i] - b[j]
    length, other = da.square().sum(-1), db.norm(dim=-1)
    spread = float(other.median()) if len(other) else 0.0
    # Differences of equal numbers are rounding errors of the coordinates.
    noise = 1e-9 * float(b.abs().amax()) + 1e-300
    moving = length.sqrt() > 1e-9 * float(a.abs().amax()) + 1e-300
    if spread <= noise or not bool(moving.any()):
        return None, 0.0 if spread <= noise else spread
    ratio = (da * db).sum(-1) / torch.where(moving, length, torch.ones_like(length))
    # Weights by the given lengths: a wrong prediction must not weigh more the farther off it is.
    scale = float(weighted_median(ratio, other * moving))
    return (scale if scale > 0 else None), spread


def _middle(shifts: Tensor, inliers: Tensor) -> Tensor:
    """Median of (N, 3) per coordinate over those that count."""
    return weighted_median(shifts.T, inliers.double().expand(3, -1))


def _deviations(turn: Tensor, miss: Tensor, inliers: Tensor, spread: float) -> tuple[float, float]:
    """Robust deviations of one coordinate of the rotation (radians) and of the centre."""
    # The median length of a Gaussian vector in three dimensions is 1.538 deviations.
    sigma_r = float(turn[inliers].median()) / 1.538
    sigma_c = float(miss[inliers].median()) / 1.538
    return max(sigma_r, LEAST_ROTATION), max(sigma_c, LEAST_CENTRE * spread, 1e-300)


def _ratio(sigma_r: float, sigma_c: float, spread: float, count: int) -> float:
    """Deviation of the rotations over that of the centres, drawn towards equal relative ones for few cameras, whose
    residuals say little about it.
    """
    relative = sigma_r * spread / sigma_c
    return relative ** (max(0, count - 2) / (count + 2)) / spread


def _agree(turn: Tensor, miss: Tensor, sigma_r: float, sigma_c: float, spread: float) -> Tensor:
    """(N,) bool: cameras whose orientation and centre both agree; all of them where none would be left."""
    if len(turn) < 3:
        return torch.ones_like(turn, dtype=torch.bool)
    # Deviations of few cameras come out too small (Rousseeuw and Leroy 1987).
    cut = CUT * 1.538 * (1 + 5 / (len(turn) - 2))
    turned = turn <= max(cut * sigma_r, FORGIVEN_ROTATION)
    near = miss <= max(cut * sigma_c, FORGIVEN_CENTRE * spread)
    good = turned & near
    return good if bool(good.any()) else torch.ones_like(good)


def _procrustes(
    P: Tensor,
    G: Tensor,
    a: Tensor,
    b: Tensor,
    inliers: Tensor,
    scale: float,
    sigmas: float,
) -> tuple[Tensor, float | None]:
    """Rotation for a given scale and ratio of deviations (rotations over centres), and the scale for that rotation
    (None where the centres do not move).
    """
    a, b = a[inliers] - a[inliers].mean(0), b[inliers] - b[inliers].mean(0)
    orientations = (G[inliers] @ P[inliers].mT).sum(0)
    # |G - R P|^2 counts every rotation angle twice.
    both = orientations / (2 * sigmas**2) + scale * b.T @ a
    rotation = matrix_from_svd9d(both)
    moved = float(a.square().sum())
    if moved == 0.0:
        return rotation, None
    return rotation, float((b * (a @ rotation.mT)).sum()) / moved


def _complaints(
    a: Tensor, b: Tensor, inliers: Tensor, found: float | None, depth: float | None, needed: bool
) -> list[str]:
    """What the user should know; ``needed`` when nothing else tells the scale."""
    out = []
    if len(a) == 1 and needed:
        out.append("one known pose tells the frame but not the scale, which is the network's")
    elif found is None and needed:
        out.append("the known cameras do not move apart consistently, so the scale is the network's")
    elif found is not None and depth is not None and needed:
        spread = float((a[inliers] - a[inliers].mean(0)).square().sum(-1).mean().sqrt())
        if spread < WEAK_PARALLAX * depth:
            out.append(
                "the known cameras are close together compared with the depth, so the scale is a guess"
            )
    wrong = int((~inliers).sum())
    if wrong:
        out.append(
            f"{wrong} of {len(a)} predicted poses disagree with the given ones and were not used to align"
        )
    return out
