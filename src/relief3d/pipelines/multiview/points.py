"""Sparse points with observations out of dense predictions, for programs that want a structure-from-motion model.

A point starts at a confident pixel of one view, is looked for in the depth of the others, and becomes the mean of what
the views that agree say. Its observations are where the pixel's ray meets each view, so the reprojection error that is
written is real: it measures how well depth and cameras of different views fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import SparsePoints
from relief3d.core.progress import Progress, track
from relief3d.geometry.projection import project_world, unproject
from relief3d.geometry.transforms import transform_points
from relief3d.pipelines.multiview.store import NetworkDepth
from relief3d.stereo.consistency import read_inverse_depth

MOST_POINTS = 100_000
CELL = 7
"""Pixels of the network's picture: one point per cell and view."""
RELATIVE, PIXELS = 0.03, 2.0
"""A view agrees when its depth differs by less, and the way there and back closes within so many pixels."""


@dataclass
class _Tracks:
    """Points and observations as they are found; observations in pixels of the network's pictures."""

    xyz: list[Tensor]
    rgb: list[Tensor]
    error: list[Tensor]
    point: list[Tensor]
    view: list[Tensor]
    xy: list[Tensor]
    count: int = 0


def sparse_points(
    poses: Tensor,
    depth: NetworkDepth,
    neighbours: Sequence[Sequence[int]],
    colours: Callable[[int], Tensor],
    progress: Progress,
) -> SparsePoints:
    """Points that at least two views agree on; with a single view, points of that view.

    Args:
        poses: (N, 4, 4) float64 world_from_cam.
        depth: of the views.
        neighbours: see :func:`relief3d.pipelines.multiview.neighbours.choose_neighbours`.
        colours: gives the (3, h, w) picture in [0, 1] of a view, framed as the network saw it; any size.
        progress: shown per view.

    Returns:
        Points in the scene's unit; ``obs_xy`` in pixels of the ORIGINAL pinhole pictures, ``error`` in those too.
    """
    count = len(depth.names)
    tracks = _Tracks([], [], [], [], [], [])
    height, width = depth.read(0)[0].shape
    grid = (-(-height // CELL), -(-width // CELL))
    taken = torch.zeros(count, *grid, dtype=torch.bool)
    budget = max(64, MOST_POINTS // count)
    for i in track(progress, "sparse points", range(count)):
        start = _seeds(depth, i, taken[i], budget)
        if len(start):
            _grow(tracks, poses, depth, i, start, neighbours[i], taken, colours(i), alone=count == 1)
    return _collected(tracks, depth)


def _seeds(depth: NetworkDepth, index: int, taken: Tensor, budget: int) -> Tensor:
    """(S, 2) int64 rows and columns: the most trusted pixel of every free cell, thinned to the budget."""
    values, trust = depth.read(index)
    height, width = values.shape
    usable = torch.where((values > 0) & (trust > 0), trust, torch.zeros_like(trust))
    rows, cols = taken.shape
    padded = torch.zeros(rows * CELL, cols * CELL)
    padded[:height, :width] = usable
    cells = padded.reshape(rows, CELL, cols, CELL).permute(0, 2, 1, 3).flatten(2)
    # Equal trust (a constant map) takes the middle of the cell, not its corner.
    offset = torch.arange(CELL) - CELL // 2
    central = (1 - 1e-6 * (offset[:, None].square() + offset[None].square()).float()).flatten()
    best, at = (cells * central).max(-1)
    free = (best > 0) & ~taken
    r, c = torch.nonzero(free, as_tuple=True)
    inner = at[free]
    pixels = torch.stack([r * CELL + inner // CELL, c * CELL + inner % CELL], -1)
    if len(pixels) > budget:
        pixels = pixels[torch.linspace(0, len(pixels) - 1, budget).long()]
    return pixels


def _grow(
    tracks: _Tracks,
    poses: Tensor,
    depth: NetworkDepth,
    i: int,
    start: Tensor,
    neighbours: Sequence[int],
    taken: Tensor,
    colours: Tensor,
    *,
    alone: bool,
) -> None:
    """Look for the seeds of view i in its neighbours; keep points that one of them confirms."""
    values, _ = depth.read(i)
    xy = start.flip(-1).double() + 0.5
    own = transform_points(poses[i], unproject(xy, values[start[:, 0], start[:, 1]].double(), depth.K[i]))
    total, votes = own.clone(), torch.ones(len(own), dtype=torch.float64)
    seen: list[tuple[int, Tensor, Tensor]] = [(i, torch.ones(len(own), dtype=torch.bool), xy)]
    for j in neighbours:
        agrees, where, there = _confirmed(poses, depth, i, j, own, xy)
        total += torch.where(agrees[:, None], there, torch.zeros_like(there))
        votes += agrees
        seen.append((j, agrees, where))
    keep = votes >= (1 if alone else 2)
    if not bool(keep.any()):
        return
    mean = total / votes[:, None]
    number = torch.cumsum(keep, 0) - 1 + tracks.count
    error = torch.zeros(len(own), dtype=torch.float64)
    for j, agrees, where in seen:
        used = agrees & keep
        at, _ = project_world(mean[used], depth.K[j], torch.linalg.inv(poses[j]))
        scale = float(depth.network_from_original[j][0, 0] * depth.network_from_original[j][1, 1]) ** 0.5
        error[used] += (at - where[used]).norm(dim=-1) / scale
        tracks.point.append(number[used])
        tracks.view.append(torch.full((int(used.sum()),), j, dtype=torch.int64))
        tracks.xy.append(where[used])
        cell = (where[used] / CELL).long()
        taken[j, cell[:, 1].clamp(0, taken.shape[1] - 1), cell[:, 0].clamp(0, taken.shape[2] - 1)] = True
    tracks.xyz.append(mean[keep])
    tracks.error.append((error / votes)[keep])
    rows = (start[keep, 0] * colours.shape[1] // values.shape[0]).clamp(0, colours.shape[1] - 1)
    cols = (start[keep, 1] * colours.shape[2] // values.shape[1]).clamp(0, colours.shape[2] - 1)
    tracks.rgb.append((colours[:, rows, cols].T.clamp(0, 1) * 255).round().to(torch.uint8))
    tracks.count += int(keep.sum())


def _confirmed(
    poses: Tensor, depth: NetworkDepth, i: int, j: int, points: Tensor, xy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Does view j's depth agree: (S,) bool, positions (S, 2) in j, and the points (S, 3) as j says."""
    values, trust = depth.read(j)
    inverse = torch.where((values > 0) & (trust > 0), 1 / values.clamp_min(1e-30), torch.zeros_like(values))
    where, z = project_world(points, depth.K[j], torch.linalg.inv(poses[j]))
    found = read_inverse_depth(inverse, where[:, 0].float(), where[:, 1].float()).double()
    z_there = 1 / found.clamp_min(1e-30)
    close = (found > 0) & (z > 0) & ((z_there / z.clamp_min(1e-30) - 1).abs() < RELATIVE)
    z_there = torch.where(close, z_there, torch.ones_like(z_there))
    there = transform_points(poses[j], unproject(where, z_there, depth.K[j]))
    back, _ = project_world(there, depth.K[i], torch.linalg.inv(poses[i]))
    return close & ((back - xy).norm(dim=-1) < PIXELS), where, there


def _collected(tracks: _Tracks, depth: NetworkDepth) -> SparsePoints:
    """All tracks, observations mapped to the original pictures."""

    def joined(parts: list[Tensor], like: Tensor) -> Tensor:
        return torch.cat(parts) if parts else like

    view = joined(tracks.view, torch.zeros(0, dtype=torch.int64))
    xy = joined(tracks.xy, torch.zeros(0, 2, dtype=torch.float64))
    back = torch.linalg.inv(depth.network_from_original)[view]
    xy = (back[:, :2, :2] @ xy[..., None])[..., 0] + back[:, :2, 2]
    return SparsePoints(
        xyz=joined(tracks.xyz, torch.zeros(0, 3, dtype=torch.float64)),
        rgb=joined(tracks.rgb, torch.zeros(0, 3, dtype=torch.uint8)),
        error=joined(tracks.error, torch.zeros(0, dtype=torch.float64)),
        obs_point=joined(tracks.point, torch.zeros(0, dtype=torch.int64)),
        obs_view=view,
        obs_xy=xy,
    )
