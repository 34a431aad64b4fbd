"""Folders, pictures, depth maps and small text files, as the readers of data sets need them.

Loaders are plain functions with plain arguments, so that views can cross process boundaries.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Distortion, LazyDepth, LazyTensor, View
from relief3d.core.errors import InputError
from relief3d.geometry.projection import pixel_grid
from relief3d.geometry.sampling import sample_image
from relief3d.io.depth import read_depth, read_mask
from relief3d.io.images import image_size, read_image
from relief3d.io.names import natural_key
from relief3d.io.whole_file import read_utf8

PICTURES = (".png", ".jpg", ".jpeg", ".JPG", ".PNG", ".webp")
_LARGEST = 1e8
"""No camera has a focal length of so many pixels; single precision still inverts smaller ones."""
INCOMPLETE = "complete the download of this scene"


def folders_in(root: Path) -> list[Path]:
    """Folders directly below one, in natural order, hidden ones left out.

    Raises:
        InputError: it is no folder.
    """
    if not root.is_dir():
        raise InputError("is not a folder", path=root, remedy="give the folder the data set was unpacked to")
    found = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return sorted(found, key=lambda p: natural_key(p.name))


def folders_holding(root: Path, inside: Sequence[str], title: str, depth: int = 1) -> dict[str, Path]:
    """Folders, at most ``depth`` levels below ``root``, that hold one of the given paths; by relative name.

    Folders below a found one are not searched.

    Raises:
        InputError: there is none.
    """
    found: dict[str, Path] = {}

    def search(folder: Path, left: int) -> None:
        for child in folders_in(folder):
            if any((child / name).exists() for name in inside):
                found[child.relative_to(root).as_posix()] = child
            elif left > 1:
                search(child, left - 1)

    search(root, depth)
    if not found:
        raise InputError(
            f"does not look like {title}: no folder here holds {' or '.join(inside)}",
            path=root,
            remedy="give the folder the data set was unpacked to",
        )
    return found


def files_in(folder: Path, endings: Sequence[str], what: str) -> list[Path]:
    """Files of a folder with one of the endings, in natural order.

    Raises:
        InputError: the folder is missing or holds none.
    """
    if not folder.is_dir():
        raise InputError(f"the folder with the {what} is missing", path=folder, remedy=INCOMPLETE)
    wanted = tuple(e.lower() for e in endings)
    found = [p for p in folder.iterdir() if p.name.lower().endswith(wanted) and not p.name.startswith(".")]
    if not found:
        raise InputError(f"holds no {what} ({', '.join(endings)})", path=folder, remedy=INCOMPLETE)
    return sorted(found, key=lambda p: natural_key(p.name))


def one_of(folder: Path, stem: str, endings: Sequence[str]) -> Path | None:
    """The first existing file of that name with one of the endings."""
    return next((p for e in endings if (p := folder / f"{stem}{e}").is_file()), None)


def need_file(path: Path, what: str) -> Path:
    """The same path.

    Raises:
        InputError: there is no such file.
    """
    if not path.is_file():
        raise InputError(f"the {what} is missing", path=path, remedy=INCOMPLETE)
    return path


def listed_names(path: Path) -> list[str]:
    """Lines of a text file that lists scenes, empty ones and comments left out."""
    lines = (line.split("#", 1)[0].strip() for line in read_utf8(path).splitlines())
    return [line for line in lines if line]


def text_numbers(path: Path, count: int | None = None) -> list[float]:
    """The numbers of a text file, separated by white space or commas; they may be infinite.

    Raises:
        InputError: missing, no numbers, or not ``count`` of them.
    """
    need_file(path, "text file")
    try:
        numbers = [float(word) for word in read_utf8(path).replace(",", " ").split()]
    except ValueError as exc:
        raise InputError("holds text where a number belongs", path=path, remedy="copy it again") from exc
    if count is not None and len(numbers) != count:
        raise InputError(f"holds {len(numbers)} numbers, expected {count}", path=path, remedy="copy it again")
    return numbers


def number_rows(path: Path, columns: int, *, separator: str | None = None, skip: int = 0) -> Tensor:
    """(R, columns) float64 of a text table; further columns are ignored when ``separator`` is given.

    Raises:
        InputError: missing, empty, or a row is not of that form.
    """
    need_file(path, "table")
    rows = []
    for number, line in enumerate(read_utf8(path).splitlines()[skip:], start=skip + 1):
        words = line.split(separator)
        if not line.strip() or line.startswith("#"):
            continue
        if len(words) < columns or (separator is None and len(words) != columns):
            raise InputError(f"line {number}: {len(words)} values where {columns} belong", path=path)
        try:
            rows.append([float(word) for word in words[:columns]])
        except ValueError as exc:
            raise InputError(f"line {number}: holds text where a number belongs", path=path) from exc
    if not rows:
        raise InputError("holds no rows", path=path, remedy="copy it again")
    return torch.tensor(rows, dtype=torch.float64)


def usable_K(K: Tensor, path: Path) -> Tensor:
    """The same intrinsics (3, 3).

    Raises:
        InputError: a number is not finite, absurdly large or a focal length not positive; names the file they come
            from.
    """
    sane = bool((K.abs() < _LARGEST).all())  # False for what is not finite
    if not sane or not (float(K[0, 0]) > 0 and float(K[1, 1]) > 0):
        raise InputError(
            f"holds no usable intrinsics (focal lengths {float(K[0, 0]):g}, {float(K[1, 1]):g})",
            path=path,
            remedy="copy the calibration again",
        )
    return K


def load_picture(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """(3, H, W) float32 RGB of the pixels as stored (no EXIF turn: data sets describe stored pixels).

    Raises:
        InputError: missing, damaged, or not of ``size`` = (width, height).
    """
    rgb = read_image(need_file(path, "picture"), orient=False).rgb
    if size is not None and (rgb.shape[2], rgb.shape[1]) != tuple(size):
        raise InputError(
            f"the picture has {rgb.shape[2]} x {rgb.shape[1]} pixels, its camera {size[0]} x {size[1]}",
            path=path,
            remedy="use pictures and cameras of the same release",
        )
    return rgb


def load_depth(
    path: Path,
    size: tuple[int, int],
    *,
    scale: float | None = 1.0,
    metric: bool = True,
    farthest: float | None = None,
    key: str | None = None,
) -> Depth:
    """A z-depth map of the camera's size; a map may be wholly unknown.

    Args:
        path: any format of :func:`relief3d.io.depth.read_depth`.
        size: (width, height) it must have.
        scale: depth = stored value x scale.
        metric: the result is in metres.
        farthest: values at or beyond it are unknown (sky).
        key: array or channel.

    Raises:
        InputError: missing, damaged or of another size.
    """
    need_file(path, "depth map")
    try:
        depth = read_depth(path, scale=scale, metric=metric, key=key, size=size)
    except InputError as exc:
        # A blind frame is no damage: its mask says that nothing is known.
        if "no valid pixels" not in exc.message:
            raise
        return unknown_depth(size, metric)
    if farthest is None:
        return depth
    near = depth.valid & (depth.values < farthest)
    return Depth(torch.where(near, depth.values, torch.zeros(())), near, metric, depth.confidence)


def unknown_depth(size: tuple[int, int], metric: bool = True) -> Depth:
    """A depth map of (width, height) in which nothing is known."""
    return Depth.from_values(torch.zeros(size[1], size[0]), metric=metric)


def load_file_mask(path: Path, size: tuple[int, int]) -> Tensor:
    """(H, W) bool, True where the file is bright; InputError as :func:`relief3d.io.depth.read_mask`."""
    return read_mask(need_file(path, "mask"), size=size)


def same_centre_depth(depth: Depth, K: Tensor, target_K: Tensor, size: tuple[int, int]) -> Depth:
    """A depth map seen by another camera at the same place and attitude: other K and size, same z.

    Every target pixel takes the value of the source pixel that its ray meets, so depths never mix.

    Args:
        depth: the map.
        K: (3, 3) of the map.
        target_K: (3, 3) of the result.
        size: (width, height) of the result.
    """
    grid = pixel_grid(size[1], size[0], dtype=torch.float64)
    ones = torch.ones_like(grid[..., :1])
    xy = torch.cat([grid, ones], -1) @ (K @ torch.linalg.inv(target_K)).mT
    xy = xy[..., :2] / xy[..., 2:]
    both = torch.stack([depth.values.double(), depth.valid.double()])
    values, known = sample_image(both, xy, mode="nearest")
    valid = known > 0.5
    return Depth(torch.where(valid, values, torch.zeros_like(values)).float(), valid, depth.metric)


def file_view(
    name: str,
    picture: Path,
    K: Tensor | None,
    world_from_cam: Tensor | None,
    *,
    size: tuple[int, int] | None = None,
    distortion: Distortion | None = None,
    depth: LazyDepth = None,
    mask: LazyTensor = None,
    time: float | None = None,
) -> View:
    """A view whose picture is a file, loaded when asked for.

    Args:
        name: of the view.
        picture: the file.
        K: (3, 3), or None.
        world_from_cam: (4, 4), or None.
        size: (width, height); read from the picture's header when None.
        distortion: the lens.
        depth: see :class:`~relief3d.core.contract.View`.
        mask: see :class:`~relief3d.core.contract.View`.
        time: seconds.

    Raises:
        InputError: the picture is missing or K and pose cannot be.
    """
    if size is None:
        size = image_size(need_file(picture, "picture"))
    try:
        camera = Camera(size[0], size[1], K, world_from_cam, distortion)
    except InputError as exc:
        raise InputError(
            exc.message, path=picture, remedy=exc.remedy or "copy its camera file again"
        ) from exc
    load = functools.partial(load_picture, picture, size)
    return View(name, camera, image=load, depth=depth, mask=mask, time=time, path=picture)
