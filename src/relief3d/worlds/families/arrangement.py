"""Objects on a table or floor: the family for close orbits."""

from __future__ import annotations

import math

import numpy as np

from relief3d.worlds.builder import WorldBuilder, tilt_matrix, yaw_matrix
from relief3d.worlds.config import WorldConfig
from relief3d.worlds.families.furniture import printed_box
from relief3d.worlds.layout import Kind
from relief3d.worlds.patterns import muted_colour

SKINS = (
    "wood",
    "stone",
    "marble",
    "stripes",
    "tiles",
    "metal",
    "poster",
    "brick",
    "carpet",
    "photo",
    "plaster",
)
SHAPES = (
    Kind.BOX, Kind.ELLIPSOID, Kind.CYLINDER, Kind.CONE, Kind.ROUNDED_BOX, Kind.TORUS, Kind.SUPERQUADRIC, Kind.LATHE,
)  # fmt: skip


def _skin(b: WorldBuilder, size: float) -> int:
    if b.rng.random() < b.plain:
        return b.flat(
            muted_colour(b.rng, 0.15, 0.9), specular=b.rng.uniform(0, 0.4), gloss=b.rng.uniform(10, 90)
        )
    return b.material(
        b.layer(*SKINS, fresh=False), extent=size * b.rng.uniform(1.5, 4), tint=b.rng.uniform(0.6, 1.15),
        specular=b.rng.uniform(0, 0.2), gloss=b.rng.uniform(10, 80), turn=b.rng.uniform(0, math.tau),
    )  # fmt: skip


def add_shape(b: WorldBuilder, kind: Kind, reach: float) -> float:
    """One primitive standing at the origin of the current object; returns its height."""
    rng = b.rng
    r = reach * rng.uniform(0.5, 1.0)
    h = reach * rng.uniform(0.4, 1.4)
    spin = yaw_matrix(rng.uniform(0, math.tau))
    skin = _skin(b, 2 * r)
    if kind == Kind.BOX:
        half = (r, reach * rng.uniform(0.3, 0.8), h)
        faces = printed_box(b, half) if rng.random() < 0.3 else skin
        b.add(kind, (0, 0, h), half, faces, rotation=spin)
        return 2 * h
    if kind == Kind.ROUNDED_BOX:
        half = (r, reach * rng.uniform(0.4, 0.8), h)
        b.add(kind, (0, 0, h), half, skin, rotation=spin, extra=(min(half) * rng.uniform(0.2, 0.6),))
        return 2 * h
    if kind == Kind.ELLIPSOID:
        b.add(kind, (0, 0, h), (r, reach * rng.uniform(0.4, 1), h), skin, rotation=spin)
        return 2 * h
    if kind == Kind.SUPERQUADRIC:
        extra = (rng.uniform(2, 6), rng.uniform(2, 6))
        b.add(kind, (0, 0, h), (r, reach * rng.uniform(0.4, 0.9), h), skin, rotation=spin, extra=extra)
        return 2 * h
    if kind == Kind.TORUS:
        tube = r * rng.uniform(0.2, 0.4)
        upright = rng.random() < 0.4
        at = (0, 0, r) if upright else (0, 0, tube)
        turn = spin @ tilt_matrix(0, math.pi / 2) if upright else spin
        b.add(kind, at, (r - tube, tube, 1), skin, rotation=turn)
        return 2 * r if upright else 2 * tube
    if kind == Kind.LATHE:
        r *= 0.6
        waist = (r * rng.uniform(-0.3, 0.35), r * rng.uniform(-0.2, 0.2), r * rng.uniform(-0.12, 0.12))
        b.add(kind, (0, 0, h), (r, r, h), skin, extra=waist)
        return 2 * h
    lying = kind == Kind.CYLINDER and rng.random() < 0.25
    if lying:
        b.add(kind, (0, 0, r * 0.6), (r * 0.6, r * 0.6, h), skin, rotation=spin @ tilt_matrix(0, math.pi / 2))
        return 1.2 * r
    b.add(
        kind,
        (0, 0, h),
        (r * 0.7, r * rng.uniform(0, 0.6) if kind == Kind.CONE else r * 0.7, h),
        skin,
        rotation=spin,
    )
    return 2 * h


def build_objects(b: WorldBuilder, config: WorldConfig) -> None:
    """A dozen or two objects on a table top inside a simple room, lit by two lamps."""
    rng = b.rng
    w, d, h = rng.uniform(3.5, 6), rng.uniform(3.5, 6), 2.8
    b.begin("room")
    wall = b.flat(muted_colour(rng, 0.4, 0.85)) if rng.random() < config.plain_walls else b.material(
        b.layer("plaster", "brick", "wood", "stripes"), extent=2.0
    )  # fmt: skip
    floor = b.material(b.layer("wood", "tiles", "stone"), extent=2.0)
    b.add(Kind.SHELL, (0, 0, h / 2), (w / 2, d / 2, h / 2), (wall, wall, wall, wall, floor, wall))
    height = rng.uniform(0.4, 0.75)
    reach = rng.uniform(0.55, 0.9)
    b.begin("table", yaw=rng.uniform(0, math.pi))
    top = b.material(
        b.layer("wood", "marble", "carpet", "stripes", "text"), extent=rng.uniform(0.7, 1.4), specular=0.05
    )
    leg = b.flat(muted_colour(rng, 0.1, 0.6))
    b.add(Kind.BOX, (0, 0, height - 0.02), (reach, reach * 0.9, 0.02), top)
    b.add(Kind.BOX, (0, 0, (height - 0.04) / 2), (0.06, 0.06, (height - 0.04) / 2), leg)
    taken: list[tuple[float, float, float]] = []
    moving = config.moving
    for _ in range(80):
        kinds = [k for k in SHAPES if b.free(k)]
        if not kinds or len(taken) >= 8 + config.clutter:
            break
        size = rng.uniform(0.05, 0.17)
        x, y = rng.normal(0, reach * 0.45, 2)
        if max(abs(x), abs(y)) > reach * 0.85 - size or any(
            math.hypot(x - u, y - v) < size + s for u, v, s in taken
        ):
            continue
        taken.append((x, y, size))
        velocity = np.zeros(4)
        if moving > 0:
            velocity[:2], velocity[3] = rng.normal(0, 0.06, 2), rng.normal(0, 0.3)
            moving -= 1
        b.begin("object", (x, y, height), velocity=velocity)
        add_shape(b, kinds[int(rng.integers(len(kinds)))], size)
    while b.free(Kind.BOX) > 3:
        side = rng.choice([-1, 1])
        # Each of its own thickness: overlapping pictures with coplanar faces would flicker.
        half = (rng.uniform(0.2, 0.6), 0.006 + 0.003 * b.free(Kind.BOX), rng.uniform(0.2, 0.5))
        b.begin("picture", (rng.uniform(-0.3, 0.3) * w, side * (d / 2 - 0.02), rng.uniform(1.2, 1.7)))
        b.add(Kind.BOX, (0, 0, 0), half, printed_box(b, half))
    warm = np.array([1.0, rng.uniform(0.85, 1), rng.uniform(0.7, 1)])
    b.lamp((*rng.uniform(-0.8, 0.8, 2), h - 0.2), warm * rng.uniform(1.5, 3), 0.1)
    b.lamp((*rng.uniform(-1.4, 1.4, 2), rng.uniform(1.4, 2.3)), np.ones(3) * rng.uniform(0.3, 1.5), 0.2)
    level = rng.uniform(0.2, 0.5)
    b.sky[6:9], b.sky[9:12], b.sky[:6] = level, level * 0.6, 0.5
    b.room[:] = (0, 0, h / 2, w / 2, d / 2, h / 2)
    b.focus[:] = (0, 0, height + 0.1, reach, w / 2 - 0.3, d / 2 - 0.3, height + 0.35, height + 0.9)
