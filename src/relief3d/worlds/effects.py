"""What a camera does to light: exposure, colour, lens shading, blur, noise, tone curve, compression.

Everything is batched tensor work on the images' device with an explicit generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.data.photo_filters import gaussian_blur, jpeg_like


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
