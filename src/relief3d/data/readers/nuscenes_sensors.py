"""Sweeps of nuScenes' lidar and radars, and the way from a sensor at its instant to a camera at another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.readers.nuscenes_tables import SensorFrame
from relief3d.geometry.transforms import compose, invert_rigid, transform_points
from relief3d.io.formats import check_regular_file, unreadable
from relief3d.io.whole_file import read_whole

_EGO_BOX = (-1.0, 1.0, -2.0, 3.0)
_TYPES = {"F": "f", "I": "i", "U": "u"}
_MAX_BYTES = 64 * 1024**2
_VALID, _MOVING, _CLEAR = (0,), tuple(range(7)), (3,)
"""States that the public development kit keeps: invalid_state, dyn_prop, ambig_state."""


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


def read_radar(path: Path) -> dict[str, Tensor]:
    """All fields of a binary .pcd file by name, (P,) each: floats as float32, integers as int64.

    Raises:
        InputError: missing, damaged, or no binary point cloud.
    """
    data = read_whole(path, max_bytes=_MAX_BYTES)
    end = data.find(b"\nDATA ")
    stop = data.find(b"\n", end + 1)
    if end < 0 or stop < 0:
        raise InputError("is not a point cloud file (no DATA line)", path=path)
    header: dict[str, list[str]] = {}
    for line in data[:stop].decode("ascii", "replace").splitlines():
        if line and not line.startswith("#"):
            key, *values = line.split()
            header[key] = values
    if header.get("DATA") != ["binary"]:
        raise InputError(
            f"holds {' '.join(header.get('DATA', []))} points, only binary ones are read", path=path
        )
    dtype, count = _row_type(header, path)
    body = data[stop + 1 :]
    if len(body) < count * dtype.itemsize:
        raise InputError(f"truncated: {len(body)} of {count * dtype.itemsize} bytes", path=path)
    rows = np.frombuffer(body, dtype, count)
    return {
        name: torch.from_numpy(rows[name].astype(np.float32 if rows[name].dtype.kind == "f" else np.int64))
        for name in dtype.names or ()
    }


def _row_type(header: dict[str, list[str]], path: Path) -> tuple[np.dtype, int]:
    try:
        names, sizes, types = header["FIELDS"], header["SIZE"], header["TYPE"]
        counts, points = header.get("COUNT", ["1"] * len(names)), int(header["POINTS"][0])
        formats = [f"<{_TYPES[kind]}{int(size)}" for kind, size in zip(types, sizes, strict=True)]
        if len(formats) != len(names) or any(int(c) != 1 for c in counts) or points < 0:
            raise ValueError("fields and sizes differ in number")
        dtype = np.dtype(list(zip(names, formats, strict=True)))
    except (KeyError, ValueError, IndexError, TypeError) as exc:
        raise InputError(f"has a damaged header ({exc})", path=path) from exc
    if not {"x", "y", "z"} <= set(names):
        raise InputError("has no fields x, y, z", path=path)
    return dtype, points


def radar_points(path: Path, *, filtered: bool = False) -> Tensor:
    """(P, 3) float64 returns in the radar's frame (x forward, y left, z up).

    Args:
        path: .pcd file.
        filtered: keep only returns that the public development kit keeps (valid, not ambiguous).

    Raises:
        InputError: as :func:`read_radar`, or the states to filter by are missing.
    """
    fields = read_radar(path)
    points = torch.stack([fields[k].double() for k in "xyz"], -1)
    keep = torch.isfinite(points).all(-1)
    if filtered:
        wanted = {"invalid_state": _VALID, "dyn_prop": _MOVING, "ambig_state": _CLEAR}
        if missing := sorted(set(wanted) - set(fields)):
            raise InputError(f"has no field {', '.join(missing)} to filter by", path=path)
        for name, states in wanted.items():
            keep &= torch.isin(fields[name], torch.tensor(states))
    return points[keep]
