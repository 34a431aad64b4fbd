"""VGGT's nine numbers per camera: translation, quaternion (x, y, z, w), vertical and horizontal field of view.

They describe the camera-from-world pose (OpenCV axes). The principal point is taken to be the middle of the picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.geometry.rotations import quat_xyzw_from_wxyz


def rotation_from_quat_xyzw(quat: Tensor) -> Tensor:
    """(*, 4) scalar-last quaternion of any non-zero length to (*, 3, 3)."""
    x, y, z, w = quat.unbind(-1)
    two = 2.0 / (quat * quat).sum(-1)
    rows = (
        1 - two * (y * y + z * z), two * (x * y - z * w), two * (x * z + y * w),
        two * (x * y + z * w), 1 - two * (x * x + z * z), two * (y * z - x * w),
        two * (x * z - y * w), two * (y * z + x * w), 1 - two * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def quat_xyzw_from_rotation(rotation: Tensor) -> Tensor:
    """(*, 3, 3) to a scalar-last quaternion (*, 4) with w >= 0.

    Of the four ways to divide, the one with the largest component is taken; divisors are at least 0.1 (as PyTorch3D),
    which also gives the published values for matrices that are not exactly rotations.
    """
    m = rotation
    m00, m11, m22 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    squares = torch.stack(
        [1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], -1
    )
    size = torch.where(squares > 0, squares, torch.ones_like(squares)).sqrt() * (squares > 0)
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    d, e, f = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    sw, sx, sy, sz = (size**2).unbind(-1)
    ways = torch.stack(
        [torch.stack(r, -1) for r in ((sw, a, b, c), (a, sx, d, e), (b, d, sy, f), (c, e, f, sz))], -2
    )
    ways = ways / (2.0 * size[..., None].clamp_min(0.1))
    best = size.argmax(-1)[..., None, None].expand(*size.shape[:-1], 1, 4)
    wxyz = ways.gather(-2, best)[..., 0, :]
    wxyz = torch.where(wxyz[..., :1] < 0, -wxyz, wxyz)
    return quat_xyzw_from_wxyz(wxyz)


def encode_cameras(cam_from_world: Tensor, K: Tensor, size: tuple[int, int]) -> Tensor:
    """Nine numbers per camera.

    Args:
        cam_from_world: (*, 3, 4) or (*, 4, 4).
        K: (*, 3, 3) pixels.
        size: (H, W) pixels.

    Returns:
        (*, 9).
    """
    height, width = size
    fov_h = 2 * torch.atan(height / 2 / K[..., 1, 1])
    fov_w = 2 * torch.atan(width / 2 / K[..., 0, 0])
    quat = quat_xyzw_from_rotation(cam_from_world[..., :3, :3])
    return torch.cat([cam_from_world[..., :3, 3], quat, fov_h[..., None], fov_w[..., None]], -1)


def decode_cameras(encoding: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Camera-from-world poses (*, 3, 4) and intrinsics (*, 3, 3) of (*, 9) encodings; the inverse of
    :func:`encode_cameras`.
    """
    height, width = size
    rotation = rotation_from_quat_xyzw(encoding[..., 3:7])
    pose = torch.cat([rotation, encoding[..., :3, None]], -1)
    fy = height / 2 / torch.tan(encoding[..., 7] / 2)
    fx = width / 2 / torch.tan(encoding[..., 8] / 2)
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    K = torch.stack(
        [fx, zero, one * (width / 2), zero, fy, one * (height / 2), zero, zero, one], -1
    ).unflatten(-1, (3, 3))
    return pose, K
