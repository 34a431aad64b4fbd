"""Hypersim (raw release): photorealistic indoor renderings with depth, poses and per-scene intrinsics."""

from __future__ import annotations

import csv
import functools
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Depth, Scene
from relief3d.core.errors import InputError
from relief3d.data.readers.files import file_view, files_in, folders_in, need_file, usable_K
from relief3d.data.readers.hdf5 import read_hdf5
from relief3d.data.readers.poses import rigid_matrix, z_from_ray_length
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.geometry.conventions import convert_world_from_cam
from relief3d.geometry.projection import intrinsics
from relief3d.io.images import image_size
from relief3d.io.whole_file import read_utf8

SIZE = (1024, 768)
FOCAL = 886.81
"""Pixels at 1024 x 768 (60 degrees); cameras with tilted lenses have their own matrix."""
SPLIT_TABLE = "metadata_images_split_scene_v1.csv"
CAMERA_TABLE = "metadata_camera_parameters.csv"
_SUFFIX = ".tonemap.jpg"

CARD = DatasetCard(
    name="hypersim",
    title="Hypersim",
    sources=(
        "https://github.com/apple/ml-hypersim",
        "https://github.com/apple/ml-hypersim/tree/main/contrib/mikeroberts3000",
    ),
    licence="CC BY-SA 3.0",
    gives=("image", "K", "pose", "depth"),
    metric=True,
    layout=(
        "ai_001_001/images/scene_cam_00_final_preview/frame.0000.tonemap.jpg\n"
        "ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5 (ray length; needs h5py)\n"
        "ai_001_001/_detail/cam_00/camera_keyframe_{positions,orientations}.hdf5, _detail/metadata_scene.csv\n"
        f"{CAMERA_TABLE} (optional, exact lenses), {SPLIT_TABLE} (for split)"
    ),
    conventions=(
        "OpenGL camera axes flipped to OpenCV; positions times meters_per_asset_unit; distances to the camera's centre "
        "become z-depth; a tilted lens (M_cam_from_uv) is written as a pinhole camera with a turned attitude, which is "
        "exact; 60 degrees and a centred principal point without the table; pixel centres at +0.5."
    ),
    splits=("train", "val", "test"),
    open_points=(
        "Pictures are the release's tone-mapped previews; the HDR pictures are not read.",
        f"Without {CAMERA_TABLE} scenes with tilted lenses have wrong intrinsics.",
    ),
)


@dataclass(frozen=True)
class _Walk:
    root: Path
    scene: str
    camera: str
    frames: tuple[int, ...] | None  # None: all


def open_hypersim(root: str | Path, *, split: str | None = None) -> SceneSet:
    """Camera walks ("ai_001_001/cam_00"), one scene each.

    Args:
        root: folder of the scenes and the two official tables.
        split: "train", "val" or "test" of the official table; only public pictures.

    Raises:
        InputError: no scenes here, or the split table is missing or damaged.
    """
    root, split = Path(root), CARD.check_split(split)
    listed = None if split is None else split_frames(need_file(root / SPLIT_TABLE, "split table"), split)
    items: dict[str, _Walk] = {}
    for scene in folders_in(root):
        for folder in sorted((scene / "images").glob("scene_cam_*_final_preview")):
            camera = folder.name.removeprefix("scene_").removesuffix("_final_preview")
            frames = None if listed is None else listed.get((scene.name, camera))
            if listed is None or frames:
                items[f"{scene.name}/{camera}"] = _Walk(root, scene.name, camera, frames)
    if not items:
        raise InputError(
            "does not look like Hypersim: no ai_*/images/scene_cam_*_final_preview"
            + (f" of the split '{split}'" if split else ""),
            path=root,
            remedy="download scenes with the official script",
        )
    return SceneSet(CARD, items, _scene)


def split_frames(path: Path, split: str) -> dict[tuple[str, str], tuple[int, ...]]:
    """Public frames of a split by (scene, camera).

    Raises:
        InputError: the table lacks a column, or holds a frame that is no number.
    """
    out: dict[tuple[str, str], list[int]] = {}
    for row in csv.DictReader(io.StringIO(read_utf8(path))):
        if row.get("included_in_public_release") != "True" or row.get("split_partition_name") != split:
            continue
        try:
            out.setdefault((row["scene_name"], row["camera_name"]), []).append(int(row["frame_id"]))
        except (KeyError, TypeError, ValueError) as exc:
            raise InputError(
                "lacks 'scene_name' or 'camera_name', or holds a 'frame_id' that is no number",
                path=path,
                remedy="use the official split table",
            ) from exc
    return {key: tuple(sorted(frames)) for key, frames in out.items()}


def _scene(name: str, walk: _Walk) -> Scene:
    folder = walk.root / walk.scene
    detail = folder / "_detail" / walk.camera
    unit = metres_per_unit(folder / "_detail" / "metadata_scene.csv")
    positions = read_hdf5(detail / "camera_keyframe_positions.hdf5", what="Hypersim") * unit
    rotations = read_hdf5(detail / "camera_keyframe_orientations.hdf5", what="Hypersim")
    if positions.shape != (len(positions), 3) or rotations.shape != (len(positions), 3, 3):
        raise InputError(
            "positions and orientations do not fit", path=detail, remedy="download the scene again"
        )
    indices = detail / "camera_keyframe_frame_indices.hdf5"
    order = read_hdf5(indices).tolist() if indices.is_file() else list(range(len(positions)))
    row_of = {int(frame): row for row, frame in enumerate(order)}
    previews = folder / "images" / f"scene_{walk.camera}_final_preview"
    maps = folder / "images" / f"scene_{walk.camera}_geometry_hdf5"
    views, lens = [], None
    for picture in files_in(previews, (_SUFFIX,), "pictures"):
        frame = int(picture.name.removesuffix(_SUFFIX).removeprefix("frame."))
        if walk.frames is not None and frame not in walk.frames:
            continue
        if frame not in row_of:
            raise InputError(f"has no pose of frame {frame}", path=detail, remedy="download the scene again")
        if lens is None:
            size = image_size(picture)
            lens = scene_lens(walk.root / CAMERA_TABLE, walk.scene, size)
        K, turn = lens
        stored = np.eye(4)
        stored[:3, :3], stored[:3, 3] = rotations[row_of[frame]], positions[row_of[frame]]
        pose = rigid_matrix(torch.from_numpy(stored), detail / "camera_keyframe_orientations.hdf5")
        pose = convert_world_from_cam(pose, "opengl", "opencv") @ turn
        view = file_view(picture.name, picture, K, pose, size=size)
        depth = maps / f"frame.{frame:04d}.depth_meters.hdf5"
        if depth.is_file():
            view = view.replace(depth=functools.partial(load_plane_depth, depth, K, size))
        views.append(view)
    return Scene(tuple(views), metric=True, ordered=True, info={"dataset": CARD.name, "scene": name})


def metres_per_unit(path: Path) -> float:
    """``meters_per_asset_unit`` of a scene.

    Raises:
        InputError: missing or not positive.
    """
    for row in csv.reader(io.StringIO(read_utf8(need_file(path, "scene table")))):
        if len(row) >= 2 and row[0].strip() == "meters_per_asset_unit":
            try:
                value = float(row[1])
            except ValueError:
                value = 0.0
            if 0 < value < math.inf:
                return value
    raise InputError("lacks a positive 'meters_per_asset_unit'", path=path, remedy="download the scene again")


def scene_lens(table: Path, scene: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """K (3, 3) of pictures of (width, height) and the turn (4, 4), view camera from pinhole camera.

    The turn is the identity but for tilted lenses.

    Raises:
        InputError: the table is damaged, or has no row for the scene.
    """
    if not table.is_file():
        f = FOCAL * size[0] / SIZE[0]
        return intrinsics(f, f, 0.5 * size[0], 0.5 * size[1]), torch.eye(4, dtype=torch.float64)
    for row in csv.DictReader(io.StringIO(read_utf8(table))):
        if row.get("scene_name") != scene:
            continue
        try:
            numbers = [float(row[f"M_cam_from_uv_{i}{j}"]) for i in range(3) for j in range(3)]
            K, turn = tilted_pinhole(torch.tensor(numbers, dtype=torch.float64).view(3, 3), size)
        except (KeyError, TypeError, ValueError, torch.linalg.LinAlgError) as exc:
            raise InputError(
                f"holds no usable M_cam_from_uv for {scene}", path=table, remedy="use the official table"
            ) from exc
        return usable_K(K, table), turn
    raise InputError(f"has no row for the scene {scene}", path=table, remedy="use the official table")


def tilted_pinhole(cam_from_uv: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A pinhole camera equal to Hypersim's: pictures of a tilted image plane are those of a turned camera.

    ``cam_from_uv`` takes (u, v, 1), u to the right and v up in [-1, 1] over the picture, to rays with OpenGL axes. In
    pixels and OpenCV axes its inverse H takes rays to pixels; H = K R with an upper triangular K and a rotation R is
    that camera (RQ decomposition).

    Args:
        cam_from_uv: (3, 3).
        size: (width, height).

    Returns:
        K (3, 3) with last row (0, 0, 1), and (4, 4) rotation from the pinhole camera to the stored camera (both with
        OpenCV axes).
    """
    width, height = size
    pixel_from_uv = torch.tensor(
        [[0.5 * width, 0, 0.5 * width], [0, -0.5 * height, 0.5 * height], [0, 0, 1]], dtype=torch.float64
    )
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    H = pixel_from_uv @ torch.linalg.inv(flip @ cam_from_uv)
    # RQ through QR of the rows in reverse order.
    swap = torch.eye(3, dtype=torch.float64).flip(0)
    q, r = torch.linalg.qr((swap @ H).mT)
    K, R = swap @ r.mT @ swap, swap @ q.mT
    signs = torch.diag(torch.where(torch.diagonal(K) < 0, -1.0, 1.0).to(torch.float64))
    K, R = K @ signs, signs @ R
    if float(torch.linalg.det(R)) < 0:  # a homogeneous matrix has no sign
        R = -R
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = R.mT
    return K / K[2, 2], turn


def load_plane_depth(path: Path, K: Tensor, size: tuple[int, int]) -> Depth:
    """z-depth in metres of a file of distances to the camera's centre.

    Raises:
        InputError: missing, damaged or of another size.
        MissingExtraError: h5py is not installed.
    """
    length = torch.from_numpy(read_hdf5(need_file(path, "depth map"), what="Hypersim").astype(np.float32))
    if tuple(length.shape) != (size[1], size[0]):
        raise InputError(
            f"the depth map has shape {tuple(length.shape)}, its picture ({size[1]}, {size[0]})",
            path=path,
            remedy="use pictures and depth of the same release",
        )
    return Depth.from_values(z_from_ray_length(length, K))
