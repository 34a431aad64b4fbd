"""Predicted cameras for the room corner of ``plane_room``: the truth, disturbed as a network would err."""

from __future__ import annotations

import math

import numpy as np
import torch

from relief3d.core.contract import Camera, Depth, Scene, View
from relief3d.geometry.projection import project_world
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.sfm.predicted_tracks import Tracks

from .plane_room import PLANES, SIZE, arc_poses, intrinsics, render


def true_depth(pose: torch.Tensor, K: torch.Tensor, xy: np.ndarray) -> np.ndarray:
    """(N,) exact z-depth of the room at pixels (N, 2)."""
    T, M = pose.numpy(), K.numpy()
    camera = np.column_stack([(xy - M[[0, 1], [2, 2]]) / M[[0, 1], [0, 1]], np.ones(len(xy))])
    rays = camera @ T[:3, :3].T
    best = np.full(len(xy), np.inf)
    for normal, distance, _, _ in PLANES:
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (distance - T[:3, 3] @ normal) / (rays @ normal)
        best = np.where(np.isfinite(z) & (z > 1e-3) & (z < best), z, best)
    return best


def depth_map(pose: torch.Tensor, K: torch.Tensor, size=SIZE, step: int = 4) -> torch.Tensor:
    """(H / step, W / step) depth at a lower resolution, as a network gives it."""
    u, v = np.meshgrid((np.arange(size[0] // step) + 0.5) * step, (np.arange(size[1] // step) + 0.5) * step)
    z = true_depth(pose, K, np.column_stack([u.ravel(), v.ravel()]))
    return torch.from_numpy(z.reshape(u.shape)).float()


def room_tracks(
    poses, K, *, per_view: int = 60, noise: float = 0.3, wrong: float = 0.0, seed: int = 0
) -> Tracks:
    """Exact tracks from pixels of every view, with Gaussian ``noise`` in pixels; a ``wrong`` share of sightings."""
    generator = np.random.default_rng(seed)
    rows, seen = [], []
    for pose in poses:
        xy = generator.random((per_view, 2)) * SIZE
        z = true_depth(pose, K, xy)
        local = np.column_stack([(xy - K.numpy()[[0, 1], [2, 2]]) / float(K[0, 0]) * z[:, None], z])
        world = torch.from_numpy(local @ pose.numpy()[:3, :3].T + pose.numpy()[:3, 3])
        places, visible = [], []
        for other in poses:
            pixels, depth = project_world(world, K, torch.linalg.inv(other))
            inside = (depth > 0) & (pixels > 0).all(1) & (pixels < torch.tensor(SIZE)).all(1)
            hidden = torch.from_numpy(true_depth(other, K, pixels.numpy())) < depth * 0.995
            places.append(pixels)
            visible.append(inside & ~hidden)
        rows.append(torch.stack(places, 1))
        seen.append(torch.stack(visible, 1))
    xy, visible = torch.cat(rows), torch.cat(seen)
    xy = xy + noise * torch.from_numpy(generator.standard_normal(xy.shape))
    bad = torch.from_numpy(generator.random(visible.shape) < wrong)
    xy[bad] = torch.from_numpy(generator.random((int(bad.sum()), 2)) * SIZE)
    return Tracks(xy, visible)


def disturbed(pose: torch.Tensor, turn_deg: float, shift: float, generator) -> torch.Tensor:
    """Turned by ``turn_deg`` about a random axis and moved by ``shift`` in a random direction."""
    axis, way = generator.standard_normal(3), generator.standard_normal(3)
    out = pose.clone()
    angle = torch.from_numpy(axis / np.linalg.norm(axis) * math.radians(turn_deg))
    out[:3, :3] = matrix_from_axis_angle(angle) @ pose[:3, :3]
    out[:3, 3] += torch.from_numpy(shift * way / np.linalg.norm(way))
    return out


def predicted_room(
    count: int = 6,
    *,
    turn_deg: float = 2.0,
    shift: float = 0.03,
    focal: float = 1.08,
    jitter: float = 0.01,
    pictures: bool = False,
    poses=None,
    seed: int = 3,
    depth_factor: float = 1.0,
) -> tuple[Scene, list[torch.Tensor], torch.Tensor]:
    """A scene as a network predicts it, the true poses and the true K.

    ``shift`` is relative to the mean baseline of neighbours, ``focal`` a common factor, ``jitter`` its
    standard deviation among views.
    """
    generator = np.random.default_rng(seed)
    poses = arc_poses(count) if poses is None else poses
    K = intrinsics()
    centres = torch.stack([p[:3, 3] for p in poses])
    base = float((centres[1:] - centres[:-1]).norm(dim=1).mean())
    views = []
    for k, pose in enumerate(poses):
        guess = K.clone()
        guess[:2, :2] *= focal * (1 + jitter * generator.standard_normal())
        camera = Camera(
            *SIZE, guess, disturbed(pose, turn_deg, shift * base, generator), K_source="estimated"
        )
        depth = Depth.from_values(depth_map(pose, K) * depth_factor, metric=True)
        views.append(
            View(
                f"v{k}", camera, image=render(pose, K) if pictures else None, depth=lambda depth=depth: depth
            )
        )
    return Scene(tuple(views), metric=True), poses, K
