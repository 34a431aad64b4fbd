"""The scene that a refinement returns: cameras, rescaled depth and triangulated points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from relief3d.core.contract import Camera, Depth, Scene, SparsePoints, View
from relief3d.core.progress import Progress
from relief3d.sfm.convert import observed_colours
from relief3d.sfm.predicted_points import (
    MIN_ANGLE_DEG,
    SCALE_PX,
    depth_ratios,
    largest_angle,
    triangulate_tracks,
)
from relief3d.sfm.predicted_report import Held, ViewChange, pose_change
from relief3d.sfm.predicted_rounds import Outcome
from relief3d.sfm.predicted_tracks import Observations

GREY = 128


def as_given(
    scene: Scene,
    posed: Sequence[int],
    observations: Observations | None,
    max_error_px: float,
    progress: Progress,
) -> tuple[Scene, tuple[ViewChange, ...]]:
    """The scene with its cameras and depth untouched, and points triangulated from them where there are any."""
    placed = set(posed)
    changes = tuple(
        ViewChange(v.name, "kept" if i in placed else "unplaced") for i, v in enumerate(scene.views)
    )
    if observations is None or observations.count == 0:
        return scene, changes
    views = [scene.views[i] for i in posed]
    sparse = _sparse(views, [v.camera for v in views], posed, observations, max_error_px, progress)
    return (scene if sparse is None else scene.replace(sparse=sparse)), changes


def refined_scene(
    scene: Scene,
    posed: Sequence[int],
    observations: Observations,
    before: Held,
    outcome: Outcome,
    max_error_px: float,
    progress: Progress,
) -> tuple[Scene, tuple[ViewChange, ...]]:
    """The scene with refined cameras, depth maps that fit them, and triangulated points."""
    views = [scene.views[i] for i in posed]
    cameras = list(outcome.cameras)
    measured = depth_ratios(views, cameras, observations, max_error_px)
    known = torch.tensor([r for r in measured if r is not None], dtype=torch.float64)
    usual = float(known.quantile(0.5)) if len(known) else 1.0
    ratios = [usual if r is None else r for r in measured]
    out = list(scene.views)
    changes = [ViewChange(v.name, "unplaced") for v in scene.views]
    for k, i in enumerate(posed):
        turn, shift = pose_change(views[k].camera, cameras[k])
        moved = k in outcome.active and cameras[k].world_from_cam is not views[k].camera.world_from_cam
        state = "kept" if k not in outcome.active else ("refined" if moved else "fixed")
        changes[i] = ViewChange(
            views[k].name, state, round(turn, 4), shift, outcome.observations[k],
            before.view_median(k), None if outcome.after is None else outcome.after.view_median(k),
            ratios[k], k in outcome.relocated,
        )  # fmt: skip
        out[i] = views[k].replace(camera=cameras[k], depth=_scaled(views[k], ratios[k]))
    sparse = _sparse(views, cameras, posed, observations, max_error_px, progress)
    return scene.replace(views=tuple(out), sparse=sparse or scene.sparse), tuple(changes)


def _scaled(view: View, ratio: float) -> Depth | Callable[[], Depth] | None:
    """The view's depth times ``ratio``; loaded only when needed if it was so before."""
    source = view.depth
    if source is None:
        return None

    def times(depth: Depth) -> Depth:
        return Depth(depth.values * ratio, depth.valid, depth.metric, depth.confidence)

    if callable(source):
        return lambda: times(source())
    return times(source)


def _sparse(
    views: Sequence[View],
    cameras: Sequence[Camera],
    posed: Sequence[int],
    observations: Observations,
    max_error_px: float,
    progress: Progress,
) -> SparsePoints | None:
    """Points of all tracks that fit the cameras and have parallax; None without any."""
    points = triangulate_tracks(cameras, observations, SCALE_PX)
    fitting = observations.keep(points.error <= max_error_px)
    angle = largest_angle(cameras, fitting, torch.nan_to_num(points.xyz))
    good = (fitting.lengths() >= 2) & (angle >= math.radians(MIN_ANGLE_DEG))
    if not bool(good.any()):
        return None
    kept = fitting.tracks(good)
    error = points.error[points.error <= max_error_px][good[fitting.track]]
    total = torch.zeros(kept.count, dtype=torch.float64).index_add_(0, kept.track, error)
    rgb = torch.full((kept.count, 3), GREY, dtype=torch.uint8)
    if all(v.image is not None for v in views):
        parts = (kept.track.numpy(), kept.view.numpy(), kept.xy.numpy())
        rgb = torch.from_numpy(observed_colours(views, parts, kept.count, progress))
    return SparsePoints(
        points.xyz[good], rgb, total / kept.lengths(), kept.track, torch.tensor(posed)[kept.view], kept.xy
    )
