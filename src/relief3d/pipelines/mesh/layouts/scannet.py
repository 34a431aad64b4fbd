"""One scan of ScanNet as SensReader exports it: ``color``, ``depth``, ``pose`` and intrinsics.

Intrinsics lie in ``intrinsic/`` or beside the pictures; poses in ``pose/N.txt`` or ``pose.npy`` (F, 4, 4). They are
camera-to-world whatever other pages say, and not finite where tracking failed.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Scene
from relief3d.core.errors import InputError
from relief3d.data.readers.files import file_view, files_in
from relief3d.data.readers.poses import rigid_matrix
from relief3d.data.readers.scannet import load_sensor_depth, read_intrinsics, read_pose
from relief3d.io.images import image_size

FARTHEST = 10.0
"""Metres from which on the sensor's depth counts as unknown."""


def is_scannet(folder: Path) -> bool:
    """Colour pictures with poses and the intrinsics of the colour camera."""
    poses = (folder / "pose").is_dir() or (folder / "pose.npy").is_file()
    return (folder / "color").is_dir() and poses and _intrinsics(folder, "color") is not None


def _intrinsics(folder: Path, which: str) -> Path | None:
    name = f"intrinsic_{which}.txt"
    return next((p for p in (folder / "intrinsic" / name, folder / name) if p.is_file()), None)


def read_scannet_scan(folder: Path) -> Scene:
    """One view per picture; without a pose where tracking failed.

    Raises:
        InputError: files missing or damaged, or another number of poses than of pictures.
    """
    of_color, of_depth = _intrinsics(folder, "color"), _intrinsics(folder, "depth")
    assert of_color is not None
    K = read_intrinsics(of_color)
    depth_K = K if of_depth is None else read_intrinsics(of_depth)
    pictures = files_in(folder / "color", (".jpg", ".png"), "colour pictures")
    poses = _poses(folder, pictures)
    size = image_size(pictures[0])
    views = []
    for picture, pose in zip(pictures, poses, strict=True):
        view = file_view(picture.name, picture, K, pose, size=size)
        depth = folder / "depth" / f"{picture.stem}.png"
        if depth.is_file():
            view = view.replace(depth=functools.partial(load_sensor_depth, depth, depth_K, K, size, FARTHEST))
        views.append(view)
    return Scene(tuple(views), metric=True, ordered=True, info={"layout": "scannet"})


def _poses(folder: Path, pictures: list[Path]) -> list[Tensor | None]:
    path = folder / "pose.npy"
    if not path.is_file():
        path = folder / "pose"
        files = files_in(path, (".txt",), "poses")
        _same_number(len(files), len(pictures), path)
        return [read_pose(path / f"{picture.stem}.txt") for picture in pictures]
    try:
        stored = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float64))
    except (OSError, ValueError) as exc:
        raise InputError("is no array of poses", path=path, remedy="export the scan again") from exc
    if stored.ndim != 3 or tuple(stored.shape[1:]) not in ((4, 4), (3, 4)):
        raise InputError(f"holds {tuple(stored.shape)}, expected (F, 4, 4)", path=path)
    _same_number(len(stored), len(pictures), path)
    return [
        rigid_matrix(pose, path, tolerance=1e-3) if bool(torch.isfinite(pose).all()) else None
        for pose in stored
    ]


def _same_number(poses: int, pictures: int, path: Path) -> None:
    if poses != pictures:
        raise InputError(
            f"holds {poses} poses, but there are {pictures} pictures",
            path=path,
            remedy="use poses and pictures of the same recording, complete",
        )
