"""VGGT's trunk: a vision transformer per view, then blocks that attend within a view and across all views in turn."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from relief3d.core.tensor_memory import join_parts
from relief3d.nn.attention import Attend, attend_fully
from relief3d.nn.blocks import Block, run_in_chunks
from relief3d.nn.rope import Rope2D
from relief3d.nn.vit import VisionTransformer, VitConfig

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class AggregatorConfig:
    """Sizes of the trunk.

    Attributes:
        vit: encoder of single views; its width is the trunk's.
        depth: number of pairs of blocks (within a view, across views).
        heads: of these blocks.
        registers: register tokens of the trunk (not those of the encoder).
        rope_base: of the rotary embedding.
    """

    vit: VitConfig = field(default_factory=VitConfig)
    depth: int = 24
    heads: int = 16
    registers: int = 4
    rope_base: float = 100.0


class Aggregator(nn.Module):
    """Tokens of all views after chosen pairs of blocks.

    The first view of a sequence has special tokens of its own, so the result depends on which view comes first.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: AggregatorConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.vit.dim
        self.patch_embed = VisionTransformer(config.vit)
        self.camera_token = nn.Parameter(torch.randn(1, 2, 1, dim) * 1e-6)
        self.register_token = nn.Parameter(torch.randn(1, 2, config.registers, dim) * 1e-6)

        def stack() -> nn.ModuleList:
            return nn.ModuleList(
                Block(dim, config.heads, eps=1e-5, qk_norm=True, layer_scale=0.01)
                for _ in range(config.depth)
            )

        self.frame_blocks, self.global_blocks = stack(), stack()
        self.rope = Rope2D(dim // config.heads, config.rope_base)
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGE_STD).view(1, 3, 1, 1), persistent=False)

    @property
    def specials(self) -> int:
        """Tokens before the patches of every view: camera and registers."""
        return 1 + self.config.registers

    def embed(self, images: Tensor, chunk: int | None = None) -> Tensor:
        """Patch tokens (M, P, C) of pictures (M, 3, H, W) in [0, 1], ``chunk`` views at a time."""
        step = len(images) if chunk is None else max(1, chunk)
        parts = (
            (self.patch_embed((images[i : i + step] - self.image_mean) / self.image_std),)
            for i in range(0, len(images), step)
        )
        return join_parts(parts, len(images))[0]

    def forward(
        self,
        images: Tensor,
        keep: Collection[int] | None = None,
        *,
        chunk: int | None = None,
        attend: Attend = attend_fully,
    ) -> Mapping[int, Tensor]:
        """Run the trunk.

        Args:
            images: (B, S, 3, H, W) in [0, 1].
            keep: pairs of blocks whose output is wanted; None for all. Only those are stored.
            chunk: views per pass of the encoder and of the blocks within a view; only memory depends on it.
            attend: inner product of the attention across views.

        Returns:
            By pair, (B, S, T, 2 C): output of the block within the view, then of the block across views;
            T = specials + P.
        """
        batch, views, _, height, width = images.shape
        patch = self.config.vit.patch
        x = self.embed(images.flatten(0, 1), chunk)
        x = torch.cat([self._special_tokens(batch, views).to(x.dtype), x], 1)
        rope = self.rope(height // patch, width // patch, self.specials, x.device, self.camera_token.dtype)
        wanted = range(self.config.depth) if keep is None else keep
        last = max(wanted)
        out: dict[int, Tensor] = {}
        for i, (within, across) in enumerate(zip(self.frame_blocks, self.global_blocks)):
            if i > last:
                break
            own = run_in_chunks(within, x, rope, chunk)
            x = across(own.unflatten(0, (batch, views)).flatten(1, 2), rope, attend)
            x = x.unflatten(1, (views, -1)).flatten(0, 1)
            if i in wanted:
                out[i] = torch.cat([own, x], -1).unflatten(0, (batch, views))
        return out

    def _special_tokens(self, batch: int, views: int) -> Tensor:
        """(B * S, specials, C): index 0 of the parameters for first views, index 1 for the others."""
        pair = torch.cat([self.camera_token, self.register_token], 2)[0]
        index = torch.ones(views, dtype=torch.long, device=pair.device)
        index[0] = 0
        return pair[index].repeat(batch, 1, 1)
