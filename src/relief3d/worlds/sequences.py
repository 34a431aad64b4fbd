"""Sequences of views that are worth learning from: with real parallax and overlap, checked against the world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed
from relief3d.worlds.paths import drive, handheld_arc, orbit, pan, walk_through
from relief3d.worlds.world import World

PathKind = Literal["orbit", "walk", "handheld", "drive", "low_parallax"]
PATHS: tuple[PathKind, ...] = ("orbit", "walk", "handheld", "drive", "low_parallax")

PROBE = (12, 16)
"""Rows and columns of the coarse depth maps that judge a candidate."""


@dataclass(frozen=True)
class ViewSequence:
    """Cameras of W worlds with V views each.

    Attributes:
        K: (W, V, 3, 3) pixels; world_from_cam: (W, V, 4, 4).
        world_from_cam: poses.
        accepted: (W,) bool, True when the chosen path meets every rule.
        parallax: (W,) mean baseline of neighbours over their median depth.
        overlap: (W,) mean share of a view that its neighbour sees too.
        clearance: (W,) distance of the nearest surface to any camera, metres.
    """

    K: Tensor
    world_from_cam: Tensor
    accepted: Tensor
    parallax: Tensor
    overlap: Tensor
    clearance: Tensor


def random_intrinsics(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A pinhole of 45 to 80 degrees across the longer side, principal point within 2 % of the middle, (3, 3)."""
    height, width = size
    focal = 0.5 * max(height, width) / np.tan(np.radians(rng.uniform(45, 80)) / 2)
    centre = np.array([width, height]) * (0.5 + rng.uniform(-0.02, 0.02, 2))
    return np.array([[focal, 0, centre[0]], [0, focal * rng.uniform(0.99, 1.01), centre[1]], [0, 0, 1]])


def candidate_path(rng: np.random.Generator, kind: PathKind, focus: np.ndarray, views: int) -> np.ndarray:
    """One random path (V, 4, 4) of a kind, placed by a world's ``focus`` row (8,)."""
    centre, reach, half, height = focus[:3], float(focus[3]), focus[4:6], (float(focus[6]), float(focus[7]))
    if kind == "orbit":
        radius = min(reach * rng.uniform(0.9, 2.2), float(half.min()) * 0.95)
        return orbit(rng, views, centre, radius, step=rng.uniform(0.12, 0.45), height=height)
    if kind == "handheld":
        radius = min(reach * rng.uniform(0.9, 1.8), float(half.min()) * 0.9)
        span = rng.uniform(0.12, 0.3) * views
        eye = rng.uniform(*height)
        start = rng.uniform(0, 2 * np.pi)
        return handheld_arc(rng, views, centre, radius, eye, span=span, start=start).numpy()
    if kind == "drive":
        return drive(rng, views, half, height, step=rng.uniform(0.6, 3.0))
    if kind == "low_parallax":
        return pan(rng, views, half, height, step=rng.uniform(0.03, 0.25))
    return walk_through(rng, views, half, height, step=rng.uniform(0.1, 0.35) * max(reach, 1.0))


def make_sequences(
    world: World,
    *,
    views: int = 4,
    seed: int = 0,
    size: tuple[int, int] = (224, 224),
    kind: PathKind | None = None,
    candidates: int = 12,
    parallax: tuple[float, float] = (0.1, 0.5),
    overlap: tuple[float, float] = (0.3, 0.9),
) -> ViewSequence:
    """Choose, for each world, the first random path that keeps clear of things, moves and overlaps enough.

    Candidates are judged by coarse exact depth maps on the world's device, without waiting for it. A path of
    kind "low_parallax" must instead stay below a parallax of 0.03.

    Args:
        world: W worlds.
        views: views per world, at least 2.
        seed: fixes the choice.
        size: height and width of the pictures.
        kind: path kind; each world draws its own when None (drive only in streets is up to the caller).
        candidates: paths tried per world.
        parallax: allowed mean baseline of neighbours over median depth.
        overlap: allowed mean overlap of neighbours.

    Raises:
        InputError: for fewer than two views or an unknown kind.
    """
    if views < 2:
        raise InputError(f"a sequence needs at least two views, got {views}")
    if kind is not None and kind not in PATHS:
        raise InputError(f"unknown path '{kind}'", remedy=f"use one of {', '.join(PATHS)}")
    focus = world.focus.cpu().double().numpy()
    K, poses, still = [], [], []
    for w in range(world.count):
        rng = np.random.default_rng(derive_seed(seed, "sequence", w))
        own: PathKind = kind or PATHS[int(rng.integers(3))]
        K.append(random_intrinsics(rng, size))
        poses.append(np.stack([candidate_path(rng, own, focus[w], views) for _ in range(candidates)]))
        still.append(own == "low_parallax")
    device = world.device
    intrinsics = torch.from_numpy(np.stack(K)).float().to(device, non_blocking=True)
    paths = torch.from_numpy(np.stack(poses)).float().to(device, non_blocking=True)
    low = torch.tensor(still).to(device, non_blocking=True)
    share, moved, clear = judge_paths(world, intrinsics, paths, size)
    moving = (moved >= parallax[0]) & (moved <= parallax[1]) & (share >= overlap[0]) & (share <= overlap[1])
    resting = (moved < 0.03) & (share >= overlap[0])
    good = torch.where(low[:, None], resting, moving) & (clear > 0.2)
    # Highest score: the first accepted path, else the one nearest to the rules.
    order = torch.arange(candidates, device=device) * 1e-3
    middle = 0.5 * (parallax[0] + parallax[1])
    miss = (moved - torch.where(low[:, None], 0.0, middle)).abs() + (0.6 - share).abs() + (clear < 0.2) * 4.0
    best = torch.where(good, 100.0 - order, -miss).argmax(1)
    pick = best[:, None]
    chosen = paths.gather(1, best[:, None, None, None, None].expand(-1, 1, views, 4, 4))[:, 0]
    return ViewSequence(
        intrinsics[:, None].expand(-1, views, 3, 3).contiguous(),
        chosen,
        good.gather(1, pick)[:, 0],
        moved.gather(1, pick)[:, 0],
        share.gather(1, pick)[:, 0],
        clear.gather(1, pick)[:, 0],
    )


def judge_paths(
    world: World, K: Tensor, paths: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap, parallax and clearance of candidate paths.

    Args:
        world: W worlds.
        K: (W, 3, 3) pixels.
        paths: (W, C, V, 4, 4).
        size: height and width.

    Returns:
        Overlap, parallax and clearance in metres, each (W, C).
    """
    rows, columns = PROBE
    height, width = size
    worlds, count, views = paths.shape[:3]
    y = (torch.arange(rows, device=paths.device) + 0.5) * (height / rows)
    x = (torch.arange(columns, device=paths.device) + 0.5) * (width / columns)
    rx = (x[None, None, :] - K[:, 0, 2, None, None]) / K[:, 0, 0, None, None]
    ry = (y[None, :, None] - K[:, 1, 2, None, None]) / K[:, 1, 1, None, None]
    shape = (worlds, rows, columns)
    local = torch.stack([rx.expand(shape), ry.expand(shape), torch.ones(shape, device=paths.device)], -1)
    local = local.reshape(worlds, 1, 1, rows * columns, 3)
    R, c = paths[..., :3, :3], paths[..., None, :3, 3]
    rays = local @ R.transpose(-1, -2)
    length = torch.linalg.vector_norm(rays, dim=-1)
    origins = c.expand_as(rays).reshape(worlds, -1, 3)
    t, _ = world.raycast(origins, rays.reshape(worlds, -1, 3))
    z = (t.reshape(length.shape) / length).clamp_max(80.0)
    middle = z.flatten(3).median(-1).values
    base = torch.linalg.vector_norm(c[:, :, 1:, 0] - c[:, :, :-1, 0], dim=-1)
    moved = (base / middle[:, :, :-1].clamp_min(0.1)).mean(-1)
    points = (rays * z[..., None] + c)[:, :, :-1]
    target = paths[:, :, 1:]
    seen = (points - target[..., None, :3, 3]) @ target[..., :3, :3]
    depth = seen[..., 2].clamp_min(1e-3)
    u = K[:, 0, 0, None, None, None] * seen[..., 0] / depth + K[:, 0, 2, None, None, None]
    v = K[:, 1, 1, None, None, None] * seen[..., 1] / depth + K[:, 1, 2, None, None, None]
    inside = (seen[..., 2] > 0.05) & (u > 0) & (u < width) & (v > 0) & (v < height)
    column = (u * (columns / width)).clamp(0, columns - 1).long()
    row = (v * (rows / height)).clamp(0, rows - 1).long()
    there = z[:, :, 1:].gather(-1, row * columns + column)
    agree = (there > 0.85 * depth - 0.05) & inside
    share = agree.float().mean((-1, -2))
    clear = world.sdf(paths[..., :3, 3].reshape(worlds, -1, 3)).reshape(worlds, count, views).amin(-1)
    nearest = z.amin((-1, -2))
    return share, moved, torch.minimum(clear, 0.6 * nearest)
