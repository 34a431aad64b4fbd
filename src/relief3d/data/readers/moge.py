"""Pictures in the layout of MoGe's tools: picture, logarithmic 16-bit depth, intrinsics in units of the picture."""

from __future__ import annotations

import functools
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Depth, Scene
from relief3d.core.errors import InputError
from relief3d.data.readers.files import file_view, need_file, usable_K
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.geometry.conventions import pixel_intrinsics
from relief3d.io.decoders import damaged, open_picture
from relief3d.io.images import image_size
from relief3d.io.json_file import Record, read_json_object
from relief3d.io.limits import DEFAULT_MAX_PIXELS
from relief3d.io.whole_file import read_utf8

CARD = DatasetCard(
    name="moge",
    title="MoGe's layout",
    sources=(
        "https://github.com/microsoft/MoGe/blob/main/docs/train.md",
        "https://github.com/microsoft/MoGe/blob/main/docs/eval.md",
    ),
    licence="that of the data set stored in it",
    gives=("image", "K", "depth"),
    metric=False,
    layout=(
        ".index.txt (one folder per line; .SPLIT.txt for a split)\n"
        "FOLDER/{image.jpg, depth.png (16 bit, logarithmic, texts 'near' and 'far'), meta.json ('intrinsics' in units "
        "of width and height)}"
    ),
    conventions=(
        "intrinsics times width and height (a half is the middle: pixel centres need no shift); depth is z, code 0 "
        "unknown, 65535 infinite, else near^(1 - t) far^t with t = (code - 1) / 65533."
    ),
    splits=("train", "val", "test"),
    open_points=("The layout does not say whether depth is in metres: option metric.",),
)


def open_moge(
    root: str | Path, *, split: str | None = None, metric: bool = False, index: str | None = None
) -> SceneSet:
    """Instances, one scene of one view each; see :data:`CARD`.

    Args:
        root: folder with the list.
        split: takes ``.SPLIT.txt`` for the list.
        metric: depth is in metres.
        index: another list.

    Raises:
        InputError: the list is missing, empty or leaves the folder.
    """
    root, split = Path(root), CARD.check_split(split)
    file = root / (index or (f".{split}.txt" if split else ".index.txt"))
    items = {str(name): root / name for name in instance_names(file)}
    return SceneSet(CARD, items, functools.partial(_scene, metric=metric))


def instance_names(file: Path) -> list[PurePosixPath]:
    """Folders that a list names, relative to its own.

    Raises:
        InputError: missing, empty, or a name leaves the folder.
    """
    lines = [line.strip() for line in read_utf8(file).splitlines() if line.strip()]
    if not lines:
        raise InputError("lists no pictures", path=file)
    names = [PurePosixPath(line.replace("\\", "/")) for line in lines]
    for name in names:
        if name.is_absolute() or ".." in name.parts:
            raise InputError(f"names '{name}', which is not below this folder", path=file)
    return names


def instance_K(folder: Path, size: tuple[int, int]) -> Tensor:
    """(3, 3) pixels of an instance of (width, height) from its ``meta.json``.

    Raises:
        InputError: missing or not usable.
    """
    meta = Record(read_json_object(folder / "meta.json"), folder / "meta.json")
    K = meta.matrix("intrinsics", [(3, 3)])
    if K is None:
        raise meta.error("'intrinsics' is missing")
    # Units of the picture's size count corners, so the centre is at half the size as in our convention.
    return pixel_intrinsics(usable_K(K, folder / "meta.json"), *size)


def read_log_depth(path: Path) -> Tensor:
    """(H, W) float32 depth; 0 where unknown or infinite.

    Code 0 is unknown, 65535 infinite, otherwise ``near^(1 - t) far^t`` with ``t = (code - 1) / 65533``, times "unit"
    where the file names one.

    Raises:
        InputError: not a 16-bit PNG with the texts "near" and "far".
    """
    if not path.is_file():
        raise InputError("is missing", path=path, remedy="complete the data set")
    with open_picture(path, "png", DEFAULT_MAX_PIXELS) as (picture, _):
        try:
            picture.load()
            code = np.array(picture).astype(np.int64)
        except Exception as exc:  # decoders raise many types on damaged bytes
            raise damaged(path, exc) from exc
        texts = {key: picture.info.get(key) for key in ("near", "far", "unit")}
    try:
        near, far, unit = float(texts["near"]), float(texts["far"]), float(texts["unit"] or 1.0)
    except (TypeError, ValueError) as exc:
        raise InputError("lacks the texts 'near' and 'far' of a logarithmic depth map", path=path) from exc
    if code.ndim != 2 or not (0 < near <= far and unit > 0):
        raise InputError("is not a logarithmic depth map", path=path)
    t = (code - 1) / 65533.0
    depth = near ** (1 - t) * far**t * unit
    return torch.from_numpy(np.where((code > 0) & (code < 65535), depth, 0.0).astype(np.float32))


def load_log_depth(path: Path, size: tuple[int, int], metric: bool) -> Depth:
    """The same as a depth map of (width, height).

    Raises:
        InputError: as :func:`read_log_depth`, or of another size.
    """
    values = read_log_depth(path)
    if tuple(values.shape) != (size[1], size[0]):
        raise InputError(
            f"the depth map has {values.shape[1]} x {values.shape[0]} pixels, its picture {size[0]} x {size[1]}",
            path=path,
            remedy="complete the data set",
        )
    return Depth.from_values(values, metric=metric)


def _scene(name: str, folder: Path, metric: bool) -> Scene:
    picture = need_file(folder / "image.jpg", "picture")
    size = image_size(picture)
    view = file_view(picture.name, picture, instance_K(folder, size), None, size=size)
    if (depth := folder / "depth.png").is_file():
        view = view.replace(depth=functools.partial(load_log_depth, depth, size, metric))
    return Scene((view,), metric=metric, info={"dataset": CARD.name, "scene": name})
