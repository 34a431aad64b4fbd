"""Middlebury stereo 2014: pictures with structured-light disparity (Scharstein et al. 2014).

The 15 pictures of the metric depth tables are the training set of the stereo evaluation 3 in full resolution. The
folders of the 2014 data sets themselves are read too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.protocols.metric.frames import FrameFile, load_rgb8, need_folder
from relief3d.geometry.projection import intrinsics
from relief3d.io.pfm import read_pfm
from relief3d.io.whole_file import read_utf8

LAYOUT = """\
MiddEval3/trainingF/<scene>/im0.png, disp0GT.pfm, calib.txt
or, from the 2014 data sets, <scene>-perfect/im0.png, disp0.pfm, calib.txt"""

_DISPARITY = ("disp0GT.pfm", "disp0.pfm")
_MAX_TEXT = 1 << 16


def open_middlebury(root: Path) -> list[FrameFile]:
    """Left pictures of all scenes below ``root``.

    Raises:
        InputError: no scene with ``calib.txt``, or a file of a scene is missing or malformed.
    """
    folder = need_folder(root, ("MiddEval3/trainingF", "trainingF", ""), "Middlebury stereo")
    scenes = sorted(p.parent for p in folder.glob("*/calib.txt"))
    if not scenes:
        raise InputError(
            "holds no <scene>/calib.txt",
            path=folder,
            remedy="unpack MiddEval3-data-F.zip and MiddEval3-GT0-F.zip, or scenes of the 2014 data sets, there",
        )
    return [_frame(scene) for scene in scenes]


def read_calibration(path: Path) -> tuple[Tensor, float, float]:
    """K (3, 3) float64 of the left camera with pixel centres at +0.5, ``doffs`` in pixels, the baseline in millimetres.

    Raises:
        InputError: a line is missing or malformed.
    """
    entries = dict(
        re.findall(r"^\s*(\w+)\s*=\s*(.+?)\s*$", read_utf8(path, max_bytes=_MAX_TEXT), re.MULTILINE)
    )
    camera = [
        _number(word, "cam0", path)
        for word in re.split(r"[\s;]+", entries.get("cam0", "").strip("[] "))
        if word
    ]
    if len(camera) != 9:
        raise InputError("has no line 'cam0=[f 0 cx; 0 f cy; 0 0 1]'", path=path)
    if "baseline" not in entries or "doffs" not in entries:
        raise InputError(
            "lacks 'baseline' or 'doffs'", path=path, remedy="use the full-resolution calibration"
        )
    K = intrinsics(camera[0], camera[4], camera[2] + 0.5, camera[5] + 0.5)
    baseline = _number(entries["baseline"], "baseline", path)
    if not (baseline > 0 and camera[0] > 0):
        raise InputError(f"the baseline ({baseline:g} mm) or the focal length is not positive", path=path)
    return K, _number(entries["doffs"], "doffs", path), baseline


def _number(word: str, name: str, path: Path) -> float:
    try:
        value = float(word)
    except ValueError as exc:
        raise InputError(f"'{name}' holds '{word}', which is not a number", path=path) from exc
    if not math.isfinite(value):
        raise InputError(f"'{name}' is not finite", path=path)
    return value


def _frame(scene: Path) -> FrameFile:
    picture = scene / "im0.png"
    disparity = next((scene / name for name in _DISPARITY if (scene / name).is_file()), None)
    if disparity is None:
        raise InputError(
            f"has neither {' nor '.join(_DISPARITY)}", path=scene, remedy="unpack the true disparities too"
        )
    K, offset, baseline = read_calibration(scene / "calib.txt")
    depth = _depth_loader(disparity, float(K[0, 0]) * baseline, offset)
    return FrameFile(scene.name, scene.name, lambda: load_rgb8(picture), depth, lambda: depth() > 0, K)


def _depth_loader(path: Path, focal_times_baseline: float, offset: float) -> Callable[[], Tensor]:
    def load() -> Tensor:
        stored = read_pfm(path)
        if stored.ndim != 2:
            raise InputError("a disparity map has one channel", path=path)
        disparity = torch.from_numpy(np.where(np.isfinite(stored), stored, 0.0)).double()
        shifted = disparity + offset
        known = (disparity > 0) & (shifted > 0)
        depth = focal_times_baseline / torch.where(known, shifted, torch.ones_like(shifted)) / 1000.0
        return torch.where(known, depth, torch.zeros_like(depth)).float()

    return load
