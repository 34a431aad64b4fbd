"""The ``cameras.json`` layout: one file that describes a folder of pictures, cameras, depth and masks.

``{"units": ..., "axes": ..., "frames": [{"image", "width", "height", "K", "T_cam_to_world", "depth",
"depth_to_metres", "mask" | "masks", "distortion", "time", "name"}]}``. In the file pixel centres lie
at integers; in memory they lie at +0.5, so 0.5 is added to cx and cy when reading and taken off when
writing. Every field but the size may be absent or null. docs/formats.md has the details.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from relief3d.core.contract import Camera, Distortion, Scene, View
from relief3d.core.errors import InputError
from relief3d.io.frame_files import load_frame_depth, load_frame_image, load_frame_mask
from relief3d.io.images import image_size
from relief3d.io.json_file import Record, read_json_object, write_json
from relief3d.io.rigid import rigid_from_file

FILE_NAME = "cameras.json"
AXES = "OpenCV camera axes: x right, y down, z forward; pixel centres at integer coordinates"
METRE_UNITS = frozenset({"metres", "meters", "metre", "meter", "m"})
PIXEL_CENTRE = 0.5


def read_cameras_json(
    path: str | Path, root: str | Path | None = None, *, require_images: bool = True
) -> Scene:
    """Read a ``cameras.json`` and whatever it names; pictures, depth and masks load on demand.

    Sizes of pictures are compared with the file (headers only), sizes of depth maps and masks when
    they are loaded. ``View.depth`` is in metres when the frame has ``depth_to_metres``. With ``mask``
    the view's mask is that file; with ``masks`` (one per object) it is their union and the list is
    kept in ``scene.info["object_masks"][view name]``.

    Args:
        path: the file, or the folder that holds it.
        root: folder that the paths in the file are relative to; the file's own folder by default.
        require_images: False accepts frames whose picture is missing on disk (cameras alone).

    Returns:
        A scene with one view per frame, named by the frame's ``image`` path, in file order; ``metric``
        when ``units`` says metres.

    Raises:
        InputError: naming the file and the frame, when anything is missing, malformed or inconsistent.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    top = Record(read_json_object(path), path)
    axes = top.text("axes")
    if axes is not None and ("opencv" not in axes.lower() or "0.5" in axes):
        raise top.error(
            f"'axes' says '{axes}'", "only OpenCV axes with pixel centres at integer coordinates are read"
        )
    frames = top.objects("frames")
    if not frames:
        raise top.error("'frames' is empty", "list at least one picture")
    folder = path.parent if root is None else Path(root)
    metric = (top.text("units") or "").strip().lower() in METRE_UNITS
    views: list[View] = []
    names: set[str] = set()
    object_masks: dict[str, list[str]] = {}
    for index, values in enumerate(frames):
        label = values.get("image") or values.get("name")
        frame = Record(values, path, f"frame {index}" + (f" ({label})" if isinstance(label, str) else ""))
        view = _read_frame(frame, folder, metric, require_images)
        if view.name in names:
            raise frame.error("another frame has the same picture", "give every view its own name")
        if masks := frame.texts("masks"):
            object_masks[view.name] = masks
        names.add(view.name)
        views.append(view)
    info: dict[str, Any] = {"source": path.name}
    if object_masks:
        info["object_masks"] = object_masks
    return Scene(tuple(views), metric=metric, ordered=top.get("ordered") is True, info=info)


def write_cameras_json(
    scene: Scene,
    path: str | Path,
    *,
    root: str | Path | None = None,
    depth: Mapping[str, tuple[str, float | None]] | None = None,
    masks: Mapping[str, str] | None = None,
) -> Path:
    """Write cameras in the ``cameras.json`` layout (pixel centres at integers), atomically.

    Args:
        scene: its views give names, sizes, K, distortion, pose and time.
        path: the file, or an existing folder to put ``cameras.json`` in.
        root: folder that picture paths are made relative to; the file's own folder by default.
        depth: by view name, the depth file relative to ``root`` and metres per stored unit (None for
            depth of unknown scale).
        masks: by view name, the mask file relative to ``root``.

    Returns:
        The path written.

    Raises:
        InputError: when a picture lies outside ``root``.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    folder = path.parent if root is None else Path(root)
    frames = []
    for view in scene.views:
        frame = _frame_values(view, folder)
        if depth is not None and view.name in depth:
            frame["depth"], scale = depth[view.name]
            if scale is not None:
                frame["depth_to_metres"] = scale
        if masks is not None and view.name in masks:
            frame["mask"] = masks[view.name]
        frames.append(frame)
    document: dict[str, Any] = {"units": "metres" if scene.metric else "arbitrary scale", "axes": AXES}
    if scene.ordered:
        document["ordered"] = True
    return write_json(path, document | {"frames": frames})


def _frame_values(view: View, folder: Path) -> dict[str, Any]:
    camera = view.camera
    image = None
    if view.path is not None:
        try:
            image = view.path.resolve().relative_to(folder.resolve()).as_posix()
        except ValueError as exc:
            raise InputError(
                f"the picture lies outside {folder}",
                path=view.path,
                remedy="give the folder of the pictures as root",
            ) from exc
    K = None
    if camera.K is not None:
        K = camera.K.clone()
        K[:2, 2] -= PIXEL_CENTRE
    values: dict[str, Any] = {"image": image, "width": camera.width, "height": camera.height, "K": K}
    values["T_cam_to_world"] = camera.world_from_cam
    values["depth"] = None
    if view.name != image:
        values["name"] = view.name
    if camera.distortion is not None:
        values["distortion"] = {"model": camera.distortion.model, "params": list(camera.distortion.params)}
    if view.time is not None:
        values["time"] = view.time
    return values


def _read_frame(frame: Record, folder: Path, metric: bool, require_images: bool) -> View:
    image = frame.text("image")
    name = frame.text("name") or image
    if name is None:
        raise frame.error("has neither 'image' nor 'name'")
    picture = _inside(frame, folder, image, "image", must_exist=require_images)
    camera = _read_camera(frame, picture if picture is not None and picture.is_file() else None)
    has_picture = picture is not None and picture.is_file()
    size = (camera.width, camera.height)
    depth_file = _inside(frame, folder, frame.text("depth"), "depth", must_exist=True)
    scale = frame.number("depth_to_metres")
    if scale is not None and scale <= 0:
        raise frame.error("'depth_to_metres' must be positive")
    mask_names = [text] if (text := frame.text("mask")) else frame.texts("masks")
    mask_files = tuple(
        file
        for text in mask_names
        if (file := _inside(frame, folder, text, "mask", must_exist=True)) is not None
    )
    return View(
        name=name,
        camera=camera,
        image=partial(load_frame_image, frame, picture, size)
        if has_picture and picture is not None
        else None,
        depth=None
        if depth_file is None
        else partial(load_frame_depth, frame, depth_file, scale, metric or scale is not None, size),
        mask=partial(load_frame_mask, frame, mask_files, size) if mask_files else None,
        time=frame.number("time"),
        path=picture if has_picture else None,
    )


def _read_camera(frame: Record, picture: Path | None) -> Camera:
    width, height = frame.integer("width"), frame.integer("height")
    if width is None or height is None or width < 1 or height < 1:
        raise frame.error("'width' and 'height' must be positive whole numbers")
    if picture is not None and (found := tuple(image_size(picture))) != (width, height):
        raise frame.error(
            f"the file says {width}x{height} but the picture has {found[0]}x{found[1]} pixels",
            "correct the size and K, or use the original pictures",
        )
    K = frame.matrix("K", [(3, 3)])
    if K is not None:
        if K[2].tolist() != [0.0, 0.0, 1.0] or float(K[1, 0]) != 0.0:
            raise frame.error("'K' is not an intrinsic matrix (fx s cx; 0 fy cy; 0 0 1)")
        K[:2, 2] += PIXEL_CENTRE
    pose = frame.matrix("T_cam_to_world", [(4, 4), (3, 4)])
    try:
        world_from_cam = None if pose is None else rigid_from_file(pose)
    except ValueError as exc:
        raise frame.error(f"'T_cam_to_world' {exc}") from exc
    try:
        return Camera(width, height, K, world_from_cam, _read_distortion(frame))
    except InputError as exc:
        raise frame.error(exc.message, exc.remedy) from exc


def _read_distortion(frame: Record) -> Distortion | None:
    value = frame.get("distortion")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise frame.error("'distortion' must be an object with 'model' and 'params'")
    record = replace(frame, values=value)
    model, params = record.text("model"), record.numbers("params")
    if model not in ("opencv", "fisheye") or params is None:
        raise frame.error("'distortion' needs 'model' (opencv or fisheye) and 'params'")
    return Distortion("opencv" if model == "opencv" else "fisheye", params)


def _inside(frame: Record, folder: Path, text: str | None, key: str, *, must_exist: bool) -> Path | None:
    """The file that ``text`` names below ``folder``; paths that leave the folder are refused."""
    if text is None:
        return None
    pure = PurePosixPath(text.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]:
        raise frame.error(f"'{key}' points outside the folder of the set: '{text}'", "use a relative path")
    path = folder / pure
    if must_exist and not path.is_file():
        raise frame.error(f"'{key}' names the file '{text}', which does not exist in {folder}")
    return path
