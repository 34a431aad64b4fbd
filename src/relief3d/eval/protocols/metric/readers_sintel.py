"""MPI Sintel, single pictures: rendered frames with exact depth and cameras (Butler et al. 2012).

Layout: ``training/{final,clean}/<sequence>/frame_0001.png``, ``training/depth/<sequence>/frame_0001.dpt``,
``training/camdata_left/<sequence>/frame_0001.cam``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.readers.files import usable_K
from relief3d.eval.protocols.metric.frames import FrameFile, load_rgb8, need_folder
from relief3d.io.names import natural_key
from relief3d.io.whole_file import read_whole

TAG = 202021.25
LAYOUT = """training/final/<sequence>/frame_0001.png
training/depth/<sequence>/frame_0001.dpt
training/camdata_left/<sequence>/frame_0001.cam"""


def read_sintel(root: Path, render: Literal["final", "clean"] = "final") -> list[FrameFile]:
    """All 1064 frames of the 23 training sequences, in order.

    The sky has a large finite depth. Camera files count pixel centres at integers, so 0.5 is added to cx, cy; K is
    None where there are no camera files.

    Args:
        root: the folder that holds ``training``, or ``training`` itself.
        render: pass of the pictures; depth is the same for both.

    Raises:
        InputError: a folder or file is missing or malformed.
    """
    base = need_folder(root, (f"training/{render}", render), "MPI Sintel").parent
    depth = need_folder(base, ("depth",), "the depth part of MPI Sintel (training/depth)")
    frames = []
    for sequence in sorted(p for p in (base / render).iterdir() if p.is_dir()):
        for picture in sorted(sequence.glob("*.png"), key=lambda p: natural_key(p.name)):
            truth = depth / sequence.name / f"{picture.stem}.dpt"
            if not truth.is_file():
                raise InputError(
                    "is missing", path=truth, remedy="unpack the depth archive into the same folder"
                )
            camera = base / "camdata_left" / sequence.name / f"{picture.stem}.cam"
            load_depth = partial(read_dpt, truth)
            frames.append(
                FrameFile(
                    name=f"{sequence.name}/{picture.stem}",
                    group=sequence.name,
                    load_image=partial(load_rgb8, picture),
                    load_depth=load_depth,
                    load_valid=lambda load=load_depth: load() > 0,  # type: ignore[misc]
                    K=read_cam(camera)[0] if camera.is_file() else None,
                )
            )
    if not frames:
        raise InputError("holds no pictures", path=base / render, remedy="give the folder with the sequences")
    return frames


def read_dpt(path: Path) -> Tensor:
    """(H, W) float32 metres of a Sintel depth file, 0 where not positive and finite.

    Raises:
        InputError: not such a file.
    """
    data = read_whole(path)
    if len(data) < 12 or np.frombuffer(data, "<f4", 1)[0] != np.float32(TAG):
        raise InputError("is not a Sintel depth file", path=path)
    width, height = (int(v) for v in np.frombuffer(data, "<i4", 2, 4))
    if min(width, height) < 1 or len(data) != 12 + 4 * width * height:
        raise InputError(f"is not a Sintel depth file of {width} x {height} pixels", path=path)
    depth = torch.from_numpy(np.frombuffer(data, "<f4", offset=12).reshape(height, width).astype(np.float32))
    return torch.where(torch.isfinite(depth) & (depth > 0), depth, torch.zeros_like(depth))


def read_cam(path: Path) -> tuple[Tensor, Tensor]:
    """K (3, 3) with centres at +0.5 and ``cam_from_world`` (4, 4) of a Sintel camera file, float64.

    Raises:
        InputError: not such a file.
    """
    data = read_whole(path)
    if len(data) != 4 + 8 * 21 or np.frombuffer(data, "<f4", 1)[0] != np.float32(TAG):
        raise InputError("is not a Sintel camera file", path=path)
    numbers = np.frombuffer(data, "<f8", offset=4).copy()
    K = torch.from_numpy(numbers[:9].reshape(3, 3).copy())
    K[:2, 2] += 0.5
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3] = torch.from_numpy(numbers[9:].reshape(3, 4).copy())
    return usable_K(K, path), pose
