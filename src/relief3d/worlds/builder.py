"""Fills the slot and material tables of one world, on the CPU with NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from relief3d.worlds import layout as col
from relief3d.worlds.layout import Kind, Layout
from relief3d.worlds.textures import TextureBank
from relief3d.worlds.world import World

Numbers = Sequence[float] | np.ndarray

Faces = int | tuple[int, int, int, int, int, int]


def yaw_matrix(angle: float) -> np.ndarray:
    """Rotation about world z, (3, 3)."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float64)


def tilt_matrix(axis: int, angle: float) -> np.ndarray:
    """Rotation about x (0) or y (1), (3, 3)."""
    c, s = math.cos(angle), math.sin(angle)
    if axis == 0:
        return np.array([[1, 0, 0], [0, c, -s], [0, s, c]], np.float64)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float64)


def axis_matrix(direction: np.ndarray) -> np.ndarray:
    """A rotation whose z column is ``direction`` (3,)."""
    z = direction / np.linalg.norm(direction)
    helper = np.array([1.0, 0, 0]) if abs(z[0]) < 0.9 else np.array([0, 1.0, 0])
    x = np.cross(helper, z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


class WorldBuilder:
    """One world under construction.

    Objects are added as primitives in the frame of the current object (:meth:`begin`), in metres. When the
    slots of a kind are used up, further primitives of that kind are dropped; ask :meth:`free` first where
    half an object would look odd.

    Attributes:
        rng: source of all randomness.
        bank: texture pictures the materials refer to.
        plain: chance that a thing is lacquered in one colour.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        layout: Layout,
        bank: TextureBank,
        max_materials: int,
        plain: float = 0.25,
    ) -> None:
        self.rng = rng
        self.layout = layout
        self.bank = bank
        self.plain = plain
        self.slots = np.zeros((len(layout), col.SLOT_COLUMNS), np.float64)
        self.slots[:, col.S0 : col.S2 + 1] = 1.0
        self.slots[:, [col.R00, col.R00 + 4, col.R00 + 8]] = 1.0
        self.slots[:, [col.E0, col.E1]] = 2.0
        self.motion = np.zeros((len(layout), col.MOTION_COLUMNS), np.float64)
        self.waves = np.zeros((col.WAVES, 4), np.float64)
        self.face = np.zeros((len(layout), 6), np.int64)
        self.instance = np.zeros(len(layout), np.int64)
        self.names = [""] * len(layout)
        self.materials = np.zeros((max_materials, col.MATERIAL_COLUMNS), np.float64)
        self.material_count = 0
        self.used = dict.fromkeys(Kind, 0)
        self.lights: list[list[float]] = []
        self.sky = np.zeros(col.SKY_COLUMNS)
        self.room = np.zeros(6)
        self.focus = np.zeros(8)
        self._object = -1
        self._name = ""
        self._origin = np.zeros(3)
        self._rotation = np.eye(3)
        self._motion = np.zeros(4)
        self._used_layers: set[int] = set()

    def free(self, kind: Kind) -> int:
        """Slots of this kind that are still unused."""
        return self.layout.counts[kind] - self.used[kind]

    def begin(
        self,
        name: str,
        at: Numbers = (0, 0, 0),
        yaw: float = 0.0,
        velocity: Numbers = (0, 0, 0, 0),
    ) -> None:
        """Start a new object (a new instance number) with its own frame."""
        self._object += 1
        self._name = name
        self._origin = np.asarray(at, np.float64)
        self._rotation = yaw_matrix(yaw)
        self._motion = np.asarray(velocity, np.float64)

    def add(
        self,
        kind: Kind,
        at: Numbers,
        size: Numbers,
        material: Faces,
        *,
        rotation: np.ndarray | None = None,
        extra: Numbers = (),
    ) -> int | None:
        """Add a primitive to the current object.

        Args:
            kind: what it is.
            at: centre in the object's frame.
            size: half sizes (meaning per kind, see :class:`Kind`).
            material: one material, or one per face.
            rotation: (3, 3) in the object's frame.
            extra: up to three further numbers.

        Returns:
            The slot, or None when there was none left.
        """
        if self.free(kind) <= 0:
            return None
        start = sum(self.layout.counts[: int(kind)])
        slot = start + self.used[kind]
        self.used[kind] += 1
        row = self.slots[slot]
        row[:3] = self._origin + self._rotation @ np.asarray(at, np.float64)
        own = self._rotation if rotation is None else self._rotation @ rotation
        row[col.R00 : col.R00 + 9] = own.reshape(-1)
        row[col.S0 : col.S2 + 1] = np.maximum(size, 1e-4)
        row[col.E0 : col.E0 + len(extra)] = extra
        row[col.BOUND] = _bound(kind, row)
        row[col.ALIVE] = 1.0
        self.motion[slot] = self._motion
        self.face[slot] = material
        self.instance[slot] = self._object
        self.names[slot] = self._name
        return slot

    def layer(self, *names: str, fresh: bool = True) -> int:
        """A picture with one of these pattern names, one that was not used yet if there is any."""
        choices = self.bank.of(*names)
        if not choices:
            choices = list(range(self.bank.layers))
        unused = [c for c in choices if c not in self._used_layers]
        if fresh and unused:
            choices = unused
        pick = int(choices[int(self.rng.integers(len(choices)))])
        self._used_layers.add(pick)
        return pick

    def material(
        self,
        layer: int,
        *,
        extent: float | tuple[float, float] = 1.0,
        tint: Numbers | float = 1.0,
        bias: Numbers | float = 0.0,
        specular: float = 0.0,
        gloss: float = 20.0,
        emission: float = 0.0,
        dirt: float = 0.12,
        turn: float = 0.0,
        fit: bool = False,
    ) -> int:
        """Add a material.

        Args:
            layer: picture.
            extent: metres one picture covers (horizontally, vertically).
            tint: factor on the picture's colour.
            bias: colour added.
            specular: strength of the highlight.
            gloss: its exponent.
            emission: light given off, relative to the albedo.
            dirt: strength of the solid stains.
            turn: rotation of the picture in radians.
            fit: centre the picture on the face instead of a random offset.
        """
        if self.material_count >= len(self.materials):
            return int(self.rng.integers(self.material_count))
        row = self.materials[self.material_count]
        wide, high = (extent, extent) if isinstance(extent, int | float) else extent
        row[col.M_LAYER] = layer
        row[col.M_SU], row[col.M_SV] = 1.0 / wide, 1.0 / high
        row[col.M_OU : col.M_OV + 1] = 0.5 if fit else self.rng.random(2)
        row[col.M_COS], row[col.M_SIN] = math.cos(turn), math.sin(turn)
        row[col.M_GAIN : col.M_GAIN + 3] = tint
        row[col.M_BIAS : col.M_BIAS + 3] = bias
        row[col.M_SPECULAR], row[col.M_GLOSS] = specular, gloss
        row[col.M_EMISSION], row[col.M_DIRT] = emission, dirt
        self.material_count += 1
        return self.material_count - 1

    def flat(
        self, colour: Numbers, *, dirt: float = 0.05, specular: float = 0.05, gloss: float = 30.0
    ) -> int:
        """A nearly textureless material of one colour (display values in [0, 1])."""
        layer = self.layer("paint", fresh=False)
        tint = 0.05
        bias = np.asarray(colour, np.float64) - tint * 0.6
        return self.material(
            layer, extent=1.5, tint=tint, bias=bias, dirt=dirt, specular=specular, gloss=gloss
        )

    def sun(self, azimuth: float, elevation: float, colour: Numbers, softness: float = 0.01) -> None:
        """Add the sun; angles in radians, softness the tangent of its radius."""
        c = math.cos(elevation)
        direction = [c * math.cos(azimuth), c * math.sin(azimuth), math.sin(elevation)]
        self.lights.append([0.0, *direction, *map(float, colour), softness])

    def lamp(self, at: Numbers, colour: Numbers, radius: float = 0.08) -> None:
        """Add a point light of some radius."""
        self.lights.append([1.0, *map(float, at), *map(float, colour), radius])


def _bound(kind: Kind, row: np.ndarray) -> float:
    s0, s1, s2 = row[col.S0 : col.S2 + 1]
    if kind in (Kind.SHELL, Kind.BOX, Kind.ROUNDED_BOX, Kind.SUPERQUADRIC):
        return float(math.sqrt(s0 * s0 + s1 * s1 + s2 * s2))
    if kind == Kind.ELLIPSOID:
        return float(max(s0, s1, s2))
    if kind == Kind.CYLINDER:
        return float(math.hypot(s0, s2))
    if kind == Kind.CONE:
        return float(math.hypot(max(s0, s1), s2))
    if kind == Kind.TORUS:
        return float(s0 + s1)
    if kind == Kind.LATHE:
        return float(math.hypot(s0 + np.abs(row[col.E0 : col.E2 + 1]).sum(), s2))
    return float(s0)


def stack_worlds(builders: Sequence[WorldBuilder], noise: torch.Tensor, bank: TextureBank) -> World:
    """Combine finished builders of one layout into a batch."""
    lamps = max(len(b.lights) for b in builders)

    def stack(values: list[np.ndarray], kind: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.from_numpy(np.stack(values)).to(kind)

    dark = [1.0, 0.0, 0.0, 100.0, 0.0, 0.0, 0.0, 0.0]
    lights = [np.array(b.lights + [dark] * (lamps - len(b.lights)), np.float64) for b in builders]
    return World(
        layout=builders[0].layout,
        slots=stack([b.slots for b in builders]),
        motion=stack([b.motion for b in builders]),
        waves=stack([b.waves for b in builders]),
        face=stack([b.face for b in builders], torch.int64),
        materials=stack([b.materials for b in builders]),
        instance=stack([b.instance for b in builders], torch.int64),
        lights=stack(lights),
        sky=stack([b.sky for b in builders]),
        room=stack([b.room for b in builders]),
        focus=stack([b.focus for b in builders]),
        names=tuple(tuple(b.names) for b in builders),
        bank=bank,
        noise=noise,
    )
