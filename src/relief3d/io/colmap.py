"""COLMAP models to and from scenes: ``cameras``, ``images`` and ``points3D``, text or binary.

Models are written for the original pictures: bring a scene that was solved on resized, cropped,
padded or turned pictures back with :func:`relief3d.io.original_resolution.original_resolution` first.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relief3d.core.contract import Camera, Scene, SparsePoints, View
from relief3d.core.errors import InputError
from relief3d.geometry.rotations import matrix_from_quat_wxyz, quat_wxyz_from_matrix
from relief3d.io.atomic import atomic_folder
from relief3d.io.colmap_binary import read_colmap_binary, write_colmap_binary
from relief3d.io.colmap_model import (
    MODEL_FILES,
    RIG_FILES,
    ColmapCamera,
    ColmapImage,
    ColmapModel,
    ColmapPoints,
    camera_from_colmap,
    camera_to_colmap,
)
from relief3d.io.colmap_text import read_colmap_text, write_colmap_text
from relief3d.io.images import image_size, read_image

_KNOWN_FILES = frozenset(
    {f"{stem}.{end}" for stem in (*MODEL_FILES, *RIG_FILES) for end in ("bin", "txt")}
    | {"project.ini", "points3D.ply", "points.ply"}
)


def find_colmap_model(folder: str | Path) -> Path | None:
    """The folder that holds a COLMAP model: itself, ``sparse/0``, ``sparse`` or ``0``; None when there is none."""
    folder = Path(folder)
    for candidate in (folder, folder / "sparse" / "0", folder / "sparse", folder / "0"):
        if _encoding(candidate) is not None:
            return candidate
    return None


def read_colmap_model(folder: str | Path, image_root: str | Path | None = None) -> Scene:
    """Read a COLMAP model as a scene with poses, intrinsics and sparse points.

    ``rigs`` and ``frames`` files (COLMAP >= 3.12) may be present; they are not needed, because
    ``images`` holds the complete pose of every picture.

    Args:
        folder: the model, or a folder above it (``sparse/0`` below it is found).
        image_root: folder of the pictures; their sizes are checked and they load on demand. None reads
            cameras and points alone.

    Returns:
        Views in the order of their image ids; not metric.

    Raises:
        InputError: naming the file, when the model is missing, damaged, inconsistent or uses a lens
            model that the contract cannot express.
    """
    found = find_colmap_model(folder)
    if found is None:
        raise InputError(
            "no COLMAP model here (cameras, images and points3D as .bin or .txt)",
            path=folder,
            remedy="give the folder that holds them, usually sparse/0",
        )
    model = read_colmap_binary(found) if _encoding(found) == "bin" else read_colmap_text(found)
    if not model.images:
        raise InputError("the COLMAP model has no registered pictures", path=found)
    cameras = {key: camera_from_colmap(value, found, f"camera {key}") for key, value in model.cameras.items()}
    root = None if image_root is None else Path(image_root)
    views = tuple(_view(found, cameras, model.images[key], root) for key in sorted(model.images))
    try:
        return Scene(views, sparse=_sparse(model), info={"source": found.name, "registered": len(views)})
    except InputError as exc:
        raise InputError(exc.message, path=found, remedy=exc.remedy) from exc


def write_colmap_model(
    scene: Scene, folder: str | Path, binary: bool = True, *, overwrite: bool = True
) -> Path:
    """Write the posed views and the sparse points of a scene as a COLMAP model, atomically.

    Every view is its own picture; views with equal size, K and lens share a camera. Views without pose
    or intrinsics are left out, as COLMAP does with unregistered pictures, and so are their observations.
    Lens models: PINHOLE, OPENCV, FULL_OPENCV, OPENCV_FISHEYE.

    Args:
        scene: at original resolution. ``View.name`` becomes the picture's name.
        folder: the model folder (for example ``OUT/sparse/0``).
        binary: ``.bin`` files, which every program reads; False writes ``.txt``.
        overwrite: replace a model that is there already.

    Returns:
        ``folder``.

    Raises:
        InputError: no posed view, skew, or the folder holds files that are not a COLMAP model.
    """
    folder = Path(folder)
    if folder.is_dir() and (
        strange := sorted(p.name for p in folder.iterdir() if p.name not in _KNOWN_FILES)
    ):
        raise InputError(
            f"the folder holds other files ({strange[0]}), so a COLMAP model is not written over it",
            path=folder,
            remedy="choose an empty folder",
        )
    model = scene_to_colmap(scene, folder)
    # A whole new folder, so that no rigs.bin or points3D.bin of an older model survives beside it.
    with atomic_folder(folder, overwrite=overwrite or _is_empty(folder)) as temporary:
        (write_colmap_binary if binary else write_colmap_text)(model, temporary)
    return folder


def scene_to_colmap(scene: Scene, path: str | Path = "") -> ColmapModel:
    """The COLMAP model of the posed views of a scene. ``path`` is for error messages.

    Raises:
        InputError: when no view has a pose and intrinsics, or a camera has skew.
    """
    if not scene.posed:
        raise InputError("no view has both a pose and intrinsics, so there is no COLMAP model", path=path)
    cameras: dict[ColmapCamera, int] = {}
    camera_ids = [
        cameras.setdefault(camera_to_colmap(scene.views[i].camera), len(cameras) + 1) for i in scene.posed
    ]
    image_ids = np.full(len(scene.views), -1, dtype=np.int64)
    image_ids[list(scene.posed)] = np.arange(1, len(scene.posed) + 1)
    observations, points = _points_of_scene(scene, image_ids)
    images: dict[int, ColmapImage] = {}
    for view_index, camera_id in zip(scene.posed, camera_ids):
        view = scene.views[view_index]
        pose = view.camera.cam_from_world
        if pose is None:
            continue
        quaternion = quat_wxyz_from_matrix(pose[:3, :3]).numpy()
        xy, ids = observations[view_index]
        images[int(image_ids[view_index])] = ColmapImage(
            view.name, camera_id, quaternion, pose[:3, 3].numpy(), xy, ids
        )
    return ColmapModel({number: camera for camera, number in cameras.items()}, images, points, Path(path))


def _points_of_scene(
    scene: Scene, image_ids: NDArray[np.int64]
) -> tuple[dict[int, tuple[NDArray[np.float64], NDArray[np.int64]]], ColmapPoints]:
    """Observations (xy, point ids) by view index, and the points with their tracks."""
    sparse = scene.sparse
    if sparse is None:
        nothing = (np.zeros((0, 2)), np.zeros(0, np.int64))
        zero = np.zeros(0, np.int64)
        empty = ColmapPoints(
            zero,
            np.zeros((0, 3)),
            np.zeros((0, 3), np.uint8),
            np.zeros(0),
            np.zeros(1, np.int64),
            zero.reshape(0, 2),
        )
        return dict.fromkeys(scene.posed, nothing), empty
    views, rows = sparse.obs_view.numpy(), sparse.obs_point.numpy()
    known = image_ids[views] >= 0
    views, rows, xy = views[known], rows[known], sparse.obs_xy.numpy()[known].astype(np.float64)
    place = np.zeros(len(views), np.int64)
    by_view: dict[int, tuple[NDArray[np.float64], NDArray[np.int64]]] = {}
    for i in scene.posed:
        mine = np.flatnonzero(views == i)
        place[mine] = np.arange(len(mine))
        by_view[i] = (xy[mine], rows[mine] + 1)
    order = np.argsort(rows, kind="stable")
    track = np.stack([image_ids[views[order]], place[order]], axis=1)
    lengths = np.bincount(rows, minlength=len(sparse))
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    points = ColmapPoints(
        np.arange(1, len(sparse) + 1, dtype=np.int64),
        sparse.xyz.to(torch.float64).numpy(),
        sparse.rgb.to(torch.uint8).numpy(),
        sparse.error.to(torch.float64).numpy(),
        starts,
        track,
    )
    return by_view, points


def _encoding(folder: Path) -> str | None:
    for end in ("bin", "txt"):
        if all((folder / f"{stem}.{end}").is_file() for stem in MODEL_FILES):
            return end
    return None


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _view(path: Path, cameras: dict[int, Camera], image: ColmapImage, root: Path | None) -> View:
    camera = cameras.get(image.camera_id)
    if camera is None:
        raise InputError(
            f"image '{image.name}' names camera {image.camera_id}, which is not defined", path=path
        )
    norm = float(np.linalg.norm(image.quaternion))
    if not 1e-6 < norm < 1e6:
        raise InputError(f"image '{image.name}' has a quaternion of length {norm:.3g}", path=path)
    R = matrix_from_quat_wxyz(torch.from_numpy(image.quaternion / norm))
    t = torch.from_numpy(image.translation)
    world_from_cam = torch.eye(4, dtype=torch.float64)
    world_from_cam[:3, :3], world_from_cam[:3, 3] = R.T, -R.T @ t
    if not bool(torch.isfinite(world_from_cam).all()):
        raise InputError(f"image '{image.name}' has a pose that is not finite", path=path)
    camera = camera.replace(world_from_cam=world_from_cam)
    if not image.name:
        raise InputError("the model has a picture without a name", path=path)
    if root is None:
        return View(image.name, camera)
    picture = _picture(path, image.name, root)
    found = image_size(picture)
    if found != (camera.width, camera.height):
        turned = found == (camera.height, camera.width)
        raise InputError(
            f"the model says {camera.width}x{camera.height} but the upright picture has {found[0]}x{found[1]} pixels",
            path=picture,
            remedy="the model ignores the photo's EXIF rotation: turn the photos, then rebuild the model"
            if turned
            else "use the pictures that the model was built from",
        )
    return View(image.name, camera, image=partial(_load_image, picture), path=picture)


def _picture(path: Path, name: str, root: Path) -> Path:
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts:
        raise InputError(f"the picture name '{name}' points outside the picture folder", path=path)
    picture = root / pure
    if not picture.is_file():
        raise InputError(
            f"the model's picture '{name}' does not exist in {root}",
            path=path,
            remedy="check the picture folder",
        )
    return picture


def _load_image(path: Path) -> Tensor:
    return read_image(path).rgb


def _sparse(model: ColmapModel) -> SparsePoints | None:
    points = model.points
    if len(points.ids) == 0:
        return None
    keys = sorted(model.images)
    counts = np.array([len(model.images[key].point_ids) for key in keys], dtype=np.int64)
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    all_xy = np.concatenate([model.images[key].xy for key in keys])
    all_ids = np.concatenate([model.images[key].point_ids for key in keys])
    image_ids, places = points.track[:, 0], points.track[:, 1]
    key_array = np.array(keys, dtype=np.int64)
    views = np.minimum(np.searchsorted(key_array, image_ids), len(keys) - 1)
    rows = np.repeat(np.arange(len(points.ids)), np.diff(points.starts))
    known = (key_array[views] == image_ids) & (places >= 0) & (places < counts[views])
    at = first[views] + np.where(known, places, 0)
    consistent = known.copy()
    consistent[known] = all_ids[at[known]] == points.ids[rows[known]]
    if not consistent.all():
        bad = int(points.ids[rows[np.flatnonzero(~consistent)[0]]])
        raise InputError(
            f"point {bad} and the observations in the images disagree",
            path=model.path,
            remedy="the files belong to different models or are damaged",
        )
    return SparsePoints(
        torch.from_numpy(points.xyz),
        torch.from_numpy(points.rgb),
        torch.from_numpy(points.error),
        torch.from_numpy(rows),
        torch.from_numpy(views),
        torch.from_numpy(all_xy[at]),
    )
