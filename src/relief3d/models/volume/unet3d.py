"""The 3D U-Net of FineRecon: two poolings, skips at every level and from the input (specification 4.6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relief3d.models.volume.layers import ConvNorm, Residual

MULTIPLE = 4
"""Sides of a volume are multiples of this, and tiles begin at multiples of it, so that pooled cells coincide."""
HALO = 52
"""Cells around a tile that its inner values depend on (the receptive radius is 49 to 52 by phase modulo 4)."""


@dataclass(frozen=True)
class UNetConfig:
    """Widths.

    Attributes:
        channels: of the input.
        widths: at full, half and quarter resolution; the way up has those of the way down.
        act_slope: of inner activations.
    """

    channels: int = 48
    widths: tuple[int, int, int] = (64, 64, 128)
    act_slope: float = 0.01

    @property
    def out(self) -> int:
        """Channels of the output."""
        return self.widths[0]


def doubled(x: Tensor) -> Tensor:
    """(B, C, X, Y, Z) to twice the sides, values repeated."""
    return nn.functional.interpolate(x, scale_factor=2, mode="nearest")


class UNet3D(nn.Module):
    """Features of every voxel from those of its surroundings; state keys are FineRecon's."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        full, half, quarter = config.widths
        slope = config.act_slope

        def residuals(width: int) -> list[nn.Module]:
            return [Residual(3, width, slope), Residual(3, width, slope)]

        self.stem = nn.Sequential(ConvNorm(3, config.channels, full, 1, slope), Residual(3, full, slope))
        # FineRecon's names; the kernels have side 3.
        self.conv1x1_1 = ConvNorm(3, full, half, 3, slope)
        self.down1 = nn.Sequential(*residuals(half))
        self.conv1x1_2 = ConvNorm(3, half, quarter, 3, slope)
        self.down2 = nn.Sequential(*residuals(quarter))
        self.up1 = nn.Sequential(ConvNorm(3, quarter + half, half, 3, slope), *residuals(half))
        self.up2 = nn.Sequential(ConvNorm(3, half + full, full, 3, slope), *residuals(full))
        self.up3 = nn.Sequential(ConvNorm(3, full + config.channels, full, 3, slope), *residuals(full))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) -> (B, widths[0], X, Y, Z).

        Raises:
            ValueError: a side is no multiple of 4.
        """
        if any(side % MULTIPLE for side in x.shape[2:]):
            raise ValueError(f"sides of a volume must be multiples of {MULTIPLE}, not {tuple(x.shape[2:])}")
        pool = nn.functional.max_pool3d
        x0 = self.stem(x)
        x1 = self.down1(pool(self.conv1x1_1(x0), 2))
        x2 = self.down2(pool(self.conv1x1_2(x1), 2))
        y = self.up1(torch.cat([doubled(x2), x1], 1))
        del x2, x1
        y = self.up2(torch.cat([doubled(y), x0], 1))
        del x0
        return self.up3(torch.cat([y, x], 1))
