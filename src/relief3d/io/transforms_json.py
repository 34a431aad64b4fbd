"""nerfstudio ``transforms.json``: intrinsics shared or per frame, OpenGL camera axes, pixel centres at +0.5.

Poses in the file are ``world_from_cam`` with x right, y up, z backward. ``applied_transform`` (3x4) and
``applied_scale`` say how the file's world was made from the original data's world; both are undone when
reading, for cameras and points alike. Format: https://docs.nerf.studio/quickstart/data_conventions.html.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Distortion, Mesh, PointCloud, Scene, View
from relief3d.core.errors import InputError
from relief3d.geometry.conventions import convert_world_from_cam
from relief3d.io.frame_files import load_frame_depth, load_frame_image, load_frame_mask
from relief3d.io.images import image_size
from relief3d.io.json_file import Record, read_json_object, write_json
from relief3d.io.ply import read_ply
from relief3d.io.rigid import rigid_from_file

FILE_NAME = "transforms.json"
PERSPECTIVE = frozenset({"OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"})
READABLE = PERSPECTIVE | {"OPENCV_FISHEYE"}
_LENS_KEYS = ("k1", "k2", "k3", "k4", "p1", "p2")
_INTEGER_SUFFIXES = (".png", ".tif", ".tiff")
_GUESSED_SUFFIXES = (".png", ".jpg", ".jpeg")


def read_transforms_json(path: str | Path, *, require_images: bool = True) -> Scene:
    """Read a ``transforms.json`` with everything it names; pictures, depth and masks load on demand.

    Files written by relief3d also say whether the world is metric and the views are ordered; other
    files are taken as not metric. Depth maps of integer type are in millimetres, as in nerfstudio,
    unless ``depth_unit_scale_factor`` says otherwise.

    Args:
        path: the file, or the folder that holds it. Paths inside are relative to its folder.
        require_images: False accepts frames whose picture is missing on disk (cameras alone; the file
            must then hold sizes).

    Returns:
        One view per frame in file order; ``points`` when ``ply_file_path`` names a file.

    Raises:
        InputError: naming the file and the frame, when anything is missing, malformed or inconsistent,
            or a lens model cannot be expressed.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    values = read_json_object(path)
    top = Record(values, path)
    frames = top.objects("frames")
    if not frames:
        raise top.error("'frames' is empty", "list at least one picture")
    own = values.get("relief3d")
    own = own if isinstance(own, dict) else {}
    metric = own.get("metric") is True
    original_from_file, scale = _applied(top)
    shared = {key: value for key, value in values.items() if key not in ("frames", "relief3d")}
    views: list[View] = []
    for index, frame_values in enumerate(frames):
        label = frame_values.get("file_path")
        where = f"frame {index}" + (f" ({label})" if isinstance(label, str) else "")
        frame = Record(frame_values, path, where, shared)
        views.append(_read_frame(frame, original_from_file, scale, metric, require_images))
    points = _read_points(top, original_from_file, scale)
    try:
        return Scene(
            tuple(views),
            metric=metric,
            ordered=own.get("ordered") is True,
            points=points,
            info={"source": path.name},
        )
    except InputError as exc:
        raise top.error(exc.message, exc.remedy) from exc


def write_transforms_json(
    scene: Scene,
    path: str | Path,
    *,
    ply_file_path: str | None = None,
    depth: Mapping[str, str] | None = None,
    masks: Mapping[str, str] | None = None,
    depth_unit: float = 1e-3,
) -> Path:
    """Write the posed views as a nerfstudio ``transforms.json``, atomically.

    The world is written as it is (no ``applied_transform``). Intrinsics stand at the top when all views
    share them, otherwise in every frame.

    Args:
        scene: views without pose or intrinsics are left out.
        path: the file, or an existing folder. Picture paths become relative to its folder.
        ply_file_path: points file relative to the folder, in the scene's world.
        depth: by view name, the depth file relative to the folder.
        masks: by view name, the mask file relative to the folder.
        depth_unit: scene units per stored unit of integer depth files (nerfstudio expects 1e-3).

    Raises:
        InputError: no posed view, or lenses that the format cannot hold (rational k4..k6, skew, fisheye
            mixed with perspective).
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    posed = [scene.views[i] for i in scene.posed]
    if not posed:
        raise InputError("no view has both a pose and intrinsics, so nothing can be written", path=path)
    intrinsics = [_intrinsics(view, path) for view in posed]
    models = {values["camera_model"] for values in intrinsics}
    if "OPENCV_FISHEYE" in models and len(models) > 1:
        raise InputError(
            "transforms.json cannot hold fisheye and perspective cameras together",
            path=path,
            remedy="undistort the pictures or write a COLMAP model",
        )
    model = "OPENCV" if "OPENCV" in models else models.pop()
    for values in intrinsics:
        values["camera_model"] = model
    document: dict[str, Any] = {"camera_model": model}
    same = all(values == intrinsics[0] for values in intrinsics)
    if same:
        document |= intrinsics[0]
    if ply_file_path is not None:
        document["ply_file_path"] = ply_file_path
    if depth:
        document["depth_unit_scale_factor"] = depth_unit
    document["relief3d"] = {"metric": scene.metric, "ordered": scene.ordered}
    frames = []
    for view, values in zip(posed, intrinsics):
        frame = _frame_values(view, path.parent)
        if not same:
            frame |= {key: value for key, value in values.items() if key != "camera_model"}
        if depth and view.name in depth:
            frame["depth_file_path"] = depth[view.name]
        if masks and view.name in masks:
            frame["mask_path"] = masks[view.name]
        frames.append(frame)
    return write_json(path, document | {"frames": frames})


def _frame_values(view: View, folder: Path) -> dict[str, Any]:
    file_path = view.name
    if view.path is not None:
        file_path = Path(os.path.relpath(view.path.resolve(), folder.resolve())).as_posix()
    pose = view.camera.world_from_cam
    if pose is None:
        raise InputError(f"view '{view.name}' has no pose")
    values: dict[str, Any] = {
        "file_path": file_path,
        "transform_matrix": convert_world_from_cam(pose, "opencv", "opengl"),
    }
    if view.name != file_path:
        values["name"] = view.name
    if view.time is not None:
        values["time"] = view.time
    return values


def _intrinsics(view: View, path: Path) -> dict[str, Any]:
    camera, K = view.camera, view.camera.K
    if K is None:
        raise InputError(f"view '{view.name}' has no intrinsics", path=path)
    if abs(float(K[0, 1])) > 1e-9:
        raise InputError(f"view '{view.name}' has skew, which transforms.json cannot hold", path=path)
    values: dict[str, Any] = {"camera_model": "PINHOLE", "w": camera.width, "h": camera.height}
    values |= {"fl_x": float(K[0, 0]), "fl_y": float(K[1, 1]), "cx": float(K[0, 2]), "cy": float(K[1, 2])}
    lens = camera.distortion
    if lens is None or lens.is_identity:
        return values
    if lens.model == "fisheye":
        return values | {"camera_model": "OPENCV_FISHEYE"} | dict(zip(("k1", "k2", "k3", "k4"), lens.params))
    k1, k2, p1, p2, k3, *rational = (*lens.params, 0.0)[:8] if len(lens.params) == 4 else lens.params
    if any(rational):
        raise InputError(
            f"view '{view.name}' has a rational lens model (k4, k5, k6), which transforms.json cannot hold",
            path=path,
            remedy="undistort the pictures or write a COLMAP model",
        )
    return values | {"camera_model": "OPENCV", "k1": k1, "k2": k2, "k3": k3, "p1": p1, "p2": p2}


def _applied(top: Record) -> tuple[Tensor, float]:
    """(4, 4) rigid part and the scale of original_from_file."""
    matrix = top.matrix("applied_transform", [(3, 4), (4, 4)])
    try:
        file_from_original = torch.eye(4, dtype=torch.float64) if matrix is None else rigid_from_file(matrix)
    except ValueError as exc:
        raise top.error(f"'applied_transform' {exc}") from exc
    scale = top.number("applied_scale")
    if scale is not None and scale <= 0:
        raise top.error("'applied_scale' must be positive")
    return torch.linalg.inv(file_from_original), 1.0 if scale is None else scale


def _read_frame(
    frame: Record, original_from_file: Tensor, scale: float, metric: bool, require_images: bool
) -> View:
    file_path = frame.text("file_path")
    if file_path is None:
        raise frame.error("has no 'file_path'")
    picture = _picture(frame, file_path, require_images)
    camera = _read_camera(frame, picture)
    matrix = frame.matrix("transform_matrix", [(4, 4), (3, 4)])
    if matrix is not None:
        try:
            pose = rigid_from_file(matrix)
        except ValueError as exc:
            raise frame.error(f"'transform_matrix' {exc}") from exc
        pose[:3, 3] /= scale
        camera = camera.replace(
            world_from_cam=convert_world_from_cam(original_from_file @ pose, "opengl", "opencv")
        )
    size = (camera.width, camera.height)
    depth_file = _existing(frame, "depth_file_path")
    unit = frame.number("depth_unit_scale_factor")
    if unit is not None and unit <= 0:
        raise frame.error("'depth_unit_scale_factor' must be positive")
    if depth_file is not None and depth_file.suffix.lower() not in _INTEGER_SUFFIXES:
        unit = None  # files of floats hold scene units already
    mask_file = _existing(frame, "mask_path")
    return View(
        name=_own_text(frame, "name") or _plain(file_path),
        camera=camera,
        image=None if picture is None else partial(load_frame_image, frame, picture, size),
        depth=None
        if depth_file is None
        else partial(load_frame_depth, frame, depth_file, unit, metric, size),
        mask=None if mask_file is None else partial(load_frame_mask, frame, (mask_file,), size),
        time=frame.number("time"),
        path=picture,
    )


def _own_text(frame: Record, key: str) -> str | None:
    return frame.text(key) if frame.values.get(key) is not None else None


def _plain(file_path: str) -> str:
    return PurePosixPath(file_path.replace("\\", "/")).as_posix()


def _picture(frame: Record, file_path: str, required: bool) -> Path | None:
    path = frame.path.parent / _plain(file_path)
    candidates = (
        [path] if path.suffix else [path, *(path.with_name(path.name + s) for s in _GUESSED_SUFFIXES)]
    )
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if required:
        raise frame.error(f"the picture '{file_path}' does not exist", "check 'file_path'")
    return None


def _existing(frame: Record, key: str) -> Path | None:
    text = _own_text(frame, key)
    if text is None:
        return None
    path = frame.path.parent / _plain(text)
    if not path.is_file():
        raise frame.error(f"'{key}' names the file '{text}', which does not exist")
    return path


def _read_camera(frame: Record, picture: Path | None) -> Camera:
    width, height = frame.integer("w"), frame.integer("h")
    if picture is not None:
        found = image_size(picture)
        if (width, height) != (None, None) and (width, height) != found:
            raise frame.error(
                f"the file says {width}x{height} but the picture has {found[0]}x{found[1]} pixels"
            )
        width, height = found
    if width is None or height is None or width < 1 or height < 1:
        raise frame.error("'w' and 'h' must be positive whole numbers")
    fx, fy = frame.number("fl_x"), frame.number("fl_y")
    angle_x, angle_y = frame.number("camera_angle_x"), frame.number("camera_angle_y")
    if fx is None and angle_x is not None and 0 < angle_x < math.pi:
        fx = 0.5 * width / math.tan(0.5 * angle_x)
    if fy is None and angle_y is not None and 0 < angle_y < math.pi:
        fy = 0.5 * height / math.tan(0.5 * angle_y)
    fx, fy = (fy if fx is None else fx), (fx if fy is None else fy)
    K = None
    if fx is not None and fy is not None:
        cx, cy = frame.number("cx"), frame.number("cy")
        cx, cy = (0.5 * width if cx is None else cx), (0.5 * height if cy is None else cy)
        K = torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]], dtype=torch.float64)
    try:
        return Camera(width, height, K, distortion=_lens(frame))
    except InputError as exc:
        raise frame.error(exc.message, exc.remedy) from exc


def _lens(frame: Record) -> Distortion | None:
    model = frame.text("camera_model") or "OPENCV"
    if model not in READABLE:
        raise frame.error(
            f"the camera model {model} is not supported", f"use one of {', '.join(sorted(READABLE))}"
        )
    k1, k2, k3, k4, p1, p2 = (frame.number(key) or 0.0 for key in _LENS_KEYS)
    if model == "OPENCV_FISHEYE":
        if p1 or p2:
            raise frame.error("a fisheye camera with tangential distortion (p1, p2) is not supported")
        return Distortion("fisheye", (k1, k2, k3, k4))
    if k4:
        # nerfstudio's k4 is a fourth polynomial term, not the k4 of OpenCV's rational model.
        raise frame.error("a perspective camera with k4 is not supported", "refit the lens without k4")
    if not any((k1, k2, k3, p1, p2)):
        return None
    return Distortion("opencv", (k1, k2, p1, p2, k3) if k3 else (k1, k2, p1, p2))


def _read_points(top: Record, original_from_file: Tensor, scale: float) -> PointCloud | None:
    file = _existing(top, "ply_file_path")
    if file is None:
        return None
    geometry = read_ply(file)
    if isinstance(geometry, Mesh):
        geometry = PointCloud(geometry.vertices, geometry.rgb, geometry.normals)
    R, t = original_from_file[:3, :3], original_from_file[:3, 3]
    xyz = (geometry.xyz.to(torch.float64) / scale) @ R.T + t
    normals = (
        None if geometry.normals is None else (geometry.normals.to(torch.float64) @ R.T).to(torch.float32)
    )
    return PointCloud(xyz.to(torch.float32), geometry.rgb, normals, geometry.confidence)
