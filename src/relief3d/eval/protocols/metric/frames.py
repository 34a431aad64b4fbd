"""One picture of a data set with its true depth: what the readers of single-image benchmarks return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.io.images import read_image


@dataclass(frozen=True)
class FrameFile:
    """One picture with z-depth; nothing is loaded before it is asked for.

    Attributes:
        name: unique in the data set, usable as a relative path.
        group: scene or sequence, the unit of the bootstrap.
        load_image: (3, H, W) uint8.
        load_depth: (H, W) float32 z-depth in metres, 0 where unknown.
        load_valid: (H, W) bool, where the data set's own rules let the depth count (a subset of depth > 0).
        K: (3, 3) float64 pixels of this picture, centres at +0.5; None where the data set gives none.
    """

    name: str
    group: str
    load_image: Callable[[], Tensor]
    load_depth: Callable[[], Tensor]
    load_valid: Callable[[], Tensor]
    K: Tensor | None = None

    def need_K(self) -> Tensor:
        """(3, 3) intrinsics.

        Raises:
            InputError: the data set gives none for this picture.
        """
        if self.K is None:
            raise InputError(
                f"the picture '{self.name}' has no intrinsics",
                remedy="add the calibration files of the data set",
            )
        return self.K


def load_rgb8(path: Path, *, orient: bool = False) -> Tensor:
    """(3, H, W) uint8 pixels of a picture.

    Args:
        path: any picture :func:`relief3d.io.images.read_image` reads.
        orient: apply the EXIF orientation. Data sets describe the pixels as stored, so False by default.

    Raises:
        InputError: missing or unreadable.
    """
    if not path.is_file():
        raise InputError("is missing", path=path, remedy="complete the data set")
    return (read_image(path, orient=orient).rgb * 255).round().clamp(0, 255).to(torch.uint8)


def need_folder(root: Path, choices: Sequence[str], what: str) -> Path:
    """The first of ``root / choice`` that is a folder.

    Args:
        root: of the data set.
        choices: relative paths in order of preference; "" is the root itself.
        what: the data set, for the message.

    Raises:
        InputError: none of them exists.
    """
    for choice in choices:
        if (root / choice).is_dir():
            return root / choice
    raise InputError(
        f"does not look like {what}: it has none of {', '.join(c or '.' for c in choices)}",
        path=root,
        remedy="give the folder the data set was unpacked to",
    )


def check_same_size(frame: str, image: Tensor, depth: Tensor) -> None:
    """Refuse a picture (3, H, W) and a depth map (H, W) of different sizes.

    Raises:
        InputError: names the frame and both sizes.
    """
    if tuple(image.shape[-2:]) != tuple(depth.shape[-2:]):
        sizes = [f"{t.shape[-1]} x {t.shape[-2]}" for t in (depth, image)]
        raise InputError(
            f"the depth map of '{frame}' has {sizes[0]} pixels, its picture {sizes[1]}",
            remedy="use the pictures and depth maps of the same release",
        )
