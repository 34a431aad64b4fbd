"""Triangulation of points from two or more posed views, with the gates that decide which points to trust."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.projection import project_world


@dataclass(frozen=True)
class TriangulationGates:
    """Thresholds for keeping a triangulated point.

    Attributes:
        max_reprojection: pixels, at a picture ``reference_width`` wide; scaled in proportion for others.
        min_parallax_deg: smallest angle between the two viewing rays.
        relaxed_parallax_deg: used instead when fewer than ``relax_below`` points survive.
        relax_below: number of points below which the parallax gate is relaxed.
        min_depth_baselines: smallest depth in units of the baseline.
        max_depth_baselines: largest depth in units of the baseline.
        reference_width: picture width in pixels for which ``max_reprojection`` holds.
    """

    max_reprojection: float = 2.0
    min_parallax_deg: float = 2.0
    relaxed_parallax_deg: float = 1.0
    relax_below: int = 50
    min_depth_baselines: float = 1e-3
    max_depth_baselines: float = 50.0
    reference_width: float = 640.0


@dataclass(frozen=True)
class GateResult:
    """What the gates found, for N points seen in two views.

    Attributes:
        keep: (*, N) bool.
        z_a: (*, N) depth in camera a.
        z_b: (*, N) depth in camera b.
        reprojection: (*, N) larger of the two reprojection errors in pixels.
        parallax: (*, N) radians.
        other_gates: (*, N) bool, every gate except parallax.
        relaxed: () bool, True when the relaxed parallax threshold was used.
    """

    keep: Tensor
    z_a: Tensor
    z_b: Tensor
    reprojection: Tensor
    parallax: Tensor
    other_gates: Tensor
    relaxed: Tensor


def projection_matrix(K: Tensor, cam_from_world: Tensor) -> Tensor:
    """P = K [R | t]; (*, 3, 3), (*, 4, 4) -> (*, 3, 4)."""
    return K @ cam_from_world[..., :3, :]


def triangulate_dlt(P: Tensor, xy: Tensor, weights: Tensor | None = None) -> Tensor:
    """Linear triangulation: the null vector of the rows u P3 - P1, v P3 - P2, each of unit length.

    Computed in float64. The gradient is that of the smallest singular vector and does not need the other
    singular values to differ.

    Args:
        P: (*, V, 3, 4) projection matrices in pixels, V >= 2.
        xy: (*, V, N, 2) pixels.
        weights: (*, V, N) weight of each observation, 0 where the point was not seen, or None.

    Returns:
        (*, N, 3) world points. Points at infinity come out very far away; gate them.

    Raises:
        InputError: with fewer than two views.
    """
    if P.shape[-3] < 2 or P.shape[-3] != xy.shape[-3]:
        raise InputError(
            f"triangulation needs the same two or more views, got {P.shape[-3]} and {xy.shape[-3]}"
        )
    wide = torch.float64 if P.device.type != "mps" else P.dtype
    p, pixels = P.to(wide)[..., None, :, :], xy.to(wide)
    rows = pixels[..., :, None] * p[..., 2:3, :] - p[..., :2, :]
    length = rows.norm(dim=-1, keepdim=True)
    rows = rows / length.clamp_min(torch.finfo(wide).tiny)
    if weights is not None:
        rows = torch.where((weights > 0)[..., None, None], rows * weights.to(wide)[..., None, None], 0.0)
    a = rows.movedim(-4, -3).flatten(-3, -2)
    with torch.no_grad():
        finite = torch.isfinite(a).all(-1).all(-1)
        safe = torch.where(finite[..., None, None], a.detach(), torch.zeros_like(a))
        _, s, vh = torch.linalg.svd(safe, full_matrices=False)
        v = vh[..., 3, :]
    if a.requires_grad:
        gap = s[..., 3:].square() - s[..., :3].square()
        tiny = torch.finfo(wide).eps * s[..., :1].square()
        inverse = torch.where(gap.abs() > tiny, 1 / torch.where(gap.abs() > tiny, gap, 1.0), 0.0)
        force = (vh[..., :3, :] @ (a.mT @ (a @ v[..., None])))[..., 0] * inverse
        force = force - force.detach()
        v = v + (force[..., None, :] @ vh[..., :3, :])[..., 0, :]
    w = v[..., 3:]
    tiny_w = torch.finfo(wide).eps
    w = torch.where(w.abs() < tiny_w, torch.where(w < 0, -tiny_w, tiny_w).to(w.dtype), w)
    points = torch.where(finite[..., None], v[..., :3] / w, torch.nan)
    return points.to(P.dtype)


def triangulate_midpoint(
    centre_a: Tensor, ray_a: Tensor, centre_b: Tensor, ray_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Midpoint of the shortest segment between two viewing rays.

    Args:
        centre_a: (*, 3) camera centre in the world.
        centre_b: (*, 3) camera centre in the world.
        ray_a: (*, N, 3) viewing directions in the world, any length.
        ray_b: (*, N, 3) viewing directions in the world, any length.

    Returns:
        points (*, N, 3) and validity (*, N): both distances along the rays are positive and the rays are not
        parallel. Parallel rays give the midpoint of the centres.
    """
    d_a = ray_a / ray_a.norm(dim=-1, keepdim=True)
    d_b = ray_b / ray_b.norm(dim=-1, keepdim=True)
    base = (centre_b - centre_a)[..., None, :].expand_as(d_a)
    cross = torch.linalg.cross(d_a, d_b)
    sin_sq = cross.square().sum(-1)
    parallel = sin_sq <= (4 * torch.finfo(d_a.dtype).eps) ** 2
    safe = torch.where(parallel, torch.ones_like(sin_sq), sin_sq)
    s = (torch.linalg.cross(base, d_b) * cross).sum(-1) / safe
    r = (torch.linalg.cross(base, d_a) * cross).sum(-1) / safe
    s, r = torch.where(parallel, torch.zeros_like(s), s), torch.where(parallel, torch.zeros_like(r), r)
    on_a = centre_a[..., None, :] + s[..., None] * d_a
    on_b = centre_b[..., None, :] + r[..., None] * d_b
    return 0.5 * (on_a + on_b), (s > 0) & (r > 0) & ~parallel


def triangulate_two_views(xy_a: Tensor, xy_b: Tensor, b_from_a: Tensor, iterations: int = 4) -> Tensor:
    """Linear triangulation for many pairs of views at once, several times faster than by singular values; no gradient.

    The rows are those of :func:`triangulate_dlt`, in the frame of the first camera and with the baseline as unit, so
    that origin and unit of the world do not matter. Their null vector comes from inverse iterations, every step of
    which squares the ratio of the two smallest singular values: rays that nearly meet agree with the singular vector
    to rounding, points that no gate would keep may not.

    Args:
        xy_a: (*, N, 2) normalised image coordinates (x / z, y / z) in the first views.
        xy_b: (*, N, 2) in the second views.
        b_from_a: (*, 4, 4) relative poses.
        iterations: see above.

    Returns:
        (*, N, 3) float64 points in the frame of the first camera, in the unit of the pose. Without a baseline the
        depth has no meaning.
    """
    pose = b_from_a.double()
    length = pose[..., :3, 3].norm(dim=-1).clamp_min(1e-300)
    t = (pose[..., :3, 3] / length[..., None])[..., None, :]
    R = pose[..., None, :3, :3]
    (xa, ya), (xb, yb) = xy_a.double().unbind(-1), xy_b.double().unbind(-1)
    zero, one = torch.zeros_like(xa), torch.ones_like(xa)
    rows = [[-one, zero, xa, zero], [zero, -one, ya, zero]]
    for at, value in ((0, xb), (1, yb)):
        rows.append([value * R[..., 2, k] - R[..., at, k] for k in range(3)])
        rows[-1].append(value * t[..., 2] - t[..., at])
    square = [1 / sum((c * c for c in row), zero).clamp_min(1e-300) for row in rows]
    M = {
        (i, j): sum((s * row[i] * row[j] for s, row in zip(square, rows, strict=True)), zero)
        for i in range(4)
        for j in range(i + 1)
    }
    lower, pivots = _ldl4(M)
    v = [xa, ya, one, 0.3 * one]
    for _ in range(iterations):
        v = _ldl4_solve(lower, pivots, v)
        size = torch.stack([c.abs() for c in v]).amax(0).clamp_min(1e-300)
        v = [c / size for c in v]
    w = torch.where(v[3].abs() < 1e-15, torch.where(v[3] < 0, -1e-15, 1e-15), v[3])
    return torch.stack([c / w for c in v[:3]], -1) * length[..., None, None]


def _ldl4(M: dict[tuple[int, int], Tensor]) -> tuple[dict[tuple[int, int], Tensor], list[Tensor]]:
    """Factors of symmetric 4x4 matrices given by their lower entries, elementwise; pivots are kept positive."""
    least = 1e-15 * (M[0, 0] + M[1, 1] + M[2, 2] + M[3, 3])
    lower: dict[tuple[int, int], Tensor] = {}
    pivots: list[Tensor] = []
    for j in range(4):
        d = M[j, j]
        for k in range(j):
            d = d - lower[j, k].square() * pivots[k]
        pivots.append(torch.maximum(d, least))
        for i in range(j + 1, 4):
            value = M[i, j]
            for k in range(j):
                value = value - lower[i, k] * lower[j, k] * pivots[k]
            lower[i, j] = value / pivots[j]
    return lower, pivots


def _ldl4_solve(
    lower: dict[tuple[int, int], Tensor], pivots: list[Tensor], right: list[Tensor]
) -> list[Tensor]:
    y = list(right)
    for i in range(4):
        for k in range(i):
            y[i] = y[i] - lower[i, k] * y[k]
    y = [value / pivot for value, pivot in zip(y, pivots, strict=True)]
    for i in reversed(range(4)):
        for k in range(i + 1, 4):
            y[i] = y[i] - lower[k, i] * y[k]
    return y


def parallax_angle(points: Tensor, centre_a: Tensor, centre_b: Tensor) -> Tensor:
    """Angle at the points between the rays to two centres; (*, N, 3), (*, 3), (*, 3) -> (*, N) radians."""
    a, b = points - centre_a[..., None, :], points - centre_b[..., None, :]
    return torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1))


def reprojection_error(points: Tensor, K: Tensor, cam_from_world: Tensor, xy: Tensor) -> Tensor:
    """Distance in pixels between projected and observed points.

    Args:
        points: (*, N, 3) world.
        K: (*, 3, 3).
        cam_from_world: (*, 4, 4).
        xy: (*, N, 2) observed pixels.

    Returns:
        (*, N); infinite where the point is not in front of the camera.
    """
    projected, z = project_world(points, K, cam_from_world)
    return torch.where(z > 0, (projected - xy).norm(dim=-1), torch.inf)


def gate_parallax(keep: Tensor, parallax: Tensor, gates: TriangulationGates) -> tuple[Tensor, Tensor]:
    """Apply the parallax gate, relaxed when too few points survive it.

    Args:
        keep: (*) bool, points that passed the other gates.
        parallax: (*) radians.
        gates: thresholds.

    Returns:
        points to keep (*) bool and whether the gate was relaxed, () bool.
    """
    strict = keep & (parallax >= math.radians(gates.min_parallax_deg))
    loose = keep & (parallax >= math.radians(gates.relaxed_parallax_deg))
    relaxed = strict.sum() < gates.relax_below
    return torch.where(relaxed, loose, strict), relaxed


def sample_confidence(parallax: Tensor, match_score: Tensor | float = 1.0) -> Tensor:
    """Confidence of a depth sample, sin(parallax) * match score; (*,) radians -> (*,)."""
    return parallax.sin() * match_score


def two_view_gates(
    points: Tensor,
    xy_a: Tensor,
    xy_b: Tensor,
    K_a: Tensor,
    K_b: Tensor,
    cam_from_world_a: Tensor,
    cam_from_world_b: Tensor,
    width: float,
    gates: TriangulationGates | None = None,
    mask: Tensor | None = None,
) -> GateResult:
    """Which triangulated points to keep: cheirality, reprojection, parallax and depth against the baseline.

    Args:
        points: (*, N, 3) world.
        xy_a: (*, N, 2) observations in pixels, view a.
        xy_b: (*, N, 2) observations in pixels, view b.
        K_a: (*, 3, 3) pixels.
        K_b: (*, 3, 3) pixels.
        cam_from_world_a: (*, 4, 4).
        cam_from_world_b: (*, 4, 4).
        width: picture width in pixels, which scales the reprojection threshold.
        gates: thresholds, by default those of :class:`TriangulationGates`.
        mask: (*, N) points to consider at all.

    Returns:
        The decision and the measurements behind it. The relaxed parallax threshold applies when fewer than
        ``relax_below`` points of the whole call (all pairs of a submap) survive the strict one.
    """
    gates = TriangulationGates() if gates is None else gates
    centre_a = -(cam_from_world_a[..., :3, :3].mT @ cam_from_world_a[..., :3, 3:])[..., 0]
    centre_b = -(cam_from_world_b[..., :3, :3].mT @ cam_from_world_b[..., :3, 3:])[..., 0]
    baseline = (centre_a - centre_b).norm(dim=-1)[..., None]
    proj_a, z_a = project_world(points, K_a, cam_from_world_a)
    proj_b, z_b = project_world(points, K_b, cam_from_world_b)
    error = torch.maximum((proj_a - xy_a).norm(dim=-1), (proj_b - xy_b).norm(dim=-1))
    parallax = parallax_angle(points, centre_a, centre_b)
    near, far = torch.minimum(z_a, z_b), torch.maximum(z_a, z_b)
    keep = torch.isfinite(points).all(-1) & (near > 0) & (near > gates.min_depth_baselines * baseline)
    keep &= error <= gates.max_reprojection * width / gates.reference_width
    keep &= far <= gates.max_depth_baselines * baseline
    if mask is not None:
        keep &= mask
    kept, relaxed = gate_parallax(keep, parallax, gates)
    return GateResult(
        keep=kept,
        z_a=z_a,
        z_b=z_b,
        reprojection=error,
        parallax=parallax,
        other_gates=keep,
        relaxed=relaxed,
    )
