"""From the contract's cameras to COLMAP's lens models and back, and which views share one lens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from relief3d.core.contract import Camera, Distortion, KSource, View
from relief3d.core.errors import InputError

DEFAULT_FOCAL_FACTOR = 1.2
"""Focal length guess in units of the longer side, COLMAP's default (a field of view of 45 degrees)."""

_MAX_SKEW = 1e-6


@dataclass(frozen=True)
class Lens:
    """Intrinsics shared by some views.

    Attributes:
        model: COLMAP's model name.
        width, height: pixels.
        params: COLMAP's parameters in the order of the model, pixels with centres at +0.5.
        fixed: given by the user, not to be refined.
        prior_focal: the focal length is more than a guess.
        views: indices of the views.
    """

    model: str
    width: int
    height: int
    params: tuple[float, ...]
    fixed: bool
    prior_focal: bool
    views: tuple[int, ...]

    def to_colmap(self, pycolmap: ModuleType, camera_id: int) -> Any:
        """The COLMAP camera."""
        camera = pycolmap.Camera(
            camera_id=camera_id,
            model=self.model,
            width=self.width,
            height=self.height,
            params=list(self.params),
        )
        camera.has_prior_focal_length = self.prior_focal
        return camera


def _given_params(camera: Camera, name: str) -> tuple[str, tuple[float, ...]]:
    assert camera.K is not None
    if abs(float(camera.K[0, 1])) > _MAX_SKEW * float(camera.K[0, 0]):
        raise InputError(f"the intrinsics of '{name}' have skew", remedy="give K with K[0][1] = 0")
    fx, fy, cx, cy = (float(camera.K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    pinhole = (fx, fy, cx, cy)
    if camera.distortion is None or camera.distortion.is_identity:
        return "PINHOLE", pinhole
    coefficients = camera.distortion.params
    if camera.distortion.model == "fisheye":
        return "OPENCV_FISHEYE", pinhole + coefficients
    if len(coefficients) == 4:
        return "OPENCV", pinhole + coefficients
    return "FULL_OPENCV", pinhole + coefficients + (0.0,) * (8 - len(coefficients))


def group_lenses(
    views: Sequence[View], *, per_view: bool = False, focal_factor: float | None = None
) -> list[Lens]:
    """Decide which views share intrinsics.

    Views with the same given intrinsics share a fixed lens. Views with unknown intrinsics share one
    SIMPLE_RADIAL lens per picture size and focal length from EXIF, as photos of one camera do.

    Args:
        views: all views of the scene.
        per_view: give every view without given intrinsics its own lens (mixed cameras, zoom).
        focal_factor: first focal length in units of the longer side where nothing is known.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, view in enumerate(views):
        camera = view.camera
        key: tuple[object, ...] = (camera.width, camera.height, camera.K_source)
        if camera.K is None:
            key = (camera.width, camera.height, "unknown")
        elif camera.K_source == "given":
            key += _given_params(camera, view.name)
        else:
            key += (round(float(camera.K[0, 0]), 1), camera.distortion)
        if per_view and not _is_fixed(camera):
            key += (index,)
        groups.setdefault(key, []).append(index)
    return [_lens(views, tuple(members), focal_factor) for members in groups.values()]


def _is_fixed(camera: Camera) -> bool:
    return camera.K is not None and camera.K_source == "given"


def _lens(views: Sequence[View], members: tuple[int, ...], focal_factor: float | None) -> Lens:
    camera = views[members[0]].camera
    if _is_fixed(camera):
        model, params = _given_params(camera, views[members[0]].name)
        return Lens(model, camera.width, camera.height, params, True, True, members)
    if camera.K is not None and camera.K_source != "guess":
        if camera.distortion is not None and not camera.distortion.is_identity:
            model, params = _given_params(camera, views[members[0]].name)
            return Lens(model, camera.width, camera.height, params, False, True, members)
        focal = float(camera.K[0, 0] + camera.K[1, 1]) / 2.0
        params = (focal, float(camera.K[0, 2]), float(camera.K[1, 2]), 0.0)
        return Lens("SIMPLE_RADIAL", camera.width, camera.height, params, False, True, members)
    if camera.K is not None:
        focal = float(camera.K[0, 0] + camera.K[1, 1]) / 2.0
    else:
        focal = (focal_factor or DEFAULT_FOCAL_FACTOR) * max(camera.width, camera.height)
    params = (focal, camera.width / 2.0, camera.height / 2.0, 0.0)
    return Lens("SIMPLE_RADIAL", camera.width, camera.height, params, False, False, members)


def camera_from_colmap(lens: Any, source: KSource) -> Camera:
    """The contract's camera (without pose) of a COLMAP camera.

    Raises:
        InputError: for a lens model that has no OpenCV form.
    """
    name, p = lens.model_name, [float(v) for v in lens.params]
    shared_focal = name in {
        "SIMPLE_PINHOLE",
        "SIMPLE_RADIAL",
        "RADIAL",
        "SIMPLE_RADIAL_FISHEYE",
        "RADIAL_FISHEYE",
    }
    fx, fy, cx, cy, rest = (
        (p[0], p[0], p[1], p[2], p[3:]) if shared_focal else (p[0], p[1], p[2], p[3], p[4:])
    )
    distortion: Distortion | None
    if name in {"SIMPLE_PINHOLE", "PINHOLE"}:
        distortion = None
    elif name in {"SIMPLE_RADIAL", "RADIAL"}:
        distortion = Distortion("opencv", (rest[0], rest[1] if len(rest) > 1 else 0.0, 0.0, 0.0))
    elif name == "OPENCV" or name == "FULL_OPENCV":
        distortion = Distortion("opencv", tuple(rest))
    elif name == "OPENCV_FISHEYE":
        distortion = Distortion("fisheye", tuple(rest))
    else:
        raise InputError(f"lens model {name} has no OpenCV form")
    K = torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return Camera(int(lens.width), int(lens.height), K, distortion=distortion, K_source=source)
