"""What a camera does to light: exposure, colour, lens shading, blur, noise, tone curve, compression.

Everything is batched tensor work on the images' device with an explicit generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class CameraEffects:
    """Ranges that a camera's behaviour is drawn from.

    Attributes:
        key: mean display brightness that automatic exposure aims at.
        exposure_stops: random exposure error per view, standard deviation in stops.
        shared_exposure: measure the light once for all views of a world instead of per view.
        white_balance: standard deviation of the red and blue gains.
        gamma: range of the display gamma.
        vignette: largest darkening of the corners.
        blur: largest standard deviation of the blur in pixels; each view draws between 0 and this.
        shot_noise: largest noise at full brightness, standard deviation in display units.
        read_noise: largest noise in the dark.
        jpeg: largest JPEG-like quantisation in [0, 1]; 0 switches it off.
    """

    key: float = 0.42
    exposure_stops: float = 0.25
    shared_exposure: bool = False
    white_balance: float = 0.05
    gamma: tuple[float, float] = (2.0, 2.5)
    vignette: float = 0.25
    blur: float = 0.8
    shot_noise: float = 0.02
    read_noise: float = 0.01
    jpeg: float = 0.5


def phone_effects() -> CameraEffects:
    """A steady phone in good light: one exposure, slight noise, no blur."""
    return CameraEffects(0.42, 0.03, True, 0.005, (2.2, 2.2), 0.08, 0.0, 0.006, 0.003, 0.0)


def apply_effects(radiance: Tensor, effects: CameraEffects, generator: torch.Generator) -> Tensor:
    """Turn linear light into a photograph.

    Args:
        radiance: (*, V, 3, H, W) linear light; V are views of one world.
        effects: ranges to draw from; each view draws its own values.
        generator: on the device of ``radiance``.

    Returns:
        (*, V, 3, H, W) RGB in [0, 1].
    """
    lead = radiance.shape[:-3]
    device = radiance.device

    def uniform(low: float, high: float) -> Tensor:
        value = torch.rand((*lead, 1, 1, 1), generator=generator, device=device)
        return low + (high - low) * value

    def normal(scale: float, channels: int = 1) -> Tensor:
        return scale * torch.randn((*lead, channels, 1, 1), generator=generator, device=device)

    level = torch.log(radiance.clamp_min(1e-3)).mean((-3, -2, -1), keepdim=True)
    if effects.shared_exposure:
        level = level.mean(-4, keepdim=True)
    gain = effects.key**2.2 * torch.exp(-level) * 2.0 ** normal(effects.exposure_stops)
    colour = 1 + normal(effects.white_balance, 3) * torch.tensor([1.0, 0.2, 1.0]).to(
        device, non_blocking=True
    ).reshape(3, 1, 1)
    light = radiance * gain * colour * lens_shading(radiance.shape[-2:], device, uniform(0, effects.vignette))
    if effects.blur > 0:
        light = gaussian_blur(light, uniform(0, effects.blur))
    # A shoulder instead of hard clipping, as cameras have.
    light = torch.where(light > 0.7, 0.7 + 0.3 * (1 - torch.exp(-(light - 0.7).clamp_min(0) / 0.3)), light)
    shown = light.clamp(1e-5, 1) ** (1 / uniform(*effects.gamma))
    sigma = uniform(0, effects.read_noise) + uniform(0, effects.shot_noise) * torch.sqrt(shown)
    shown = shown + sigma * torch.randn(shown.shape, generator=generator, device=device)
    shown = shown.clamp(0, 1)
    if effects.jpeg > 0:
        shown = jpeg_like(shown, uniform(0, effects.jpeg))
    return shown


def lens_shading(size: torch.Size | tuple[int, int], device: torch.device, strength: Tensor) -> Tensor:
    """Factor (*, 1, H, W) that darkens towards the corners by ``strength`` (*, 1, 1, 1)."""
    y = torch.linspace(-1, 1, size[0], device=device)[:, None]
    x = torch.linspace(-1, 1, size[1], device=device)
    return 1 - strength * (0.5 * (x * x + y * y)) ** 1.2


def gaussian_blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Separable 7-tap Gaussian with one ``sigma`` (*, 1, 1, 1) per view; (*, 3, H, W)."""
    at = torch.arange(-3, 4, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (at / sigma.clamp_min(0.05)) ** 2)
    kernel = (kernel / kernel.sum(-1, keepdim=True)).flatten(0, -2)
    flat = image.flatten(0, -4)
    height, width = flat.shape[-2:]
    padded = F.pad(flat, (3, 3, 3, 3), mode="replicate")
    rows = torch.zeros_like(padded[..., :width])
    for k in range(7):
        rows = rows + kernel[:, k, None, None, None] * padded[..., k : k + width]
    both = torch.zeros_like(flat)
    for k in range(7):
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
