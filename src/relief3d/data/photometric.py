"""Changes of light and colour. Cameras and depth stay as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.photo_filters import gaussian_blur, jpeg_like

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Photometric:
    """Ranges that changes are drawn from; 0 switches one off.

    Attributes:
        probability: of changing colours (brightness to channel order) at all, per view or per scene.
        shared: probability that all views of a scene get the same colours (SelfEvo's processing: 0.7).
        brightness, contrast, saturation: factors are drawn from [1 - value, 1 + value].
        contrast: about the mean luma of the view, or of the scene when shared.
        saturation: between luma (factor 0) and colour.
        hue: turns of the colour circle, drawn from [-value, value].
        gamma: exponents are drawn from [1 / (1 + value), 1 + value], evenly in their logarithm.
        grey: probability of a picture without colour.
        channels: probability of another order of red, green and blue, always of the whole scene.
        blur: largest standard deviation in pixels; per view.
        noise: largest standard deviation of Gaussian noise; per view.
        jpeg: largest strength of JPEG-like quantisation, in [0, 1]; per view.
    """

    probability: float = 0.9
    shared: float = 0.7
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.05
    gamma: float = 0.2
    grey: float = 0.05
    channels: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: float = 0.0

    def __post_init__(self) -> None:
        shares = (self.probability, self.shared, self.grey, self.channels, self.jpeg)
        if not all(0 <= p <= 1 for p in shares):
            raise InputError("probabilities and the strength of compression must lie in [0, 1]")
        if (
            min(self.brightness, self.contrast, self.saturation, self.hue, self.gamma, self.blur, self.noise)
            < 0
        ):
            raise InputError("ranges of an augmentation cannot be negative")
        if max(self.brightness, self.contrast, self.saturation) > 1:
            raise InputError("brightness, contrast and saturation can change by a factor of 1 at most")


def change_colours(images: Tensor, rule: Photometric, generator: torch.Generator) -> Tensor:
    """Pictures (B, N, 3, H, W) in [0, 1] with other light, colours and faults; the same shape and range.

    Args:
        images: B scenes of N views.
        rule: ranges.
        generator: on the device of the pictures.
    """
    draw = _Draws(images, rule, generator)
    if rule.channels:  # kept by views whose colours are left alone: it has to be the same for the whole scene
        images = _other_order(images, draw.chance(rule.channels, scene=True), generator)
    changed = images * draw.factor(rule.brightness)
    luma = _luma(changed)
    level = luma.mean((-1, -2), keepdim=True)
    level = torch.where(draw.together, level.mean(1, keepdim=True), level)
    changed = level + (changed - level) * draw.factor(rule.contrast)
    luma = _luma(changed)
    colour = draw.factor(rule.saturation) * (1 - draw.chance(rule.grey))
    changed = luma + (changed - luma) * colour
    if rule.hue:
        changed = _turn_hue(changed, draw.between(-rule.hue, rule.hue))
    changed = changed.clamp(0, 1)
    if rule.gamma:
        power = torch.exp(draw.between(-1, 1) * math.log1p(rule.gamma))
        changed = changed.clamp_min(1e-6) ** power
    changed = torch.where(draw.active, changed, images)
    if rule.blur:
        changed = gaussian_blur(changed, draw.own() * rule.blur, rule.blur)
    if rule.noise:
        level = draw.own() * rule.noise
        changed = changed + level * torch.randn(
            changed.shape, generator=generator, device=changed.device, dtype=changed.dtype
        )
    if rule.jpeg:
        changed = jpeg_like(changed.clamp(0, 1), draw.own() * rule.jpeg)
    return changed.clamp(0, 1)


class _Draws:
    """Random numbers per view, shared within a scene where that was drawn; all (B, N, 1, 1, 1)."""

    def __init__(self, images: Tensor, rule: Photometric, generator: torch.Generator) -> None:
        self.lead = tuple(images.shape[:2])
        self.like, self.generator = images, generator
        self.together = self._uniform()[:, :1] < rule.shared
        self.active = self._value() < rule.probability

    def _uniform(self) -> Tensor:
        shape = (*self.lead, 1, 1, 1)
        return torch.rand(shape, generator=self.generator, device=self.like.device, dtype=self.like.dtype)

    def _value(self) -> Tensor:
        value = self._uniform()
        return torch.where(self.together, value[:, :1], value)

    def own(self) -> Tensor:
        """In [0, 1), for every view."""
        return self._uniform()

    def between(self, low: float, high: float) -> Tensor:
        """In [low, high)."""
        return low + (high - low) * self._value()

    def factor(self, reach: float) -> Tensor:
        """In [1 - reach, 1 + reach)."""
        return self.between(1 - reach, 1 + reach)

    def chance(self, probability: float, *, scene: bool = False) -> Tensor:
        """1 with that probability, else 0."""
        value = self._uniform()[:, :1].expand(*self.lead, 1, 1, 1) if scene else self._value()
        return (value < probability).to(self.like.dtype)


def _luma(images: Tensor) -> Tensor:
    r, g, b = images.unbind(-3)
    return (_LUMA[0] * r + _LUMA[1] * g + _LUMA[2] * b).unsqueeze(-3)


def _turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate chroma in the plane of constant luma (B - Y, R - Y), by (B, N, 1, 1, 1) turns."""
    luma = _luma(images)[..., 0, :, :]
    r, _, b = images.unbind(-3)
    u, v = 0.564 * (b - luma), 0.713 * (r - luma)
    angle = 2 * torch.pi * turns[..., 0]
    c, s = torch.cos(angle), torch.sin(angle)
    u, v = c * u - s * v, s * u + c * v
    red, blue = luma + v / 0.713, luma + u / 0.564
    green = (luma - _LUMA[0] * red - _LUMA[2] * blue) / _LUMA[1]
    return torch.stack([red, green, blue], -3)


def _other_order(images: Tensor, wanted: Tensor, generator: torch.Generator) -> Tensor:
    """Channels of every scene in a random order, where wanted (B, N, 1, 1, 1)."""
    scenes = images.shape[0]
    noise = torch.rand((scenes, 3), generator=generator, device=images.device)
    order = noise.argsort(1)[:, None, :, None, None].expand(images.shape)
    return torch.where(wanted > 0, images.gather(2, order), images)
