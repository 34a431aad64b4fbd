"""nuScenes: six cameras, a lidar and five radars on a car, with the car's way through the world."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from relief3d.core.contract import Scene, SparseDepth
from relief3d.core.errors import InputError
from relief3d.data.readers.files import file_view
from relief3d.data.readers.kitti import points_in_picture
from relief3d.data.readers.lazy_sparse import LazySparseDepth
from relief3d.data.readers.nuscenes_sensors import (
    camera_from_sensor,
    outside_ego_box,
    radar_points,
    read_lidar,
)
from relief3d.data.readers.nuscenes_tables import (
    NuScenes,
    SensorFrame,
    nearest_in_time,
    open_tables,
    scene_names,
    validation_scenes,
)
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.geometry.transforms import transform_points

CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_RIGHT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_FRONT_LEFT",
)
LIDAR = "LIDAR_TOP"
RADARS = ("RADAR_FRONT", "RADAR_FRONT_LEFT", "RADAR_FRONT_RIGHT", "RADAR_BACK_LEFT", "RADAR_BACK_RIGHT")

CARD = DatasetCard(
    name="nuscenes",
    title="nuScenes",
    sources=(
        "https://www.nuscenes.org/nuscenes#data-format",
        "https://github.com/nutonomy/nuscenes-devkit/blob/master/docs/schema_nuscenes.md",
    ),
    licence="CC BY-NC-SA 4.0 with nuScenes' own terms, non-commercial",
    gives=("image", "K", "pose", "sparse depth (lidar, radar)", "time"),
    metric=True,
    layout=(
        "v1.0-{trainval,mini,test}/{scene,sample,sample_data,calibrated_sensor,ego_pose,sensor}.json\n"
        "samples/{CAM_FRONT/*.jpg, LIDAR_TOP/*.pcd.bin, RADAR_FRONT/*.pcd}, sweeps/ likewise"
    ),
    conventions=(
        "quaternions (w, x, y, z), sensor to car and car to world at the sensor's own instant; points go from their "
        "sensor through the world to the camera, so the car's motion between both instants is undone; camera axes are "
        "OpenCV; pixel centres at integers, so 0.5 is added to cx and cy; lidar points on the car itself are dropped."
    ),
    splits=("train", "val"),
    open_points=(
        "Its own page was not at hand: tables and binary rows follow the development kit as public code reads them.",
        "Radar has no known uncertainty here, so sparse depth carries no sigma.",
    ),
)


class _Tables:
    """The tables, read once at the first scene and not sent to other processes: they exceed a gigabyte."""

    def __init__(self, root: Path, channels: tuple[str, ...], scenes: frozenset[str]) -> None:
        self.root, self.channels, self.scenes = root, channels, scenes
        self._opened: NuScenes | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Tables, (self.root, self.channels, self.scenes))

    def get(self) -> NuScenes:
        """Recordings of the wanted sensors and scenes."""
        if self._opened is None:
            self._opened = open_tables(self.root, self.channels, scenes=self.scenes, sweeps=False)
        return self._opened


def open_nuscenes(
    root: str | Path,
    *,
    split: str | None = None,
    cameras: Sequence[str] = ("CAM_FRONT",),
    sensors: Sequence[str] = (LIDAR,),
    radar_filtered: bool = True,
) -> SceneSet:
    """Scenes ("scene-0061") with the keyframes of some cameras; views are called "CAM_FRONT/NAME", by time.

    Args:
        root: with the tables, ``samples`` and ``sweeps``.
        split: "train" or "val" (the official 150 scenes).
        cameras: of :data:`CAMERAS`.
        sensors: lidar and radars whose points become sparse depth: :data:`LIDAR`, :data:`RADARS`.
        radar_filtered: take only radar returns that the official development kit keeps.

    Raises:
        InputError: no tables here, no scene of the split, or an unknown sensor.
    """
    root, split = Path(root), CARD.check_split(split)
    for name, known in [(c, CAMERAS) for c in cameras] + [(s, (LIDAR, *RADARS)) for s in sensors]:
        if name not in known:
            raise InputError(f"nuScenes has no '{name}' there", remedy=f"use {', '.join(known)}")
    val = validation_scenes()
    names = [n for n in scene_names(root) if split is None or (n in val) == (split == "val")]
    if not names:
        raise InputError(
            f"holds no scene of the split '{split}'", path=root, remedy="download the other release"
        )
    tables = _Tables(root, (*cameras, *sensors), frozenset(names))
    build = functools.partial(
        _scene, tables=tables, cameras=tuple(cameras), sensors=tuple(sensors), filtered=radar_filtered
    )
    return SceneSet(CARD, dict.fromkeys(names), build)


def _scene(
    name: str, item: None, tables: _Tables, cameras: tuple[str, ...], sensors: tuple[str, ...], filtered: bool
) -> Scene:
    opened = tables.get()
    pictures = [f for c in cameras for f in opened.by_scene(c).get(name, ()) if f.is_key]
    pictures.sort(key=lambda f: (f.time, cameras.index(f.channel)))
    if not pictures:
        raise InputError(f"has no picture of {name}", path=tables.root, remedy="repair sample_data.json")
    sweeps = {s: opened.by_scene(s).get(name, []) for s in sensors}
    views = []
    for frame in pictures:
        size = None if frame.size is None else (frame.size[1], frame.size[0])
        view = file_view(
            f"{frame.channel}/{Path(frame.path).stem}",
            tables.root / frame.path,
            frame.K,
            frame.world_from_sensor,
            size=size,
            time=(frame.time - pictures[0].time) * 1e-6,
        )
        near = [n for s in sensors if (n := nearest_in_time(sweeps[s], frame.time)) is not None]
        if near:
            load = functools.partial(sensor_points, tables.root, tuple(near), frame, filtered)
            view = view.replace(sparse_depth=LazySparseDepth(load))
        views.append(view)
    info = {"dataset": CARD.name, "scene": name}
    return Scene(tuple(views), metric=True, ordered=len(cameras) == 1, info=info)


def sensor_points(
    root: Path, sweeps: tuple[SensorFrame, ...], camera: SensorFrame, filtered: bool
) -> SparseDepth:
    """Points of some sweeps that fall into a picture, the car's motion between the instants undone.

    Raises:
        InputError: a sweep cannot be read, or ``camera`` is no camera.
    """
    if camera.K is None or camera.size is None:
        raise InputError(f"'{camera.channel}' is not a camera")
    parts = []
    for sweep in sweeps:
        if sweep.channel == LIDAR:
            points = read_lidar(root / sweep.path)[:, :3].double()
            points = points[outside_ego_box(points, sweep.ego_from_sensor)]
        else:
            points = radar_points(root / sweep.path, filtered=filtered)
        parts.append(transform_points(camera_from_sensor(sweep, camera), points))
    return points_in_picture(torch.cat(parts), camera.K, (camera.size[1], camera.size[0]))
