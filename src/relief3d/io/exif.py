"""EXIF: orientation of the picture (and of everything tied to its pixels) and focal length.

A photo stores its pixels as the sensor delivered them plus one of eight orientations. relief3d turns
the picture upright once, at reading. Whatever was known about the stored pixels (intrinsics, lens
distortion, pose, masks) must be turned with it; the functions here do that.

Orientation acts on stored pixel positions as ``p' = L p + t`` with a signed permutation ``L``. On
camera axes it acts as ``S = diag(L, 1)``, so that ``K' S X = A K X`` with ``A`` the homogeneous form.
Orientations 2, 4, 5, 7 mirror; a mirrored picture is not a view of the same world, hence has no pose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Distortion
from relief3d.core.errors import InputError

_LINEAR: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {
    1: ((1, 0), (0, 1)),
    2: ((-1, 0), (0, 1)),
    3: ((-1, 0), (0, -1)),
    4: ((1, 0), (0, -1)),
    5: ((0, 1), (1, 0)),
    6: ((0, -1), (1, 0)),
    7: ((0, -1), (-1, 0)),
    8: ((0, 1), (-1, 0)),
}
_INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
MIRRORED = frozenset({2, 4, 5, 7})

_FULL_FRAME_DIAGONAL_MM = math.hypot(36.0, 24.0)
_MM_PER_UNIT = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}


@dataclass(frozen=True)
class ExifInfo:
    """The EXIF facts that matter for geometry; None where absent or not plausible.

    Attributes:
        orientation: 1 to 8 (EXIF 2.32, tag 0x0112), 1 when absent or invalid.
        focal_mm: focal length in millimetres.
        focal_35mm: focal length of a 36 x 24 mm camera with the same diagonal field of view.
        sensor_mm: (width, height) of the exposed sensor area of the *stored* picture, in millimetres.
        pixel_size: (width, height) of the picture when it was taken, in pixels, before later resizing.
        make, model: camera names, stripped.
        time: date and time as written, ``YYYY:MM:DD HH:MM:SS``.
    """

    orientation: int = 1
    focal_mm: float | None = None
    focal_35mm: float | None = None
    sensor_mm: tuple[float, float] | None = None
    pixel_size: tuple[int, int] | None = None
    make: str | None = None
    model: str | None = None
    time: str | None = None


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        return None
    cleaned = "".join(c for c in value if c.isprintable()).strip()
    return cleaned[:100] or None


def valid_orientation(value: Any) -> int:
    """``value`` as an orientation from 1 to 8; anything else counts as 1 (upright)."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 8 else 1


def parse_exif(exif: Any) -> ExifInfo:
    """Read the facts from a ``PIL.Image.Exif`` mapping.

    Broken entries are treated as absent: EXIF is a hint, and a picture with damaged EXIF is still a
    picture.
    """
    if exif is None:
        return ExifInfo()
    try:
        base = dict(exif)
        details = dict(exif.get_ifd(0x8769))
    except Exception:  # third-party parser on bytes from a stranger: any type may come out
        return ExifInfo()
    width, height = (_positive(details.get(tag)) for tag in (0xA002, 0xA003))
    size = (round(width), round(height)) if width and height and max(width, height) < 1e6 else None
    unit = _MM_PER_UNIT.get(details.get(0xA210, 2))
    density = [_positive(details.get(tag)) for tag in (0xA20E, 0xA20F)]
    sensor = None
    if size and unit and density[0] and density[1]:
        sensor = (size[0] / density[0] * unit, size[1] / density[1] * unit)
        if not all(1.0 <= side <= 200.0 for side in sensor):
            sensor = None
    return ExifInfo(
        orientation=valid_orientation(base.get(0x0112)),
        focal_mm=_positive(details.get(0x920A)),
        focal_35mm=_positive(details.get(0xA405)),
        sensor_mm=sensor,
        pixel_size=size,
        make=_text(base.get(0x010F)),
        model=_text(base.get(0x0110)),
        time=_text(details.get(0x9003) or base.get(0x0132)),
    )


def focal_pixels(exif: ExifInfo, width: int, height: int) -> float | None:
    """Focal length in pixels of a picture of ``width`` x ``height`` (either orientation), or None.

    The 35 mm equivalent is taken first (CIPA DCG-001: equal diagonal field of view), then the focal
    length with the focal-plane resolution. A picture whose aspect ratio differs from the one recorded
    at exposure was cropped, so its EXIF no longer describes it. Results outside a horizontal field of
    view of about 5 to 150 degrees are rejected.

    Args:
        exif: the facts.
        width: picture width in pixels, as it is now.
        height: picture height in pixels, as it is now.
    """
    long_side, short_side = max(width, height), min(width, height)
    if exif.pixel_size is not None:
        recorded = max(exif.pixel_size) / min(exif.pixel_size)
        if abs(recorded - long_side / short_side) > 0.02 * recorded:
            return None
    focal = None
    if exif.focal_35mm:
        focal = exif.focal_35mm / _FULL_FRAME_DIAGONAL_MM * math.hypot(width, height)
    elif exif.focal_mm and exif.sensor_mm:
        focal = exif.focal_mm / max(exif.sensor_mm) * long_side
    if focal is None or not 0.13 * long_side < focal < 12.0 * long_side:
        return None
    return focal


def intrinsics_from_exif(exif: ExifInfo, width: int, height: int) -> Tensor | None:
    """(3, 3) float64 K with the EXIF focal length and the principal point in the middle, or None."""
    focal = focal_pixels(exif, width, height)
    if focal is None:
        return None
    return torch.tensor(
        [[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]], dtype=torch.float64
    )


def camera_from_exif(exif: ExifInfo, width: int, height: int) -> Camera:
    """A camera of ``width`` x ``height`` (upright picture) with K from EXIF, or without K."""
    K = intrinsics_from_exif(exif, width, height)
    return Camera(width, height) if K is None else Camera(width, height, K=K, K_source="exif")


def orientation_from_matrix(linear: tuple[tuple[float, float], tuple[float, float]]) -> int:
    """The orientation whose ``L`` has the signs of ``linear``; 1 when there is none.

    Args:
        linear: 2x2 map from stored to upright pixel directions, any positive scale.
    """
    largest = max(abs(value) for row in linear for value in row)
    if largest == 0:
        return 1
    signs = tuple(tuple(round(value / largest) for value in row) for row in linear)
    return next((number for number, known in _LINEAR.items() if known == signs), 1)


def inverse_orientation(orientation: int) -> int:
    """The orientation that undoes ``orientation``."""
    return _INVERSE[orientation]


def oriented_size(orientation: int, width: int, height: int) -> tuple[int, int]:
    """(width, height) of the upright picture."""
    return (height, width) if orientation >= 5 else (width, height)


def orient_array(values: Tensor, orientation: int) -> Tensor:
    """Turn stored pixels upright: (*, H, W) in, (*, H', W') out, contiguous.

    Args:
        values: image, mask or depth, the last two dimensions are rows and columns.
        orientation: EXIF orientation, 1 to 8.
    """
    if orientation >= 5:
        values = values.transpose(-1, -2)
    rows, columns = _LINEAR[orientation][1], _LINEAR[orientation][0]
    flips = [axis for axis, row in ((-2, rows), (-1, columns)) if min(row) < 0]
    return values.flip(flips) if flips else values.contiguous()


def orientation_matrix(orientation: int, width: int, height: int) -> Tensor:
    """(3, 3) float64 map from stored to upright pixel positions (homogeneous, centres at +0.5).

    Args:
        orientation: EXIF orientation, 1 to 8.
        width: stored width in pixels.
        height: stored height in pixels.
    """
    A = torch.eye(3, dtype=torch.float64)
    for row, (a, b) in enumerate(_LINEAR[orientation]):
        A[row, 0], A[row, 1] = a, b
        A[row, 2] = width if a < 0 else height if b < 0 else 0.0
    return A


def orient_points(xy: Tensor, orientation: int, width: int, height: int) -> Tensor:
    """Move stored pixel positions (*, 2) to the upright picture; ``width``, ``height`` are stored sizes."""
    A = orientation_matrix(orientation, width, height).to(xy)
    return xy @ A[:2, :2].T + A[:2, 2]


def orient_intrinsics(K: Tensor, orientation: int, width: int, height: int) -> Tensor:
    """Intrinsics (3, 3) of the stored picture turned with it; ``width``, ``height`` are stored sizes."""
    A = orientation_matrix(orientation, width, height).to(K)
    return A @ K @ _axes(orientation).to(K).T


def _axes(orientation: int) -> Tensor:
    S = torch.eye(3, dtype=torch.float64)
    S[:2, :2] = torch.tensor(_LINEAR[orientation], dtype=torch.float64)
    return S


def orient_camera(camera: Camera, orientation: int) -> Camera:
    """The camera of the upright picture, from the camera of the stored pixels.

    Size, intrinsics, distortion and pose are turned together, so a world point projects to the same
    place of the picture content.

    Args:
        camera: describes the stored pixels.
        orientation: EXIF orientation, 1 to 8.

    Raises:
        InputError: the orientation mirrors and the camera has a pose.
    """
    if orientation == 1:
        return camera
    width, height = oriented_size(orientation, camera.width, camera.height)
    K, pose, distortion = camera.K, camera.world_from_cam, camera.distortion
    if pose is not None:
        if orientation in MIRRORED:
            raise InputError(
                f"a picture mirrored by EXIF orientation {orientation} cannot keep a camera pose",
                remedy="save the picture without the mirroring",
            )
        turn = torch.eye(4, dtype=torch.float64)
        turn[:3, :3] = _axes(orientation).T
        pose = pose @ turn
    if K is not None:
        K = orient_intrinsics(K, orientation, camera.width, camera.height)
    if distortion is not None and distortion.model == "opencv":
        # The tangential terms form a vector (p2, p1); the radial ones do not notice a turn.
        k1, k2, p1, p2, *rest = distortion.params
        (a, b), (c, d) = _LINEAR[orientation]
        distortion = Distortion("opencv", (k1, k2, c * p2 + d * p1, a * p2 + b * p1, *rest))
    return camera.replace(width=width, height=height, K=K, world_from_cam=pose, distortion=distortion)
