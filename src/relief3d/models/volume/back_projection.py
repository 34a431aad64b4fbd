"""Features of pictures at points in space: the mean over the views that see a point (VFM-Recon Eq. 8).

Views are added one after another, and a view costs only as much as the points that it sees, so neither memory nor time
grows with views times points. Projections are computed in float32 whatever autocast says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.projection import inside_image, project_world, resize_intrinsics
from relief3d.geometry.sampling import sample_image

DepthRule = Literal["none", "gaussian", "truncation"]
FADE_STEEPNESS = 12.0


@dataclass(frozen=True)
class DepthWeight:
    """Optional weight of a view by how far a point lies from the depth that the view has there (FineRecon's options).

    Attributes:
        rule: ``none``; ``gaussian``: exp(-(value |z - D|)^2); ``truncation``: 1 where |z - D| < value.
        value: 1 / world unit for ``gaussian`` (FineRecon: 16 or 8), world units for ``truncation`` (0.035 to 0.48 m).
            A view without depth at the pixel does not count.
    """

    rule: DepthRule = "none"
    value: float = 8.0

    def __post_init__(self) -> None:
        if not self.value > 0:
            raise InputError(f"a depth weight needs a positive value, not {self.value:g}")


@dataclass(frozen=True)
class Views:
    """Cameras of V views of one place.

    Attributes:
        K: (V, 3, 3) pixels of pictures of ``size``, centres at +0.5.
        cam_from_world: (V, 4, 4).
        size: (H, W) of the pictures.
    """

    K: Tensor
    cam_from_world: Tensor
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.K)

    def __getitem__(self, rows: slice) -> Views:
        return Views(self.K[rows], self.cam_from_world[rows], self.size)


def _single_or_double(points: Tensor) -> torch.dtype:
    return torch.float64 if points.dtype == torch.float64 else torch.float32


def project_view(points: Tensor, views: Views, view: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (N, 2) of points (N, 3) in one view, z (N,), and (N,) bool: in front of it and inside the picture."""
    with torch.autocast(points.device.type, enabled=False):
        kind = _single_or_double(points)
        xy, z = project_world(points.to(kind), views.K[view].to(kind), views.cam_from_world[view].to(kind))
        height, width = views.size
        return xy, z, (z > 0) & inside_image(xy, width, height)


def nearest_depth(depth: Tensor, xy: Tensor, size: tuple[int, int]) -> Tensor:
    """(N,) values of a depth map (h, w) at the pixels nearest to xy (N, 2) of a picture of ``size``; 0 outside."""
    height, width = depth.shape
    scale = xy.new_tensor([width / size[1], height / size[0]])
    cell = (xy * scale).floor()
    inside = (cell[:, 0] >= 0) & (cell[:, 0] < width) & (cell[:, 1] >= 0) & (cell[:, 1] < height)
    cell = torch.where(inside[:, None], cell, 0.0).long()
    found = depth[cell[:, 1], cell[:, 0]]
    return torch.where(inside & torch.isfinite(found), found, 0.0)


def depth_weights(rule: DepthWeight, z: Tensor, depth: Tensor) -> Tensor:
    """(N,) weight of a view for points at z (N,) where its depth map says depth (N,), 0 for unknown."""
    off = (z - depth).abs()
    weight = torch.exp(-((rule.value * off) ** 2)) if rule.rule == "gaussian" else (off < rule.value).to(z)
    return torch.where(depth > 0, weight, 0.0)


def border_fade(xy: Tensor, size: tuple[int, int], reach: float) -> Tensor:
    """(N,) weight that falls towards the border of a map of ``size`` for positions xy (N, 2) in its cells (FineRecon's
    inference): sigmoid(12 clamp(d / reach, 0, 1) - 6), d the distance to the nearest border.
    """
    height, width = size
    d = torch.minimum(torch.minimum(xy[:, 0], width - xy[:, 0]), torch.minimum(xy[:, 1], height - xy[:, 1]))
    return torch.sigmoid(FADE_STEEPNESS * (d / reach).clamp(0, 1) - FADE_STEEPNESS / 2)


class FeatureMean:
    """Running mean of features at N points.

    Args:
        points: (N, 3) in the world.
        channels: of the features.
        weight: by depth.
        fade: cells from the border within which features count less; 0: they do not. The sum is not normalised again,
            as in FineRecon.

    Sums are kept in single precision, or in double for points in double.
    """

    def __init__(
        self,
        points: Tensor,
        channels: int,
        *,
        weight: DepthWeight | None = None,
        fade: float = 0.0,
    ) -> None:
        self.points = points
        self.weight = weight or DepthWeight()
        self.fade = fade
        dtype = _single_or_double(points)
        self.total = points.new_zeros(len(points), channels, dtype=dtype)
        self.weights = points.new_zeros(len(points), dtype=dtype)
        self.count = torch.zeros(len(points), dtype=torch.int32, device=points.device)

    def add(self, features: Tensor, views: Views, depth: Tensor | None = None) -> None:
        """Add views.

        Args:
            features: (V, C, h, w) maps of whole pictures.
            views: their cameras.
            depth: (V, Hd, Wd) of the same pictures, 0 where unknown; for weights by depth.

        Raises:
            InputError: a weight by depth was asked for without depth.
        """
        if self.weight.rule != "none" and depth is None:
            raise InputError("weights by depth need depth", remedy="give depth, or switch them off")
        for view in range(len(views)):
            xy, z, seen = project_view(self.points, views, view)
            where = seen.nonzero()[:, 0]
            if not len(where):
                continue
            self.count[where] += 1
            share = None
            if self.weight.rule != "none":
                assert depth is not None
                known = nearest_depth(depth[view], xy[where], views.size)
                share = depth_weights(self.weight, z[where], known.to(z))
            size = (int(features.shape[-2]), int(features.shape[-1]))
            cells = xy[where] * xy.new_tensor([size[1] / views.size[1], size[0] / views.size[0]])
            with torch.autocast(features.device.type, enabled=False):
                # Positions take the type of the maps, and half precision is too coarse for them.
                found = sample_image(features[view].to(self.total.dtype), cells, padding="border").T
            own = torch.ones_like(z[where]) if share is None else share
            self.weights.index_add_(0, where, own.to(self.weights.dtype))
            if self.fade > 0:
                fade = border_fade(cells, size, self.fade)
                share = fade if share is None else share * fade
            if share is not None:
                found = found * share[:, None].to(found.dtype)
            self.total.index_add_(0, where, found)

    def mean(self) -> Tensor:
        """(N, C): sum over the views over max(1, sum of weights); 0 for points that no view sees."""
        return self.total / self.weights.clamp_min(1)[:, None]


def scaled_views(views: Views, size: tuple[int, int]) -> Views:
    """The same cameras for pictures resized to (H, W)."""
    K = resize_intrinsics(views.K, (views.size[1], views.size[0]), (size[1], size[0]))
    return Views(K, views.cam_from_world, size)


def grid_points(
    world_from_grid: Tensor, shape: tuple[int, int, int], start: tuple[int, int, int] = (0, 0, 0)
) -> Tensor:
    """(X * Y * Z, 3) world positions of grid points ``start`` to ``start + shape``, z fastest.

    Args:
        world_from_grid: (4, 4) takes grid indices (one unit per voxel) to the world; voxel size and turn are in it.
        shape: number of points along each axis.
        start: index of the first.
    """
    axes = [torch.arange(a, a + n, device=world_from_grid.device) for a, n in zip(start, shape, strict=True)]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3).to(world_from_grid)
    return index @ world_from_grid[:3, :3].T + world_from_grid[:3, 3]


def grid_transform(origin: Tensor, voxel_size: float, rotation: Tensor | None = None) -> Tensor:
    """(4, 4) ``world_from_grid``: index (0, 0, 0) at ``origin`` (3,), axes turned by ``rotation`` (3, 3)."""
    out = torch.eye(4, dtype=origin.dtype, device=origin.device)
    out[:3, :3] = voxel_size * (torch.eye(3).to(origin) if rotation is None else rotation)
    out[:3, 3] = origin
    return out


def grid_indices(world_from_grid: Tensor, points: Tensor) -> Tensor:
    """Fractional grid indices (N, 3) of world points (N, 3)."""
    inverse = torch.linalg.inv(world_from_grid.double())
    return (points.double() @ inverse[:3, :3].T + inverse[:3, 3]).to(points.dtype)
