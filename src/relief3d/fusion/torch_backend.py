"""Sparse TSDF fusion in torch: hashed blocks of voxels, no library beyond the core."""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError, RunError
from relief3d.fusion.block_update import (
    Volume,
    integrate_blocks,
    pack_blocks,
    touched_blocks,
    unpack_blocks,
    voxel_offsets,
)
from relief3d.fusion.marching_cubes import extract_blocks
from relief3d.fusion.protocols import check_frame, usable_depth


class TorchFuser:
    """:class:`~relief3d.fusion.protocols.Fuser` in torch with scikit-image marching cubes.

    Args:
        voxel_size: in world units.
        truncation_voxels: half width of the band in voxels.
        max_depth: depths beyond are ignored, world units.
        with_color: keep colours.
        max_bytes: largest size of the volume.
        block_resolution: voxels along the edge of a block.
        device: where to work.

    Raises:
        InputError: for a voxel size that is not positive.
    """

    name = "torch"

    def __init__(
        self,
        voxel_size: float,
        truncation_voxels: float = 4.0,
        *,
        max_depth: float = float("inf"),
        with_color: bool = True,
        max_bytes: int = 2 * 1024**3,
        block_resolution: int = 8,
        device: torch.device | str = "cpu",
    ) -> None:
        if not voxel_size > 0 or not truncation_voxels > 0:
            raise InputError("voxel size and truncation must be positive")
        self.voxel_size = float(voxel_size)
        self.truncation = float(voxel_size * truncation_voxels)
        self.frames = 0
        self.max_depth = max_depth
        self.max_bytes = max_bytes
        self.device = torch.device(device)
        self._resolution = block_resolution
        self._offsets = voxel_offsets(block_resolution, self.device, x_fastest=False)
        self._with_color = with_color
        self._keys = torch.zeros(0, dtype=torch.int64, device=self.device)
        self._slots = torch.zeros(0, dtype=torch.int64, device=self.device)
        self._volume = self._allocate(0)

    def _allocate(self, slots: int) -> Volume:
        voxels = self._resolution**3
        return Volume(
            torch.zeros(slots, voxels, device=self.device),
            torch.zeros(slots, voxels, device=self.device),
            torch.zeros(slots, voxels, 3, device=self.device) if self._with_color else None,
        )

    def memory_bytes(self) -> int:
        """Bytes held by the volume."""
        return self._volume.tsdf.numel() * (20 if self._with_color else 8)

    def integrate(
        self,
        depth: Tensor,
        K: Tensor,
        cam_from_world: Tensor,
        color: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> bool:
        """Add one depth map; see :meth:`relief3d.fusion.protocols.Fuser.integrate`.

        Raises:
            InputError: for inconsistent shapes.
            RunError: when the volume would outgrow ``max_bytes``.
        """
        check_frame(depth, color)
        depth = usable_depth(depth, weight, self.max_depth).to(self.device)
        if not bool((depth > 0).any()):
            return False
        K = K.to(self.device, torch.float64)
        cam_from_world = cam_from_world.to(self.device, torch.float64)
        color = None if color is None else color.to(self.device, torch.float32)
        weight = None if weight is None else weight.to(self.device, torch.float32)
        block_size = self.voxel_size * self._resolution
        keys = touched_blocks(depth, K, cam_from_world, block_size, self.truncation)
        slots = self._slots_of(keys)
        coordinates = unpack_blocks(keys)
        for part in torch.arange(keys.shape[0], device=self.device).split(2048):
            integrate_blocks(
                self._volume,
                slots[part],
                coordinates[part],
                self._offsets,
                self.voxel_size,
                self.truncation,
                depth,
                K,
                cam_from_world,
                color,
                weight,
            )
        self.frames += 1
        return True

    def _slots_of(self, keys: Tensor) -> Tensor:
        """Storage rows of sorted unique keys; rows are made for new ones."""
        place = torch.searchsorted(self._keys, keys)
        clipped = place.clamp(max=max(0, self._keys.shape[0] - 1))
        known = (
            self._keys[clipped] == keys if self._keys.numel() else torch.zeros_like(keys, dtype=torch.bool)
        )
        new = keys[~known]
        if new.numel():
            used = self._keys.shape[0]
            self._grow(used + new.shape[0])
            all_keys = torch.cat((self._keys, new))
            fresh = torch.arange(used, used + new.shape[0], device=self.device)
            order = torch.argsort(all_keys)
            self._keys, self._slots = all_keys[order], torch.cat((self._slots, fresh))[order]
        return self._slots[torch.searchsorted(self._keys, keys)]

    def _grow(self, needed: int) -> None:
        have = self._volume.tsdf.shape[0]
        if needed <= have:
            return
        block_bytes = self._resolution**3 * (20 if self._with_color else 8)
        limit = self.max_bytes // block_bytes
        if needed > limit:
            raise RunError(
                f"the volume needs more than {self.max_bytes / 1024**3:.1f} GiB at voxel size {self.voxel_size:g}",
                remedy="use a larger voxel size or a smaller depth limit",
            )
        grown = self._allocate(min(limit, max(needed, int(1.5 * have), 256)))
        grown.tsdf[:have] = self._volume.tsdf
        grown.weight[:have] = self._volume.weight
        if grown.color is not None and self._volume.color is not None:
            grown.color[:have] = self._volume.color
        self._volume = grown

    def extract(self, min_weight: float = 1.0) -> Mesh:
        """The surface among voxels of at least ``min_weight``; see the protocol."""
        return extract_blocks(
            self._volume, self._keys, self._slots, self._resolution, self.voxel_size, min_weight
        )

    def sample(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance over truncation and weight of the voxels nearest to (N, 3) world points.

        Voxels without storage read NaN and weight 0.
        """
        grid = torch.round(points.to(self.device, torch.float64) / self.voxel_size).to(torch.int64)
        block = torch.div(grid, self._resolution, rounding_mode="floor")
        local = grid - block * self._resolution
        flat = (local[:, 0] * self._resolution + local[:, 1]) * self._resolution + local[:, 2]
        keys = pack_blocks(block)
        tsdf = torch.full((points.shape[0],), torch.nan, device=self.device)
        weight = torch.zeros(points.shape[0], device=self.device)
        if self._keys.numel():
            place = torch.searchsorted(self._keys, keys).clamp(max=self._keys.shape[0] - 1)
            known = self._keys[place] == keys
            slot, voxel = self._slots[place[known]], flat[known]
            weight[known] = self._volume.weight[slot, voxel]
            value = self._volume.tsdf[slot, voxel]
            tsdf[known] = torch.where(weight[known] > 0, value, torch.full_like(value, torch.nan))
        return tsdf, weight
