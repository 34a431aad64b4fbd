"""Colours for depth and confidence.

Both maps are built here from a few anchors in the Oklab colour space (Ottosson, "A perceptual color
space for image processing", 2020): lightness rises evenly along the map, so equal steps of the value look
equally large and the map also reads in grey.

* ``depth_colors``: near is bright yellow, through green-blue, to far dark violet; unknown is black.
* ``confidence_colors``: low is dark red, high is bright green-white.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.core.errors import InputError

# Anchors (lightness, chroma, hue in degrees), from value 0 to value 1.
_DEPTH_LCH = (
    (0.93, 0.14, 105.0),
    (0.78, 0.14, 150.0),
    (0.62, 0.11, 205.0),
    (0.45, 0.14, 268.0),
    (0.28, 0.13, 305.0),
)
_CONFIDENCE_LCH = ((0.30, 0.12, 25.0), (0.50, 0.14, 50.0), (0.72, 0.14, 95.0), (0.92, 0.10, 140.0))


def oklab_to_srgb(lab: Tensor) -> Tensor:
    """Oklab (*, 3) to sRGB (*, 3) in [0, 1], clipped."""
    to_lms = lab.new_tensor(
        [
            [1.0, 0.3963377774, 0.2158037573],
            [1.0, -0.1055613458, -0.0638541728],
            [1.0, -0.0894841775, -1.2914855480],
        ]
    )
    to_rgb = lab.new_tensor(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = ((lab @ to_lms.T) ** 3 @ to_rgb.T).clamp(0, 1)
    return torch.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(1e-9) ** (1 / 2.4) - 0.055
    )


def _table(anchors: tuple[tuple[float, float, float], ...], steps: int = 256) -> Tensor:
    """(steps, 3) sRGB; anchors are joined by straight lines in lightness, chroma and hue."""
    lch = torch.tensor(anchors, dtype=torch.float64)
    where = torch.linspace(0, len(anchors) - 1, steps, dtype=torch.float64)
    low = where.floor().long().clamp(max=len(anchors) - 2)
    mix = lch[low] + (where - low)[:, None] * (lch[low + 1] - lch[low])
    angle = torch.deg2rad(mix[:, 2])
    return oklab_to_srgb(
        torch.stack((mix[:, 0], mix[:, 1] * angle.cos(), mix[:, 1] * angle.sin()), -1)
    ).float()


def _look_up(value: Tensor, table: Tensor) -> Tensor:
    index = (value.clamp(0, 1) * (table.shape[0] - 1)).round().long()
    return table.to(value.device)[index].movedim(-1, -3)


def depth_limits(depth: Tensor, low: float = 0.02, high: float = 0.98) -> tuple[float, float]:
    """Near and far limits for colouring: two quantiles of the known depths (1, 2) when nothing is known."""
    known = depth[torch.isfinite(depth) & (depth > 0)].float()
    if known.numel() == 0:
        return 1.0, 2.0
    if known.numel() > 1_000_000:
        known = known[:: known.numel() // 500_000]
    near, far = (float(torch.quantile(known, q)) for q in (low, high))
    return near, max(far, near * (1 + 1e-3))


def depth_colors(depth: Tensor, near: float | None = None, far: float | None = None) -> Tensor:
    """Colours (*, 3, H, W) of z-depth (*, H, W), even in inverse depth; unknown pixels are black.

    Args:
        depth: 0 or non-finite where unknown.
        near: depth of the brightest colour; None takes the 2 % quantile.
        far: depth of the darkest colour; None takes the 98 % quantile.

    Raises:
        InputError: when ``near`` is not positive or not below ``far``.
    """
    limits = depth_limits(depth)
    near, far = (limits[0] if near is None else near), (limits[1] if far is None else far)
    if not 0 < near < far:
        raise InputError(f"depth colours need 0 < near < far, got {near:g} and {far:g}")
    known = torch.isfinite(depth) & (depth > 0)
    inverse = 1.0 / torch.where(known, depth, torch.ones_like(depth)).float()
    value = (1 / near - inverse) / (1 / near - 1 / far)
    return _look_up(value, _table(_DEPTH_LCH)) * known.unsqueeze(-3)


def confidence_colors(confidence: Tensor, known: Tensor | None = None) -> Tensor:
    """Colours (*, 3, H, W) of confidence (*, H, W) in [0, 1]; black where ``known`` (*, H, W) is False."""
    colors = _look_up(confidence.float().nan_to_num(0.0), _table(_CONFIDENCE_LCH))
    return colors if known is None else colors * known.unsqueeze(-3)


def normal_colors(normals: Tensor) -> Tensor:
    """Colours (*, 3, H, W) of camera-frame unit normals (*, H, W, 3): x red, up green, towards the camera blue.

    Zero normals are black.
    """
    known = normals.norm(dim=-1) > 0.5
    flip = normals.new_tensor([1.0, -1.0, -1.0])
    return ((normals * flip + 1) / 2 * known[..., None]).clamp(0, 1).movedim(-1, -3)
