"""Convolutional head from patch tokens to dense maps, as MoGe and Pi3X use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from relief3d.nn.uv import uv_map

Norm = Literal["none", "layer_norm", "group_norm"]
"""No norm; one group over all channels; groups of 32 channels."""


def convolution3(channels: int, out: int) -> nn.Conv2d:
    """3x3, the border repeated."""
    return nn.Conv2d(channels, out, 3, padding=1, padding_mode="replicate")


def _norm(kind: Norm, channels: int, groups: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    return nn.GroupNorm(1 if kind == "layer_norm" else max(1, channels // groups), channels)


class ResidualBlock(nn.Module):
    """``x + conv(relu(norm(conv(relu(norm(x))))))``; key ``layers``.

    Args:
        channels: in and out.
        groups: channels per group of a "group_norm".
        expand: channels between the convolutions, in units of ``channels``.
        in_norm: first norm.
        hidden_norm: second norm.
    """

    def __init__(
        self,
        channels: int,
        groups: int = 32,
        *,
        expand: int = 2,
        in_norm: Norm = "layer_norm",
        hidden_norm: Norm = "group_norm",
    ) -> None:
        super().__init__()
        hidden = expand * channels
        self.layers = nn.Sequential(
            _norm(in_norm, channels, groups),
            nn.ReLU(),
            convolution3(channels, hidden),
            _norm(hidden_norm, hidden, groups),
            nn.ReLU(),
            convolution3(hidden, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(M, C, H, W) -> (M, C, H, W)."""
        return x + self.layers(x)


def append_uv(x: Tensor, aspect: float) -> Tensor:
    """(M, C, H, W) -> (M, C + 2, H, W): the coordinates u and v of every cell as two more channels."""
    rows, cols = x.shape[-2:]
    return torch.cat([x, uv_map(rows, cols, aspect, x.device, x.dtype).expand(len(x), -1, -1, -1)], 1)


class ConvHead(nn.Module):
    """Three doublings with residual blocks, then one small output per quantity.

    State keys: ``upsample_blocks.i.0.{0, 1}``, ``upsample_blocks.i.{1, 2}.layers``, ``output_block.k.{0, 2}``.

    Args:
        dim: channels of the tokens.
        outputs: channels of every output.
        widths: channels after each doubling.
        residuals: residual blocks per doubling.
        last: channels inside the output blocks.
    """

    def __init__(
        self,
        dim: int,
        outputs: Sequence[int],
        widths: Sequence[int] = (256, 128, 64),
        residuals: int = 2,
        last: int = 32,
    ) -> None:
        super().__init__()
        stages = []
        for before, after in zip((dim, *widths), widths):
            up = nn.Sequential(
                nn.ConvTranspose2d(before + 2, after, 2, 2),
                convolution3(after, after),
            )
            stages.append(nn.Sequential(up, *(ResidualBlock(after) for _ in range(residuals))))
        self.upsample_blocks = nn.ModuleList(stages)
        self.output_block = nn.ModuleList(
            nn.Sequential(
                convolution3(widths[-1] + 2, last),
                nn.ReLU(),
                nn.Conv2d(last, channels, 1),
            )
            for channels in outputs
        )

    def forward(self, tokens: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> list[Tensor]:
        """One (M, channels, H, W) map per output.

        Args:
            tokens: (M, P, C), row by row.
            grid: rows and columns of tokens.
            size: (H, W) of the pictures.
        """
        aspect = size[1] / size[0]
        x = tokens.transpose(1, 2).unflatten(2, grid)
        for stage in self.upsample_blocks:
            x = stage(append_uv(x, aspect))
        x = nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)
        x = append_uv(x, aspect)
        return [block(x) for block in self.output_block]
