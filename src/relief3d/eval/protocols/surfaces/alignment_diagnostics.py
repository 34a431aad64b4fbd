"""How well per-frame depth of unknown scale was brought to one scale (specification 8.7); no mesh is needed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Camera, Scene, View
from relief3d.core.errors import InputError
from relief3d.eval.aggregation import pooled
from relief3d.eval.metrics.scale_diagnostics import AGREEMENT, frame_abs_rel, next_view_agreement, scale_error
from relief3d.eval.protocols.base import Answer, Budget, Column, Measurement, Protocol, Query, Sample, Truth
from relief3d.eval.protocols.surfaces.readers_scannet import (
    LAYOUT,
    ScanNetScan,
    find_scans,
    load_rgb,
    scan_scene,
    scan_track,
    scan_views,
)
from relief3d.eval.protocols.surfaces.surface_rules import sensor_depth
from relief3d.eval.protocols.surfaces.twin_rooms import Room, room_samples
from relief3d.eval.published.table import PublishedRow
from relief3d.geometry.camera_edits import resize_camera
from relief3d.geometry.keyframes import select_keyframes

WANTS = ("depth", "raw_depth", "refined_depth")
COLUMNS = (
    Column("scale_error", "scale error, mean", "%"),
    Column("scale_error_95", "scale error, 95 %", "%"),
    Column("abs_rel_raw", "Abs Rel raw, median scaled", "%"),
    Column("abs_rel", "Abs Rel aligned", "%"),
    Column("abs_rel_refined", "Abs Rel refined", "%"),
    Column("agree_2", "next view within 2 %", "%", "higher"),
    Column("agree_5", "next view within 5 %", "%", "higher"),
    Column("unmeasured", "keyframes not comparable", "", None),
)


class ScaleAlignmentProtocol(Protocol):
    """Scale errors, Abs Rel of raw, aligned and refined depth, and agreement of neighbouring keyframes.

    Answers hold ``depth`` (N, H, W), the aligned z-depth in metres, and optionally ``raw_depth`` (before alignment, any
    scale per frame) and ``refined_depth`` (after reprojection, metres); 0 where unknown.
    """

    name = "scale_alignment"
    title = "Scale alignment of keyframe depth (own diagnostics)"
    source = "specification scene_reconstruction.md 8.7; no published figures"
    task = "views"
    columns = COLUMNS
    layout = LAYOUT
    notes = (
        "Keyframes by the rule of DeepVideoMVS (0.1 in the mixed distance); pictures resized to the sensor depth's "
        "640x480. Scale errors and Abs Rel are one number per keyframe, pooled over the keyframes of all scenes.",
        "Scale error of a keyframe: |ln(median(sensor / aligned))|. Only raw depth is scaled before its Abs Rel.",
        "Agreement: share of pixels, of all pairs together, whose point agrees with the nearest pixel of the next "
        "keyframe; occluded pixels disagree, so that even exact depth stays below 100 %.",
        "Keyframes without a pixel that can be compared are left out and counted.",
    )
    floors: Mapping[str, float] = {"agree_2": 40.0, "agree_5": 40.0}

    def open(self, data: Path) -> list[Sample]:
        return [
            Sample(s.name, s.name, functools.partial(_scan_query, s), functools.partial(_scan_truth, s))
            for s in find_scans(data)
        ]

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        return room_samples("scale_alignment", budget, seed, _room_truth, _room_query)

    def published(self) -> Sequence[PublishedRow]:
        return ()

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        sensor = truth.need("depth")
        valid = truth.need("valid", sensor.shape)
        depth = answer.need("depth", sensor.shape)
        arrays: dict[str, np.ndarray] = {}
        arrays["scale_error"] = _per_frame(depth, sensor, valid, scale_error)
        if arrays["scale_error"].size == 0:
            raise InputError("no valid pixels: no keyframe has both aligned and sensor depth")
        unscaled = functools.partial(frame_abs_rel, median_scaled=False)
        arrays["abs_rel"] = _per_frame(depth, sensor, valid, unscaled)
        if "raw_depth" in answer.tensors:
            scaled = functools.partial(frame_abs_rel, median_scaled=True)
            arrays["abs_rel_raw"] = _per_frame(answer.need("raw_depth", sensor.shape), sensor, valid, scaled)
        if "refined_depth" in answer.tensors:
            refined = answer.need("refined_depth", sensor.shape)
            arrays["abs_rel_refined"] = _per_frame(refined, sensor, valid, unscaled)
        pairs = next_view_agreement(
            torch.where(torch.isfinite(depth) & (depth > 0), depth, torch.zeros_like(depth)),
            truth.need("K"),
            truth.need("world_from_cam"),
        )
        values = {
            "pairs": float(sum(count for count, _ in pairs)),
            "unmeasured": float(sensor.shape[0] - arrays["scale_error"].size),
        }
        for i, limit in enumerate(AGREEMENT):
            values[f"agree_{round(100 * limit)}"] = float(sum(agree[i] for _, agree in pairs))
        return Measurement(query.name, query.name, values, float(sensor.shape[0]), arrays)

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        errors = pooled(measurements, "scale_error")
        out = {
            "scale_error": _percent_mean(errors),
            "scale_error_95": 100 * float(np.quantile(errors, 0.95)) if errors.size else math.nan,
        }
        for key in ("abs_rel_raw", "abs_rel", "abs_rel_refined"):
            out[key] = _percent_mean(pooled(measurements, key))
        pairs = math.fsum(m.values["pairs"] for m in measurements)
        for limit in AGREEMENT:
            key = f"agree_{round(100 * limit)}"
            agree = math.fsum(m.values[key] for m in measurements)
            out[key] = 100 * agree / pairs if pairs else math.nan
        out["unmeasured"] = math.fsum(m.values["unmeasured"] for m in measurements)
        return out


def _percent_mean(values: np.ndarray) -> float:
    return 100 * float(values.mean()) if values.size else math.nan


def _per_frame(
    depth: Tensor, sensor: Tensor, valid: Tensor, error: Callable[[Tensor, Tensor, Tensor], float]
) -> np.ndarray:
    """One number per frame that has pixels to compare."""
    usable = (valid & (sensor > 0) & torch.isfinite(depth) & (depth > 0)).flatten(1).any(1)
    return np.array([error(depth[i], sensor[i], valid[i]) for i in torch.nonzero(usable)[:, 0].tolist()])


def keyframes_of(track: Sequence[Tensor | None]) -> list[int]:
    """Keyframes of a camera path, as indices among the frames that have a pose, all segments together.

    Args:
        track: ``world_from_cam`` (4, 4) per frame, None where tracking failed; after more than 30 of those in a row
            the next frame is a keyframe in any case.
    """
    lost = torch.full((4, 4), math.nan, dtype=torch.float64)
    segments = select_keyframes(torch.stack([lost if pose is None else pose for pose in track]))
    rank = np.cumsum([pose is not None for pose in track]) - 1
    return [int(rank[i]) for segment in segments for i in segment]


def _scan_keyframes(scan: ScanNetScan) -> list[int]:
    return keyframes_of([pose for _, pose in scan_track(scan.folder)])


def resized_picture(path: Path, width: int, height: int) -> Tensor:
    """(3, H, W) float32 RGB in [0, 1] at another size."""
    image = load_rgb(path)[None]
    return torch.nn.functional.interpolate(
        image, (height, width), mode="bilinear", antialias=True, align_corners=False
    )[0].clamp(0, 1)


def _scan_query(scan: ScanNetScan) -> Query:
    color, depth = scan_scene(scan).views, scan_views(scan)
    views = []
    for i in _scan_keyframes(scan):
        path, camera = color[i].path, depth[i].camera
        assert path is not None
        small: Camera = resize_camera(color[i].camera, camera.width, camera.height)
        load = functools.partial(resized_picture, path, camera.width, camera.height)
        views.append(View(color[i].name, small, image=load, path=path))
    return Query(scan.name, "views", WANTS, Scene(tuple(views), metric=True, ordered=True))


def _scan_truth(scan: ScanNetScan) -> Truth:
    views = scan_views(scan)
    return _truth([views[i] for i in _scan_keyframes(scan)])


def _truth(views: Sequence[View]) -> Truth:
    depth = torch.stack([sensor_depth(v) for v in views])
    cameras = [v.camera for v in views]
    return Truth(
        {
            "depth": depth,
            "raw_depth": depth,
            "refined_depth": depth,
            "valid": depth > 0,
            "K": torch.stack([c.K for c in cameras if c.K is not None]),
            "world_from_cam": torch.stack(
                [c.world_from_cam for c in cameras if c.world_from_cam is not None]
            ),
        }
    )


def _room_truth(room: Room) -> Truth:
    views = room.views()
    return _truth([views[i] for i in keyframes_of(list(room.clip.world_from_cam))])


def _room_query(room: Room) -> Query:
    scene = room.scene()
    kept = tuple(scene.views[i] for i in keyframes_of(list(room.clip.world_from_cam)))
    return Query(room.name, "views", WANTS, scene.replace(views=kept))


PROTOCOLS: tuple[Protocol, ...] = (ScaleAlignmentProtocol(),)
