"""The arithmetic of one TSDF frame on a list of voxel blocks, shared by both back ends."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_KEY_BITS = 21
_KEY_HALF = 1 << (_KEY_BITS - 1)


@dataclass(frozen=True)
class Volume:
    """Storage of voxel blocks: ``S`` slots of ``r^3`` voxels each, ordered as the flat index says.

    Attributes:
        tsdf: (S, r^3) signed distance over truncation, positive in free space.
        weight: (S, r^3).
        color: (S, r^3, 3) or None.
    """

    tsdf: Tensor
    weight: Tensor
    color: Tensor | None


def pack_blocks(coordinates: Tensor) -> Tensor:
    """(N, 3) integer block coordinates within +-2^20 as (N,) sortable int64 keys."""
    c = coordinates.to(torch.int64) + _KEY_HALF
    return (c[:, 0] << (2 * _KEY_BITS)) | (c[:, 1] << _KEY_BITS) | c[:, 2]


def unpack_blocks(keys: Tensor) -> Tensor:
    """Inverse of :func:`pack_blocks`: (N, 3) int64."""
    mask = (1 << _KEY_BITS) - 1
    parts = (keys >> (2 * _KEY_BITS), (keys >> _KEY_BITS) & mask, keys & mask)
    return torch.stack(parts, -1) - _KEY_HALF


def touched_blocks(
    depth: Tensor, K: Tensor, cam_from_world: Tensor, block_size: float, truncation: float
) -> Tensor:
    """(N,) packed keys of the blocks within the truncation band of a depth map.

    Args:
        depth: (H, W) float32, 0 where unknown.
        K: (3, 3) float64, pixels, centres at +0.5.
        cam_from_world: (4, 4) float64.
        block_size: edge of a block in world units.
        truncation: half width of the band in world units.
    """
    device = depth.device
    known = depth > 0
    # Thin out: neighbouring pixels a small part of a block apart touch the same blocks.
    some = depth[::4, ::4]
    some = some[some > 0]
    middle = float((some if some.numel() else depth[known]).median())
    footprint = middle / float(torch.minimum(K[0, 0], K[1, 1]))
    stride = max(1, min(8, int(0.25 * block_size / max(footprint, 1e-12))))
    keep = known if stride == 1 else known & _sampling(depth, stride, 0.5 * block_size)
    rows, cols = torch.nonzero(keep, as_tuple=True)
    z = depth[rows, cols].to(torch.float64)
    pixel = torch.stack((cols + 0.5, rows + 0.5, torch.ones_like(z)), -1).to(torch.float64)
    ray = pixel @ torch.linalg.inv(K).T
    rotation, shift = cam_from_world[:3, :3], cam_from_world[:3, 3]
    centre = -(rotation.T @ shift)
    heading = ray @ rotation
    # The band spans depths z - tau .. z + tau; along an oblique ray that is longer than 2 tau.
    longest = float(ray.norm(dim=-1).max())
    steps = max(3, int(2 * truncation * longest / (0.5 * block_size)) + 2)
    keys = []
    for offset in torch.linspace(-truncation, truncation, steps, dtype=torch.float64, device=device):
        reach = (z + offset).clamp_min(0)
        point = centre + heading * reach[:, None]
        keys.append(torch.unique(pack_blocks(torch.floor(point / block_size))))
    return torch.unique(torch.cat(keys))


def _sampling(depth: Tensor, stride: int, step: float) -> Tensor:
    """(H, W) bool: one pixel per cell of ``stride`` pixels, but all where depth varies by more than ``step``.

    Grazing surfaces, thin objects, edges and cells with unknown pixels must not be thinned out.
    """
    height, width = depth.shape
    padded = torch.nn.functional.pad(depth, (0, -width % stride, 0, -height % stride))
    rows = padded.view(-1, stride, padded.shape[1])
    high = rows.amax(1).view(rows.shape[0], -1, stride).amax(2)
    low = rows.amin(1).view(rows.shape[0], -1, stride).amin(2)
    rough = high - low > step
    keep = rough.repeat_interleave(stride, 0).repeat_interleave(stride, 1)
    keep[::stride, ::stride] = True
    return keep[:height, :width]


def voxel_offsets(resolution: int, device: torch.device, *, x_fastest: bool) -> Tensor:
    """(r^3, 3) integer offsets of a block's voxels in storage order."""
    axis = torch.arange(resolution, device=device)
    a, b, c = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack((c, b, a) if x_fastest else (a, b, c), -1).view(-1, 3)


def integrate_blocks(
    volume: Volume,
    slots: Tensor,
    coordinates: Tensor,
    offsets: Tensor,
    voxel_size: float,
    truncation: float,
    depth: Tensor,
    K: Tensor,
    cam_from_world: Tensor,
    color: Tensor | None,
    weight: Tensor | None,
) -> None:
    """Running average of one frame into some blocks, in place.

    For a voxel at camera depth ``z`` whose nearest pixel has depth ``D``: accept when ``D - z >= -tau``,
    ``phi = min(1, (D - z) / tau)``, ``F <- (W F + w phi) / (W + w)``, ``W <- W + w``. Depth is never
    interpolated across edges. Colours are averaged likewise within the band only.

    Args:
        volume: storage.
        slots: (N,) rows of the storage to update.
        coordinates: (N, 3) block coordinates of those rows.
        offsets: (r^3, 3) voxel offsets in storage order.
        voxel_size: world units.
        truncation: world units.
        depth: (H, W) float32, 0 where unknown.
        K: (3, 3) float64, pixels, centres at +0.5.
        cam_from_world: (4, 4) float64.
        color: (H, W, 3) float32 in the range of the stored colours, or None.
        weight: (H, W) float32 or None for 1.
    """
    height, width = depth.shape
    resolution = round(offsets.shape[0] ** (1 / 3))
    rotation, shift = cam_from_world[:3, :3], cam_from_world[:3, 3]
    corner = coordinates.to(torch.float64) * (resolution * voxel_size)
    # Block corners in float64, voxels inside a block in float32: exact far from the world's origin.
    corner = (corner @ rotation.T + shift).to(torch.float32)
    inner = ((offsets.to(torch.float64) * voxel_size) @ rotation.T).to(torch.float32)
    fx, fy, skew, cx, cy = (float(K[i, j]) for i, j in ((0, 0), (1, 1), (0, 1), (0, 2), (1, 2)))

    z = corner[:, 2:3] + inner[:, 2]
    inverse = torch.where(z > 1e-9, 1.0 / z, torch.full_like(z, torch.nan))
    x = (corner[:, 0:1] + inner[:, 0]) * inverse
    y = (corner[:, 1:2] + inner[:, 1]) * inverse
    u = x * fx + y * skew + cx if skew else x * fx + cx
    v = y * fy + cy
    # NaN compares false, so voxels behind the camera drop out here.
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    block, voxel = torch.nonzero(inside, as_tuple=True)
    pixel = v[block, voxel].to(torch.int64) * width + u[block, voxel].to(torch.int64)
    seen = depth.view(-1)[pixel]
    distance = seen - z[block, voxel]
    accepted = (seen > 0) & (distance >= -truncation)
    block, voxel, pixel, distance = block[accepted], voxel[accepted], pixel[accepted], distance[accepted]
    if block.numel() == 0:
        return

    place = slots[block] * offsets.shape[0] + voxel
    old_weight = volume.weight.view(-1)[place]
    new = torch.ones_like(distance) if weight is None else weight.reshape(-1)[pixel]
    total = old_weight + new
    share = new / total
    phi = (distance / truncation).clamp(max=1.0)
    old = volume.tsdf.view(-1)[place]
    volume.tsdf.view(-1)[place] = old + share * (phi - old)
    volume.weight.view(-1)[place] = total
    if color is not None and volume.color is not None:
        # Free space far in front of a surface has no colour of its own.
        band = (distance < truncation) | (old_weight == 0)
        place, share = place[band], share[band, None]
        old_color = volume.color.view(-1, 3)[place]
        volume.color.view(-1, 3)[place] = old_color + share * (color.reshape(-1, 3)[pixel[band]] - old_color)
