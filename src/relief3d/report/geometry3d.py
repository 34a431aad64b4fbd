"""Geometry made small enough for a web page: robust bounds, up direction, decimation, spatial order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Mesh, Scene

_BITS = 16  # positions are stored as 16-bit integers within the bounds


@dataclass(frozen=True)
class Bounds:
    """An axis-aligned box: (3,) float64 ``low`` and ``high``."""

    low: Tensor
    high: Tensor

    @property
    def diagonal(self) -> float:
        """Length of the diagonal."""
        return float((self.high - self.low).norm())

    def contains(self, xyz: Tensor) -> Tensor:
        """(N,) bool for (N, 3) positions."""
        return ((xyz >= self.low.to(xyz)) & (xyz <= self.high.to(xyz))).all(dim=-1)


def robust_bounds(xyz: Tensor, share: float = 0.99, margin: float = 0.25) -> Bounds:
    """A box around nearly all points that a few outliers cannot blow up.

    Args:
        xyz: (N, 3) positions; non-finite rows are ignored.
        share: share of the points inside the inner box, per axis.
        margin: growth of that box on each side, relative to its largest side.

    Returns:
        The grown box, cut to the true extent of the points. A unit box when there are none.
    """
    xyz = xyz[torch.isfinite(xyz).all(dim=-1)].to(torch.float64)
    if xyz.shape[0] == 0:
        return Bounds(torch.full((3,), -0.5, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64))
    ordered = xyz[:: max(1, xyz.shape[0] // 200_000)].sort(dim=0).values
    last = ordered.shape[0] - 1
    low, high = ordered[int(last * (1 - share) / 2)], ordered[last - int(last * (1 - share) / 2)]
    grow = margin * float((high - low).max())
    low = torch.maximum(low - grow, xyz.min(dim=0).values)
    high = torch.minimum(high + grow, xyz.max(dim=0).values)
    flat = torch.clamp_min(1e-3 * (high - low).max(), 1e-9) - (high - low)
    pad = torch.clamp_min(flat, 0.0) / 2
    return Bounds(low - pad, high + pad)


def scene_bounds(scene: Scene) -> Bounds:
    """Robust box around mesh, points and cameras."""
    parts = []
    if scene.mesh is not None and scene.mesh.vertices.shape[0]:
        parts.append(robust_bounds(scene.mesh.vertices))
    if scene.points is not None and scene.points.xyz.shape[0]:
        parts.append(robust_bounds(scene.points.xyz))
    if scene.sparse is not None and len(scene.sparse):
        parts.append(robust_bounds(scene.sparse.xyz, share=0.96))
    centres = camera_centres(scene)
    if centres.shape[0]:
        parts.append(Bounds(centres.min(dim=0).values, centres.max(dim=0).values))
    if not parts:
        return robust_bounds(torch.zeros((0, 3)))
    low = torch.stack([b.low for b in parts]).min(dim=0).values
    high = torch.stack([b.high for b in parts]).max(dim=0).values
    pad = torch.clamp_min(1e-3 * (high - low).max() - (high - low), 0.0) / 2 + 1e-9
    return Bounds(low - pad, high + pad)


def focus_bounds(scene: Scene) -> Bounds:
    """The box worth looking at first: the bulk of the mesh, else of the points, else everything."""
    candidates = (
        None if scene.mesh is None else scene.mesh.vertices,
        None if scene.points is None else scene.points.xyz,
        None if scene.sparse is None else scene.sparse.xyz,
    )
    xyz = next((c for c in candidates if c is not None and c.shape[0]), None)
    return scene_bounds(scene) if xyz is None else robust_bounds(xyz, share=0.96, margin=0.03)


def camera_centres(scene: Scene) -> Tensor:
    """(C, 3) float64 centres of the posed views."""
    centres = [scene.views[i].camera.centre for i in scene.posed]
    known = [c for c in centres if c is not None]
    return torch.stack(known) if known else torch.zeros((0, 3), dtype=torch.float64)


def estimate_up(scene: Scene) -> Tensor:
    """(3,) unit vector that points up in the world, guessed from how people hold cameras.

    Uses ``scene.info["up"]`` when present. Otherwise: the right axes of level cameras are horizontal, so
    up is the direction most perpendicular to all of them (smallest eigenvector of their scatter), provided
    it agrees with the mean of the cameras' own up axes; else that mean.
    """
    given = scene.info.get("up")
    if given is not None:
        up = torch.as_tensor(given, dtype=torch.float64).reshape(3)
        if bool(torch.isfinite(up).all()) and float(up.norm()) > 0:
            return up / up.norm()
    poses = [scene.views[i].camera.world_from_cam for i in scene.posed]
    rotations = [p[:3, :3] for p in poses if p is not None]
    if not rotations:
        return torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)
    R = torch.stack(rotations)
    mean = -R[:, :, 1].mean(dim=0)
    mean = mean / mean.norm() if float(mean.norm()) > 1e-6 else -R[0, :, 1]
    right = R[:, :, 0]
    values, vectors = torch.linalg.eigh(right.T @ right / right.shape[0])
    axis = vectors[:, 0]
    axis = axis if float(axis @ mean) >= 0 else -axis
    spread_enough = float(values[1]) > 0.05 and float(values[0]) < 0.25 * float(values[1])
    return axis if spread_enough and float(axis @ mean) > 0.8 else mean


def morton_order(xyz: Tensor, bounds: Bounds, bits: int = 10) -> Tensor:
    """(N,) permutation that sorts (N, 3) positions along a Z-order curve.

    Neighbours in space become neighbours in the file, which compresses well.
    """
    size = (bounds.high - bounds.low).clamp_min(1e-12)
    cell = ((xyz.to(torch.float64) - bounds.low) / size * (2**bits - 1)).round().long().clamp_(0, 2**bits - 1)
    code = torch.zeros(xyz.shape[0], dtype=torch.int64)
    for bit in range(bits):
        for axis in range(3):
            code |= ((cell[:, axis] >> bit) & 1) << (3 * bit + axis)
    return torch.argsort(code, stable=True)


def quantise(xyz: Tensor, bounds: Bounds) -> Tensor:
    """(N, 3) positions to (N, 3) int64 in [0, 65535] within ``bounds``."""
    size = (bounds.high - bounds.low).clamp_min(1e-12)
    top = 2**_BITS - 1
    return ((xyz.to(torch.float64) - bounds.low) / size * top).round().long().clamp_(0, top)


def vertex_colours(mesh: Mesh) -> Tensor | None:
    """(V, 3) uint8: the mesh's vertex colours, or its texture sampled at the vertices, or None."""
    if mesh.rgb is not None:
        return mesh.rgb
    if mesh.texture is None or mesh.uv is None:
        return None
    height, width = mesh.texture.shape[:2]
    column = (mesh.uv[:, 0] * width).long().clamp(0, width - 1)
    row = ((1 - mesh.uv[:, 1]) * height).long().clamp(0, height - 1)
    return mesh.texture[row, column]


def decimate(mesh: Mesh, max_faces: int) -> Mesh:
    """Vertex clustering until at most ``max_faces`` triangles are left (Rossignac and Borrel 1993).

    Vertices in one cell of a cubic grid become their mean; collapsed and repeated triangles go. The grid is the
    finest found by bisection that meets the limit, so the result is deterministic.

    Args:
        mesh: any triangle mesh; texture coordinates are replaced by vertex colours.
        max_faces: upper limit of the triangle count, at least 1.
    """
    colours = vertex_colours(mesh)
    if mesh.faces.shape[0] <= max_faces:
        return Mesh(mesh.vertices, mesh.faces, colours)
    low = mesh.vertices.min(dim=0).values.double()
    side = float((mesh.vertices.max(dim=0).values.double() - low).max()) or 1.0
    fine, coarse = side / 4096, side  # too many faces | few enough
    best = _cluster(mesh, colours, low, coarse)
    for _ in range(14):
        middle = (fine * coarse) ** 0.5
        candidate = _cluster(mesh, colours, low, middle)
        if candidate.faces.shape[0] > max_faces:
            fine = middle
        else:
            coarse, best = middle, candidate
            if candidate.faces.shape[0] > 0.93 * max_faces:
                break
    return best


def _cluster(mesh: Mesh, colours: Tensor | None, low: Tensor, cell: float) -> Mesh:
    grid = ((mesh.vertices.double() - low) / cell).long()
    span = grid.max(dim=0).values + 1
    key = (grid[:, 0] * span[1] + grid[:, 1]) * span[2] + grid[:, 2]
    _, owner, count = torch.unique(key, return_inverse=True, return_counts=True)
    total = count.shape[0]
    weight = count.to(torch.float32)[:, None]

    def mean(values: Tensor) -> Tensor:
        out = torch.zeros((total, values.shape[1]), dtype=torch.float32)
        return out.index_add_(0, owner, values.to(torch.float32)) / weight

    faces = owner[mesh.faces]
    faces = faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])]
    if faces.shape[0]:
        # Rotate the smallest index to the front: orientation is kept, repeats become equal rows.
        first = faces.argmin(dim=1)
        order = (first[:, None] + torch.arange(3)) % 3
        faces = torch.unique(faces.gather(1, order), dim=0)
    used = torch.zeros(total, dtype=torch.bool)
    used[faces.reshape(-1)] = True
    remap = torch.cumsum(used, 0) - 1
    rgb = None if colours is None else mean(colours)[used].round().clamp(0, 255).to(torch.uint8)
    return Mesh(mean(mesh.vertices)[used], remap[faces], rgb)


def clip_mesh(mesh: Mesh, bounds: Bounds) -> Mesh:
    """The triangles whose three corners are finite and inside ``bounds``; unused vertices are dropped."""
    inside = torch.isfinite(mesh.vertices).all(dim=-1) & bounds.contains(mesh.vertices)
    if bool(inside.all()):
        return mesh
    faces = mesh.faces[inside[mesh.faces].all(dim=1)]
    used = torch.zeros(mesh.vertices.shape[0], dtype=torch.bool)
    used[faces.reshape(-1)] = True
    remap = torch.cumsum(used, 0) - 1
    colours = vertex_colours(mesh)
    return Mesh(mesh.vertices[used], remap[faces], None if colours is None else colours[used])
