"""Which views show the same surface, from predicted depth and cameras alone."""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.core.contract import Camera
from relief3d.geometry.projection import project_world, unproject
from relief3d.geometry.transforms import transform_points
from relief3d.pipelines.multiview.store import NetworkDepth
from relief3d.stereo.views import PreparedView

SAMPLES = 48
USEFUL_ANGLE_DEG = 5.0
"""From this angle between the rays on, a second view is as good a witness as any."""


def prepared_views(poses: Tensor, depth: NetworkDepth, size: tuple[int, int]) -> list[PreparedView]:
    """Cameras at the network's size (height, width), without pictures, for the checks of dense stereo."""
    height, width = size
    empty = torch.zeros(0)
    return [
        PreparedView(i, depth.names[i], Camera(width, height, depth.K[i], poses[i]), empty)
        for i in range(len(depth.names))
    ]


def choose_neighbours(poses: Tensor, depth: NetworkDepth, most: int = 12) -> list[list[int]]:
    """For every view the views that see most of its surface, from a usefully different place.

    Args:
        poses: (N, 4, 4) float64 world_from_cam.
        depth: of the views.
        most: neighbours per view.

    Returns:
        Indices per view, best first; views that see nothing of it are left out.
    """
    count = len(depth.names)
    out: list[list[int]] = []
    cam_from_world = torch.linalg.inv(poses)
    frame = depth.content
    for i in range(count):
        values, trust = depth.read(i)
        points = _samples(values, trust, depth.K[i], poses[i])
        if not len(points):
            out.append([])
            continue
        xy, z = project_world(points.expand(count, -1, 3), depth.K, cam_from_world)
        inside = (z > 0) & (xy >= frame[:, None, :2]).all(-1) & (xy <= frame[:, None, 2:]).all(-1)
        share = inside.double().mean(-1)
        rays = points - poses[:, None, :3, 3]
        cosine = torch.nn.functional.cosine_similarity(rays, rays[i][None], dim=-1).clamp(-1, 1)
        angle = torch.rad2deg(torch.acos(cosine)).median(-1).values
        score = share * (angle / USEFUL_ANGLE_DEG).clamp(0.05, 1.0)
        score[i] = 0
        best = score.argsort(descending=True)[:most].tolist()
        out.append([j for j in best if float(share[j]) > 0.05 and j != i])
    return out


def _samples(values: Tensor, trust: Tensor, K: Tensor, pose: Tensor) -> Tensor:
    """(S, 3) float64 world points spread over the known pixels."""
    rows, cols = torch.nonzero((values > 0) & (trust > 0), as_tuple=True)
    if not len(rows):
        return torch.zeros(0, 3, dtype=torch.float64)
    pick = torch.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).long()
    rows, cols = rows[pick], cols[pick]
    xy = torch.stack([cols, rows], -1).double() + 0.5
    return transform_points(pose, unproject(xy, values[rows, cols].double(), K))
