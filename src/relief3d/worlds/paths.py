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


def orbit(
    rng: np.random.Generator,
    views: int,
    centre: np.ndarray,
    radius: float,
    *,
    step: float,
    height: tuple[float, float],
) -> np.ndarray:
    """Around ``centre`` at ``radius`` metres, ``step`` radians per view, at a height in the given range."""
    start = rng.uniform(0, 2 * np.pi)
    turn = float(rng.choice([-1.0, 1.0])) * step
    low, high = rng.uniform(*height, 2)
    poses = []
    for k in range(views):
        angle = start + turn * k
        z = low + (high - low) * k / max(views - 1, 1)
        eye = np.array([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle), z])
        target = centre + rng.normal(0, 0.05 * radius, 3)
        poses.append(look_at(eye, target, roll=rng.normal(0, 0.04)))
    return np.stack(poses)


def walk_through(
    rng: np.random.Generator, views: int, half: np.ndarray, height: tuple[float, float], *, step: float
) -> np.ndarray:
    """Walking inside a rectangle of half size ``half`` (2,), looking partly ahead and partly to the side."""
    start = rng.uniform(-0.85, 0.85, 2) * half
    goal = rng.uniform(-0.6, 0.6, 2) * half
    heading = np.arctan2(*(goal - start)[::-1]) + rng.normal(0, 0.3)
    look = heading + float(rng.choice([-1.0, 0.0, 1.0])) * rng.uniform(0.2, 1.3)
    bend, sweep = rng.normal(0, 0.12), rng.normal(0, 0.08)
    z, pitch = rng.uniform(*height), rng.normal(-0.12, 0.12)
    eye, poses = np.array([*start, z]), []
    for _ in range(views):
        gaze = np.array([np.cos(look) * np.cos(pitch), np.sin(look) * np.cos(pitch), np.sin(pitch)])
        poses.append(look_at(eye, eye + gaze, roll=rng.normal(0, 0.03)))
        eye = eye + np.array([step * np.cos(heading), step * np.sin(heading), rng.normal(0, 0.02)])
        heading, look = heading + bend, look + sweep
    return np.stack(poses)


def drive(
    rng: np.random.Generator, views: int, half: np.ndarray, height: tuple[float, float], *, step: float
) -> np.ndarray:
    """A car along x: forward view with slight steering, or a camera looking sideways."""
    lateral = rng.uniform(-0.6, 0.6) * half[1]
    x, z = rng.uniform(-1.0, -0.2) * half[0], rng.uniform(*height)
    side = float(rng.choice([0.0, 0.0, 0.6, -0.6]))
    yaw = rng.normal(0, 0.04) + side
    drift, poses = rng.normal(0, 0.015), []
    for k in range(views):
        eye = np.array([x + k * step, lateral + drift * k * step, z + rng.normal(0, 0.01)])
        gaze = np.array([np.cos(yaw + drift * k), np.sin(yaw + drift * k), rng.normal(-0.03, 0.01)])
        poses.append(look_at(eye, eye + gaze, roll=rng.normal(0, 0.01)))
    return np.stack(poses)


def pan(
    rng: np.random.Generator, views: int, half: np.ndarray, height: tuple[float, float], *, step: float
) -> np.ndarray:
    """Turning on the spot, ``step`` radians per view, with centimetres of movement: almost no parallax."""
    eye = np.array([*(rng.uniform(-0.7, 0.7, 2) * half), rng.uniform(*height)])
    look, pitch = rng.uniform(0, 2 * np.pi), rng.normal(-0.1, 0.1)
    turn, poses = float(rng.choice([-1.0, 1.0])) * step, []
    for k in range(views):
        angle = look + turn * k
        gaze = np.array([np.cos(angle) * np.cos(pitch), np.sin(angle) * np.cos(pitch), np.sin(pitch)])
        here = eye + rng.normal(0, 0.008, 3)
        poses.append(look_at(here, here + gaze, roll=rng.normal(0, 0.03)))
    return np.stack(poses)
