"""Camera conventions of other software, converted to and from relief3d's.

relief3d: OpenCV camera axes (x right, y down, z forward), ``world_from_cam``, pixel centres at +0.5.

====================  ======================  ===================================================
name                  camera axes             what the software stores
====================  ======================  ===================================================
opencv, colmap        right, down, forward    COLMAP: cam_from_world as quaternion (w first) and t
opengl, blender       right, up, backward     matrix_world, nerfstudio transforms: world_from_cam
pytorch3d             left, up, forward       R, T with row vectors: x_cam = x_world R + T
====================  ======================  ===================================================
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.rotations import matrix_from_quat_wxyz, quat_wxyz_from_matrix
from relief3d.geometry.transforms import invert_rigid, make_rigid

Convention = Literal["opencv", "opengl", "blender", "pytorch3d", "colmap"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
UpAxis = Literal["x", "y", "z", "-x", "-y", "-z"]

# Signs that turn OpenCV camera coordinates into the named ones; every one is its own inverse.
_AXIS_SIGNS: dict[str, tuple[float, float, float]] = {
    "opencv": (1.0, 1.0, 1.0),
    "colmap": (1.0, 1.0, 1.0),
    "opengl": (1.0, -1.0, -1.0),
    "blender": (1.0, -1.0, -1.0),
    "pytorch3d": (-1.0, -1.0, 1.0),
}


def axis_signs(source: Convention, target: Convention) -> tuple[float, float, float]:
    """Signs by which camera coordinates change from ``source`` to ``target``.

    Raises:
        InputError: for an unknown convention.
    """
    for name in (source, target):
        if name not in _AXIS_SIGNS:
            raise InputError(f"unknown camera convention '{name}'", remedy=f"use {', '.join(CONVENTIONS)}")
    a, b = _AXIS_SIGNS[source], _AXIS_SIGNS[target]
    return (a[0] * b[0], a[1] * b[1], a[2] * b[2])


def convert_world_from_cam(world_from_cam: Tensor, source: Convention, target: Convention) -> Tensor:
    """The same camera with its axes named as in another convention; the world stays as it is.

    Args:
        world_from_cam: (*, 4, 4) from camera axes of ``source``.
        source: convention of the input.
        target: convention of the result.

    Returns:
        (*, 4, 4) from camera axes of ``target``.
    """
    signs = torch.tensor(
        [*axis_signs(source, target), 1.0], dtype=world_from_cam.dtype, device=world_from_cam.device
    )
    return world_from_cam * signs


def convert_cam_from_world(cam_from_world: Tensor, source: Convention, target: Convention) -> Tensor:
    """Like :func:`convert_world_from_cam` for the inverse matrices; (*, 4, 4)."""
    signs = torch.tensor(
        [*axis_signs(source, target), 1.0], dtype=cam_from_world.dtype, device=cam_from_world.device
    )
    return cam_from_world * signs[:, None]


def convert_cam_points(points: Tensor, source: Convention, target: Convention) -> Tensor:
    """Camera-frame points or directions (*, 3) in the axes of another convention."""
    return points * torch.tensor(axis_signs(source, target), dtype=points.dtype, device=points.device)


def colmap_from_world_from_cam(world_from_cam: Tensor) -> tuple[Tensor, Tensor]:
    """COLMAP's image pose: quaternion (w, x, y, z) (*, 4) and translation (*, 3) of cam_from_world; in (*, 4, 4)."""
    cam_from_world = invert_rigid(world_from_cam)
    return quat_wxyz_from_matrix(cam_from_world[..., :3, :3]), cam_from_world[..., :3, 3]


def world_from_cam_from_colmap(quat_wxyz: Tensor, translation: Tensor) -> Tensor:
    """world_from_cam (*, 4, 4) of COLMAP's quaternion (*, 4) and translation (*, 3)."""
    return invert_rigid(make_rigid(matrix_from_quat_wxyz(quat_wxyz), translation))


def pytorch3d_from_world_from_cam(world_from_cam: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch3D's R (*, 3, 3) and T (*, 3), for row vectors x_cam = x_world R + T; in (*, 4, 4) OpenCV axes."""
    cam_from_world = invert_rigid(convert_world_from_cam(world_from_cam, "opencv", "pytorch3d"))
    return cam_from_world[..., :3, :3].mT, cam_from_world[..., :3, 3]


def world_from_cam_from_pytorch3d(R: Tensor, T: Tensor) -> Tensor:
    """world_from_cam (*, 4, 4) with OpenCV axes of PyTorch3D's R (*, 3, 3) and T (*, 3)."""
    return convert_world_from_cam(invert_rigid(make_rigid(R.mT, T)), "pytorch3d", "opencv")


def opengl_view_matrix(world_from_cam: Tensor) -> Tensor:
    """OpenGL's view matrix (eye from world, *, 4, 4) of a world_from_cam with OpenCV axes."""
    return invert_rigid(convert_world_from_cam(world_from_cam, "opencv", "opengl"))


def opengl_projection(K: Tensor, width: int, height: int, near: float, far: float) -> Tensor:
    """OpenGL clip matrix with the same pixels as K.

    Args:
        K: (*, 3, 3) pixels, centres at +0.5.
        width: picture width in pixels.
        height: picture height in pixels.
        near: near plane, in length units, > 0.
        far: far plane, > near.

    Returns:
        (*, 4, 4) that maps eye coordinates (OpenGL axes) to clip coordinates; pixel x = (ndc_x + 1) W / 2 and
        pixel y = (1 - ndc_y) H / 2.

    Raises:
        InputError: unless 0 < near < far.
    """
    if not 0 < near < far:
        raise InputError(f"clip planes must satisfy 0 < near < far, got {near} and {far}")
    out = torch.zeros(*K.shape[:-2], 4, 4, dtype=K.dtype, device=K.device)
    out[..., 0, 0] = 2 * K[..., 0, 0] / width
    out[..., 0, 1] = -2 * K[..., 0, 1] / width
    out[..., 0, 2] = 1 - 2 * K[..., 0, 2] / width
    out[..., 1, 1] = 2 * K[..., 1, 1] / height
    out[..., 1, 2] = 2 * K[..., 1, 2] / height - 1
    out[..., 2, 2] = -(far + near) / (far - near)
    out[..., 2, 3] = -2 * far * near / (far - near)
    out[..., 3, 2] = -1
    return out


def shift_pixel_centres(K: Tensor, source_centre: float, target_centre: float) -> Tensor:
    """Intrinsics (*, 3, 3) after moving the origin of pixel coordinates.

    ``shift_pixel_centres(K, 0.0, 0.5)`` turns a file whose pixel centres are at integers into relief3d's.
    """
    offset = torch.zeros(3, 3, dtype=K.dtype, device=K.device)
    offset[:2, 2] = target_centre - source_centre
    return K + offset


def normalized_intrinsics(K: Tensor, width: int, height: int) -> Tensor:
    """K (*, 3, 3) in units of the picture size: fx / W, cx / W, fy / H, cy / H; independent of resolution."""
    return K / torch.tensor([[width], [height], [1.0]], dtype=K.dtype, device=K.device)


def pixel_intrinsics(K_normalized: Tensor, width: int, height: int) -> Tensor:
    """Inverse of :func:`normalized_intrinsics`; (*, 3, 3)."""
    return K_normalized * torch.tensor(
        [[width], [height], [1.0]], dtype=K_normalized.dtype, device=K_normalized.device
    )


def world_up_rotation(source_up: UpAxis, target_up: UpAxis) -> Tensor:
    """(4, 4) float64 rotation of the world that turns one up axis into another (for example y up to z up).

    Left-multiply world_from_cam and world points by it. The rotation is the shortest one; for opposite axes
    it is a half turn about x (about y when the axis is x).

    Raises:
        InputError: for an unknown axis.
    """
    a, b = _axis(source_up), _axis(target_up)
    cross, cosine = torch.linalg.cross(a, b), float(a @ b)
    out = torch.eye(4, dtype=torch.float64)
    if cosine > 0.5:
        return out
    if cosine < -0.5:
        hinge = _axis("y") if abs(float(a[0])) > 0.5 else _axis("x")
        out[:3, :3] = 2 * torch.outer(hinge, hinge) - torch.eye(3, dtype=torch.float64)
        return out
    # Quarter turn that maps a to b and keeps the hinge a x b.
    out[:3, :3] = torch.outer(b, a) - torch.outer(a, b) + torch.outer(cross, cross)
    return out


def _axis(name: str) -> Tensor:
    letter = name.removeprefix("-")
    if letter not in ("x", "y", "z"):
        raise InputError(f"unknown up axis '{name}'", remedy="use x, y, z, -x, -y or -z")
    v = torch.zeros(3, dtype=torch.float64)
    v["xyz".index(letter)] = -1.0 if name.startswith("-") else 1.0
    return v
