"""A bank of texture pictures with mip levels, and its band-limited look-up.

Pictures are made once and looked up many times: procedural detail costs nothing per pixel, and mip levels
keep the same texture from shimmering between views. Colours are packed 10-10-10 bits into one int32 per
texel, so that a tap is one gather.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.worlds.patterns import PATTERNS


@dataclass(frozen=True)
class TextureBank:
    """Packed texture pictures.

    Attributes:
        texels: (T,) int32; level 0 of all layers, then level 1 of all layers, and so on.
        size: pixels per side of level 0, a power of two.
        names: the pattern of each layer ("photo" for user pictures).
    """

    texels: Tensor
    size: int
    names: tuple[str, ...]

    @property
    def layers(self) -> int:
        """Number of pictures."""
        return len(self.names)

    @property
    def levels(self) -> int:
        """Number of mip levels."""
        return int(math.log2(self.size)) + 1

    def to(self, device: torch.device | str) -> TextureBank:
        """The same bank on another device."""
        return replace(self, texels=self.texels.to(device))

    def of(self, *names: str) -> list[int]:
        """Layers with one of these pattern names."""
        return [i for i, name in enumerate(self.names) if name in names]


def _pack(picture: np.ndarray) -> np.ndarray:
    value = np.clip(picture * 1023 + 0.5, 0, 1023).astype(np.int32)
    return (value[..., 0] | (value[..., 1] << 10) | (value[..., 2] << 20)).reshape(-1)


def _pyramid(picture: np.ndarray) -> list[np.ndarray]:
    levels = [picture]
    while picture.shape[0] > 1:
        picture = 0.25 * (picture[::2, ::2] + picture[1::2, ::2] + picture[::2, 1::2] + picture[1::2, 1::2])
        levels.append(picture)
    return levels


def _square(photo: Tensor, size: int) -> np.ndarray:
    if photo.ndim != 3 or photo.shape[0] != 3:
        raise InputError(f"texture photo must be (3, H, W), got {tuple(photo.shape)}")
    side = min(photo.shape[1:])
    top, left = (photo.shape[1] - side) // 2, (photo.shape[2] - side) // 2
    crop = photo[None, :, top : top + side, left : left + side].float().cpu()
    small = torch.nn.functional.interpolate(
        crop, (size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return small[0].permute(1, 2, 0).clamp(0, 1).numpy()


def make_texture_bank(
    seed: int, patterns: Mapping[str, int], *, size: int = 256, photos: Sequence[Tensor] = ()
) -> TextureBank:
    """Make texture pictures.

    Args:
        seed: fixes every picture.
        patterns: how many pictures of each pattern of :data:`relief3d.worlds.patterns.PATTERNS`.
        size: pixels per side, a power of two.
        photos: user pictures, each (3, H, W) RGB in [0, 1]; the central square is used.

    Returns:
        The bank, on the CPU.

    Raises:
        InputError: for an unknown pattern, a size that is no power of two, or a photo of another shape.
    """
    if size < 16 or size & (size - 1):
        raise InputError(f"texture size {size} is not a power of two of at least 16")
    unknown = sorted(set(patterns) - set(PATTERNS))
    if unknown:
        raise InputError(
            f"unknown texture pattern '{unknown[0]}'", remedy=f"use one of {', '.join(PATTERNS)}"
        )
    names = [name for name, count in patterns.items() for _ in range(count)]
    pyramids = []
    for index, name in enumerate(names):
        rng = np.random.default_rng([seed, index, 0x746578])
        pyramids.append(_pyramid(PATTERNS[name](rng, size)))
    pyramids += [_pyramid(_square(photo, size)) for photo in photos]
    names += ["photo"] * len(photos)
    levels = int(math.log2(size)) + 1
    packed = [_pack(pyramid[level]) for level in range(levels) for pyramid in pyramids]
    return TextureBank(torch.from_numpy(np.concatenate(packed)), size, tuple(names))


def lookup_texture(
    texels: Tensor, size: int, layers: int, layer: Tensor, u: Tensor, v: Tensor, level: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Trilinear look-up with wrap-around.

    Args:
        texels: packed texels of a :class:`TextureBank`.
        size: its picture size.
        layers: its number of pictures.
        layer: picture index, integer tensor of any shape.
        u: texture coordinate to the right, one picture per unit.
        v: texture coordinate downwards.
        level: mip level, 0 the finest; clamped to the levels there are.

    Returns:
        Red, green and blue in [0, 1], of the shape of ``u``.
    """
    top = int(math.log2(size))
    level = level.clamp(0, top)
    fine = torch.floor(level).clamp_max(top - 1)
    part = level - fine
    fine_i = fine.to(torch.int32)
    layer = layer.to(torch.int32)
    u, v = u - torch.floor(u), v - torch.floor(v)
    r1, g1, b1 = _bilinear(texels, size, layers, layer, u, v, fine_i)
    r2, g2, b2 = _bilinear(texels, size, layers, layer, u, v, fine_i + 1)
    return r1 + part * (r2 - r1), g1 + part * (g2 - g1), b1 + part * (b2 - b1)


def _bilinear(
    texels: Tensor, size: int, layers: int, layer: Tensor, u: Tensor, v: Tensor, level: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    # Level l holds layers * (size >> l)^2 texels, after all finer levels: a geometric series in closed form.
    side = torch.bitwise_right_shift(torch.full_like(level, size), level)
    area = side * side
    start = (4 * layers * (size * size - area)) // 3 + layer * area
    mask = side - 1
    scale = side.to(u.dtype)
    x, y = u * scale - 0.5, v * scale - 0.5
    fx, fy = torch.floor(x), torch.floor(y)
    ax, ay = x - fx, y - fy
    ix, iy = fx.to(torch.int32), fy.to(torch.int32)
    x0, x1 = ix & mask, (ix + 1) & mask
    y0, y1 = start + (iy & mask) * side, start + ((iy + 1) & mask) * side
    weights = ((1 - ax) * (1 - ay), ax * (1 - ay), (1 - ax) * ay, ax * ay)
    red = green = blue = None
    for index, weight in zip((y0 + x0, y0 + x1, y1 + x0, y1 + x1), weights, strict=True):
        word = texels[index]
        r = (word & 1023) * weight
        g = ((word >> 10) & 1023) * weight
        b = ((word >> 20) & 1023) * weight
        red = r if red is None else red + r
        green = g if green is None else green + g
        blue = b if blue is None else blue + b
    assert red is not None and green is not None and blue is not None
    k = 1.0 / 1023.0
    return red * k, green * k, blue * k
