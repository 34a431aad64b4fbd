"""A small, fast family of worlds for miniature training: a few things on the ground, seen from an arc around them.

Everything is intersected in closed form and textured by sums of sine waves, so that hundreds of small pictures per
second come from one core. The ranges are those of the recipe that was measured to teach a small network pose and depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed
from relief3d.worlds.paths import look_at

_SOFT = 8.0
"""Steepness of the borders between colours; sharper ones would flicker between small pictures."""


@dataclass(frozen=True)
class TabletopConfig:
    """Parameters of the family; lengths in units of the scene, angles in degrees.

    Attributes:
        boxes: number of boxes, turned about the vertical.
        ellipsoids: number of ellipsoids.
        half_size: range of half sizes along each axis.
        spread: things stand within this radius.
        ground: radius of the ground; nothing but sky beyond.
        frequency: range of the textures' waves, radians per unit.
        ground_frequency: factor on it for the ground.
        colour: strength of colours; 0 is grey.
        radius: range of the camera's distance from the middle.
        radius_jitter: relative change of it per view.
        elevation: range of the camera's elevation.
        elevation_jitter: change of it per view.
        step: range of the angle along the arc between neighbouring views.
        aim: standard deviation of the point that is looked at.
        roll: largest turn about the optical axis.
        focal: range of the focal length over the picture's width.
        noise: standard deviation of the pixels' noise.
    """

    boxes: int = 4
    ellipsoids: int = 3
    half_size: tuple[float, float] = (0.14, 0.42)
    spread: float = 1.25
    ground: float = 6.3
    frequency: tuple[float, float] = (3.0, 9.0)
    ground_frequency: float = 0.6
    colour: float = 1.0
    radius: tuple[float, float] = (2.2, 2.9)
    radius_jitter: float = 0.15
    elevation: tuple[float, float] = (22.0, 42.0)
    elevation_jitter: float = 8.0
    step: tuple[float, float] = (10.0, 28.0)
    aim: float = 0.2
    roll: float = 6.0
    focal: tuple[float, float] = (0.9, 0.9)
    noise: float = 0.02

    def __post_init__(self) -> None:
        if self.boxes < 0 or self.ellipsoids < 0 or self.boxes + self.ellipsoids < 1:
            raise InputError("a table top needs at least one thing on it")


@dataclass(frozen=True)
class Tabletop:
    """Parameters of one world with S = 1 + boxes + ellipsoids surfaces; the first is the ground z = 0.

    Attributes:
        centre: (S - 1, 3) of the things.
        half: (S - 1, 3) half sizes.
        turn: (S - 1, 3, 3) object axes in the world, as columns.
        boxes: how many of the things, from the first, are boxes.
        waves: (S, 2, 3, 4) direction times frequency, and phase.
        colours: (S, 3, 3) RGB.
        light: (3,) unit, towards the light.
        sky: (3,) RGB.
        ground: radius.
    """

    centre: Tensor
    half: Tensor
    turn: Tensor
    boxes: int
    waves: Tensor
    colours: Tensor
    light: Tensor
    sky: Tensor
    ground: float

    @staticmethod
    def make(seed: int, config: TabletopConfig, device: torch.device | str = "cpu") -> Tabletop:
        """A world; the same seed and configuration give the same one."""
        rng = np.random.default_rng(derive_seed(seed, "tabletop"))
        things = config.boxes + config.ellipsoids
        half = rng.uniform(*config.half_size, (things, 3))
        angle, away = rng.uniform(0, 2 * np.pi, things), config.spread * np.sqrt(rng.uniform(0, 1, things))
        centre = np.stack([away * np.cos(angle), away * np.sin(angle), half[:, 2]], 1)
        yaw = rng.uniform(0, 2 * np.pi, things)
        turn = np.zeros((things, 3, 3))
        turn[:, 0, 0] = turn[:, 1, 1] = np.cos(yaw)
        turn[:, 1, 0], turn[:, 0, 1], turn[:, 2, 2] = np.sin(yaw), -np.sin(yaw), 1
        direction = rng.normal(size=(things + 1, 2, 3, 3))
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        frequency = rng.uniform(*config.frequency, (things + 1, 2, 3, 1))
        frequency[0] *= config.ground_frequency
        phase = rng.uniform(0, 2 * np.pi, (things + 1, 2, 3, 1))
        colours = rng.uniform(0.05, 1.0, (things + 1, 3, 3))
        grey = colours.mean(-1, keepdims=True)
        colours = grey + config.colour * (colours - grey)
        high, around = np.radians(rng.uniform(35, 80)), rng.uniform(0, 2 * np.pi)
        light = [np.cos(high) * np.cos(around), np.cos(high) * np.sin(around), np.sin(high)]
        sky = rng.uniform(0.5, 0.95, 3)
        sky = sky.mean() + config.colour * (sky - sky.mean())

        def tensor(value: np.ndarray | list[float]) -> Tensor:
            return torch.from_numpy(np.asarray(value, np.float32)).to(device)

        return Tabletop(
            tensor(centre),
            tensor(half),
            tensor(turn),
            config.boxes,
            tensor(np.concatenate([direction * frequency, phase], -1)),
            tensor(colours),
            tensor(light),
            tensor(sky),
            config.ground,
        )

    def hit(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """First hits of rays.

        Args:
            origin: (V, 3).
            direction: (V, R, 3), any length.

        Returns:
            Distance in lengths of the direction (V, R), infinity for the sky, and surface (V, R), 0 for the ground.
        """
        # Object frames in which every thing is a cube or ball of half size 1: (V, things, 3) and (V, R, things, 3).
        o = torch.einsum("kij,vki->vkj", self.turn, origin[:, None] - self.centre) / self.half
        into = self.turn / self.half[:, None, :]
        d = torch.einsum("kij,vri->jvrk", into, direction)
        b, at = self.boxes, o.permute(2, 0, 1)[:, :, None]
        found = []
        if b:
            slope = torch.where(d[..., :b].abs() < 1e-9, 1e-9, d[..., :b]).reciprocal()
            one, two = (-1 - at[..., :b]) * slope, (1 - at[..., :b]) * slope
            near, far = torch.minimum(one, two).amax(0), torch.maximum(one, two).amin(0)
            found.append(torch.where((near <= far) & (near > 0), near, torch.inf))
        if d.shape[-1] > b:
            db, ob = d[..., b:], at[..., b:]
            square, mixed = (db * db).sum(0), (db * ob).sum(0)
            root = mixed * mixed - square * ((ob * ob).sum(0) - 1)
            near = (-mixed - root.clamp_min(0).sqrt()) / square
            found.append(torch.where((root > 0) & (near > 0), near, torch.inf))
        t, which = torch.cat(found, -1).min(-1)
        down = direction[..., 2]
        flat = -origin[:, None, 2] / torch.where(down < -1e-9, down, -1e-9)
        spot = origin[:, None, :2] + flat[..., None] * direction[..., :2]
        flat = torch.where((down < -1e-9) & ((spot * spot).sum(-1) < self.ground**2), flat, torch.inf)
        return torch.minimum(t, flat), torch.where(t < flat, which + 1, 0)

    def normals(self, points: Tensor, surface: Tensor) -> Tensor:
        """(..., 3) unit normals in the world of points (..., 3) on surfaces (...,)."""
        thing = (surface - 1).clamp_min(0)
        turn, half = self.turn[thing], self.half[thing]
        local = torch.einsum("...ij,...i->...j", turn, points - self.centre[thing]) / half
        widest = local.abs().argmax(-1, keepdim=True)
        face = torch.zeros_like(local).scatter_(-1, widest, local.gather(-1, widest).sign())
        bent = torch.nn.functional.normalize(local / half, dim=-1)
        own = torch.where((thing < self.boxes)[..., None], face, bent)
        world = torch.einsum("...ij,...j->...i", turn, own)
        up = torch.tensor([0.0, 0.0, 1.0]).to(points.device)
        return torch.where((surface > 0)[..., None], world, up)

    def render(self, K: Tensor, world_from_cam: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Pictures (V, 3, H, W) in [0, 1] without noise, and z-depth (V, H, W), 0 for the sky.

        Args:
            K: (V, 3, 3) pixels.
            world_from_cam: (V, 4, 4).
            size: height and width.
        """
        height, width = size
        x = (torch.arange(width, device=K.device) + 0.5 - K[:, 0, 2, None]) / K[:, 0, 0, None]
        y = (torch.arange(height, device=K.device) + 0.5 - K[:, 1, 2, None]) / K[:, 1, 1, None]
        shape = (len(K), height, width)
        local = torch.stack(
            [x[:, None, :].expand(shape), y[:, :, None].expand(shape), torch.ones(shape).to(K)], -1
        )
        rays = local.flatten(1, 2) @ world_from_cam[:, :3, :3].transpose(1, 2)
        origin = world_from_cam[:, :3, 3]
        t, surface = self.hit(origin, rays)  # rays have z = 1 in the camera, so t is the depth
        seen = torch.isfinite(t)
        depth = torch.where(seen, t, 0.0)
        points = origin[:, None] + depth[..., None] * rays
        # The waves of all surfaces at once and then a choice: one matrix product is cheaper than gathering waves.
        every = torch.cat([points, torch.ones_like(points[..., :1])], -1) @ self.waves.flatten(0, 2).T
        own = surface[..., None, None].expand(*surface.shape, 1, 6)
        level = every.unflatten(-1, (-1, 6)).gather(-2, own)[..., 0, :]
        mix = torch.sigmoid(_SOFT * torch.sin(level).unflatten(-1, (2, 3)).sum(-1))
        colours = self.colours[surface]
        colour = torch.lerp(colours[..., 0, :], colours[..., 1, :], mix[..., :1])
        colour = torch.lerp(colour, colours[..., 2, :], mix[..., 1:])
        lit = 0.35 + 0.65 * (self.normals(points, surface) @ self.light).clamp_min(0)
        image = torch.where(seen[..., None], colour * lit[..., None], self.sky)
        return image.transpose(1, 2).unflatten(-1, size).clamp(0, 1), depth.unflatten(-1, size)


def tabletop_cameras(
    seed: int, config: TabletopConfig, views: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Cameras on an arc around the middle: ``K`` (V, 3, 3) and ``world_from_cam`` (V, 4, 4), float64."""
    rng = np.random.default_rng(derive_seed(seed, "tabletop cameras"))
    radius, high = rng.uniform(*config.radius), rng.uniform(*config.elevation)
    step, start = rng.uniform(*config.step) * rng.choice([-1.0, 1.0]), rng.uniform(0, 360)
    height, width = size
    focal = rng.uniform(*config.focal) * width
    poses = []
    for k in range(views):
        away = radius * (1 + config.radius_jitter * rng.uniform(-1, 1))
        around, up = (
            np.radians(start + k * step),
            np.radians(high + config.elevation_jitter * rng.uniform(-1, 1)),
        )
        eye = away * np.array([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)])
        target = config.aim * rng.normal(size=3) + [0, 0, 0.2]
        poses.append(look_at(eye, target, np.radians(config.roll * rng.uniform(-1, 1))))
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    return np.repeat(K[None], views, 0), np.stack(poses)
