"""COLMAP models as binary: ``cameras.bin``, ``images.bin``, ``points3D.bin`` (little endian)."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from relief3d.core.errors import InputError
from relief3d.io.atomic import write_bytes
from relief3d.io.colmap_model import (
    CAMERA_MODELS,
    MODEL_BY_ID,
    ColmapCamera,
    ColmapImage,
    ColmapModel,
    ColmapPoints,
)
from relief3d.io.whole_file import read_whole

_OBSERVATION = np.dtype([("xy", "<f8", (2,)), ("point", "<i8")])
_POINT = struct.Struct("<Q3d3BdQ")
_IMAGE = struct.Struct("<I7dI")


def read_colmap_binary(folder: str | Path) -> ColmapModel:
    """Read the three binary files of a model.

    Counts are compared with the bytes that are left before memory is reserved.

    Raises:
        InputError: naming the file, when anything is missing, cut short or malformed.
    """
    folder = Path(folder)
    return ColmapModel(
        _read_cameras(folder / "cameras.bin"),
        _read_images(folder / "images.bin"),
        _read_points(folder / "points3D.bin"),
        folder,
    )


def write_colmap_binary(model: ColmapModel, folder: str | Path) -> None:
    """Write the three binary files into an existing folder."""
    folder = Path(folder)
    parts = [struct.pack("<Q", len(model.cameras))]
    for key, camera in model.cameras.items():
        number = CAMERA_MODELS[camera.model][0]
        parts.append(struct.pack("<IiQQ", key, number, camera.width, camera.height))
        parts.append(np.array(camera.params, dtype="<f8").tobytes())
    write_bytes(folder / "cameras.bin", b"".join(parts))

    parts = [struct.pack("<Q", len(model.images))]
    for key, image in model.images.items():
        parts.append(_IMAGE.pack(key, *image.quaternion, *image.translation, image.camera_id))
        parts.append(image.name.encode("utf-8") + b"\0")
        rows = np.empty(len(image.point_ids), dtype=_OBSERVATION)
        rows["xy"], rows["point"] = image.xy, image.point_ids
        parts.append(struct.pack("<Q", len(rows)) + rows.tobytes())
    write_bytes(folder / "images.bin", b"".join(parts))

    points = model.points
    parts = [struct.pack("<Q", len(points.ids))]
    track = points.track.astype("<u4")
    rows_of_points = zip(
        points.ids.tolist(),
        points.xyz.tolist(),
        points.rgb.tolist(),
        points.error.tolist(),
        points.starts.tolist(),
    )
    lengths = np.diff(points.starts).tolist()
    for (key, xyz, rgb, error, start), length in zip(rows_of_points, lengths):
        parts.append(_POINT.pack(key, *xyz, *rgb, error, length))
        parts.append(track[start : start + length].tobytes())
    write_bytes(folder / "points3D.bin", b"".join(parts))


class _Cursor:
    """Reads fixed-size records and refuses to go past the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = read_whole(path)
        self.at = 0

    def take(self, size: int) -> int:
        """Claim ``size`` bytes and return where they begin."""
        start = self.at
        if size < 0 or start + size > len(self.data):
            raise InputError(
                f"the file ends at byte {len(self.data)} in the middle of a record",
                path=self.path,
                remedy="it may be cut short or not a COLMAP model",
            )
        self.at = start + size
        return start

    def unpack(self, layout: struct.Struct) -> tuple[float, ...]:
        return layout.unpack_from(self.data, self.take(layout.size))

    def count(self, least: int) -> int:
        """A 64-bit count of records that have at least ``least`` bytes each."""
        value = int(struct.unpack_from("<Q", self.data, self.take(8))[0])
        if value * least > len(self.data) - self.at:
            raise InputError(
                f"the file declares {value} records, more than its {len(self.data)} bytes hold",
                path=self.path,
                remedy="it may be cut short or not a COLMAP model",
            )
        return value

    def text(self, limit: int = 4096) -> str:
        end = self.data.find(b"\0", self.at, self.at + limit)
        if end < 0:
            raise InputError("a picture name in the file does not end", path=self.path)
        raw = self.data[self.at : end]
        self.at = end + 1
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise InputError("a picture name in the file is not UTF-8", path=self.path) from exc

    def finish(self) -> None:
        if self.at != len(self.data):
            raise InputError(
                f"the file has {len(self.data) - self.at} bytes after its last record", path=self.path
            )


def _read_cameras(path: Path) -> dict[int, ColmapCamera]:
    cursor = _Cursor(path)
    cameras: dict[int, ColmapCamera] = {}
    head = struct.Struct("<IiQQ")
    for _ in range(cursor.count(head.size + 16)):
        key, number, width, height = map(int, cursor.unpack(head))
        model = MODEL_BY_ID.get(number)
        if model is None:
            raise InputError(f"camera {key} has the unknown lens model number {number}", path=path)
        wanted = CAMERA_MODELS[model][1]
        params = np.frombuffer(cursor.data, "<f8", wanted, cursor.take(8 * wanted))
        if key in cameras:
            raise InputError(f"camera {key} is defined twice", path=path)
        if width >= 2**31 or height >= 2**31:
            raise InputError(f"camera {key} has an impossible size of {width} x {height} pixels", path=path)
        cameras[key] = ColmapCamera(model, width, height, tuple(params.tolist()))
    cursor.finish()
    return cameras


def _read_images(path: Path) -> dict[int, ColmapImage]:
    cursor = _Cursor(path)
    images: dict[int, ColmapImage] = {}
    for _ in range(cursor.count(_IMAGE.size + 9)):
        record = cursor.unpack(_IMAGE)
        key, camera_id, pose = int(record[0]), int(record[8]), np.array(record[1:8], np.float64)
        name = cursor.text()
        count = cursor.count(_OBSERVATION.itemsize)
        rows = np.frombuffer(cursor.data, _OBSERVATION, count, cursor.take(count * _OBSERVATION.itemsize))
        if not (np.isfinite(pose).all() and np.isfinite(rows["xy"]).all()):
            raise InputError(f"image '{name}' has numbers that are not finite", path=path)
        if key in images:
            raise InputError(f"image {key} is defined twice", path=path)
        xy, point_ids = rows["xy"].astype(np.float64), rows["point"].astype(np.int64)
        images[key] = ColmapImage(name, camera_id, pose[:4], pose[4:], xy, point_ids)
    cursor.finish()
    return images


def _read_points(path: Path) -> ColmapPoints:
    cursor = _Cursor(path)
    count = cursor.count(_POINT.size)
    ids = np.empty(count, np.int64)
    table = np.empty((count, 7), np.float64)
    lengths = np.empty(count, np.int64)
    tracks = []
    for row in range(count):
        key, *numbers, length = cursor.unpack(_POINT)
        if key >= 2**63:
            raise InputError(f"point {row} has an id out of range", path=path)
        start = cursor.take(8 * int(length))
        ids[row], table[row], lengths[row] = int(key), numbers, int(length)
        tracks.append(np.frombuffer(cursor.data, "<u4", 2 * int(length), start))
    cursor.finish()
    if not np.isfinite(table).all():
        raise InputError("the file has points that are not finite", path=path)
    flat = np.concatenate(tracks).astype(np.int64).reshape(-1, 2) if tracks else np.zeros((0, 2), np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return ColmapPoints(
        ids, table[:, :3].copy(), table[:, 3:6].astype(np.uint8), table[:, 6].copy(), starts, flat
    )
