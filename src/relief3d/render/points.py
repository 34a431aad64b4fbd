"""A z-buffer rasteriser for point clouds: square splats, nearest wins."""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.core.contract import Camera, PointCloud
from relief3d.render.protocols import posed_pinhole

_MISS = torch.iinfo(torch.int64).max


def rasterize_points(
    xyz: Tensor, camera: Camera, *, radius: float = 0.0, pixel_radius: int = 0
) -> tuple[Tensor, Tensor]:
    """Depth and index of the nearest point at every pixel.

    Args:
        xyz: (N, 3) world positions.
        camera: posed pinhole camera.
        radius: half side of the splats in world units.
        pixel_radius: smallest half side of the splats in pixels; 0 is one pixel per point.

    Returns:
        (H, W) float32 z-depth, 0 where no point falls, and (H, W) int64 index, -1 there.
    """
    K, cam_from_world = (m.to(xyz.device) for m in posed_pinhole(camera))
    height, width = camera.height, camera.width
    local = xyz.double() @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
    front = torch.isfinite(local).all(-1) & (local[:, 2] > 0)
    index = torch.nonzero(front).squeeze(1)
    local = local[index]
    image = local @ K.T
    xy = image[:, :2] / image[:, 2:3]
    half = (radius * K[0, 0] / local[:, 2]).clamp(min=float(pixel_radius), max=32.0)
    buffer = torch.full((height * width,), _MISS, dtype=torch.int64, device=xyz.device)
    packed = (local[:, 2].float().view(torch.int32).long() << 32) | index
    reach = int(half.max().ceil()) if half.numel() else 0
    column, row = xy[:, 0].floor().clamp(-1e6, 1e6).long(), xy[:, 1].floor().clamp(-1e6, 1e6).long()
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            x, y = column + dx, row + dy
            keep = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (half >= max(abs(dx), abs(dy)) - 1e-9)
            buffer.scatter_reduce_(0, y[keep] * width + x[keep], packed[keep], "amin", include_self=True)
    seen = buffer != _MISS
    depth = torch.zeros(height * width, device=xyz.device)
    depth[seen] = (buffer[seen] >> 32).to(torch.int32).view(torch.float32)
    chosen = torch.where(seen, buffer & ((1 << 32) - 1), torch.full_like(buffer, -1))
    return depth.view(height, width), chosen.view(height, width)


def render_points(
    cloud: PointCloud,
    camera: Camera,
    *,
    radius: float = 0.0,
    pixel_radius: int = 1,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """(3, H, W) float32 picture of a point cloud in its colours (grey without).

    Args:
        cloud: points.
        camera: posed pinhole camera.
        radius: half side of the splats in world units.
        pixel_radius: smallest half side of the splats in pixels.
        background: RGB in [0, 1] where no point falls.
    """
    _, index = rasterize_points(cloud.xyz, camera, radius=radius, pixel_radius=pixel_radius)
    device = index.device
    picture = torch.tensor(background, device=device).expand(*index.shape, 3).clone()
    seen = index >= 0
    if cloud.rgb is None:
        picture[seen] = 0.5
    else:
        picture[seen] = cloud.rgb.to(device)[index[seen]].float() / 255
    return picture.movedim(-1, 0)
