"""A small room with exact depth, matches and surface, made by formulas: six walls and some spheres."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Camera
from relief3d.geometry.projection import intrinsics, normalize_pixels, project_world, world_rays
from relief3d.geometry.transforms import look_at
from relief3d.methods.vfm_recon.inputs import PairMatches, SubmapDepth
from relief3d.methods.vfm_recon.submaps import Submap

LOW = torch.tensor([-3.0, -2.5, 0.0], dtype=torch.float64)
HIGH = torch.tensor([3.0, 2.5, 3.0], dtype=torch.float64)
SPHERES = [
    (-2.0, 0.5, 0.6, 0.6),
    (1.8, -1.5, 0.5, 0.5),
    (2.2, 1.2, 1.2, 0.4),
    (-0.5, 2.0, 0.7, 0.45),
    (-1.2, -2.0, 1.4, 0.4),
]
UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


def ray_depth(origin: Tensor, directions: Tensor) -> Tensor:
    """Parameter of the first hit of rays (*, 3) from a point inside the room."""
    safe = torch.where(directions.abs() < 1e-12, 1e-12, directions)
    wall = torch.maximum((LOW - origin) / safe, (HIGH - origin) / safe).amin(-1)
    best = wall
    for *centre, radius in SPHERES:
        to = origin - torch.tensor(centre, dtype=torch.float64)
        a, b = directions.square().sum(-1), (directions * to).sum(-1)
        root = b * b - a * (to @ to - radius * radius)
        t = (-b - root.clamp_min(0).sqrt()) / a
        best = torch.where((root > 0) & (t > 1e-9) & (t < best), t, best)
    return best


def surface_distance(points: Tensor) -> Tensor:
    """Distance of points (N, 3) to the nearest surface of the room."""
    p = points.double()
    best = torch.minimum((p - LOW).abs(), (HIGH - p).abs()).amin(-1)
    outside = torch.maximum(LOW - p, p - HIGH).clamp_min(0).norm(dim=-1)
    best = torch.where(outside > 0, outside, best)
    for *centre, radius in SPHERES:
        away = (p - torch.tensor(centre, dtype=torch.float64)).norm(dim=-1)
        best = torch.minimum(best, (away - radius).abs())
    return best


def orbit(count: int, turns: float = 1.0, size: tuple[int, int] = (64, 48)) -> list[Camera]:
    """Cameras on an ellipse that look outward."""
    width, height = size
    K = intrinsics(0.82 * width, 0.82 * width, width / 2, height / 2)
    out = []
    for i in range(count):
        angle = 2 * math.pi * turns * i / count
        spot = torch.tensor([1.2 * math.cos(angle), 1.0 * math.sin(angle), 1.5], dtype=torch.float64)
        ahead = torch.tensor([math.cos(angle + 0.4), math.sin(angle + 0.4), -0.2], dtype=torch.float64)
        out.append(Camera(width, height, K, look_at(spot, spot + ahead, UP)))
    return out


def turning(count: int, size: tuple[int, int] = (64, 48)) -> list[Camera]:
    """Cameras in one place that only turn."""
    out = []
    for camera in orbit(count, 0.3, size):
        assert camera.world_from_cam is not None
        pose = camera.world_from_cam.clone()
        pose[:3, 3] = torch.tensor([0.1, 0.2, 1.5])
        out.append(camera.replace(world_from_cam=pose))
    return out


def exact_depth(camera: Camera) -> Tensor:
    """(H, W) float32 z-depth."""
    assert camera.K is not None and camera.world_from_cam is not None
    origin, rays = world_rays(camera.K, camera.world_from_cam, camera.height, camera.width)
    return ray_depth(origin, rays).float()


@dataclass
class Corruption:
    """How exact depth becomes that of a foundation model.

    Attributes:
        scales: ln of the factor that brings a submap's depth to the truth, by submap index; 0 for others.
        noise: deviation of smooth noise in log depth, per prediction.
        frame: deviation of a factor per prediction.
        seed: of the noise.
    """

    scales: Sequence[float] = ()
    noise: float = 0.0
    frame: float = 0.0
    seed: int = 0


class FakeDepth:
    """A depth source made from exact depth."""

    def __init__(self, cameras: Sequence[Camera], corruption: Corruption | None = None) -> None:
        self.exact = [exact_depth(c) for c in cameras]
        self.corruption = corruption or Corruption()
        self.asked: list[Submap] = []
        self.edit: Callable[[Submap, Tensor], Tensor] | None = None

    def __call__(self, submap: Submap) -> SubmapDepth:
        self.asked.append(submap)
        c = self.corruption
        depth = torch.stack([self.exact[t] for t in submap.frames])
        log = c.scales[submap.index] if submap.index < len(c.scales) else 0.0
        generator = torch.Generator().manual_seed(c.seed * 1000 + submap.index)
        if c.noise:
            coarse = torch.randn(len(depth), 1, 4, 5, generator=generator)
            smooth = torch.nn.functional.interpolate(coarse, depth.shape[-2:], mode="bicubic")[:, 0]
            depth = depth * (c.noise * smooth / smooth.std()).exp()
        if c.frame:
            depth = depth * (c.frame * torch.randn(len(depth), 1, 1, generator=generator)).exp()
        depth = depth * math.exp(-log)
        if self.edit is not None:
            depth = self.edit(submap, depth)
        return SubmapDepth(depth, torch.ones_like(depth))


def true_matches(
    cameras: Sequence[Camera],
    count: int = 60,
    noise: float = 0.0,
    outliers: float = 0.0,
    seed: int = 0,
) -> Callable[[int, int], PairMatches | None]:
    """A match source: points that both cameras see, with noise in pixels and a share of wrong partners."""
    exact = [exact_depth(c) for c in cameras]

    def between(a: int, b: int) -> PairMatches | None:
        first, second = cameras[a], cameras[b]
        assert first.K is not None and first.world_from_cam is not None
        assert second.K is not None and second.world_from_cam is not None
        generator = torch.Generator().manual_seed(seed + 7919 * a + b)
        height, width = exact[a].shape
        xy = torch.rand(3 * count, 2, generator=generator, dtype=torch.float64) * torch.tensor(
            [width, height]
        )
        rays = torch.cat([normalize_pixels(xy, first.K), torch.ones(len(xy), 1, dtype=torch.float64)], -1)
        pose = first.world_from_cam
        directions = rays @ pose[:3, :3].T
        points = pose[:3, 3] + directions * ray_depth(pose[:3, 3], directions)[:, None]
        other, z = project_world(points, second.K, torch.linalg.inv(second.world_from_cam))
        inside = (z > 0) & (other >= 0).all(-1) & (other[:, 0] < width) & (other[:, 1] < height)
        back = points - second.world_from_cam[:3, 3]
        visible = inside & (ray_depth(second.world_from_cam[:3, 3], back) > 1 - 1e-6)
        xy, other = xy[visible][:count], other[visible][:count]
        if len(xy) < 8:
            return None
        other = other + noise * torch.randn(other.shape, generator=generator, dtype=torch.float64)
        wrong = torch.rand(len(xy), generator=generator) < outliers
        other[wrong] = torch.rand(int(wrong.sum()), 2, generator=generator).double() * torch.tensor(
            [width, height]
        )
        return PairMatches(xy, other)

    return between
