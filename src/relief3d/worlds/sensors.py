"""Imitated depth sensors: what an RGB-D camera makes of an exact depth map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class DepthSensor:
    """Errors of an RGB-D camera.

    Attributes:
        near, far: working range in metres.
        noise: standard deviation at 1 m; grows with the square of depth, as for triangulating sensors.
        disparity_step: depth quantisation at 1 m, growing with the square of depth.
        grazing: cosine between surface and ray below which nothing returns.
        dark: albedo below which returns become rare.
        speckle: share of pixels lost at random.
        blobs: share of the picture lost in connected patches.
        bleed: how far in pixels foreground and background mix at outlines.
        shift: largest misregistration to the colour picture in pixels.
        dead_band: width in pixels of the shadow beside foreground outlines (left of them).
    """

    near: float = 0.3
    far: float = 6.0
    noise: float = 0.002
    disparity_step: float = 0.0015
    grazing: float = 0.12
    dark: float = 0.03
    speckle: float = 0.01
    blobs: float = 0.03
    bleed: int = 2
    shift: float = 2.0
    dead_band: int = 4


def sense_depth(
    depth: Tensor, normals: Tensor, albedo: Tensor, K: Tensor, sensor: DepthSensor, generator: torch.Generator
) -> Tensor:
    """A noisy depth map with holes.

    Args:
        depth: (*, H, W) exact z-depth, 0 for sky.
        normals: (*, H, W, 3) camera frame.
        albedo: (*, 3, H, W) linear.
        K: (*, 3, 3) pixels.
        sensor: its errors.
        generator: on the device of ``depth``.

    Returns:
        (*, H, W) z-depth in metres, 0 where the sensor returns nothing.
    """
    lead, (height, width) = depth.shape[:-2], depth.shape[-2:]
    device = depth.device
    z = depth.reshape(-1, 1, height, width)
    count = z.shape[0]

    def random(*shape: int) -> Tensor:
        return torch.rand((count, *shape), generator=generator, device=device)

    lost = (z < sensor.near) | (z > sensor.far)
    facing = _facing(normals, K.reshape(-1, 3, 3)).reshape(count, 1, height, width)
    lost = lost | (facing < sensor.grazing)
    brightness = albedo.mean(-3).reshape(count, 1, height, width)
    lost = lost | (random(1, height, width) > (brightness / max(sensor.dark, 1e-6)).clamp(0, 1))
    # Light source and camera stand side by side: what a near edge hides from one of them has no depth.
    if sensor.dead_band > 0:
        padded = F.pad(torch.where(z > 0, z, sensor.far), (0, sensor.dead_band, 0, 0), mode="replicate")
        ahead = -F.max_pool2d(-padded, (1, sensor.dead_band + 1), stride=1)
        lost = lost | (ahead < z * 0.93)
    z = _bleed(z, sensor.bleed, random(1, height, width))
    z = z + sensor.noise * z * z * torch.randn(z.shape, generator=generator, device=device)
    step = sensor.disparity_step * (z * z).clamp_min(1e-3)
    z = torch.round(z / step) * step
    lost = lost | (random(1, height, width) < sensor.speckle)
    coarse = F.interpolate(random(1, 9, 12), (height, width), mode="bicubic", align_corners=False)
    rank = coarse.flatten(1)
    edge = torch.quantile(rank, sensor.blobs, dim=1)[:, None, None, None] if sensor.blobs > 0 else -9.0
    lost = lost | (coarse < edge)
    z = torch.where(lost, 0.0, z)
    return _misregister(z, sensor.shift, random(2)).reshape(*lead, height, width)


def _facing(normals: Tensor, K: Tensor) -> Tensor:
    height, width = normals.shape[-3:-1]
    n = normals.reshape(-1, height, width, 3)
    x = (torch.arange(width, device=K.device) + 0.5 - K[:, 0, 2, None]) / K[:, 0, 0, None]
    y = (torch.arange(height, device=K.device) + 0.5 - K[:, 1, 2, None]) / K[:, 1, 1, None]
    ray = torch.rsqrt(x[:, None, :] ** 2 + y[:, :, None] ** 2 + 1)
    return (n[..., 0] * x[:, None, :] + n[..., 1] * y[:, :, None] + n[..., 2]).abs() * ray


def _bleed(z: Tensor, reach: int, pick: Tensor) -> Tensor:
    """Near outlines a pixel takes the depth of the nearer or farther side, or something between."""
    if reach < 1:
        return z
    size = 2 * reach + 1
    filled = torch.where(z > 0, z, z.amax((-2, -1), keepdim=True))
    high = F.max_pool2d(filled, size, stride=1, padding=reach)
    low = -F.max_pool2d(-filled, size, stride=1, padding=reach)
    at_edge = (high - low) > 0.06 * low
    mixed = torch.where(pick < 0.4, low, torch.where(pick < 0.8, z, 0.5 * (low + high)))
    return torch.where(at_edge & (z > 0), mixed, z)


def _misregister(z: Tensor, shift: float, random: Tensor) -> Tensor:
    """Shift each map by up to ``shift`` pixels, nearest neighbour, zeros from outside."""
    if shift <= 0:
        return z
    count, _, height, width = z.shape
    offset = torch.round((random * 2 - 1) * shift).to(torch.int64)
    rows = torch.arange(height, device=z.device)[None] + offset[:, :1]
    columns = torch.arange(width, device=z.device)[None] + offset[:, 1:]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    index = torch.arange(count, device=z.device)[:, None, None]
    moved = z[:, 0][index, rows[:, :, None], columns[:, None, :]]
    return torch.where(inside, moved, 0.0)[:, None]
