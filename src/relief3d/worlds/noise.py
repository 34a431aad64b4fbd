"""Tileable value noise: one small volume made once, looked up everywhere."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def noise_volume(seed: int, size: int = 64) -> Tensor:
    """A tileable smooth noise volume with values spread over [0, 1].

    White noise is blurred by a periodic 1-2-1 kernel so that linear look-ups show no grid, then its
    histogram is equalised, which keeps the contrast the same for every seed.

    Args:
        seed: fixes every value.
        size: edge length in cells; a power of two.

    Returns:
        (size**3,) float32 on the CPU, flattened z-major (index ``(z * size + y) * size + x``).
    """
    rng = np.random.default_rng([seed, 0x6E6F6973])
    volume = rng.random((size, size, size), dtype=np.float32)
    for axis in range(3):
        volume = 0.25 * np.roll(volume, 1, axis) + 0.5 * volume + 0.25 * np.roll(volume, -1, axis)
    order = np.argsort(volume, axis=None, kind="stable")
    ranks = np.empty(volume.size, dtype=np.float32)
    ranks[order] = (np.arange(volume.size, dtype=np.float32) + 0.5) / volume.size
    return torch.from_numpy(ranks)


def lookup_volume(volume: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Trilinear look-up with wrap-around; coordinates in cells, any equal shape; values in [0, 1]."""
    size = round(volume.numel() ** (1 / 3))
    fx, fy, fz = torch.floor(x), torch.floor(y), torch.floor(z)
    ax, ay, az = x - fx, y - fy, z - fz
    mask = size - 1
    ix, iy, iz = fx.to(torch.int32) & mask, fy.to(torch.int32) & mask, fz.to(torch.int32) & mask
    jx, jy, jz = (ix + 1) & mask, (iy + 1) & mask, (iz + 1) & mask

    def row(yy: Tensor, zz: Tensor) -> Tensor:
        base = (zz * size + yy) * size
        a, b = volume[base + ix], volume[base + jx]
        return a + ax * (b - a)

    low, low2 = row(iy, iz), row(jy, iz)
    high, high2 = row(iy, jz), row(jy, jz)
    front = low + ay * (low2 - low)
    back = high + ay * (high2 - high)
    return front + az * (back - front)


def tileable_noise(rng: np.random.Generator, size: int, cells: int, cells_y: int | None = None) -> np.ndarray:
    """A tileable (size, size) float32 map of smoothly interpolated random values in [0, 1].

    Args:
        rng: source of randomness.
        size: pixels per side.
        cells: random values per row (period in x); at most ``size``.
        cells_y: the same in y, equal to ``cells`` when None.
    """
    rows = cells if cells_y is None else cells_y
    grid = rng.random((rows, cells), dtype=np.float32)

    def axis(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = (np.arange(size, dtype=np.float32) + 0.5) * (count / size)
        low = np.floor(at).astype(np.int64)
        part = at - low
        return low % count, (low + 1) % count, part * part * (3 - 2 * part)

    x0, x1, wx = axis(cells)
    y0, y1, wy = axis(rows)
    wide = grid[:, x0] * (1 - wx) + grid[:, x1] * wx
    return wide[y0] * (1 - wy)[:, None] + wide[y1] * wy[:, None]


def tileable_fbm(
    rng: np.random.Generator,
    size: int,
    cells: int,
    *,
    octaves: int = 5,
    gain: float = 0.5,
    stretch: float = 1.0,
) -> np.ndarray:
    """Sum of octaves of :func:`tileable_noise`, standardised to zero mean and unit deviation.

    Args:
        rng: source of randomness.
        size: pixels per side.
        cells: cells of the coarsest octave in x.
        octaves: number of octaves, each of twice the frequency; stops at the pixel grid.
        gain: amplitude ratio between octaves.
        stretch: cells in y relative to x (below 1 elongates the grain along y).

    Returns:
        (size, size) float32.
    """
    total = np.zeros((size, size), dtype=np.float32)
    weight, count = 1.0, float(cells)
    for _ in range(octaves):
        columns, rows = max(1, round(count)), max(1, round(count * stretch))
        if max(columns, rows) > size:
            break
        total += weight * tileable_noise(rng, size, columns, rows)
        weight *= gain
        count *= 2
    total -= total.mean()
    return total / max(float(total.std()), 1e-6)
