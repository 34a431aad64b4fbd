"""Reading pictures and depth maps between pixels, by positions with pixel centres at +0.5."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.errors import InputError

SampleMode = Literal["bilinear", "nearest", "bicubic"]
Padding = Literal["zeros", "border", "reflection"]


def sample_image(
    image: Tensor, xy: Tensor, mode: SampleMode = "bilinear", padding: Padding = "zeros"
) -> Tensor:
    """Read a picture at pixel positions.

    Args:
        image: (*, C, H, W).
        xy: (*, ..., 2) positions in pixels, centres at +0.5: (0.5, 0.5) reads the first pixel exactly. Its
            leading dimensions are those of ``image`` (size 1 broadcasts); any number of dimensions follows.
        mode: interpolation.
        padding: what lies outside the picture.

    Returns:
        (*, C, ...), the type of ``image``.

    Raises:
        InputError: when the leading dimensions do not fit.
    """
    lead = image.shape[:-3]
    channels, height, width = image.shape[-3:]
    if xy.ndim < len(lead) + 1 or xy.shape[-1] != 2:
        raise InputError(f"positions {tuple(xy.shape)} do not fit an image {tuple(image.shape)}")
    points = xy.shape[len(lead) : -1]
    try:
        batch = torch.broadcast_shapes(lead, xy.shape[: len(lead)])
    except RuntimeError as exc:
        raise InputError(f"positions {tuple(xy.shape)} do not fit an image {tuple(image.shape)}") from exc
    flat_image = image.expand(*batch, channels, height, width).reshape(-1, channels, height, width)
    size = torch.tensor([width, height], dtype=xy.dtype, device=xy.device)
    grid = (2.0 * xy / size - 1.0).to(image.dtype)
    grid = grid.expand(*batch, *points, 2).reshape(flat_image.shape[0], 1, -1, 2)
    out = F.grid_sample(flat_image, grid, mode=mode, padding_mode=padding, align_corners=False)
    return out.reshape(*batch, channels, *points)


def sample_map(
    values: Tensor, xy: Tensor, mode: SampleMode = "bilinear", padding: Padding = "zeros"
) -> Tensor:
    """Read a single-channel map (*, H, W) at pixels (*, ..., 2) -> (*, ...)."""
    return sample_image(values.unsqueeze(-3), xy, mode, padding).squeeze(values.ndim - 2)


def sample_depth(depth: Tensor, xy: Tensor, max_ratio: float = 1.05) -> tuple[Tensor, Tensor]:
    """Read a depth map between pixels without mixing surfaces.

    Bilinear in log depth among the four neighbours; rejected where one of them is missing or the largest is
    more than ``max_ratio`` times the smallest (a depth edge).

    Args:
        depth: (*, H, W), 0 or non-finite where unknown.
        xy: (*, N, 2) pixels, centres at +0.5.
        max_ratio: largest allowed ratio among the four neighbours.

    Returns:
        depth (*, N), 0 where invalid, and validity (*, N) bool.
    """
    height, width = depth.shape[-2:]
    corner = xy - 0.5
    # On the outer half pixel the nearest inner cell would extrapolate; clamping repeats the border pixel.
    x = corner[..., 0].clamp(0, width - 1)
    y = corner[..., 1].clamp(0, height - 1)
    x = torch.where(torch.isfinite(x), x, torch.zeros_like(x))
    y = torch.where(torch.isfinite(y), y, torch.zeros_like(y))
    x0, y0 = x.detach().floor().long(), y.detach().floor().long()
    x1, y1 = (x0 + 1).clamp(max=width - 1), (y0 + 1).clamp(max=height - 1)
    fx, fy = (x - x0).to(depth.dtype), (y - y0).to(depth.dtype)
    flat = depth.flatten(-2)
    lead = torch.broadcast_shapes(flat.shape[:-1], xy.shape[:-2])
    flat = flat.expand(*lead, flat.shape[-1])
    near = torch.stack(
        [
            flat.gather(-1, (yy * width + xx).expand(*lead, xy.shape[-2]))
            for yy, xx in ((y0, x0), (y0, x1), (y1, x0), (y1, x1))
        ]
    )
    weight = torch.stack([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx])
    known = torch.isfinite(near) & (near > 0)
    safe = torch.where(known, near, torch.ones_like(near))
    inside = (xy[..., 0] >= 0) & (xy[..., 0] <= width) & (xy[..., 1] >= 0) & (xy[..., 1] <= height)
    valid = known.all(0) & (safe.amax(0) <= max_ratio * safe.amin(0)) & inside
    value = (weight * safe.log()).sum(0).exp()
    return torch.where(valid, value, torch.zeros_like(value)), valid
