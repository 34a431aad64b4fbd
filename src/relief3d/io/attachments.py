"""Masks, depth maps and cameras that the user gives beside a folder of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import torch

from relief3d.core.contract import Camera, Scene, SparsePoints, View
from relief3d.core.errors import InputError
from relief3d.geometry.projection import resize_intrinsics
from relief3d.io.names import visible_files
from relief3d.io.view_files import ASPECT_TOLERANCE, load_view_depth, load_view_mask

_DEPTH_SUFFIXES = frozenset({".png", ".npz", ".npy", ".exr", ".pfm", ".tif", ".tiff"})
_TAGS = ("_mask", ".mask", "_depth", ".depth", "_seg")


def match_names(names: list[str], files: list[str]) -> dict[str, str]:
    """Pair picture names with files that belong to them; both are paths with ``/`` below their folders.

    In this order: the same path without its suffix, the path with a second suffix (``a.jpg.png``, as
    COLMAP expects masks), either with an ending such as ``_mask``; last, the same by file name alone,
    when that is unique. Names without a file are left out.
    """
    exact: dict[str, list[str]] = {}
    loose: dict[str, list[str]] = {}
    for file in files:
        for key in _keys(file):
            exact.setdefault(key, []).append(file)
            loose.setdefault(PurePosixPath(key).name, []).append(file)
    pairs: dict[str, str] = {}
    for name in names:
        wanted = (name, _stem(name))
        found: list[str] = next((exact[key] for key in wanted if key in exact), [])
        if not found:
            short = (PurePosixPath(key).name for key in wanted)
            found = next((loose[key] for key in short if key in loose), [])
            found = found if len(found) == 1 else []
        if found:
            pairs[name] = found[0]
    return pairs


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).suffix else name


def _keys(file: str) -> list[str]:
    stem = _stem(file)
    keys = [stem]
    keys += [stem.removesuffix(tag) for tag in _TAGS if stem.endswith(tag)]
    return keys


def _files_below(folder: Path, what: str, wanted: Callable[[Path], bool]) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"no such folder of {what}", path=folder, remedy="check the spelling")
    found = {path.relative_to(folder).as_posix(): path for path in visible_files(folder) if wanted(path)}
    if not found:
        raise InputError(f"the folder holds no {what}", path=folder)
    return found


def _pair(views: tuple[View, ...], folder: Path, files: Mapping[str, Path], what: str) -> dict[str, Path]:
    pairs = match_names([view.name for view in views], list(files))
    if not pairs:
        raise InputError(
            f"none of the {len(files)} {what} here has the name of a picture",
            path=folder,
            remedy=f"name them after the pictures, for example {Path(views[0].name).stem}.png",
        )
    return {name: files[file] for name, file in pairs.items()}


def attach_masks(
    views: tuple[View, ...], folder: str | Path, orientations: Mapping[str, int], *, max_pixels: int
) -> tuple[tuple[View, ...], list[str]]:
    """Give views the masks of a folder by name; bright pixels may be used.

    Args:
        views: pictures.
        folder: mask files.
        orientations: EXIF orientation of the pictures by view name.
        max_pixels: larger masks are refused.

    Returns:
        Views, and notes for the user.

    Raises:
        InputError: no folder, no mask, or no mask with the name of a picture.
    """
    folder = Path(folder)
    files = _files_below(folder, "masks", lambda path: path.suffix.lower() not in (".json", ".txt", ".md"))
    pairs = _pair(views, folder, files, "masks")
    out = []
    for view in views:
        file = pairs.get(view.name)
        if file is not None:
            size = (view.camera.width, view.camera.height)
            turn = orientations.get(view.name, 1)
            view = view.replace(mask=partial(load_view_mask, file, size, turn, max_pixels))
        out.append(view)
    missing = len(views) - len(pairs)
    return tuple(out), [f"{missing} of {len(views)} pictures have no mask"] if missing else []


def attach_depth(
    views: tuple[View, ...],
    folder: str | Path,
    orientations: Mapping[str, int],
    *,
    scale: float | None,
    metric: bool,
    max_pixels: int,
) -> tuple[tuple[View, ...], list[str]]:
    """Give views the depth maps of a folder by name.

    Args:
        views: pictures.
        folder: depth files, see :func:`relief3d.io.depth.read_depth`.
        orientations: EXIF orientation of the pictures by view name.
        scale: depth = stored value x scale; None as in :func:`relief3d.io.depth.read_depth`.
        metric: the result is in metres.
        max_pixels: larger maps are refused.

    Returns:
        Views, and notes for the user.

    Raises:
        InputError: no folder, no depth map, or none with the name of a picture.
    """
    folder = Path(folder)
    files = _files_below(folder, "depth maps", lambda path: path.suffix.lower() in _DEPTH_SUFFIXES)
    pairs = _pair(views, folder, files, "depth maps")
    out = []
    for view in views:
        file = pairs.get(view.name)
        if file is not None:
            size = (view.camera.width, view.camera.height)
            turn = orientations.get(view.name, 1)
            view = view.replace(depth=partial(load_view_depth, file, size, turn, scale, metric, max_pixels))
        out.append(view)
    missing = len(views) - len(pairs)
    return tuple(out), [f"{missing} of {len(views)} pictures have no depth map"] if missing else []


def attach_cameras(scene: Scene, known: Scene, source: str | Path) -> tuple[Scene, list[str]]:
    """Give the views of ``scene`` the cameras of ``known`` by name, and its sparse points.

    A camera of another resolution but the same aspect ratio is scaled to the picture.

    Args:
        scene: pictures.
        known: cameras, for example of a COLMAP model.
        source: where the cameras come from, for messages.

    Returns:
        Scene, and notes for the user.

    Raises:
        InputError: no camera has the name of a picture, or a size does not fit.
    """
    pairs = match_names([v.name for v in scene.views], [v.name for v in known.views])
    if not pairs:
        raise InputError(
            "none of these cameras has the name of a picture",
            path=source,
            remedy=f"cameras are called like '{known.views[0].name}', pictures like '{scene.views[0].name}'",
        )
    index_of = {view.name: i for i, view in enumerate(known.views)}
    new_index = torch.full((len(known.views),), -1, dtype=torch.int64)
    factors = torch.ones((len(known.views), 2), dtype=torch.float64)
    views = []
    for i, view in enumerate(scene.views):
        if view.name in pairs:
            j = index_of[pairs[view.name]]
            camera = known.views[j].camera
            size = (view.camera.width, view.camera.height)
            factors[j] = torch.tensor([size[0] / camera.width, size[1] / camera.height], dtype=torch.float64)
            view = view.replace(camera=_fitted(camera, size, view.name, source))
            new_index[j] = i
        views.append(view)
    sparse = None if known.sparse is None else _renumbered(known.sparse, new_index, factors)
    missing = len(views) - len(pairs)
    notes = [f"{missing} of {len(views)} pictures have no camera in {Path(source).name}"] if missing else []
    return replace(scene, views=tuple(views), metric=known.metric, sparse=sparse), notes


def _fitted(camera: Camera, size: tuple[int, int], name: str, source: str | Path) -> Camera:
    if (camera.width, camera.height) == size:
        return camera
    ratio = camera.width * size[1] / (camera.height * size[0])
    if abs(ratio - 1) > ASPECT_TOLERANCE:
        raise InputError(
            f"the camera of '{name}' is for {camera.width} x {camera.height} pixels, "
            f"the upright picture has {size[0]} x {size[1]}",
            path=source,
            remedy="give cameras for upright, uncropped pictures",
        )
    K = None if camera.K is None else resize_intrinsics(camera.K, (camera.width, camera.height), size)
    return camera.replace(width=size[0], height=size[1], K=K)


def _renumbered(sparse: SparsePoints, new_index: torch.Tensor, factors: torch.Tensor) -> SparsePoints:
    view = new_index[sparse.obs_view]
    keep = view >= 0
    return replace(
        sparse,
        obs_point=sparse.obs_point[keep],
        obs_view=view[keep],
        obs_xy=sparse.obs_xy[keep] * factors[sparse.obs_view[keep]].to(sparse.obs_xy),
    )
