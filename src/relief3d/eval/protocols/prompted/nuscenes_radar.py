"""Depth from a camera and a radar on nuScenes, compared with lidar (MetricAnything Tab 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.data.prompt_patterns import Prompt
from relief3d.eval.aggregation import mean
from relief3d.eval.protocols.base import Answer, Budget, Column, Measurement, Protocol, Query, Sample, Truth
from relief3d.eval.protocols.metric.frames import load_rgb8
from relief3d.eval.protocols.metric.mono_depth_rules import lidar_view
from relief3d.eval.protocols.metric.readers_nuscenes import (
    LAYOUT,
    NuScenes,
    SensorFrame,
    lidar_depth,
    open_nuscenes,
    validation_scenes,
)
from relief3d.eval.protocols.prompted.completion_rules import (
    LEFT_OUT,
    LoadedFrame,
    clamped_errors,
    prompted_query,
)
from relief3d.eval.protocols.prompted.readers_radar import RadarOptions, radar_prompt, within_reach
from relief3d.eval.published.metric_prompted import TABLE_2
from relief3d.eval.published.table import PublishedRow
from relief3d.eval.twins.rendered import Clip, ClipPlan, clip_cache
from relief3d.geometry.point_splat import splat_depth
from relief3d.geometry.transforms import invert_rigid, transform_points
from relief3d.worlds import radar_scan

RANGES = (50, 70, 80)
"""Metres: true depth in (0, 50], (0, 70], (0, 80]."""
_TWIN: Mapping[Budget, tuple[int, int, tuple[int, int]]] = {
    "smoke": (2, 2, (48, 96)),
    "mini": (12, 2, (180, 320)),
}
"""Worlds, pictures each, (H, W)."""
TWIN_SCALE = 2.5
"""Every length of the twin's streets is multiplied by it, so that some truth lies in each of the three ranges."""


@dataclass(frozen=True)
class RadarFrame:
    """One keyframe; nothing is loaded before it is used.

    Attributes:
        name, group: of the sample; the scene is the group.
        load_image: (3, H, W) uint8.
        load_K: (3, 3) pixels.
        load_prompt: (H, W) radar depth in metres, 0 where none.
        load_lidar: (H, W) lidar depth in metres, 0 where none.
    """

    name: str
    group: str
    load_image: Callable[[], Tensor]
    load_K: Callable[[], Tensor | None]
    load_prompt: Callable[[], Tensor]
    load_lidar: Callable[[], Tensor]


class NuScenesRadar(Protocol):
    """MAE and RMSE in millimetres over lidar pixels of three depth ranges, per picture, then the mean.

    Args:
        options: how radar returns become a prompt.
    """

    name = "nuscenes_radar"
    title = "nuScenes val: depth from the front camera and radar"
    source = "MetricAnything Tab 2; metric_depth 2.7 f, 9.7, 10.2, 18"
    task = "prompted_depth"
    version = 2
    columns = (
        *(Column(f"{kind}_{r}", f"{kind.upper()} {r} m", "mm") for r in RANGES for kind in ("mae", "rmse")),
        LEFT_OUT,
    )
    layout = f"{LAYOUT}\nsweeps/RADAR_FRONT/*.pcd"
    notes = (
        "Truth is the single LIDAR_TOP sweep of the keyframe without points on the car; ranges are (0, 50], (0, 70], "
        "(0, 80] m of true depth. A picture without lidar points in a range does not count there.",
        "MAE and RMSE per picture, then the mean over pictures.",
        "The prompt is the one RADAR_FRONT sweep nearest in time, moved with the car; all returns with camera depth "
        "below 80 m, unfiltered. Their height is unreliable.",
        "Predictions are clamped to [0.001, 1000] m; pixels without a finite one are left out and counted.",
    )

    def __init__(self, options: RadarOptions | None = None) -> None:
        self.options = options or RadarOptions()

    def open(self, data: Path) -> list[Sample]:
        """Keyframes of the official validation scenes; see :class:`Protocol`."""
        tables = open_nuscenes(
            data, ("CAM_FRONT", "LIDAR_TOP", "RADAR_FRONT"), scenes=validation_scenes(), sweeps=True
        )
        return self._samples(_real_frames(tables, self.options))

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Enlarged streets with an imitated lidar above and radar below the camera."""
        return self._samples(_twin_frames(budget, derive_seed(seed, self.name)))

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """Errors of one picture; the answer needs ``depth`` (1, H, W) in metres."""
        depth = truth.need("depth")
        values: dict[str, float] = {}
        for limit in RANGES:
            valid = (depth > 0) & (depth <= limit)
            if not bool(valid.any()):
                continue
            errors, missing = clamped_errors(answer, depth, valid)
            values[f"mae_{limit}"] = 1e3 * float(errors.mae)
            values[f"rmse_{limit}"] = 1e3 * float(errors.rmse)
            values[LEFT_OUT.key] = 100 * missing
        if not values:
            raise InputError("no valid pixels: no lidar point nearer than 80 m")
        return Measurement(query.name, str(truth.facts["group"]), values)

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """Means over pictures."""
        return {column.key: mean(measurements, column.key) for column in self.columns}

    def published(self) -> Sequence[PublishedRow]:
        """All rows of Tab 2."""
        return TABLE_2.rows

    def _samples(self, frames: Sequence[RadarFrame]) -> list[Sample]:
        return [_sample(frame) for frame in frames]


def _sample(frame: RadarFrame) -> Sample:
    def query() -> Query:
        prompt = frame.load_prompt()
        loaded = LoadedFrame(frame.load_image(), prompt, frame.load_K())
        return prompted_query(frame.name, loaded, Prompt(prompt, prompt > 0))

    def truth() -> Truth:
        depth = frame.load_lidar()[None]
        valid = (depth > 0) & (depth <= RANGES[-1])
        return Truth({"depth": depth, "valid": valid}, facts={"group": frame.group})

    return Sample(frame.name, frame.group, query, truth)


def _real_frames(tables: NuScenes, options: RadarOptions) -> list[RadarFrame]:
    lidars, radars = tables.by_sample("LIDAR_TOP"), tables.by_scene("RADAR_FRONT")
    out = []
    for camera in tables.keyframes("CAM_FRONT"):
        lidar = lidars.get(camera.sample)
        if lidar is None:
            raise InputError(
                f"the keyframe '{camera.sample}' has no LIDAR_TOP sweep",
                path=tables.root,
                remedy="repair sample_data.json",
            )
        out.append(_real_frame(tables.root, camera, lidar, radars.get(camera.scene, []), options))
    if not out:
        raise InputError("holds no CAM_FRONT keyframes of validation scenes", path=tables.root)
    return out


def _real_frame(
    root: Path, camera: SensorFrame, lidar: SensorFrame, radars: Sequence[SensorFrame], options: RadarOptions
) -> RadarFrame:
    return RadarFrame(
        name=f"{camera.scene}/{Path(camera.path).stem}",
        group=camera.scene,
        load_image=lambda: load_rgb8(root / camera.path),
        load_K=lambda: camera.K,
        load_prompt=lambda: radar_prompt(root, radars, camera, options),
        load_lidar=lambda: lidar_depth(root, lidar, camera),
    )


def _twin_frames(budget: Budget, seed: int) -> list[RadarFrame]:
    worlds, views, size = _TWIN[budget]
    render = clip_cache()
    out = []
    for world in range(worlds):
        plan = ClipPlan(derive_seed(seed, world), views, size, family="street")
        out += [_twin_frame(render, plan, f"street{world:03d}", i) for i in range(views)]
    return out


def _twin_frame(render: Callable[[ClipPlan], Clip], plan: ClipPlan, group: str, i: int) -> RadarFrame:
    return RadarFrame(
        name=f"{group}/{i:06d}",
        group=group,
        load_image=lambda: render(plan).images[i],
        load_K=lambda: render(plan).K[i],
        load_prompt=lambda: twin_radar(render(plan), i, plan.seed),
        load_lidar=lambda: TWIN_SCALE * lidar_view(render(plan), i, plan.seed),
    )


def twin_radar(clip: Clip, index: int, seed: int) -> Tensor:
    """(H, W) depth, times :data:`TWIN_SCALE`, of an imitated radar half a metre below the camera, looking along it.

    Its height is unreliable.
    """
    pose = clip.world_from_cam[index].float()
    yaw = math.atan2(float(pose[1, 2]), float(pose[0, 2]))
    sensor = torch.eye(4)
    sensor[:2, :2] = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
    sensor[:3, 3] = pose[:3, 3] - torch.tensor([0.0, 0.0, 0.5])
    scan = radar_scan(
        clip.world,
        sensor[None],
        torch_generator(derive_seed(seed, "radar", index)),
        times=clip.times[index][None],
    )
    points = transform_points(invert_rigid(pose), scan.points[0][scan.valid[0]])
    size = (clip.images.shape[-2], clip.images.shape[-1])
    return within_reach(TWIN_SCALE * splat_depth(points, clip.K[index], size).float())


PROTOCOLS: tuple[Protocol, ...] = (NuScenesRadar(),)
