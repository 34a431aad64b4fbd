"""Convolutional head from patch tokens to dense maps, as MoGe and Pi3X use it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from relief3d.nn.uv import uv_axes


class ResidualBlock(nn.Module):
    """``x + conv(relu(norm(conv(relu(norm(x))))))`` with twice the channels in the middle; key ``layers``.

    Args:
        channels: in and out.
        groups: channels per group of the second norm; the first norm has one group.
    """

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__()
        hidden = 2 * channels

        def conv(a: int, b: int) -> nn.Conv2d:
            return nn.Conv2d(a, b, 3, padding=1, padding_mode="replicate")

        self.layers = nn.Sequential(
            nn.GroupNorm(1, channels),
            nn.ReLU(),
            conv(channels, hidden),
            nn.GroupNorm(max(1, hidden // groups), hidden),
            nn.ReLU(),
            conv(hidden, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(M, C, H, W) -> (M, C, H, W)."""
        return x + self.layers(x)


def append_uv(x: Tensor, aspect: float) -> Tensor:
    """(M, C, H, W) -> (M, C + 2, H, W): the coordinates u and v of every cell as two more channels."""
    rows, cols = x.shape[-2:]
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    u, v = uv_axes(rows, cols, aspect, x.device, dtype)
    grid = torch.stack([u.expand(rows, cols), v[:, None].expand(rows, cols)]).to(x.dtype)
    return torch.cat([x, grid.expand(len(x), -1, -1, -1)], 1)


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
                nn.Conv2d(after, after, 3, padding=1, padding_mode="replicate"),
            )
            stages.append(nn.Sequential(up, *(ResidualBlock(after) for _ in range(residuals))))
        self.upsample_blocks = nn.ModuleList(stages)
        self.output_block = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(widths[-1] + 2, last, 3, padding=1, padding_mode="replicate"),
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
