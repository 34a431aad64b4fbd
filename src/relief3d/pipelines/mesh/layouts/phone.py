"""Exports of phone programs on ARKit: Polycam raw data, Record3D, and frames with a JSON file each.

ARKit's cameras have x right, y up, z backward; its world is in metres with y up, and stays as it is. Principal points
count from the corner of the picture, as programs that read these exports take them, so nothing is added. The readers
follow what public converters read; no export of the programs themselves was at hand to check them with.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Scene, View
from relief3d.core.errors import InputError
from relief3d.data.readers.files import file_view, files_in, one_of, usable_K
from relief3d.data.readers.poses import pose_from_quat_xyzw, rigid_matrix
from relief3d.geometry.conventions import convert_world_from_cam
from relief3d.geometry.projection import intrinsics, resize_intrinsics
from relief3d.io.json_file import Record, read_json_object
from relief3d.pipelines.mesh.layouts.frames import with_depth_file

_PICTURES = (".jpg", ".jpeg", ".png")
_MILLIMETRE = 0.001


def is_polycam(folder: Path) -> bool:
    """``keyframes`` with a JSON file per camera."""
    return _polycam(folder) is not None


def _polycam(folder: Path) -> tuple[Path, Path] | None:
    """(pictures, cameras), those corrected by the program first."""
    root = folder / "keyframes" if (folder / "keyframes").is_dir() else folder
    for prefix in ("corrected_", ""):
        pictures, cameras = root / f"{prefix}images", root / f"{prefix}cameras"
        if pictures.is_dir() and cameras.is_dir() and any(cameras.glob("*.json")):
            return pictures, cameras
    return None


def read_polycam(folder: Path) -> Scene:
    """One view per picture with a camera, in order of time.

    Raises:
        InputError: malformed cameras, or another number of them than of pictures.
    """
    found = _polycam(folder)
    assert found is not None
    pictures, cameras = found
    images = files_in(pictures, _PICTURES, "pictures")
    views = []
    for file in files_in(cameras, (".json",), "cameras"):
        picture = one_of(pictures, file.stem, _PICTURES)
        if picture is None:
            raise InputError(f"camera {file.stem} has no picture", path=pictures, remedy="export it again")
        record = Record(read_json_object(file), file)
        rows = [[_need(record, f"t_{i}{j}") for j in range(4)] for i in range(3)]
        fx, fy, cx, cy = (_need(record, key) for key in ("fx", "fy", "cx", "cy"))
        K = usable_K(intrinsics(fx, fy, cx, cy), file)
        size = record.integer("width"), record.integer("height")
        view = _view(picture, K, size, torch.tensor(rows, dtype=torch.float64), file)
        views.append(with_depth_file(view, pictures.parent / "depth" / f"{file.stem}.png", scale=_MILLIMETRE))
    if len(views) != len(images):
        raise InputError(
            f"holds {len(views)} cameras, but there are {len(images)} pictures",
            path=cameras,
            remedy="export the recording again, complete",
        )
    return Scene(tuple(views), metric=True, ordered=True, info={"layout": "polycam"})


def is_record3d(folder: Path) -> bool:
    """``metadata.json`` or ``metadata`` beside ``rgb`` or ``rgbd``."""
    return _metadata(folder) is not None and any((folder / n).is_dir() for n in ("rgb", "rgbd"))


def _metadata(folder: Path) -> Path | None:
    return next((p for n in ("metadata.json", "metadata") if (p := folder / n).is_file()), None)


def read_record3d(folder: Path) -> Scene:
    """One view per picture. Depth is read from ``depth/N.exr``; the compressed ``.depth`` of a raw file is not.

    Raises:
        InputError: malformed metadata, or another number of poses than of pictures.
    """
    path = _metadata(folder)
    assert path is not None
    record = Record(read_json_object(path), path)
    pictures = folder / "rgb" if (folder / "rgb").is_dir() else folder / "rgbd"
    images = files_in(pictures, _PICTURES, "pictures")
    poses = _rows(record, "poses", 7)
    if len(poses) != len(images):
        raise InputError(
            f"holds {len(poses)} poses, but there are {len(images)} pictures",
            path=path,
            remedy="use metadata and pictures of the same export, complete",
        )
    stored = record.numbers("K")
    if stored is None or len(stored) != 9:
        raise record.error("'K' must be nine numbers")
    # Column by column, as the program keeps it.
    K = usable_K(torch.tensor(stored, dtype=torch.float64).reshape(3, 3).mT.contiguous(), path)
    each = _rows(record, "perFrameIntrinsicCoeffs", 4) if record.get("perFrameIntrinsicCoeffs") else None
    if each is not None and len(each) != len(images):
        raise record.error(f"'perFrameIntrinsicCoeffs' holds {len(each)} rows for {len(images)} pictures")
    size = record.integer("w"), record.integer("h")
    world_from_cam = pose_from_quat_xyzw(poses[:, 4:], poses[:, :4], path)
    views = []
    for k, picture in enumerate(images):
        own = K if each is None else usable_K(_pinhole(each[k]), path)
        view = _view(picture, own, size, world_from_cam[k], path)
        views.append(with_depth_file(view, folder / "depth" / f"{picture.stem}.exr", scale=1.0))
    return Scene(tuple(views), metric=True, ordered=True, info={"layout": "record3d"})


def is_arkit(folder: Path) -> bool:
    """A picture ``frame_N`` with a JSON file that holds ARKit's pose."""
    first = next(iter(sorted(folder.glob("frame_*.json"))), None)
    return first is not None and "cameraPoseARFrame" in read_json_object(first)


def read_arkit(folder: Path) -> Scene:
    """One view per ``frame_N.jpg`` with ``frame_N.json``; depth from ``depth_N.png`` (millimetres).

    Pictures without a JSON file have no pose (the program stores more pictures than poses).

    Raises:
        InputError: malformed files.
    """
    images = [p for p in files_in(folder, _PICTURES, "pictures") if p.name.startswith("frame_")]
    views = []
    for picture in images:
        file = picture.with_suffix(".json")
        if not file.is_file():
            continue
        record = Record(read_json_object(file), file)
        pose, K = record.numbers("cameraPoseARFrame"), record.numbers("intrinsics")
        if pose is None or len(pose) != 16 or K is None or len(K) != 9:
            raise record.error("'cameraPoseARFrame' must be 16 numbers and 'intrinsics' nine")
        matrix = torch.tensor(pose, dtype=torch.float64).reshape(4, 4)
        own = usable_K(torch.tensor(K, dtype=torch.float64).reshape(3, 3), file)
        view = _view(picture, own, (None, None), matrix, file).replace(time=record.number("time"))
        depth = folder / f"depth_{picture.stem.removeprefix('frame_')}.png"
        views.append(with_depth_file(view, depth, scale=_MILLIMETRE))
    if not views:
        raise InputError("no picture has a JSON file", path=folder, remedy="export all data")
    return Scene(tuple(views), metric=True, ordered=True, info={"layout": "arkit"})


def _view(
    picture: Path, K: Tensor, size: tuple[int | None, int | None], opengl: Tensor, source: Path
) -> View:
    """A view whose K is for pictures of ``size`` (its own when None); ``opengl`` is ARKit's pose."""
    pose = convert_world_from_cam(rigid_matrix(opengl, source), "opengl", "opencv")
    view = file_view(picture.name, picture, None, pose)
    own = (view.camera.width, view.camera.height)
    if size[0] is not None and size[1] is not None and (size[0], size[1]) != own:
        K = resize_intrinsics(K, (size[0], size[1]), own)
    return view.replace(camera=view.camera.replace(K=K))


def _pinhole(row: Tensor) -> Tensor:
    fx, fy, cx, cy = row.tolist()
    return intrinsics(fx, fy, cx, cy)


def _need(record: Record, key: str) -> float:
    value = record.number(key)
    if value is None:
        raise record.error(f"'{key}' is missing")
    return value


def _rows(record: Record, key: str, columns: int) -> Tensor:
    """(N, columns) float64."""
    value = record.get(key)
    try:
        rows = torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as exc:
        raise record.error(f"'{key}' must be rows of {columns} numbers") from exc
    if rows.ndim != 2 or rows.shape[1] != columns or not bool(torch.isfinite(rows).all()):
        raise record.error(f"'{key}' must be rows of {columns} finite numbers")
    return rows
