"""nuScenes in its public layout: JSON tables, camera pictures, lidar sweeps, and the transforms between sensors.

The tables join like a database: a ``sample`` is a keyframe of a ``scene``; a ``sample_data`` row is one recording
of one sensor with its ``calibrated_sensor`` (mounting, intrinsics) and its ``ego_pose`` (the car in the world).
The public intrinsics count pixel centres at integers, so 0.5 is added to cx and cy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.protocols.metric.frames import FrameFile, load_rgb8, usable_K
from relief3d.geometry.point_splat import drop_occluded, splat_depth
from relief3d.geometry.rotations import matrix_from_quat_wxyz
from relief3d.geometry.transforms import compose, invert_rigid, make_rigid, transform_points
from relief3d.io.formats import check_regular_file, unreadable
from relief3d.io.json_file import Record

LAYOUT = """\
v1.0-trainval/{scene,sample,sample_data,calibrated_sensor,ego_pose,sensor}.json (or v1.0-mini)
samples/CAM_FRONT/*.jpg, samples/LIDAR_TOP/*.pcd.bin, samples/RADAR_FRONT/*.pcd"""

_CHUNK = 1 << 20
_EGO_BOX = (-1.0, 1.0, -2.0, 3.0)
_VAL = (
    "3 12-18 35 36 38 39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629 630 632-638 770 771 775 777 "
    "778 780-784 794-800 802 904-917 919-931 962 963 966-969 971 972 1059-1073"
)


def validation_scenes() -> frozenset[str]:
    """Names of the 150 official validation scenes ("scene-0003", ...)."""
    numbers: list[int] = []
    for part in _VAL.split():
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return frozenset(f"scene-{n:04d}" for n in numbers)


@dataclass(frozen=True)
class SensorFrame:
    """One recording of one sensor.

    Attributes:
        token: of the ``sample_data`` row.
        sample: token of the keyframe it belongs to (for sweeps between keyframes, the nearest one).
        scene: name of the scene.
        channel: such as "CAM_FRONT".
        path: file, relative to the data set.
        time: microseconds since 1970.
        is_key: belongs to a keyframe itself.
        size: (H, W) pixels of a picture, None for other sensors.
        K: (3, 3) float64 pixels, centres at +0.5; None for other sensors.
        ego_from_sensor: (4, 4) float64 mounting; cameras have OpenCV axes, the car x forward, y left, z up.
        world_from_ego: (4, 4) float64 car at that instant.
    """

    token: str
    sample: str
    scene: str
    channel: str
    path: str
    time: int
    is_key: bool
    size: tuple[int, int] | None
    K: Tensor | None
    ego_from_sensor: Tensor
    world_from_ego: Tensor

    @property
    def world_from_sensor(self) -> Tensor:
        """(4, 4) pose of the sensor at its own instant."""
        return compose(self.world_from_ego, self.ego_from_sensor)


@dataclass(frozen=True)
class NuScenes:
    """Opened tables.

    Attributes:
        root: of the data set.
        frames: recordings, by channel, in order of scene and time.
    """

    root: Path
    frames: Mapping[str, Sequence[SensorFrame]]

    def keyframes(self, channel: str) -> list[SensorFrame]:
        """Recordings of a sensor at keyframes, in order of scene and time."""
        return [f for f in self.frames.get(channel, ()) if f.is_key]

    def by_sample(self, channel: str) -> dict[str, SensorFrame]:
        """Keyframe recordings of a sensor by the token of their keyframe."""
        return {f.sample: f for f in self.keyframes(channel)}

    def by_scene(self, channel: str) -> dict[str, list[SensorFrame]]:
        """All opened recordings of a sensor by scene, each list in order of time."""
        scenes: dict[str, list[SensorFrame]] = {}
        for f in self.frames.get(channel, ()):
            scenes.setdefault(f.scene, []).append(f)
        return scenes


def nearest_in_time(frames: Sequence[SensorFrame], time: int) -> SensorFrame | None:
    """The recording nearest to an instant in microseconds (the earlier of two equally near), None without any."""
    return min(frames, key=lambda f: (abs(f.time - time), f.time), default=None)


def open_nuscenes(
    root: Path,
    channels: Sequence[str] = ("CAM_FRONT", "LIDAR_TOP"),
    *,
    scenes: frozenset[str] | None = None,
    sweeps: bool = False,
) -> NuScenes:
    """Read the tables; no picture or sweep is opened.

    The largest tables exceed a gigabyte, so they are read row by row and only what is wanted is kept.

    Args:
        root: folder with ``v1.0-trainval`` (or ``v1.0-mini``), ``samples`` and ``sweeps``.
        channels: sensors that are wanted.
        scenes: names of wanted scenes; None for all.
        sweeps: also recordings between keyframes.

    Raises:
        InputError: a table is missing, damaged, or has no row for a token; or no wanted scene is there.
    """
    tables = next(
        (root / v for v in ("v1.0-trainval", "v1.0-mini", "v1.0-test") if (root / v).is_dir()), None
    )
    if tables is None:
        raise InputError(
            "does not look like nuScenes: it has no v1.0-trainval or v1.0-mini",
            path=root,
            remedy="unpack the metadata archive of nuScenes there",
        )
    names = {r.need("token"): r.need("name") for r in _rows(tables / "scene.json")}
    wanted = {token: name for token, name in names.items() if scenes is None or name in scenes}
    if not wanted:
        raise InputError("none of the wanted scenes is in this release", path=tables / "scene.json")
    samples = {
        r.need("token"): wanted[r.need("scene_token")]
        for r in _rows(tables / "sample.json", lambda v: _token(v, "scene_token") in wanted)
    }
    sensors = {r.need("token"): r.need("channel") for r in _rows(tables / "sensor.json")}
    mounts = {
        r.need("token"): r
        for r in _rows(tables / "calibrated_sensor.json")
        if sensors.get(r.need("sensor_token")) in channels
    }

    def chosen(row: Mapping[str, object]) -> bool:
        return (
            _token(row, "sample_token") in samples
            and _token(row, "calibrated_sensor_token") in mounts
            and (sweeps or bool(row.get("is_key_frame")))
        )

    data = list(_rows(tables / "sample_data.json", chosen))
    needed = {r.need("ego_pose_token") for r in data}
    egos = {
        r.need("token"): r for r in _rows(tables / "ego_pose.json", lambda v: _token(v, "token") in needed)
    }
    frames: dict[str, list[SensorFrame]] = {channel: [] for channel in channels}
    for row in data:
        mount, ego = mounts[row.need("calibrated_sensor_token")], egos.get(row.need("ego_pose_token"))
        if ego is None:
            raise row.error(f"has no row in ego_pose.json for the token '{row.need('ego_pose_token')}'")
        frame = _sensor_frame(
            row, mount, ego, sensors[mount.need("sensor_token")], samples[row.need("sample_token")]
        )
        frames[frame.channel].append(frame)
    for recordings in frames.values():
        recordings.sort(key=lambda f: (f.scene, f.time))
    return NuScenes(root, frames)


def read_lidar(path: Path) -> Tensor:
    """(P, 5) float32 rows of a ``.pcd.bin`` sweep: x, y, z in the sensor's frame, intensity, ring.

    Raises:
        InputError: missing, or not a multiple of five numbers.
    """
    path = check_regular_file(path)
    if path.stat().st_size % 20:
        raise InputError(
            "is not a lidar sweep of nuScenes (rows of five float32)", path=path, remedy="copy it again"
        )
    try:
        values = np.fromfile(path, dtype="<f4")
    except OSError as exc:
        raise unreadable(path, exc) from exc
    return torch.from_numpy(values.astype(np.float32)).reshape(-1, 5)


def camera_from_sensor(sensor: SensorFrame, camera: SensorFrame, *, ego_motion: bool = True) -> Tensor:
    """(4, 4) float64 from another sensor's frame at its instant to a camera's frame.

    Args:
        sensor: lidar or radar recording.
        camera: picture.
        ego_motion: account for the drive of the car between both instants. False takes the car as standing, as
            MetricAnything does at test time (its section 6.1).
    """
    camera_from_ego = invert_rigid(camera.ego_from_sensor)
    if not ego_motion:
        return compose(camera_from_ego, sensor.ego_from_sensor)
    return compose(camera_from_ego, invert_rigid(camera.world_from_ego), sensor.world_from_sensor)


def outside_ego_box(points: Tensor, ego_from_sensor: Tensor) -> Tensor:
    """(P,) bool, True for points (P, 3) of a sensor that do not lie on the car itself (a box of 2 x 5 m).

    The origin of the car's frame is the middle of the rear axle, so the box reaches from 2 m behind it to 3 m ahead
    (our choice; the source gives only the size).
    """
    x, y = transform_points(ego_from_sensor.to(points.dtype), points)[:, :2].unbind(-1)
    right, left, back, front = _EGO_BOX
    return ~((y > right) & (y < left) & (x > back) & (x < front))


def lidar_depth(
    root: Path,
    lidar: SensorFrame,
    camera: SensorFrame,
    *,
    ego_motion: bool = True,
    keep_ego: bool = False,
    occlusion: bool = False,
) -> Tensor:
    """(H, W) float32 z-depth of one lidar sweep in a camera's picture, 0 where no point falls.

    Args:
        root: of the data set.
        lidar: sweep.
        camera: picture.
        ego_motion: see :func:`camera_from_sensor`.
        keep_ego: keep points on the car itself.
        occlusion: drop points that a nearer neighbour should hide (:func:`drop_occluded`).

    Raises:
        InputError: the sweep cannot be read, or ``camera`` is no camera.
    """
    if camera.K is None or camera.size is None:
        raise InputError(f"'{camera.channel}' is not a camera")
    points = read_lidar(root / lidar.path)[:, :3].double()
    if not keep_ego:
        points = points[outside_ego_box(points, lidar.ego_from_sensor)]
    moved = transform_points(camera_from_sensor(lidar, camera, ego_motion=ego_motion), points)
    depth = splat_depth(moved, camera.K, camera.size).float()
    return drop_occluded(depth) if occlusion else depth


def open_front_frames(root: Path, *, scenes: frozenset[str] | None = None) -> list[FrameFile]:
    """CAM_FRONT keyframes with the depth of their LIDAR_TOP sweep.

    Args:
        root: of the data set.
        scenes: wanted scenes; the official validation scenes when None.

    Raises:
        InputError: tables are missing, or a keyframe has no lidar sweep.
    """
    opened = open_nuscenes(root, scenes=validation_scenes() if scenes is None else scenes)
    sweeps = opened.by_sample("LIDAR_TOP")
    out = []
    for camera in opened.keyframes("CAM_FRONT"):
        lidar = sweeps.get(camera.sample)
        if lidar is None:
            raise InputError(
                f"the keyframe '{camera.sample}' has no LIDAR_TOP sweep",
                path=root,
                remedy="repair sample_data.json",
            )
        out.append(_frame_file(root, camera, lidar))
    if not out:
        raise InputError("holds no CAM_FRONT keyframes", path=root)
    return out


def _frame_file(root: Path, camera: SensorFrame, lidar: SensorFrame) -> FrameFile:
    def depth() -> Tensor:
        return lidar_depth(root, lidar, camera)

    return FrameFile(
        name=f"{camera.scene}/{Path(camera.path).stem}",
        group=camera.scene,
        load_image=lambda: load_rgb8(root / camera.path),
        load_depth=depth,
        load_valid=lambda: depth() > 0,
        K=camera.K,
    )


@dataclass(frozen=True)
class _Row(Record):
    """A table row with texts that must be there."""

    def need(self, key: str) -> str:
        value = self.text(key)
        if value is None:
            raise self.error(f"'{key}' is missing")
        return value


def _token(row: Mapping[str, object], key: str) -> str | None:
    """A text of a raw row, None for anything else: damaged tables hold values that no look-up takes."""
    value = row.get(key)
    return value if isinstance(value, str) else None


def _rows(path: Path, keep: Callable[[Mapping[str, object]], bool] = lambda row: True) -> Iterator[_Row]:
    """Objects of a JSON list, one at a time, without holding the file in memory."""
    path = check_regular_file(path)
    decoder, number = json.JSONDecoder(), 0
    try:
        with path.open(encoding="utf-8-sig") as stream:
            buffer = stream.read(_CHUNK).lstrip()
            if not buffer.startswith("["):
                raise InputError("is not a table of nuScenes (a JSON list of objects)", path=path)
            position = 1
            while True:
                while position < len(buffer) and buffer[position] in " \t\r\n,":
                    position += 1
                if position < len(buffer) and buffer[position] == "]":
                    return
                try:
                    row, position = decoder.raw_decode(buffer, position)
                except json.JSONDecodeError as exc:
                    more = stream.read(_CHUNK)
                    if not more:
                        raise InputError(
                            f"is cut off or damaged after row {number}", path=path, remedy="copy it again"
                        ) from exc
                    buffer, position = buffer[position:] + more, 0
                    continue
                number += 1
                if not isinstance(row, dict):
                    raise InputError(f"row {number} is not an object", path=path)
                if keep(row):
                    yield _Row(row, path, f"row {number}")
    except OSError as exc:
        raise unreadable(path, exc) from exc
    except UnicodeDecodeError as exc:
        raise InputError("the file is not UTF-8 text", path=path) from exc


def _pose(row: _Row) -> Tensor:
    rotation, translation = row.numbers("rotation"), row.numbers("translation")
    if rotation is None or len(rotation) != 4 or translation is None or len(translation) != 3:
        raise row.error("'rotation' (w, x, y, z) or 'translation' (x, y, z) is missing")
    quat = torch.tensor(rotation, dtype=torch.float64)
    if not bool(quat.norm() > 0.5):
        raise row.error("'rotation' is not a unit quaternion")
    return make_rigid(matrix_from_quat_wxyz(quat), torch.tensor(translation, dtype=torch.float64))


def _sensor_frame(row: _Row, mount: _Row, ego: _Row, channel: str, scene: str) -> SensorFrame:
    K = mount.matrix("camera_intrinsic", [(3, 3)]) if mount.get("camera_intrinsic") else None
    height, width, time = row.integer("height"), row.integer("width"), row.integer("timestamp")
    if time is None:
        raise row.error("'timestamp' is missing")
    if K is not None:
        if height is not None and width is not None and min(height, width) < 0:
            raise row.error(f"a picture of {width} x {height} pixels cannot be")
        K = usable_K(K.clone(), mount.path)
        K[:2, 2] += 0.5
    return SensorFrame(
        token=row.need("token"),
        sample=row.need("sample_token"),
        scene=scene,
        channel=channel,
        path=row.need("filename"),
        time=time,
        is_key=bool(row.get("is_key_frame")),
        size=(height, width) if K is not None and height and width else None,
        K=K,
        ego_from_sensor=_pose(mount),
        world_from_ego=_pose(ego),
    )
