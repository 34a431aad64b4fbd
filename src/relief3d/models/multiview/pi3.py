"""pi3 (Wang et al. 2025): points, confidence and poses of many views, whatever their order.

Parameter names are those of the released checkpoints. No view is special: all share the register tokens, so permuting
the views permutes the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from relief3d.core.tensor_memory import join_parts
from relief3d.geometry.projection import points_to_world
from relief3d.geometry.rotations import matrix_from_svd9d
from relief3d.models.multiview.aggregator import IMAGE_MEAN, IMAGE_STD
from relief3d.nn.attention import Attend, attend_fully
from relief3d.nn.blocks import Block, run_in_chunks
from relief3d.nn.rope import Rope2D, RopeTable
from relief3d.nn.vit import VisionTransformer, VitConfig

MAX_LOG_DEPTH = 15.0
"""Raw log depth is clamped here while training, because random weights overflow."""


@dataclass(frozen=True)
class Pi3Config:
    """Sizes of a pi3.

    Attributes:
        vit: encoder; its width is the decoder's.
        depth: decoder blocks, alternately within a view and across views.
        heads: of the decoder.
        registers: register tokens per view.
        head_dim: width of the head decoders.
        head_depth: their blocks.
        head_heads: their attention heads.
        camera_dim: width of the camera features.
        rope_base: of the rotary embedding.
    """

    vit: VitConfig = field(default_factory=lambda: VitConfig(mask_token=False))
    depth: int = 36
    heads: int = 16
    registers: int = 5
    head_dim: int = 1024
    head_depth: int = 5
    head_heads: int = 16
    camera_dim: int = 512
    rope_base: float = 100.0


class HeadDecoder(nn.Module):
    """Per-view transformer of a head: project, blocks with rotary embedding, project."""

    def __init__(self, dim_in: int, dim: int, depth: int, heads: int, dim_out: int) -> None:
        super().__init__()
        self.projects = nn.Linear(dim_in, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, eps=1e-6) for _ in range(depth))
        self.linear_out = nn.Linear(dim, dim_out)

    def forward(self, x: Tensor, rope: RopeTable) -> Tensor:
        """(M, T, dim_in) -> (M, T, dim_out)."""
        x = self.projects(x)
        for block in self.blocks:
            x = block(x, rope)
        return self.linear_out(x)


class PixelShuffleHead(nn.Module):
    """A linear map from a patch token to its pixels."""

    def __init__(self, dim: int, channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(dim, channels * patch**2)

    def forward(self, tokens: Tensor, rows: int, cols: int) -> Tensor:
        """(M, P, C) -> (M, rows * patch, cols * patch, channels)."""
        x = self.proj(tokens).transpose(1, 2).unflatten(2, (rows, cols))
        return nn.functional.pixel_shuffle(x, self.patch).movedim(1, -1)


class _ResidualMlp(nn.Module):
    """``x + relu(L3 relu(L2 relu(L1 x)))``; the names are those of the checkpoints."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.res_conv1, self.res_conv2, self.res_conv3 = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.res_conv3(self.res_conv2(self.res_conv1(x).relu()).relu()).relu()


class PoseHead(nn.Module):
    """Patch features of a view to its camera-to-world pose."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.res_conv = nn.ModuleList(_ResidualMlp(dim) for _ in range(2))
        self.more_mlps = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.fc_t = nn.Linear(dim, 3)
        self.fc_rot = nn.Linear(dim, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        """(M, P, C) -> (M, 4, 4); the nine rotation numbers become the nearest rotation after their rows are
        normalised.
        """
        x = tokens
        for part in self.res_conv:
            x = part(x)
        x = self.more_mlps(x.mean(1))
        precise = torch.promote_types(x.dtype, torch.float32)
        rows = nn.functional.normalize(self.fc_rot(x).to(precise).unflatten(-1, (3, 3)), dim=-1)
        rotation = matrix_from_svd9d(rows)
        bottom = rotation.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(x), 1, 4)
        return torch.cat([torch.cat([rotation, self.fc_t(x).to(precise)[..., None]], -1), bottom], 1)


@dataclass(frozen=True)
class Pi3Output:
    """What pi3 says.

    Attributes:
        local_points: (B, N, H, W, 3) in each camera's frame, one common scale.
        world_points: (B, N, H, W, 3) in the frame of the poses.
        confidence: (B, N, H, W) logits.
        world_from_cam: (B, N, 4, 4).
    """

    local_points: Tensor
    world_points: Tensor
    confidence: Tensor
    world_from_cam: Tensor


class AlternatingDecoder(nn.Module):
    """What pi3, Pi3X and the Reliev3R network share: encoder, registers, alternating blocks."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: Pi3Config) -> None:
        super().__init__()
        self.config = config
        dim = config.vit.dim
        self.encoder = VisionTransformer(config.vit)
        self.register_token = nn.Parameter(torch.randn(1, 1, config.registers, dim) * 1e-6)
        self.decoder = nn.ModuleList(
            Block(dim, config.heads, eps=1e-6, qk_norm=True, layer_scale=0.01) for _ in range(config.depth)
        )
        self.rope = Rope2D(dim // config.heads, config.rope_base)
        self.head_rope = Rope2D(config.head_dim // config.head_heads, config.rope_base)
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor(IMAGE_STD).view(1, 3, 1, 1))

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches."""
        patch = self.config.vit.patch
        return images.shape[-2] // patch, images.shape[-1] // patch

    def embed(self, images: Tensor, chunk: int | None) -> Tensor:
        """Patch tokens (M, P, C) of pictures (M, 3, H, W) in [0, 1]."""
        step = len(images) if chunk is None else max(1, chunk)
        parts = (
            (self.encoder((images[i : i + step] - self.image_mean) / self.image_std),)
            for i in range(0, len(images), step)
        )
        return join_parts(parts, len(images))[0]

    def decode(
        self,
        patches: Tensor,
        views: int,
        grid: tuple[int, int],
        *,
        keep: Collection[int] | None = None,
        chunk: int | None = None,
        attend: Attend = attend_fully,
    ) -> Mapping[int, Tensor]:
        """Run the alternating blocks.

        Args:
            patches: (B * N, P, C) tokens of the encoder.
            views: N.
            grid: rows and columns of patches.
            keep: blocks whose output is wanted; the last two when None.
            chunk: views per pass where views are independent.
            attend: inner product of the attention across views.

        Returns:
            By block, (B * N, T, C).
        """
        depth = self.config.depth
        wanted = {depth - 2, depth - 1} if keep is None else set(keep)
        registers = self.register_token[0].to(patches.dtype).expand(len(patches), -1, -1)
        x = torch.cat([registers, patches], 1)
        rope = self.rope(*grid, self.config.registers, x.device, self.register_token.dtype)
        out: dict[int, Tensor] = {}
        for i, block in enumerate(self.decoder):
            x = self._one_block(i, block, x, views, rope, chunk, attend)
            if i in wanted:
                out[i] = x
        return out

    @staticmethod
    def _one_block(
        index: int,
        block: nn.Module,
        x: Tensor,
        views: int,
        rope: RopeTable,
        chunk: int | None,
        attend: Attend,
    ) -> Tensor:
        """Even blocks mix (B * N, T, C) tokens within the views, odd ones across them."""
        if index % 2:
            x = x.unflatten(0, (-1, views)).flatten(1, 2)
            return block(x, rope, attend).unflatten(1, (views, -1)).flatten(0, 1)
        return run_in_chunks(block, x, rope, chunk)

    def fused(self, images: Tensor, chunk: int | None, attend: Attend) -> Tensor:
        """(B * N, T, 2 C): the last block within the views beside the last across them."""
        patches = self.embed(images.flatten(0, 1), chunk)
        layers = self.decode(patches, images.shape[1], self.grid(images), chunk=chunk, attend=attend)
        depth = self.config.depth
        return torch.cat([layers[depth - 2], layers[depth - 1]], -1)

    def _head_decoder(self, dim_out: int) -> HeadDecoder:
        c = self.config
        return HeadDecoder(2 * c.vit.dim, c.head_dim, c.head_depth, c.head_heads, dim_out)


class Pi3(AlternatingDecoder):
    """The network; see the module's description."""

    def __init__(self, config: Pi3Config | None = None) -> None:
        config = config or Pi3Config()
        super().__init__(config)
        patch = config.vit.patch
        self.point_decoder = self._head_decoder(config.head_dim)
        self.conf_decoder = self._head_decoder(config.head_dim)
        self.camera_decoder = self._head_decoder(config.camera_dim)
        self.point_head = PixelShuffleHead(config.head_dim, 3, patch)
        self.conf_head = PixelShuffleHead(config.head_dim, 1, patch)
        self.camera_head = PoseHead(config.camera_dim)

    def forward(self, images: Tensor, *, chunk: int | None = 8, attend: Attend = attend_fully) -> Pi3Output:
        """Reconstruct.

        Args:
            images: (B, N, 3, H, W) in [0, 1]; sides are multiples of the patch.
            chunk: views at a time wherever views are independent; only memory depends on it.
            attend: inner product of the attention across views.
        """
        rows, cols = self.grid(images)
        hidden = self.fused(images, chunk, attend)
        step = len(hidden) if chunk is None else max(1, chunk)
        parts = (self._heads(hidden[i : i + step], rows, cols) for i in range(0, len(hidden), step))
        joined = join_parts(parts, len(hidden))
        local, confidence, poses = (p.unflatten(0, images.shape[:2]) for p in joined)
        return Pi3Output(local, points_to_world(local, poses), confidence, poses)

    def _heads(self, hidden: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor, Tensor]:
        """Local points, confidence and poses of some views."""
        registers = self.config.registers
        rope = self.head_rope(rows, cols, registers, hidden.device, self.register_token.dtype)
        points, confidence, camera = (
            decoder(hidden, rope)[:, registers:]
            for decoder in (self.point_decoder, self.conf_decoder, self.camera_decoder)
        )
        # The last projections were trained, and are run, in float32 without autocast.
        with torch.autocast(hidden.device.type, enabled=False):
            dtype = self.register_token.dtype
            raw = self.point_head(points.to(dtype), rows, cols)
            log_z = raw[..., 2:].clamp(max=MAX_LOG_DEPTH) if self.training else raw[..., 2:]
            z = log_z.exp()
            local = torch.cat([raw[..., :2] * z, z], -1)
            logits = self.conf_head(confidence.to(dtype), rows, cols)[..., 0]
            poses = self.camera_head(camera.to(dtype))
        return local, logits, poses
