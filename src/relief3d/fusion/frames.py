"""Depth maps with their cameras and pictures: the input of fusion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth
from relief3d.core.errors import InputError
from relief3d.geometry.projection import unproject


@dataclass(frozen=True)
class DepthFrame:
    """One depth map to fuse.

    Attributes:
        name: for messages.
        depth: z-depth of the camera's size.
        camera: posed pinhole camera at the size of the depth map.
        image: (3, h, w) float32 RGB in [0, 1] of any size that covers the same field of view, or None.
        normals: (H, W, 3) float32 unit normals in the camera frame, zero where unknown, or None.
    """

    name: str
    depth: Depth
    camera: Camera
    image: Tensor | None = None
    normals: Tensor | None = None

    def __post_init__(self) -> None:
        if tuple(self.depth.values.shape) != (self.camera.height, self.camera.width):
            raise InputError(
                f"view '{self.name}': depth {tuple(self.depth.values.shape)} does not have the size of its camera "
                f"({self.camera.height}, {self.camera.width})"
            )
        if self.camera.K is None or self.camera.world_from_cam is None:
            raise InputError(f"view '{self.name}': fusion needs a camera with known intrinsics and pose")
        if self.camera.distortion is not None and not self.camera.distortion.is_identity:
            raise InputError(
                f"view '{self.name}': fusion needs a pinhole camera", remedy="undistort the view first"
            )

    @property
    def K(self) -> Tensor:
        """(3, 3) float64 pixels."""
        assert self.camera.K is not None
        return self.camera.K

    @property
    def cam_from_world(self) -> Tensor:
        """(4, 4) float64."""
        pose = self.camera.cam_from_world
        assert pose is not None
        return pose

    def values(self) -> Tensor:
        """(H, W) float32 z-depth, 0 where unknown or unusable."""
        good = self.depth.valid & torch.isfinite(self.depth.values) & (self.depth.values > 0)
        return torch.where(good, self.depth.values, torch.zeros_like(self.depth.values)).float()

    def color(self) -> Tensor | None:
        """(H, W, 3) float32 picture at the size of the depth map, or None."""
        if self.image is None:
            return None
        size = (self.camera.height, self.camera.width)
        image = self.image[None].float()
        if tuple(image.shape[-2:]) != size:
            image = torch.nn.functional.interpolate(
                image, size, mode="bilinear", antialias=True, align_corners=False
            )
        return image[0].permute(1, 2, 0).contiguous()

    def points(self, stride: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """World points (N, 3) float64 of the known pixels, with their rows and columns (N,).

        Args:
            stride: take every so many rows and columns.
        """
        depth = self.values()[::stride, ::stride]
        rows, cols = torch.nonzero(depth > 0, as_tuple=True)
        z = depth[rows, cols].double()
        rows, cols = rows * stride, cols * stride
        local = unproject(torch.stack((cols + 0.5, rows + 0.5), -1).double(), z, self.K)
        pose = self.cam_from_world
        return (local - pose[:3, 3]) @ pose[:3, :3], rows, cols
