"""Questions about procedural rooms with exact answers, in the form of VSI-Bench.

A camera turns once around in the middle of a furnished room. Sizes and distances refer to the boxes, aligned with the
walls, around an object and what stands on it; they are computed from the room's exact surfaces, never from pictures.
Only objects that are seen are asked about, and only where the answer is clear (margins below). Route questions know
the turn at the way point but not the furniture in between, unlike the original's, which people wrote for real floors.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relief3d.core.seeding import derive_seed, numpy_generator
from relief3d.geometry.projection import intrinsics_from_fov
from relief3d.worlds import World, WorldConfig, make_world
from relief3d.worlds.layout import Kind, Layout
from relief3d.worlds.meshing import world_mesh

NAMES = ("table", "chair", "sofa", "plant", "lamp", "picture", "crates", "shelf")
VIEWS = 8
_CONFIG = WorldConfig(
    family="room",
    # Enough primitives that no piece of furniture is left half built.
    slots={
        Kind.SHELL: 1, Kind.BOX: 160, Kind.ELLIPSOID: 30, Kind.CYLINDER: 60, Kind.CONE: 12,
        Kind.ROUNDED_BOX: 12, Kind.TORUS: 4, Kind.SUPERQUADRIC: 16, Kind.LATHE: 8,
    },
    texture_size=32,
    furniture=8,
    clutter=2,
    pictures=1,
    centre_table=0.0,  # the camera stands there
)  # fmt: skip
_FOV = math.radians(80.0)
_PITCH = math.radians(-20.0)
_SEEN = 0.002
"""Share of a picture that an object must fill to count as seen."""
_CLEAR_METRES = 0.15
_CLEAR_DEGREES = 10.0


@dataclass(frozen=True)
class RoomObject:
    """One thing in a room.

    Attributes:
        name: category.
        low, high: (3,) corners of its box aligned with the walls, metres, z up.
        first_view: first picture in which it is seen; None when it never is.
    """

    name: str
    low: np.ndarray
    high: np.ndarray
    first_view: int | None

    @property
    def centre(self) -> np.ndarray:
        """(3,) middle of the box."""
        return (self.low + self.high) / 2


@dataclass(frozen=True)
class Room:
    """A furnished room with a look around.

    Attributes:
        images: (VIEWS, 3, H, W) uint8.
        area: of the floor, square metres.
        objects: of the known categories.
    """

    images: Tensor
    area: float
    objects: tuple[RoomObject, ...]

    def unique(self) -> list[RoomObject]:
        """Objects that are seen and alone in their category, in the order of :data:`NAMES`."""
        counts = {n: sum(o.name == n for o in self.objects) for n in NAMES}
        found = [o for o in self.objects if counts[o.name] == 1 and o.first_view is not None]
        return sorted(found, key=lambda o: NAMES.index(o.name))


@dataclass(frozen=True)
class Question:
    """One question in VSI-Bench's form: ``options`` is empty for numbers, else "A. words"; the truth is a letter."""

    kind: str
    text: str
    options: tuple[str, ...]
    truth: str


def make_room(seed: int, size: tuple[int, int]) -> Room:
    """A procedural room and its pictures (H, W)."""
    world = make_world(seed, _CONFIG).compact()
    height = float(world.room[0, 2] + world.room[0, 5])
    poses = turning_poses(min(1.6, height - 0.4))
    K = intrinsics_from_fov(size[1], size[0], _FOV).float().expand(1, VIEWS, 3, 3)
    # Tiles leave out what they cannot see, which pays only in larger pictures.
    views = world.render((K, poses.float()[None]), size, tile=112 if size[1] > 64 else None)
    objects = []
    for instance in world.instance[0].unique().tolist():
        part = _only(world, instance)
        name = part.names[0][0]
        if name not in NAMES:
            continue
        corners = world_mesh(part, 1.0).vertices.double().numpy()
        share = (views.instance[0] == instance).double().mean(dim=(1, 2))
        seen = torch.nonzero(share >= _SEEN)[:, 0]
        first = int(seen[0]) if len(seen) else None
        objects.append(RoomObject(name, corners.min(0), corners.max(0), first))
    images = (views.image[0].clamp(0, 1) * 255).round().to(torch.uint8)
    return Room(images, float(4 * world.room[0, 3] * world.room[0, 4]), tuple(objects))


def turning_poses(height: float) -> Tensor:
    """(VIEWS, 4, 4) world_from_cam of a camera at that height above the origin that turns left once around."""
    poses = torch.eye(4, dtype=torch.float64).repeat(VIEWS, 1, 1)
    for i in range(VIEWS):
        yaw = math.tau * i / VIEWS
        forward = torch.tensor(
            [math.cos(yaw) * math.cos(_PITCH), math.sin(yaw) * math.cos(_PITCH), math.sin(_PITCH)],
            dtype=torch.float64,
        )
        right = torch.tensor([math.sin(yaw), -math.cos(yaw), 0.0], dtype=torch.float64)
        poses[i, :3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], 1)
        poses[i, 2, 3] = height
    return poses


def _only(world: World, instance: int) -> World:
    """The world with nothing but one object."""
    keep = torch.nonzero(world.instance[0] == instance)[:, 0]
    counts = {kind: int(((keep >= a) & (keep < b)).sum()) for kind, a, b in world.layout.ranges}
    cut = {name: getattr(world, name)[:, keep] for name in ("slots", "motion", "face", "instance")}
    names = (tuple(world.names[0][i] for i in keep.tolist()),)
    return dataclasses.replace(world, layout=Layout.of(counts), names=names, **cut)


def ask(room: Room, seed: int) -> list[Question]:
    """At most one question of every kind that this room answers clearly."""
    out = []
    for index, maker in enumerate(_MAKERS):
        rng = numpy_generator(derive_seed(seed, "question", index))
        question = next(maker(room, rng), None)
        if question is not None:
            out.append(question)
    return out


def bearing(here: np.ndarray, ahead: np.ndarray, there: np.ndarray) -> float:
    """Degrees by which ``there`` lies to the left of the line of sight from ``here`` to ``ahead``, in (-180, 180].

    All (3,) in a world with z up, seen from above; right is negative.
    """
    sight, way = ahead - here, there - here
    left = math.atan2(sight[0] * way[1] - sight[1] * way[0], sight[0] * way[0] + sight[1] * way[1])
    return math.degrees(left)


def quadrant(angle: float, hard: bool) -> str:
    """The direction a bearing counts as; empty where it is within ten degrees of another."""
    side, size = ("left" if angle > 0 else "right"), abs(angle)
    borders = (0.0, 90.0, 180.0) if hard else (0.0, 135.0)
    if min(abs(size - b) for b in borders) < _CLEAR_DEGREES:
        return ""
    if hard:
        return f"{'front' if size < 90 else 'back'}-{side}"
    return "back" if size > 135 else side


def _choices(options: list[str], right: str, rng: np.random.Generator) -> tuple[tuple[str, ...], str]:
    order = [options[i] for i in rng.permutation(len(options))]
    letters = "ABCD"[: len(order)]
    return tuple(f"{a}. {o}" for a, o in zip(letters, order)), letters[order.index(right)]


def _counting(room: Room, rng: np.random.Generator) -> Iterator[Question]:
    for name in NAMES:
        same = [o for o in room.objects if o.name == name]
        if len(same) >= 2 and all(o.first_view is not None for o in same):
            yield Question("object_counting", f"How many {name}(s) are in this room?", (), str(len(same)))


def _distance(room: Room, rng: np.random.Generator) -> Iterator[Question]:
    pairs = list(itertools.combinations(room.unique(), 2))
    for i in rng.permutation(len(pairs)):
        a, b = pairs[i]
        text = (
            f"Measured between the centres of their boxes, what is the distance between the {a.name} and the {b.name} "
            "(in meters)?"
        )
        yield Question("object_abs_distance", text, (), f"{np.linalg.norm(a.centre - b.centre):.2f}")


def _size(room: Room, rng: np.random.Generator) -> Iterator[Question]:
    objects = room.unique()
    for i in rng.permutation(len(objects)):
        text = (
            "What is the longest side (length, width or height) of the box, aligned with the walls, around the "
            f"{objects[i].name} and what stands on it, in centimeters?"
        )
        yield Question(
            "object_size_estimation", text, (), f"{100 * float((objects[i].high - objects[i].low).max()):.1f}"
        )


def _room_size(room: Room, rng: np.random.Generator) -> Iterator[Question]:
    yield Question(
        "room_size_estimation", "What is the size of this room (in square meters)?", (), f"{room.area:.1f}"
    )


def _closest(room: Room, rng: np.random.Generator) -> Iterator[Question]:
    objects = room.unique()
    if len(objects) < 4:
        return
    for i in rng.permutation(len(objects)):
        target, others = objects[i], [o for j, o in enumerate(objects) if j != i][:4]
        far = sorted((float(np.linalg.norm(o.centre - target.centre)), o.name) for o in others)
        if far[1][0] - far[0][0] < _CLEAR_METRES:
            continue
        names = [o.name for o in others]
        options, letter = _choices(names, far[0][1], rng)
        text = (
            f"Measured between the centres of their boxes, which of these objects ({', '.join(names)}) is the closest "
            f"to the {target.name}?"
        )
        yield Question("object_rel_distance", text, options, letter)


def _direction(level: str) -> Callable[[Room, np.random.Generator], Iterator[Question]]:
    answers = {
        "easy": ["left", "right"],
        "medium": ["left", "right", "back"],
        "hard": ["front-left", "front-right", "back-left", "back-right"],
    }[level]

    def make(room: Room, rng: np.random.Generator) -> Iterator[Question]:
        triples = list(itertools.permutations(room.unique(), 3))
        for i in rng.permutation(len(triples)):
            a, b, c = triples[i]
            angle = bearing(a.centre, b.centre, c.centre)
            side = quadrant(angle, level == "hard")
            # The easy kind knows only two sides, so nothing behind the viewer is asked about.
            if side not in answers:
                continue
            options, letter = _choices(answers, side, rng)
            text = (
                f"If I am standing by the {a.name} and facing the {b.name}, is the {c.name} to my "
                f"{', '.join(answers[:-1])} or {answers[-1]}?"
            )
            yield Question(f"object_rel_direction_{level}", text, options, letter)

    return make


def _route(room: Room, rng: np.random.Generator) -> Iterator[Question]:
    triples = list(itertools.permutations(room.unique(), 3))
    for i in rng.permutation(len(triples)):
        a, b, c = triples[i]
        # The turn is made at b, looking away from a.
        turn = quadrant(bearing(b.centre, 2 * b.centre - a.centre, c.centre), False)
        angle = abs(bearing(b.centre, 2 * b.centre - a.centre, c.centre))
        if not turn or angle < 45:
            continue
        options, letter = _choices(["Turn Left", "Turn Right", "Turn Back"], f"Turn {turn.title()}", rng)
        text = (
            f"You are a robot beginning at the {a.name} facing the {b.name}. You want to navigate to the {c.name}. "
            f"1. Go forward until the {b.name}. 2. [please fill in] 3. Go forward until the {c.name}."
        )
        yield Question("route_planning", text, options, letter)


def _order(room: Room, rng: np.random.Generator) -> Iterator[Question]:
    first: dict[int, RoomObject] = {}
    for o in room.unique():
        if o.first_view is not None:
            first.setdefault(o.first_view, o)
    chosen = [first[view].name for view in sorted(first)][:4]
    if len(chosen) < 3:
        return
    orders = [list(p) for p in itertools.permutations(chosen) if list(p) != chosen]
    wrong = [orders[i] for i in rng.permutation(len(orders))[:3]]
    options, letter = _choices([", ".join(o) for o in (chosen, *wrong)], ", ".join(chosen), rng)
    text = (
        "What will be the first-time appearance order of the following categories in the video: "
        f"{', '.join(sorted(chosen))}?"
    )
    yield Question("obj_appearance_order", text, options, letter)


_MAKERS: tuple[Callable[[Room, np.random.Generator], Iterator[Question]], ...] = (
    _counting,
    _distance,
    _size,
    _room_size,
    _closest,
    _direction("easy"),
    _direction("medium"),
    _direction("hard"),
    _route,
    _order,
)
