"""Which views help to see the depth of a view, and between which depths to look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import SparsePoints
from relief3d.core.errors import InputError
from relief3d.stereo.config import StereoConfig
from relief3d.stereo.views import PreparedView

MIN_SPARSE = 12
"""Sparse points a view must have seen for its depth range to come from them."""

UNSHARED = 0.3
"""Factor on the score of a view that shares no track with the reference."""
ENOUGH_SHARED = 0.2
"""Share of common tracks from which on that factor is 1."""


@dataclass(frozen=True)
class DepthRange:
    """Near and far depth of one view and where they come from ("given", "sparse", "scene" or "poses")."""

    near: float
    far: float
    source: str


@dataclass(frozen=True)
class Neighbour:
    """A source view for stereo.

    Attributes:
        index: position in the list of prepared views.
        score: overlap x scale agreement x angle weight x shared tracks, in [0, 1].
        overlap: share of the reference's sample points that it sees.
        angle: median triangulation angle in degrees.
    """

    index: int
    score: float
    overlap: float
    angle: float


@dataclass(frozen=True)
class Samples:
    """World points in front of a view, for judging other views.

    Attributes:
        points: (N, 3) float64.
        shared: (V,) float64 share of the points that each view of the scene has observed too, or None when
            the points are no sparse points.
    """

    points: Tensor
    shared: Tensor | None = None


def sparse_depths(view: PreparedView, sparse: SparsePoints | None) -> tuple[Tensor, Tensor]:
    """Depths (N,) float64 and numbers (N,) of the sparse points that a view has seen."""
    if sparse is None or len(sparse) == 0:
        return torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.long)
    number = sparse.obs_point[sparse.obs_view == view.index].unique()
    pose = view.cam_from_world
    z = sparse.xyz[number].to(torch.float64) @ pose[2, :3] + pose[2, 3]
    good = torch.isfinite(z) & (z > 0)
    return z[good], number[good]


def _range_from_poses(views: Sequence[PreparedView], position: int) -> DepthRange:
    """Depths at which the nearest other camera sees a triangulation angle between 30 and 1 degrees."""
    centres = torch.stack([v.world_from_cam[:3, 3] for v in views])
    distance = (centres - centres[position]).norm(dim=1)
    moved = distance[distance > 1e-9]
    if len(moved) == 0:
        return DepthRange(1.0, 100.0, "poses")
    step = float(moved.sort().values[: max(1, min(4, len(moved)))].median())
    return DepthRange(step / (2 * math.tan(math.radians(15))), step / math.radians(1.0), "poses")


def depth_ranges(
    views: Sequence[PreparedView],
    sparse: SparsePoints | None,
    config: StereoConfig,
    given: Mapping[int, tuple[float, float]] | None = None,
) -> list[DepthRange]:
    """Depth range of each view.

    Order of preference: given for the view (keys are indices into ``Scene.views``, used as they are);
    percentiles of the sparse points it has seen, widened; the median range of the other views; the
    baselines (30 to 1 degrees of triangulation angle).

    Raises:
        InputError: when a given range is not ``0 < near < far``.
    """
    found: list[DepthRange | None] = []
    for view in views:
        if given is not None and view.index in given:
            near, far = (float(v) for v in given[view.index])
            if not (0 < near < far < math.inf):
                raise InputError(f"view '{view.name}': depth range {near}..{far} is not 0 < near < far")
            found.append(DepthRange(near, far, "given"))
            continue
        z, _ = sparse_depths(view, sparse)
        if len(z) < MIN_SPARSE:
            found.append(None)
            continue
        low, high = torch.quantile(z, torch.tensor([config.range_low, config.range_high], dtype=z.dtype))
        found.append(DepthRange(float(low) * config.widen_near, float(high) * config.widen_far, "sparse"))
    known = [r for r in found if r is not None]
    if known:
        near = sorted(r.near for r in known)[len(known) // 2]
        far = sorted(r.far for r in known)[len(known) // 2]
        return [r if r is not None else DepthRange(near, far, "scene") for r in found]
    return [_range_from_poses(views, i) for i in range(len(views))]


def _shared_tracks(sparse: SparsePoints, number: Tensor) -> Tensor:
    """(V,) share of the sparse points ``number`` that each view has observed."""
    chosen = torch.zeros(len(sparse), dtype=torch.bool)
    chosen[number] = True
    pair = torch.stack([sparse.obs_view, sparse.obs_point])[:, chosen[sparse.obs_point]].unique(dim=1)
    return torch.bincount(pair[0], minlength=int(sparse.obs_view.max()) + 1).double() / len(number)


def sample_points(view: PreparedView, depth: DepthRange, sparse: SparsePoints | None) -> Samples:
    """Points in front of a view: its sparse points, or a grid of pixels at four depths of its range."""
    _, number = sparse_depths(view, sparse)
    if sparse is not None and len(number) >= MIN_SPARSE:
        number = number[:: max(1, len(number) // 400)]
        return Samples(sparse.xyz[number].to(torch.float64), _shared_tracks(sparse, number))
    W, H = view.camera.width, view.camera.height
    xs = (torch.arange(12, dtype=torch.float64) + 0.5) * W / 12
    ys = (torch.arange(9, dtype=torch.float64) + 0.5) * H / 9
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], dim=-1).reshape(-1, 3)
    rays = pixels @ torch.linalg.inv(view.K).T
    # Depths inside the range, evenly in inverse depth: the ends are margins that hold nothing.
    part = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    z = 1.0 / (part / depth.near + (1 - part) / depth.far)
    in_camera = (rays[None] * z[:, None, None]).reshape(-1, 3)
    pose = view.world_from_cam
    return Samples(in_camera @ pose[:3, :3].T + pose[:3, 3])


def angle_weight(angle: Tensor, best: float) -> Tensor:
    """Preference for triangulation angles, 1 at ``best`` degrees, falling faster below than above."""
    width = torch.where(angle < best, torch.full_like(angle, best / 2), torch.full_like(angle, 1.2 * best))
    return torch.exp(-((angle - best) ** 2) / (2 * width**2))


def rank_neighbours(
    views: Sequence[PreparedView], position: int, samples: Samples, config: StereoConfig
) -> list[Neighbour]:
    """Usable neighbours of ``views[position]``, best first, at most ``config.neighbours``.

    Args:
        views: all prepared views.
        position: the reference.
        samples: world points in front of the reference.
        config: angle limits, least overlap, count.

    When fewer than ``config.min_neighbours`` lie within the angle limits, the limits are relaxed to a
    third of the smallest and four thirds of the largest angle. Overlap is geometric and cannot tell a wall
    in between; views that share no tracks therefore count less, but not nothing (far pairs are often unmatched).
    """
    reference, points = views[position], samples.points
    to_reference = reference.world_from_cam[:3, 3] - points
    z_ref = points @ reference.cam_from_world[2, :3] + reference.cam_from_world[2, 3]
    candidates: list[Neighbour] = []
    for j, view in enumerate(views):
        if j == position:
            continue
        pose = view.cam_from_world
        local = points @ pose[:3, :3].T + pose[:3, 3]
        z = local[:, 2]
        pixel = local @ view.K.T
        x, y = pixel[:, 0] / z, pixel[:, 1] / z
        inside = (z > 0) & (x >= 0) & (y >= 0) & (x <= view.camera.width) & (y <= view.camera.height)
        overlap = float(inside.double().mean())
        if overlap < config.min_overlap:
            continue
        to_view = view.world_from_cam[:3, 3] - points[inside]
        cosine = torch.nn.functional.cosine_similarity(to_reference[inside], to_view, dim=1)
        angle = torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).median()
        footprint = (z_ref[inside] / reference.K[0, 0]) / (z[inside] / view.K[0, 0])
        scale = float(torch.minimum(footprint, 1 / footprint).median())
        score = overlap * scale * float(angle_weight(angle, config.best_angle))
        if samples.shared is not None:
            shared = float(samples.shared[view.index]) if view.index < len(samples.shared) else 0.0
            score *= UNSHARED + (1 - UNSHARED) * min(1.0, shared / ENOUGH_SHARED)
        candidates.append(Neighbour(j, score, overlap, float(angle)))
    usable = [c for c in candidates if config.min_angle <= c.angle <= config.max_angle]
    if len(usable) < config.min_neighbours:
        low, high = config.min_angle / 3, config.max_angle * 4 / 3
        usable = [c for c in candidates if low <= c.angle <= high]
    return sorted(usable, key=lambda c: -c.score)[: config.neighbours]
