"""Small readers that the folder layouts of several multi-view data sets share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Deviation, Sample
from relief3d.eval.protocols.metric.frames import load_rgb8
from relief3d.io.depth import read_depth
from relief3d.io.names import natural_key

PICTURES = (".png", ".jpg", ".jpeg", ".JPG", ".PNG")


def without_file(name: str, what: str) -> Deviation:
    """A deviation unless the data set's folder holds the file (or folder) that makes the published choice."""

    def deviation(data: Path, samples: Sequence[Sample]) -> str | None:
        return None if (data / name).exists() else f"{what} (no {name})"

    return deviation


def fewer_than(count: int, what: str) -> Deviation:
    """A deviation where the published rows were measured on more samples."""

    def deviation(data: Path, samples: Sequence[Sample]) -> str | None:
        return None if len(samples) >= count else f"{len(samples)} of {count} {what}"

    return deviation


def folders_with(root: Path, inside: str, what: str) -> list[Path]:
    """Folders directly below ``root`` that hold ``inside``, in natural order.

    Raises:
        InputError: there is none.
    """
    found = sorted((p for p in root.glob("*/") if (p / inside).exists()), key=lambda p: natural_key(p.name))
    if not found:
        raise InputError(
            f"does not look like {what}: no folder here holds {inside}",
            path=root,
            remedy="give the folder the data set was unpacked to",
        )
    return found


def one_of(folder: Path, stem: str, endings: Sequence[str]) -> Path | None:
    """The first existing file of that name with one of the endings."""
    return next((p for e in endings if (p := folder / f"{stem}{e}").is_file()), None)


def number_table(path: Path, columns: int) -> Tensor:
    """(R, columns) float64 of a text file of numbers.

    Raises:
        InputError: missing, not numbers, or another number of columns.
    """
    if not path.is_file():
        raise InputError("is missing", path=path, remedy="complete the data set")
    try:
        table = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (ValueError, OSError, UnicodeDecodeError) as exc:
        raise InputError(f"is not a table of numbers ({exc})", path=path) from exc
    if table.shape[1] != columns or table.shape[0] == 0:
        raise InputError(
            f"holds {table.shape[0]} rows of {table.shape[1]} numbers, not of {columns}", path=path
        )
    return torch.from_numpy(table)


def square_matrix(path: Path, size: int = 4) -> Tensor:
    """(size, size) float64 matrix of a text file; entries may be infinite.

    Raises:
        InputError: see :func:`number_table`, or another number of rows.
    """
    table = number_table(path, size)
    if table.shape[0] != size:
        raise InputError(f"holds {table.shape[0]} rows, not {size}", path=path)
    return table


def resized_pictures(paths: Sequence[Path], size: tuple[int, int]) -> Tensor:
    """(N, 3, H, W) uint8 pictures brought to ``size`` (H, W), bilinear with anti-aliasing; as stored where equal."""
    out = []
    for path in paths:
        picture = load_rgb8(path)
        if tuple(picture.shape[-2:]) != tuple(size):
            resized = torch.nn.functional.interpolate(
                picture[None].float(), size, mode="bilinear", align_corners=False, antialias=True
            )[0]
            picture = resized.round().clamp(0, 255).to(torch.uint8)
        out.append(picture)
    return torch.stack(out)


def depth_maps(
    paths: Sequence[Path],
    size: tuple[int, int] | None = None,
    scale: float | None = None,
    farthest: float | None = None,
    metric: bool = True,
) -> Tensor:
    """(N, H, W) float32 z-depth, 0 where unknown.

    Args:
        paths: one file per frame.
        size: (H, W) wanted; maps of another size with the same proportions are taken at the nearest pixel.
        scale: see :func:`relief3d.io.depth.read_depth`.
        farthest: larger values are unknown.
        metric: see :func:`relief3d.io.depth.read_depth`.

    Raises:
        InputError: a file is missing or has no valid pixel, or its proportions differ from the picture's.
    """
    out = []
    for path in paths:
        if not path.is_file():
            raise InputError("the depth map is missing", path=path, remedy="complete the data set")
        depth = read_depth(path, scale=scale, metric=metric).values
        if farthest is not None:
            depth = torch.where(depth > farthest, torch.zeros_like(depth), depth)
        if size is not None and tuple(depth.shape) != tuple(size):
            height, width = depth.shape
            if abs(height * size[1] - width * size[0]) > 0.01 * height * size[1]:
                raise InputError(
                    f"the depth map has {width} x {height} pixels, its picture {size[1]} x {size[0]}",
                    path=path,
                )
            depth = torch.nn.functional.interpolate(depth[None, None], size, mode="nearest-exact")[0, 0]
        out.append(depth)
    return torch.stack(out)
