"""Voxel size from the scene itself, within a memory budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from relief3d.core.errors import InputError
from relief3d.fusion.block_update import touched_blocks
from relief3d.fusion.frames import DepthFrame

BLOCK = 8
VOXEL_BYTES = 20
_SAMPLED_FRAMES = 24


@dataclass(frozen=True)
class VoxelChoice:
    """A voxel size and how it came about.

    Attributes:
        voxel_size: world units.
        diagonal: of the box that holds 98 % of the points along each axis, world units.
        footprint: median size of a pixel on the surface, world units.
        bytes: expected size of the volume.
        reason: one sentence.
    """

    voxel_size: float
    diagonal: float
    footprint: float
    bytes: int
    reason: str


def volume_bytes(frames: Sequence[DepthFrame], voxel_size: float, truncation_voxels: float = 4.0) -> int:
    """Expected bytes of a TSDF of these frames, from the blocks that a spread of them touches.

    Args:
        frames: to be fused.
        voxel_size: world units.
        truncation_voxels: half width of the band in voxels.
    """
    step = max(1, len(frames) // _SAMPLED_FRAMES)
    chosen = list(frames)[::step]
    keys = []
    for frame in chosen:
        depth = frame.values()
        if bool((depth > 0).any()):
            truncation = voxel_size * truncation_voxels
            keys.append(touched_blocks(depth, frame.K, frame.cam_from_world, voxel_size * BLOCK, truncation))
    if not keys:
        return 0
    blocks = int(torch.unique(torch.cat(keys)).numel())
    # Frames left out mostly see the same surface; a quarter more covers what they add.
    return int(blocks * BLOCK**3 * VOXEL_BYTES * (1.25 if step > 1 else 1.0))


def choose_voxel_size(
    frames: Sequence[DepthFrame],
    *,
    divisions: float = 400.0,
    truncation_voxels: float = 4.0,
    max_bytes: int = 2 * 1024**3,
) -> VoxelChoice:
    """The larger of ``diagonal / divisions`` and the median pixel footprint, doubled until it fits.

    Args:
        frames: to be fused.
        divisions: voxels along the scene's diagonal.
        truncation_voxels: half width of the band in voxels.
        max_bytes: memory budget of the volume.

    Raises:
        InputError: when no frame has a valid depth.
    """
    points, footprints = [], []
    for frame in frames:
        xyz, rows, cols = frame.points(stride=4)
        if xyz.shape[0] == 0:
            xyz, rows, cols = frame.points()
        if xyz.shape[0]:
            points.append(xyz)
            focal = float(torch.minimum(frame.K[0, 0], frame.K[1, 1]))
            footprints.append(frame.values()[rows, cols].double() / focal)
    if not points:
        raise InputError("no valid pixels in any depth map to fuse", remedy="check the depth stage")
    cloud = torch.cat(points)
    if cloud.shape[0] > 500_000:
        cloud = cloud[:: cloud.shape[0] // 250_000]
    low, high = (torch.quantile(cloud, q, dim=0) for q in (0.01, 0.99))
    diagonal = float((high - low).norm())
    footprint = float(torch.cat(footprints).median())
    size = max(diagonal / divisions, footprint)
    if not size > 0:
        raise InputError("the depth maps hold a single point", remedy="check the depth stage")
    why = f"diagonal {diagonal:.3g} / {divisions:g}" if size > footprint else "the pixel footprint"
    needed, doubled = volume_bytes(frames, size, truncation_voxels), 0
    while needed > max_bytes and doubled < 12:
        size *= 2
        doubled += 1
        needed = volume_bytes(frames, size, truncation_voxels)
    if doubled:
        why += f", doubled {doubled} times to fit {max_bytes / 1024**3:.1f} GiB"
    return VoxelChoice(size, diagonal, footprint, needed, f"voxel size {size:.3g} from {why}")
