"""Imitated lidar and radar: patterns of rays cast into the exact world."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.worlds.shapes import Vec
from relief3d.worlds.tracing import nearest_hit
from relief3d.worlds.world import World


@dataclass(frozen=True)
class Scan:
    """Points of a ranging sensor; missing returns are marked, not removed, so shapes are fixed.

    Attributes:
        points: (W, R, 3) metres in the world, as measured (with errors); 0 where invalid.
        valid: (W, R) bool.
        range: (W, R) measured range in metres, 0 where invalid.
        true_range: (W, R) exact range along the ray, 0 where nothing is hit.
        slot: (W, R) primitive that was hit.
        speed: (W, R) radial speed in m/s, positive when receding; 0 for lidar.
    """

    points: Tensor
    valid: Tensor
    range: Tensor
    true_range: Tensor
    slot: Tensor
    speed: Tensor


def spinning_pattern(
    beams: int = 32, columns: int = 360, *, low: float = -25.0, high: float = 15.0
) -> Tensor:
    """Directions of a rotating lidar: (beams * columns, 3), x forward, y left, z up; angles in degrees."""
    elevation = torch.deg2rad(torch.linspace(low, high, beams, dtype=torch.float64))[:, None]
    azimuth = (torch.arange(columns, dtype=torch.float64) * (math.tau / columns))[None]
    cos = torch.cos(elevation)
    rays = torch.stack(
        [cos * torch.cos(azimuth), cos * torch.sin(azimuth), torch.sin(elevation).expand(-1, columns)], -1
    )
    return rays.reshape(-1, 3).float()


def rosette_pattern(count: int = 4096, *, field: float = 60.0) -> Tensor:
    """Directions of a solid-state lidar drawing a rosette: (count, 3), x forward; field of view in degrees."""
    t = torch.arange(count, dtype=torch.float64)
    # Two prisms turning at an irrational ratio fill the cone without repeating.
    radius = math.radians(field / 2) * torch.sin(t * 0.61803398875 * math.pi).abs()
    angle = t * 2.399963229728653
    return torch.stack(
        [torch.cos(radius), torch.sin(radius) * torch.cos(angle), torch.sin(radius) * torch.sin(angle)], -1
    ).float()


def _cast(
    world: World, world_from_sensor: Tensor, rays: Tensor, times: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """World directions (W, R, 3), range (W, R) with infinity for misses, slot (W, R)."""
    pose = world_from_sensor.to(world.device, torch.float32)
    directions = rays.to(world.device, torch.float32) @ pose[:, :3, :3].transpose(1, 2)
    world_of = torch.arange(world.count, device=world.device)
    when = torch.zeros(world.count, device=world.device) if times is None else times.to(world.device)
    frame = world.frame(world_of, when)
    origin = Vec(*(pose[:, i, 3, None] for i in range(3)))
    t, slot = nearest_hit(frame, frame.all_groups(), origin, Vec(*directions.unbind(-1)))
    return directions, t, slot


def lidar_scan(
    world: World,
    world_from_sensor: Tensor,
    rays: Tensor,
    generator: torch.Generator,
    *,
    times: Tensor | None = None,
    noise: float = 0.015,
    dropout: float = 0.05,
    reach: float = 60.0,
) -> Scan:
    """Range every ray of a pattern.

    Args:
        world: W worlds.
        world_from_sensor: (W, 4, 4) pose, x forward, z up.
        rays: (R, 3) directions in the sensor frame.
        generator: on the world's device.
        times: (W,) seconds.
        noise: standard deviation of the range in metres.
        dropout: share of lost returns; far returns are lost more often.
        reach: largest range in metres.
    """
    directions, t, slot = _cast(world, world_from_sensor, rays, times)
    true = torch.where(torch.isinf(t), 0.0, t)
    luck = torch.rand(t.shape, generator=generator, device=t.device)
    valid = torch.isfinite(t) & (t < reach) & (luck > dropout + 0.5 * (true / reach) ** 2)
    measured = true + noise * torch.randn(t.shape, generator=generator, device=t.device)
    origin = world_from_sensor.to(t)[:, None, :3, 3]
    points = origin + directions * measured[..., None]
    return Scan(
        torch.where(valid[..., None], points, 0.0),
        valid,
        torch.where(valid, measured, 0.0),
        true,
        slot,
        torch.zeros_like(t),
    )


def radar_scan(
    world: World,
    world_from_sensor: Tensor,
    generator: torch.Generator,
    *,
    times: Tensor | None = None,
    points: int = 96,
    field: tuple[float, float] = (100.0, 20.0),
    azimuth_noise: float = 1.5,
    range_noise: float = 0.2,
    reach: float = 80.0,
) -> Scan:
    """A few coarse points with radial speed, as an automotive radar gives.

    Args:
        world: W worlds.
        world_from_sensor: (W, 4, 4) pose, x forward, z up.
        generator: on the world's device.
        times: (W,) seconds.
        points: number of rays.
        field: horizontal and vertical field of view in degrees.
        azimuth_noise: standard deviation of the measured azimuth in degrees; elevation is measured as 0.
        range_noise: standard deviation of the range in metres.
        reach: largest range in metres.
    """
    device = world.device
    shape = (world.count, points)
    spread = torch.rand((2, *shape), generator=generator, device=device) - 0.5
    azimuth, elevation = torch.deg2rad(spread[0] * field[0]), torch.deg2rad(spread[1] * field[1])
    cos = torch.cos(elevation)
    rays = torch.stack([cos * torch.cos(azimuth), cos * torch.sin(azimuth), torch.sin(elevation)], -1)
    directions, t, slot = _cast(world, world_from_sensor, rays, times)
    true = torch.where(torch.isinf(t), 0.0, t)
    velocity = world.motion[..., :3].gather(1, slot[..., None].expand(-1, -1, 3))
    speed = (velocity * directions).sum(-1)
    valid = torch.isfinite(t) & (t < reach)
    measured = true + range_noise * torch.randn(shape, generator=generator, device=device)
    seen = azimuth + math.radians(azimuth_noise) * torch.randn(shape, generator=generator, device=device)
    local = torch.stack([torch.cos(seen), torch.sin(seen), torch.zeros_like(seen)], -1) * measured[..., None]
    pose = world_from_sensor.to(device, torch.float32)
    placed = local @ pose[:, :3, :3].transpose(1, 2) + pose[:, None, :3, 3]
    return Scan(
        torch.where(valid[..., None], placed, 0.0),
        valid,
        torch.where(valid, measured, 0.0),
        true,
        slot,
        torch.where(valid, speed, 0.0),
    )
