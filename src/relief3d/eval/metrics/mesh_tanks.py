"""Surface protocol of Tanks and Temples (Knapitsch et al. 2017, public toolbox; specification 8.6).

The prediction is brought into the frame of the laser scan by a similarity of the camera centres, refined by ICP with
scale in three rounds, cropped by a polygon, thinned to half the threshold and compared by nearest distances (strict).

Ours, where the toolbox depends on a version of its library: the start is a closed-form robust similarity of
centres that share indices, and an ICP correction that is implausibly large is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.eval.metrics.icp import NeighbourTree, icp
from relief3d.eval.metrics.mesh import nearest_points, sample_surface
from relief3d.eval.metrics.surface_protocols import (
    SurfaceScores,
    has_surface,
    score_distances,
    voxel_downsample,
)
from relief3d.fusion.cleaning import face_areas
from relief3d.geometry.alignment import Similarity, robust_umeyama
from relief3d.io.json_file import read_json_object

MAX_ICP_POINTS = 4_000_000
MAX_SAMPLES = 20_000_000
LONG_TRAJECTORY = 1600
CENTRE_DISTANCE = 0.2
MAX_SCALE_CHANGE = 0.05
MAX_SHIFT_TAUS = 10.0
_RANSAC_ITERATIONS = 2000
_AXES = {"X": (1, 2, 0), "Y": (0, 2, 1), "Z": (0, 1, 2)}


@dataclass(frozen=True)
class CropPolygon:
    """Open3D's selection polygon: a polygon along an axis, between two heights.

    Attributes:
        axis: "X", "Y" or "Z", across the polygon.
        axis_min, axis_max: heights along it, both included.
        polygon: (P, 3) float64 corners; the coordinate along the axis is not used.
    """

    axis: str
    axis_min: float
    axis_max: float
    polygon: Tensor

    def __post_init__(self) -> None:
        if self.axis not in _AXES:
            raise InputError(f"a crop polygon lies across X, Y or Z, not '{self.axis}'")
        if self.polygon.ndim != 2 or self.polygon.shape[0] < 3 or self.polygon.shape[1] != 3:
            raise InputError(f"a crop polygon needs (P >= 3, 3) corners, got {tuple(self.polygon.shape)}")

    def inside(self, points: Tensor) -> Tensor:
        """(N,) bool: between the heights and inside the polygon by the even-odd rule."""
        u, v, w = _AXES[self.axis]
        points = points.double()
        x, y, height = points[:, u], points[:, v], points[:, w]
        odd = torch.zeros(points.shape[0], dtype=torch.bool)
        corners = self.polygon.double()
        for a, b in zip(corners.roll(1, 0), corners):
            crosses = (a[v] < y) != (b[v] < y)
            rise = b[v] - a[v]
            at = a[u] + (y - a[v]) / (rise if float(rise) != 0 else 1.0) * (b[u] - a[u])
            odd ^= crosses & (at < x)
        return odd & (height >= self.axis_min) & (height <= self.axis_max)

    def crop(self, points: Tensor) -> Tensor:
        """The points inside."""
        return points[self.inside(points)]


def read_crop_polygon(path: str | Path) -> CropPolygon:
    """Read Open3D's ``SelectionPolygonVolume`` JSON.

    Raises:
        InputError: not such a file.
    """
    path = Path(path)
    content: Mapping[str, Any] = read_json_object(path)
    if content.get("class_name") != "SelectionPolygonVolume":
        raise InputError("is not a SelectionPolygonVolume", path=path)
    try:
        polygon = torch.tensor(content["bounding_polygon"], dtype=torch.float64)
        low, high = float(content["axis_min"]), float(content["axis_max"])
        axis = str(content["orthogonal_axis"]).upper()
    except (KeyError, TypeError, ValueError) as exc:
        raise InputError(
            f"lacks a usable orthogonal_axis, axis_min, axis_max or bounding_polygon ({exc})", path=path
        ) from exc
    try:
        return CropPolygon(axis, low, high, polygon)
    except InputError as exc:
        raise InputError(exc.message, path=path) from exc


@dataclass(frozen=True)
class TanksAlignment:
    """Refined similarity into the frame of the scan.

    Attributes:
        similarity: to be used; the start when the refinement was refused.
        refined: what ICP found.
        scale_change: |scale of the correction - 1|.
        shift: how far the correction moves the middle of the cropped scan, world units.
        accepted: the correction is small enough to be one.
    """

    similarity: Similarity
    refined: Similarity
    scale_change: float
    shift: float
    accepted: bool


def similarity_of_centres(estimated: Tensor, reference: Tensor, seed: int = 0) -> Similarity:
    """Robust similarity of camera centres that share indices; pairs farther apart than 0.2 m are outliers.

    Args:
        estimated: (N, 3) in the prediction's frame.
        reference: (N, 3) in the frame of the scan, metres.
        seed: of the random samples.

    Raises:
        InputError: lists of different length, or fewer than three centres.
    """
    if estimated.shape != reference.shape:
        raise InputError(f"{estimated.shape[0]} estimated cameras but {reference.shape[0]} reference cameras")
    fit = robust_umeyama(
        estimated.double(), reference.double(), CENTRE_DISTANCE, torch_generator(seed), _RANSAC_ITERATIONS
    )
    return Similarity(fit.scale, fit.rotation, fit.translation)


def sampled_mesh(mesh: Mesh, similarity: Similarity, tau: float, seed: int = 0) -> Tensor:
    """Points (N, 3) on a mesh, in its own frame, with (tau / 2)^-2 of them per area in the frame of the scan.

    Raises:
        InputError: the mesh has no surface.
    """
    area = float(face_areas(mesh).nan_to_num(0.0).double().sum()) * float(similarity.scale) ** 2
    count = min(MAX_SAMPLES, max(1, math.ceil(area / (tau / 2) ** 2)))
    return sample_surface(mesh, count, torch.Generator().manual_seed(seed)).points


def _every(points: Tensor) -> Tensor:
    """At most about four million points, evenly spread over their order."""
    if points.shape[0] <= MAX_ICP_POINTS:
        return points
    return points[:: max(1, round(points.shape[0] / MAX_ICP_POINTS))]


def refine_alignment(
    points: Tensor, scan: Tensor, crop: CropPolygon, start: Similarity, tau: float
) -> TanksAlignment:
    """ICP with scale in three rounds: cells of tau and tau / 2, then all points; see the specification.

    Args:
        points: (N, 3) prediction in its own frame.
        scan: (M, 3) laser scan.
        crop: applied to both in every round.
        start: into the frame of the scan.
        tau: threshold of the scene, metres.
    """
    target = crop.crop(scan)
    current = start
    for cell, reach in ((tau, 80 * tau), (tau / 2, 20 * tau), (None, 2 * tau)):
        source = crop.crop(current.apply(points))
        if source.shape[0] == 0 or target.shape[0] == 0:
            break
        thin = (source, target) if cell is None else [voxel_downsample(p, cell) for p in (source, target)]
        moved, fixed = _every(thin[0]), NeighbourTree(_every(thin[1]))
        step = icp(moved, fixed, threshold=reach, iterations=20, with_scale=True, relative_tolerance=1e-6)
        current = Similarity(
            step.scale * current.scale,
            step.rotation @ current.rotation,
            step.scale * step.rotation @ current.translation + step.translation,
        )
    change = abs(float(current.scale / start.scale) - 1)
    middle = target.mean(0) if target.shape[0] else scan.mean(0)
    before = start.rotation.T @ (middle - start.translation) / start.scale
    shift = float((current.apply(before[None])[0] - middle).norm())
    accepted = change < MAX_SCALE_CHANGE and shift < MAX_SHIFT_TAUS * tau
    return TanksAlignment(current if accepted else start, current, change, shift, accepted)


def tanks_scores(
    points: Tensor,
    scan: Tensor,
    crop: CropPolygon,
    similarity: Similarity,
    tau: float,
    thresholds: Sequence[float],
) -> list[SurfaceScores] | None:
    """Scores of a point set at several distances; both sets are cropped and thinned to cells of tau / 2 once.

    Args:
        points: (N, 3) prediction in its own frame.
        scan: (M, 3) laser scan, metres.
        crop: applied to both.
        similarity: into the frame of the scan.
        tau: threshold of the scene, metres.
        thresholds: distances to score at, metres; a point at exactly a threshold is not near.

    Returns:
        One per threshold, or None when nothing of the prediction lies inside the polygon.

    Raises:
        InputError: nothing of the scan lies inside the polygon.
    """
    theirs = voxel_downsample(crop.crop(scan), tau / 2)
    if theirs.shape[0] == 0:
        raise InputError("no valid points of the scan lie inside the crop polygon")
    ours = voxel_downsample(crop.crop(similarity.apply(points)), tau / 2)
    if ours.shape[0] == 0:
        return None
    forward, _ = nearest_points(ours, theirs)
    backward, _ = nearest_points(theirs, ours)
    return [score_distances(forward, backward, limit, strict=True) for limit in thresholds]


def mesh_points(mesh: Mesh | None, similarity: Similarity, tau: float, seed: int = 0) -> Tensor | None:
    """:func:`sampled_mesh`, or None without a surface."""
    if mesh is None or not has_surface(mesh):
        return None
    return sampled_mesh(mesh, similarity, tau, seed)
