"""Cameras of edited pictures: resized, cropped, padded, turned by quarter turns, oriented by EXIF."""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Distortion
from relief3d.core.errors import InputError
from relief3d.geometry.projection import crop_intrinsics, resize_intrinsics

# EXIF orientation -> (clockwise quarter turns, then mirror left-right) that shows the picture upright.
_EXIF = {
    1: (0, False),
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (1, True),
    6: (1, False),
    7: (3, True),
    8: (3, False),
}


def resize_camera(camera: Camera, width: int, height: int) -> Camera:
    """Camera of the picture resized to ``width`` x ``height`` pixels; pose and lens coefficients stay."""
    K = camera.K
    if K is not None:
        K = resize_intrinsics(K, (camera.width, camera.height), (width, height))
    return camera.replace(width=width, height=height, K=K)


def crop_camera(camera: Camera, x0: int, y0: int, width: int, height: int) -> Camera:
    """Camera of the window of ``width`` x ``height`` pixels whose top-left corner is at (x0, y0).

    The window may reach outside the picture (padding).
    """
    K = None if camera.K is None else crop_intrinsics(camera.K, x0, y0)
    return camera.replace(width=width, height=height, K=K)


def quarter_turn_matrix(turns: int, width: float, height: float) -> Tensor:
    """(3, 3) float64 map of pixels of a W x H picture to pixels after clockwise quarter turns."""
    matrix = torch.eye(3, dtype=torch.float64)
    for _ in range(turns % 4):
        step = torch.tensor([[0.0, -1.0, height], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
        matrix, (width, height) = step @ matrix, (height, width)
    return matrix


def rotate90_camera(camera: Camera, turns: int) -> Camera:
    """Camera of the picture turned clockwise by ``turns`` quarter turns (negative: counter-clockwise).

    The camera frame turns with the picture, so its axes stay right, down, forward: intrinsics, lens and pose
    change together and every world point lands on the same picture content as before.
    """
    turns %= 4
    if turns == 0:
        return camera
    pixels = quarter_turn_matrix(turns, camera.width, camera.height)
    turn = torch.eye(3, dtype=torch.float64)  # new camera axes from old ones
    turn[:2, :2] = pixels[:2, :2]
    width, height = (camera.height, camera.width) if turns % 2 else (camera.width, camera.height)
    K = None if camera.K is None else pixels @ camera.K @ turn.T
    pose = camera.world_from_cam
    if pose is not None:
        pose = pose.clone()
        pose[:3, :3] = pose[:3, :3] @ turn.T
    return camera.replace(
        width=width,
        height=height,
        K=K,
        world_from_cam=pose,
        distortion=_turn_distortion(camera.distortion, turn),
    )


def mirror_camera(camera: Camera) -> Camera:
    """Camera of the picture mirrored left-right. A mirrored picture shows a mirrored world.

    Raises:
        InputError: when the camera has a pose, which no rotation can express for the mirrored world.
    """
    if camera.world_from_cam is not None:
        raise InputError("a mirrored picture cannot keep its pose", remedy="store the picture unmirrored")
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    K = camera.K
    if K is not None:
        shift = flip.clone()
        shift[0, 2] = camera.width
        K = shift @ K @ flip
    return camera.replace(K=K, distortion=_turn_distortion(camera.distortion, flip))


def orient_camera(camera: Camera, orientation: int) -> Camera:
    """Camera of the upright picture, given the camera of the stored one and its EXIF orientation (1 to 8).

    Raises:
        InputError: for another orientation value, or a mirroring orientation of a camera with a pose.
    """
    if orientation not in _EXIF:
        raise InputError(f"EXIF orientation must be 1 to 8, got {orientation}")
    turns, mirrored = _EXIF[orientation]
    turned = rotate90_camera(camera, turns)
    return mirror_camera(turned) if mirrored else turned


def orient_image(image: Tensor, orientation: int) -> Tensor:
    """Picture (*, H, W) turned upright by its EXIF orientation (1 to 8), matching :func:`orient_camera`.

    Raises:
        InputError: for another orientation value.
    """
    if orientation not in _EXIF:
        raise InputError(f"EXIF orientation must be 1 to 8, got {orientation}")
    turns, mirrored = _EXIF[orientation]
    turned = torch.rot90(image, -turns, dims=(-2, -1))
    return turned.flip(-1) if mirrored else turned


def _turn_distortion(distortion: Distortion | None, turn: Tensor) -> Distortion | None:
    """Lens coefficients after a turn or mirror of the image plane; only the tangential ones change."""
    if distortion is None or distortion.model == "fisheye":
        return distortion
    # The tangential shift is r^2 q + 2 (q . x) x with q = (p2, p1): q turns like a vector.
    k1, k2, p1, p2, *rest = distortion.params
    q = turn[:2, :2] @ torch.tensor([p2, p1], dtype=turn.dtype)
    return Distortion(distortion.model, (k1, k2, float(q[1]), float(q[0]), *rest))
