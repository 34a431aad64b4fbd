"""The tables of nuScenes: recordings of sensors, their mounting on the car and the car's way through the world.

The tables join like a database: a ``sample`` is a keyframe of a ``scene``; a ``sample_data`` row is one recording
of one sensor with its ``calibrated_sensor`` (mounting, intrinsics) and its ``ego_pose`` (the car in the world).
The public intrinsics count pixel centres at integers, so 0.5 is added to cx and cy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.readers.files import usable_K
from relief3d.geometry.rotations import matrix_from_quat_wxyz
from relief3d.geometry.transforms import compose, make_rigid
from relief3d.io.formats import check_regular_file, unreadable
from relief3d.io.json_file import Record

_CHUNK = 1 << 20
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


def open_tables(
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
    tables = _table_folder(root)
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


def scene_names(root: Path) -> list[str]:
    """Names of all scenes of a release, in order; only the smallest table is read.

    Raises:
        InputError: the tables are missing or damaged.
    """
    return sorted(r.need("name") for r in _rows(_table_folder(root) / "scene.json"))


def _table_folder(root: Path) -> Path:
    tables = next(
        (root / v for v in ("v1.0-trainval", "v1.0-mini", "v1.0-test") if (root / v).is_dir()), None
    )
    if tables is None:
        raise InputError(
            "does not look like nuScenes: it has no v1.0-trainval or v1.0-mini",
            path=root,
            remedy="unpack the metadata archive of nuScenes there",
        )
    return tables


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
