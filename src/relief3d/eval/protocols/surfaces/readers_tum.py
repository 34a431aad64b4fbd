"""Reads sequences of the TUM RGB-D benchmark as published, undistorted to pinhole cameras."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Distortion, Scene, View
from relief3d.core.errors import InputError
from relief3d.eval.protocols.surfaces.readers_scannet import load_rgb, read_sensor_depth
from relief3d.geometry.distortion import undistort_image
from relief3d.geometry.projection import intrinsics
from relief3d.io.trajectories import Trajectory, read_tum
from relief3d.io.whole_file import read_utf8

SEQUENCES = (
    "freiburg1_desk",
    "freiburg1_plant",
    "freiburg1_room",
    "freiburg1_teddy",
    "freiburg2_desk",
    "freiburg2_dishes",
    "freiburg2_large_no_loop",
    "freiburg3_cabinet",
    "freiburg3_long_office_household",
    "freiburg3_nostructure_notexture_far",
    "freiburg3_nostructure_texture_far",
    "freiburg3_structure_notexture_far",
    "freiburg3_structure_texture_far",
)
"""The 13 sequences of deep-video-mvs; VFM-Recon names none."""

_CALIBRATION: dict[str, tuple[tuple[float, ...], tuple[float, ...] | None]] = {
    "freiburg1": ((517.3, 516.5, 318.6, 255.3), (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    "freiburg2": ((520.9, 521.0, 325.1, 249.7), (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)),
    "freiburg3": ((535.4, 539.2, 320.1, 247.6), None),
}
_ROS_DEFAULT = ((525.0, 525.0, 319.5, 239.5), None)
SIZE = (640, 480)
DEPTH_SCALE = 1 / 5000
MAX_GAP = 0.02
MAX_DEPTH = 3.5

LAYOUT = """
DATA/rgbd_dataset_<sequence>/rgb.txt, depth.txt         time and file name per line
                            /groundtruth.txt            time tx ty tz qx qy qz qw
                            /rgb/*.png, depth/*.png     640x480; depth in 1/5000 m
the sequences: freiburg1_desk, _plant, _room, _teddy; freiburg2_desk, _dishes, _large_no_loop; freiburg3_cabinet,
_long_office_household, _nostructure_notexture_far, _nostructure_texture_far, _structure_notexture_far,
_structure_texture_far
""".strip()


@dataclass(frozen=True)
class TumFrame:
    """A depth frame with its nearest colour frame and pose.

    Attributes:
        time: of the depth frame, seconds.
        depth, color: files.
        world_from_cam: (4, 4) float64.
    """

    time: float
    depth: Path
    color: Path
    world_from_cam: Tensor


def tum_camera(sequence: str) -> Camera:
    """Lens of a sequence as published, centres at +0.5; the ROS default where the kind of sensor is not known.

    Args:
        sequence: such as "freiburg1_desk".
    """
    (fx, fy, cx, cy), lens = _CALIBRATION.get(sequence.split("_", 1)[0], _ROS_DEFAULT)
    distortion = None if lens is None else Distortion("opencv", lens)
    return Camera(*SIZE, intrinsics(fx, fy, cx + 0.5, cy + 0.5), None, distortion)


def pinhole(camera: Camera) -> Camera:
    """The camera without its lens: same size and intrinsics."""
    return camera.replace(distortion=None)


def find_sequences(data: Path) -> list[tuple[str, Path]]:
    """Names and folders of the 13 sequences that are there, in the order of the list.

    Raises:
        InputError: none is there.
    """
    if not data.is_dir():
        raise InputError("is not a folder", path=data)
    found = []
    for name in SEQUENCES:
        for folder in (data / f"rgbd_dataset_{name}", data / name):
            if folder.is_dir():
                found.append((name, folder))
                break
    if not found:
        raise InputError(
            "holds none of the 13 TUM RGB-D sequences",
            path=data,
            remedy=f"unpack for example rgbd_dataset_{SEQUENCES[0]}.tgz there",
        )
    return found


def read_file_list(path: Path) -> list[tuple[float, Path]]:
    """Times and files of ``rgb.txt`` or ``depth.txt``, by time.

    Raises:
        InputError: missing, empty, or a line that is not "time name".
    """
    if not path.is_file():
        raise InputError("is missing", path=path, remedy="unpack the sequence completely")
    out = []
    for number, line in enumerate(read_utf8(path).splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        try:
            out.append((float(words[0]), path.parent / words[1]))
        except (ValueError, IndexError) as exc:
            raise InputError(f"line {number} is not a time and a file name", path=path) from exc
    if not out:
        raise InputError("lists no files", path=path)
    return sorted(out)


def nearest_times(query: np.ndarray, times: np.ndarray, max_gap: float) -> np.ndarray:
    """Index into increasing ``times`` of the nearest one per query time; -1 where it is farther than ``max_gap``."""
    right = np.searchsorted(times, query).clip(1, max(len(times) - 1, 1))
    left = right - 1
    right = np.minimum(right, len(times) - 1)
    index = np.where(query - times[left] <= times[right] - query, left, right)
    # Times have microseconds; a gap of exactly the limit must not fall to rounding.
    return np.where(np.abs(times[index] - query) <= max_gap + 1e-9, index, -1)


def associate(
    depth: list[tuple[float, Path]],
    color: list[tuple[float, Path]],
    path: Trajectory,
    max_gap: float = MAX_GAP,
) -> list[TumFrame]:
    """Depth frames whose nearest colour frame and nearest pose are at most ``max_gap`` seconds away."""
    assert path.times is not None
    when = np.array([t for t, _ in depth])
    to_color = nearest_times(when, np.array([t for t, _ in color]), max_gap)
    to_pose = nearest_times(when, path.times.numpy(), max_gap)
    return [
        TumFrame(t, file, color[c][1], path.world_from_cam[p])
        for (t, file), c, p in zip(depth, to_color, to_pose)
        if c >= 0 and p >= 0
    ]


def sequence_frames(folder: Path) -> tuple[TumFrame, ...]:
    """All usable frames of a sequence.

    Raises:
        InputError: files are missing, or no frame has both a colour picture and a pose.
    """
    for name in ("groundtruth.txt", "rgb.txt", "depth.txt"):
        if not (folder / name).is_file():
            raise InputError("is missing", path=folder / name, remedy="unpack the sequence completely")
    frames = associate(
        read_file_list(folder / "depth.txt"),
        read_file_list(folder / "rgb.txt"),
        read_tum(folder / "groundtruth.txt"),
    )
    if not frames:
        raise InputError(f"has no depth frame within {MAX_GAP} s of a picture and a pose", path=folder)
    return tuple(frames)


def _color(path: Path, camera: Camera) -> Tensor:
    picture = load_rgb(path)
    return picture if camera.distortion is None else undistort_image(picture, camera, pinhole(camera))[0]


def _depth(path: Path, camera: Camera) -> Depth:
    depth = read_sensor_depth(path, DEPTH_SCALE, float("inf"), SIZE)
    if camera.distortion is None:
        return depth
    # Registered to the colour picture, so bent like it; interpolation would invent surfaces at edges.
    values, valid = undistort_image(depth.values[None], camera, pinhole(camera), mode="nearest")
    return Depth.from_values(torch.where(valid, values[0], torch.zeros(())))


def sequence_scene(name: str, folder: Path) -> Scene:
    """What a model sees: undistorted pictures with intrinsics and poses; nothing is decoded."""
    camera = tum_camera(name)
    frames = sequence_frames(folder)
    views = []
    for i, frame in enumerate(frames):
        posed = pinhole(camera).replace(world_from_cam=frame.world_from_cam)
        load = functools.partial(_color, frame.color, camera)
        views.append(
            View(f"{i:06d}.png", posed, image=load, time=frame.time - frames[0].time, path=frame.color)
        )
    return Scene(tuple(views), metric=True, ordered=True)


def sequence_views(name: str, folder: Path) -> tuple[View, ...]:
    """The same frames as undistorted depth cameras, metres, loaded when asked for."""
    camera = tum_camera(name)
    return tuple(
        View(
            f"{i:06d}.png",
            pinhole(camera).replace(world_from_cam=frame.world_from_cam),
            depth=functools.partial(_depth, frame.depth, camera),
        )
        for i, frame in enumerate(sequence_frames(folder))
    )
