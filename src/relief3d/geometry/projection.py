"""Pinhole projection, pixel grids, rays, depth maps to points, and intrinsics of resized or cropped pictures.

Pixel centres are at +0.5, so a picture covers [0, W] x [0, H]. Camera axes are OpenCV's. Depth is z.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.geometry.transforms import transform_directions, transform_points


def _away_from_zero(z: Tensor) -> Tensor:
    tiny = torch.finfo(z.dtype).eps
    return torch.where(z.abs() < tiny, torch.where(z < 0, -tiny, tiny).to(z.dtype), z)


def project(points: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels of points in the camera frame.

    Args:
        points: (*, N, 3) in the camera frame.
        K: (*, 3, 3) in pixels, last row (0, 0, 1); skew is honoured.

    Returns:
        xy (*, N, 2) pixels and z (*, N). Where z <= 0 the point is behind the camera and xy has no meaning
        (it stays finite).
    """
    z = points[..., 2]
    return denormalize_pixels(points[..., :2] / _away_from_zero(z)[..., None], K), z


def project_world(points: Tensor, K: Tensor, cam_from_world: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (*, N, 2) and depth (*, N) of world points (*, N, 3) with K (*, 3, 3) and pose (*, 4, 4)."""
    return project(transform_points(cam_from_world, points), K)


def normalize_pixels(xy: Tensor, K: Tensor) -> Tensor:
    """Pixels (*, N, 2) to normalised image coordinates (x/z, y/z) with K (*, 3, 3)."""
    y = (xy[..., 1] - K[..., None, 1, 2]) / K[..., None, 1, 1]
    x = (xy[..., 0] - K[..., None, 0, 2] - K[..., None, 0, 1] * y) / K[..., None, 0, 0]
    return torch.stack([x, y], dim=-1)


def denormalize_pixels(xy: Tensor, K: Tensor) -> Tensor:
    """Normalised image coordinates (*, N, 2) to pixels with K (*, 3, 3)."""
    x, y = xy.unbind(-1)
    u = K[..., None, 0, 0] * x + K[..., None, 0, 1] * y + K[..., None, 0, 2]
    v = K[..., None, 1, 1] * y + K[..., None, 1, 2]
    return torch.stack([u, v], dim=-1)


def unproject(xy: Tensor, z: Tensor, K: Tensor) -> Tensor:
    """Points in the camera frame from pixels (*, N, 2), z-depth (*, N) and K (*, 3, 3) -> (*, N, 3)."""
    normalized = normalize_pixels(xy, K)
    return torch.cat([normalized * z[..., None], z[..., None].expand(*normalized.shape[:-1], 1)], dim=-1)


def pixel_grid(
    height: int,
    width: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """(H, W, 2) positions (x, y) of the pixel centres, the first at (0.5, 0.5)."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    y = torch.arange(height, device=device, dtype=dtype) + 0.5
    x = torch.arange(width, device=device, dtype=dtype) + 0.5
    gy, gx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([gx, gy], dim=-1)


def pixel_rays(K: Tensor, height: int, width: int) -> Tensor:
    """Ray of every pixel in the camera frame with z = 1; K (*, 3, 3) -> (*, H, W, 3).

    ``depth[..., None] * pixel_rays(...)`` are the points of a depth map.
    """
    grid = pixel_grid(height, width, K.device, K.dtype).reshape(-1, 2)
    xy = normalize_pixels(grid.expand(*K.shape[:-2], -1, 2), K)
    rays = torch.cat([xy, torch.ones_like(xy[..., :1])], dim=-1)
    return rays.reshape(*K.shape[:-2], height, width, 3)


def world_rays(K: Tensor, world_from_cam: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Camera centres (*, 3) and ray directions (*, H, W, 3) in the world.

    Directions have camera-frame z = 1, so the parameter along the ray is the z-depth.
    """
    rays = pixel_rays(K, height, width)
    flat = transform_directions(world_from_cam, rays.flatten(-3, -2))
    return world_from_cam[..., :3, 3], flat.reshape(*flat.shape[:-2], height, width, 3)


def depth_to_points(depth: Tensor, K: Tensor) -> Tensor:
    """Points in the camera frame of a depth map; (*, H, W), (*, 3, 3) -> (*, H, W, 3). Depth 0 gives the origin."""
    return pixel_rays(K.to(depth.device, depth.dtype), depth.shape[-2], depth.shape[-1]) * depth[..., None]


def depth_to_world_points(depth: Tensor, K: Tensor, world_from_cam: Tensor) -> Tensor:
    """Points in the world of a depth map; (*, H, W), (*, 3, 3), (*, 4, 4) -> (*, H, W, 3)."""
    points = depth_to_points(depth, K)
    flat = transform_points(world_from_cam.to(depth.device, depth.dtype), points.flatten(-3, -2))
    return flat.reshape(points.shape)


def points_to_world(points: Tensor, world_from_cam: Tensor) -> Tensor:
    """(..., H, W, 3) points of cameras in the world, for poses (..., 4, 4)."""
    turned = points @ world_from_cam[..., None, :3, :3].mT.to(points.dtype)
    return turned.add_(world_from_cam[..., None, None, :3, 3].to(points.dtype))


def inside_image(xy: Tensor, width: int, height: int, margin: float = 0.0) -> Tensor:
    """True where pixels (*, 2) lie in [margin, W - margin] x [margin, H - margin]; (*,) bool, False for NaN."""
    x, y = xy[..., 0], xy[..., 1]
    return (x >= margin) & (x <= width - margin) & (y >= margin) & (y <= height - margin)


def intrinsics(fx: float, fy: float, cx: float, cy: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """(3, 3) pinhole matrix from focal lengths and principal point in pixels (centres at +0.5)."""
    return torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]], dtype=dtype)


def intrinsics_from_fov(width: int, height: int, fov_x: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """(3, 3) matrix of a camera with square pixels, centred, from its horizontal field of view in radians."""
    focal = 0.5 * width / torch.tan(torch.tensor(0.5 * fov_x, dtype=torch.float64)).item()
    return intrinsics(focal, focal, 0.5 * width, 0.5 * height, dtype)


def fov_from_intrinsics(K: Tensor, width: int, height: int) -> Tensor:
    """Horizontal and vertical field of view in radians, edge to edge; K (*, 3, 3) -> (*, 2)."""
    fx, fy, cx, cy = K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2]
    horizontal = torch.atan2(cx, fx) + torch.atan2(width - cx, fx)
    vertical = torch.atan2(cy, fy) + torch.atan2(height - cy, fy)
    return torch.stack([horizontal, vertical], dim=-1)


def resize_intrinsics(K: Tensor, from_wh: tuple[int, int], to_wh: tuple[int, int]) -> Tensor:
    """Intrinsics after resizing a picture; exact, because pixel centres are at +0.5.

    Args:
        K: (*, 3, 3) pixels.
        from_wh: (width, height) before.
        to_wh: (width, height) after.

    Returns:
        (*, 3, 3).
    """
    scale = torch.tensor([to_wh[0] / from_wh[0], to_wh[1] / from_wh[1], 1.0], dtype=K.dtype, device=K.device)
    return K * scale[:, None]


def crop_intrinsics(K: Tensor, x0: float, y0: float) -> Tensor:
    """Intrinsics after cutting ``x0`` pixels off the left and ``y0`` off the top (negative: padding); (*, 3, 3)."""
    offset = torch.zeros(3, 3, dtype=K.dtype, device=K.device)
    offset[0, 2], offset[1, 2] = x0, y0
    return K - offset
