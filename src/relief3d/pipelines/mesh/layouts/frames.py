"""What the readers share: tables of times and files, and views with sensor depth of another size."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Depth, View
from relief3d.core.errors import InputError
from relief3d.data.readers.files import load_depth, need_file, same_centre_depth
from relief3d.geometry.projection import resize_intrinsics
from relief3d.io.depth import read_stored_depth
from relief3d.io.images import image_size
from relief3d.io.whole_file import read_utf8


def timed_files(path: Path) -> list[tuple[float, str]]:
    """Lines of ``time name`` in order of time; ``#`` comments.

    Raises:
        InputError: missing, empty or malformed, naming the line.
    """
    need_file(path, "list of frames")
    found = []
    for number, line in enumerate(read_utf8(path).splitlines(), start=1):
        words = line.split("#", 1)[0].split(maxsplit=1)
        if not words:
            continue
        try:
            found.append((float(words[0]), words[1].strip()))
        except (ValueError, IndexError) as exc:
            raise InputError(f"line {number}: is not 'time name'", path=path) from exc
    if not found:
        raise InputError("lists no frames", path=path, remedy="copy the recording again")
    return sorted(found)


def nearest_time(times: Tensor, wanted: float, most: float) -> int | None:
    """Index of the nearest of (N,) times, None when it is more than ``most`` seconds away."""
    if not len(times):
        return None
    index = int((times - wanted).abs().argmin())
    return index if abs(float(times[index]) - wanted) <= most else None


def with_depth_file(
    view: View,
    path: Path | None,
    *,
    scale: float,
    depth_K: Tensor | None = None,
    nothing: float | None = None,
) -> View:
    """The view with a depth map from a file, of its size or another; loaded when asked for.

    Args:
        view: with K where ``depth_K`` is given.
        path: of the map, or None.
        scale: metres per stored unit.
        depth_K: (3, 3) of the depth camera at the same place; None: the map covers the picture's field of view.
        nothing: stored values from which on nothing is known.
    """
    if path is None or not path.is_file():
        return view
    camera = view.camera
    size = (camera.width, camera.height)
    load = functools.partial(_load, path, size, camera.K, depth_K, scale, nothing)
    return view.replace(depth=load)


def _load(
    path: Path,
    size: tuple[int, int],
    K: Tensor | None,
    depth_K: Tensor | None,
    scale: float,
    nothing: float | None,
) -> Depth:
    stored = _stored_size(path)
    farthest = None if nothing is None else nothing * scale
    depth = load_depth(path, stored, scale=scale, farthest=farthest)
    if depth_K is None:
        if stored == size:
            return depth
        # The same field of view, so any K serves.
        own = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]], dtype=torch.float64)
        return same_centre_depth(depth, own, resize_intrinsics(own, stored, size), size)
    assert K is not None
    return same_centre_depth(depth, depth_K, K, size)


def _stored_size(path: Path) -> tuple[int, int]:
    """(width, height)."""
    if path.suffix.lower() in (".png", ".tif", ".tiff"):
        return image_size(path)
    height, width = read_stored_depth(path).shape
    return width, height
