"""Analytic scenes for the stereo tests: planes and spheres with a smooth solid texture, ray traced exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Scene, View


@dataclass(frozen=True)
class Plane:
    normal: tuple[float, float, float]
    offset: float

    def hit(self, origin: Tensor, rays: Tensor) -> Tensor:
        n = torch.tensor(self.normal, dtype=torch.float64)
        t = (self.offset - n @ origin) / (rays @ n)
        return torch.where(t > 1e-6, t, torch.full_like(t, torch.inf))


@dataclass(frozen=True)
class Sphere:
    centre: tuple[float, float, float]
    radius: float

    def hit(self, origin: Tensor, rays: Tensor) -> Tensor:
        m = origin - torch.tensor(self.centre, dtype=torch.float64)
        a, b, c = (rays * rays).sum(-1), rays @ m, m @ m - self.radius**2
        root = b * b - a * c
        t = (-b - root.clamp_min(0).sqrt()) / a
        return torch.where((root > 0) & (t > 1e-6), t, torch.full_like(t, torch.inf))


def solid_texture(points: Tensor, seed: int = 0, wavelength: float = 0.12) -> Tensor:
    """Grey in [0, 1] at world points (*, 3): random waves between ``wavelength`` and five times it."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(
        torch.randn(40, 3, generator=generator, dtype=torch.float64), dim=1
    )
    length = wavelength * (1 + 4 * torch.rand(40, generator=generator, dtype=torch.float64))
    phase = 2 * math.pi * torch.rand(40, generator=generator, dtype=torch.float64)
    waves = torch.sin(points @ (direction / length[:, None]).T * (2 * math.pi) + phase)
    return (0.5 + 0.12 * waves.sum(-1) / math.sqrt(20)).clamp(0, 1)


def look_at(centre: Sequence[float], target: Sequence[float]) -> Tensor:
    """(4, 4) world_from_cam of a camera at ``centre`` looking at ``target``; world y points down."""
    c, t = torch.tensor(centre, dtype=torch.float64), torch.tensor(target, dtype=torch.float64)
    forward = torch.nn.functional.normalize(t - c, dim=0)
    right = torch.nn.functional.normalize(
        torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]).double(), forward), dim=0
    )
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, torch.linalg.cross(forward, right), forward, c
    return pose


def render(
    surfaces: Sequence[Plane | Sphere], camera: Camera, seed: int = 0, wavelength: float = 0.12
) -> tuple:
    """(picture (3, H, W), z-depth (H, W)) float32."""
    assert camera.K is not None and camera.world_from_cam is not None
    y, x = torch.meshgrid(
        torch.arange(camera.height).double() + 0.5, torch.arange(camera.width).double() + 0.5, indexing="ij"
    )
    local = torch.stack([x, y, torch.ones_like(x)], -1) @ torch.linalg.inv(camera.K).T
    rays = local @ camera.world_from_cam[:3, :3].T
    origin = camera.world_from_cam[:3, 3]
    z = torch.stack([s.hit(origin, rays) for s in surfaces]).amin(0)
    grey = solid_texture(origin + rays * z.clamp_max(1e6)[..., None], seed, wavelength)
    grey = torch.where(torch.isfinite(z), grey, torch.zeros_like(grey))
    depth = torch.where(torch.isfinite(z), z, torch.zeros_like(z))
    return grey.expand(3, -1, -1).float().contiguous(), depth.float()


def make_scene(
    surfaces: Sequence[Plane | Sphere],
    centres: Sequence[Sequence[float]],
    target: Sequence[float] = (0.0, 0.0, 3.0),
    size: tuple[int, int] = (128, 96),
    focal: float = 120.0,
    **texture: float,
) -> Scene:
    """Scene with exact depth in ``View.depth`` (for the test to compare with)."""
    width, height = size
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    views = []
    for i, centre in enumerate(centres):
        camera = Camera(width, height, K, look_at(centre, target))
        image, depth = render(surfaces, camera, **texture)  # type: ignore[arg-type]
        views.append(View(f"{i:02d}", camera, image, Depth.from_values(depth)))
    return Scene(tuple(views), metric=True)


ARC = [(-0.5, 0.0, 0.0), (-0.25, -0.2, 0.0), (0.0, 0.0, 0.0), (0.25, -0.2, 0.0), (0.5, 0.0, 0.0)]
"""Five camera centres about 5 degrees apart seen from three metres."""
