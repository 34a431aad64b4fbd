"""Mesh cleaning: components, broken faces, floaters, smoothing, decimation, normals."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.core.optional import require
from relief3d.fusion import open3d_backend
from relief3d.render.open3d_backend import open3d_status

MeshQuality = Literal["draft", "standard", "smooth", "full"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CleanConfig:
    """What :func:`clean_mesh` does, in this order.

    Attributes:
        min_triangles: components with fewer triangles go.
        min_area_share: components with less than this share of the whole area go.
        keep_largest: keep only this many components, by area; 0 keeps all.
        smooth_iterations: pairs of Taubin steps.
        target_faces: decimate to this many; 0 keeps all.
    """

    min_triangles: int = 200
    min_area_share: float = 0.0
    keep_largest: int = 0
    smooth_iterations: int = 0
    target_faces: int = 0


QUALITY: dict[MeshQuality, CleanConfig] = {
    "draft": CleanConfig(smooth_iterations=2, target_faces=100_000),
    "standard": CleanConfig(smooth_iterations=2, target_faces=1_000_000),
    "smooth": CleanConfig(min_area_share=1e-3, smooth_iterations=8, target_faces=1_000_000),
    "full": CleanConfig(),
}


def face_areas(mesh: Mesh) -> Tensor:
    """(F,) areas in squared world units, float64."""
    return 0.5 * _face_cross(mesh.vertices.double(), mesh.faces).norm(dim=-1)


def _face_cross(vertices: Tensor, faces: Tensor) -> Tensor:
    a, b, c = vertices[faces].unbind(1)
    return torch.linalg.cross(b - a, c - a)


def vertex_normals(mesh: Mesh) -> Tensor:
    """(V, 3) float32 unit normals weighted by face area; zero for vertices without a face."""
    cross = _face_cross(mesh.vertices.double(), mesh.faces)
    total = torch.zeros(mesh.vertices.shape[0], 3, dtype=torch.float64, device=mesh.vertices.device)
    for corner in range(3):
        total.index_add_(0, mesh.faces[:, corner], cross)
    return torch.nn.functional.normalize(total, dim=-1, eps=1e-30).float()


def face_components(mesh: Mesh) -> Tensor:
    """(F,) int64 component of each face; faces that share a vertex belong together."""
    sparse = require("scipy.sparse", extra="mesh", purpose="mesh cleaning")
    graph = require("scipy.sparse.csgraph", extra="mesh", purpose="mesh cleaning")
    if mesh.faces.shape[0] == 0:
        return torch.zeros(0, dtype=torch.int64)
    faces = mesh.faces.cpu().numpy()
    start, end = np.concatenate((faces[:, 0], faces[:, 1])), np.concatenate((faces[:, 1], faces[:, 2]))
    count = mesh.vertices.shape[0]
    links = sparse.coo_matrix((np.ones(len(start), dtype=bool), (start, end)), shape=(count, count))
    _, label = graph.connected_components(links, directed=False)
    return torch.from_numpy(label[faces[:, 0]].astype(np.int64))


def select_faces(mesh: Mesh, keep: Tensor) -> Mesh:
    """The mesh of the faces where ``keep`` (F,) bool holds, without unused vertices."""
    faces = mesh.faces[keep]
    used, inverse = torch.unique(faces, return_inverse=True)

    def pick(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[used]

    return Mesh(
        mesh.vertices[used],
        inverse.view(-1, 3),
        rgb=pick(mesh.rgb),
        normals=pick(mesh.normals),
        uv=pick(mesh.uv),
        texture=mesh.texture,
    )


def drop_degenerate(mesh: Mesh) -> Mesh:
    """Without faces that repeat a vertex, have no area, a vertex that is not finite, or exist twice."""
    faces = mesh.faces
    distinct = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    finite = torch.isfinite(mesh.vertices).all(-1)[faces].all(-1)
    keep = distinct & finite
    keep &= face_areas(mesh).nan_to_num(0.0) > 0
    if bool(keep.any()):
        ordered = torch.sort(faces, dim=1).values
        _, inverse = torch.unique(ordered, dim=0, return_inverse=True)
        first = torch.full((int(inverse.max()) + 1,), faces.shape[0], dtype=torch.int64, device=faces.device)
        index = torch.arange(faces.shape[0], device=faces.device)
        candidates = torch.where(keep, index, torch.full_like(index, faces.shape[0]))
        first.scatter_reduce_(0, inverse, candidates, "amin")
        keep &= first[inverse] == index
    return select_faces(mesh, keep)


def drop_small_components(
    mesh: Mesh, min_triangles: int = 200, min_area_share: float = 0.0, keep_largest: int = 0
) -> Mesh:
    """Without components of few triangles or little area (floaters).

    Args:
        mesh: input.
        min_triangles: components with fewer triangles go.
        min_area_share: components below this share of the whole area go.
        keep_largest: then keep only this many, by area; 0 keeps all.
    """
    if mesh.faces.shape[0] == 0:
        return mesh
    label = face_components(mesh).to(mesh.faces.device)
    count = int(label.max()) + 1
    triangles = torch.bincount(label, minlength=count)
    areas = face_areas(mesh)
    area = torch.zeros(count, dtype=areas.dtype, device=areas.device).index_add_(0, label, areas)
    good = (triangles >= min_triangles) & (area >= min_area_share * float(area.sum()))
    if keep_largest:
        rank = torch.argsort(torch.where(good, area, -torch.ones_like(area)), descending=True)
        best = torch.zeros_like(good)
        best[rank[:keep_largest]] = True
        good &= best
    return select_faces(mesh, good[label])


def drop_isolated(mesh: Mesh, max_gap: float, min_area_share: float = 0.02) -> Mesh:
    """Without floaters: small components farther than ``max_gap`` (world units) from every large one.

    Args:
        mesh: input.
        max_gap: largest distance to the main surfaces.
        min_area_share: components of at least this share of the area, and the largest one, are main surfaces.
    """
    if mesh.faces.shape[0] == 0:
        return mesh
    spatial = require("scipy.spatial", extra="mesh", purpose="mesh cleaning")
    label = face_components(mesh).to(mesh.faces.device)
    count = int(label.max()) + 1
    areas = face_areas(mesh)
    area = torch.zeros(count, dtype=areas.dtype, device=areas.device).index_add_(0, label, areas)
    main = area >= min_area_share * float(area.sum())
    main[int(area.argmax())] = True
    if bool(main[area > 0].all()):
        return mesh
    owner = torch.full((mesh.vertices.shape[0],), -1, dtype=torch.int64, device=label.device)
    owner[mesh.faces.reshape(-1)] = label.repeat_interleave(3)
    used = owner >= 0
    is_main = used & main[owner.clamp_min(0)]
    other = torch.nonzero(used & ~is_main).squeeze(1)
    tree = spatial.cKDTree(mesh.vertices[is_main].cpu().numpy())
    gap, _ = tree.query(mesh.vertices[other].cpu().numpy(), distance_upper_bound=max_gap)
    near = main.clone()
    near[owner[other[torch.from_numpy(np.isfinite(gap)).to(other.device)]]] = True
    return select_faces(mesh, near[label])


def taubin_smooth(mesh: Mesh, iterations: int = 2, lam: float = 0.5, mu: float = -0.53) -> Mesh:
    """Smooth without shrinking (Taubin, "A signal processing approach to fair surface design", 1995).

    Boundary vertices stay, so that the rims of an open scan do not creep. Normals are recomputed
    when present.

    Args:
        mesh: input.
        iterations: pairs of one shrinking and one growing step.
        lam: step towards the mean of the neighbours, positive.
        mu: step back, below ``-lam``.
    """
    if iterations <= 0 or mesh.faces.shape[0] == 0:
        return mesh
    edges = torch.cat((mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]))
    edges, uses = torch.unique(torch.sort(edges, dim=1).values, dim=0, return_counts=True)
    boundary = torch.zeros(mesh.vertices.shape[0], dtype=torch.bool, device=edges.device)
    boundary[edges[uses == 1].reshape(-1)] = True
    degree = torch.bincount(edges.reshape(-1), minlength=mesh.vertices.shape[0]).clamp_min(1)
    vertices = mesh.vertices.double()
    for step in (lam, mu) * iterations:
        mean = torch.zeros_like(vertices)
        mean.index_add_(0, edges[:, 0], vertices[edges[:, 1]])
        mean.index_add_(0, edges[:, 1], vertices[edges[:, 0]])
        move = step * (mean / degree[:, None] - vertices)
        vertices = torch.where((boundary | (degree < 2))[:, None], vertices, vertices + move)
    out = Mesh(vertices.float(), mesh.faces, mesh.rgb, None, mesh.uv, mesh.texture)
    return with_normals(out) if mesh.normals is not None else out


def with_normals(mesh: Mesh) -> Mesh:
    """The mesh with fresh vertex normals."""
    return Mesh(mesh.vertices, mesh.faces, mesh.rgb, vertex_normals(mesh), mesh.uv, mesh.texture)


def cluster_vertices(mesh: Mesh, cell: float) -> Mesh:
    """Decimation without Open3D: vertices of one grid cell become their mean (Rossignac and Borrel, 1993).

    Args:
        mesh: without texture coordinates.
        cell: edge of the grid cells, world units.
    """
    grid = torch.floor(mesh.vertices.double() / cell).to(torch.int64)
    _, owner, count = torch.unique(grid, dim=0, return_inverse=True, return_counts=True)

    def mean(values: Tensor) -> Tensor:
        total = torch.zeros(count.shape[0], values.shape[1], dtype=torch.float64, device=values.device)
        return total.index_add_(0, owner, values.double()) / count[:, None]

    rgb = None if mesh.rgb is None else mean(mesh.rgb).round().to(torch.uint8)
    out = drop_degenerate(Mesh(mean(mesh.vertices).float(), owner[mesh.faces], rgb=rgb))
    return with_normals(out) if mesh.normals is not None else out


def decimate_mesh(mesh: Mesh, target_faces: int) -> Mesh:
    """Reduce to about ``target_faces``: quadric decimation with Open3D, else vertex clustering (logged).

    Raises:
        InputError: for a textured mesh, whose coordinates would be lost.
    """
    if mesh.faces.shape[0] <= target_faces:
        return mesh
    if mesh.uv is not None:
        raise InputError("a textured mesh cannot be decimated", remedy="decimate before baking the texture")
    usable, why = open3d_status()
    if usable:
        out = drop_degenerate(open3d_backend.decimate(mesh, target_faces))
        return with_normals(out) if mesh.normals is not None else out
    _log.info("decimation by vertex clustering, because %s", why)
    low = float(face_areas(mesh).mean()) ** 0.5
    cell = low * (mesh.faces.shape[0] / target_faces) ** 0.5
    for _ in range(12):
        out = cluster_vertices(mesh, cell)
        if out.faces.shape[0] <= target_faces:
            return out
        cell *= 1.15
    return out


def clean_mesh(mesh: Mesh, config: CleanConfig | MeshQuality = "full") -> Mesh:
    """Remove broken faces and small components, then smooth and decimate as configured; adds normals.

    Args:
        mesh: as extracted.
        config: a :class:`CleanConfig` or the name of a preset in :data:`QUALITY`.

    Raises:
        InputError: for an unknown preset.
    """
    if isinstance(config, str):
        if config not in QUALITY:
            raise InputError(f"unknown mesh quality '{config}'", remedy=f"choose one of {', '.join(QUALITY)}")
        config = QUALITY[config]
    mesh = drop_degenerate(mesh)
    mesh = drop_small_components(mesh, config.min_triangles, config.min_area_share, config.keep_largest)
    mesh = taubin_smooth(mesh, config.smooth_iterations)
    if config.target_faces:
        mesh = decimate_mesh(mesh, config.target_faces)
    return with_normals(mesh)
