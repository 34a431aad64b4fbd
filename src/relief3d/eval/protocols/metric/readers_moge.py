"""Pictures in the layout of MoGe's tools, in which its evaluation sets are published (specification 1.6).

A list of instance folders, each with picture, logarithmic 16-bit depth and intrinsics in units of the picture's size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.readers.moge import instance_K, instance_names, read_log_depth
from relief3d.eval.protocols.metric.frames import FrameFile, load_rgb8
from relief3d.io.images import image_size

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
    return [_frame(root, name) for name in instance_names(root / INDEX)]


def _frame(root: Path, name: PurePosixPath) -> FrameFile:
    folder = root / name
    picture = folder / "image.jpg"
    if not picture.is_file():
        raise InputError("is missing", path=picture, remedy="complete the data set")
    scaled = instance_K(folder, image_size(picture))

    def depth() -> Tensor:
        return read_log_depth(folder / "depth.png")

    group = str(name.parent) if len(name.parts) > 1 else str(name)
    return FrameFile(str(name), group, lambda: load_rgb8(picture), depth, lambda: depth() > 0, scaled)
