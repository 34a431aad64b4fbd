"""Blur and compression of pictures as batched tensor work, with a strength per picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_blur(image: Tensor, sigma: Tensor, largest: float = 1.0) -> Tensor:
    """Separable Gaussian with one ``sigma`` (*, 1, 1, 1) in pixels per view; (*, 3, H, W).

    Args:
        image: pictures.
        sigma: standard deviations.
        largest: of them; the kernel reaches three times as far, at least 3 pixels.
    """
    reach = max(3, math.ceil(3 * largest))
    at = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (at / sigma.clamp_min(0.05)) ** 2)
    kernel = (kernel / kernel.sum(-1, keepdim=True)).flatten(0, -2)
    flat = image.flatten(0, -4)
    height, width = flat.shape[-2:]
    padded = F.pad(flat, (reach, reach, reach, reach), mode="replicate")
    rows = torch.zeros_like(padded[..., :width])
    for k in range(2 * reach + 1):
        rows = rows + kernel[:, k, None, None, None] * padded[..., k : k + width]
    both = torch.zeros_like(flat)
    for k in range(2 * reach + 1):
        both = both + kernel[:, k, None, None, None] * rows[..., k : k + height, :]
    return both.reshape(image.shape)


def jpeg_like(image: Tensor, strength: Tensor) -> Tensor:
    """Quantise 8x8 cosine coefficients of luma and chroma, coarser for higher frequencies.

    Args:
        image: (*, 3, H, W) in [0, 1].
        strength: (*, 1, 1, 1), 0 leaves the picture almost unchanged, 1 is a strongly compressed picture.

    Returns:
        (*, 3, H, W) in [0, 1].
    """
    device, dtype = image.device, image.dtype
    k = torch.arange(8, device=device, dtype=dtype)
    basis = torch.cos(math.pi / 8 * (k[None, :] + 0.5) * k[:, None]) * 0.5
    basis = torch.cat([basis[:1] / math.sqrt(2), basis[1:]])
    height, width = image.shape[-2:]
    flat = F.pad(image.flatten(0, -4), (0, -width % 8, 0, -height % 8), mode="replicate")
    r, g, b = flat.unbind(1)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    planes = torch.stack([luma, 0.564 * (b - luma), 0.713 * (r - luma)], 1)
    rows, columns = planes.shape[-2] // 8, planes.shape[-1] // 8
    blocks = planes.reshape(*planes.shape[:2], rows, 8, columns, 8).transpose(-3, -2)
    coded = basis @ blocks @ basis.T
    frequency = k[:, None] + k[None, :]
    chroma = torch.ones(3, device=device, dtype=dtype) + torch.arange(3, device=device).clamp_max(1) * 1.0
    step = (strength.flatten()[:, None, None, None] * (0.02 + 0.02 * frequency) + 1e-4)[:, None, :, :, :]
    step = (step * chroma[:, None, None, None])[:, :, None]
    step = step.reshape(step.shape[0], 3, 1, 1, 8, 8)
    coded = torch.round(coded / step) * step
    blocks = basis.T @ coded @ basis
    planes = blocks.transpose(-3, -2).reshape(planes.shape)[..., :height, :width]
    luma, cb, cr = planes.unbind(1)
    r, b = luma + cr / 0.713, luma + cb / 0.564
    g = (luma - 0.299 * r - 0.114 * b) / 0.587
    return torch.stack([r, g, b], 1).clamp(0, 1).reshape(image.shape)
