"""The guidance channel: a coarse truncated distance made of the given depth (FineRecon; specification 4.4).

Its sign is the opposite of every other signed distance here: -1 in front of a surface, +1 behind it, and +1 also where
nothing was observed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.models.volume.back_projection import Views, nearest_depth, project_view

MARGIN_VOXELS = 3.0
KEEP = 0.999


class Guidance:
    """Running mean over views at N points.

    Args:
        points: (N, 3) in the world.
        margin: truncation in world units; 3 voxels in FineRecon.
        kind: ``tsdf``, or ``density``: the share of the views that have depth there and a surface within
            sqrt(3) / 2 voxels of the point (FineRecon's alternative).
    """

    def __init__(self, points: Tensor, margin: float, kind: str = "tsdf") -> None:
        if not margin > 0:
            raise InputError(f"a guidance margin is positive, not {margin:g}")
        if kind not in ("tsdf", "density"):
            raise InputError(f"there is no guidance '{kind}'", remedy="use tsdf or density")
        self.points, self.margin, self.kind = points, margin, kind
        dtype = torch.float64 if points.dtype == torch.float64 else torch.float32
        self.total = points.new_zeros(len(points), dtype=dtype)
        self.weight = points.new_zeros(len(points), dtype=dtype)

    def add(self, depth: Tensor, views: Views) -> None:
        """Add depth maps (V, Hd, Wd), 0 or not finite where unknown, of the pictures of ``views``."""
        for view in range(len(views)):
            xy, z, seen = project_view(self.points, views, view)
            where = seen.nonzero()[:, 0]
            if not len(where):
                continue
            z = z[where].to(self.total.dtype)
            d = nearest_depth(depth[view], xy[where], views.size).to(z)
            if self.kind == "density":
                kept = d > 0
                value = ((z - d).abs() < 3**0.5 / 2 * self.margin / MARGIN_VOXELS).to(z)
            else:
                value = (z - d).clamp(-self.margin, self.margin) / self.margin
                kept = (d > 0) & (value < KEEP)
            where = where[kept]
            self.total[where] += value[kept]
            self.weight[where] += 1

    def value(self) -> Tensor:
        """(N,): the mean of what was kept; where nothing was, 1 (``tsdf``) or 0 (``density``)."""
        empty = 1.0 if self.kind == "tsdf" else 0.0
        return torch.where(self.weight > 0, self.total / self.weight.clamp_min(1), empty)
