"""Spring: rendered high-resolution stereo video with detailed disparity (Mehl et al. 2023), left pictures as frames.

Layout: ``train/<sequence>/frame_left/frame_left_0001.png``, ``disp1_left/disp1_left_0001.dsp5`` (HDF5, dataset
"disparity", twice the picture's size, in pixels of the picture), ``cam_data/intrinsics.txt`` (fx fy cx cy per frame).
"""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.optional import available
from relief3d.data.readers.files import usable_K
from relief3d.eval.protocols.metric.frames import FrameFile, load_rgb8
from relief3d.geometry.projection import intrinsics
from relief3d.io.depth import read_npz
from relief3d.io.names import natural_key
from relief3d.io.whole_file import read_utf8

BASELINE = 0.065
"""Metres between the two cameras, the same in all sequences."""

FARTHEST = 1e6
"""Depth in metres given to pixels of disparity 0 (the sky): farther than anything, yet a number."""

LAYOUT = """{train,test}/<sequence>/frame_left/frame_left_0001.png
{train,test}/<sequence>/disp1_left/disp1_left_0001.dsp5 (HDF5, needs the package h5py), or .npy or .npz exports
{train,test}/<sequence>/cam_data/intrinsics.txt"""


def read_spring(root: Path) -> list[FrameFile]:
    """Left frames of all sequences that come with disparity (the public test set has none).

    Depth is fx * baseline / disparity on every second row and column of the disparity map, that is at the size of
    the picture. Pixels of disparity 0 are the sky and count as infinitely far, pixels without a number as unknown.

    Args:
        root: the folder that holds ``train`` (and ``test``).

    Raises:
        InputError: no sequence with disparity, or a file is missing or malformed.
    """
    folders = [p for split in ("train", "test") for p in sorted((root / split).glob("*/disp1_left"))]
    frames = []
    for folder in folders:
        sequence = folder.parent
        table = _intrinsics(sequence / "cam_data" / "intrinsics.txt")
        pictures = sorted((sequence / "frame_left").glob("*.png"), key=lambda p: natural_key(p.name))
        if len(pictures) > len(table):
            raise InputError(
                f"has {len(table)} lines for {len(pictures)} pictures",
                path=sequence / "cam_data" / "intrinsics.txt",
                remedy="unpack the camera data of the sequence again",
            )
        for picture, K in zip(pictures, table):
            load_depth = partial(
                _depth, folder, picture.stem.replace("frame_left", "disp1_left"), float(K[0, 0])
            )
            frames.append(
                FrameFile(
                    name=f"{sequence.parent.name}/{sequence.name}/{picture.stem}",
                    group=sequence.name,
                    load_image=partial(load_rgb8, picture),
                    load_depth=load_depth,
                    load_valid=lambda load=load_depth: load() > 0,  # type: ignore[misc]
                    K=K,
                )
            )
    if not frames:
        raise InputError(
            "has no train/<sequence>/disp1_left with pictures in frame_left",
            path=root,
            remedy="unpack train_frame_left, train_disp1_left and train_cam_data of Spring into this folder",
        )
    return frames


def _intrinsics(path: Path) -> list[Tensor]:
    try:
        rows = [[float(v) for v in line.split()] for line in read_utf8(path).splitlines() if line.strip()]
        return [usable_K(intrinsics(row[0], row[1], row[2], row[3]), path) for row in rows]
    except (IndexError, ValueError) as exc:
        raise InputError("should hold fx fy cx cy in every line", path=path) from exc


def _disparity(folder: Path, stem: str) -> np.ndarray:
    export = folder / f"{stem}.npy"
    if export.is_file():
        try:
            return np.load(export, allow_pickle=False)
        except (ValueError, EOFError, OSError) as exc:
            raise InputError(f"is not a readable array ({exc})", path=export) from exc
    export = folder / f"{stem}.npz"
    if export.is_file():
        arrays = read_npz(export)
        return arrays.get("disparity", next(iter(arrays.values())))
    path = folder / f"{stem}.dsp5"
    if not path.is_file():
        raise InputError("is missing", path=path, remedy="unpack the disparity archive into the same folder")
    if not available("h5py"):
        raise InputError(
            "is an HDF5 file, and the package h5py is not installed",
            path=path,
            remedy=f"pip install h5py, or export the disparity as {stem}.npy beside it",
        )
    h5py = importlib.import_module("h5py")
    try:
        with h5py.File(path, "r") as stream:
            return np.asarray(stream["disparity"])
    except (OSError, KeyError) as exc:
        raise InputError(f"is not a Spring disparity file ({exc})", path=path) from exc


def _depth(folder: Path, stem: str, fx: float) -> Tensor:
    stored = np.asarray(_disparity(folder, stem))
    if stored.ndim != 2 or 0 in stored.shape or stored.dtype.kind not in "fui":
        raise InputError(
            f"the disparity must be (H, W) numbers, got {stored.shape} of type {stored.dtype}",
            path=folder / stem,
        )
    disparity = torch.from_numpy(stored[::2, ::2].astype(np.float64))
    known = ~torch.isnan(disparity) & (disparity >= 0)
    nearest = fx * BASELINE / FARTHEST
    depth = fx * BASELINE / torch.where(known, disparity, torch.ones_like(disparity)).clamp_min(nearest)
    return torch.where(known, depth, torch.zeros_like(depth)).float()
