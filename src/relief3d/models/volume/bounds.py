"""Where a volume has to be: from the depth of all frames (specification 6.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.projection import depth_to_world_points
from relief3d.geometry.transforms import invert_rigid
from relief3d.models.volume.unet3d import MULTIPLE

STRIDE = 10
PERCENTILE = 0.5


@dataclass(frozen=True)
class VolumeGrid:
    """An axis-aligned grid of points.

    Attributes:
        origin: world position of the first point (x, y, z).
        shape: number of points along x, y, z; multiples of 4.
        voxel_size: distance of neighbours, world units.
    """

    origin: tuple[float, float, float]
    shape: tuple[int, int, int]
    voxel_size: float

    def __post_init__(self) -> None:
        if not self.voxel_size > 0 or not all(math.isfinite(v) for v in self.origin):
            raise InputError("a grid needs a finite origin and a positive voxel size")
        if any(n < MULTIPLE or n % MULTIPLE for n in self.shape):
            raise InputError(f"a grid has sides of multiples of {MULTIPLE} points, not {self.shape}")

    @property
    def count(self) -> int:
        """Number of points."""
        return math.prod(self.shape)


def grid_of_box(low: Tensor, high: Tensor, voxel_size: float) -> VolumeGrid:
    """The smallest grid that covers a box from ``low`` (3,) to ``high`` (3,), sides rounded up to multiples of 4."""
    extent = (high - low).double().clamp_min(0)
    shape = [max(1, math.ceil(float(e) / voxel_size / MULTIPLE - 1e-9)) * MULTIPLE for e in extent]
    return VolumeGrid(
        (float(low[0]), float(low[1]), float(low[2])), (shape[0], shape[1], shape[2]), voxel_size
    )


def bounds_from_depth(
    frames: Iterable[tuple[Tensor, Tensor, Tensor]],
    voxel_size: float,
    *,
    truncation: float | None = None,
    percentile: float = PERCENTILE,
    stride: int = STRIDE,
) -> VolumeGrid:
    """A grid around what the depth maps show: per axis all but ``percentile`` % at either end, and 3 truncations more.

    Args:
        frames: (H, W) depth, 0 where unknown; its K (3, 3); cam_from_world (4, 4). Read once, one at a time.
        voxel_size: of the grid, world units.
        truncation: world units; None: 3 voxels.
        percentile: of the points left out at each end of every axis.
        stride: every so many pixels count.

    Raises:
        InputError: no frame has depth.
    """
    found = []
    for depth, K, cam_from_world in frames:
        # K of the thinned map: pixel i of it is pixel i * stride of the map.
        thin = depth[::stride, ::stride].double()
        small = K.double().clone()
        small[:2] /= stride
        small[:2, 2] += 0.5 - 0.5 / stride
        points = depth_to_world_points(thin, small, invert_rigid(cam_from_world.double()))
        found.append(points[torch.isfinite(thin) & (thin > 0)])
    points = torch.cat(found) if found else torch.zeros(0, 3)
    if not len(points):
        raise InputError(
            "no frame has depth to tell where the scene is", remedy="give depth, or the bounds of the scene"
        )
    low, high = (
        torch.stack([_at_share(points[:, axis], share) for axis in range(3)])
        for share in (percentile / 100, 1 - percentile / 100)
    )
    margin = 3 * (3 * voxel_size if truncation is None else truncation)
    return grid_of_box(low - margin, high + margin, voxel_size)


def _at_share(values: Tensor, share: float) -> Tensor:
    """Quantile of any number of values (torch.quantile takes 16 million at most)."""
    rank = round(share * (len(values) - 1))
    return values.kthvalue(rank + 1).values
