"""TUM RGB-D: ``rgb.txt``, ``depth.txt`` and ``groundtruth.txt``, joined by time.

https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats. Depth is 16 bit, 5000 per metre; poses are
``world_from_cam`` with OpenCV axes. Calibrations are the published ones of the three cameras, told by the folder's
name; principal points in them count pixel centres at integers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Distortion, Scene
from relief3d.core.errors import InputError
from relief3d.data.readers.files import file_view, need_file
from relief3d.io.trajectories import read_tum
from relief3d.pipelines.mesh.layouts.frames import nearest_time, timed_files, with_depth_file

DEPTH_SCALE = 1 / 5000
CLOSE = 0.02
"""Seconds between a picture and its depth or pose at most."""

CAMERAS: dict[str, tuple[tuple[float, float, float, float], tuple[float, ...]]] = {
    "freiburg1": ((517.3, 516.5, 318.6, 255.3), (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    "freiburg2": ((520.9, 521.0, 325.1, 249.7), (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)),
    "freiburg3": ((535.4, 539.2, 320.1, 247.6), ()),
}
"""fx, fy, cx, cy and lens (k1, k2, p1, p2, k3); pictures of freiburg3 are undistorted already."""
SIZE = (640, 480)


def is_tum(folder: Path) -> bool:
    """A list of pictures with a list of depth or a trajectory."""
    return (folder / "rgb.txt").is_file() and (
        (folder / "depth.txt").is_file() or (folder / "groundtruth.txt").is_file()
    )


def read_tum_sequence(folder: Path) -> Scene:
    """One view per picture; pose and depth where one lies within 0.02 s. K is unknown for other cameras.

    Raises:
        InputError: a list is missing or malformed, or no picture is near any pose.
    """
    pictures = timed_files(folder / "rgb.txt")
    depths = timed_files(folder / "depth.txt") if (folder / "depth.txt").is_file() else []
    depth_times = torch.tensor([t for t, _ in depths], dtype=torch.float64)
    path = folder / "groundtruth.txt"
    poses = read_tum(path) if path.is_file() else None
    views, placed = [], 0
    for time, name in pictures:
        pose: Tensor | None = None
        if poses is not None and poses.times is not None:
            at = nearest_time(poses.times, time, CLOSE)
            pose = None if at is None else poses.world_from_cam[at]
        placed += pose is not None
        view = file_view(name, need_file(folder / name, "picture"), None, pose, time=time - pictures[0][0])
        K, lens = _lens(folder, (view.camera.width, view.camera.height))
        view = view.replace(camera=view.camera.replace(K=K, distortion=lens))
        near = nearest_time(depth_times, time, CLOSE)
        views.append(
            with_depth_file(view, None if near is None else folder / depths[near][1], scale=DEPTH_SCALE)
        )
    if poses is not None and not placed:
        raise InputError(
            f"no picture lies within {CLOSE} s of a pose",
            path=path,
            remedy="use the trajectory of this recording, or remove it to have the poses found",
        )
    return Scene(tuple(views), metric=poses is not None, ordered=True, info={"layout": "tum"})


def _lens(folder: Path, size: tuple[int, int]) -> tuple[Tensor | None, Distortion | None]:
    name = folder.resolve().name.lower()
    known = next((c for key, c in CAMERAS.items() if key in name), None)
    if known is None or size != SIZE:
        return None, None
    (fx, fy, cx, cy), lens = known
    K = torch.tensor([[fx, 0, cx + 0.5], [0, fy, cy + 0.5], [0, 0, 1]], dtype=torch.float64)
    return K, Distortion("opencv", lens) if lens else None
