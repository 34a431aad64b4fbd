"""SUN RGB-D: indoor pictures of four depth sensors (Song et al. 2015), the official 5050 test pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.readers.files import usable_K
from relief3d.eval.protocols.metric.frames import FrameFile, load_rgb8, need_folder
from relief3d.io.depth import read_depth
from relief3d.io.formats import check_regular_file
from relief3d.io.whole_file import read_utf8

LAYOUT = """\
SUNRGBD/<sensor>/.../<picture>/{image/*.jpg, depth/*.png, intrinsics.txt}
SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat, or test.txt with one folder below SUNRGBD per line"""

CAP = 8.0
"""Metres to which the data set's own reader caps depth."""

_SPLITS = (
    "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat",
    "SUNRGBDtoolbox/traintestsplit/allsplit.mat",
    "allsplit.mat",
)


def decode_depth(stored: np.ndarray) -> Tensor:
    """(H, W) float32 metres from 16-bit values: the bits are turned right by three, millimetres, capped at 8 m."""
    code = stored.astype(np.uint16)
    millimetres = (code >> np.uint16(3)) | (code << np.uint16(13))
    return torch.from_numpy(millimetres.astype(np.float32) / 1000.0).clamp_max(CAP)


def open_sunrgbd(root: Path) -> list[FrameFile]:
    """Test pictures; the group is the sensor and recording.

    Raises:
        InputError: the split file is missing, or a picture of it lacks a file.
    """
    folder = need_folder(root, ("SUNRGBD", ""), "SUN RGB-D")
    return [_frame(folder, name) for name in _test_folders(root)]


def _test_folders(root: Path) -> list[str]:
    listing = root / "test.txt"
    if listing.is_file():
        lines = [line.strip() for line in read_utf8(listing).splitlines()]
        names = [line for line in lines if line and not line.startswith("#")]
    else:
        split = next((root / s for s in _SPLITS if (root / s).is_file()), None)
        if split is None:
            raise InputError(
                "has no split file, so the test pictures are not known",
                path=root,
                remedy="unpack SUNRGBDtoolbox.zip there, or list the folders of the test pictures in test.txt",
            )
        names = _read_split(split)
    if not names:
        raise InputError("lists no test pictures", path=root)
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise InputError(f"the split names '{name}', which is not below SUNRGBD", path=root)
    return names


def _read_split(path: Path) -> list[str]:
    check_regular_file(path)
    from scipy.io import loadmat

    try:
        cells = loadmat(str(path), variable_names=["alltest"])["alltest"]
        texts = [str(np.asarray(cell).ravel()[0]) for cell in np.asarray(cells).ravel()]
    except Exception as exc:  # the MAT reader raises many types on damaged files
        raise InputError(f"is not the split file of SUN RGB-D ({type(exc).__name__})", path=path) from exc
    # The list holds the authors' own absolute paths; the part after the data set's folder is ours.
    return [text.partition("SUNRGBD/")[2].strip("/") or text.strip("/") for text in texts]


def _frame(folder: Path, name: str) -> FrameFile:
    place = folder / name
    picture, depth = _only(place / "image", ("*.jpg", "*.png")), _only(place / "depth", ("*.png",))
    load = _depth_loader(depth)
    return FrameFile(
        name=name,
        group="/".join(PurePosixPath(name).parts[:2]),
        load_image=lambda: load_rgb8(picture),
        load_depth=load,
        load_valid=lambda: load() > 0,
        K=_intrinsics(place / "intrinsics.txt"),
    )


def _only(folder: Path, patterns: tuple[str, ...]) -> Path:
    found = sorted(p for pattern in patterns for p in folder.glob(pattern))
    if len(found) != 1:
        raise InputError(
            f"holds {len(found)} pictures, expected one", path=folder, remedy="unpack SUNRGBD.zip again"
        )
    return found[0]


def _depth_loader(path: Path) -> Callable[[], Tensor]:
    # The stored code is read as it is: a scale of 1 keeps integers up to 65535 exact in float32.
    return lambda: decode_depth(read_depth(path, 1.0, metric=False).values.numpy())


def _intrinsics(path: Path) -> Tensor:
    try:
        values = [float(word) for word in read_utf8(path).split()]
    except ValueError as exc:
        raise InputError("does not hold numbers only", path=path) from exc
    if len(values) != 9:
        raise InputError(f"holds {len(values)} numbers, expected 9", path=path)
    K = torch.tensor(values, dtype=torch.float64).reshape(3, 3)
    K[:2, 2] += 0.5
    return usable_K(K, path)
