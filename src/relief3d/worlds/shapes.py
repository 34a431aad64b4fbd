"""Local-frame mathematics of the primitives: distance, gradient and ray intersection.

Everything is written on separate coordinate tensors that broadcast against each other, so that eager code
works on whole groups of slots and ``torch.compile`` fuses the lot. No step depends on data: rays that miss
get infinity. Rays are ``o + t d`` with unit ``d`` in the primitive's own frame; solids are entered from
outside (a ray that starts inside hits nothing), except the room shell, which is left from inside.

Slab and quadric intersections are the textbook ones; convex implicit surfaces (rounded box, superquadric)
use Newton's method along the ray, which from outside approaches the first root of a convex function
monotonically; torus, lathe and height field are sampled evenly, bisected and polished.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from relief3d.worlds.layout import WAVES, Kind

TOLERANCE = 2e-4
"""Largest residual, in metres, at which a traced ray counts as a hit."""


class Vec(NamedTuple):
    """Three coordinate tensors."""

    x: Tensor
    y: Tensor
    z: Tensor


class Shape(NamedTuple):
    """Numbers of a primitive: half sizes, extras, bounding radius, waves (x, y, phase, amplitude per wave)."""

    s0: Tensor
    s1: Tensor
    s2: Tensor
    e0: Tensor
    e1: Tensor
    e2: Tensor
    bound: Tensor
    waves: Tensor | None = None


def _inverse(d: Tensor) -> Tensor:
    # The offset only matters for rays exactly parallel to a face.
    return 1.0 / (d + 1e-12)


def _box_interval(o: Vec, d: Vec, s: Shape) -> tuple[Tensor, Tensor]:
    ix, iy, iz = _inverse(d.x), _inverse(d.y), _inverse(d.z)
    mx, my, mz = o.x * ix, o.y * iy, o.z * iz
    kx, ky, kz = s.s0 * ix.abs(), s.s1 * iy.abs(), s.s2 * iz.abs()
    near = torch.minimum(torch.minimum(mx + kx, my + ky), mz + kz)
    far = torch.minimum(torch.minimum(kx - mx, ky - my), kz - mz)
    return -near, far


def _entry(near: Tensor, far: Tensor) -> Tensor:
    return torch.where((near < far) & (near > 0), near, math.inf)


def hit_shell(o: Vec, d: Vec, s: Shape) -> Tensor:
    """Where a ray that starts inside the box leaves it."""
    near, far = _box_interval(o, d, s)
    return torch.where((near < 0) & (far > 0), far, math.inf)


def hit_box(o: Vec, d: Vec, s: Shape) -> Tensor:
    """Entry into a box."""
    return _entry(*_box_interval(o, d, s))


def _quadratic(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Roots of ``a t^2 + 2 b t + c``, smaller first for a > 0, and the discriminant."""
    disc = b * b - a * c
    root = torch.sqrt(disc.clamp_min(0))
    return (-b - root) / a, (-b + root) / a, disc


def hit_ellipsoid(o: Vec, d: Vec, s: Shape) -> Tensor:
    """Entry into an ellipsoid."""
    ux, uy, uz = o.x / s.s0, o.y / s.s1, o.z / s.s2
    vx, vy, vz = d.x / s.s0, d.y / s.s1, d.z / s.s2
    a = vx * vx + vy * vy + vz * vz
    b = ux * vx + uy * vy + uz * vz
    # Distance of the line from the centre as a cross product: b^2 - a c cancels badly for far small balls.
    cx, cy, cz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    disc = a - (cx * cx + cy * cy + cz * cz)
    near = (-b - torch.sqrt(disc.clamp_min(0))) / a
    return torch.where((disc > 0) & (near > 0), near, math.inf)


def _slab_z(o: Vec, d: Vec, half: Tensor) -> tuple[Tensor, Tensor]:
    iz = _inverse(d.z)
    m, k = o.z * iz, half * iz.abs()
    return -m - k, k - m


def hit_cylinder(o: Vec, d: Vec, s: Shape) -> Tensor:
    """Entry into a capped cylinder of radius s0 and half height s2."""
    a = (d.x * d.x + d.y * d.y).clamp_min(1e-12)
    b = o.x * d.x + o.y * d.y
    cross = o.x * d.y - o.y * d.x
    disc = a * s.s0 * s.s0 - cross * cross
    root = torch.sqrt(disc.clamp_min(0))
    low, high = _slab_z(o, d, s.s2)
    near = torch.maximum((-b - root) / a, low)
    far = torch.minimum((-b + root) / a, high)
    return torch.where((disc > 0) & (near < far) & (near > 0), near, math.inf)


def hit_cone(o: Vec, d: Vec, s: Shape) -> Tensor:
    """Entry into a truncated cone: radius s0 at z = -s2, s1 at z = s2."""
    slope = (s.s1 - s.s0) / (2 * s.s2)
    middle = 0.5 * (s.s0 + s.s1)
    r0, rd = middle + slope * o.z, slope * d.z
    a = d.x * d.x + d.y * d.y - rd * rd
    a = torch.where(a.abs() < 1e-9, 1e-9, a)
    b = o.x * d.x + o.y * d.y - r0 * rd
    c = o.x * o.x + o.y * o.y - r0 * r0
    first, second, disc = _quadratic(a, b, c)
    t1, t2 = torch.minimum(first, second), torch.maximum(first, second)
    low, high = _slab_z(o, d, s.s2)
    # Steeper than the side (a < 0): inside is a half-line, on the side where the radius grows.
    steep, growing = a < 0, rd > 0
    begin = torch.where(steep, torch.where(growing, t2, -math.inf), t1)
    end = torch.where(steep, torch.where(growing, math.inf, t1), t2)
    near, far = torch.maximum(begin, low), torch.minimum(end, high)
    return torch.where((disc > 0) & (near < far) & (near > 0), near, math.inf)


def _sphere_interval(o: Vec, d: Vec, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b = o.x * d.x + o.y * d.y + o.z * d.z
    px, py, pz = o.x - b * d.x, o.y - b * d.y, o.z - b * d.z
    disc = radius * radius - (px * px + py * py + pz * pz)
    root = torch.sqrt(disc.clamp_min(0))
    return (-b - root).clamp_min(0), -b + root, disc


def _at(o: Vec, d: Vec, t: Tensor) -> Vec:
    return Vec(o.x + t * d.x, o.y + t * d.y, o.z + t * d.z)


def _newton_convex(
    o: Vec, d: Vec, s: Shape, value: Callable[[Vec, Shape], tuple[Tensor, Vec]], steps: int
) -> Tensor:
    t, far, disc = _sphere_interval(o, d, s.bound)
    t = torch.minimum(t, far)
    for _ in range(steps):
        f, g = value(_at(o, d, t), s)
        slope = g.x * d.x + g.y * d.y + g.z * d.z
        t = t + torch.where(slope < -1e-6, f / (-slope).clamp_min(1e-6), 1e4 * f.clamp_min(0)).clamp(
            -1.0, 1e4
        )
        t = t.clamp_max(1e6)
    f, _ = value(_at(o, d, t), s)
    good = (disc > 0) & (far > 0) & (t > 0) & (t <= far + 1e-3) & (f.abs() < TOLERANCE)
    return torch.where(good, t, math.inf)


def rounded_box_value(p: Vec, s: Shape) -> tuple[Tensor, Vec]:
    """Exact signed distance of a box with edges rounded by e0, and its gradient."""
    qx, qy, qz = p.x.abs() - s.s0 + s.e0, p.y.abs() - s.s1 + s.e0, p.z.abs() - s.s2 + s.e0
    mx, my, mz = qx.clamp_min(0), qy.clamp_min(0), qz.clamp_min(0)
    length = _length(mx, my, mz)
    top = torch.maximum(torch.maximum(qx, qy), qz)
    inside = top.clamp_max(0)
    inv = 1.0 / length.clamp_min(1e-12)
    outer = top > 0
    gx = torch.where(outer, mx * inv, (qx >= top).to(mx.dtype))
    gy = torch.where(outer, my * inv, (qy >= top).to(mx.dtype))
    gz = torch.where(outer, mz * inv, (qz >= top).to(mx.dtype))
    gradient = Vec(torch.copysign(gx, p.x), torch.copysign(gy, p.y), torch.copysign(gz, p.z))
    return length + inside - s.e0, gradient


def superquadric_value(p: Vec, s: Shape) -> tuple[Tensor, Vec]:
    """``N - 1`` of the superquadric norm scaled by the smallest half size, and its gradient."""
    pe, qe = s.e0, s.e1
    ux, uy, uz = (
        (p.x.abs() / s.s0).clamp_min(1e-5),
        (p.y.abs() / s.s1).clamp_min(1e-5),
        (p.z.abs() / s.s2).clamp_min(1e-5),
    )
    # exp(e log u): both vectorise, unlike a power with a tensor as exponent.
    ax, ay = torch.exp(pe * torch.log(ux)), torch.exp(pe * torch.log(uy))
    ring = ax + ay
    ring_q = torch.exp(qe / pe * torch.log(ring))
    az = torch.exp(qe * torch.log(uz))
    total = ring_q + az
    norm = torch.exp(torch.log(total) / qe)
    scale = torch.minimum(torch.minimum(s.s0, s.s1), s.s2)
    common = scale * norm / total
    flat = common * ring_q / ring
    gx = flat * ax / (ux * s.s0)
    gy = flat * ay / (uy * s.s1)
    gz = common * az / (uz * s.s2)
    gradient = Vec(torch.copysign(gx, p.x), torch.copysign(gy, p.y), torch.copysign(gz, p.z))
    return scale * (norm - 1.0), gradient


def torus_value(p: Vec, s: Shape) -> tuple[Tensor, Vec]:
    """Exact signed distance of a torus and its gradient."""
    rho = torch.sqrt(p.x * p.x + p.y * p.y).clamp_min(1e-9)
    q = rho - s.s0
    length = torch.sqrt(q * q + p.z * p.z).clamp_min(1e-9)
    radial = q / (length * rho)
    return length - s.s1, Vec(radial * p.x, radial * p.y, p.z / length)


def _lathe_angle(z: Tensor, s: Shape) -> tuple[Tensor, Tensor]:
    v = (z * (math.pi / s.s2)).clamp(-math.pi, math.pi)
    return torch.cos(v), torch.sin(v)


def lathe_radius(z: Tensor, s: Shape) -> tuple[Tensor, Tensor]:
    """Radius of the lathe at height z, and its derivative."""
    c, n = _lathe_angle(z, s)
    cc = c * c
    radius = s.s0 + c * (s.e0 + 2 * s.e1 * n + s.e2 * (4 * cc - 3))
    slope = 2 * s.e1 * (2 * cc - 1) - n * (s.e0 + 3 * s.e2 * (4 * cc - 1))
    return radius, slope * (math.pi / s.s2)


def _lathe_gap(p: Vec, s: Shape) -> Tensor:
    """Has the sign of the distance to the lathe; cheap."""
    c, n = _lathe_angle(p.z, s)
    radius = s.s0 + c * (s.e0 + 2 * s.e1 * n + s.e2 * (4 * c * c - 3))
    return torch.maximum(torch.sqrt(p.x * p.x + p.y * p.y) - radius, p.z.abs() - s.s2)


def lathe_value(p: Vec, s: Shape) -> tuple[Tensor, Vec]:
    """Distance bound of a capped lathe (exact to first order at the side) and its gradient."""
    rho = torch.sqrt(p.x * p.x + p.y * p.y).clamp_min(1e-9)
    radius, slope = lathe_radius(p.z, s)
    scale = torch.rsqrt(1 + slope * slope)
    side, cap = (rho - radius) * scale, p.z.abs() - s.s2
    on_cap = cap > side
    gx = torch.where(on_cap, 0.0, p.x / rho * scale)
    gy = torch.where(on_cap, 0.0, p.y / rho * scale)
    gz = torch.where(on_cap, torch.sign(p.z), -slope * scale)
    return torch.maximum(side, cap), Vec(gx, gy, gz)


def ground_height(x: Tensor, y: Tensor, waves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Height of the wave sum and its two derivatives; ``waves`` is (WAVES, 4, ...) broadcasting with x."""
    height, gx, gy = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
    for i in range(WAVES):
        kx, ky, phase, amplitude = waves[i, 0], waves[i, 1], waves[i, 2], waves[i, 3]
        angle = kx * x + ky * y + phase
        height = height + amplitude * torch.sin(angle)
        turn = amplitude * torch.cos(angle)
        gx, gy = gx + kx * turn, gy + ky * turn
    return height, gx, gy


def ground_value(p: Vec, s: Shape) -> tuple[Tensor, Vec]:
    """First-order distance to the height field and its unit gradient."""
    assert s.waves is not None
    height, gx, gy = ground_height(p.x, p.y, s.waves)
    scale = torch.rsqrt(1 + gx * gx + gy * gy)
    return (p.z - height) * scale, Vec(-gx * scale, -gy * scale, scale)


def hit_rounded_box(o: Vec, d: Vec, s: Shape) -> Tensor:
    """Entry into a rounded box."""
    return _newton_convex(o, d, s, rounded_box_value, 6)


def hit_superquadric(o: Vec, d: Vec, s: Shape) -> Tensor:
    """Entry into a superquadric with exponents of at least 2."""
    return _newton_convex(o, d, s, superquadric_value, 7)


def _march(
    o: Vec,
    d: Vec,
    s: Shape,
    gap: Callable[[Vec, Shape], Tensor],
    value: Callable[[Vec, Shape], tuple[Tensor, Vec]],
    steps: int,
) -> Tensor:
    """First sign change of ``gap`` among even samples of the bounding interval, bisected, then Newton.

    Sphere tracing would stall beside outlines and leave holes there; even samples only lose chords shorter
    than one step, which shrinks an outline by a fraction of a millimetre.
    """
    begin, far, disc = _sphere_interval(o, d, s.bound)
    step = (far - begin).clamp_min(0) / steps
    before = gap(_at(o, d, begin), s)
    low = begin
    found = torch.zeros_like(before, dtype=torch.bool)
    for i in range(1, steps + 1):
        t = begin + i * step
        f = gap(_at(o, d, t), s)
        crossing = (before > 0) & (f <= 0) & ~found
        low = torch.where(crossing, t - step, low)
        found = found | crossing
        before = f
    half = step
    for _ in range(4):
        half = 0.5 * half
        f = gap(_at(o, d, low + half), s)
        low = torch.where(f > 0, low + half, low)
    t = low + 0.5 * half
    for _ in range(3):
        f, g = value(_at(o, d, t), s)
        slope = g.x * d.x + g.y * d.y + g.z * d.z
        move = f / (-slope).clamp_min(0.02)
        t = torch.maximum(torch.minimum(t + move, low + 1.5 * half), low - 0.5 * half)
    f, _ = value(_at(o, d, t), s)
    good = found & (disc > 0) & (far > 0) & (t > 0) & (f.abs() < TOLERANCE)
    return torch.where(good, t, math.inf)


def _torus_gap(p: Vec, s: Shape) -> Tensor:
    q = torch.sqrt(p.x * p.x + p.y * p.y) - s.s0
    return torch.sqrt(q * q + p.z * p.z) - s.s1


def hit_torus(o: Vec, d: Vec, s: Shape) -> Tensor:
    """First hit of a torus from outside."""
    return _march(o, d, s, _torus_gap, torus_value, 16)


def hit_lathe(o: Vec, d: Vec, s: Shape) -> Tensor:
    """First hit of a capped lathe from outside."""
    return _march(o, d, s, _lathe_gap, lathe_value, 20)


def hit_ground(o: Vec, d: Vec, s: Shape) -> Tensor:
    """First hit of a height field from above, within the bounding radius around its centre.

    The ray is sampled between its crossings of the highest and the lowest possible height, where the sign must
    change; the bracket is bisected and polished by Newton's method.
    """
    assert s.waves is not None
    waves = s.waves
    peak = waves[:, 3].abs().sum(0) + 1e-3
    down = (-d.z).clamp_min(1e-5)
    begin = ((o.z - peak) / down).clamp_min(0)
    # Twice the field's radius ends rays that look almost level.
    far = torch.minimum((o.z + peak) / down, begin + 2 * s.bound)
    step = (far - begin) / 20

    def gap_at(t: Tensor) -> Tensor:
        return o.z + t * d.z - ground_height(o.x + t * d.x, o.y + t * d.y, waves)[0]

    low, found = begin, torch.zeros_like(begin, dtype=torch.bool)
    for i in range(1, 21):
        t = begin + i * step
        crossing = (gap_at(t) <= 0) & ~found
        low = torch.where(crossing, t - step, low)
        found = found | crossing
    half = step
    for _ in range(6):
        half = 0.5 * half
        low = torch.where(gap_at(low + half) > 0, low + half, low)
    t = low + 0.5 * half
    for _ in range(3):
        height, gx, gy = ground_height(o.x + t * d.x, o.y + t * d.y, waves)
        slope = (gx * d.x + gy * d.y - d.z).clamp_min(1e-3)
        move = (o.z + t * d.z - height) / slope
        t = torch.maximum(torch.minimum(t + move, low + 1.5 * half), low - 0.5 * half)
    x, y = o.x + t * d.x, o.y + t * d.y
    good = found & (t > 0) & (x * x + y * y < s.bound * s.bound) & (gap_at(t).abs() < 5e-4)
    return torch.where(good, t, math.inf)


HIT: dict[Kind, Callable[[Vec, Vec, Shape], Tensor]] = {
    Kind.SHELL: hit_shell,
    Kind.GROUND: hit_ground,
    Kind.BOX: hit_box,
    Kind.ELLIPSOID: hit_ellipsoid,
    Kind.CYLINDER: hit_cylinder,
    Kind.CONE: hit_cone,
    Kind.ROUNDED_BOX: hit_rounded_box,
    Kind.TORUS: hit_torus,
    Kind.SUPERQUADRIC: hit_superquadric,
    Kind.LATHE: hit_lathe,
}


def _length(x: Tensor, y: Tensor, z: Tensor | None = None) -> Tensor:
    square = x * x + y * y if z is None else x * x + y * y + z * z
    # Clamped so that its gradient at zero is zero and not NaN.
    return torch.sqrt(square.clamp_min(1e-30))


def _distance_box(p: Vec, s: Shape) -> Tensor:
    qx, qy, qz = p.x.abs() - s.s0, p.y.abs() - s.s1, p.z.abs() - s.s2
    outside = _length(qx.clamp_min(0), qy.clamp_min(0), qz.clamp_min(0))
    return outside + torch.maximum(torch.maximum(qx, qy), qz).clamp_max(0)


def _distance_ellipsoid(p: Vec, s: Shape) -> Tensor:
    k0 = _length(p.x / s.s0, p.y / s.s1, p.z / s.s2)
    k1 = _length(p.x / (s.s0 * s.s0), p.y / (s.s1 * s.s1), p.z / (s.s2 * s.s2)).clamp_min(1e-9)
    return k0 * (k0 - 1) / k1


def _distance_cylinder(p: Vec, s: Shape) -> Tensor:
    side, cap = _length(p.x, p.y) - s.s0, p.z.abs() - s.s2
    return _length(side.clamp_min(0), cap.clamp_min(0)) + torch.maximum(side, cap).clamp_max(0)


def _distance_cone(p: Vec, s: Shape) -> Tensor:
    # Exact distance of a capped cone in the (rho, z) half plane: nearest of the cap and the slanted edge.
    rho = _length(p.x, p.y)
    cap_radius = torch.where(p.z < 0, s.s0, s.s1)
    cx, cz = rho - torch.minimum(rho, cap_radius), p.z.abs() - s.s2
    kx, kz = s.s1 - s.s0, 2 * s.s2
    along = (((s.s1 - rho) * kx + (s.s2 - p.z) * kz) / (kx * kx + kz * kz)).clamp(0, 1)
    bx, bz = rho - s.s1 + kx * along, p.z - s.s2 + kz * along
    inside = (bx < 0) & (cz < 0)
    distance = torch.sqrt(torch.minimum(cx * cx + cz * cz, bx * bx + bz * bz).clamp_min(1e-30))
    return torch.where(inside, -distance, distance)


def _distance_superquadric(p: Vec, s: Shape) -> Tensor:
    f, g = superquadric_value(p, s)
    return f / _length(g.x, g.y, g.z).clamp_min(1e-4)


DISTANCE: dict[Kind, Callable[[Vec, Shape], Tensor]] = {
    Kind.SHELL: lambda p, s: -_distance_box(p, s),
    Kind.GROUND: lambda p, s: ground_value(p, s)[0],
    Kind.BOX: _distance_box,
    Kind.ELLIPSOID: _distance_ellipsoid,
    Kind.CYLINDER: _distance_cylinder,
    Kind.CONE: _distance_cone,
    Kind.ROUNDED_BOX: lambda p, s: rounded_box_value(p, s)[0],
    Kind.TORUS: lambda p, s: torus_value(p, s)[0],
    Kind.SUPERQUADRIC: _distance_superquadric,
    Kind.LATHE: lambda p, s: lathe_value(p, s)[0],
}


def _normal_box(p: Vec, s: Shape) -> Vec:
    qx, qy, qz = p.x.abs() - s.s0, p.y.abs() - s.s1, p.z.abs() - s.s2
    on_x = (qx >= qy) & (qx >= qz)
    on_y = ~on_x & (qy >= qz)
    zero = torch.zeros_like(qx)
    return Vec(
        torch.where(on_x, torch.sign(p.x), zero),
        torch.where(on_y, torch.sign(p.y), zero),
        torch.where(on_x | on_y, zero, torch.sign(p.z)),
    )


def _normal_shell(p: Vec, s: Shape) -> Vec:
    n = _normal_box(p, s)
    return Vec(-n.x, -n.y, -n.z)


def _normal_ellipsoid(p: Vec, s: Shape) -> Vec:
    return Vec(p.x / (s.s0 * s.s0), p.y / (s.s1 * s.s1), p.z / (s.s2 * s.s2))


def _normal_cylinder(p: Vec, s: Shape) -> Vec:
    cap = (p.z.abs() - s.s2) > (_length(p.x, p.y) - s.s0)
    return Vec(torch.where(cap, 0.0, p.x), torch.where(cap, 0.0, p.y), torch.where(cap, torch.sign(p.z), 0.0))


def _normal_cone(p: Vec, s: Shape) -> Vec:
    slope = (s.s1 - s.s0) / (2 * s.s2)
    rho = _length(p.x, p.y)
    side = (rho - 0.5 * (s.s0 + s.s1) - slope * p.z) * torch.rsqrt(1 + slope * slope)
    cap = (p.z.abs() - s.s2) > side
    return Vec(
        torch.where(cap, 0.0, p.x),
        torch.where(cap, 0.0, p.y),
        torch.where(cap, torch.sign(p.z), -slope * rho),
    )


NORMAL: dict[Kind, Callable[[Vec, Shape], Vec]] = {
    Kind.SHELL: _normal_shell,
    Kind.GROUND: lambda p, s: ground_value(p, s)[1],
    Kind.BOX: _normal_box,
    Kind.ELLIPSOID: _normal_ellipsoid,
    Kind.CYLINDER: _normal_cylinder,
    Kind.CONE: _normal_cone,
    Kind.ROUNDED_BOX: lambda p, s: rounded_box_value(p, s)[1],
    Kind.TORUS: lambda p, s: torus_value(p, s)[1],
    Kind.SUPERQUADRIC: lambda p, s: superquadric_value(p, s)[1],
    Kind.LATHE: lambda p, s: lathe_value(p, s)[1],
}
"""Outward direction at a surface point, not normalised."""

ROUND = frozenset({Kind.ELLIPSOID, Kind.CYLINDER, Kind.CONE, Kind.TORUS, Kind.LATHE})
"""Kinds whose texture is wrapped around local z."""
