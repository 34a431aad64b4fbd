"""Camera paths as text: TUM (time, position, quaternion x y z w) and KITTI (3x4 matrices), both ``world_from_cam``.

Both keep OpenCV camera axes. TUM: https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats.
KITTI odometry: one row-major 3x4 matrix per line, no times.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relief3d.core.contract import Scene
from relief3d.core.errors import InputError
from relief3d.geometry.rotations import matrix_from_quat_wxyz, quat_wxyz_from_matrix
from relief3d.io.atomic import write_text
from relief3d.io.rigid import rigid_from_file
from relief3d.io.whole_file import read_utf8


@dataclass(frozen=True)
class Trajectory:
    """A camera path.

    Attributes:
        world_from_cam: (N, 4, 4) float64.
        times: (N,) float64 seconds, increasing, or None (KITTI files have none).
    """

    world_from_cam: Tensor
    times: Tensor | None = None

    def __len__(self) -> int:
        return int(self.world_from_cam.shape[0])


def scene_trajectory(scene: Scene) -> Trajectory:
    """The path of the views that have a pose; times when all of them have one that increases.

    Raises:
        InputError: when no view has a pose.
    """
    views = [view for view in scene.views if view.camera.world_from_cam is not None]
    poses = [pose for view in views if (pose := view.camera.world_from_cam) is not None]
    if not poses:
        raise InputError("no view has a pose, so there is no trajectory")
    times = [view.time for view in views if view.time is not None]
    increasing = len(times) == len(views) and all(a < b for a, b in itertools.pairwise(times))
    return Trajectory(torch.stack(poses), torch.tensor(times, dtype=torch.float64) if increasing else None)


def read_tum(path: str | Path) -> Trajectory:
    """Read a TUM trajectory: lines of ``time tx ty tz qx qy qz qw``, ``#`` comments.

    Raises:
        InputError: naming file and line, when a line is malformed, not finite, or times do not increase.
    """
    path = Path(path)
    numbers, rows = _table(path, 8)
    times = rows[:, 0]
    if (back := np.flatnonzero(np.diff(times) <= 0)).size:
        raise InputError(f"line {numbers[int(back[0]) + 1]}: times do not increase", path=path)
    norms = np.linalg.norm(rows[:, 4:], axis=1)
    if (bad := np.flatnonzero(np.abs(norms - 1) > 0.01)).size:
        raise InputError(
            f"line {numbers[int(bad[0])]}: the quaternion has length {norms[bad[0]]:.3g}, not 1", path=path
        )
    quaternions = torch.from_numpy(np.roll(rows[:, 4:] / norms[:, None], 1, axis=1))
    poses = torch.eye(4, dtype=torch.float64).repeat(len(rows), 1, 1)
    poses[:, :3, :3] = matrix_from_quat_wxyz(quaternions)
    poses[:, :3, 3] = torch.from_numpy(rows[:, 1:4].copy())
    return Trajectory(poses, torch.from_numpy(times.copy()))


def write_tum(path: str | Path, trajectory: Trajectory) -> Path:
    """Write a TUM trajectory, atomically; without times the index of the pose stands in.

    Raises:
        InputError: when poses or times are not finite or times do not increase.
    """
    poses = _checked(trajectory.world_from_cam, path)
    count = len(poses)
    times = torch.arange(count, dtype=torch.float64) if trajectory.times is None else trajectory.times
    if len(times) != count or not bool(torch.isfinite(times).all()) or bool((times.diff() <= 0).any()):
        raise InputError("times must be finite, increasing and one per pose", path=path)
    quaternions = quat_wxyz_from_matrix(poses[:, :3, :3]).roll(-1, dims=-1)
    rows = torch.cat([times.to(torch.float64)[:, None], poses[:, :3, 3], quaternions], dim=1).tolist()
    lines = ["# time tx ty tz qx qy qz qw (world_from_cam, OpenCV camera axes)", *_text(rows)]
    return write_text(path, "\n".join(lines) + "\n")


def read_kitti(path: str | Path) -> Trajectory:
    """Read KITTI odometry poses: twelve numbers per line, a row-major 3x4 ``world_from_cam``.

    Raises:
        InputError: naming file and line, when a line is malformed or not a rigid transform.
    """
    path = Path(path)
    numbers, rows = _table(path, 12)
    poses = []
    for number, row in zip(numbers, rows):
        try:
            poses.append(rigid_from_file(torch.from_numpy(row.reshape(3, 4).copy())))
        except ValueError as exc:
            raise InputError(f"line {number}: the matrix {exc}", path=path) from exc
    return Trajectory(torch.stack(poses))


def write_kitti(path: str | Path, trajectory: Trajectory) -> Path:
    """Write KITTI odometry poses, atomically (times are not part of the format).

    Raises:
        InputError: when poses are not finite.
    """
    poses = _checked(trajectory.world_from_cam, path)
    return write_text(path, "\n".join(_text(poses[:, :3].reshape(-1, 12).tolist())) + "\n")


def _text(rows: Sequence[Sequence[float]]) -> list[str]:
    return [" ".join(repr(float(value)) for value in row) for row in rows]


def _checked(poses: Tensor, path: str | Path) -> Tensor:
    if poses.ndim != 3 or tuple(poses.shape[1:]) != (4, 4) or len(poses) == 0:
        raise InputError(f"a trajectory is (N, 4, 4), got {tuple(poses.shape)}", path=path)
    poses = poses.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(poses).all()):
        raise InputError("poses that are not finite cannot be written", path=path)
    return poses


def _table(path: Path, columns: int) -> tuple[list[int], NDArray[np.float64]]:
    """Line numbers and (N, columns) values of a text table."""
    numbers: list[int] = []
    rows: list[list[float]] = []
    for number, line in enumerate(read_utf8(path).splitlines(), start=1):
        words = line.split("#", 1)[0].replace(",", " ").split()
        if not words:
            continue
        if len(words) != columns:
            raise InputError(f"line {number}: {len(words)} values where {columns} belong", path=path)
        try:
            rows.append([float(word) for word in words])
        except ValueError as exc:
            raise InputError(f"line {number}: holds text where a number belongs", path=path) from exc
        numbers.append(number)
    if not rows:
        raise InputError("the trajectory is empty", path=path)
    table = np.array(rows, dtype=np.float64)
    if (bad := np.flatnonzero(~np.isfinite(table).all(axis=1))).size:
        raise InputError(f"line {numbers[int(bad[0])]}: holds a number that is not finite", path=path)
    return numbers, table
