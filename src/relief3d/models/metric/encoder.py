"""One transformer over all tiles of a pyramid, and its maps brought to the decoder's sizes (specification 3.3, 5.3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from relief3d.core.tensor_memory import join_parts
from relief3d.models.metric.tiles import Levels, merge_fine, merge_middle, resize, split_levels
from relief3d.nn.dinov3 import DinoV3, DinoV3Config
from relief3d.nn.rope import RopeTable
from relief3d.nn.vit import VisionTransformer, VitConfig

TileVit = VisionTransformer | DinoV3
TileVitConfig = VitConfig | DinoV3Config
State = list[Tensor]
"""What an injection carries from block to block."""


class Injection(Protocol):
    """How a condition enters the transformer itself (specification 4.5)."""

    def begin(
        self, vit: TileVit, x: Tensor, condition: Tensor, rope: RopeTable | None
    ) -> tuple[Tensor, State]:
        """Tokens before the first block, from (M, 3, tile, tile) tiles of the condition; and what blocks need later."""
        ...

    def run(self, index: int, block: nn.Module, x: Tensor, rope: RopeTable | None, state: State) -> Tensor:
        """One block."""
        ...


def make_vit(config: TileVitConfig) -> TileVit:
    """The transformer of a configuration."""
    return DinoV3(config) if isinstance(config, DinoV3Config) else VisionTransformer(config)


def prefix_of(vit: TileVit) -> int:
    """Tokens before the patches."""
    return vit.prefix if isinstance(vit, DinoV3) else 1 + vit.config.registers


def encode_tiles(
    vit: TileVit,
    tiles: Tensor,
    keep: Sequence[int] = (),
    kept: int | None = None,
    injection: Injection | None = None,
    condition: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Maps (M, C, T, T) of patch tokens after the final norm, then those of the blocks in ``keep`` before any norm.

    Args:
        vit: the transformer.
        tiles: (M, 3, tile, tile) normalised.
        keep: blocks whose own output is wanted.
        kept: for how many of the first tiles it is wanted; None for all.
        injection: how the condition enters.
        condition: (M, 3, tile, tile), tiles of it.
    """
    cells, prefix = tiles.shape[-1] // vit.config.patch, prefix_of(vit)
    x = vit.tokens(tiles)
    rope = vit.rope(cells, cells) if isinstance(vit, DinoV3) else None
    state: State = []
    if injection is not None and condition is not None:
        x, state = injection.begin(vit, x, condition, rope)
    else:
        injection = None
    found: dict[int, Tensor] = {}
    for i, block in enumerate(vit.blocks):
        x = block(x, rope) if injection is None else injection.run(i, block, x, rope, state)
        if i in keep:
            found[i] = _as_map(x[:kept, prefix:], cells)
    return _as_map(vit.norm(x)[:, prefix:], cells), *(found[i] for i in keep)


def _as_map(tokens: Tensor, cells: int) -> Tensor:
    """(M, T * T, C) to (M, C, T, T), with memory of its own so that the other tokens can go."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, cells, cells)


@dataclass(frozen=True)
class Upsampling:
    """From tokens to a map: a projection to ``inner`` channels, then so many doublings, all with ``outer`` channels."""

    inner: int
    doublings: int
    outer: int

    def module(self, dim: int) -> nn.Sequential:
        """Keys 0 (projection), 1, 2 ... (doublings), all without bias."""
        layers: list[nn.Module] = [nn.Conv2d(dim, self.inner, 1, bias=False)]
        for i in range(self.doublings):
            width = self.outer if i else self.inner
            layers.append(nn.ConvTranspose2d(width, self.outer, 2, 2, bias=False))
        return nn.Sequential(*layers)


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of a pyramid encoder.

    Attributes:
        vit: the transformer over tiles.
        hooks: blocks whose outputs for fine tiles become the first encodings.
        latents: how each of them is brought to its size.
        fine, middle, coarse: likewise for the final tokens of the three levels.
        image_encoder: a second transformer for the coarse level, as Depth Pro has; otherwise its tile is shared.
    """

    vit: TileVitConfig
    hooks: tuple[int, ...]
    latents: tuple[Upsampling, ...]
    fine: Upsampling
    middle: Upsampling
    coarse: Upsampling
    image_encoder: bool = False


class PyramidEncoder(nn.Module):
    """Encodings of a picture: one per hook, then fine, middle and coarse.

    State keys: ``patch_encoder, image_encoder, upsample_latent0.., upsample0, upsample1, upsample2, upsample_lowres,
    fuse_lowres``.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config, dim, out = config, config.vit.dim, config.coarse.outer
        if len(config.hooks) != len(config.latents) or not all(
            0 <= i < config.vit.depth for i in config.hooks
        ):
            raise ValueError(
                f"hooks {config.hooks} do not fit {config.vit.depth} blocks and {config.latents}"
            )
        self.patch_encoder = make_vit(config.vit)
        if config.image_encoder:
            self.image_encoder = make_vit(config.vit)
        for i, latent in enumerate(config.latents):
            self.add_module(f"upsample_latent{i}", latent.module(dim))
        self.upsample0 = config.fine.module(dim)
        self.upsample1 = config.middle.module(dim)
        self.upsample2 = config.coarse.module(dim)
        self.upsample_lowres = nn.ConvTranspose2d(dim, out, 2, 2)
        self.fuse_lowres = nn.Conv2d(2 * out, out, 1)

    def forward(
        self,
        images: Tensor,
        tile: int,
        chunk: int | None = None,
        injection: Injection | None = None,
        condition: Tensor | None = None,
    ) -> list[Tensor]:
        """Encode normalised square pictures.

        Args:
            images: (B, 3, S, S), S as :func:`~relief3d.models.metric.tiles.split_levels` takes it.
            tile: side of a tile in pixels.
            chunk: tiles at a time; only memory depends on it. None takes all in one pass.
            injection: how a condition enters the transformer.
            condition: (B, 3, S, S).

        Returns:
            (B, C_i, s_i, s_i) per hook, then fine, middle and coarse.
        """
        count = len(images)
        levels = split_levels(images, tile)
        guides = None if condition is None or injection is None else split_levels(condition, tile)
        final, hooked = self._tokens(levels, chunk, injection, guides)
        fine, middle = levels.sides[0] ** 2 * count, levels.sides[1] ** 2 * count
        out: list[Tensor] = []
        while hooked:
            merged = merge_fine(hooked.pop(0), levels.sides[0])
            out.append(self.get_submodule(f"upsample_latent{len(out)}")(merged))
        out.append(self.upsample0(merge_fine(final[:fine], levels.sides[0])))
        out.append(self.upsample1(merge_middle(final[fine : fine + middle], levels.sides[1])))
        coarse = final[fine + middle :]
        whole = coarse
        if self.config.image_encoder:
            (whole,) = encode_tiles(self.image_encoder, levels.coarse)
        low = self.fuse_lowres(torch.cat([self.upsample2(coarse), self.upsample_lowres(whole)], 1))
        # With more tiles than published, the levels no longer are powers of two apart.
        out.append(resize(low, images.shape[-1] // 2 // self.config.vit.patch))
        return out

    def _tokens(
        self, levels: Levels, chunk: int | None, injection: Injection | None, guides: Levels | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Final maps of all tiles, and those of the hooks for the fine ones."""
        hooks, vit = self.config.hooks, self.patch_encoder
        coarser = torch.cat([levels.middle, levels.coarse])
        guide = None if guides is None else torch.cat([guides.middle, guides.coarse])
        fine_guide = None if guides is None else guides.fine
        if chunk is None:
            together = None if guide is None or fine_guide is None else torch.cat([fine_guide, guide])
            final, *hooked = encode_tiles(
                vit, torch.cat([levels.fine, coarser]), hooks, len(levels.fine), injection, together
            )
            return final, hooked
        step = max(1, chunk)

        def parts(tiles: Tensor, guide: Tensor | None, keep: Sequence[int]) -> Iterator[tuple[Tensor, ...]]:
            for i in range(0, len(tiles), step):
                part = None if guide is None else guide[i : i + step]
                yield encode_tiles(vit, tiles[i : i + step], keep, None, injection, part)

        fine, *hooked = join_parts(parts(levels.fine, fine_guide, hooks), len(levels.fine))
        (rest,) = join_parts(parts(coarser, guide, ()), len(coarser))
        return torch.cat([fine, rest]), hooked
