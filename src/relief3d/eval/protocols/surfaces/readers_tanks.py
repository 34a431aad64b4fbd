"""Reads the training scenes of Tanks and Temples with the evaluation data of its toolbox."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Scene, View
from relief3d.core.errors import InputError
from relief3d.eval.metrics.mesh_tanks import CropPolygon, read_crop_polygon
from relief3d.eval.protocols.surfaces.readers_scannet import load_rgb, matrix_file
from relief3d.io.colmap import find_colmap_model, read_colmap_model
from relief3d.io.images import image_size
from relief3d.io.names import list_images
from relief3d.io.ply import read_ply
from relief3d.io.rigid import rigid_from_file
from relief3d.io.whole_file import read_utf8

TAU = {
    "Barn": 0.01,
    "Caterpillar": 0.005,
    "Church": 0.025,
    "Courthouse": 0.025,
    "Ignatius": 0.003,
    "Meetingroom": 0.01,
    "Truck": 0.005,
}
"""Official thresholds in metres."""

LAYOUT = """
DATA/<S>/<S>.ply                     laser scan in metres
        /<S>.json                    crop polygon
        /<S>_trans.txt               4x4, COLMAP reference frame to scan
        /<S>_COLMAP_SfM.log          reference camera poses, one per picture
        /<S>_mapping_reference.txt   for videos: which frame each reference pose is
        /images/*.jpg                the image set (or DATA/image_sets/<S>/*.jpg, or beside the files)
        /sparse[/0]                  optional COLMAP model with the intrinsics
S: Barn, Caterpillar, Church, Courthouse, Ignatius, Meetingroom, Truck
""".strip()


@dataclass(frozen=True)
class TanksScene:
    """Files of one scene."""

    name: str
    folder: Path
    images: Path


def find_scenes(data: Path) -> list[TanksScene]:
    """The training scenes that are there.

    Raises:
        InputError: none is there, or one lacks its pictures or a file of the evaluation data.
    """
    if not data.is_dir():
        raise InputError("is not a folder", path=data)
    found = []
    for name in TAU:
        folder = data / name
        if not folder.is_dir():
            continue
        for ending in (".ply", ".json", "_trans.txt", "_COLMAP_SfM.log"):
            if not (folder / f"{name}{ending}").is_file():
                raise InputError(
                    "is missing",
                    path=folder / f"{name}{ending}",
                    remedy="unpack the evaluation data of the training set (trainingdata.zip)",
                )
        choices = (folder / "images", data / "image_sets" / name, folder)
        images = next((c for c in choices if c.is_dir() and _pictures(c)), None)
        if images is None:
            raise InputError("holds no pictures", path=folder, remedy="unpack the image set to images/")
        found.append(TanksScene(name, folder, images))
    if not found:
        raise InputError(
            f"holds none of the training scenes {', '.join(TAU)}",
            path=data,
            remedy="give their parent folder",
        )
    return found


def _pictures(folder: Path) -> list[Path]:
    if not any(p.suffix.lower() in (".jpg", ".jpeg", ".png") for p in folder.iterdir()):
        return []
    return list_images(folder)


def read_log(path: Path) -> Tensor:
    """(N, 4, 4) float64 ``world_from_cam`` of a ``.log`` trajectory: three integers, then a matrix, per camera.

    Raises:
        InputError: a line is malformed, a pose is not rigid, or there is none.
    """
    if not path.is_file():
        raise InputError("is missing", path=path)
    lines = [
        (i, line.split()) for i, line in enumerate(read_utf8(path).splitlines(), start=1) if line.strip()
    ]
    if not lines or len(lines) % 5:
        raise InputError(f"has {len(lines)} lines, not five per camera", path=path)
    poses = []
    for first in range(0, len(lines), 5):
        number = lines[first][0]
        rows = [words for _, words in lines[first : first + 5]]
        if len(rows[0]) != 3 or any(len(r) != 4 for r in rows[1:]):
            raise InputError(
                f"line {number}: expected three integers and four rows of four numbers", path=path
            )
        try:
            [int(word) for word in rows[0]]
            matrix = torch.tensor([[float(word) for word in r] for r in rows[1:]], dtype=torch.float64)
            poses.append(rigid_from_file(matrix))
        except ValueError as exc:
            raise InputError(f"line {number}: the pose {exc}", path=path) from exc
    return torch.stack(poses)


def read_mapping(path: Path) -> Tensor:
    """(N,) int64 index of the video frame (from 0) of each reference pose.

    The file holds the number of sampled frames, the number of all frames, then pairs of numbers from 1 on.

    Raises:
        InputError: malformed.
    """
    try:
        numbers = [int(word) for word in read_utf8(path).split()]
    except ValueError as exc:
        raise InputError("holds text where a whole number belongs", path=path) from exc
    if len(numbers) < 2 or len(numbers) != 2 + 2 * numbers[0]:
        raise InputError("does not hold one pair of numbers per sampled frame", path=path)
    index = torch.tensor(numbers[3::2], dtype=torch.int64) - 1
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= numbers[1]):
        raise InputError(f"names a frame outside the {numbers[1]} of the video", path=path)
    return index


def reference_poses(scene: TanksScene) -> Tensor:
    """(N, 4, 4) poses of the reference trajectory, in the COLMAP frame."""
    return read_log(scene.folder / f"{scene.name}_COLMAP_SfM.log")


def scene_mapping(scene: TanksScene) -> Tensor | None:
    """See :func:`read_mapping`; None without the file."""
    path = scene.folder / f"{scene.name}_mapping_reference.txt"
    return read_mapping(path) if path.is_file() else None


def scene_transform(scene: TanksScene) -> Tensor:
    """(4, 4) float64 similarity from the COLMAP reference frame to the scan."""
    path = scene.folder / f"{scene.name}_trans.txt"
    matrix = matrix_file(path)
    if not bool(torch.isfinite(matrix).all()) or float(torch.linalg.det(matrix[:3, :3])) <= 0:
        raise InputError("is not a similarity", path=path)
    return matrix


def scene_scan(scene: TanksScene) -> tuple[Tensor, CropPolygon]:
    """Points (M, 3) of the laser scan in metres, and the crop polygon."""
    scan = read_ply(scene.folder / f"{scene.name}.ply")
    points = scan.xyz if hasattr(scan, "xyz") else scan.vertices
    return points, read_crop_polygon(scene.folder / f"{scene.name}.json")


def tanks_pictures(scene: TanksScene) -> Scene:
    """What a model sees: the image set with the reference poses in the COLMAP frame (unscaled); nothing is decoded.

    Tanks and Temples publishes no intrinsics; they come from a COLMAP model in the scene's folder where there is one.

    Raises:
        InputError: not one pose per picture.
    """
    pictures, poses = _pictures(scene.images), reference_poses(scene)
    if len(pictures) != len(poses):
        raise InputError(
            f"holds {len(pictures)} pictures for {len(poses)} reference poses",
            path=scene.images,
            remedy="use the image set the poses were made from",
        )
    lenses = _model_cameras(scene.folder)
    views = []
    for path, pose in zip(pictures, poses):
        lens = lenses.get(path.name)
        camera = Camera(*image_size(path)) if lens is None else lens
        camera = camera.replace(world_from_cam=pose)
        views.append(View(path.name, camera, image=functools.partial(load_rgb, path), path=path))
    return Scene(tuple(views), metric=False, ordered=True)


def _model_cameras(folder: Path) -> dict[str, Camera]:
    """Cameras with intrinsics by picture name; empty without a model."""
    sparse = folder / "sparse"
    model = find_colmap_model(sparse) if sparse.is_dir() else None
    if model is None:
        return {}
    return {Path(v.name).name: v.camera for v in read_colmap_model(model).views}
