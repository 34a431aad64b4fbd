"""Open ground with rocks, trees, walls and odd objects under the sky."""

from __future__ import annotations

import math

import numpy as np

from relief3d.worlds.builder import WorldBuilder, axis_matrix, tilt_matrix, yaw_matrix
from relief3d.worlds.config import WorldConfig
from relief3d.worlds.families.arrangement import add_shape
from relief3d.worlds.families.sky import daylight
from relief3d.worlds.layout import WAVES, Kind
from relief3d.worlds.patterns import muted_colour

FIELD = 60.0
"""Radius of the ground in metres."""


def height_at(waves: np.ndarray, x: float, y: float) -> float:
    """Ground height of waves (WAVES, 4) at a point."""
    return float((waves[:, 3] * np.sin(waves[:, 0] * x + waves[:, 1] * y + waves[:, 2])).sum())


def _waves(b: WorldBuilder) -> None:
    rng = b.rng
    for i in range(WAVES):
        length = 50.0 / 1.9**i * rng.uniform(0.8, 1.2)
        angle = rng.uniform(0, math.tau)
        amplitude = length * rng.uniform(0.002, 0.012)
        b.waves[i] = (
            math.tau / length * math.cos(angle),
            math.tau / length * math.sin(angle),
            rng.uniform(0, math.tau),
            amplitude,
        )


def tree(b: WorldBuilder, size: float) -> None:
    """A trunk with a crown of ellipsoids, or a conifer of cones."""
    rng = b.rng
    bark = b.material(b.layer("wood", "stone", fresh=False), extent=0.6, tint=(0.7, 0.6, 0.5), dirt=0.4)
    green = np.array([rng.uniform(0.5, 1.0), rng.uniform(0.8, 1.1), rng.uniform(0.4, 0.7)])
    leaf = b.material(b.layer("grass", fresh=False), extent=1.0, tint=green, dirt=0.7)
    trunk = size * rng.uniform(0.18, 0.3)
    lean = np.array([*rng.normal(0, 0.06, 2), 1.0])
    b.add(
        Kind.CYLINDER,
        (0, 0, trunk * 0.9),
        (0.03 * size, 0.03 * size, trunk),
        bark,
        rotation=axis_matrix(lean),
    )
    if rng.random() < 0.35 and b.free(Kind.CONE) >= 2:
        for k in range(2):
            low = trunk * 1.2 + k * size * 0.28
            b.add(Kind.CONE, (0, 0, low + size * 0.2), (size * (0.26 - 0.07 * k), 0.01, size * 0.24), leaf)
        return
    for _ in range(int(rng.integers(2, 5))):
        at = (*rng.normal(0, 0.11 * size, 2), trunk * 1.7 + size * rng.uniform(0.05, 0.35))
        half = size * rng.uniform(0.13, 0.25, 3)
        b.add(Kind.ELLIPSOID, at, half, leaf, rotation=yaw_matrix(rng.uniform(0, math.tau)))


def rock(b: WorldBuilder, size: float) -> None:
    """A boulder, half in the ground."""
    rng = b.rng
    kind = Kind.SUPERQUADRIC if b.free(Kind.SUPERQUADRIC) else Kind.ELLIPSOID
    skin = b.material(b.layer("stone", "plaster", "marble", fresh=False), extent=size * 2, tint=0.8, dirt=0.6)
    turn = yaw_matrix(rng.uniform(0, math.tau)) @ tilt_matrix(0, rng.normal(0, 0.3))
    half = size * rng.uniform(0.5, 1.0, 3) * (1, 1, 0.7)
    b.add(
        kind, (0, 0, half[2] * 0.4), half, skin, rotation=turn, extra=(rng.uniform(2, 3), rng.uniform(2, 3.5))
    )


def wall(b: WorldBuilder, length: float) -> None:
    """A free-standing wall or fence."""
    rng = b.rng
    if rng.random() < 0.5:
        skin = b.material(b.layer("brick", "stone", "plaster", "wood", fresh=False), extent=1.5, dirt=0.4)
        high = rng.uniform(0.4, 1.2)
        b.add(Kind.BOX, (0, 0, high / 2), (length, 0.12, high), skin)
        return
    wood = b.material(b.layer("wood", "metal", fresh=False), extent=1.0, dirt=0.4)
    for x in np.linspace(-length, length, 4):
        b.add(Kind.BOX, (x, 0, 0.5), (0.04, 0.04, 0.6), wood)
    for z in (0.45, 0.85):
        b.add(Kind.CYLINDER, (0, 0, z), (0.025, 0.025, length), wood, rotation=tilt_matrix(1, math.pi / 2))


def hut(b: WorldBuilder, size: float) -> None:
    """A small building: walls with a facade, a slab roof and a chimney."""
    rng = b.rng
    w, d, h = size * rng.uniform(0.7, 1.2), size * rng.uniform(0.6, 1), rng.uniform(1.2, 2.0)
    skin = b.material(
        b.layer("facade", "brick", "plaster", "wood", fresh=False), extent=(2 * w, 2 * h), dirt=0.3
    )
    tiles = b.material(
        b.layer("tiles", "brick", "metal", fresh=False), extent=1.5, tint=(0.8, 0.55, 0.45), dirt=0.4
    )
    b.add(Kind.BOX, (0, 0, h - 0.2), (w, d, h), skin)
    slope = rng.uniform(0.3, 0.6)
    for sign in (-1, 1):
        reach = (d + 0.25) / math.cos(slope)
        at = (0, sign * d * 0.55, 2 * h - 0.2 + (d * 0.45) * math.tan(slope))
        b.add(Kind.BOX, at, (w + 0.15, reach * 0.56, 0.06), tiles, rotation=tilt_matrix(0, -sign * slope))
    b.add(Kind.BOX, (w * 0.5, 0, 2 * h + 0.4), (0.2, 0.2, 0.7), skin)


def build_outdoor(b: WorldBuilder, config: WorldConfig) -> None:
    """Gentle ground with things within about 15 m, and large shapes farther away."""
    rng = b.rng
    _waves(b)
    b.begin("ground")
    soil = b.material(b.layer("grass", "asphalt", "stone"), extent=rng.uniform(3, 6), dirt=0.35)
    b.add(Kind.GROUND, (0, 0, 0), (FIELD, FIELD, 1), soil)
    taken: list[tuple[float, float, float]] = []
    moving = config.moving

    def spot(near: float, far: float, size: float) -> tuple[float, float] | None:
        for _ in range(12):
            r, a = math.sqrt(rng.uniform(near * near, far * far)), rng.uniform(0, math.tau)
            x, y = r * math.cos(a), r * math.sin(a)
            if all(math.hypot(x - u, y - v) > size + s for u, v, s in taken):
                taken.append((x, y, size))
                return x, y
        return None

    plan = [("hut", 6.0, 16.0, 2.6)] * int(rng.integers(0, 2)) + [("tree", 3.0, 18.0, 1.2)] * int(
        rng.integers(2, 5)
    )
    plan += [("rock", 0.5, 8.0, 0.7)] * int(rng.integers(2, 5)) + [("wall", 2.5, 9.0, 1.6)] * int(
        rng.integers(1, 3)
    )
    plan += [("object", 0.0, 5.0, 0.45)] * (4 + config.clutter)
    for name, near, far, size in plan:
        at = spot(near, far, size)
        if at is None:
            continue
        z = height_at(b.waves, *at) - 0.03
        velocity = np.zeros(4)
        if name == "object" and moving > 0:
            velocity[:2], moving = rng.normal(0, 0.5, 2), moving - 1
        b.begin(name, (*at, z), rng.uniform(0, math.tau), velocity)
        if name == "tree":
            tree(b, rng.uniform(2.5, 6))
        elif name == "rock":
            rock(b, rng.uniform(0.3, 0.9))
        elif name == "wall":
            wall(b, 1.5)
        elif name == "hut":
            hut(b, 2.2)
        else:
            kinds = [
                k
                for k in (Kind.BOX, Kind.CYLINDER, Kind.CONE, Kind.ELLIPSOID, Kind.SUPERQUADRIC)
                if b.free(k)
            ]
            if kinds:
                add_shape(b, kinds[int(rng.integers(len(kinds)))], rng.uniform(0.15, 0.45))
    if b.free(Kind.CYLINDER):
        b.begin("pole", (rng.uniform(-6, 6), rng.uniform(4, 9), 0))
        b.add(Kind.CYLINDER, (0, 0, 2.5), (0.05, 0.05, 3.0), b.flat(muted_colour(rng, 0.2, 0.6)))
    daylight(b)
    b.focus[:] = (0, 0, 0.6, 3.5, 9.0, 9.0, 1.2, 2.0)
