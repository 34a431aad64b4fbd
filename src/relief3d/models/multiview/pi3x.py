"""Pi3X: pi3 that also takes depth, rays and poses of some views, with a metric scale and smoother maps.

Layout-exact to the released checkpoint (names, shapes and count of the specification); there are no reference values to
compare with, so what the text leaves open is our reading: the block that injects poses has no skip connections inside,
and the metric token attends with the position of the first register.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from relief3d.models.multiview.pi3 import AlternatingDecoder, Pi3Config, PoseHead
from relief3d.nn.attention import CrossAttention
from relief3d.nn.blocks import Block, Mlp
from relief3d.nn.conv_head import ConvHead
from relief3d.nn.rope import RopeTable
from relief3d.nn.vit import PatchEmbed, VisionTransformer, VitConfig

STATIC_DISTANCE = 0.02
"""Sequences whose cameras are all closer than this to the first keep their translations' unit."""


@dataclass(frozen=True)
class Pi3XConfig:
    """Sizes of a Pi3X.

    Attributes:
        decoder: encoder, alternating blocks and head decoders as in pi3.
        inject_after: decoder blocks after which poses are injected.
        widths: channels of the convolutional heads.
        metric_dim: width of the metric head.
        metric_heads: its attention heads.
        metric_depth: its blocks.
        multimodal: whether depth, rays and poses can be given.
    """

    decoder: Pi3Config = field(default_factory=Pi3Config)
    inject_after: tuple[int, ...] = (1, 9, 17, 25, 33)
    widths: tuple[int, int, int] = (256, 128, 64)
    metric_dim: int = 512
    metric_heads: int = 8
    metric_depth: int = 5
    multimodal: bool = True


@dataclass(frozen=True)
class Conditions:
    """What is known about the views; flags say for which views.

    Attributes:
        depth: (B, N, H, W) z-depth, 0 where unknown.
        has_depth: (B, N) bool.
        K: (B, N, 3, 3) pixels.
        has_rays: (B, N) bool.
        world_from_cam: (B, N, 4, 4), any common frame, in the unit of ``depth``.
        has_pose: (B, N) bool.
    """

    depth: Tensor | None = None
    has_depth: Tensor | None = None
    K: Tensor | None = None
    has_rays: Tensor | None = None
    world_from_cam: Tensor | None = None
    has_pose: Tensor | None = None


@dataclass(frozen=True)
class Pi3XOutput:
    """What Pi3X says; lengths are metres as far as ``metric`` is right.

    Attributes:
        local_points: (B, N, H, W, 3) in each camera's frame.
        world_points: (B, N, H, W, 3).
        rays: (B, N, H, W, 3) with z = 1.
        confidence: (B, N, H, W) logits.
        world_from_cam: (B, N, 4, 4).
        metric: (B,) metres per unit that have been multiplied in.
    """

    local_points: Tensor
    world_points: Tensor
    rays: Tensor
    confidence: Tensor
    world_from_cam: Tensor
    metric: Tensor


class MetricBlock(nn.Module):
    """Cross-attention and MLP; keys ``norm2, norm_y, norm3, cross_attn, mlp``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.norm_y = nn.LayerNorm(dim, eps=1e-6)
        self.norm3 = nn.LayerNorm(dim, eps=1e-6)
        self.cross_attn = CrossAttention(dim, heads)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, context: Tensor, rope: RopeTable, context_rope: RopeTable) -> Tensor:
        """(B, 1, C) with context (B, T, C)."""
        x = x + self.cross_attn(self.norm2(x), self.norm_y(context), rope, context_rope)
        return x + self.mlp(self.norm3(x))


class MetricDecoder(nn.Module):
    """A learned token reads all tokens of all views."""

    def __init__(self, dim_in: int, dim: int, heads: int, depth: int) -> None:
        super().__init__()
        self.projects_x = nn.Linear(dim_in, dim)
        self.projects_y = nn.Linear(dim_in, dim)
        self.blocks = nn.ModuleList(MetricBlock(dim, heads) for _ in range(depth))
        self.linear_out = nn.Linear(dim, dim)

    def forward(self, token: Tensor, context: Tensor, rope: RopeTable) -> Tensor:
        """(B, 1, dim_in), (B, N * T, dim_in) -> (B, dim); ``rope`` is that of one view."""
        x, y = self.projects_x(token), self.projects_y(context)
        first = RopeTable(rope.cos[:1], rope.sin[:1])
        for block in self.blocks:
            x = block(x, y, first, rope)
        return self.linear_out(x)[:, 0]


class Pi3X(AlternatingDecoder):
    """The network; see the module's description."""

    def __init__(self, config: Pi3XConfig | None = None) -> None:
        settings = config or Pi3XConfig()
        super().__init__(settings.decoder)
        self.settings = settings
        c, dim = settings.decoder, settings.decoder.vit.dim
        if settings.multimodal:
            v = c.vit
            self.depth_encoder = VisionTransformer(
                VitConfig(v.dim, v.depth, v.heads, v.patch, v.registers, v.img_size, 2, False)
            )
            self.depth_emb = nn.Parameter(torch.zeros(1, 1, dim))
            self.ray_embed = PatchEmbed(2, dim, v.patch)
            nn.init.zeros_(self.ray_embed.proj.weight)
            assert self.ray_embed.proj.bias is not None
            nn.init.zeros_(self.ray_embed.proj.bias)
            self.pose_inject_blk = nn.ModuleList(
                Block(dim, c.heads, eps=1e-6, qk_norm=True, layer_scale=0.01) for _ in settings.inject_after
            )
        self.point_decoder = self._head_decoder(c.head_dim)
        self.conf_decoder = self._head_decoder(c.head_dim)
        self.camera_decoder = self._head_decoder(c.camera_dim)
        self.point_head = ConvHead(c.head_dim, (2, 1), settings.widths)
        self.conf_head = ConvHead(c.head_dim, (1,), settings.widths)
        self.camera_head = PoseHead(c.camera_dim)
        self.metric_token = nn.Parameter(torch.randn(1, 1, 2 * dim) * 1e-6)
        self.metric_decoder = MetricDecoder(
            2 * dim, settings.metric_dim, settings.metric_heads, settings.metric_depth
        )
        self.metric_head = nn.Linear(settings.metric_dim, 1)
