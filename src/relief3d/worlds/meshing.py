"""Surfaces of worlds as triangles, and the part of a surface that a capture has seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Camera, Mesh, PointCloud
from relief3d.core.errors import InputError
from relief3d.core.optional import require
from relief3d.worlds import layout as col
from relief3d.worlds.layout import Kind
from relief3d.worlds.shapes import Shape, ground_height, lathe_radius

if TYPE_CHECKING:
    from relief3d.worlds.renderer import RenderedViews
    from relief3d.worlds.world import World

CHORD_ERROR = 5e-4
"""Largest distance in metres between a curved surface and its triangles."""

Patch = tuple[np.ndarray, np.ndarray]


def world_mesh(world: World, resolution: float = 0.05, *, method: str = "tessellate") -> Mesh:
    """The surface of a single world at time 0.

    Args:
        world: a batch of one.
        resolution: longest edge on flat faces (tessellate) or cell size (marching_cubes), metres.
        method: ``"tessellate"`` puts vertices exactly on the primitives, chord error below 0.5 mm, and drops
            triangles that lie inside other solids or outside the room; ``"marching_cubes"`` takes the zero set
            of :meth:`World.sdf`, which is closed but rounds edges by up to a cell (needs scikit-image).

    Returns:
        Triangles in world coordinates, counter-clockwise seen from free space.

    Raises:
        InputError: for several worlds, an unknown method, or a resolution that is not positive.
    """
    if world.count != 1:
        raise InputError("a mesh is made of one world", remedy="use World.select")
    if resolution <= 0:
        raise InputError(f"mesh resolution {resolution} is not positive")
    if method == "marching_cubes":
        return _marching_cubes(world, resolution)
    if method != "tessellate":
        raise InputError(f"unknown mesh method '{method}'", remedy="use tessellate or marching_cubes")
    vertices, faces, total = [], [], 0
    for slot, kind in enumerate(world.layout.slots):
        row = world.slots[0, slot].double().cpu().numpy()
        if row[col.ALIVE] < 0.5:
            continue
        local, triangles = _tessellate(kind, row, world.waves[0].double().cpu(), resolution)
        rotation = row[col.R00 : col.R00 + 9].reshape(3, 3)
        points = local @ rotation.T + row[: col.CZ + 1]
        vertices.append(points)
        faces.append(triangles + total)
        total += len(points)
    xyz = torch.from_numpy(np.concatenate(vertices)).float()
    tri = torch.from_numpy(np.concatenate(faces))
    xyz, tri = _trim(world, xyz, tri)
    used = torch.zeros(len(xyz), dtype=torch.bool)
    used[tri.reshape(-1)] = True
    renumber = torch.cumsum(used, 0) - 1
    return Mesh(xyz[used], renumber[tri])


def _trim(world: World, xyz: Tensor, tri: Tensor, levels: int = 4) -> tuple[Tensor, Tensor]:
    """Drop triangles inside solids or outside the room; those that cross a surface are split first."""

    def buried(points: Tensor, normal: Tensor) -> Tensor:
        # A little in front of the triangle: what touches another solid is not a visible surface either.
        ahead = points + 1.5e-3 * normal
        return torch.cat([world.sdf(part) < 1e-4 for part in ahead.split(1 << 16)]).cpu()

    kept = []
    for level in range(levels + 1):
        if len(tri) == 0:
            break
        at = xyz[tri]
        normal = torch.linalg.cross(at[:, 1] - at[:, 0], at[:, 2] - at[:, 0])
        normal = torch.nn.functional.normalize(normal, dim=-1)
        middle = at.mean(1)
        centre = buried(middle, normal)
        # Corners are pulled inwards, or every triangle that ends at a wall would count as crossing it.
        inner = at + 0.04 * (middle[:, None] - at)
        corners = torch.stack([buried(inner[:, k], normal) for k in range(3)], 1)
        mixed = (corners.any(1) | centre) & ~(corners.all(1) & centre)
        if level == levels:
            kept.append(tri[~centre])
            break
        kept.append(tri[~mixed & ~centre])
        tri = tri[mixed]
        a, b, c = tri.unbind(1)
        middles = torch.cat([0.5 * (xyz[i] + xyz[j]) for i, j in ((a, b), (b, c), (c, a))])
        ab, bc, ca = (len(xyz) + torch.arange(3 * len(tri))).split(len(tri)) if len(tri) else (a, b, c)
        xyz = torch.cat([xyz, middles])
        quarters = ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))
        tri = torch.cat([torch.stack(q, 1) for q in quarters])
    return xyz, torch.cat(kept)


def _marching_cubes(world: World, resolution: float) -> Mesh:
    measure = require("skimage.measure", extra="all", purpose="marching cubes")
    low, high = _extent(world, resolution)
    counts = [math.ceil((b - a) / resolution) + 1 for a, b in zip(low, high, strict=True)]
    if math.prod(counts) > 4e8:
        raise InputError(f"marching cubes at {resolution} m would need {math.prod(counts):.1e} cells")
    axes = [a + resolution * torch.arange(n, dtype=torch.float32) for a, n in zip(low, counts, strict=True)]
    volume = torch.empty(counts)
    for i, x in enumerate(axes[0]):
        y, z = torch.meshgrid(axes[1], axes[2], indexing="ij")
        points = torch.stack([x.expand_as(y), y, z], -1).reshape(-1, 3)
        volume[i] = world.sdf(points).cpu().reshape(counts[1:])
    vertices, faces, _, _ = measure.marching_cubes(volume.numpy(), 0.0, spacing=(resolution,) * 3)
    xyz = torch.from_numpy(vertices.astype(np.float32)) + torch.tensor(low)
    return Mesh(xyz, torch.from_numpy(faces[:, ::-1].astype(np.int64).copy()))


def _extent(world: World, margin: float) -> tuple[list[float], list[float]]:
    room = world.room[0].cpu()
    if bool(room[3] > 0):
        low, high = room[:3] - room[3:] - 2 * margin, room[:3] + room[3:] + 2 * margin
    else:
        slots = world.slots[0].cpu()
        bounded = torch.tensor([kind != Kind.GROUND for kind in world.layout.slots]) & (
            slots[:, col.ALIVE] > 0.5
        )
        centre, bound = slots[bounded, :3], slots[bounded, col.BOUND, None]
        low, high = (centre - bound).amin(0) - margin, (centre + bound).amax(0) + margin
    return low.tolist(), high.tolist()


def _grid_faces(rows: int, columns: int, wrap: bool) -> np.ndarray:
    """Triangles of a (rows, columns) vertex grid; the last column joins the first when ``wrap``."""
    width = columns if wrap else columns - 1
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(width), indexing="ij")
    a, b = r * columns + c, r * columns + (c + 1) % columns
    d, e = a + columns, b + columns
    return np.concatenate([np.stack([a, b, e], -1).reshape(-1, 3), np.stack([a, e, d], -1).reshape(-1, 3)])


def _box(s: np.ndarray, resolution: float, spacing: float | None = None) -> Patch:
    points, faces, total = [], [], 0
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        nu, nv = (max(2, math.ceil(2 * s[k] / (spacing or resolution)) + 1) for k in (u, v))
        nu, nv = min(nu, 400), min(nv, 400)
        gu, gv = np.meshgrid(np.linspace(-s[u], s[u], nu), np.linspace(-s[v], s[v], nv), indexing="ij")
        for sign in (-1.0, 1.0):
            grid = np.zeros((nu * nv, 3))
            grid[:, u], grid[:, v], grid[:, axis] = gu.reshape(-1), gv.reshape(-1), sign * s[axis]
            tri = _grid_faces(nu, nv, wrap=False)
            tri = tri[:, ::-1] if sign > 0 else tri
            points.append(grid)
            faces.append(tri + total)
            total += len(grid)
    out = np.concatenate(faces)
    return np.concatenate(points), _outward(np.concatenate(points), out)


def _outward(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Turn the triangles of a solid that is star-shaped about the origin to face outwards."""
    corners = points[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flip = (normal * corners.mean(1)).sum(1) < 0
    faces = faces.copy()
    faces[flip] = faces[flip][:, ::-1]
    return faces


def _steps(radius: float) -> int:
    """Segments of a circle that keep the chord error below :data:`CHORD_ERROR`."""
    return int(
        np.clip(math.ceil(math.pi / math.acos(max(0.0, 1 - CHORD_ERROR / max(radius, 1e-3)))), 12, 256)
    )


def _revolve(radius: np.ndarray, z: np.ndarray, segments: int, caps: bool) -> Patch:
    angle = np.linspace(0, math.tau, segments, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle)], -1)
    side = np.concatenate(
        [radius[:, None, None] * ring, np.broadcast_to(z[:, None, None], (len(z), segments, 1))], -1
    )
    points = side.reshape(-1, 3)
    faces = _grid_faces(len(z), segments, wrap=True)
    if caps:
        base = len(points)
        points = np.concatenate([points, [[0, 0, z[0]], [0, 0, z[-1]]]])
        k = np.arange(segments)
        bottom = np.stack([np.full(segments, base), (k + 1) % segments, k], -1)
        last = (len(z) - 1) * segments
        top = np.stack([np.full(segments, base + 1), last + k, last + (k + 1) % segments], -1)
        faces = np.concatenate([faces, bottom, top])
    return points, faces


def _tessellate(kind: Kind, row: np.ndarray, waves: Tensor, resolution: float) -> Patch:
    """Vertices (n, 3) in the slot's frame and triangles (m, 3) facing free space."""
    s = row[col.S0 : col.S2 + 1]
    if kind == Kind.BOX:
        return _box(s, resolution)
    if kind == Kind.SHELL:
        points, faces = _box(s, resolution)
        return points, faces[:, ::-1]
    if kind == Kind.GROUND:
        count = min(600, math.ceil(2 * s[0] / max(resolution, 0.05)) + 1)
        at = torch.linspace(-s[0], s[0], count, dtype=torch.float64)
        x, y = torch.meshgrid(at, at, indexing="ij")
        z = ground_height(x, y, waves[..., None, None])[0]
        return torch.stack([x, y, z], -1).reshape(-1, 3).numpy(), _grid_faces(count, count, wrap=False)[
            :, ::-1
        ]
    if kind in (Kind.CYLINDER, Kind.CONE):
        top = s[0] if kind == Kind.CYLINDER else s[1]
        rows = max(2, math.ceil(2 * s[2] / resolution) + 1)
        part = np.linspace(0, 1, rows)
        return _revolve(s[0] + (top - s[0]) * part, s[2] * (2 * part - 1), _steps(max(s[0], top)), caps=True)
    if kind == Kind.LATHE:
        heights = np.linspace(-s[2], s[2], 65)
        shape = Shape(*(torch.tensor(v, dtype=torch.float64) for v in (*s, *row[col.E0 : col.BOUND + 1])))
        radius = lathe_radius(torch.from_numpy(heights), shape)[0].numpy()
        return _revolve(radius, heights, _steps(float(radius.max())), caps=True)
    if kind == Kind.TORUS:
        tube = np.linspace(0, math.tau, _steps(s[1]) + 1)
        points, faces = _revolve(
            s[0] + s[1] * np.cos(tube), s[1] * np.sin(tube), _steps(s[0] + s[1]), caps=False
        )
        return points, faces
    return _radial(kind, row, s)


def _radial(kind: Kind, row: np.ndarray, s: np.ndarray) -> Patch:
    """Ellipsoids, rounded boxes and superquadrics: directions of a cube grid, scaled onto the surface."""
    if kind == Kind.ROUNDED_BOX:
        r = row[col.E0]
        points, faces = _box(s, 1.0, spacing=max(0.004, min(float(r) / 6, 0.02)))
        core = np.clip(points, -(s - r), s - r)
        away = points - core
        points = core + r * away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-12)
        return points, _outward(points, faces)
    segments = max(8, _steps(float(s.max())) // 4)
    points, faces = _box(np.ones(3), 1.0, spacing=2.0 / segments)
    if kind == Kind.ELLIPSOID:
        points = points / np.linalg.norm(points, axis=1, keepdims=True) * s
    else:
        p, q = row[col.E0], row[col.E1]
        u = np.abs(points) + 1e-12
        norm = ((u[:, 0] ** p + u[:, 1] ** p) ** (q / p) + u[:, 2] ** q) ** (1 / q)
        points = points / norm[:, None] * s
    return points, _outward(points, faces)


def visible_surface(
    views: RenderedViews,
    *,
    min_views: int = 2,
    spacing: float = 0.01,
    tolerance: float = 0.01,
    stride: int = 2,
) -> PointCloud:
    """The surface that at least ``min_views`` of the rendered views see, as oriented points.

    Every pixel's exact point is projected into all other views and counts there when it lands inside the
    picture and agrees with that view's exact depth; points are then thinned to one per cell.

    Args:
        views: rendered views of one world, leading dimension V.
        min_views: views that must see a point, its own included.
        spacing: cell size of the thinning in metres.
        tolerance: allowed depth difference, relative.
        stride: take every n-th pixel in both directions.

    Returns:
        Points, world normals and colours.

    Raises:
        InputError: when no point is seen often enough.
    """
    count, height, width = views.depth.shape
    ys = torch.arange(stride // 2, height, stride)
    xs = torch.arange(stride // 2, width, stride)
    clouds, normals, colours = [], [], []
    inverse = torch.linalg.inv(views.world_from_cam.double()).float()
    for i in range(count):
        depth = views.depth[i][ys][:, xs]
        x = (xs + 0.5 - views.K[i, 0, 2]) / views.K[i, 0, 0]
        y = (ys + 0.5 - views.K[i, 1, 2]) / views.K[i, 1, 1]
        rays = torch.stack(
            [x.expand(len(ys), -1), y[:, None].expand(-1, len(xs)), torch.ones(len(ys), len(xs))], -1
        )
        ok = depth.reshape(-1) > 0
        pose = views.world_from_cam[i]
        points = (rays * depth[..., None]).reshape(-1, 3)[ok] @ pose[:3, :3].T + pose[:3, 3]
        seen = torch.zeros(len(points), dtype=torch.int64)
        for j in range(count):
            p = points @ inverse[j, :3, :3].T + inverse[j, :3, 3]
            z = p[:, 2].clamp_min(1e-6)
            u = (views.K[j, 0, 0] * p[:, 0] / z + views.K[j, 0, 2]).floor().long()
            v = (views.K[j, 1, 1] * p[:, 1] / z + views.K[j, 1, 2]).floor().long()
            inside = (p[:, 2] > 0.01) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
            other = views.depth[j][v.clamp(0, height - 1), u.clamp(0, width - 1)]
            seen += (inside & ((other - z).abs() < tolerance * z)).long()
        keep = seen >= min_views
        clouds.append(points[keep])
        n = views.normals[i][ys][:, xs].reshape(-1, 3)[ok][keep]
        normals.append(n @ pose[:3, :3].T)
        rgb = views.image[i].permute(1, 2, 0)[ys][:, xs].reshape(-1, 3)[ok][keep]
        colours.append((rgb * 255 + 0.5).to(torch.uint8))
    xyz, normal, rgb = torch.cat(clouds), torch.cat(normals), torch.cat(colours)
    if len(xyz) == 0:
        raise InputError(f"no surface is seen by {min_views} views")
    first = _thin(xyz, spacing)
    return PointCloud(xyz[first], rgb[first], normal[first])


def _thin(xyz: Tensor, spacing: float) -> Tensor:
    """Index of the first point of every occupied cell."""
    cell = torch.floor((xyz - xyz.amin(0)) / spacing).long()
    size = cell.amax(0) + 1
    key = (cell[:, 0] * size[1] + cell[:, 1]) * size[2] + cell[:, 2]
    _, first = np.unique(key.numpy(), return_index=True)
    return torch.from_numpy(np.sort(first))


def visible_from(world: World, points: Tensor, cameras: Sequence[Camera], *, slack: float = 2e-3) -> Tensor:
    """Which points each camera sees, by exact ray casting.

    Args:
        world: a batch of one.
        points: (N, 3) on or near surfaces.
        cameras: cameras with K and pose.
        slack: metres a blocking surface may lie in front of the point.

    Returns:
        (V, N) bool.
    """
    out = []
    for camera in cameras:
        inverse = camera.cam_from_world
        assert inverse is not None and camera.K is not None and camera.centre is not None
        p = points.double() @ inverse[:3, :3].T + inverse[:3, 3]
        z = p[:, 2].clamp_min(1e-9)
        u, v = camera.K[0, 0] * p[:, 0] / z + camera.K[0, 2], camera.K[1, 1] * p[:, 1] / z + camera.K[1, 2]
        inside = (p[:, 2] > 0) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
        rays = points.double() - camera.centre
        t, _ = world.raycast(camera.centre[None, None].float(), rays[None].float())
        out.append(inside & (t[0].cpu().double() > rays.norm(dim=1) - slack))
    return torch.stack(out)
