"""Points of tracks under given cameras: robust triangulation, reprojection errors, parallax.

Works on the contract's cameras; all arithmetic is float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, View
from relief3d.geometry.alignment import scale_robust, umeyama
from relief3d.geometry.distortion import project_distorted, undistort_points
from relief3d.geometry.projection import normalize_pixels, unproject
from relief3d.geometry.sampling import sample_depth
from relief3d.geometry.transforms import transform_points
from relief3d.geometry.triangulation import projection_matrix, triangulate_dlt
from relief3d.sfm.predicted_tracks import Observations

REWEIGHTINGS = 4
_BLOCK = 2_000_000
PARALLAX_PAIR_MATCHES = 20
PARALLAX_PAIRS = 400
SCALE_PX = 2.0
"""Error at which a sighting counts half once the cameras are meant to be right."""

MIN_ANGLE_DEG = 1.0
"""Points whose rays differ by less are left out of results: their depth is noise."""

MIN_RATIO_SAMPLES = 15


@dataclass(frozen=True)
class PredictedPoints:
    """One point per track.

    Attributes:
        xyz: (T, 3) world, NaN for a track with fewer than two sightings and no start.
        error: (M,) pixels per sighting, infinite behind the camera.
    """

    xyz: Tensor
    error: Tensor


def pinhole_pixels(cameras: Sequence[Camera], observations: Observations) -> Tensor:
    """(M, 2) where a pinhole lens with the same K would see the sightings."""
    xy = observations.xy.clone()
    for index, camera in enumerate(cameras):
        if camera.distortion is not None and not camera.distortion.is_identity:
            mine = observations.view == index
            xy[mine] = undistort_points(xy[mine], camera)
    return xy


def reprojection(cameras: Sequence[Camera], observations: Observations, xyz: Tensor) -> Tensor:
    """(M,) distance in pixels between the sightings and the projections of their points (T, 3).

    Infinite behind the camera.
    """
    errors = torch.full((len(observations),), torch.inf, dtype=torch.float64)
    for index, camera in enumerate(cameras):
        mine = (observations.view == index).nonzero()[:, 0]
        pose = camera.cam_from_world
        if len(mine) == 0 or pose is None or camera.K is None:
            continue
        local = transform_points(pose, xyz[observations.track[mine]])
        xy, z = project_distorted(local, camera.K, camera.distortion)
        distance = (xy - observations.xy[mine]).norm(dim=-1)
        errors[mine] = torch.where((z > 0) & torch.isfinite(distance), distance, torch.inf)
    return errors


def _table(observations: Observations) -> Tensor:
    """(T, L) int64 index of every track's sightings, -1 beyond their number."""
    lengths = observations.lengths()
    longest = int(lengths.max()) if observations.count else 0
    table = torch.full((observations.count, longest), -1, dtype=torch.int64)
    first = torch.cumsum(lengths, 0) - lengths
    place = torch.arange(len(observations)) - first[observations.track]
    table[observations.track, place] = torch.arange(len(observations))
    return table


def triangulate_tracks(
    cameras: Sequence[Camera], observations: Observations, scale_px: float, start: Tensor | None = None
) -> PredictedPoints:
    """Robust linear triangulation of every track, with a fall-back.

    The linear solution is repeated with Cauchy weights of its reprojection errors, so that single
    wrong sightings of a long track lose their say. Where ``start`` (a point from predicted depth) explains the
    sightings better under the truncated squared error, as with rays too parallel to intersect, it is taken.

    Args:
        cameras: all posed.
        observations: sightings.
        scale_px: error at which a sighting counts half; errors are truncated at twice this for the choice.
        start: (T, 3) other candidates, NaN where there is none.
    """
    nothing = torch.full((observations.count, 3), torch.nan, dtype=torch.float64)
    if len(observations) == 0:
        return PredictedPoints(nothing, torch.zeros(0, dtype=torch.float64))
    table = _table(observations)
    P = torch.stack([projection_matrix(_K(c), _pose(c)) for c in cameras])
    flat = pinhole_pixels(cameras, observations)
    weights = torch.ones(len(observations), dtype=torch.float64)
    best, best_cost = nothing, torch.full((observations.count,), torch.inf, dtype=torch.float64)

    def consider(xyz: Tensor) -> Tensor:
        nonlocal best, best_cost
        error = reprojection(cameras, observations, xyz)
        cost = torch.zeros(observations.count, dtype=torch.float64)
        cost.index_add_(0, observations.track, error.clamp(max=2 * scale_px).square())
        better = torch.isfinite(xyz).all(-1) & (cost < best_cost)
        best = torch.where(better[:, None], xyz, best)
        best_cost = torch.where(better, cost, best_cost)
        return error

    enough = observations.lengths() >= 2
    for _ in range(REWEIGHTINGS):
        xyz = nothing.clone()
        xyz[enough] = _linear(table[enough], P[observations.view], flat, weights)
        error = consider(xyz)
        weights = 1.0 / (1.0 + (error.clamp(max=1e6) / scale_px).square())
    if start is not None:
        consider(start.to(torch.float64))
    return PredictedPoints(best, reprojection(cameras, observations, best))


def _linear(table: Tensor, P: Tensor, xy: Tensor, weights: Tensor) -> Tensor:
    """(T, 3) weighted linear triangulation in blocks of bounded memory."""
    rows = max(1, _BLOCK // (24 * max(table.shape[1], 1)))
    found = []
    for begin in range(0, table.shape[0], rows):
        part = table[begin : begin + rows]
        used = part >= 0
        index = part.clamp(min=0)
        w = torch.where(used, weights[index], 0.0)
        # Weights far below the track's best would leave the system without rank.
        w = torch.where(used, w.maximum(1e-3 * w.amax(1, keepdim=True)), 0.0)
        found.append(triangulate_dlt(P[index], xy[index][:, :, None], w[:, :, None])[:, 0])
    return torch.cat(found) if found else torch.zeros(0, 3, dtype=torch.float64)


def largest_angle(cameras: Sequence[Camera], observations: Observations, xyz: Tensor) -> Tensor:
    """(T,) radians: the largest angle between two rays of each track; 0 with fewer than two."""
    table = _table(observations)
    centres = torch.stack([_pose_of(c)[:3, 3] for c in cameras])
    rays = xyz[observations.track] - centres[observations.view]
    rays = rays / rays.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    out = torch.zeros(observations.count, dtype=torch.float64)
    rows = max(1, _BLOCK // max(table.shape[1] ** 2, 1))
    for begin in range(0, table.shape[0], rows):
        part = table[begin : begin + rows]
        used = part >= 0
        r = rays[part.clamp(min=0)]
        cosine = torch.where(used[:, :, None] & used[:, None, :], r @ r.mT, 1.0)
        out[begin : begin + rows] = torch.acos(cosine.flatten(1).amin(1).clamp(-1.0, 1.0))
    return torch.nan_to_num(out)


def parallax_px(cameras: Sequence[Camera], observations: Observations) -> float:
    """How far the best pure rotation misses the matches of a pair: 90th percentile over pairs of the median, pixels.

    Close to the matching noise when all pictures were taken from one place, whatever the predicted poses
    say; uses intrinsics only. 0 without pairs of at least ``PARALLAX_PAIR_MATCHES`` common tracks.
    """
    views = sorted(set(observations.view.tolist()))
    flat = pinhole_pixels(cameras, observations)
    rays: dict[int, tuple[Tensor, Tensor]] = {}
    for v in views:
        mine = observations.view == v
        xy = normalize_pixels(flat[mine], _K(cameras[v]))
        unit = torch.cat([xy, torch.ones_like(xy[:, :1])], dim=1)
        rays[v] = (observations.track[mine], unit / unit.norm(dim=1, keepdim=True))
    pairs = [(a, b) for i, a in enumerate(views) for b in views[i + 1 :]]
    medians = []
    for a, b in pairs[:: max(1, len(pairs) // PARALLAX_PAIRS)]:
        in_b = torch.isin(rays[a][0], rays[b][0])
        in_a = torch.isin(rays[b][0], rays[a][0])
        if int(in_b.sum()) < PARALLAX_PAIR_MATCHES:
            continue
        ra, rb = rays[a][1][in_b], rays[b][1][in_a]
        weights = torch.ones_like(ra[:, 0])
        miss = weights
        for _ in range(3):
            # Mirrored copies keep both centroids at the origin: what is left of the fit is the rotation.
            fit = umeyama(
                torch.cat([ra, -ra]), torch.cat([rb, -rb]), torch.cat([weights, weights]), with_scale=False
            )
            miss = (ra @ fit.rotation.mT - rb).norm(dim=1)
            weights = 1.0 / (1.0 + (miss / miss.median().clamp_min(1e-9)).square())
        medians.append(float(miss.median() * _K(cameras[b])[0, 0]))
    return float(torch.tensor(medians).quantile(0.9)) if medians else 0.0


def depth_at(views: Sequence[View], observations: Observations) -> Tensor:
    """(M,) predicted depth at the sightings in scene units, 0 where unknown. Depth maps may have any size."""
    found = torch.zeros(len(observations), dtype=torch.float64)
    for index, view in enumerate(views):
        mine = observations.view == index
        depth: Depth | None = view.load_depth() if bool(mine.any()) else None
        if depth is None:
            continue
        height, width = depth.values.shape
        ratio = torch.tensor([width / view.camera.width, height / view.camera.height], dtype=torch.float64)
        values = torch.where(depth.valid, depth.values, 0.0).cpu().to(torch.float64)
        value, valid = sample_depth(values, observations.xy[mine] * ratio)
        found[mine] = torch.where(valid, value, 0.0)
    return found


def points_from_depth(cameras: Sequence[Camera], observations: Observations, depth: Tensor) -> Tensor:
    """(T, 3) median over the sightings of the unprojected depth (M,); NaN where no depth is known."""
    flat = pinhole_pixels(cameras, observations)
    world = torch.full((len(observations), 3), torch.nan, dtype=torch.float64)
    for index, camera in enumerate(cameras):
        mine = (observations.view == index) & (depth > 0)
        world[mine] = transform_points(_pose_of(camera), unproject(flat[mine], depth[mine], _K(camera)))
    table = _table(observations)
    padded = torch.where((table >= 0)[..., None], world[table.clamp(min=0)], torch.nan)
    return (
        padded.nanmedian(dim=1).values
        if table.shape[1]
        else world.new_full((observations.count, 3), torch.nan)
    )


def depth_ratios(
    views: Sequence[View], cameras: Sequence[Camera], observations: Observations, max_error_px: float
) -> list[float | None]:
    """Per view the robust ratio of triangulated over predicted depth.

    Args:
        views: with predicted depth.
        cameras: under which the tracks are triangulated.
        observations: tracks.
        max_error_px: sightings with a larger error are left out, as are points with little parallax.

    Returns:
        The ratios; None with fewer than ``MIN_RATIO_SAMPLES`` samples.
    """
    depth = depth_at(views, observations)
    points = triangulate_tracks(cameras, observations, SCALE_PX)
    steady = largest_angle(cameras, observations, points.xyz) >= math.radians(MIN_ANGLE_DEG)
    z = local_depth(cameras, observations, points.xyz)
    good = (points.error <= max_error_px) & steady[observations.track] & (depth > 0) & (z > 0)
    ratios: list[float | None] = []
    for k in range(len(views)):
        mine = good & (observations.view == k)
        enough = int(mine.sum()) >= MIN_RATIO_SAMPLES
        ratios.append(float(scale_robust(depth[mine], z[mine])) if enough else None)
    return ratios


def local_depth(cameras: Sequence[Camera], observations: Observations, xyz: Tensor) -> Tensor:
    """(M,) z coordinate of every sighting's point in its camera."""
    poses = torch.stack([_pose(c) for c in cameras])
    axis, offset = poses[observations.view, 2, :3], poses[observations.view, 2, 3]
    return (axis * xyz[observations.track]).sum(-1) + offset


def _K(camera: Camera) -> Tensor:
    assert camera.K is not None
    return camera.K


def _pose(camera: Camera) -> Tensor:
    pose = camera.cam_from_world
    assert pose is not None
    return pose


def _pose_of(camera: Camera) -> Tensor:
    assert camera.world_from_cam is not None
    return camera.world_from_cam
