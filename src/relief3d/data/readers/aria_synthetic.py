"""Aria Synthetic Environments: walks through procedural homes with the simulated RGB camera of Aria glasses."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Scene, View
from relief3d.core.errors import InputError
from relief3d.data.readers.aria_lens import AriaLens, pinhole_depth, pinhole_picture, pinhole_pixels
from relief3d.data.readers.files import (
    files_in,
    folders_holding,
    load_depth,
    load_picture,
    need_file,
    number_rows,
)
from relief3d.data.readers.poses import invert_rigid, pose_from_quat_xyzw
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.geometry.projection import intrinsics
from relief3d.geometry.rotations import matrix_from_quat_wxyz
from relief3d.geometry.transforms import make_rigid
from relief3d.io.images import image_size

LENS = AriaLens(
    size=(704, 704),
    focal=297.6375381033778,
    centre=(357.6599197217746, 349.1922497127481),
    radial=(
        0.3650890375644368,
        -0.1738082418112771,
        -0.7534945484033189,
        2.434788882752295,
        -2.57786220300886,
        0.8788483538598834,
    ),
    tangential=(0.0008005198595407136, -0.000294237814554143),
    prism=(0.0, 0.0, 0.0, 0.0),
    reach=1415.0 / 4.0,
    widest=1.0,
)
"""The published calibration of the simulated RGB camera, for pictures of 704 x 704."""

_CAMERA_FROM_DEVICE_QUAT = (
    0.9441858687689326,
    0.326409343828490850,
    0.029274992008313648,
    0.033361059956531547,
)
_CAMERA_FROM_DEVICE_AT = (-0.007530096566173914, -0.010908549841580260, -0.003598063315542823)
_TRAJECTORIES = ("trajectory.csv", "trajectory.txt")
_BLIND = 65535 * 0.001
_NUMBER = re.compile(r"(\d+)$")

CARD = DatasetCard(
    name="aria_synthetic",
    title="Aria Synthetic Environments",
    sources=(
        "https://facebookresearch.github.io/projectaria_tools/docs/open_datasets/aria_synthetic_environments_dataset/"
        "ase_data_format",
        "https://facebookresearch.github.io/projectaria_tools/docs/tech_insights/camera_intrinsic_models",
        "https://github.com/facebookresearch/projectaria_tools (projects/AriaSyntheticEnvironment)",
    ),
    licence="own licence of Meta, non-commercial research",
    gives=("image", "K", "pose", "depth", "mask", "time"),
    metric=True,
    layout=(
        "SCENE/{rgb/vignette0000000.jpg, depth/depth0000000.png (16 bit, millimetres along the ray), trajectory.csv}"
    ),
    conventions=(
        "fisheye pictures (pixel centres at integers) are resampled to an upright-as-stored pinhole camera; distance "
        "along the ray becomes z-depth; trajectory.csv holds world from device, the fixed mounting gives the camera "
        "(OpenCV axes)."
    ),
    open_points=(
        "The page calls the trajectory trajectory.txt, the tools read trajectory.csv: both names are accepted.",
        "Depth 0 and 65535 are taken as unknown.",
        "Pictures are turned by 90 degrees against gravity, as the camera is mounted; they are left so.",
    ),
)


def open_aria_synthetic(
    root: str | Path,
    *,
    split: str | None = None,
    size: tuple[int, int] = (512, 512),
    focal: float | None = None,
) -> SceneSet:
    """Scenes ("0", "1", ...) as pinhole views.

    Args:
        root: folder of scenes.
        split: none exist.
        size: (width, height) of the pinhole pictures.
        focal: their focal length in pixels; half the width (90 degrees) when None.

    Raises:
        InputError: no scenes here, or a size that cannot be.
    """
    CARD.check_split(split)
    if min(size) < 1 or (focal is not None and not focal > 0):
        raise InputError(f"a picture of {size[0]} x {size[1]} with a focal length of {focal} cannot be")
    scenes = folders_holding(Path(root), _TRAJECTORIES, CARD.title)
    f = 0.5 * size[0] if focal is None else focal
    K = intrinsics(f, f, 0.5 * size[0], 0.5 * size[1])
    return SceneSet(CARD, scenes, functools.partial(_scene, K=K, size=size))


def camera_from_device() -> Tensor:
    """(4, 4) mounting of the RGB camera."""
    quat = torch.tensor(_CAMERA_FROM_DEVICE_QUAT, dtype=torch.float64)
    at = torch.tensor(_CAMERA_FROM_DEVICE_AT, dtype=torch.float64)
    return make_rigid(matrix_from_quat_wxyz(quat), at)


def _scene(name: str, folder: Path, K: Tensor, size: tuple[int, int]) -> Scene:
    file = next(folder / n for n in _TRAJECTORIES if (folder / n).is_file())
    rows = _trajectory(file)
    world_from_device = pose_from_quat_xyzw(rows[:, 1:4], rows[:, 4:8], file)
    world_from_cam = world_from_device @ invert_rigid(camera_from_device())
    pictures = files_in(folder / "rgb", (".jpg", ".png"), "pictures")
    if len(pictures) != len(rows):
        raise InputError(
            f"holds {len(rows)} poses for {len(pictures)} pictures",
            path=file,
            remedy="download the scene again",
        )
    views = []
    for picture, pose, time in zip(pictures, world_from_cam, rows[:, 0] - rows[0, 0]):
        number = _NUMBER.search(picture.stem)
        depth = folder / "depth" / f"depth{number.group(1) if number else picture.stem}.png"
        views.append(
            View(
                picture.name,
                Camera(size[0], size[1], K, pose),
                image=functools.partial(load_pinhole_picture, picture, K, size),
                depth=functools.partial(load_pinhole_depth, depth, picture, K, size)
                if depth.is_file()
                else None,
                mask=functools.partial(load_pinhole_mask, picture, K, size),
                time=float(time) * 1e-6,
                path=picture,
            )
        )
    return Scene(tuple(views), metric=True, ordered=True, info={"dataset": CARD.name, "scene": name})


def _trajectory(file: Path) -> Tensor:
    """(R, 8): microseconds, position, quaternion (x, y, z, w); columns 1 and 3 to 9 of the file."""
    rows = number_rows(file, 10, separator=",", skip=1)
    return rows[:, [1, 3, 4, 5, 6, 7, 8, 9]]


def _lens_of(picture: Path) -> AriaLens:
    width, height = image_size(need_file(picture, "picture"))
    if width != height:
        raise InputError(f"a picture of {width} x {height} is not of this data set", path=picture)
    return LENS.at(width)


def load_pinhole_picture(picture: Path, K: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) of the pinhole camera."""
    return pinhole_picture(load_picture(picture), _lens_of(picture), K, size)


def load_pinhole_mask(picture: Path, K: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) bool, False where the lens sees nothing."""
    return pinhole_pixels(_lens_of(picture), K, size)[1]


def load_pinhole_depth(path: Path, picture: Path, K: Tensor, size: tuple[int, int]) -> Depth:
    """z-depth in metres of the pinhole camera."""
    lens = _lens_of(picture)
    return pinhole_depth(load_depth(path, lens.size, scale=0.001, farthest=_BLIND).values, lens, K, size)
