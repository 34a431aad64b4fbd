"""Vision transformer in the layout of DINOv2, with registers or without (Oquab et al. 2023, Darcet et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relief3d.nn.blocks import Block


@dataclass(frozen=True)
class VitConfig:
    """Sizes of a vision transformer.

    Attributes:
        dim: channels.
        depth: blocks.
        heads: of each block.
        patch: side of a patch in pixels.
        registers: register tokens; 0 leaves them out of the state as well.
        img_size: side of the square pictures that the stored position table belongs to.
        channels: of the input.
        mask_token: whether the (unused) mask token is part of the state.
        resize_offset: how the position table is resized. None: antialiased, to the size of the grid. A number:
            without antialias, by (cells + offset) / (cells of the table), as DINOv2 without registers does with 0.1.
    """

    dim: int = 1024
    depth: int = 24
    heads: int = 16
    patch: int = 14
    registers: int = 4
    img_size: int = 518
    channels: int = 3
    mask_token: bool = True
    resize_offset: float | None = None

    @property
    def grid(self) -> int:
        """Patches per side of the stored position table."""
        return self.img_size // self.patch


class PatchEmbed(nn.Module):
    """A convolution over whole patches; key ``proj``."""

    def __init__(self, channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        """(M, c, H, W) -> (M, P, C), row by row."""
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Encoder: class token, registers, patches; learned absolute positions, interpolated to any grid.

    State keys follow DINOv2: ``cls_token, pos_embed, register_tokens, mask_token, patch_embed.proj, blocks.N, norm``.
    """

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, dim))
        if config.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, dim))
        if config.mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.patch_embed = PatchEmbed(config.channels, dim, config.patch)
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, eps=1e-6, layer_scale=1.0) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def position_embedding(self, rows: int, cols: int) -> Tensor:
        """(1, 1 + rows * cols, C): the stored table, or its patch part resized (bicubic, in float32)."""
        grid = self.config.grid
        if (rows, cols) == (grid, grid):
            return self.pos_embed
        table = self.pos_embed.float()
        patches = table[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
        offset = self.config.resize_offset
        if offset is None:
            patches = nn.functional.interpolate(
                patches, size=(rows, cols), mode="bicubic", antialias=True, align_corners=False
            )
        else:
            factors = ((rows + offset) / grid, (cols + offset) / grid)
            patches = nn.functional.interpolate(patches, scale_factor=factors, mode="bicubic")
        patches = patches.permute(0, 2, 3, 1).flatten(1, 2)
        return torch.cat([table[:, :1], patches], 1).to(self.pos_embed.dtype)

    def tokens(self, images: Tensor) -> Tensor:
        """(M, 1 + registers + P, C) before the first block: class token, registers, patches row by row.

        Args:
            images: (M, c, H, W) normalised; H and W multiples of the patch side.

        Raises:
            ValueError: the pictures do not divide into patches.
        """
        height, width = images.shape[-2:]
        patch = self.config.patch
        if height % patch or width % patch:
            raise ValueError(f"pictures of {width} x {height} do not divide into patches of {patch} pixels")
        x = self.patch_embed(images)
        position = self.position_embedding(height // patch, width // patch)
        x = x + position[:, 1:].to(x.dtype)
        first = [(self.cls_token + position[:, :1]).to(x.dtype).expand(len(x), -1, -1)]
        if self.config.registers:
            first.append(self.register_tokens.to(x.dtype).expand(len(x), -1, -1))
        return torch.cat([*first, x], 1)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised patch tokens (M, P, C), row by row; see :meth:`tokens`. Class and registers are left out."""
        x = self.tokens(images)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1 + self.config.registers :]

    def layers(self, images: Tensor, wanted: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Normalised patch tokens (M, P, C) and class token (M, C) after each of the ``wanted`` blocks, in their order.

        Raises:
            ValueError: the pictures do not divide into patches, or there is no such block.
        """
        if not all(0 <= i < len(self.blocks) for i in wanted):
            raise ValueError(f"there are blocks 0 to {len(self.blocks) - 1}, not all of {list(wanted)}")
        x = self.tokens(images)
        out: dict[int, tuple[Tensor, Tensor]] = {}
        for i, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = block(x)
            if i in wanted:
                y = self.norm(x)
                out[i] = y[:, 1 + self.config.registers :], y[:, 0]
        return [out[i] for i in wanted]
