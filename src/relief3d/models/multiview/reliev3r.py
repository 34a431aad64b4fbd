"""The Reliev3R network (section 4 of its paper): pi3 that predicts depth, confidence and pose per view.

The intrinsics are given; with ``fov_head`` they are predicted, for pictures whose camera is unknown. Sizes follow the
published total of 450 M parameters: a ViT-B/14 encoder, pi3's "base" decoder and unchanged head decoders (455.5 M).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from relief3d.core.tensor_memory import join_parts
from relief3d.geometry.projection import depth_to_points, points_to_world
from relief3d.models.multiview.pi3 import (
    MAX_LOG_DEPTH,
    AlternatingDecoder,
    Pi3Config,
    PixelShuffleHead,
    PoseHead,
)
from relief3d.nn.attention import Attend, attend_fully
from relief3d.nn.vit import VitConfig

FOV_RANGE_DEG = (5.0, 170.0)


def _base() -> Pi3Config:
    return Pi3Config(vit=VitConfig(768, 12, 12, mask_token=False), depth=24, heads=12)


@dataclass(frozen=True)
class Reliev3rConfig:
    """Sizes of the network.

    Attributes:
        decoder: encoder, alternating blocks and heads as in pi3.
        fov_head: predict the field of view of every view.
    """

    decoder: Pi3Config = field(default_factory=_base)
    fov_head: bool = False


@dataclass(frozen=True)
class Reliev3rOutput:
    """What the network says.

    Attributes:
        depth: (B, N, H, W) z-depth, positive, one common scale.
        confidence: (B, N, H, W) in (0, 2); 1 at raw 0.
        world_from_cam: (B, N, 4, 4).
        K: (B, N, 3, 3) pixels, given or from the predicted field of view.
        local_points: (B, N, H, W, 3) in each camera's frame.
        world_points: (B, N, H, W, 3) in the frame of the poses.
        fov: (B, N, 2) predicted vertical and horizontal field of view in radians, or None.
    """

    depth: Tensor
    confidence: Tensor
    world_from_cam: Tensor
    K: Tensor
    local_points: Tensor
    world_points: Tensor
    fov: Tensor | None = None


def intrinsics_of_fov(fov: Tensor, size: tuple[int, int]) -> Tensor:
    """(*, 3, 3) pinhole with the principal point in the middle from (*, 2) vertical and horizontal angles."""
    height, width = size
    fy, fx = height / 2 / torch.tan(fov[..., 0] / 2), width / 2 / torch.tan(fov[..., 1] / 2)
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = [fx, zero, one * (width / 2), zero, fy, one * (height / 2), zero, zero, one]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


class Reliev3rNet(AlternatingDecoder):
    """The network; see the module's description."""

    def __init__(self, config: Reliev3rConfig | None = None) -> None:
        settings = config or Reliev3rConfig()
        super().__init__(settings.decoder)
        self.settings = settings
        c, patch = settings.decoder, settings.decoder.vit.patch
        self.depth_decoder = self._head_decoder(c.head_dim)
        self.conf_decoder = self._head_decoder(c.head_dim)
        self.camera_decoder = self._head_decoder(c.camera_dim)
        self.depth_head = PixelShuffleHead(c.head_dim, 1, patch)
        self.conf_head = PixelShuffleHead(c.head_dim, 1, patch)
        self.camera_head = PoseHead(c.camera_dim)
        if settings.fov_head:
            dim = c.camera_dim
            self.fov_head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 2))

    def forward(
        self,
        images: Tensor,
        K: Tensor | None = None,
        *,
        chunk: int | None = 8,
        attend: Attend = attend_fully,
    ) -> Reliev3rOutput:
        """Reconstruct.

        Args:
            images: (B, N, 3, H, W) in [0, 1]; sides are multiples of the patch.
            K: (B, N, 3, 3) pixels of these pictures; None needs the field-of-view head.
            chunk: views at a time wherever views are independent; only memory depends on it.
            attend: inner product of the attention across views.

        Raises:
            ValueError: no intrinsics and no head that predicts them.
        """
        if K is None and not self.settings.fov_head:
            raise ValueError("this network needs the intrinsics of every view")
        rows, cols = self.grid(images)
        size = (int(images.shape[-2]), int(images.shape[-1]))
        hidden = self.fused(images, chunk, attend)
        step = len(hidden) if chunk is None else max(1, chunk)
        parts = (self._heads(hidden[i : i + step], rows, cols) for i in range(0, len(hidden), step))
        joined = join_parts(parts, len(hidden))
        depth, confidence, poses, fov = (p.unflatten(0, images.shape[:2]) for p in joined)
        predicted = fov if self.settings.fov_head else None
        intrinsics = intrinsics_of_fov(fov, size) if K is None else K.to(depth.dtype)
        local = depth_to_points(depth, intrinsics)
        world = points_to_world(local, poses)
        return Reliev3rOutput(depth, confidence, poses, intrinsics, local, world, predicted)

    def _heads(self, hidden: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        registers = self.config.registers
        rope = self.head_rope(rows, cols, registers, hidden.device, self.register_token.dtype)
        depth, confidence, camera = (
            decoder(hidden, rope)[:, registers:]
            for decoder in (self.depth_decoder, self.conf_decoder, self.camera_decoder)
        )
        with torch.autocast(hidden.device.type, enabled=False):
            dtype = self.register_token.dtype
            log_depth = self.depth_head(depth.to(dtype), rows, cols)[..., 0]
            log_depth = log_depth.clamp(max=MAX_LOG_DEPTH) if self.training else log_depth
            weight = 2 * self.conf_head(confidence.to(dtype), rows, cols)[..., 0].sigmoid()
            camera = camera.to(dtype)
            poses = self.camera_head(camera)
            fov = self._fov(camera) if self.settings.fov_head else poses.new_zeros(len(poses), 2)
        return log_depth.exp(), weight, poses, fov

    def _fov(self, camera: Tensor) -> Tensor:
        low, high = (math.radians(v) for v in FOV_RANGE_DEG)
        return (math.pi * self.fov_head(camera.mean(1)).sigmoid()).clamp(low, high)
