"""Convolution blocks in one, two and three dimensions.

Source: FineRecon (Stier et al., ICCV 2023); layout of the released modules.
"""

from __future__ import annotations

from torch import Tensor, nn

CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LEAK = 0.01
"""Slope of the last activation of a residual block, which is the same in all releases."""
IDENTITY_SLOPE = 1.0
"""Slope of the other activations in the released FineRecon: ``LeakyReLU(True)`` sets the slope, not ``inplace``."""


def convolution(dims: int, channels: int, out: int, side: int) -> nn.Module:
    """Without bias, padded to the same size."""
    return CONVOLUTIONS[dims - 1](channels, out, side, padding=side // 2, bias=False)


def norm(dims: int, channels: int) -> nn.Module:
    """Batch norm."""
    return NORMS[dims - 1](channels)


def activation(slope: float, *, inplace: bool = False) -> nn.Module:
    """Leaky ReLU; a slope of 1 is the identity."""
    return nn.LeakyReLU(slope, inplace=inplace)


class ConvNorm(nn.Module):
    """Convolution, batch norm, activation; state keys ``net.{0,1}``.

    Args:
        dims: 1, 2 or 3.
        channels: of the input.
        out: channels of the output.
        side: of the kernel.
        slope: of the activation for negative values.
    """

    def __init__(self, dims: int, channels: int, out: int, side: int, slope: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            convolution(dims, channels, out, side), norm(dims, out), activation(slope, inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C', ...)."""
        return self.net(x)


class Residual(nn.Module):
    """``leaky(x + norm(conv(act(norm(conv(x))))))``; state keys ``net.{0,1,3,4}``.

    Args:
        dims: 1 (kernels of one point), 2 or 3 (kernels of side 3).
        channels: in and out.
        slope: of the inner activation; that of the last is always 0.01.
    """

    def __init__(self, dims: int, channels: int, slope: float) -> None:
        super().__init__()
        side = 1 if dims == 1 else 3
        self.net = nn.Sequential(
            convolution(dims, channels, channels, side),
            norm(dims, channels),
            activation(slope, inplace=True),
            convolution(dims, channels, channels, side),
            norm(dims, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        return nn.functional.leaky_relu_(self.net(x).add_(x), LEAK)


class Mlp1d(nn.Module):
    """Head over points: linear, two residual blocks, linear to one number; state keys ``{0,1,2,3}``.

    Args:
        channels: of the points.
        hidden: inside.
        slope: see :class:`Residual`.
    """

    def __init__(self, channels: int, hidden: int, slope: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(channels, hidden, 1),
            Residual(1, hidden, slope),
            Residual(1, hidden, slope),
            nn.Conv1d(hidden, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) -> (B, N) logits."""
        return self.net(x)[:, 0]


def parameter_count(module: nn.Module) -> int:
    """Number of learned values."""
    return sum(p.numel() for p in module.parameters())
