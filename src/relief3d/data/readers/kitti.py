"""KITTI raw drives with the depth of the completion benchmark: a car with cameras, lidar and GPS/IMU."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Scene, SparseDepth
from relief3d.core.errors import InputError
from relief3d.data.readers.files import (
    file_view,
    files_in,
    folders_in,
    load_depth,
    need_file,
    text_numbers,
    usable_K,
)
from relief3d.data.readers.lazy_sparse import LazySparseDepth
from relief3d.data.readers.poses import invert_rigid, rigid_matrix, rotation_xyz
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.geometry.point_splat import splat_index
from relief3d.geometry.projection import project
from relief3d.geometry.transforms import compose, make_rigid, transform_points
from relief3d.io.formats import check_regular_file, unreadable
from relief3d.io.images import image_size
from relief3d.io.whole_file import read_utf8

EARTH_RADIUS = 6378137.0
DEPTH_SCALE = 1.0 / 256.0

CARD = DatasetCard(
    name="kitti",
    title="KITTI raw with annotated depth",
    sources=(
        "https://www.cvlibs.net/datasets/kitti/raw_data.php (readme of the raw data development kit)",
        "https://www.cvlibs.net/datasets/kitti/eval_depth.php?benchmark=depth_completion (its development kit)",
    ),
    licence="CC BY-NC-SA 3.0",
    gives=("image", "K", "pose", "depth (semi-dense)", "sparse depth (lidar)", "time"),
    metric=True,
    layout=(
        "2011_09_26/{calib_cam_to_cam.txt, calib_velo_to_cam.txt, calib_imu_to_velo.txt}\n"
        "2011_09_26/2011_09_26_drive_0001_sync/{image_02/data/0000000000.png, velodyne_points/data/0000000000.bin,\n"
        "oxts/data/0000000000.txt}\n"
        "[data_depth_annotated/]{train,val}/2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02/0000000005.png\n"
        "(16 bit, 1/256 m; optional)"
    ),
    conventions=(
        "K and offset from P_rect (pixel centres at integers, so 0.5 is added to cx and cy); poses from OXTS in a "
        "Mercator plane (x east, y north, z up, origin at the first frame), through IMU, lidar and rectified camera 0; "
        "lidar points move through R_rect to the camera; frames are synchronised, so no ego motion between them."
    ),
    splits=("train", "val"),
    open_points=(
        "The depth benchmark's development kit was not at hand: 1/256 m and the folders follow public code.",
        "Times are frame numbers over 10 per second, not the recorded time stamps.",
        "Sweeps are taken as synchronised with pictures, as released ('sync').",
    ),
)


def open_kitti(
    root: str | Path, *, split: str | None = None, camera: int = 2, lidar: bool = True, stride: int = 1
) -> SceneSet:
    """Drives ("2011_09_26_drive_0001_sync"); see :data:`CARD`.

    Args:
        root: folder of dates, with the annotated depth inside or in ``data_depth_annotated``.
        split: "train" or "val" of the annotated depth; takes drives that have it.
        camera: 0 to 3; 2 and 3 are in colour.
        lidar: views carry the sweep as sparse depth, loaded when first looked at.
        stride: take every so many frames.

    Raises:
        InputError: no drives here.
    """
    root, split = Path(root), CARD.check_split(split)
    if camera not in (0, 1, 2, 3):
        raise InputError(f"KITTI has no camera {camera}", remedy="use 0, 1, 2 or 3")
    items: dict[str, tuple[Path, Path | None]] = {}
    for date in folders_in(root):
        if not (date / "calib_cam_to_cam.txt").is_file():
            continue
        for drive in folders_in(date):
            if not (drive / f"image_{camera:02d}" / "data").is_dir():
                continue
            choices = (split,) if split else ("train", "val")
            bases = (root / "data_depth_annotated", root)
            truth = next((p for b in bases for s in choices if (p := b / s / drive.name).is_dir()), None)
            if split is None or truth is not None:
                items[drive.name] = (drive, truth)
    if not items:
        raise InputError(
            "does not look like KITTI's raw data: no DATE/calib_cam_to_cam.txt with DATE/DRIVE_sync/image_02/data"
            + (f" and depth of the split '{split}'" if split else ""),
            path=root,
            remedy="unpack the synced+rectified drives and their calibration",
        )
    return SceneSet(CARD, items, functools.partial(_scene, camera=camera, lidar=lidar, stride=max(1, stride)))


def read_calibration(path: Path) -> dict[str, tuple[float, ...]]:
    """The number entries of a KITTI calibration file ("P_rect_02: ...") by name.

    Raises:
        InputError: missing.
    """
    out = {}
    for line in read_utf8(need_file(path, "calibration file")).splitlines():
        key, mark, values = line.partition(":")
        try:
            if mark:
                out[key.strip()] = tuple(float(v) for v in values.split())
        except ValueError:
            continue  # dates
    return out


def _entry(table: Mapping[str, Sequence[float]], key: str, count: int, path: Path) -> Tensor:
    if len(table.get(key, ())) != count:
        raise InputError(
            f"lacks '{key}' with {count} numbers", path=path, remedy="unpack the calibration again"
        )
    return torch.tensor(table[key], dtype=torch.float64)


def _rigid(path: Path) -> Tensor:
    table = read_calibration(path)
    R, t = _entry(table, "R", 9, path).view(3, 3), _entry(table, "T", 3, path)
    return rigid_matrix(torch.cat([R, t[:, None]], 1), path, "calibration")


def camera_calibration(date: Path, camera: int) -> tuple[Tensor, Tensor, Tensor]:
    """K (3, 3) with pixel centres at +0.5, and (4, 4) ``cam_from_velodyne`` and ``cam_from_imu``.

    Raises:
        InputError: a file or an entry is missing.
    """
    file = date / "calib_cam_to_cam.txt"
    table = read_calibration(file)
    P = _entry(table, f"P_rect_{camera:02d}", 12, file).view(3, 4)
    rectify = _entry(table, "R_rect_00", 9, file).view(3, 3)
    K = usable_K(P[:, :3].clone(), file)
    offset = torch.linalg.solve(K, P[:, 3])  # of this camera against rectified camera 0
    K[:2, 2] += 0.5
    eye, zero = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    rectified = rigid_matrix(make_rigid(rectify, zero), file, "rectification")
    cam_from_velo = compose(make_rigid(eye, offset), rectified, _rigid(date / "calib_velo_to_cam.txt"))
    return K, cam_from_velo, compose(cam_from_velo, _rigid(date / "calib_imu_to_velo.txt"))


def oxts_pose(path: Path, scale: float | None = None) -> tuple[Tensor, float]:
    """``world_from_imu`` (4, 4) of a GPS/IMU record, and the scale of the Mercator plane.

    Args:
        path: of the record (latitude, longitude, altitude, roll, pitch, yaw, ...).
        scale: cosine of the drive's first latitude; taken from this record when None.

    Raises:
        InputError: missing or damaged.
    """
    numbers = text_numbers(path)
    sane = len(numbers) >= 6 and all(math.isfinite(v) for v in numbers[:6])
    if not sane or abs(numbers[0]) > 89 or abs(numbers[1]) > 360:
        raise InputError("is no OXTS record of KITTI", path=path, remedy="unpack the drive again")
    latitude, longitude, altitude, *angles = numbers[:6]
    scale = math.cos(math.radians(latitude)) if scale is None else scale
    x = scale * EARTH_RADIUS * math.radians(longitude)
    y = scale * EARTH_RADIUS * math.log(math.tan(math.radians(90.0 + latitude) / 2))
    at = torch.tensor([x, y, altitude], dtype=torch.float64)
    return make_rigid(rotation_xyz(torch.tensor(angles, dtype=torch.float64)), at), scale


def _scene(name: str, item: tuple[Path, Path | None], camera: int, lidar: bool, stride: int) -> Scene:
    drive, truth = item
    K, cam_from_velo, cam_from_imu = camera_calibration(drive.parent, camera)
    imu_from_cam = invert_rigid(cam_from_imu)
    pictures = files_in(drive / f"image_{camera:02d}" / "data", (".png", ".jpg"), "pictures")
    size = image_size(pictures[0])
    origin, scale, views = None, None, []
    for picture in pictures[::stride]:
        pose = None
        if (record := drive / "oxts" / "data" / f"{picture.stem}.txt").is_file():
            world_from_imu, scale = oxts_pose(record, scale)
            origin = world_from_imu[:3, 3].clone() if origin is None else origin
            world_from_imu[:3, 3] -= origin
            pose = compose(world_from_imu, imu_from_cam)
        view = file_view(picture.name, picture, K, pose, size=size, time=int(picture.stem) / 10.0)
        if truth is not None:
            depth = truth / "proj_depth" / "groundtruth" / f"image_{camera:02d}" / f"{picture.stem}.png"
            if depth.is_file():
                view = view.replace(depth=functools.partial(load_depth, depth, size, scale=DEPTH_SCALE))
        sweep = drive / "velodyne_points" / "data" / f"{picture.stem}.bin"
        if lidar and sweep.is_file():
            load = functools.partial(lidar_points, sweep, cam_from_velo, K, size)
            view = view.replace(sparse_depth=LazySparseDepth(load))
        views.append(view)
    return Scene(tuple(views), metric=True, ordered=True, info={"dataset": CARD.name, "scene": name})


def lidar_points(path: Path, cam_from_velo: Tensor, K: Tensor, size: tuple[int, int]) -> SparseDepth:
    """The points of a Velodyne sweep that fall into a picture of (width, height).

    Raises:
        InputError: missing, or not rows of four float32.
    """
    path = check_regular_file(path)
    if path.stat().st_size % 16:
        raise InputError("is no Velodyne sweep (rows of four float32)", path=path, remedy="unpack it again")
    try:
        values = np.fromfile(path, dtype="<f4").reshape(-1, 4)
    except OSError as exc:
        raise unreadable(path, exc) from exc
    points = transform_points(cam_from_velo, torch.from_numpy(values[:, :3].astype(np.float64)))
    return points_in_picture(points, K, size)


def points_in_picture(points: Tensor, K: Tensor, size: tuple[int, int]) -> SparseDepth:
    """Sparse depth of camera-frame points (P, 3), metres, in a picture of (width, height)."""
    kept, _ = splat_index(points, K, (size[1], size[0]))
    xy, z = project(points[kept], K)
    return SparseDepth(xy.float(), z.float())
