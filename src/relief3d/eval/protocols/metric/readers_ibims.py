"""iBims-1: 100 indoor pictures of 640 x 480 pixels with laser-scanned depth (Koch et al. 2018), as PNG or MAT files.

Raw layout: ``rgb/``, ``depth/`` (16-bit PNG, 65535 = 50 m), ``mask_invalid/`` and ``mask_transp/`` (above 0: may be
used), ``calib/`` (``fx,fy,cx,cy``). MAT layout: one ``<name>.mat`` per picture with a structure ``data`` of the same
content; its ``calib`` is the transposed matrix.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.readers.files import usable_K
from relief3d.eval.protocols.metric.frames import FrameFile, load_rgb8, need_folder
from relief3d.geometry.projection import intrinsics
from relief3d.io.depth import read_depth
from relief3d.io.images import read_image
from relief3d.io.names import natural_key
from relief3d.io.whole_file import read_utf8

PNG_METRES = 50.0 / 65535
LAYOUT = """ibims1_core_raw/{rgb,depth,mask_invalid,mask_transp}/<name>.png and calib/<name>.txt
or ibims1_core_mat/<name>.mat; imagelist.txt, if present, names the pictures"""


def read_ibims(root: Path) -> list[FrameFile]:
    """Pictures of iBims-1 in the order of ``imagelist.txt`` (beside or in the folder), else by name.

    Transparent and invalid pixels are not valid. The group is the kind of room. The files do not say where pixel
    centres lie; they are taken at integers, so 0.5 is added to cx, cy.

    Args:
        root: the folder that holds ``ibims1_core_raw`` or ``ibims1_core_mat``, or one of these.

    Raises:
        InputError: neither layout is there, or a file is missing or malformed.
    """
    folder = need_folder(root, ("ibims1_core_raw", "ibims1_core_mat", ""), "iBims-1")
    if (folder / "rgb").is_dir():
        names = _names(folder, [p.stem for p in (folder / "rgb").glob("*.png")])
        return [_raw_frame(folder, name) for name in names]
    names = _names(folder, [p.stem for p in folder.glob("*.mat")])
    if names:
        return [_mat_frame(folder / f"{name}.mat") for name in names]
    raise InputError(
        "has neither rgb/*.png nor *.mat files of iBims-1",
        path=folder,
        remedy="give the folder of ibims1_core_raw or ibims1_core_mat",
    )


def _names(folder: Path, found: list[str]) -> list[str]:
    for place in (folder, folder.parent):
        if (place / "imagelist.txt").is_file():
            return read_utf8(place / "imagelist.txt").split()
    return sorted(found, key=natural_key)


def _group(name: str) -> str:
    return name.rsplit("_", 1)[0]


def _raw_frame(folder: Path, name: str) -> FrameFile:
    load_depth = partial(_raw_depth, folder, name)
    return FrameFile(
        name=name,
        group=_group(name),
        load_image=partial(load_rgb8, folder / "rgb" / f"{name}.png"),
        load_depth=load_depth,
        load_valid=lambda: load_depth() > 0,
        K=_raw_intrinsics(folder / "calib" / f"{name}.txt"),
    )


def _raw_depth(folder: Path, name: str) -> Tensor:
    depth = read_depth(folder / "depth" / f"{name}.png", scale=PNG_METRES).values
    for mask in ("mask_invalid", "mask_transp"):
        path = folder / mask / f"{name}.png"
        usable = read_image(path, orient=False).rgb.amax(0) > 0
        if usable.shape != depth.shape:
            raise InputError("does not have the size of the depth map", path=path)
        depth = depth * usable
    return depth


def _raw_intrinsics(path: Path) -> Tensor:
    try:
        values = [float(v) for v in re.split(r"[,;\s]+", read_utf8(path).strip())]
    except ValueError as exc:
        raise InputError("holds text where a number belongs", path=path) from exc
    if len(values) == 9:
        return _centred(np.asarray(values).reshape(3, 3), path)
    if len(values) != 4:
        raise InputError(f"should hold fx,fy,cx,cy but has {len(values)} numbers", path=path)
    return usable_K(intrinsics(values[0], values[1], values[2] + 0.5, values[3] + 0.5), path)


def _centred(K: np.ndarray, path: Path) -> Tensor:
    """(3, 3) with centres at +0.5 from a matrix or its transpose."""
    if K.shape != (3, 3):
        raise InputError("holds no camera matrix", path=path)
    K = K.T if np.abs(K[2, :2]).max() > 0 else K
    return usable_K(intrinsics(K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5), path)


def _mat(path: Path) -> dict[str, np.ndarray]:
    """``rgb`` (H, W, 3) uint8; ``depth``, ``mask_invalid``, ``mask_transp`` (H, W) and ``calib`` (3, 3) float64."""
    from scipy.io import loadmat

    if not path.is_file():
        raise InputError("is missing", path=path, remedy="complete the data set")
    try:
        data = loadmat(str(path))["data"]
        out = {
            key: np.asarray(data[key][0, 0]).astype(np.float64)
            for key in ("depth", "mask_invalid", "mask_transp", "calib")
        }
        rgb = np.asarray(data["rgb"][0, 0])
    except Exception as exc:  # the MAT reader raises many types on damaged files
        raise InputError(
            f"is not a picture of iBims-1 ({type(exc).__name__}: {exc})", path=path, remedy="copy it again"
        ) from exc
    size = out["depth"].shape
    if (
        len(size) != 2
        or rgb.dtype != np.uint8
        or rgb.shape != (*size, 3)
        or out["mask_invalid"].shape != size
        or out["mask_transp"].shape != size
    ):
        raise InputError("holds a picture, depth map and masks that do not fit together", path=path)
    return out | {"rgb": rgb}


def _mat_frame(path: Path) -> FrameFile:
    load_depth = partial(_mat_depth, path)
    return FrameFile(
        name=path.stem,
        group=_group(path.stem),
        load_image=lambda: (
            torch.from_numpy(np.ascontiguousarray(_mat(path)["rgb"])).permute(2, 0, 1).contiguous()
        ),
        load_depth=load_depth,
        load_valid=lambda: load_depth() > 0,
        K=_centred(_mat(path)["calib"], path),
    )


def _mat_depth(path: Path) -> Tensor:
    data = _mat(path)
    depth = torch.from_numpy(data["depth"].astype(np.float32))
    usable = torch.from_numpy((data["mask_invalid"] > 0) & (data["mask_transp"] > 0))
    usable &= torch.isfinite(depth) & (depth > 0)
    return torch.where(usable, depth, torch.zeros_like(depth))
