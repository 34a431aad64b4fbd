"""The volumetric network: pictures with poses (and depth) to occupancy and signed distance (specification 4.1).

Sources: VFM-Recon (arXiv 2603.12657), FineRecon (arXiv 2304.01480).

Signed distance is positive in front of a surface, in units of ``config.truncation``. Occupied means within the
truncation band of a surface, not inside an object.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.models.volume.back_projection import FeatureMean, Views, grid_indices, grid_points
from relief3d.models.volume.config import VolumeNetConfig
from relief3d.models.volume.guidance import Guidance
from relief3d.models.volume.heads import sample_mask, sample_volume
from relief3d.models.volume.layers import Mlp1d, Residual
from relief3d.models.volume.trunk2d import FeaturePyramid
from relief3d.models.volume.unet3d import UNet3D, UNetConfig
from relief3d.models.volume.vfm_features import VfmFeatures


@dataclass(frozen=True)
class VolumeInput:
    """B fragments with V views and N query points each.

    Attributes:
        images: (B, V, 3, H, W) in [0, 1], sides multiples of 16.
        K: (B, V, 3, 3) pixels of the images, centres at +0.5.
        cam_from_world: (B, V, 4, 4).
        world_from_grid: (B, 4, 4), grid indices to the world (voxel size and turn are in it).
        shape: number of grid points along x, y, z; multiples of 4.
        queries: (B, N, 3) in the world.
        depth: (B, V, Hd, Wd) z-depth of the same pictures at any size, 0 where unknown; None without.
    """

    images: Tensor
    K: Tensor
    cam_from_world: Tensor
    world_from_grid: Tensor
    shape: tuple[int, int, int]
    queries: Tensor
    depth: Tensor | None = None

    def views(self, sample: int) -> Views:
        """Cameras of one fragment."""
        size = (int(self.images.shape[-2]), int(self.images.shape[-1]))
        return Views(self.K[sample], self.cam_from_world[sample], size)

    def to(self, device: torch.device | str) -> VolumeInput:
        """On a device."""
        moved: dict[str, Any] = {
            f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class VolumeOutput:
    """What is said of the query points.

    Attributes:
        occupancy: (B, N) logits.
        distance: (B, N) logits; the signed distance over the truncation is their tanh.
        valid: (B, N) bool, the nearest voxel was seen by enough views.
        seen: (B, N) bool, the point itself was seen by a view.
    """

    occupancy: Tensor
    distance: Tensor
    valid: Tensor
    seen: Tensor


@dataclass(frozen=True)
class PictureMaps:
    """(M, C, h, w) feature maps of M pictures for the voxels and for the points, at a quarter of their size."""

    voxel: Tensor
    point: Tensor


class VfmProjection(nn.Module):
    """1x1 convolution and a norm whose factor starts at 0: training starts from the plain network.

    Args:
        channels: of the foundation maps.
        out: of the picture features.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 1)
        self.norm = nn.BatchNorm2d(out)
        nn.init.zeros_(self.norm.weight)

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """(M, C, h, w) -> (M, out, *size)."""
        maps = nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        return self.norm(self.conv(maps))


class VolumeNetwork(nn.Module):
    """See the module's description; sizes and variants in :func:`relief3d.models.volume.config.volume_config`."""

    def __init__(self, config: VolumeNetConfig) -> None:
        super().__init__()
        self.config = c = config
        slope = c.act_slope
        self.voxel_cnn = FeaturePyramid(c.trunk, c.trunk_widths, c.channels, slope)
        self.point_cnn = FeaturePyramid(c.trunk, c.trunk_widths, c.channels, slope)
        self.vfm = None if c.vfm is None else VfmFeatures(c.vfm)
        if self.vfm is not None:
            self.voxel_vfm = VfmProjection(self.vfm.channels, c.channels)
            if c.vfm_points:
                self.point_vfm = VfmProjection(self.vfm.channels, c.channels)
        self.voxel_norm = nn.BatchNorm3d(c.channels)
        self.unet = UNet3D(UNetConfig(c.channels + c.guided, c.unet_widths, slope))
        self.point_norm = nn.BatchNorm1d(c.channels)
        self.point_mlp = nn.Sequential(Residual(1, c.channels, slope), Residual(1, c.channels, slope))
        width = self.unet.config.out
        self.surface = Mlp1d(c.channels + width + c.guided, c.head, slope)
        self.occupied = Mlp1d(width, c.head, slope)

    # ---- pictures ---------------------------------------------------------------------------------------------------

    def encode(self, images: Tensor, chunk: int | None = None) -> PictureMaps:
        """Maps of views that belong together.

        Args:
            images: (B, V, 3, H, W) in [0, 1]; with a foundation network its reference is the first view.
            chunk: pictures at a time, in evaluation mode; only memory depends on it.
        """
        flat = images.flatten(0, 1)
        step = len(flat) if chunk is None or self.training else max(1, chunk)
        parts = [
            (self.voxel_cnn(flat[i : i + step]), self.point_cnn(flat[i : i + step]))
            for i in range(0, len(flat), step)
        ]
        voxel, point = (torch.cat(maps) if len(maps) > 1 else maps[0] for maps in zip(*parts, strict=True))
        if self.vfm is None:
            return PictureMaps(voxel, point)
        found = self.vfm(images, None if self.training else chunk)
        size = (int(voxel.shape[-2]), int(voxel.shape[-1]))
        voxel = voxel + self.voxel_vfm(found, size)
        if self.config.vfm_points:
            point = point + self.point_vfm(found, size)
        return PictureMaps(voxel, point)

    # ---- means to logits --------------------------------------------------------------------------------------------

    def volume(self, mean: Tensor, guidance: Tensor | None) -> Tensor:
        """Features of voxels.

        Args:
            mean: (B, C, X, Y, Z) mean picture features, 0 where no view sees.
            guidance: (B, X, Y, Z); None for a network without.
        """
        x = self.voxel_norm(mean)
        if self.config.guided:
            if guidance is None:
                raise InputError(
                    "this network needs depth", remedy="give depth, or use a variant without guidance"
                )
            x = torch.cat([x, guidance[:, None].to(x.dtype)], 1)
        return self.unet(x)

    def point_features(self, mean: Tensor) -> Tensor:
        """(B, C, N) of the mean picture features of points (B, C, N)."""
        return self.point_mlp(self.point_norm(mean))

    def occupancy_logits(self, features: Tensor) -> Tensor:
        """(B, N) of volume features (B, C, N)."""
        return self.occupied(features)

    def distance_logits(self, points: Tensor, features: Tensor, guidance: Tensor | None) -> Tensor:
        """(B, N) of point features (B, C, N), volume features (B, C', N) and guidance (B, N)."""
        parts = [points, features]
        if self.config.guided:
            assert guidance is not None
            parts.append(guidance[:, None].to(features.dtype))
        return self.surface(torch.cat(parts, 1))

    # ---- training ---------------------------------------------------------------------------------------------------

    def forward(self, x: VolumeInput, min_views: int = 2) -> VolumeOutput:
        """Logits at the query points.

        Args:
            x: fragments.
            min_views: voxels that fewer views see are not valid (FineRecon: 2 in training, 1 in inference).

        Raises:
            InputError: the network needs depth and there is none.
        """
        if self.config.guided and x.depth is None:
            raise InputError(
                "this network needs depth", remedy="give depth, or use a variant without guidance"
            )
        maps = self.encode(x.images)
        batch, views = x.images.shape[:2]
        voxel_maps, point_maps = (m.unflatten(0, (batch, views)) for m in (maps.voxel, maps.point))
        voxels = [grid_points(x.world_from_grid[b], x.shape) for b in range(batch)]
        at_voxels = [self._means(x, b, voxels[b], voxel_maps[b]) for b in range(batch)]
        fade = 0.0 if self.training else self.config.border_fade
        at_points = [self._means(x, b, x.queries[b], point_maps[b], fade) for b in range(batch)]
        mean = torch.stack([m.T.unflatten(1, x.shape) for m, _, _ in at_voxels])
        guidance = self._stacked([g for _, _, g in at_voxels])
        volume = self.volume(mean, None if guidance is None else guidance.unflatten(1, x.shape))
        index = [grid_indices(x.world_from_grid[b], x.queries[b]) for b in range(batch)]
        features = torch.stack([sample_volume(volume[b], index[b]) for b in range(batch)])
        points = self.point_features(torch.stack([m.T for m, _, _ in at_points]))
        counts = [count.unflatten(0, x.shape) for _, count, _ in at_voxels]
        return VolumeOutput(
            self.occupancy_logits(features),
            self.distance_logits(points, features, self._stacked([g for _, _, g in at_points])),
            torch.stack([sample_mask(counts[b] >= min_views, index[b]) for b in range(batch)]),
            torch.stack([count > 0 for _, count, _ in at_points]),
        )

    def _means(
        self, x: VolumeInput, sample: int, points: Tensor, maps: Tensor, fade: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(N, C) mean features, (N,) number of views, (N,) guidance of points (N, 3) of one fragment."""
        views = x.views(sample)
        depth = None if x.depth is None else x.depth[sample]
        mean = FeatureMean(points, maps.shape[1], weight=self.config.depth_weight, fade=fade)
        mean.add(maps, views, depth)
        guidance = None
        if self.config.guided and depth is not None:
            size = float(x.world_from_grid[sample, :3, 0].norm())
            run = Guidance(points, self.config.margin * size, self.config.guidance)
            run.add(depth, views)
            guidance = run.value()
        return mean.mean(), mean.count, guidance

    @staticmethod
    def _stacked(values: list[Tensor | None]) -> Tensor | None:
        there = [v for v in values if v is not None]
        return torch.stack(there) if there else None
