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
from relief3d.render.colormaps import confidence_colors, depth_colors, depth_limits


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


def fit(image: Tensor, side: int) -> Tensor:
    """(C, H, W) shrunk by area averaging so that the longest side is at most ``side``; never enlarged."""
    height, width = image.shape[-2:]
    longest = max(height, width)
    if longest <= side:
        return image
    size = (max(1, round(height * side / longest)), max(1, round(width * side / longest)))
    return F.interpolate(image[None].to(torch.float32), size=size, mode="area")[0]


def depth_picture(depth: Depth, side: int) -> DepthPicture | None:
    """Colours for a depth map, even in inverse depth between its 2nd and 98th percentile; near is bright.

    Returns None when no pixel is valid.
    """
    values = torch.where(depth.valid, depth.values, torch.zeros_like(depth.values)).to(torch.float32)
    valid = torch.isfinite(values) & (values > 0)
    if not bool(valid.any()):
        return None
    near, far = depth_limits(values)
    step = max(1, math.ceil(max(values.shape) / side))
    # Every n-th pixel, not an average: averages across an edge invent depths that are not there.
    rows = columns = slice(step // 2, None, step)
    return DepthPicture(depth_colors(values[rows, columns], near, far), valid[rows, columns], near, far)


def depth_ramp(levels: int = 17) -> Tensor:
    """(levels, 3) RGB of the depth colours, even in inverse depth from near to far."""
    inverse = torch.linspace(1.0, 0.5, levels)
    return depth_colors(1 / inverse[None], 1.0, 2.0)[:, 0].T


def confidence_picture(confidence: Tensor, side: int) -> Tensor:
    """(h, w) confidence in [0, 1] to a coloured (3, h', w') picture; high is bright."""
    return confidence_colors(fit(confidence[None].to(torch.float32), side)[0])


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
