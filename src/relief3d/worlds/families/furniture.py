"""Things that stand in rooms, each made of a few primitives in its own frame (z up, standing on z = 0)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from relief3d.worlds.builder import WorldBuilder, axis_matrix, tilt_matrix
from relief3d.worlds.layout import Kind
from relief3d.worlds.patterns import muted_colour

SURFACE = ("wood", "marble", "metal", "stone", "plaster", "tiles")
CLOTH = ("stripes", "carpet", "plaster", "photo")
PRINTED = ("poster", "text", "photo")


def cloth(b: WorldBuilder) -> int:
    """A fabric material."""
    return b.material(
        b.layer(*CLOTH), extent=b.rng.uniform(0.5, 1.1), tint=b.rng.uniform(0.6, 1.1), dirt=0.15
    )


def timber(b: WorldBuilder) -> int:
    """A wooden or lacquered material."""
    if b.rng.random() < b.plain:
        return b.flat(muted_colour(b.rng, 0.2, 0.9), specular=0.1, gloss=60)
    return b.material(
        b.layer(*SURFACE),
        extent=b.rng.uniform(0.5, 1.2),
        tint=b.rng.uniform(0.6, 1.2),
        specular=0.05,
        gloss=40,
        dirt=0.2,
    )


def printed_box(b: WorldBuilder, half: tuple[float, float, float]) -> tuple[int, int, int, int, int, int]:
    """Six materials that fit pictures on the faces of a box."""
    x, y, z = (2 * h for h in half)
    faces = []
    for extent in ((y, z), (y, z), (x, z), (x, z), (x, y), (x, y)):
        layer = b.layer(*PRINTED, "books", fresh=b.rng.random() < 0.6)
        faces.append(b.material(layer, extent=extent, fit=True, tint=b.rng.uniform(0.6, 1.05), specular=0.03))
    return (faces[0], faces[1], faces[2], faces[3], faces[4], faces[5])


def table(b: WorldBuilder, reach: float) -> float:
    """A table with legs; returns the height of its top."""
    height, w, d = (
        b.rng.uniform(0.45, 0.78),
        reach * b.rng.uniform(0.7, 0.95),
        reach * b.rng.uniform(0.45, 0.7),
    )
    top, legs = timber(b), timber(b)
    b.add(Kind.BOX, (0, 0, height - 0.02), (w, d, 0.02), top)
    kind = Kind.CYLINDER if b.rng.random() < 0.5 and b.free(Kind.CYLINDER) >= 4 else Kind.BOX
    r = b.rng.uniform(0.015, 0.035)
    for sx in (-1, 1):
        for sy in (-1, 1):
            at = (sx * (w - 0.06), sy * (d - 0.06), (height - 0.04) / 2)
            b.add(kind, at, (r, r, (height - 0.04) / 2), legs)
    _litter(b, height, w, d)
    return height


def _litter(b: WorldBuilder, height: float, w: float, d: float) -> None:
    """Small things on a table top."""
    for _ in range(int(b.rng.integers(2, 6))):
        x, y = b.rng.uniform(-0.75, 0.75, 2) * (w, d)
        small_thing(b, (float(x), float(y), height))


def small_thing(b: WorldBuilder, at: tuple[float, float, float]) -> None:
    """A book, box, cup, ball, vase or bowl standing at ``at`` in the current object's frame."""
    x, y, z = at
    turn = b.rng.uniform(0, math.tau)
    spin = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    choice = b.rng.random()
    if choice < 0.45:
        half = (b.rng.uniform(0.05, 0.16), b.rng.uniform(0.05, 0.12), b.rng.uniform(0.012, 0.09))
        b.add(Kind.BOX, (x, y, z + half[2]), half, printed_box(b, half), rotation=spin)
    elif choice < 0.6 and b.free(Kind.CYLINDER):
        r, h = b.rng.uniform(0.03, 0.06), b.rng.uniform(0.04, 0.13)
        label = b.material(b.layer(*PRINTED, fresh=False), extent=(math.tau * r / 2, 2 * h), specular=0.1)
        b.add(Kind.CYLINDER, (x, y, z + h), (r, r, h), label, rotation=spin)
    elif choice < 0.75 and b.free(Kind.LATHE):
        vase(b, at, b.rng.uniform(0.05, 0.09))
    elif choice < 0.85 and b.free(Kind.ELLIPSOID):
        r = b.rng.uniform(0.04, 0.1)
        skin = b.material(
            b.layer("marble", "stone", "stripes", "photo", fresh=False), extent=4 * r, specular=0.15
        )
        b.add(Kind.ELLIPSOID, (x, y, z + r), (r, r, r), skin, rotation=tilt_matrix(0, turn))
    elif choice < 0.92 and b.free(Kind.TORUS):
        r = b.rng.uniform(0.05, 0.09)
        b.add(Kind.TORUS, (x, y, z + r * 0.35), (r, r * 0.35, 1), timber(b))
    elif b.free(Kind.SUPERQUADRIC):
        half = tuple(b.rng.uniform(0.04, 0.09, 3))
        extra = (b.rng.uniform(2, 5), b.rng.uniform(2, 5))
        b.add(Kind.SUPERQUADRIC, (x, y, z + half[2]), half, cloth(b), rotation=spin, extra=extra)


def vase(b: WorldBuilder, at: tuple[float, float, float], radius: float) -> None:
    """A turned vase."""
    h = radius * b.rng.uniform(1.2, 2.4)
    extra = (
        radius * b.rng.uniform(0, 0.3),
        radius * b.rng.uniform(-0.2, 0.2),
        radius * b.rng.uniform(-0.1, 0.1),
    )
    skin = b.material(
        b.layer("marble", "stripes", "stone", "tiles", fresh=False), extent=radius * 4, specular=0.2, gloss=60
    )
    b.add(Kind.LATHE, (at[0], at[1], at[2] + h), (radius, radius, h), skin, extra=extra)


def chair(b: WorldBuilder, reach: float) -> float:
    """A chair with thin legs and a slatted back."""
    seat, w = b.rng.uniform(0.4, 0.48), min(reach, 0.26)
    wood, cover = timber(b), cloth(b)
    b.add(Kind.BOX, (0, 0, seat - 0.025), (w, w, 0.025), cover)
    for sx in (-1, 1):
        for sy in (-1, 1):
            b.add(
                Kind.CYLINDER,
                (sx * (w - 0.03), sy * (w - 0.03), (seat - 0.05) / 2),
                (0.016, 0.016, (seat - 0.05) / 2),
                wood,
            )
    back = b.rng.uniform(0.35, 0.5)
    for sx in (-1, 1):
        b.add(Kind.BOX, (sx * (w - 0.02), w - 0.02, seat + back / 2), (0.018, 0.014, back / 2), wood)
    for k in range(int(b.rng.integers(1, 4))):
        b.add(Kind.BOX, (0, w - 0.02, seat + back * (0.9 - 0.25 * k)), (w - 0.03, 0.01, 0.05), wood)
    return seat


def shelf(b: WorldBuilder, reach: float) -> float:
    """Open shelves with books and things, against the local +y side."""
    w, d, h = reach * b.rng.uniform(0.7, 0.95), b.rng.uniform(0.12, 0.18), b.rng.uniform(0.5, 1.0)
    wood = timber(b)
    back_y = d
    b.add(Kind.BOX, (-w + 0.012, back_y - d, h), (0.012, d, h), wood)
    b.add(Kind.BOX, (w - 0.012, back_y - d, h), (0.012, d, h), wood)
    boards = int(b.rng.integers(3, 5))
    gap = (2 * h - 0.04) / (boards - 1)
    for k in range(boards):
        b.add(Kind.BOX, (0, back_y - d, 0.02 + k * gap), (w - 0.024, d, 0.012), wood)
    for k in range(boards - 1):
        bottom = 0.032 + k * gap
        x = -w + 0.05
        while x < w - 0.12:
            length = float(b.rng.uniform(0.1, 0.4))
            length = min(length, w - 0.03 - x)
            if b.rng.random() < 0.7:
                tall = (gap - 0.03) * b.rng.uniform(0.55, 0.92)
                half = (length / 2, d * b.rng.uniform(0.6, 0.85), tall / 2)
                spines = b.material(
                    b.layer("books", "poster", "photo", fresh=b.rng.random() < 0.7),
                    extent=(max(length, 0.3), tall),
                    dirt=0.1,
                    tint=b.rng.uniform(0.7, 1.1),
                )
                b.add(Kind.BOX, (x + length / 2, back_y - d, bottom + tall / 2), half, spines)
            elif b.rng.random() < 0.7:
                small_thing(b, (x + length / 2, back_y - d, bottom))
            x += length + float(b.rng.uniform(0.01, 0.06))
    return 2 * h


def sofa(b: WorldBuilder, reach: float) -> float:
    """A sofa or bed of rounded boxes with cushions."""
    w, d = reach * 0.95, min(reach * 0.7, 0.48)
    cover, other = cloth(b), cloth(b)
    b.add(Kind.ROUNDED_BOX, (0, 0, 0.22), (w, d, 0.2), cover, extra=(0.06,))
    b.add(Kind.ROUNDED_BOX, (0, d - 0.1, 0.55), (w, 0.12, 0.22), cover, extra=(0.07,))
    for k in range(int(b.rng.integers(1, 3))):
        at = (b.rng.uniform(-0.7, 0.7) * w, d - 0.3, 0.57 + 0.02 * k)
        b.add(
            Kind.SUPERQUADRIC,
            at,
            (0.2, 0.08, 0.18),
            other if k else cloth(b),
            rotation=tilt_matrix(0, -0.35),
            extra=(2.6, 2.3),
        )
    return 0.42


def floor_lamp(b: WorldBuilder, reach: float) -> float:
    """A lamp on a thin pole."""
    h = b.rng.uniform(1.2, 1.7)
    metal = b.material(b.layer("metal", fresh=False), extent=0.3, specular=0.3, gloss=80)
    b.add(Kind.CYLINDER, (0, 0, 0.015), (0.14, 0.14, 0.015), metal)
    b.add(Kind.CYLINDER, (0, 0, h / 2), (0.011, 0.011, h / 2), metal)
    shade = b.material(b.layer("stripes", "paint", fresh=False), extent=0.3, emission=0.5)
    b.add(Kind.CONE, (0, 0, h), (0.19, 0.12, 0.13), shade)
    return h


def plant(b: WorldBuilder, reach: float) -> float:
    """A pot with stems and leaves."""
    pot = b.material(b.layer("stone", "brick", "marble", "plaster", fresh=False), extent=0.5)
    b.add(Kind.CONE, (0, 0, 0.15), (0.12, 0.17, 0.15), pot)
    leaf = b.material(b.layer("grass", fresh=False), extent=0.4, tint=(0.8, 1.05, 0.6), dirt=0.4)
    for _ in range(int(b.rng.integers(3, 6))):
        if not b.free(Kind.ELLIPSOID):
            break
        lean = b.rng.normal(0, 0.35, 2)
        direction = np.array([lean[0], lean[1], 1.0])
        length = b.rng.uniform(0.3, 0.75)
        tip = direction / np.linalg.norm(direction) * length
        b.add(
            Kind.CYLINDER,
            tuple(tip / 2 + (0, 0, 0.28)),
            (0.008, 0.008, length / 2),
            leaf,
            rotation=axis_matrix(direction),
        )
        b.add(
            Kind.ELLIPSOID,
            tuple(tip + (0, 0, 0.3)),
            (0.09, 0.028, 0.16),
            leaf,
            rotation=axis_matrix(direction + b.rng.normal(0, 0.5, 3)),
        )
    return 1.0


def crates(b: WorldBuilder, reach: float) -> float:
    """A stack of boxes, each a little turned."""
    z, half = 0.0, min(reach * 0.75, 0.35)
    for _ in range(int(b.rng.integers(2, 5))):
        size = (half * b.rng.uniform(0.6, 1), half * b.rng.uniform(0.6, 1), b.rng.uniform(0.07, 0.22))
        turn = b.rng.normal(0, 0.3)
        spin = np.array(
            [[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]]
        )
        faces = printed_box(b, size) if b.rng.random() < 0.6 else timber(b)
        b.add(Kind.BOX, (0, 0, z + size[2]), size, faces, rotation=spin)
        z += 2 * size[2]
        half *= 0.85
    small_thing(b, (0, 0, z))
    return z


FURNITURE: dict[str, Callable[[WorldBuilder, float], float]] = {
    "table": table,
    "chair": chair,
    "shelf": shelf,
    "sofa": sofa,
    "lamp": floor_lamp,
    "plant": plant,
    "crates": crates,
}
"""Builders by name; each takes the footprint's half size and returns a height."""
