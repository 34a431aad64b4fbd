"""DROID (raw release): robot arms filmed by two outer cameras and one on the wrist."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Scene
from relief3d.core.errors import InputError, MissingExtraError
from relief3d.core.optional import available
from relief3d.data.readers.hdf5 import read_hdf5
from relief3d.data.readers.poses import rotation_xyz
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.data.readers.video_frames import chosen_frames, frame_times, frame_view
from relief3d.geometry.transforms import make_rigid
from relief3d.io.json_file import Record, read_json_object

CAMERAS = ("ext1", "ext2", "wrist")

CARD = DatasetCard(
    name="droid",
    title="DROID (raw)",
    sources=(
        "https://droid-dataset.github.io/droid/the-droid-dataset.html",
        "https://github.com/droid-dataset/droid/blob/main/docs/the-droid-dataset.md",
    ),
    licence="CC BY 4.0",
    gives=("image", "pose", "time"),
    metric=True,
    layout=(
        "LAB/{success,failure}/DATE/EPISODE/metadata_*.json ('ext1_cam_serial', 'ext1_cam_extrinsics', ...)\n"
        "EPISODE/trajectory.h5 (observation/camera_extrinsics/SERIAL_left, (T, 6); needs h5py)\n"
        "EPISODE/recordings/MP4/SERIAL.mp4 (the left eye)"
    ),
    conventions=(
        "extrinsics are (x, y, z, a, b, c): camera to robot base in metres, angles about the fixed axes x, y, z in "
        "that order; OpenCV axes; the world is the robot's base."
    ),
    splits=("success", "failure"),
    open_points=(
        "MP4 files carry no intrinsics (they are in the SVO files), so K is unknown.",
        "Frames and steps of trajectory.h5 are matched by position; where their numbers differ, or without h5py, the "
        "wrist camera has no pose and outer cameras keep the one of the metadata.",
        "The published calibrations are noisy; better ones are published separately and are not read.",
    ),
)


@dataclass(frozen=True)
class _Options:
    cameras: tuple[str, ...]
    stride: int
    most: int | None


def open_droid(
    root: str | Path,
    *,
    split: str | None = None,
    cameras: tuple[str, ...] = CAMERAS,
    stride: int = 1,
    most: int | None = None,
) -> SceneSet:
    """Episodes; views are called "ext1/frame_000000", camera after camera.

    Args:
        root: folder of labs, or of episodes at any depth.
        split: "success" or "failure".
        cameras: which of :data:`CAMERAS`; those without a video are left out.
        stride: take every so many frames.
        most: at most so many frames of each camera.

    Raises:
        InputError: no episodes here, or an unknown camera.
    """
    root, split = Path(root), CARD.check_split(split)
    if unknown := [c for c in cameras if c not in CAMERAS]:
        raise InputError(f"DROID has no camera '{unknown[0]}'", remedy=f"use {', '.join(CAMERAS)}")
    chosen_frames(1, stride, most)
    found = {p.parent.relative_to(root).as_posix(): p for p in sorted(root.rglob("metadata_*.json"))}
    items = {name: p for name, p in found.items() if split is None or f"/{split}/" in f"/{name}/"}
    if not items:
        raise InputError(
            "does not look like DROID's raw release: no folder here holds metadata_*.json",
            path=root,
            remedy="copy episodes with their metadata_*.json and recordings/MP4",
        )
    return SceneSet(CARD, items, functools.partial(_scene, options=_Options(cameras, stride, most)))


def pose_from_six(values: Tensor, path: Path) -> Tensor:
    """(4, 4) camera to base of (x, y, z, a, b, c).

    Raises:
        InputError: not six finite numbers.
    """
    if values.shape != (6,) or not bool(torch.isfinite(values).all()):
        raise InputError("holds camera extrinsics that are not six finite numbers", path=path)
    return make_rigid(rotation_xyz(values[3:]), values[:3])


def _scene(name: str, metadata: Path, options: _Options) -> Scene:
    record, episode = Record(read_json_object(metadata), metadata), metadata.parent
    views = []
    for camera in options.cameras:
        serial = record.get(f"{camera}_cam_serial")
        video = episode / "recordings" / "MP4" / f"{serial}.mp4"
        if serial is None or not video.is_file():
            continue
        times = frame_times(video)
        poses = _poses(record, episode, camera, str(serial), len(times.pts))
        for frame in chosen_frames(len(times.pts), options.stride, options.most):
            views.append(frame_view(times, frame, None, poses[frame], name=f"{camera}/frame_{frame:06d}"))
    if not views:
        raise InputError(
            "has no video of the wanted cameras",
            path=episode / "recordings" / "MP4",
            remedy="download the MP4 files",
        )
    info = {"dataset": CARD.name, "scene": name}
    return Scene(tuple(views), metric=True, ordered=len(options.cameras) == 1, info=info)


def _poses(record: Record, episode: Path, camera: str, serial: str, frames: int) -> list[Tensor | None]:
    """A pose per frame: from the trajectory where it has one per frame, else the metadata's of outer cameras."""
    file = episode / "trajectory.h5"
    if available("h5py") and file.is_file():
        try:
            stored = read_hdf5(
                file, f"observation/camera_extrinsics/{serial}_left", what="DROID's trajectories"
            )
        except MissingExtraError:
            raise
        except InputError as exc:
            if "no array" not in exc.message:
                raise
        else:
            if stored.shape == (frames, 6):
                return [pose_from_six(torch.from_numpy(row).double(), file) for row in stored]
    six = None if camera == "wrist" else record.numbers(f"{camera}_cam_extrinsics")
    pose = None if six is None else pose_from_six(torch.tensor(six, dtype=torch.float64), record.path)
    return [pose] * frames
