"""Vision transformer in the layout of DINOv3 (Simeoni et al. 2025): rotary positions in [-1, 1], storage tokens.

Source: MetricAnything specification 5.1. Rotary coordinates are normalised by the grid, so that a network runs on grids
of any size without a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relief3d.nn.blocks import Block
from relief3d.nn.rope import RopeTable
from relief3d.nn.vit import PatchEmbed


@dataclass(frozen=True)
class DinoV3Config:
    """Sizes of the transformer; the defaults are ViT-H+/16.

    Attributes:
        dim: channels.
        depth: blocks.
        heads: of each block; a head's width must be a multiple of 4.
        patch: side of a patch in pixels.
        storage: storage (register) tokens after the class token.
        ratio: of :class:`~relief3d.nn.blocks.SwiGlu`.
        rope_base: of the rotary periods.
        rope_rescale: in training, all coordinates of a pass are multiplied by one factor drawn log-uniformly from
            [1 / rope_rescale, rope_rescale]; None for never.
        layer_scale: initial factor of the residual branches.
    """

    dim: int = 1280
    depth: int = 32
    heads: int = 20
    patch: int = 16
    storage: int = 4
    ratio: float = 6.0
    rope_base: float = 100.0
    rope_rescale: float | None = 2.0
    layer_scale: float = 1e-5


class CoordinateRope(nn.Module):
    """Rotary tables over a grid whose cell centres have coordinates in [-1, 1] along both axes; key ``periods``.

    Half of the angles turn with the row, half with the column, and the whole is repeated once (rotate-half over all
    channels of a head). Always in float32 or better: the periods keep that type when the network changes to a shorter
    one.
    """

    periods: Tensor

    def __init__(self, head_dim: int, base: float, rescale: float | None) -> None:
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"2-D rotary embedding needs a head width divisible by 4, got {head_dim}")
        self.rescale = rescale
        self.register_buffer("periods", base ** (torch.arange(head_dim // 4) * 4 / head_dim))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> CoordinateRope:
        kept = self.periods
        super()._apply(fn, recurse)
        if self.periods.dtype in (torch.bfloat16, torch.float16):
            self.periods = kept.to(self.periods.device)
        return self

    def forward(self, rows: int, cols: int, prefix: int) -> RopeTable:
        """Tables of ``prefix`` tokens that are not rotated and then rows x cols patches, row by row.

        In training mode with a rescaling, one factor is drawn from torch's default generator.
        """
        periods = self.periods.float() if self.periods.itemsize < 4 else self.periods
        v, u = ((2 * torch.arange(n, device=periods.device) + 1).to(periods) / n - 1 for n in (rows, cols))
        if self.training and self.rescale is not None:
            exponent = 2 * torch.rand((), device=periods.device, dtype=periods.dtype) - 1
            factor = self.rescale**exponent
            v, u = v * factor, u * factor
        angles = torch.cat(
            [
                (2 * math.pi * v[:, None] / periods)[:, None].expand(rows, cols, -1),
                (2 * math.pi * u[:, None] / periods)[None].expand(rows, cols, -1),
            ],
            -1,
        ).flatten(0, 1)
        angles = nn.functional.pad(angles.repeat(1, 2), (0, 0, prefix, 0))
        return RopeTable(angles.cos(), angles.sin(), 1)


class DinoV3(nn.Module):
    """The transformer, up to (not including) what is done with its blocks' outputs.

    State keys follow DINOv3: ``cls_token, storage_tokens, mask_token, patch_embed.proj, rope_embed.periods, blocks.N
    .{norm1, attn.{qkv, proj}, ls1, norm2, mlp.{w1, w2, w3}, ls2}, norm``; ``attn.qkv`` has a ``bias_mask``.

    Attributes:
        prefix: tokens before the patches.
    """

    def __init__(self, config: DinoV3Config | None = None) -> None:
        super().__init__()
        self.config = config = config or DinoV3Config()
        dim = config.dim
        self.prefix = 1 + config.storage
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.storage_tokens = nn.Parameter(0.02 * torch.randn(1, config.storage, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.patch_embed = PatchEmbed(3, dim, config.patch)
        self.rope_embed = CoordinateRope(dim // config.heads, config.rope_base, config.rope_rescale)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                config.heads,
                mlp_ratio=config.ratio,
                layer_scale=config.layer_scale,
                key_bias=False,
                gated=True,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def tokens(self, images: Tensor) -> Tensor:
        """(M, prefix + P, C) before the first block: class token, storage tokens, patches row by row.

        Args:
            images: (M, 3, H, W) normalised; H and W multiples of the patch side.

        Raises:
            ValueError: the pictures do not divide into patches.
        """
        height, width = images.shape[-2:]
        patch = self.config.patch
        if height % patch or width % patch:
            raise ValueError(f"pictures of {width} x {height} do not divide into patches of {patch} pixels")
        x = self.patch_embed(images)
        # The unused mask token takes part with factor 0, so that every parameter has a gradient.
        first = self.cls_token + 0 * self.mask_token
        prefix = torch.cat([first, self.storage_tokens], 1).to(x.dtype)
        return torch.cat([prefix.expand(len(x), -1, -1), x], 1)

    def rope(self, rows: int, cols: int) -> RopeTable:
        """Tables of all tokens of a grid."""
        table: RopeTable = self.rope_embed(rows, cols, self.prefix)
        return table

    def forward(self, images: Tensor) -> Tensor:
        """Normalised class token and patches (M, 1 + P, C); storage tokens are left out. See :meth:`tokens`."""
        x = self.tokens(images)
        rope = self.rope(*(side // self.config.patch for side in images.shape[-2:]))
        for block in self.blocks:
            x = block(x, rope)
        x = self.norm(x)
        return torch.cat([x[:, :1], x[:, self.prefix :]], 1)
