"""Pictures in the layout of MoGe's tools, in which its evaluation sets are published (specification 1.6).

A list of instance folders, each with picture, logarithmic 16-bit depth and intrinsics in units of the picture's size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.protocols.metric.frames import FrameFile, load_rgb8, usable_K
from relief3d.io.decoders import damaged, open_picture
from relief3d.io.images import image_size
from relief3d.io.json_file import Record, read_json_object
from relief3d.io.limits import DEFAULT_MAX_PIXELS
from relief3d.io.whole_file import read_utf8

INDEX = ".index.txt"
LAYOUT = """\
or, as published for MoGe's evaluation: .index.txt (one folder per line)
and <folder>/image.jpg, depth.png (logarithmic, 16 bit), meta.json ("intrinsics" in units of width and height)"""


def prefer_moge(read: Callable[[Path], list[FrameFile]]) -> Callable[[Path], list[FrameFile]]:
    """A reader that takes MoGe's layout where its list is present, else the data set's own."""

    def open_frames(root: Path) -> list[FrameFile]:
        return open_moge(root) if (root / INDEX).is_file() else read(root)

    return open_frames


def open_moge(root: Path) -> list[FrameFile]:
    """Pictures in the order of ``.index.txt``; the group is the folder above an instance.

    Raises:
        InputError: the list is missing or empty, or an instance lacks a file or intrinsics.
    """
    names = [line.strip() for line in read_utf8(root / INDEX).splitlines() if line.strip()]
    if not names:
        raise InputError("lists no pictures", path=root / INDEX)
    return [_frame(root, PurePosixPath(name.replace("\\", "/"))) for name in names]


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


def _frame(root: Path, name: PurePosixPath) -> FrameFile:
    if name.is_absolute() or ".." in name.parts:
        raise InputError(f"names '{name}', which is not below this folder", path=root / INDEX)
    folder = root / name
    picture = folder / "image.jpg"
    if not picture.is_file():
        raise InputError("is missing", path=picture, remedy="complete the data set")
    meta = Record(read_json_object(folder / "meta.json"), folder / "meta.json")
    K = meta.matrix("intrinsics", [(3, 3)])
    if K is None:
        raise meta.error("'intrinsics' is missing")
    usable_K(K, folder / "meta.json")
    width, height = image_size(picture)
    # Units of the picture's size count corners, so the centre is at half the size as in our convention.
    scaled = K * torch.tensor([width, height, 1.0], dtype=torch.float64)[:, None]

    def depth() -> Tensor:
        return read_log_depth(folder / "depth.png")

    group = str(name.parent) if len(name.parts) > 1 else str(name)
    return FrameFile(str(name), group, lambda: load_rgb8(picture), depth, lambda: depth() > 0, scaled)
