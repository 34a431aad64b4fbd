"""Small pictures for the page: thumbnails, coloured depth and confidence, data addresses."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.contract import Depth
from relief3d.core.optional import require


@dataclass(frozen=True)
class PictureLimits:
    """How large the embedded pictures may be.

    Attributes:
        total_bytes: aim for all pictures of all views together, before base64.
        max_side: longest side of a thumbnail in pixels when there are few views.
        min_side: longest side when there are very many views.
    """

    total_bytes: int = 7_000_000
    max_side: int = 640
    min_side: int = 96

    def side(self, views: int, pictures_per_view: int = 3) -> int:
        """Longest side that keeps ``views`` cards within the total; about 0.14 byte per pixel and picture."""
        area = self.total_bytes / (0.14 * max(1, views) * pictures_per_view)
        return int(min(self.max_side, max(self.min_side, math.sqrt(area / 0.7))))


@dataclass(frozen=True)
class DepthPicture:
    """A coloured depth map: (3, h, w) ``rgb`` in [0, 1], (h, w) bool ``valid``, colour range ``near`` to ``far``."""

    rgb: Tensor
    valid: Tensor
    near: float
    far: float


def colour_ramp(levels: int = 256) -> Tensor:
    """(levels, 3) RGB in [0, 1], from dark violet to bright yellow with evenly rising lightness.

    Built in OKLCh (B. Ottosson 2020): lightness rises linearly, hue turns from violet through blue and green
    to yellow, chroma is the largest that fits sRGB up to a limit. Even lightness steps make equal depth steps
    look equal, also in greyscale print and for colour-blind readers.
    """
    t = torch.linspace(0, 1, levels, dtype=torch.float64)
    lightness = 0.24 + 0.68 * t
    hue = torch.deg2rad(300.0 - 195.0 * t**1.15)
    low, high = torch.zeros_like(t), torch.full_like(t, 0.19)
    for _ in range(24):  # bisection for the gamut border
        middle = (low + high) / 2
        rgb = _linear_srgb(lightness, middle, hue)
        fits = ((rgb >= 0) & (rgb <= 1)).all(dim=-1)
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    rgb = _linear_srgb(lightness, low * 0.97, hue).clamp(0, 1)
    encoded = torch.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb.clamp_min(1e-9) ** (1 / 2.4) - 0.055)
    return encoded.to(torch.float32)


def _linear_srgb(lightness: Tensor, chroma: Tensor, hue: Tensor) -> Tensor:
    a, b = chroma * torch.cos(hue), chroma * torch.sin(hue)
    lms = torch.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        dim=-1,
    )
    mix = torch.tensor(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ],
        dtype=lms.dtype,
    )
    return lms**3 @ mix.T


def apply_ramp(level: Tensor) -> Tensor:
    """(h, w) in [0, 1] to (3, h, w) RGB in [0, 1]; non-finite counts as 0."""
    ramp = colour_ramp()
    index = (torch.nan_to_num(level.to(torch.float32)).clamp(0, 1) * (ramp.shape[0] - 1)).round().long()
    return ramp[index].permute(2, 0, 1)


def fit(image: Tensor, side: int) -> Tensor:
    """(C, H, W) shrunk by area averaging so that the longest side is at most ``side``; never enlarged."""
    height, width = image.shape[-2:]
    longest = max(height, width)
    if longest <= side:
        return image
    size = (max(1, round(height * side / longest)), max(1, round(width * side / longest)))
    return F.interpolate(image[None].to(torch.float32), size=size, mode="area")[0]


def depth_picture(depth: Depth, side: int) -> DepthPicture | None:
    """Colours for a depth map on a logarithmic scale between its 2nd and 98th percentile; near is bright.

    Returns None when no pixel is valid.
    """
    values = depth.values.to(torch.float32)
    valid = depth.valid & torch.isfinite(values) & (values > 0)
    if not bool(valid.any()):
        return None
    height, width = values.shape
    step = max(1, math.ceil(max(height, width) / side))
    # Every n-th pixel, not an average: averages across an edge invent depths that are not there.
    values, valid = values[step // 2 :: step, step // 2 :: step], valid[step // 2 :: step, step // 2 :: step]
    if not bool(valid.any()):
        values, valid = depth.values.to(torch.float32), depth.valid
    known = values[valid].sort().values
    near = float(known[int(0.02 * (known.numel() - 1))])
    far = float(known[int(0.98 * (known.numel() - 1))])
    span = math.log(far / near) if far > near else 1.0
    level = 1 - torch.log(values.clamp_min(near) / near) / span
    return DepthPicture(apply_ramp(level), valid, near, far)


def confidence_picture(confidence: Tensor, side: int) -> Tensor:
    """(h, w) confidence in [0, 1] to a coloured (3, h', w') picture; high is bright."""
    return apply_ramp(fit(confidence[None].to(torch.float32), side)[0])


def jpeg_address(image: Tensor, quality: int = 82) -> str:
    """A ``data:`` address with the (3, h, w) picture in [0, 1] as JPEG."""
    return _address(_to_pil(image), "JPEG", "image/jpeg", quality=quality, optimize=True, progressive=True)


def masked_address(image: Tensor, valid: Tensor) -> str:
    """A ``data:`` address with the picture, transparent where ``valid`` (h, w) is False."""
    features = require("PIL.features", extra="all", purpose="the report")
    picture = _to_pil(image)
    pil = require("PIL.Image", extra="all", purpose="the report")
    picture.putalpha(pil.fromarray((valid.to(torch.uint8) * 255).cpu().numpy(), mode=None))
    if features.check("webp"):
        return _address(picture, "WEBP", "image/webp", quality=80, method=4)
    return _address(picture, "PNG", "image/png", optimize=True)


def _to_pil(image: Tensor):  # type: ignore[no-untyped-def]
    pil = require("PIL.Image", extra="all", purpose="the report")
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"a picture must be (3, h, w), got {tuple(image.shape)}")
    data = torch.nan_to_num(image.detach().to("cpu", torch.float32)).clamp(0, 1) * 255
    data = data.round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).contiguous()
    return pil.fromarray(data.numpy())


def _address(picture, form: str, mime: str, **options) -> str:  # type: ignore[no-untyped-def]
    buffer = io.BytesIO()
    picture.save(buffer, format=form, **options)
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
