"""TartanAir (2020) and TartanAir-V2: simulated drives through many environments, with poses and dense depth."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from relief3d.core.contract import Depth, Scene
from relief3d.core.errors import InputError
from relief3d.data.readers.files import (
    file_view,
    files_in,
    folders_holding,
    load_depth,
    need_file,
    number_rows,
)
from relief3d.data.readers.poses import pose_from_quat_xyzw, world_from_ned_camera
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.geometry.projection import intrinsics
from relief3d.io.decoders import damaged, open_picture
from relief3d.io.images import image_size
from relief3d.io.limits import DEFAULT_MAX_PIXELS

SKY = 1000.0
"""Metres from which on depth counts as unknown: environments end in a sky sphere far away (our choice)."""

CARD = DatasetCard(
    name="tartanair",
    title="TartanAir",
    sources=(
        "https://github.com/castacks/tartanair_tools/blob/master/data_type.md",
        "https://tartanair.org/modalities.html",
    ),
    licence="CC BY 4.0 (see its page)",
    gives=("image", "K", "pose", "depth"),
    metric=True,
    layout=(
        "ENV/[ENV/]{Easy,Hard}/P000/{image_left/000000_left.png, depth_left/000000_left_depth.npy, pose_left.txt}\n"
        "or V2: ENV/Data_{easy,hard}/P000/{image_lcam_front/000000_lcam_front.png,\n"
        "depth_lcam_front/000000_lcam_front_depth.png, pose_lcam_front.txt}"
    ),
    conventions=(
        "lines 'tx ty tz qx qy qz qw', camera to world with x forward, y right, z down, turned to OpenCV axes; the "
        "world stays north-east-down; 90 degrees over the whole width, so f = W / 2 and the principal point W / 2, "
        "H / 2 are in our pixels already; V2's depth PNG holds the bytes of a little-endian float32 as B, G, R, A."
    ),
    splits=("easy", "hard"),
    open_points=(
        "Depth is taken as z-depth: data_type.md divides 80 (focal length times baseline) by it for disparity.",
        f"Depth from {SKY:g} m on is marked unknown (option farthest).",
    ),
)


@dataclass(frozen=True)
class _Track:
    folder: Path
    camera: str


def open_tartanair(
    root: str | Path, *, split: str | None = None, camera: str | None = None, farthest: float = SKY
) -> SceneSet:
    """Trajectories ("abandonedfactory/Easy/P000"); see :data:`CARD`.

    Args:
        root: folder of environments.
        split: "easy" or "hard".
        camera: "left", "right", or V2's "lcam_front", ...; None takes left, or lcam_front.
        farthest: metres from which on depth is unknown.

    Raises:
        InputError: no trajectories here.
    """
    split = CARD.check_split(split)
    cameras = ("left", "lcam_front") if camera is None else (camera,)
    wanted = tuple(f"pose_{c}.txt" for c in cameras)
    items: dict[str, _Track] = {}
    for name, folder in folders_holding(Path(root), wanted, CARD.title, depth=4).items():
        level = folder.parent.name.lower().removeprefix("data_")
        if split is None or level == split:
            items[name] = _Track(folder, next(c for c in cameras if (folder / f"pose_{c}.txt").is_file()))
    if not items:
        raise InputError(f"holds no trajectory of the split '{split}'", path=Path(root))
    return SceneSet(CARD, items, functools.partial(_scene, farthest=farthest))


def _scene(name: str, track: _Track, farthest: float) -> Scene:
    folder, camera = track.folder, track.camera
    file = folder / f"pose_{camera}.txt"
    rows = number_rows(file, 7)
    poses = world_from_ned_camera(pose_from_quat_xyzw(rows[:, :3], rows[:, 3:], file))
    pictures = files_in(folder / f"image_{camera}", (".png", ".jpg"), "pictures")
    if len(pictures) != len(poses):
        raise InputError(
            f"holds {len(poses)} poses for {len(pictures)} pictures",
            path=file,
            remedy="download the trajectory again",
        )
    size = image_size(pictures[0])
    K = intrinsics(0.5 * size[0], 0.5 * size[0], 0.5 * size[0], 0.5 * size[1])
    views = []
    for picture, pose in zip(pictures, poses):
        view = file_view(picture.name, picture, K, pose, size=size)
        stem = folder / f"depth_{camera}" / f"{picture.stem}_depth"
        if (array := stem.with_name(stem.name + ".npy")).is_file():
            view = view.replace(depth=functools.partial(load_depth, array, size, farthest=farthest))
        elif (packed := stem.with_name(stem.name + ".png")).is_file():
            view = view.replace(depth=functools.partial(load_packed_depth, packed, size, farthest))
        views.append(view)
    return Scene(tuple(views), metric=True, ordered=True, info={"dataset": CARD.name, "scene": name})


def load_packed_depth(path: Path, size: tuple[int, int], farthest: float = SKY) -> Depth:
    """Depth of V2: a PNG of four 8-bit channels that are the bytes of a float32.

    Args:
        path: of the file.
        size: (width, height) it must have.
        farthest: metres from which on depth is unknown.

    Raises:
        InputError: missing, damaged, not of four channels, or of another size.
    """
    with open_picture(need_file(path, "depth map"), "png", DEFAULT_MAX_PIXELS) as (picture, _):
        try:
            picture.load()
            rgba = np.array(picture)
        except Exception as exc:  # decoders raise many types on damaged bytes
            raise damaged(path, exc) from exc
    if rgba.shape != (size[1], size[0], 4) or rgba.dtype != np.uint8:
        raise InputError(
            f"holds an array of shape {rgba.shape}, expected ({size[1]}, {size[0]}, 4) bytes",
            path=path,
            remedy="use depth and pictures of the same release",
        )
    values = torch.from_numpy(_from_bgra(rgba))
    return Depth.from_values(torch.where(values < farthest, values, torch.zeros_like(values)))


def _from_bgra(rgba: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rgba[..., [2, 1, 0, 3]]).view("<f4")[..., 0].astype(np.float32)
