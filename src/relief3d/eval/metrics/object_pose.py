"""Layout metrics of posed objects in the camera frame: ADD-S, ICP-Rot, diameter, silhouette IoU, errors of t and s.

Specification objects.md 6.2. All functions take points or masks; nothing here knows how a pose was stored.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Mesh
from relief3d.core.errors import InputError
from relief3d.core.optional import require
from relief3d.eval.metrics.icp import NeighbourTree, checked_points, icp
from relief3d.geometry.alignment import Similarity, umeyama
from relief3d.geometry.rotations import rotation_angle
from relief3d.geometry.transforms import transform_points
from relief3d.render.factory import make_renderer

ADD_S_LIMIT = 0.1
_FEWEST_HULL_POINTS = 5


@dataclass(frozen=True)
class PoseErrors:
    """Errors of one posed object.

    Attributes:
        add_s: symmetric mean nearest distance as a share of the true diameter.
        icp_rotation: degrees.
        translation: |t - t_true| / |t_true|.
        scale: |s - s_true| / s_true.
    """

    add_s: float
    icp_rotation: float
    translation: float
    scale: float

    @property
    def add_s_01(self) -> float:
        """1 when ADD-S is below 0.1, else 0."""
        return float(self.add_s < ADD_S_LIMIT)


def diameter(points: Tensor) -> float:
    """Largest distance of two of (N, 3) points, exact: only corners of the convex hull are compared.

    Raises:
        InputError: no points, or points that are not finite.
    """
    points = checked_points(points, "the diameter")
    spatial = require("scipy.spatial", extra="mesh", purpose="the diameter of an object")
    if points.shape[0] > _FEWEST_HULL_POINTS:
        # Flat or straight sets have no hull in space; all their points are compared.
        with contextlib.suppress(spatial.QhullError):
            points = points[torch.from_numpy(spatial.ConvexHull(points.numpy()).vertices.astype("int64"))]
    largest = 0.0
    for part in points.split(2048):
        largest = max(largest, float(torch.cdist(part, points).max()))
    return largest


def add_s(predicted: Tensor, truth: Tensor, true_diameter: float) -> float:
    """Symmetric ADD-S: sum of both mean nearest distances over twice the diameter.

    Args:
        predicted: (N, 3) points of the predicted surface, posed in the camera frame.
        truth: (M, 3) points of the true surface, posed.
        true_diameter: of the true object, same unit.

    Raises:
        InputError: empty sets or a diameter that is not positive.
    """
    if not true_diameter > 0:
        raise InputError(f"ADD-S needs a positive diameter, got {true_diameter}")
    forward, _ = NeighbourTree(truth).query(checked_points(predicted, "the prediction"))
    backward, _ = NeighbourTree(predicted).query(checked_points(truth, "the truth"))
    return float(forward.mean() + backward.mean()) / (2 * true_diameter)


def absent_add_s(truth: Tensor, true_diameter: float) -> float:
    """ADD-S of an empty prediction, taken as one point at the camera: ADD-S has no largest value of its own.

    Args:
        truth: (M, 3) posed points.
        true_diameter: same unit.
    """
    return add_s(torch.zeros(1, 3, dtype=torch.float64), truth, true_diameter)


def icp_rotation(predicted: Tensor, truth: Tensor, *, iterations: int = 30) -> float:
    """ICP-Rot: the angle in degrees by which ICP still turns the posed prediction onto the posed truth.

    Both sets are centred on their mean and divided by their root-mean-square radius (shape and size need not match);
    ICP starts from the predicted pose.

    Args:
        predicted: (N, 3) posed points.
        truth: (M, 3) posed points.
        iterations: most updates.

    Raises:
        InputError: empty sets, or sets without extent.
    """
    found = icp(_centred(predicted, "the prediction"), _centred(truth, "the truth"), iterations=iterations)
    return math.degrees(float(rotation_angle(found.rotation)))


def _centred(points: Tensor, what: str) -> Tensor:
    points = checked_points(points, what)
    points = points - points.mean(0)
    radius = points.square().sum(1).mean().sqrt()
    if not float(radius) > 0:
        raise InputError(f"{what} has no extent")
    return points / radius


def relative_translation_error(predicted: Tensor, truth: Tensor) -> Tensor:
    """|t - t_true| / |t_true| of (*, 3) translations, (*,).

    Raises:
        InputError: a true translation of zero.
    """
    length = truth.norm(dim=-1)
    if bool((length == 0).any()):
        raise InputError("the relative error of a translation needs a true translation that is not zero")
    return (predicted - truth).norm(dim=-1) / length


def relative_scale_error(predicted: Tensor, truth: Tensor) -> Tensor:
    """|s - s_true| / s_true of (*,) scales.

    Raises:
        InputError: a true scale that is not positive.
    """
    if not bool((truth > 0).all()):
        raise InputError("the relative error of a scale needs a positive true scale")
    return (predicted - truth).abs() / truth


def mask_iou(predicted: Tensor, truth: Tensor) -> float:
    """Intersection over union of two (H, W) bool masks.

    Raises:
        InputError: different sizes, or "no valid pixels" in the true mask.
    """
    if predicted.shape != truth.shape:
        raise InputError(
            f"masks of sizes {tuple(predicted.shape)} and {tuple(truth.shape)} cannot be compared"
        )
    if not bool(truth.any()):
        raise InputError("no valid pixels", remedy="the true mask of an object must not be empty")
    return float((predicted & truth).sum()) / float((predicted | truth).sum())


def silhouette(mesh: Mesh, cam_from_object: Tensor, K: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels (H, W) bool whose centres a posed mesh covers, seen from either side.

    Args:
        mesh: in the object frame.
        cam_from_object: (4, 4), column vectors, OpenCV camera.
        K: (3, 3) pixels.
        size: (H, W).
    """
    posed = transform_points(cam_from_object.double(), mesh.vertices.detach().cpu().double()).float()
    camera = Camera(size[1], size[0], K, torch.eye(4, dtype=torch.float64))
    return make_renderer().cast(Mesh(posed, mesh.faces.cpu()), camera, back_faces="keep").hit.cpu()


def scene_scale(predicted_depth: Sequence[float], true_depth: Sequence[float]) -> float:
    """Factor that brings a scene's predicted layout to the true scale: median ratio of the objects' depths.

    Args:
        predicted_depth: z of each object's centre.
        true_depth: the same in the truth.

    Raises:
        InputError: no object, different lengths, or depths that are not positive.
    """
    if len(predicted_depth) != len(true_depth) or not predicted_depth:
        raise InputError("a scene's scale needs as many predicted as true depths, and at least one")
    predicted = torch.tensor(list(predicted_depth), dtype=torch.float64)
    truth = torch.tensor(list(true_depth), dtype=torch.float64)
    if not bool((predicted > 0).all()) or not bool((truth > 0).all()):
        raise InputError("a scene's scale needs objects in front of the camera")
    return float(torch.quantile(truth / predicted, 0.5))


def scene_similarity(predicted_centres: Tensor, true_centres: Tensor) -> Similarity:
    """One similarity that brings the centres of a scene's objects onto the true ones (least squares).

    Args:
        predicted_centres: (N, 3), three or more objects.
        true_centres: (N, 3).

    Raises:
        InputError: fewer than three objects.
    """
    if predicted_centres.shape[0] < 3:
        raise InputError("a similarity between scenes needs at least three objects")
    return umeyama(predicted_centres.double(), true_centres.double())
