"""A straight street between houses, with cars, poles and trees."""

from __future__ import annotations

import math

import numpy as np

from relief3d.worlds.builder import WorldBuilder, tilt_matrix
from relief3d.worlds.config import WorldConfig
from relief3d.worlds.families.outdoor import tree
from relief3d.worlds.families.sky import daylight
from relief3d.worlds.layout import Kind
from relief3d.worlds.patterns import muted_colour

LENGTH = 60.0
"""Half length of the street in metres."""


def car(b: WorldBuilder) -> None:
    """A car about 4.2 m long, along local x."""
    rng = b.rng
    paint = b.flat(muted_colour(rng, 0.08, 0.85), specular=0.35, gloss=120)
    glass = b.flat((0.12, 0.14, 0.16), specular=0.5, gloss=150)
    rubber = b.flat((0.1, 0.1, 0.1))
    b.add(Kind.ROUNDED_BOX, (0, 0, 0.62), (2.1, 0.88, 0.36), paint, extra=(0.16,))
    kind = Kind.ROUNDED_BOX if b.free(Kind.ROUNDED_BOX) else Kind.BOX
    b.add(kind, (-0.2, 0, 1.18), (1.15, 0.78, 0.32), glass, extra=(0.2,))
    for x in (-1.3, 1.3):
        if b.free(Kind.CYLINDER):
            b.add(
                Kind.CYLINDER, (x, 0, 0.33), (0.33, 0.33, 0.86), rubber, rotation=tilt_matrix(0, math.pi / 2)
            )


def _houses(b: WorldBuilder, side: float, near: float, spare: int) -> None:
    rng = b.rng
    x = -LENGTH * 0.35
    while x < LENGTH * 0.6 and b.free(Kind.BOX) > spare:
        wide, high, deep = rng.uniform(5, 11), rng.uniform(5, 14), 5.0
        setback = near + rng.uniform(0, 1.5)
        b.begin("house", (x + wide / 2, side * (setback + deep), 0))
        storeys = max(2.0, high / 3.0)
        front = b.material(
            b.layer("facade"), extent=(wide / rng.uniform(0.9, 1.4), high * 3 / storeys), dirt=0.3
        )
        flank = b.material(b.layer("brick", "plaster", fresh=False), extent=3.0, dirt=0.4)
        faces = (flank, flank, front, front, flank, flank)
        b.add(Kind.BOX, (0, 0, high / 2), (wide / 2, deep, high / 2), faces)
        if rng.random() < 0.4 and b.free(Kind.BOX) > spare:
            b.add(Kind.BOX, (0, -side * (deep + 0.4), rng.uniform(2.6, 3.2)), (wide * 0.4, 0.5, 0.06), flank)
        if rng.random() < 0.5 and b.free(Kind.BOX) > spare:
            sign = b.material(b.layer("poster", "text", fresh=False), extent=(wide * 0.5, 0.8), fit=True)
            b.add(Kind.BOX, (0, -side * (deep + 0.04), 3.0), (wide * 0.25, 0.05, 0.4), sign)
        x += wide + (rng.uniform(1, 5) if rng.random() < 0.3 else 0.0)


def build_street(b: WorldBuilder, config: WorldConfig) -> None:
    """Road, pavements, houses on both sides, parked and moving cars, lamp posts, trees, people-sized posts."""
    rng = b.rng
    road = rng.uniform(3.0, 4.5)
    b.begin("road")
    tar = b.material(b.layer("asphalt"), extent=rng.uniform(4, 7), dirt=0.3)
    slab = b.material(b.layer("tiles", "stone", "plaster"), extent=2.5, tint=0.85, dirt=0.3)
    b.add(Kind.BOX, (0, 0, -0.5), (LENGTH, LENGTH, 0.5), tar)
    for side in (-1.0, 1.0):
        b.begin("pavement")
        b.add(Kind.BOX, (0, side * (road + 1.25), 0.0), (LENGTH, 1.25, 0.13), slab)
    white = b.flat((0.85, 0.85, 0.83), dirt=0.3)
    b.begin("marking")
    for x in np.arange(-12, 24, 6.0):
        b.add(Kind.BOX, (x, 0, 0.002), (1.4, 0.06, 0.003), white)
    _houses(b, 1.0, road + 2.5, 21)
    _houses(b, -1.0, road + 2.5, 6)
    moving = config.moving
    for _ in range(3):
        if b.free(Kind.ROUNDED_BOX) < 2:
            break
        side = float(rng.choice([-1.0, 1.0]))
        velocity = np.zeros(4)
        lateral = side * (road - 1.0)
        if moving > 0:
            velocity[0], moving, lateral = -side * rng.uniform(4, 11), moving - 1, side * road * 0.35
        b.begin("car", (rng.uniform(-5, 22), lateral, 0), 0.0, velocity)
        car(b)
    for k in range(4):
        side = 1.0 if k % 2 else -1.0
        b.begin("lamp post", (k * 9 - 8 + rng.uniform(-2, 2), side * (road + 0.3), 0))
        metal = b.flat(muted_colour(rng, 0.15, 0.5), specular=0.2)
        b.add(Kind.CYLINDER, (0, 0, 2.6), (0.06, 0.06, 2.6), metal)
        b.add(
            Kind.CYLINDER,
            (0, -side * 0.6, 5.2),
            (0.035, 0.035, 0.6),
            metal,
            rotation=tilt_matrix(0, math.pi / 2),
        )
    for _ in range(2):
        if b.free(Kind.ELLIPSOID) >= 2:
            b.begin("tree", (rng.uniform(-3, 20), rng.choice([-1, 1]) * (road + 1.2), 0.1))
            tree(b, rng.uniform(3, 5))
    for _ in range(4):
        if not b.free(Kind.CONE):
            break
        b.begin("cone", (rng.uniform(-2, 14), rng.choice([-1, 1]) * (road - 0.3), 0))
        b.add(Kind.CONE, (0, 0, 0.32), (0.16, 0.03, 0.32), b.flat((0.75, 0.33, 0.15)))
    while b.free(Kind.BOX):
        half = (rng.uniform(0.2, 0.5), rng.uniform(0.2, 0.4), rng.uniform(0.3, 0.7))
        b.begin(
            "box",
            (rng.uniform(-6, 22), rng.choice([-1, 1]) * (road + 1.6), 0.1 + half[2]),
            rng.normal(0, 0.2),
        )
        b.add(
            Kind.BOX, (0, 0, 0), half, b.material(b.layer("metal", "wood", "poster", fresh=False), extent=1.0)
        )
    daylight(b)
    b.focus[:] = (4, 0, 1.2, 8.0, 14.0, road - 0.8, 1.2, 1.9)
