"""Camera paths: where a person, a robot or a car would take pictures."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def look_at(eye: np.ndarray, target: np.ndarray, roll: float = 0.0) -> np.ndarray:
    """``world_from_cam`` (4, 4) of an OpenCV camera at ``eye`` looking at ``target``, world z up."""
    z = np.asarray(target, np.float64) - eye
    z /= np.linalg.norm(z)
    x = np.cross(z, [0.0, 0.0, 1.0])
    x /= max(float(np.linalg.norm(x)), 1e-9)
    y = np.cross(z, x)
    c, s = np.cos(roll), np.sin(roll)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2] = c * x + s * y, c * y - s * x, z
    pose[:3, 3] = eye
    return pose


def smooth_wander(rng: np.random.Generator, count: int, dims: int, knots: int = 5) -> np.ndarray:
    """Smooth random curves of unit scale, (count, dims): cosine-interpolated random knots."""
    values = rng.normal(0, 1, (knots + 1, dims))
    at = np.linspace(0, knots - 1e-6, count)
    low = at.astype(int)
    part = (1 - np.cos((at - low) * np.pi))[:, None] / 2
    return values[low] * (1 - part) + values[low + 1] * part


def handheld_arc(
    rng: np.random.Generator,
    views: int,
    centre: np.ndarray,
    radius: float,
    height: float,
    *,
    span: float,
    start: float,
) -> Tensor:
    """A person walking along an arc around ``centre``, phone pointed roughly inwards.

    Args:
        rng: randomness.
        views: number of pictures.
        centre: (3,) point that is looked at.
        radius: metres from the centre.
        height: eye height above the floor.
        span: angle walked in radians.
        start: first angle.

    Returns:
        (views, 4, 4) float64 ``world_from_cam``.
    """
    angles = start + np.linspace(0, span, views) + smooth_wander(rng, views, 1)[:, 0] * span / views * 0.3
    wander = smooth_wander(rng, views, 3)
    sway = smooth_wander(rng, views, 3, knots=max(3, views // 3))
    poses = []
    for k in range(views):
        r = radius * (1 + 0.06 * wander[k, 0])
        eye = np.array([centre[0] + r * np.cos(angles[k]), centre[1] + r * np.sin(angles[k]), 0.0])
        eye[2] = height + 0.12 * wander[k, 1] + 0.03 * sway[k, 0]
        target = centre + 0.18 * np.array([sway[k, 1], sway[k, 2], wander[k, 2]])
        poses.append(look_at(eye, target, roll=0.035 * sway[k, 0]))
    return torch.from_numpy(np.stack(poses))
