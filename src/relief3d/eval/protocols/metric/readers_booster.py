"""Booster, the left pictures of the balanced pairs of its training set (Zama Ramirez et al. 2022).

Depth comes from disparity as in the only released evaluation script of metric depth on it (specification 9.2):
``fx * baseline / (disparity + 1e-6)``, millimetres to metres.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.protocols.metric.frames import FrameFile, load_rgb8, need_folder
from relief3d.io.depth import read_depth
from relief3d.io.names import natural_key
from relief3d.io.whole_file import read_utf8

LAYOUT = """\
balanced/<scene>/camera_00/*.png (left pictures, several lights per scene)
balanced/<scene>/disp_00.npy, mask_00.png (0 = leave out)
balanced/<scene>/calib_00-02.xml (OpenCV: mtxL, and baselineLR in mm or proj_matR)"""

EPSILON = 1e-6
_MAX_XML = 1 << 20


def open_booster(root: Path) -> list[FrameFile]:
    """All left pictures (228 in the training set), scene by scene.

    Args:
        root: folder that holds ``balanced``, or ``balanced`` itself.

    Raises:
        InputError: no scenes, or a file of a scene is missing or malformed.
    """
    folder = need_folder(root, ("balanced", "train/balanced", ""), "Booster")
    scenes = sorted(p.parent for p in folder.glob("*/camera_00"))
    if not scenes:
        raise InputError(
            "holds no <scene>/camera_00",
            path=folder,
            remedy="give the folder that holds 'balanced' of Booster",
        )
    return [frame for scene in scenes for frame in _scene(scene)]


def read_calibration(path: Path) -> tuple[Tensor, float]:
    """K (3, 3) float64 with pixel centres at +0.5, and the baseline in millimetres.

    Raises:
        InputError: not the XML of OpenCV, no ``mtxL``, neither ``baselineLR`` nor ``proj_matR``, or not numbers.
    """
    text = read_utf8(path, max_bytes=_MAX_XML)
    # Without entities and above a megabyte refused, the parser of the standard library has nothing to expand.
    if "<!ENTITY" in text or "<!DOCTYPE" in text:
        raise InputError("defines XML entities, which no calibration file needs", path=path)
    try:
        store = ElementTree.fromstring(text)  # noqa: S314
    except ElementTree.ParseError as exc:
        raise InputError(f"is not valid XML ({exc})", path=path, remedy="copy the calibration again") from exc
    K = _matrix(store, "mtxL", (3, 3), path)
    if K is None:
        raise InputError("has no 'mtxL' (intrinsics of the left camera)", path=path)
    baseline = _number(store, "baselineLR", path)
    if baseline is None:
        P = _matrix(store, "proj_matR", (3, 4), path)
        if P is None:
            raise InputError("has neither 'baselineLR' nor 'proj_matR'", path=path)
        baseline = float(-P[0, 3] / P[0, 0])
    if not baseline > 0 or not K[0, 0] > 0:
        raise InputError(
            f"the baseline ({baseline:g} mm) or the focal length ({K[0, 0]:g}) is not positive", path=path
        )
    K[:2, 2] += 0.5
    return torch.from_numpy(K), baseline


def _number(store: ElementTree.Element, name: str, path: Path) -> float | None:
    node = store.find(name)
    if node is None:
        return None
    # OpenCV writes a scalar as text, a 1 x 1 matrix with its data inside.
    data = node.find("data")
    values = _numbers((data if data is not None else node).text, name, path)
    if len(values) != 1:
        raise InputError(f"'{name}' holds {len(values)} numbers, expected one", path=path)
    return values[0]


def _matrix(store: ElementTree.Element, name: str, shape: tuple[int, int], path: Path) -> np.ndarray | None:
    node = store.find(f"{name}/data")
    if node is None:
        return None
    values = _numbers(node.text, name, path)
    if len(values) != shape[0] * shape[1]:
        raise InputError(f"'{name}' holds {len(values)} numbers, expected {shape[0]} x {shape[1]}", path=path)
    return np.asarray(values, dtype=np.float64).reshape(shape)


def _numbers(text: str | None, name: str, path: Path) -> list[float]:
    try:
        values = [float(word) for word in (text or "").split()]
    except ValueError as exc:
        raise InputError(f"'{name}' does not hold numbers only", path=path) from exc
    if not all(math.isfinite(v) for v in values):
        raise InputError(f"'{name}' holds numbers that are not finite", path=path)
    return values


def _scene(scene: Path) -> list[FrameFile]:
    for name in ("disp_00.npy", "mask_00.png", "calib_00-02.xml"):
        if not (scene / name).is_file():
            raise InputError(
                "is missing", path=scene / name, remedy="unpack the training set of Booster again"
            )
    K, baseline = read_calibration(scene / "calib_00-02.xml")
    depth = _depth_loader(scene, float(K[0, 0]) * baseline)

    def valid() -> Tensor:
        values, keep = depth(), load_rgb8(scene / "mask_00.png").bool().any(0)
        if keep.shape != values.shape:
            raise InputError(
                f"has shape {tuple(keep.shape)}, the disparity {tuple(values.shape)}",
                path=scene / "mask_00.png",
                remedy="unpack the training set of Booster again",
            )
        return (values > 0) & keep

    return [
        FrameFile(f"{scene.name}/{picture.stem}", scene.name, _image_loader(picture), depth, valid, K)
        for picture in sorted((scene / "camera_00").glob("*.png"), key=lambda p: natural_key(p.name))
    ]


def _image_loader(path: Path) -> Callable[[], Tensor]:
    return lambda: load_rgb8(path)


def _depth_loader(scene: Path, focal_times_baseline: float) -> Callable[[], Tensor]:
    def load() -> Tensor:
        disparity = read_depth(scene / "disp_00.npy", 1.0, metric=False).values
        depth = focal_times_baseline / (disparity.double() + EPSILON) / 1000.0
        return torch.where(disparity > 0, depth, torch.zeros_like(depth)).float()

    return load
