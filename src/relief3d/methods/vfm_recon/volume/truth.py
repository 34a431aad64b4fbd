"""True truncated distances on a grid: fused depth, meshes, or the exact distance of a procedural world.

Source: FineRecon's preparation (specification 7.1, 7.2). Positive in front of a surface, NaN where nothing was
observed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Mesh
from relief3d.core.errors import InputError
from relief3d.geometry.projection import depth_to_world_points
from relief3d.geometry.transforms import invert_rigid
from relief3d.models.volume.back_projection import (
    Views,
    grid_points,
    grid_transform,
    nearest_depth,
    project_view,
)
from relief3d.render.factory import RenderBackend, make_renderer

POINTS = 1 << 18
BAND_VOXELS = 2.0
WIDEN = 3


@dataclass(frozen=True)
class TruthGrid:
    """True distances.

    Attributes:
        tsdf: (X, Y, Z) float32 signed distance over the truncation in [-1, 1], NaN where unknown.
        origin: (3,) world position of the first grid point.
        voxel_size: distance of neighbours, world units.
    """

    tsdf: Tensor
    origin: Tensor
    voxel_size: float


def _near(depth: Tensor, limit: float) -> Tensor:
    usable = torch.isfinite(depth) & (depth > 0) & (depth <= limit)
    return torch.where(usable, depth, 0.0)


def observed_box(depth: Tensor, views: Views, stride: int = 10, every: int = 10) -> tuple[Tensor, Tensor]:
    """Lowest and highest coordinates (3,) of what depth maps (V, H, W) of the size of the views show.

    Raises:
        InputError: they show nothing.
    """
    points = []
    for i in range(0, len(views), every):
        world = depth_to_world_points(depth[i], views.K[i], invert_rigid(views.cam_from_world[i]))
        points.append(world[::stride, ::stride][depth[i, ::stride, ::stride] > 0])
    found = torch.cat(points) if points else torch.zeros(0, 3)
    if not len(found):
        raise InputError("no depth within reach to make a true volume from")
    return found.amin(0), found.amax(0)


def fused_distances(points: Tensor, depth: Tensor, views: Views, truncation: float) -> tuple[Tensor, Tensor]:
    """Running average of truncated distances at points (specification 3.1).

    Args:
        points: (N, 3) in the world.
        depth: (V, H, W), 0 where unknown.
        views: cameras.
        truncation: world units.

    Returns:
        (N,) distance over the truncation, positive in front, and (N,) number of views that observed the point.
    """
    total, weight = points.new_zeros(len(points)), points.new_zeros(len(points))
    for part in torch.arange(len(points)).split(POINTS):
        for view in range(len(views)):
            xy, z, seen = project_view(points[part], views, view)
            where = seen.nonzero()[:, 0]
            d = nearest_depth(depth[view], xy[where], views.size)
            off = d - z[where]
            kept = (d > 0) & (off >= -truncation)
            at = part[where[kept]]
            total[at] += (off[kept] / truncation).clamp(max=1)
            weight[at] += 1
    return total / weight.clamp_min(1), weight


def truth_from_depth(
    depth: Tensor,
    views: Views,
    voxel_size: float,
    *,
    truncation: float | None = None,
    max_depth: float = 3.5,
    distance: Callable[[Tensor], Tensor] | None = None,
    solid_columns: bool = True,
    every: int = 10,
) -> TruthGrid:
    """Distances around everything that depth maps show.

    Args:
        depth: (V, H, W) z-depth, 0 where unknown.
        views: cameras of that size.
        voxel_size: world units (FineRecon: 0.02 m).
        truncation: world units; None: 2 voxels.
        max_depth: farther depth is left out.
        distance: exact signed distance of world points (N, 3), positive in free space. Depth then only says what was
            observed; None: depth is fused.
        solid_columns: columns along z without any observation are -1 (only where z is up), which teaches a network not
            to go on outside of a scan.
        every: frames that bounds are read from.

    Raises:
        InputError: there is no depth within reach.
    """
    band = BAND_VOXELS * voxel_size if truncation is None else truncation
    near = _near(depth.float(), max_depth)
    low, high = observed_box(near, views, every=every)
    widen = WIDEN * BAND_VOXELS * voxel_size
    shape = (((high - low + 2 * widen) / voxel_size).ceil().long() + 1).tolist()
    origin = (low - widen).float()
    points = grid_points(grid_transform(origin, voxel_size), (shape[0], shape[1], shape[2]))
    value, weight = fused_distances(points, near, views, band)
    observed = weight > 0
    if distance is not None:
        found = torch.cat([distance(part) for part in points[observed].split(POINTS)])
        value[observed] = (found / band).clamp(-1, 1)
    tsdf = torch.where(observed, value, torch.nan).reshape(shape)
    if solid_columns:
        empty = ~observed.reshape(shape).any(2)
        tsdf = torch.where(empty[..., None], -1.0, tsdf)
    return TruthGrid(tsdf, origin, voxel_size)


def truth_from_mesh(
    mesh: Mesh,
    views: Views,
    voxel_size: float,
    *,
    truncation: float | None = None,
    max_depth: float = 3.5,
    solid_columns: bool = True,
    backend: RenderBackend = "auto",
) -> TruthGrid:
    """The same from a mesh: its depth is rendered at the poses of the capture, then fused. The sign so comes from what
    is visible, since meshes of scans are open.

    Raises:
        InputError: no view sees the mesh within reach.
    """
    height, width = views.size
    renderer = make_renderer(backend)
    maps = []
    for i in range(len(views)):
        camera = Camera(
            width,
            height,
            K=views.K[i].double(),
            world_from_cam=invert_rigid(views.cam_from_world[i].double()),
        )
        maps.append(renderer.render(mesh, camera))
    return truth_from_depth(
        torch.stack(maps).float(),
        views,
        voxel_size,
        truncation=truncation,
        max_depth=max_depth,
        solid_columns=solid_columns,
        every=1,
    )
