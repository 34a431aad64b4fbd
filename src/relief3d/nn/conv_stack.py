"""Convolutions over a pyramid that doubles its side at every level: neck and heads of MoGe-2.

Source: MoGe-2 (Wang et al. 2025); MetricAnything specification 6.2, 6.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from relief3d.nn.conv_head import Norm, ResidualBlock, convolution3

Resampling = Literal["conv_transpose", "pixel_shuffle", "bilinear", "nearest"]


@dataclass(frozen=True)
class ConvStackConfig:
    """Sizes of a :class:`ConvStack`, one value per level.

    Attributes:
        dim_in: channels of the input of a level; None: it has none, or it is taken as it is.
        widths: channels inside a level.
        dim_out: channels of the output of a level; None: what is inside.
        residuals: residual blocks of a level.
        resamplers: how one level goes to the next; one fewer than levels.
        in_norm: see :class:`ResidualBlock`.
        hidden_norm: likewise.
        expand: likewise.
    """

    dim_in: tuple[int | None, ...]
    widths: tuple[int, ...]
    dim_out: tuple[int | None, ...]
    residuals: tuple[int, ...]
    resamplers: tuple[Resampling, ...]
    in_norm: Norm = "none"
    hidden_norm: Norm = "none"
    expand: int = 1

    def __post_init__(self) -> None:
        levels = len(self.widths)
        if {len(self.dim_in), len(self.dim_out), len(self.residuals), len(self.resamplers) + 1} != {levels}:
            raise ValueError(f"a stack of {levels} levels needs as many sizes, and {levels - 1} resamplers")


class Resampler(nn.Sequential):
    """Twice the side: (M, C, H, W) -> (M, C', 2 H, 2 W). Kernels start without a pattern of the four new pixels."""

    def __init__(self, channels: int, out: int, kind: Resampling) -> None:
        if kind == "conv_transpose":
            super().__init__(nn.ConvTranspose2d(channels, out, 2, 2), convolution3(out, out))
        elif kind == "pixel_shuffle":
            super().__init__(convolution3(channels, 4 * out), nn.PixelShuffle(2), convolution3(out, out))
        elif kind == "bilinear":
            super().__init__(nn.Upsample(scale_factor=2, mode="bilinear"), convolution3(channels, out))
        elif kind == "nearest":
            super().__init__(nn.Upsample(scale_factor=2, mode="nearest"), convolution3(channels, out))
        else:
            raise ValueError(f"there is no resampling '{kind}'")
        with torch.no_grad():
            first = self[0]
            if isinstance(first, nn.ConvTranspose2d):
                first.weight.copy_(first.weight[..., :1, :1].expand_as(first.weight))
            elif isinstance(first, nn.Conv2d):
                assert first.bias is not None
                for values in (first.weight, first.bias):
                    values.copy_(values[::4].repeat_interleave(4, 0))


class ConvStack(nn.Module):
    """A map per level in, a map per level out, each level added to the enlarged one before.

    State keys: ``input_blocks.i``, ``res_blocks.i.k.layers``, ``resamplers.i``, ``output_blocks.i``.
    """

    def __init__(self, config: ConvStackConfig) -> None:
        super().__init__()
        c = self.config = config

        def project(a: int | None, b: int | None) -> nn.Module:
            return nn.Identity() if a is None or b is None else nn.Conv2d(a, b, 1)

        self.input_blocks = nn.ModuleList(project(a, w) for a, w in zip(c.dim_in, c.widths))
        self.resamplers = nn.ModuleList(
            Resampler(a, b, kind) for a, b, kind in zip(c.widths, c.widths[1:], c.resamplers)
        )
        self.res_blocks = nn.ModuleList(
            nn.Sequential(
                *(
                    ResidualBlock(width, expand=c.expand, in_norm=c.in_norm, hidden_norm=c.hidden_norm)
                    for _ in range(count)
                )
            )
            for width, count in zip(c.widths, c.residuals)
        )
        self.output_blocks = nn.ModuleList(project(w, out) for w, out in zip(c.widths, c.dim_out))

    def forward(self, maps: Sequence[Tensor | None]) -> list[Tensor]:
        """One (M, C_out, H 2^i, W 2^i) per level.

        Args:
            maps: (M, C_in, H 2^i, W 2^i) or None per level; the first is not None.
        """
        x, out = None, []
        for i, given in enumerate(maps):
            if given is not None:
                new = self.input_blocks[i](given)
                x = new if x is None else x + new
            assert x is not None
            x = self.res_blocks[i](x)
            out.append(self.output_blocks[i](x))
            if i < len(self.resamplers):
                x = self.resamplers[i](x)
        return out
