"""Mesh metrics, protocol "plain": area-uniform samples of both surfaces, nearest-point distances.

Accuracy and precision look from the prediction to the reference, completeness and recall from the
reference to the prediction. Distances are not clamped. Thresholds are world units, or shares of the
diagonal of the reference's bounding box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Camera, Mesh
from relief3d.core.errors import InputError
from relief3d.core.optional import require
from relief3d.fusion.open3d_backend import nearest_distances as open3d_nearest
from relief3d.render.open3d_backend import open3d_status

NearestBackend = Literal["auto", "scipy", "open3d"]


@dataclass(frozen=True)
class SurfaceSamples:
    """Points (N, 3) float64 on a surface, unit normals (N, 3) float64 or None, and their faces (N,)."""

    points: Tensor
    normals: Tensor | None = None
    faces: Tensor | None = None


@dataclass(frozen=True)
class ThresholdScore:
    """Precision, recall and F-score in [0, 1] at one distance.

    Attributes:
        threshold: distance in world units; a point counts when it is at most this far.
        share: the threshold as a share of the reference's diagonal.
    """

    threshold: float
    share: float
    precision: float
    recall: float
    fscore: float


@dataclass(frozen=True)
class MeshMetrics:
    """What :func:`evaluate_points` and :func:`evaluate_meshes` return; distances in world units.

    Attributes:
        accuracy, accuracy_median: distance from the prediction to the reference.
        completeness, completeness_median: distance from the reference to the prediction.
        chamfer_l1: mean of accuracy and completeness.
        chamfer_l2: mean of the two mean squared distances, squared units.
        normal_consistency: mean |cos| between normals of nearest points, both ways; None without normals.
        diagonal: of the reference's bounding box.
        scores: one per threshold.
        samples_predicted, samples_reference: number of points compared.
    """

    accuracy: float
    accuracy_median: float
    completeness: float
    completeness_median: float
    chamfer_l1: float
    chamfer_l2: float
    normal_consistency: float | None
    diagonal: float
    scores: tuple[ThresholdScore, ...]
    samples_predicted: int
    samples_reference: int


def sample_surface(mesh: Mesh, count: int, generator: torch.Generator) -> SurfaceSamples:
    """Points spread uniformly over the area of a mesh.

    Args:
        mesh: with at least one face of positive area.
        count: number of points.
        generator: CPU generator; the same seed gives the same points.

    Raises:
        InputError: when the mesh has no surface.
    """
    vertices = mesh.vertices.detach().cpu().double()
    corners = vertices[mesh.faces.cpu()]
    cross = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = 0.5 * cross.norm(dim=-1).nan_to_num(0.0)
    total = torch.cumsum(area, 0)
    if total.numel() == 0 or not float(total[-1]) > 0:
        raise InputError(
            "the mesh has no surface to sample", remedy="check that the reconstruction succeeded"
        )
    where = torch.rand(count, generator=generator, dtype=torch.float64) * total[-1]
    face = torch.searchsorted(total, where, right=True).clamp(max=area.shape[0] - 1)
    # The square root makes the density uniform over the triangle.
    first, second = torch.rand(2, count, generator=generator, dtype=torch.float64)
    root = first.sqrt()
    a, b, c = corners[face].unbind(1)
    points = (1 - root)[:, None] * a + (root * (1 - second))[:, None] * b + (root * second)[:, None] * c
    return SurfaceSamples(points, torch.nn.functional.normalize(cross[face], dim=-1), face)


def nearest_points(
    query: Tensor, reference: Tensor, backend: NearestBackend = "auto"
) -> tuple[Tensor, Tensor]:
    """Distance (N,) float64 and index (N,) int64 of the nearest of (M, 3) points for each of (N, 3).

    ``auto`` takes Open3D when it can be loaded, otherwise scipy; both are exact.

    Raises:
        InputError: when either set is empty or not finite.
    """
    if query.shape[0] == 0 or reference.shape[0] == 0:
        raise InputError("nearest points of an empty set do not exist")
    if not bool(torch.isfinite(query).all()) or not bool(torch.isfinite(reference).all()):
        raise InputError("points to compare must be finite")
    if backend == "open3d" or (backend == "auto" and open3d_status()[0]):
        return open3d_nearest(query, reference)
    spatial = require("scipy.spatial", extra="mesh", purpose="nearest neighbours")
    # A balanced, compact tree costs more to build than it saves on one pass of queries.
    tree = spatial.cKDTree(
        reference.detach().cpu().double().numpy(), leafsize=12, balanced_tree=False, compact_nodes=True
    )
    distance, index = tree.query(query.detach().cpu().double().numpy(), workers=-1)
    return torch.from_numpy(distance), torch.from_numpy(index.astype(np.int64))


def bounding_diagonal(points: Tensor) -> float:
    """Length of the diagonal of the bounding box of (N, 3) points."""
    return float((points.amax(0) - points.amin(0)).double().norm())


def evaluate_points(
    predicted: SurfaceSamples,
    reference: SurfaceSamples,
    thresholds: Sequence[float],
    *,
    relative: bool = False,
    diagonal: float | None = None,
    backend: NearestBackend = "auto",
) -> MeshMetrics:
    """Compare two point sets; see :class:`MeshMetrics`.

    Args:
        predicted: with normals when normal consistency is wanted.
        reference: likewise.
        thresholds: world units, or shares of the diagonal when ``relative``.
        relative: what the thresholds mean.
        diagonal: of the scene; None takes the bounding box of the reference points.
        backend: nearest-neighbour search.

    Raises:
        InputError: for empty sets or thresholds that are not positive.
    """
    if any(not t > 0 for t in thresholds):
        raise InputError("thresholds must be positive")
    forward, forward_index = nearest_points(predicted.points, reference.points, backend)
    backward, backward_index = nearest_points(reference.points, predicted.points, backend)
    size = bounding_diagonal(reference.points) if diagonal is None else diagonal
    scores = []
    for given in thresholds:
        limit = given * size if relative else given
        precision = float((forward <= limit).double().mean())
        recall = float((backward <= limit).double().mean())
        total = precision + recall
        fscore = 2 * precision * recall / total if total > 0 else 0.0
        scores.append(ThresholdScore(limit, limit / size if size > 0 else 0.0, precision, recall, fscore))
    consistency = None
    if predicted.normals is not None and reference.normals is not None:
        one = (predicted.normals * reference.normals[forward_index]).sum(-1).abs().mean()
        two = (reference.normals * predicted.normals[backward_index]).sum(-1).abs().mean()
        consistency = float((one + two) / 2)
    accuracy, completeness = float(forward.mean()), float(backward.mean())
    return MeshMetrics(
        accuracy=accuracy,
        accuracy_median=float(forward.median()),
        completeness=completeness,
        completeness_median=float(backward.median()),
        chamfer_l1=(accuracy + completeness) / 2,
        chamfer_l2=float(((forward**2).mean() + (backward**2).mean()) / 2),
        normal_consistency=consistency,
        diagonal=size,
        scores=tuple(scores),
        samples_predicted=int(predicted.points.shape[0]),
        samples_reference=int(reference.points.shape[0]),
    )


def evaluate_meshes(
    predicted: Mesh,
    reference: Mesh,
    thresholds: Sequence[float] = (0.01, 0.02),
    *,
    relative: bool = True,
    diagonal: float | None = None,
    samples: int = 200_000,
    seed: int = 0,
    backend: NearestBackend = "auto",
) -> MeshMetrics:
    """Compare two meshes by area-uniform samples; see :class:`MeshMetrics`.

    Args:
        predicted: mesh in the frame and unit of the reference.
        reference: mesh.
        thresholds: shares of the reference's diagonal, or world units when ``relative`` is False.
        relative: what the thresholds mean.
        diagonal: of the scene; None takes the bounding box of the reference's used vertices, outliers included.
        samples: points per surface.
        seed: of the sampling.
        backend: nearest-neighbour search.

    Raises:
        InputError: when either mesh has no surface.
    """
    generator = torch.Generator().manual_seed(seed)
    first = sample_surface(predicted, samples, generator)
    second = sample_surface(reference, samples, generator)
    used = reference.vertices[torch.unique(reference.faces)]
    return evaluate_points(
        first,
        second,
        thresholds,
        relative=relative,
        diagonal=bounding_diagonal(used) if diagonal is None else diagonal,
        backend=backend,
    )


def visible_count(
    points: Tensor,
    cameras: Sequence[Camera],
    depths: Sequence[Tensor],
    slack: float,
    relative_slack: float = 0.0,
) -> Tensor:
    """(N,) int64 number of cameras that see each of (N, 3) world points, by exact depth maps.

    A camera sees a point that projects inside its picture on a pixel of known depth and lies at most
    ``slack + relative_slack * depth`` behind that depth.

    Args:
        points: world positions.
        cameras: posed pinhole cameras.
        depths: one (H, W) z-depth per camera, 0 where unknown, for example rendered from the reference.
        slack: world units; about three voxels.
        relative_slack: share of the depth.

    Raises:
        InputError: when a camera has no pose, or the depth maps do not fit the cameras.
    """
    if len(cameras) != len(depths):
        raise InputError(f"{len(cameras)} cameras but {len(depths)} depth maps")
    points = points.double()
    count = torch.zeros(points.shape[0], dtype=torch.int64)
    for camera, depth in zip(cameras, depths, strict=True):
        if camera.K is None or camera.cam_from_world is None:
            raise InputError("visibility needs cameras with intrinsics and pose")
        if tuple(depth.shape) != (camera.height, camera.width):
            raise InputError("a depth map does not have the size of its camera")
        local = points @ camera.cam_from_world[:3, :3].T + camera.cam_from_world[:3, 3]
        image = local @ camera.K.T
        front = image[:, 2] > 0
        x, y = (image[:, :2] / torch.where(front, image[:, 2], torch.ones_like(image[:, 2]))[:, None]).unbind(
            -1
        )
        inside = front & (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
        index = torch.nonzero(inside).squeeze(1)
        seen = depth[y[index].long(), x[index].long()].double()
        near = (seen > 0) & (local[index, 2] <= seen * (1 + relative_slack) + slack)
        count[index[near]] += 1
    return count


def cull_samples(
    samples: SurfaceSamples,
    cameras: Sequence[Camera],
    depths: Sequence[Tensor],
    slack: float,
    min_views: int = 2,
) -> SurfaceSamples:
    """Only the samples that at least ``min_views`` cameras see; see :func:`visible_count`."""
    keep = visible_count(samples.points, cameras, depths, slack) >= min_views
    return SurfaceSamples(
        samples.points[keep],
        None if samples.normals is None else samples.normals[keep],
        None if samples.faces is None else samples.faces[keep],
    )
