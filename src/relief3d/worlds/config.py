"""What kind of world to make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from relief3d.worlds.layout import Kind, Layout

Family = Literal["room", "objects", "outdoor", "street"]

ROOM_SLOTS: dict[Kind, int] = {
    Kind.SHELL: 1, Kind.BOX: 26, Kind.ELLIPSOID: 4, Kind.CYLINDER: 10, Kind.CONE: 2,
    Kind.ROUNDED_BOX: 2, Kind.TORUS: 1, Kind.SUPERQUADRIC: 2, Kind.LATHE: 2,
}  # fmt: skip
OBJECT_SLOTS: dict[Kind, int] = {
    Kind.SHELL: 1, Kind.BOX: 14, Kind.ELLIPSOID: 6, Kind.CYLINDER: 6, Kind.CONE: 3,
    Kind.ROUNDED_BOX: 3, Kind.TORUS: 2, Kind.SUPERQUADRIC: 3, Kind.LATHE: 3,
}  # fmt: skip
OUTDOOR_SLOTS: dict[Kind, int] = {
    Kind.GROUND: 1, Kind.BOX: 14, Kind.ELLIPSOID: 14, Kind.CYLINDER: 12, Kind.CONE: 6, Kind.SUPERQUADRIC: 4,
}  # fmt: skip
STREET_SLOTS: dict[Kind, int] = {
    Kind.BOX: 44, Kind.ELLIPSOID: 6, Kind.CYLINDER: 18, Kind.CONE: 4, Kind.ROUNDED_BOX: 6,
}  # fmt: skip
SLOTS: dict[str, dict[Kind, int]] = {
    "room": ROOM_SLOTS, "objects": OBJECT_SLOTS, "outdoor": OUTDOOR_SLOTS, "street": STREET_SLOTS,
}  # fmt: skip

TEXTURES: dict[str, int] = {
    "paint": 3, "plaster": 4, "wood": 5, "brick": 3, "tiles": 3, "stripes": 3, "carpet": 3, "poster": 6,
    "text": 3, "books": 4, "stone": 3, "marble": 3, "grass": 4, "asphalt": 2, "facade": 5, "metal": 2,
}  # fmt: skip
"""Pictures per pattern in the default bank."""


@dataclass(frozen=True)
class WorldConfig:
    """Parameters of world generation.

    Attributes:
        family: kind of place.
        slots: primitives of each kind; the family's default when None. Worlds of one batch share it.
        texture_size: pixels per side of the texture pictures, a power of two.
        textures: pictures per pattern.
        texture_seed: seed of the bank, apart from the worlds' own; None derives it from the first world's seed.
        max_materials: rows of the material table.
        room_size: width, depth, height in metres; random when None.
        plain_walls: chance that a wall or ceiling is plainly painted.
        plain_things: chance that furniture is lacquered in one colour.
        varied_walls: chance that a wall has its own material.
        wall_extent: metres that one texture picture covers on walls and floors.
        dirt: strength of stains that break up repetition.
        furniture, clutter, pictures, thin: how many large things, small things, wall pictures, thin pipes.
        centre_table, rug: chances of a table in the middle and of a rug.
        moving: how many objects move.
    """

    family: Family = "room"
    slots: dict[Kind, int] | None = None
    texture_size: int = 256
    textures: dict[str, int] = field(default_factory=lambda: dict(TEXTURES))
    texture_seed: int | None = 0
    max_materials: int = 96
    room_size: tuple[float, float, float] | None = None
    plain_walls: float = 0.5
    plain_things: float = 0.25
    varied_walls: float = 0.4
    wall_extent: float = 2.0
    dirt: float = 0.12
    furniture: int = 6
    clutter: int = 6
    pictures: int = 4
    thin: int = 1
    centre_table: float = 0.5
    rug: float = 0.5
    moving: int = 0

    @property
    def layout(self) -> Layout:
        """The slot layout of this configuration."""
        return Layout.of(SLOTS[self.family] if self.slots is None else self.slots)


def demo_config() -> WorldConfig:
    """A cluttered, richly textured 4 x 5 m room that classical reconstruction handles well."""
    return WorldConfig(
        family="room",
        slots={
            Kind.SHELL: 1, Kind.BOX: 120, Kind.ELLIPSOID: 16, Kind.CYLINDER: 40, Kind.CONE: 6,
            Kind.ROUNDED_BOX: 6, Kind.TORUS: 3, Kind.SUPERQUADRIC: 6, Kind.LATHE: 6,
        },
        texture_size=512,
        textures={
            "paint": 1, "plaster": 3, "wood": 5, "brick": 3, "tiles": 2, "stripes": 2, "carpet": 3, "poster": 10,
            "text": 3, "books": 6, "stone": 3, "marble": 3, "grass": 1, "metal": 1,
        },
        texture_seed=None,
        max_materials=160,
        room_size=(4.0, 5.0, 2.6),
        plain_walls=0.0,
        plain_things=0.0,
        varied_walls=1.0,
        wall_extent=3.0,
        dirt=0.25,
        furniture=9,
        clutter=14,
        pictures=10,
        thin=2,
        centre_table=1.0,
        rug=1.0,
    )  # fmt: skip
