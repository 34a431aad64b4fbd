"""Point map and point cloud metrics of the multi-view papers (specification multiview.md 6.4 and 6.5).

Dense N-view metrics (map-anything, the basis of Reliev3R's tables): everything is moved to the first view's camera
frame and divided by the mean distance of the valid points from its origin, prediction and truth each by their own
(:func:`normalise_avg_dis`); no similarity is fitted. :func:`relative_error` is a distance over the true norm. The
inlier ratio comes in two forms: :func:`inliers_by_norm` compares NORMS, as the published code does, so a point at the
right distance in a wrong direction is an inlier; :func:`inliers_by_distance` compares positions.

Point cloud metrics (7-Scenes, NRGBD, DTU, ETH3D as in pi3's evaluation): :func:`score_point_maps`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.metrics.icp import icp
from relief3d.eval.metrics.mesh import nearest_points
from relief3d.geometry.alignment import umeyama
from relief3d.geometry.transforms import invert_rigid, transform_points

NORMAL_NEIGHBOURS = 30
"""Points, itself included, from which a normal is estimated (the default of Open3D, which the papers call)."""
_FARTHEST = 1e100
"""Squares of larger coordinates and their sums are beyond all numbers."""


@dataclass(frozen=True)
class NormalisedViews:
    """N views in the first camera's frame, divided by one factor; float64.

    Attributes:
        points: (N, H, W, 3).
        depth: (N, H, W) z-depth in each camera.
        world_from_cam: (N, 4, 4); the first is the identity.
        factor: mean distance of the valid points from the first camera, in the unit before.
    """

    points: Tensor
    depth: Tensor
    world_from_cam: Tensor
    factor: float


def normalise_avg_dis(
    world_points: Tensor, depth: Tensor, world_from_cam: Tensor, valid: Tensor
) -> NormalisedViews:
    """Normalisation "avg_dis" of map-anything.

    Args:
        world_points: (N, H, W, 3) in any common frame.
        depth: (N, H, W) z-depth in the same unit.
        world_from_cam: (N, 4, 4) rigid poses in that frame.
        valid: (N, H, W) bool, the mask of the TRUTH for prediction and truth alike.

    Raises:
        InputError: "no valid pixels", values that are not finite where the truth is known, or points that all lie in
            the first camera.
    """
    if not bool(valid.any()):
        raise InputError("no valid pixels", remedy="check the true depth and the mask")
    poses, points = world_from_cam.double(), world_points.double()
    if not bool(torch.isfinite(poses).all()) or not bool(torch.isfinite(points[valid]).all()):
        raise InputError("points or poses are not finite where the truth is known")
    first_from_world = invert_rigid(poses[0])
    points = transform_points(first_from_world, points.reshape(-1, 3)).reshape(points.shape)
    poses = first_from_world @ poses
    factor = float(points[valid].norm(dim=-1).mean())
    if not factor > 0:
        raise InputError("all points lie in the first camera, so their scale is unknown")
    poses[:, :3, 3] /= factor
    return NormalisedViews(points / factor, depth.double() / factor, poses, factor)


def relative_error(predicted: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean of |p - p*| / |p*| per view ("rel").

    Args:
        predicted: (*, H, W, C); C is 3 for points, 1 for depth.
        truth: the same shape.
        valid: (*, H, W) bool; pixels whose truth is exactly zero are left out too.

    Returns:
        (*,) float64; NaN for a view without valid pixels.

    Raises:
        InputError: shapes differ, "no valid pixels" (in no view), or a prediction that is not finite inside the mask.
    """
    p, g, mask, size = _prepared(predicted, truth, valid)
    return _mean((p - g).norm(dim=-1) / size, mask)


def inliers_by_norm(predicted: Tensor, truth: Tensor, valid: Tensor, threshold: float = 1.03) -> Tensor:
    """Share of pixels with max(|p|/|p*|, |p*|/|p|) < ``threshold`` ("tau" of the code); see :func:`relative_error`."""
    p, _, mask, size = _prepared(predicted, truth, valid)
    length = p.norm(dim=-1)
    ratio = torch.maximum(length / size, size / length)
    return _mean((ratio < threshold).double(), mask)


def inliers_by_distance(predicted: Tensor, truth: Tensor, valid: Tensor, share: float = 0.03) -> Tensor:
    """Share of pixels with |p - p*| < ``share`` |p*|, the true distance; see :func:`relative_error`."""
    p, g, mask, size = _prepared(predicted, truth, valid)
    return _mean(((p - g).norm(dim=-1) < share * size).double(), mask)


def view_mean(per_view: Tensor) -> float:
    """Mean over the views (N,) that have valid pixels; every view counts the same.

    Raises:
        InputError: no view has any.
    """
    known = per_view[~torch.isnan(per_view)]
    if known.numel() == 0:
        raise InputError("no valid pixels", remedy="check the true depth and the mask")
    return float(known.double().mean())


def ray_error_deg(predicted: Tensor, truth: Tensor) -> Tensor:
    """Mean angle 2 asin(|r - r*| / 2) between unit rays over ALL pixels of each view, in degrees.

    Args:
        predicted: (*, H, W, 3) ray directions of any length, camera frame.
        truth: the same.

    Returns:
        (*,) float64.
    """
    a, b = (torch.nn.functional.normalize(r.double(), dim=-1) for r in (predicted, truth))
    half = ((a - b).norm(dim=-1) / 2).clamp(max=1)
    return torch.rad2deg(2 * torch.asin(half)).mean((-2, -1))


def metric_scale_error(predicted_factor: float, true_factor: float) -> float:
    """|n_pred - n_gt| / n_gt of the factors of :func:`normalise_avg_dis`, for truths in metres."""
    return abs(predicted_factor - true_factor) / true_factor


def _prepared(predicted: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if predicted.shape != truth.shape or valid.shape != truth.shape[:-1]:
        raise InputError(
            f"prediction {tuple(predicted.shape)}, truth {tuple(truth.shape)} and mask {tuple(valid.shape)} "
            "must be (*, H, W, C), (*, H, W, C) and (*, H, W)"
        )
    g = truth.double()
    size = g.norm(dim=-1)
    mask = valid & (size > 0)
    if not bool(mask.any()):
        raise InputError("no valid pixels", remedy="check the true depth and the mask")
    p = torch.where(mask[..., None], predicted.double(), torch.ones_like(g))
    if not bool(torch.isfinite(p).all()):
        raise InputError(
            "the prediction is not finite where the truth is known", remedy="fill holes of the prediction"
        )
    return p, g, mask, torch.where(mask, size, torch.ones_like(size))


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    total = torch.where(mask, values, torch.zeros_like(values)).sum((-2, -1))
    return total / mask.sum((-2, -1))  # 0 / 0 is NaN: a view without truth


@dataclass(frozen=True)
class CloudScores:
    """Distances in the unit of the truth; normal consistency in [0, 1].

    Attributes:
        accuracy, accuracy_median: from the prediction to the nearest true point.
        completeness, completeness_median: from the truth to the nearest predicted point.
        normals_accuracy, normals_accuracy_median: |n . n'| of those pairs seen from the prediction.
        normals_completeness, normals_completeness_median: seen from the truth.
    """

    accuracy: float
    accuracy_median: float
    completeness: float
    completeness_median: float
    normals_accuracy: float
    normals_accuracy_median: float
    normals_completeness: float
    normals_completeness_median: float


def resize_point_maps(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Point maps (N, h, w, 3) at another size (H, W): bilinear with anti-aliasing, float64; unchanged if equal."""
    if tuple(points.shape[1:3]) == tuple(size):
        return points.double()
    channels = points.double().permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        channels, size, mode="bilinear", align_corners=False, antialias=True
    )
    return resized.permute(0, 2, 3, 1)


def estimate_normals(points: Tensor, neighbours: int = NORMAL_NEIGHBOURS) -> Tensor:
    """Unit normals (P, 3) float64, sign arbitrary: direction of least spread of the nearest points.

    Args:
        points: (P, 3), at least three.
        neighbours: how many points count, the point itself included; fewer when there are not as many.

    Raises:
        InputError: fewer than three points.
    """
    if points.shape[0] < 3:
        raise InputError(f"normals need at least three points, got {points.shape[0]}")
    from scipy.spatial import cKDTree

    xyz = points.detach().cpu().double()
    tree = cKDTree(xyz.numpy(), leafsize=12, balanced_tree=False)
    out = torch.empty_like(xyz)
    for start in range(
        0, xyz.shape[0], 100_000
    ):  # the neighbourhoods of all points at once would be 30 clouds
        part = xyz[start : start + 100_000]
        _, index = tree.query(part.numpy(), k=min(neighbours, xyz.shape[0]), workers=-1)
        near = xyz[torch.from_numpy(index)]
        near = near - near.mean(1, keepdim=True)
        out[start : start + 100_000] = torch.linalg.eigh(near.mT @ near).eigenvectors[..., 0]
    return out


def compare_clouds(predicted: Tensor, truth: Tensor, neighbours: int = NORMAL_NEIGHBOURS) -> CloudScores:
    """Accuracy, completeness and normal consistency of clouds that are already aligned.

    Args:
        predicted: (P, 3).
        truth: (Q, 3).
        neighbours: see :func:`estimate_normals`; normals of both clouds are estimated from their points.

    Raises:
        InputError: fewer than three points in either, or points that are not finite.
    """
    p, g = predicted.detach().cpu().double(), truth.detach().cpu().double()
    forward, to_truth = nearest_points(p, g)
    backward, to_predicted = nearest_points(g, p)
    np_, ng = estimate_normals(p, neighbours), estimate_normals(g, neighbours)
    ours = (np_ * ng[to_truth]).sum(-1).abs().numpy()
    theirs = (ng * np_[to_predicted]).sum(-1).abs().numpy()
    # numpy's median: torch's takes the lower of the two middle values, the papers' code their mean.
    return CloudScores(
        accuracy=float(forward.mean()),
        accuracy_median=float(np.median(forward.numpy())),
        completeness=float(backward.mean()),
        completeness_median=float(np.median(backward.numpy())),
        normals_accuracy=float(ours.mean()),
        normals_accuracy_median=float(np.median(ours)),
        normals_completeness=float(theirs.mean()),
        normals_completeness_median=float(np.median(theirs)),
    )


def score_point_maps(
    predicted: Tensor,
    truth: Tensor,
    valid: Tensor,
    icp_threshold: float = 0.1,
    neighbours: int = NORMAL_NEIGHBOURS,
) -> CloudScores:
    """Section 6.4: resize, similarity on corresponding pixels, rigid point-to-point ICP, then distances.

    Args:
        predicted: (N, h, w, 3) points in any common frame and scale.
        truth: (N, H, W, 3) points in a common frame.
        valid: (N, H, W) bool, where the truth counts.
        icp_threshold: largest distance of an ICP pair, unit of the truth (0.1 m; DTU 100 mm).
        neighbours: see :func:`estimate_normals`.

    Raises:
        InputError: "no valid pixels", or predictions that are not finite where the truth is known.
    """
    if predicted.shape[0] != truth.shape[0] or valid.shape != truth.shape[:-1]:
        raise InputError(
            f"prediction {tuple(predicted.shape)}, truth {tuple(truth.shape)} and mask {tuple(valid.shape)} do not fit"
        )
    if int(valid.sum()) < 3:
        raise InputError("no valid pixels", remedy="check the true depth and the mask")
    p = resize_point_maps(predicted.detach().cpu(), (truth.shape[1], truth.shape[2]))[valid]
    g = truth.detach().cpu().double()[valid]
    if not bool(torch.isfinite(p).all()):
        raise InputError("the predicted points are not finite where the truth is known")
    if float(p.abs().max()) > _FARTHEST:
        raise InputError("the predicted points are too far away to be aligned", remedy="check their unit")
    p = umeyama(p, g).apply(p)
    p = icp(p, g, threshold=icp_threshold).apply(p)
    return compare_clouds(p, g, neighbours)
