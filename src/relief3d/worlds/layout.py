"""The fixed layout of a batch of worlds: which slot holds which kind of primitive, and its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property


class Kind(IntEnum):
    """Kinds of primitive; a slot's kind never changes within a layout."""

    SHELL = 0
    """the inside of a box: floor, walls and ceiling of a room."""
    GROUND = 1
    """a height field of a few waves."""
    BOX = 2
    ELLIPSOID = 3
    CYLINDER = 4
    CONE = 5
    """a truncated cone, radius ``s0`` at the bottom and ``s1`` at the top."""
    ROUNDED_BOX = 6
    TORUS = 7
    """around local z, ring radius ``s0``, tube radius ``s1``."""
    SUPERQUADRIC = 8
    """exponents ``e0`` (in xy) and ``e1`` (between xy and z)."""
    LATHE = 9
    """radius over local z: ``s0 + e0 cos(pi v) + e1 sin(2 pi v) + e2 cos(3 pi v)``, ``v = z / s2``."""


# Columns of the slot table: centre, rotation (world_from_local, row-major), half sizes, extras, bounding radius.
CX, CY, CZ = 0, 1, 2
R00 = 3
S0, S1, S2 = 12, 13, 14
E0, E1, E2 = 15, 16, 17
BOUND = 18
ALIVE = 19
SLOT_COLUMNS = 20

# Columns of the motion table: velocity (m/s) and yaw rate (rad/s).
MOTION_COLUMNS = 4

# Columns of the material table.
M_LAYER, M_SU, M_SV, M_OU, M_OV, M_COS, M_SIN = range(7)
M_GAIN, M_BIAS = 7, 10
M_SPECULAR, M_GLOSS, M_EMISSION, M_DIRT = 13, 14, 15, 16
MATERIAL_COLUMNS = 17

# Columns of the light table: kind (0 sun, 1 point), direction towards the sun or position, colour, radius.
LIGHT_COLUMNS = 8

# Columns of the sky table: zenith rgb, horizon rgb, ambient from above rgb, ambient from below rgb, clouds, haze.
SKY_COLUMNS = 14

WAVES = 6
"""Waves of a height field; each is (kx, ky, phase, amplitude)."""


@dataclass(frozen=True)
class Layout:
    """How many slots of each kind a world has.

    Attributes:
        counts: slots per kind, in the order of :class:`Kind`.
    """

    counts: tuple[int, ...]

    @staticmethod
    def of(counts: Mapping[Kind, int]) -> Layout:
        """From a mapping; kinds that are not named have no slots."""
        return Layout(tuple(int(counts.get(kind, 0)) for kind in Kind))

    @cached_property
    def slots(self) -> tuple[Kind, ...]:
        """The kind of every slot."""
        return tuple(kind for kind in Kind for _ in range(self.counts[kind]))

    def __len__(self) -> int:
        return len(self.slots)

    @cached_property
    def ranges(self) -> tuple[tuple[Kind, int, int], ...]:
        """(kind, first slot, one past the last slot) for the kinds that have slots."""
        out, start = [], 0
        for kind in Kind:
            count = self.counts[kind]
            if count:
                out.append((kind, start, start + count))
            start += count
        return tuple(out)
