"""DIODE, the 771 validation pictures, indoors and outdoors, with laser depth (Vasiljevic et al. 2019).

All pictures share one virtual camera, whose intrinsics the authors give in their development kit. fx and fy differ by
4.5 %, so the point-map rules bring the pictures to square pixels by their warp.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.protocols.metric.frames import FrameFile, load_rgb8, need_folder
from relief3d.geometry.projection import intrinsics
from relief3d.io.depth import read_depth

LAYOUT = """\
val/{indoors,outdoor}/scene_*/scan_*/<name>.png
beside each: <name>_depth.npy (metres) and <name>_depth_mask.npy (1 = valid)"""

FOCAL = (886.81, 927.06)
CENTRE = (512.0, 384.0)
SIZE = (768, 1024)
Part = Literal["all", "indoors", "outdoor"]


def open_diode(root: Path, part: Part = "all") -> list[FrameFile]:
    """Validation pictures; the group is the scene.

    Args:
        root: folder that holds ``val``, or ``val`` itself.
        part: which pictures.

    Raises:
        InputError: no pictures, or one lacks its depth or mask.
    """
    folder = need_folder(root, ("val", ""), "DIODE")
    parts = ("indoors", "outdoor") if part == "all" else (part,)
    pictures = [p for name in parts for p in sorted((folder / name).glob("scene_*/scan_*/*.png"))]
    if not pictures:
        raise InputError(
            f"holds no {'/'.join(parts)} pictures (scene_*/scan_*/*.png)",
            path=folder,
            remedy="unpack val.tar.gz of DIODE there",
        )
    return [_frame(folder, picture) for picture in pictures]


def _frame(folder: Path, picture: Path) -> FrameFile:
    depth, mask = (picture.with_name(f"{picture.stem}_{kind}.npy") for kind in ("depth", "depth_mask"))
    for path in (depth, mask):
        if not path.is_file():
            raise InputError("is missing", path=path, remedy="unpack val.tar.gz of DIODE again")
    place = picture.relative_to(folder)
    load = _loader(depth)

    def valid() -> Tensor:
        values = load()
        return (values > 0) & _mask(mask, values)

    # The authors' camera has its centre at exactly half the size of 1024 x 768, so it counts corners: no 0.5 is added.
    K = intrinsics(*FOCAL, *CENTRE)
    return FrameFile(str(place.with_suffix("")), place.parts[1], lambda: load_rgb8(picture), load, valid, K)


def _loader(path: Path) -> Callable[[], Tensor]:
    return lambda: read_depth(path, 1.0).values


def _mask(path: Path, like: Tensor) -> Tensor:
    values = read_depth(path, 1.0, metric=False).values
    if values.shape != like.shape:
        raise InputError(f"has shape {tuple(values.shape)}, the depth {tuple(like.shape)}", path=path)
    return values > 0.5
