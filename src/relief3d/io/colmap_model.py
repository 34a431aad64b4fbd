"""A COLMAP model as plain data, and its lens models in terms of the contract's :class:`Distortion`.

COLMAP keeps ``cam_from_world`` as quaternion (w, x, y, z) and translation, and pixel centres at +0.5,
as we do. Layout: https://colmap.github.io/format.html.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from relief3d.core.contract import Camera, Distortion
from relief3d.core.errors import InputError

CAMERA_MODELS: dict[str, tuple[int, int]] = {
    "SIMPLE_PINHOLE": (0, 3),
    "PINHOLE": (1, 4),
    "SIMPLE_RADIAL": (2, 4),
    "RADIAL": (3, 5),
    "OPENCV": (4, 8),
    "OPENCV_FISHEYE": (5, 8),
    "FULL_OPENCV": (6, 12),
    "FOV": (7, 5),
    "SIMPLE_RADIAL_FISHEYE": (8, 4),
    "RADIAL_FISHEYE": (9, 5),
    "THIN_PRISM_FISHEYE": (10, 12),
    "RAD_TAN_THIN_PRISM_FISHEYE": (11, 16),
    "SIMPLE_DIVISION": (12, 4),
    "DIVISION": (13, 5),
    "SIMPLE_FISHEYE": (14, 3),
    "FISHEYE": (15, 4),
    "EUCM": (16, 6),
    "EQUIRECTANGULAR": (17, 2),
}
"""Name -> (number in binary files, count of parameters) of COLMAP 4.2."""

MODEL_BY_ID = {number: name for name, (number, _) in CAMERA_MODELS.items()}
READABLE = (
    "SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV", "OPENCV_FISHEYE",
    "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "SIMPLE_FISHEYE", "FISHEYE",
)  # fmt: skip
_ONE_FOCAL = (
    "SIMPLE_PINHOLE",
    "SIMPLE_RADIAL",
    "RADIAL",
    "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE",
    "SIMPLE_FISHEYE",
)

MODEL_FILES = ("cameras", "images", "points3D")
RIG_FILES = ("rigs", "frames")
"""Written besides by COLMAP >= 3.12. Poses in ``images`` are complete, so readers need not open these."""


@dataclass(frozen=True)
class ColmapCamera:
    """Size in pixels, model name and parameters in COLMAP's order."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True)
class ColmapImage:
    """A registered picture.

    Attributes:
        name: file name relative to the picture folder.
        camera_id: key into ``ColmapModel.cameras``.
        quaternion: (4,) w, x, y, z of ``cam_from_world``.
        translation: (3,) of ``cam_from_world``.
        xy: (N, 2) float64 observed positions, pixel centres at +0.5.
        point_ids: (N,) int64, -1 where the observation has no 3D point.
    """

    name: str
    camera_id: int
    quaternion: NDArray[np.float64]
    translation: NDArray[np.float64]
    xy: NDArray[np.float64]
    point_ids: NDArray[np.int64]


@dataclass(frozen=True)
class ColmapPoints:
    """All 3D points; the track of row i is ``track[starts[i]:starts[i + 1]]`` = (image id, observation index)."""

    ids: NDArray[np.int64]
    xyz: NDArray[np.float64]
    rgb: NDArray[np.uint8]
    error: NDArray[np.float64]
    starts: NDArray[np.int64]
    track: NDArray[np.int64]


@dataclass(frozen=True)
class ColmapModel:
    """Cameras and images by id, and the points."""

    cameras: dict[int, ColmapCamera]
    images: dict[int, ColmapImage]
    points: ColmapPoints
    path: Path = field(default_factory=Path)


def camera_from_colmap(camera: ColmapCamera, path: Path, label: str) -> Camera:
    """Intrinsics and lens of a COLMAP camera, without pose.

    Args:
        camera: one of the models in :data:`READABLE`.
        path: the model folder or file, for errors.
        label: what to call the camera in errors.

    Raises:
        InputError: for other lens models, or numbers that make no camera.
    """
    model, p = camera.model, camera.params
    if model not in READABLE:
        raise InputError(
            f"{label} uses the lens model {model}, which is not supported",
            path=path,
            remedy="undistort the pictures with 'colmap image_undistorter' or refit with OPENCV",
        )
    if not np.isfinite(p).all():
        raise InputError(f"{label} has parameters that are not finite", path=path)
    if model in _ONE_FOCAL:
        (f, cx, cy), lens = p[:3], p[3:]
        fx = fy = f
    else:
        (fx, fy, cx, cy), lens = p[:4], p[4:]
    K = torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]], dtype=torch.float64)
    try:
        return Camera(camera.width, camera.height, K, distortion=_lens(model, lens), K_source="given")
    except InputError as exc:
        raise InputError(f"{label}: {exc.message}", path=path, remedy=exc.remedy) from exc


def _lens(model: str, lens: tuple[float, ...]) -> Distortion | None:
    if model in ("SIMPLE_PINHOLE", "PINHOLE"):
        return None
    if model.endswith("FISHEYE"):
        return Distortion("fisheye", (*lens, 0.0, 0.0, 0.0, 0.0)[:4])
    if model in ("SIMPLE_RADIAL", "RADIAL"):
        k1, k2 = (*lens, 0.0)[:2]
        return Distortion("opencv", (k1, k2, 0.0, 0.0))
    return Distortion("opencv", lens)


def camera_to_colmap(camera: Camera) -> ColmapCamera:
    """The COLMAP camera with the same projection: PINHOLE, OPENCV, FULL_OPENCV or OPENCV_FISHEYE.

    Raises:
        InputError: when K is unknown or has skew, which COLMAP cannot express.
    """
    if camera.K is None:
        raise InputError("a camera without intrinsics cannot be written to a COLMAP model")
    K = camera.K
    if abs(float(K[0, 1])) > 1e-9:
        raise InputError("a camera with skew cannot be written to a COLMAP model")
    base = (float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2]))
    lens = camera.distortion
    model: str
    params: tuple[float, ...]
    if lens is None or lens.is_identity:
        model, params = "PINHOLE", base
    elif lens.model == "fisheye":
        model, params = "OPENCV_FISHEYE", base + lens.params
    elif len(lens.params) == 4:
        model, params = "OPENCV", base + lens.params
    else:
        model, params = "FULL_OPENCV", base + (*lens.params, 0.0, 0.0, 0.0)[:8]
    return ColmapCamera(model, camera.width, camera.height, params)
