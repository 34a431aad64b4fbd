"""A room corner of three textured planes, ray-cast exactly; pictures for structure from motion in milliseconds."""

from __future__ import annotations

import math

import numpy as np
import torch

from relief3d.core.contract import Camera, Scene, View

SIZE = (320, 240)
FOCAL = 300.0


def texture(seed: int, cells: int = 512) -> np.ndarray:
    """(cells, cells, 3) float noise in [0, 1] with detail at several scales."""
    generator = np.random.default_rng(seed)
    total = np.zeros((cells, cells, 3))
    for octave, weight in ((8, 0.5), (32, 0.7), (128, 0.8), (512, 0.4)):
        small = generator.random((octave, octave, 3))
        total += weight * np.kron(small, np.ones((cells // octave, cells // octave, 1)))
    return (total - total.min()) / (total.max() - total.min())


def look_at(eye, target) -> torch.Tensor:
    """(4, 4) world_from_cam with OpenCV axes; the world's y points down."""
    eye, target = np.asarray(eye, float), np.asarray(target, float)
    z = (target - eye) / np.linalg.norm(target - eye)
    x = np.cross([0.0, 1.0, 0.0], z)
    x /= np.linalg.norm(x)
    out = np.eye(4)
    out[:3, :3] = np.stack([x, np.cross(z, x), z], axis=1)
    out[:3, 3] = eye
    return torch.from_numpy(out)


def intrinsics(size=SIZE, focal: float = FOCAL, centre=(0.0, 0.0)) -> torch.Tensor:
    return torch.tensor(
        [[focal, 0.0, size[0] / 2 + centre[0]], [0.0, focal, size[1] / 2 + centre[1]], [0.0, 0.0, 1.0]],
        dtype=torch.float64,
    )


# Planes n . x = d with two in-plane axes: back wall z = 4, left wall x = -2, floor y = 1.2.
PLANES = (
    (np.array([0.0, 0.0, 1.0]), 4.0, np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])),
    (np.array([1.0, 0.0, 0.0]), -2.0, np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0])),
    (np.array([0.0, 1.0, 0.0]), 1.2, np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])),
)


def render(pose: torch.Tensor, K: torch.Tensor, size=SIZE, seed: int = 0, bend: float = 0.0) -> torch.Tensor:
    """(3, H, W) picture; ``bend`` is the first radial distortion coefficient of the lens."""
    width, height = size
    T, M = pose.numpy(), K.numpy()
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    xd, yd = (u - M[0, 2]) / M[0, 0], (v - M[1, 2]) / M[1, 1]
    x, y = xd.copy(), yd.copy()
    for _ in range(20):
        factor = 1.0 + bend * (x * x + y * y)
        x, y = xd / factor, yd / factor
    rays = np.stack([x, y, np.ones_like(x)], -1) @ T[:3, :3].T
    nearest = np.full((height, width), np.inf)
    picture = np.zeros((height, width, 3))
    for k, (normal, distance, a, b) in enumerate(PLANES):
        facing = rays @ normal
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = (distance - T[:3, 3] @ normal) / facing
        hit = np.isfinite(depth) & (depth > 1e-3) & (depth < nearest)
        points = T[:3, 3] + rays[hit] * depth[hit][:, None]
        picture[hit] = sample(texture(seed * 10 + k), points @ a * 80.0, points @ b * 80.0)
        nearest[hit] = depth[hit]
    return torch.from_numpy(picture).permute(2, 0, 1).float()


def sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear lookup that repeats the texture."""
    n = image.shape[0]
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    x1, y1 = (x0 + 1) % n, (y0 + 1) % n
    x0, y0 = x0 % n, y0 % n
    top = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
    return top * (1 - fy) + (image[y1, x0] * (1 - fx) + image[y1, x1] * fx) * fy


def arc_poses(count: int, seed: int = 0) -> list[torch.Tensor]:
    """Cameras on an arc around the corner, at slightly different heights."""
    generator = np.random.default_rng(seed)
    poses = []
    for k in range(count):
        a = math.radians(-35.0 + 60.0 * k / max(count - 1, 1))
        eye = (0.6 + 2.2 * math.sin(a), -0.2 + 0.25 * generator.standard_normal(), 2.6 - 2.4 * math.cos(a))
        poses.append(look_at(eye, (-0.7, 0.3, 3.2)))
    return poses


def make_scene(
    count: int = 6,
    *,
    known: str = "nothing",
    size=SIZE,
    focal: float = FOCAL,
    centre=(0.0, 0.0),
    bend: float = 0.0,
    poses: list[torch.Tensor] | None = None,
    **changes,
) -> tuple[Scene, list[torch.Tensor]]:
    """A scene and its true poses; ``known`` is "nothing", "K" or "all"."""
    poses = arc_poses(count) if poses is None else poses
    K = intrinsics(size, focal, centre)
    views = []
    for k, pose in enumerate(poses):
        camera = Camera(
            size[0], size[1], K if known in ("K", "all") else None, pose if known == "all" else None
        )
        views.append(View(f"picture {k}.png", camera, image=render(pose, K, size, bend=bend)))
    return Scene(tuple(views), **changes), poses
