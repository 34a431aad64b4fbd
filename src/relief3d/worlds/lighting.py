"""Sun, sky and lamps: direct light with shadows, ambient light, highlights, sky picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.worlds.noise import lookup_volume
from relief3d.worlds.shapes import Vec
from relief3d.worlds.surface import Surface


@dataclass(frozen=True)
class Lighting:
    """Lights of a batch of images.

    Attributes:
        lights: (I, L, LIGHT_COLUMNS): kind (0 sun, 1 lamp), direction to the sun or position, rgb, radius.
        sky: (I, SKY_COLUMNS).
        room: (I, 6) centre and half sizes of the room (half size 0 outdoors), for darker corners.
    """

    lights: Tensor
    sky: Tensor
    room: Tensor


def light_ray(
    lighting: Lighting, index: int, point: Vec, jitter: Tensor | None
) -> tuple[Vec, Tensor, Tensor]:
    """Direction to a point of a light, distance to it, and the light's strength.

    Args:
        lighting: the lights.
        index: which light.
        point: (I, R) surface points.
        jitter: (3, I, R) offsets in [-1, 1] that pick the point on the light; None for its centre.

    Returns:
        Unit direction (I, R) components, distance (I, R) (large for the sun), attenuation (I, R).
    """
    light = lighting.lights[:, index]
    is_sun = light[:, 0:1] < 0.5
    radius = light[:, 7:8]
    x, y, z = light[:, 1:2], light[:, 2:3], light[:, 3:4]
    if jitter is not None:
        x, y, z = x + radius * jitter[0], y + radius * jitter[1], z + radius * jitter[2]
    vx = torch.where(is_sun, x, x - point.x)
    vy = torch.where(is_sun, y, y - point.y)
    vz = torch.where(is_sun, z, z - point.z)
    length = torch.sqrt((vx * vx + vy * vy + vz * vz).clamp_min(1e-8))
    strength = torch.where(is_sun, 1.0, 1.0 / (0.3 + length * length))
    distance = torch.where(is_sun, 1e4, length)
    return Vec(vx / length, vy / length, vz / length), distance, strength


def _ambient(lighting: Lighting, s: Surface, channel: int) -> Tensor:
    up = 0.5 + 0.5 * s.normal.z
    above, below = lighting.sky[:, 6 + channel, None], lighting.sky[:, 9 + channel, None]
    return below + up * (above - below)


def corner_shade(lighting: Lighting, s: Surface) -> Tensor:
    """Darkening near the room's walls and, for objects, near the floor: a cheap stand-in for occlusion."""
    shade = torch.ones_like(s.point.x)
    for axis in range(3):
        half = lighting.room[:, 3 + axis, None]
        offset = (s.point[axis] - lighting.room[:, axis, None]).abs()
        gap = (half - offset).clamp_min(0)
        # A wall does not shade itself: only surfaces that face another way.
        other = 1 - s.normal[axis].abs()
        shade = shade * (1 - 0.4 * other * torch.exp(-gap * 4.5) * (half > 0))
    return shade


def shade(lighting: Lighting, s: Surface, view: Vec, direct: list[tuple[Vec, Tensor, Tensor]]) -> Vec:
    """Reflected light.

    Args:
        lighting: ambient light.
        s: surface.
        view: unit direction of the camera ray.
        direct: per light its direction, strength, and visibility in [0, 1].

    Returns:
        Linear radiance.
    """
    occlusion = corner_shade(lighting, s)
    diffuse = [_ambient(lighting, s, c) * occlusion for c in range(3)]
    glints = [torch.zeros_like(s.gloss) for _ in range(3)]
    for index, (to_light, strength, seen) in enumerate(direct):
        colour = lighting.lights[:, index, 4:7]
        cosine = (s.normal.x * to_light.x + s.normal.y * to_light.y + s.normal.z * to_light.z).clamp_min(0)
        hx, hy, hz = to_light.x - view.x, to_light.y - view.y, to_light.z - view.z
        inverse = torch.rsqrt((hx * hx + hy * hy + hz * hz).clamp_min(1e-8))
        lobe = ((s.normal.x * hx + s.normal.y * hy + s.normal.z * hz) * inverse).clamp_min(1e-4)
        glint = s.specular * torch.exp(s.gloss * torch.log(lobe)) * (0.1 * s.gloss + 1)
        lit = strength * seen * cosine
        for c in range(3):
            diffuse[c] = diffuse[c] + lit * colour[:, c, None]
            glints[c] = glints[c] + lit * glint * colour[:, c, None]
    return Vec(*(s.albedo[c] * (diffuse[c] + s.emission) + glints[c] for c in range(3)))


def sky_colour(lighting: Lighting, noise: Tensor, d: Vec) -> Vec:
    """Radiance of the sky: gradient, haze, clouds from the noise volume and a soft sun."""
    sky = lighting.sky
    up = d.z.clamp_min(0)
    fade = torch.exp(-up * (2.5 + sky[:, 13, None]))
    plane = 1.0 / (up + 0.12)
    cx, cy = d.x * plane, d.y * plane
    seed = sky[:, 12, None] * 97.0
    cloud = lookup_volume(noise, cx * 2.1 + seed, cy * 2.1, seed + 0 * cx)
    cloud = 0.65 * cloud + 0.35 * lookup_volume(noise, cx * 6.3 + seed, cy * 6.3, seed + 0 * cx)
    cover = ((cloud - 0.75 + 0.6 * sky[:, 12, None]) * 3).clamp(0, 1) * (up * 5).clamp(0, 1)
    light = lighting.lights[:, 0]
    is_sun = (light[:, 0:1] < 0.5).to(d.z.dtype)
    toward = (d.x * light[:, 1:2] + d.y * light[:, 2:3] + d.z * light[:, 3:4]).clamp(0, 1)
    glow = is_sun * (0.25 * toward**16 + 6.0 * (toward > 0.9995).to(d.z.dtype))
    out = []
    for c in range(3):
        zenith, horizon = sky[:, c, None], sky[:, 3 + c, None]
        clear = zenith + fade * (horizon - zenith)
        out.append(clear + cover * (0.9 * horizon + 0.1 - clear) + glow * light[:, 4 + c, None] * 0.3)
    return Vec(*out)
