"""Furnished rooms."""

from __future__ import annotations

import math

import numpy as np

from relief3d.worlds.builder import WorldBuilder, tilt_matrix
from relief3d.worlds.config import WorldConfig
from relief3d.worlds.families.furniture import FURNITURE, PRINTED, printed_box, small_thing, timber
from relief3d.worlds.layout import Kind
from relief3d.worlds.patterns import muted_colour

WALLS = ("plaster", "brick", "wood", "stone", "marble", "stripes", "tiles")


def build_room(b: WorldBuilder, config: WorldConfig) -> None:
    """A room with furniture along its walls, things on the floor, pictures, and one or two lamps."""
    rng = b.rng
    if config.room_size is None:
        w, d, h = rng.uniform(3.2, 6.5), rng.uniform(3.0, 5.5), rng.uniform(2.3, 3.0)
    else:
        w, d, h = config.room_size
    _shell(b, config, w, d, h)
    taken: list[tuple[float, float, float]] = []
    _furniture(b, config, w, d, taken)
    _wall_things(b, config, w, d, h)
    _floor_things(b, config, w, d, taken)
    _lights(b, config, w, d, h)
    b.room[:] = (0, 0, h / 2, w / 2, d / 2, h / 2)
    b.focus[:] = (0, 0, 0.8, min(w, d) / 2, w / 2 - 0.35, d / 2 - 0.35, 1.1, min(1.8, h - 0.3))


def _wall_material(b: WorldBuilder, config: WorldConfig) -> int:
    if b.rng.random() < config.plain_walls:
        return b.flat(muted_colour(b.rng, 0.4, 0.85), dirt=0.03)
    extent = config.wall_extent * b.rng.uniform(0.85, 1.15)
    return b.material(b.layer(*WALLS), extent=extent, dirt=config.dirt * 1.6, tint=b.rng.uniform(0.75, 1.1))


def _shell(b: WorldBuilder, config: WorldConfig, w: float, d: float, h: float) -> None:
    b.begin("room")
    wall = _wall_material(b, config)
    walls = [_wall_material(b, config) if b.rng.random() < config.varied_walls else wall for _ in range(4)]
    floor = b.material(
        b.layer("wood", "tiles", "stone", "marble"),
        extent=config.wall_extent * b.rng.uniform(0.8, 1.1),
        specular=0.03,
        gloss=25,
        dirt=config.dirt * 1.6,
        tint=b.rng.uniform(0.7, 1.1),
    )
    if b.rng.random() < config.plain_walls:
        ceiling = b.flat(np.full(3, b.rng.uniform(0.7, 0.9)), dirt=0.03)
    else:
        ceiling = b.material(
            b.layer("wood", "plaster", "tiles"), extent=config.wall_extent, dirt=config.dirt * 1.5
        )
    b.add(
        Kind.SHELL,
        (0, 0, h / 2),
        (w / 2, d / 2, h / 2),
        (walls[0], walls[1], walls[2], walls[3], floor, ceiling),
    )
    b.begin("skirting")
    strip = timber(b)
    for axis, sign, length in ((0, 1, d), (0, -1, d), (1, 1, w), (1, -1, w)):
        half = (0.01, length / 2, 0.045) if axis == 0 else (length / 2, 0.01, 0.045)
        at = (sign * (w / 2 - 0.008), 0, 0.044) if axis == 0 else (0, sign * (d / 2 - 0.008), 0.044)
        b.add(Kind.BOX, at, half, strip)


def _place(b: WorldBuilder, taken: list[tuple[float, float, float]], x: float, y: float, r: float) -> bool:
    if any(math.hypot(x - u, y - v) < r + s for u, v, s in taken):
        return False
    taken.append((x, y, r))
    return True


def _furniture(
    b: WorldBuilder, config: WorldConfig, w: float, d: float, taken: list[tuple[float, float, float]]
) -> None:
    """Along the walls, facing inwards, plus now and then a table in the middle."""
    rng = b.rng
    names = list(FURNITURE)
    weights = np.array([0.2, 0.17, 0.22, 0.12, 0.08, 0.11, 0.1])
    if rng.random() < config.centre_table:
        b.begin("table", (rng.normal(0, 0.25), rng.normal(0, 0.2), 0), rng.uniform(0, math.pi))
        taken.append((0, 0, 0.75))
        FURNITURE["table"](b, rng.uniform(0.45, 0.7))
        for _ in range(int(rng.integers(0, 3))):
            angle = rng.uniform(0, math.tau)
            x, y = 0.95 * math.cos(angle), 0.95 * math.sin(angle)
            if abs(x) < w / 2 - 0.4 and abs(y) < d / 2 - 0.4 and _place(b, taken, x, y, 0.3):
                b.begin("chair", (x, y, 0), angle + math.pi / 2 + math.pi + rng.normal(0, 0.3))
                FURNITURE["chair"](b, 0.24)
    for _ in range(config.furniture * 3):
        if sum(1 for t in taken if t[2] > 0.2) >= config.furniture:
            break
        name = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        reach = {"lamp": 0.22, "plant": 0.3, "chair": 0.28, "crates": 0.36}.get(name, rng.uniform(0.5, 0.85))
        side = int(rng.integers(4))
        along = (d if side < 2 else w) / 2 - reach - 0.05
        if along <= 0:
            continue
        deep = {"table": reach * 0.7, "shelf": 0.2, "sofa": 0.5}.get(name, reach)
        s = rng.uniform(-along, along)
        x, y, yaw = [
            (-w / 2 + deep + 0.03, s, math.pi / 2),
            (w / 2 - deep - 0.03, s, -math.pi / 2),
            (s, -d / 2 + deep + 0.03, math.pi),
            (s, d / 2 - deep - 0.03, 0.0),
        ][side]
        if _place(b, taken, x, y, reach * 0.95):
            b.begin(name, (x, y, 0), yaw + (rng.normal(0, 0.12) if name != "shelf" else 0.0))
            FURNITURE[name](b, reach)


def _wall_things(b: WorldBuilder, config: WorldConfig, w: float, d: float, h: float) -> None:
    """Framed pictures, posters and a rug."""
    rng = b.rng
    spots: list[tuple[int, float, float, float]] = []
    for _ in range(config.pictures * 3):
        if len(spots) >= config.pictures:
            break
        side = int(rng.integers(4))
        length = d if side < 2 else w
        pw, ph = rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.5)
        s, z = (
            rng.uniform(-length / 2 + pw + 0.05, length / 2 - pw - 0.05),
            rng.uniform(1.0 + ph / 2, h - ph - 0.1),
        )
        if any(side == o and abs(s - t) < pw + r and abs(z - y) < 0.9 for o, t, y, r in spots):
            continue
        spots.append((side, s, z, pw))
        at, yaw = [
            ((-w / 2, s, z), math.pi / 2),
            ((w / 2, s, z), -math.pi / 2),
            ((s, -d / 2, z), math.pi),
            ((s, d / 2, z), 0.0),
        ][side]
        b.begin("picture", at, yaw)
        depth = rng.uniform(0.008, 0.03)
        sheet = b.material(b.layer(*PRINTED), extent=(2 * pw, 2 * ph), fit=True, dirt=0.05, specular=0.02)
        b.add(Kind.BOX, (0, -depth / 2, 0), (pw, depth / 2, ph), sheet)
        if rng.random() < 0.5 and b.free(Kind.BOX) > 4:
            frame, t = timber(b), 0.02
            for sign in (-1, 1):
                b.add(
                    Kind.BOX,
                    (0, -depth / 2 - 0.006, sign * (ph + t / 2)),
                    (pw + t, depth / 2 + 0.006, t / 2),
                    frame,
                )
                b.add(
                    Kind.BOX,
                    (sign * (pw + t / 2), -depth / 2 - 0.006, 0),
                    (t / 2, depth / 2 + 0.006, ph),
                    frame,
                )
    if rng.random() < config.rug:
        b.begin("rug", (rng.normal(0, 0.3), rng.normal(0, 0.3), 0), rng.normal(0, 0.3))
        half = (min(rng.uniform(0.8, 1.4), w / 2 - 0.5), min(rng.uniform(0.6, 1.0), d / 2 - 0.5), 0.006)
        weave = b.material(b.layer("carpet"), extent=(2 * half[0], 2 * half[1]), fit=True, dirt=0.2)
        b.add(Kind.BOX, (0, 0, half[2]), half, weave)


def _floor_things(
    b: WorldBuilder, config: WorldConfig, w: float, d: float, taken: list[tuple[float, float, float]]
) -> None:
    rng = b.rng
    for _ in range(config.clutter):
        x, y = rng.uniform(-1, 1) * (w / 2 - 0.25), rng.uniform(-1, 1) * (d / 2 - 0.25)
        if not _place(b, taken, x, y, 0.14):
            continue
        b.begin("thing", (x, y, 0.012), rng.uniform(0, math.tau))
        if rng.random() < 0.35 and b.free(Kind.BOX):
            half = (rng.uniform(0.08, 0.22), rng.uniform(0.08, 0.2), rng.uniform(0.05, 0.25))
            b.add(Kind.BOX, (0, 0, half[2]), half, printed_box(b, half))
        else:
            small_thing(b, (0, 0, 0))
    # A cable or rail: thin structures are what dense methods lose first.
    for _ in range(config.thin):
        if not b.free(Kind.CYLINDER):
            break
        b.begin("pipe")
        metal = b.flat(muted_colour(rng, 0.15, 0.8), specular=0.2)
        side = rng.choice([-1, 1])
        r = rng.uniform(0.008, 0.03)
        if rng.random() < 0.5:
            b.add(Kind.CYLINDER, (side * (w / 2 - 0.06), rng.uniform(-0.4, 0.4) * d, 1.2), (r, r, 1.2), metal)
        else:
            z = rng.uniform(1.8, 2.2)
            b.add(
                Kind.CYLINDER,
                (0, side * (d / 2 - 0.07), z),
                (r, r, w * 0.48),
                metal,
                rotation=tilt_matrix(1, math.pi / 2),
            )


def _lights(b: WorldBuilder, config: WorldConfig, w: float, d: float, h: float) -> None:
    rng = b.rng
    warm = np.array([1.0, rng.uniform(0.82, 0.98), rng.uniform(0.62, 0.95)])
    b.lamp(
        (rng.uniform(-0.25, 0.25) * w, rng.uniform(-0.25, 0.25) * d, h - 0.2),
        warm * rng.uniform(1.6, 3.0),
        0.1,
    )
    cool = np.array([rng.uniform(0.8, 1), rng.uniform(0.88, 1), 1.0])
    side = rng.choice([-1, 1])
    b.lamp(
        (side * (w / 2 - 0.25), rng.uniform(-0.4, 0.4) * d, h * rng.uniform(0.6, 0.85)),
        cool * rng.uniform(0.6, 2.0),
        0.25,
    )
    level = rng.uniform(0.22, 0.5)
    b.sky[6:9] = warm * level
    b.sky[9:12] = warm * level * rng.uniform(0.5, 0.85)
    b.sky[:6] = 0.5
