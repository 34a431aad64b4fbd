"""The demo: a furnished room photographed by a person walking with a phone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Camera
from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.worlds.config import demo_config
from relief3d.worlds.effects import apply_effects, phone_effects
from relief3d.worlds.generate import make_world
from relief3d.worlds.paths import handheld_arc
from relief3d.worlds.renderer import RenderedViews
from relief3d.worlds.world import World


@dataclass(frozen=True)
class Capture:
    """A simulated capture with its truth.

    Attributes:
        images: one (3, H, W) uint8 picture per view.
        cameras: true cameras, in capture order.
        depths: one (H, W) float32 exact z-depth map per view, metres.
        views: everything the renderer knows about the views.
        world: the room.
    """

    images: list[Tensor]
    cameras: list[Camera]
    depths: list[Tensor]
    views: RenderedViews
    world: World


def demo_capture(seed: int, n_views: int = 24, size: tuple[int, int] = (640, 480)) -> Capture:
    """A cluttered room of 4 x 5 m captured by hand: an arc walked around the middle, looking inwards.

    Neighbouring views are 3 to 8 degrees apart; the person stands where no furniture is in the way.

    Args:
        seed: fixes the room, the walk and the noise.
        n_views: number of pictures, at least 2.
        size: width and height in pixels.

    Raises:
        InputError: for fewer than two views.
    """
    if n_views < 2:
        raise InputError(f"a capture needs at least two views, got {n_views}")
    world = make_world(seed, demo_config()).compact()
    rng = np.random.default_rng(derive_seed(seed, "capture"))
    poses = _clear_path(world, rng, n_views)
    width, height = size
    focal = 0.82 * max(width, height) * float(rng.uniform(0.97, 1.03))
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    cameras = [Camera(width, height, K, pose) for pose in poses]
    views = world.render(cameras, supersample=2)
    generator = torch_generator(derive_seed(seed, "noise"))
    photographs = apply_effects(views.radiance, phone_effects(), generator)
    views = replace(views, image=photographs)
    images = [(image * 255 + 0.5).to(torch.uint8) for image in photographs]
    return Capture(images, cameras, list(views.depth), views, world)


def _clear_path(world: World, rng: np.random.Generator, n_views: int) -> Tensor:
    """The arc whose camera centres keep the largest distance from everything."""
    best, best_score = None, -math.inf
    span = math.radians(min(6.0 * (n_views - 1), 165.0))
    for _ in range(24):
        focus = np.array([rng.normal(0, 0.15), rng.normal(0, 0.15), rng.uniform(0.75, 0.95)])
        start = rng.uniform(0, math.tau)
        radius = rng.uniform(1.35, 1.6)
        poses = handheld_arc(
            rng, n_views, focus, radius, float(rng.uniform(1.35, 1.6)), span=span, start=start
        )
        clearance = float(world.sdf(poses[:, :3, 3].float()).min())
        # Nearest thing in the middle of each picture, so that no lamp fills the view.
        ahead = world.raycast(poses[None, :, :3, 3].float(), poses[None, :, :3, 2].float())[0]
        score = min(clearance, 0.35) + 0.25 * min(float(ahead.min()), 1.2)
        if score > best_score:
            best, best_score = poses, score
    assert best is not None
    return best
