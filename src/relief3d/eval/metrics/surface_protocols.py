"""What the published surface protocols share: scores from two lists of distances, thinning, surface tests.

The protocols themselves have a module each: :mod:`~relief3d.eval.metrics.mesh_transformerfusion`,
:mod:`~relief3d.eval.metrics.mesh_atlas`, :mod:`~relief3d.eval.metrics.mesh` ("plain") and
:mod:`~relief3d.eval.metrics.mesh_tanks`. Their figures cannot be compared with each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Mesh
from relief3d.core.errors import InputError
from relief3d.eval.metrics.mesh import visible_count
from relief3d.fusion.cleaning import face_areas, select_faces


@dataclass(frozen=True)
class SurfaceScores:
    """Distances in world units, shares in [0, 1].

    Attributes:
        accuracy: mean distance from the prediction to the reference.
        completeness: mean distance from the reference to the prediction.
        chamfer: mean of both.
        precision: share of predicted points near the reference.
        recall: share of reference points near the prediction.
        fscore: harmonic mean of precision and recall, 0 when both are 0.
    """

    accuracy: float
    completeness: float
    chamfer: float
    precision: float
    recall: float
    fscore: float


def fscore(precision: float, recall: float) -> float:
    """Harmonic mean; 0 when both are 0."""
    total = precision + recall
    return 2 * precision * recall / total if total > 0 else 0.0


def near_share(distances: Tensor, threshold: float, *, strict: bool) -> float:
    """Share of distances (N,) below the threshold; a distance equal to it counts unless ``strict``."""
    near = distances < threshold if strict else distances <= threshold
    return float(near.double().mean())


def score_distances(
    to_reference: Tensor, to_prediction: Tensor, threshold: float, *, strict: bool
) -> SurfaceScores:
    """Scores from the distances of both directions.

    Args:
        to_reference: (P,) from each predicted point to the reference: accuracy and precision.
        to_prediction: (R,) from each reference point to the prediction: completeness and recall.
        threshold: world units.
        strict: whether a distance equal to the threshold is too far.

    Raises:
        InputError: either list is empty.
    """
    if to_reference.numel() == 0 or to_prediction.numel() == 0:
        raise InputError("no valid points to compare")
    precision = near_share(to_reference, threshold, strict=strict)
    recall = near_share(to_prediction, threshold, strict=strict)
    accuracy, completeness = float(to_reference.double().mean()), float(to_prediction.double().mean())
    return SurfaceScores(
        accuracy, completeness, (accuracy + completeness) / 2, precision, recall, fscore(precision, recall)
    )


def has_surface(mesh: Mesh | None) -> bool:
    """Whether there is a mesh with at least one triangle of positive area."""
    return mesh is not None and mesh.faces.shape[0] > 0 and bool((face_areas(mesh).nan_to_num(0.0) > 0).any())


def voxel_downsample(points: Tensor, voxel_size: float) -> Tensor:
    """Mean of the points of every occupied cell, (M, 3) float64 in the order of the cells.

    The grid starts half a cell before the smallest coordinates, as Open3D's ``voxel_down_sample`` has it.

    Args:
        points: (N, 3).
        voxel_size: edge of a cell, unit of the points.

    Raises:
        InputError: a size that is not positive, or so small that cells cannot be numbered.
    """
    if not voxel_size > 0:
        raise InputError(f"the cell size must be positive, got {voxel_size}")
    points = points.detach().cpu().double()
    if points.shape[0] == 0:
        return points
    cell = torch.floor((points - (points.amin(0) - 0.5 * voxel_size)) / voxel_size).long()
    size = cell.amax(0) + 1
    if float(size.double().prod()) > 2.0**62:
        raise InputError(f"cells of {voxel_size:g} are too small for points that lie so far apart")
    key = (cell[:, 0] * size[1] + cell[:, 1]) * size[2] + cell[:, 2]
    _, inverse, count = torch.unique(key, return_inverse=True, return_counts=True)
    total = torch.zeros(count.shape[0], 3, dtype=torch.float64).index_add_(0, inverse, points)
    return total / count[:, None]


def seen_surface(mesh: Mesh, frames: Iterable[tuple[Camera, Tensor]], slack: float) -> Mesh:
    """The triangles whose centre or one of whose corners at least one camera sees (frustum and depth test).

    Args:
        mesh: in the world of the cameras.
        frames: posed pinhole cameras with (H, W) z-depth, 0 where unknown; read once, one at a time.
        slack: how far behind that depth a point still counts as seen; three voxels in the specification.
    """
    corners = mesh.vertices.double()[mesh.faces]
    points = torch.cat((mesh.vertices.double(), corners.mean(1)))
    seen = torch.zeros(points.shape[0], dtype=torch.bool)
    for camera, depth in frames:
        left = torch.nonzero(~seen)[:, 0]
        seen[left] = visible_count(points[left], [camera], [depth], slack) > 0
    vertex_seen, centre_seen = seen.split((mesh.vertices.shape[0], mesh.faces.shape[0]))
    return select_faces(mesh, vertex_seen[mesh.faces].any(1) | centre_seen)
