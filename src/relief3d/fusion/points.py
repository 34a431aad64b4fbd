"""Depth frames into one point cloud without duplicates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relief3d.core.contract import PointCloud
from relief3d.core.errors import InputError
from relief3d.fusion.block_update import pack_blocks
from relief3d.fusion.frames import DepthFrame
from relief3d.geometry.normals import depth_to_normals


def fuse_points(
    frames: Sequence[DepthFrame],
    voxel_size: float,
    *,
    min_views: int = 1,
    stride: int = 1,
) -> PointCloud:
    """One point per occupied voxel: means of position, colour and normal weighted by confidence.

    Normals of the two sides of a thin wall cancel; a point whose normals cancel fully gets a zero normal.

    Args:
        frames: posed depth maps in one world frame.
        voxel_size: world units.
        min_views: frames that must hit a voxel.
        stride: take every so many rows and columns of the maps.

    Returns:
        Points sorted by voxel; ``confidence`` in [0, 1] is the mean pixel confidence (1 without one) times
        the share of views ``n / (n + 1)``. Colours only when every frame that hit has a picture.

    Raises:
        InputError: when no frame has a valid depth, or the voxel size is not positive.
    """
    if not voxel_size > 0:
        raise InputError("the voxel size of a point cloud must be positive")
    with_color = all(f.image is not None for f in frames)
    parts: list[tuple[Tensor, Tensor]] = []
    for number, frame in enumerate(frames):
        xyz, rows, cols = frame.points(stride)
        if xyz.shape[0] == 0:
            continue
        confidence = frame.depth.confidence
        weight = (
            torch.ones(xyz.shape[0]).double()
            if confidence is None
            else confidence[rows, cols].double().nan_to_num(0.0).clamp(1e-3, 1.0)
        )
        normals = frame.normals
        if normals is None:
            normals = depth_to_normals(frame.values().double(), frame.K)[0]
        normal = normals[rows, cols].double() @ frame.cam_from_world[:3, :3]
        color = frame.color() if with_color else None
        tint = torch.zeros_like(xyz) if color is None else color[rows, cols].double()
        keys = pack_blocks(torch.floor(xyz / voxel_size))
        parts.append(_reduce(keys, torch.cat((xyz, tint, normal), -1), weight, number))
    if not parts:
        raise InputError("no valid pixels in any depth map to fuse", remedy="check the depth stage")
    keys, owner = torch.unique(torch.cat([k for k, _ in parts]), return_inverse=True)
    sums = torch.zeros(keys.shape[0], 12, dtype=torch.float64)
    sums.index_add_(0, owner, torch.cat([s for _, s in parts]))
    sums = sums[sums[:, 11] >= min_views]
    weight = sums[:, 9:10]
    normals = torch.nn.functional.normalize(sums[:, 6:9], dim=-1, eps=1e-30).float()
    views = sums[:, 11]
    return PointCloud(
        xyz=(sums[:, :3] / weight).float(),
        rgb=(sums[:, 3:6] / weight * 255).round().clamp(0, 255).to(torch.uint8) if with_color else None,
        normals=normals,
        confidence=(weight[:, 0] / sums[:, 10] * views / (views + 1)).clamp(0, 1).float(),
    )


def _reduce(keys: Tensor, values: Tensor, weight: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Sums per voxel of one frame: 9 weighted values, weight, pixels, 1 view."""
    unique, owner = torch.unique(keys, return_inverse=True)
    sums = torch.zeros(unique.shape[0], 12, dtype=torch.float64)
    ones = torch.ones_like(weight)
    sums.index_add_(
        0,
        owner,
        torch.cat((values * weight[:, None], torch.stack((weight, ones, torch.zeros_like(ones)), -1)), -1),
    )
    sums[:, 11] = 1.0
    return unique, sums
