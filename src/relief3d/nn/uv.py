"""Where a pixel is, relative to the picture: normalised coordinates and their sine-cosine embedding."""

from __future__ import annotations

import torch
from torch import Tensor


def uv_axes(
    rows: int,
    cols: int,
    aspect: float,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Coordinates of pixel centres along x (cols,) and y (rows,): the half diagonal of the picture has length 1.

    Args:
        rows: height of the map.
        cols: width of the map.
        aspect: width over height of the picture (not of the map).
        device: of the result.
        dtype: of the result.
    """
    sx, sy = aspect / (1 + aspect**2) ** 0.5, 1 / (1 + aspect**2) ** 0.5
    u = torch.linspace(-sx * (cols - 1) / cols, sx * (cols - 1) / cols, cols, device=device, dtype=dtype)
    v = torch.linspace(-sy * (rows - 1) / rows, sy * (rows - 1) / rows, rows, device=device, dtype=dtype)
    return u, v


def uv_map(rows: int, cols: int, aspect: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(2, rows, cols): u and v of :func:`uv_axes` for every cell, computed in double precision where possible."""
    wide = torch.float32 if device.type == "mps" else torch.float64
    u, v = uv_axes(rows, cols, aspect, device, wide)
    return torch.stack([u.expand(rows, cols), v[:, None].expand(rows, cols)]).to(dtype)


def sincos(positions: Tensor, channels: int, base: float) -> Tensor:
    """(..., channels): sines, then cosines of ``p * base ** (-j / (channels / 2))``."""
    half = channels // 2
    omega = base ** (-torch.arange(half, device=positions.device, dtype=positions.dtype) / half)
    angle = positions[..., None] * omega
    return torch.cat([angle.sin(), angle.cos()], -1)


def uv_embedding_axes(
    rows: int, cols: int, aspect: float, channels: int, device: torch.device, base: float = 100.0
) -> tuple[Tensor, Tensor]:
    """The two halves of :func:`uv_embedding` before they are spread: (channels / 2, 1, cols) of x, (channels / 2,
    rows, 1) of y.
    """
    dtype = torch.float32 if device.type == "mps" else torch.float64
    u, v = uv_axes(rows, cols, aspect, device, dtype)
    x, y = (sincos(axis, channels // 2, base).float().T for axis in (u, v))
    return x[:, None], y[:, :, None]


def uv_embedding(
    rows: int, cols: int, aspect: float, channels: int, device: torch.device, base: float = 100.0
) -> Tensor:
    """(channels, rows, cols) float32: the first half embeds x, the second y. Computed in double precision where the
    device has it.
    """
    x, y = uv_embedding_axes(rows, cols, aspect, channels, device, base)
    return torch.cat([x.expand(-1, rows, cols), y.expand(-1, rows, cols)])
