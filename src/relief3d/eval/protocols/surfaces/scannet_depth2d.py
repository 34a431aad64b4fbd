"""ScanNet: depth rendered from the mesh against sensor depth (specification 8.4; VFM-Recon, Table 2)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

from relief3d.core.errors import InputError
from relief3d.eval.aggregation import mean
from relief3d.eval.metrics.rendered_depth import rendered_depth_metrics
from relief3d.eval.metrics.surface_protocols import has_surface
from relief3d.eval.protocols.base import Answer, Column, Measurement, Protocol, Query, Sample
from relief3d.eval.protocols.surfaces.readers_scannet import LAYOUT, ScanNetScan, scan_views
from relief3d.eval.protocols.surfaces.scannet_mesh import scan_samples
from relief3d.eval.protocols.surfaces.surface_rules import (
    Benchmark,
    SurfaceProtocol,
    SurfaceTruth,
    answered_mesh,
    sensor_depth,
)
from relief3d.eval.protocols.surfaces.twin_rooms import Room, room_samples
from relief3d.eval.published.vfm_recon import TABLE2
from relief3d.render.factory import make_renderer

_FACTORS = {
    "abs_rel": 100.0,
    "abs_diff": 100.0,
    "sq_rel": 100.0,
    "rmse": 100.0,
    "rmse_log": 100.0,
    "d105": 100.0,
    "d110": 100.0,
    "d125": 100.0,
    "d125_2": 100.0,
    "d125_3": 100.0,
    "comp": 100.0,
}
COLUMNS = (
    Column("abs_rel", "Abs Rel", "x 100"),
    Column("abs_diff", "Abs Diff", "cm"),
    Column("sq_rel", "Sq Rel", "x 100"),
    Column("rmse", "RMSE", "cm"),
    Column("rmse_log", "log RMSE", "x 100"),
    Column("d105", "d<1.05", "%", "higher"),
    Column("d110", "d<1.10", "%", "higher"),
    Column("d125", "d<1.25", "%", "higher"),
    Column("d125_2", "d<1.25^2", "%", "higher"),
    Column("d125_3", "d<1.25^3", "%", "higher"),
    Column("comp", "Comp", "%", "higher"),
    Column("skipped", "frames skipped", "", None),
)


class RenderedDepthProtocol(SurfaceProtocol):
    """Mean per frame, then over frames, then over scenes; frames without a pixel to compare are skipped and counted."""

    columns = COLUMNS
    version = 2  # frames of a scene without a surface are counted as skipped

    def values(self, query: Query, truth: SurfaceTruth, answer: Answer) -> dict[str, float]:
        mesh = answered_mesh(answer)
        if not has_surface(mesh):
            return self.worst() | {"skipped": float(len(truth.views))}
        renderer = make_renderer()
        frames: list[dict[str, float]] = []
        measured = False
        for view in truth.views:
            sensor = sensor_depth(view)
            measured |= bool((sensor > 0).any())
            # As OpenGL renderers of the published scripts have it, faces seen from behind are looked through.
            got = rendered_depth_metrics(renderer.render(mesh, view.camera, back_faces="cull"), sensor)
            if got is not None:
                frames.append(got)
        if not measured:
            raise InputError("no valid pixels in the sensor depth of any frame")
        skipped = float(len(truth.views) - len(frames))
        if not frames:
            return self.worst() | {"skipped": skipped}
        means = {k: f * math.fsum(frame[k] for frame in frames) / len(frames) for k, f in _FACTORS.items()}
        return means | {"skipped": skipped}

    def worst(self) -> dict[str, float]:
        # Errors of nothing do not exist, so such a scene is missing from their means.
        return {"comp": 0.0} | {key: 0.0 for key in _FACTORS if key.startswith("d1")}

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        out = {c.key: mean(measurements, c.key) for c in self.columns}
        out["skipped"] = math.fsum(m.values.get("skipped", 0.0) for m in measurements)
        return out


def _truth(scan: ScanNetScan) -> SurfaceTruth:
    return SurfaceTruth(views=scan_views(scan))


def _open(data: Path) -> list[Sample]:
    return scan_samples(data, _truth)


def _room_truth(room: Room) -> SurfaceTruth:
    return SurfaceTruth(mesh=room.clip.world.to_mesh(0.25), views=room.views())


PROTOCOLS: tuple[Protocol, ...] = (
    RenderedDepthProtocol(
        Benchmark(
            "scannet_depth2d",
            "ScanNet, depth rendered from the mesh",
            "VFM-Recon, Table 2 (metrics of Atlas); specification scene_reconstruction.md 8.4",
            LAYOUT,
            (
                "The mesh is rendered into every depth frame with a valid pose (640x480) and compared with sensor "
                "depth below 10 m where both exist; Comp is the share of all pixels with a rendered depth.",
                "Mean per frame, then over frames, then over scenes. Frames without a pixel to compare are skipped and "
                "counted (NeuralRecon divides by all frames).",
                "Faces seen from behind are looked through, as OpenGL renderers do by default: mind the winding.",
                "The twin's mesh is a triangulation within half a millimetre of the exact surface, so its errors are "
                "not quite 0.",
            ),
            _open,
            functools.partial(room_samples, "scannet_depth2d", make_truth=_room_truth),
            TABLE2.select({key: key for key in TABLE2.columns}),
            {
                "abs_rel": 0.3,
                "abs_diff": 0.5,
                "sq_rel": 0.1,
                "rmse": 5.0,
                "rmse_log": 3.0,
                "d105": 99.5,
                "d110": 99.5,
                "d125": 99.5,
                "d125_2": 99.5,
                "d125_3": 99.5,
                "comp": 99.5,
            },
        )
    ),
)
