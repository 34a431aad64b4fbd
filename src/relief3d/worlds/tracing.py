"""Rays against all slots of a batch of worlds: nearest hit, occlusion, distance.

Tensors are laid out as (images, rays); a group of slots of one kind adds an axis between. Nothing here
waits for the device: no ``item``, no boolean indexing, no shape that depends on data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.worlds import layout as col
from relief3d.worlds.layout import Kind, Layout
from relief3d.worlds.shapes import DISTANCE, HIT, Shape, Vec

Groups = Sequence[tuple[Kind, Tensor]]
"""Slots to test: kind and slot indices (int64, 1-D)."""

ELEMENTS_AT_ONCE = 32_000
"""Elements of one temporary in the tiled CPU path. It fits the cache, and torch runs operations below 32768
elements on one thread: tiles run side by side instead, without waiting for each other at every operation."""


@dataclass(frozen=True)
class Frame:
    """The primitives of every image at its own time.

    Attributes:
        columns: (SLOT_COLUMNS, I, S) float32.
        waves: (WAVES, 4, I, 1) float32 height-field waves.
        layout: which slots are of which kind.
    """

    columns: Tensor
    waves: Tensor
    layout: Layout

    def all_groups(self, *, skip: frozenset[Kind] = frozenset()) -> Groups:
        """Every slot, by kind."""
        device = self.columns.device
        return [
            (kind, torch.arange(a, b, device=device)) for kind, a, b in self.layout.ranges if kind not in skip
        ]


def make_frame(slots: Tensor, motion: Tensor, waves: Tensor, times: Tensor, layout: Layout) -> Frame:
    """Move the primitives of each image to its time.

    Args:
        slots: (I, S, SLOT_COLUMNS) at time 0.
        motion: (I, S, MOTION_COLUMNS) velocity in m/s and yaw rate in rad/s.
        waves: (I, WAVES, 4).
        times: (I,) seconds.
        layout: kinds of the slots.
    """
    t = times[:, None].to(slots.dtype)
    c = list(slots.unbind(-1))
    for axis in range(3):
        c[col.CX + axis] = c[col.CX + axis] + motion[..., axis] * t
    angle = motion[..., 3] * t
    cos, sin = torch.cos(angle), torch.sin(angle)
    for column in range(3):
        top, low = c[col.R00 + column], c[col.R00 + 3 + column]
        c[col.R00 + column], c[col.R00 + 3 + column] = cos * top - sin * low, sin * top + cos * low
    return Frame(torch.stack(c), waves.permute(1, 2, 0)[..., None], layout)


def to_local(p: Tensor, o: Vec, d: Vec) -> tuple[Vec, Vec]:
    """World ray to the frame of the slots whose columns ``p`` (SLOT_COLUMNS, ...) broadcast with it."""
    x, y, z = o.x - p[col.CX], o.y - p[col.CY], o.z - p[col.CZ]
    return rotate_in(p, Vec(x, y, z)), rotate_in(p, d)


def rotate_in(p: Tensor | Sequence[Tensor], v: Vec) -> Vec:
    """A world direction in slot coordinates (transpose of the slot rotation)."""
    r = col.R00
    return Vec(
        *(
            torch.addcmul(torch.addcmul(p[r + i] * v.x, p[r + 3 + i], v.y), p[r + 6 + i], v.z)
            for i in range(3)
        )
    )


def shape_of(p: Tensor | Sequence[Tensor], waves: Tensor | None) -> Shape:
    """The shape numbers among the slot columns."""
    return Shape(p[col.S0], p[col.S1], p[col.S2], p[col.E0], p[col.E1], p[col.E2], p[col.BOUND], waves)


def hit_slots(
    hit: Callable[[Vec, Vec, Shape], Tensor], p: Tensor, o: Vec, d: Vec, waves: Tensor | None
) -> Tensor:
    """Distance along each ray to each slot of one kind; infinity for misses and unused slots.

    Args:
        hit: the kind's intersection, from :data:`relief3d.worlds.shapes.HIT`.
        p: slot columns (SLOT_COLUMNS, ...) that broadcast with the rays.
        o: world origins.
        d: unit world directions.
        waves: height-field waves, for ground.
    """
    lo, ld = to_local(p, o, d)
    t = hit(lo, ld, shape_of(p, waves))
    return torch.where(p[col.ALIVE] > 0.5, t, math.inf)


def _chunks(index: Tensor, rays: int) -> Sequence[Tensor]:
    step = max(1, ELEMENTS_AT_ONCE // max(rays, 1))
    return index.split(step) if rays < ELEMENTS_AT_ONCE else index.split(1)


def _grouped(frame: Frame, groups: Groups, o: Vec, d: Vec, shape: torch.Size):  # type: ignore[no-untyped-def]
    """Yield (slot indices, distances (I, k, R)) over all groups in cache-sized portions."""
    rays = shape[0] * shape[1]
    wide_o, wide_d = Vec(*(v[:, None] for v in o)), Vec(*(v[:, None] for v in d))
    for kind, index in groups:
        waves = frame.waves[..., None] if kind == Kind.GROUND else None
        for part in _chunks(index, rays):
            p = frame.columns.index_select(2, part)[..., None]
            yield part, hit_slots(HIT[kind], p, wide_o, wide_d, waves)


def nearest_hit(frame: Frame, groups: Groups, o: Vec, d: Vec) -> tuple[Tensor, Tensor]:
    """First hit of each ray.

    Args:
        frame: primitives.
        groups: slots to test.
        o: origins, components (I, 1) or (I, R).
        d: unit directions, components (I, 1) or (I, R).

    Returns:
        Distance (I, R), infinity where nothing is hit, and slot (I, R) int64, 0 there.
    """
    shape = torch.broadcast_shapes(o.x.shape, d.x.shape)
    best = torch.full(shape, math.inf, dtype=frame.columns.dtype, device=frame.columns.device)
    slot = torch.zeros(shape, dtype=torch.int64, device=best.device)
    for part, t in _grouped(frame, groups, o, d, shape):
        for k in range(part.shape[0]):
            candidate = t[:, k]
            slot = torch.where(candidate < best, part[k], slot)
            best = torch.minimum(best, candidate)
    return best, slot


def occluded(frame: Frame, groups: Groups, o: Vec, d: Vec, limit: Tensor) -> Tensor:
    """Whether something lies on the ray before ``limit``; components (I, 1) or (I, R), bool (I, R) out."""
    shape = torch.broadcast_shapes(o.x.shape, d.x.shape, limit.shape)
    blocked = torch.zeros(shape, dtype=torch.bool, device=frame.columns.device)
    for _, t in _grouped(frame, groups, o, d, shape):
        blocked = blocked | (t.amin(1) < limit)
    return blocked


def signed_distance(frame: Frame, points: Vec) -> Tensor:
    """Distance to the nearest surface, negative inside solids (and outside the room); (I, N) components."""
    best = torch.full(points.x.shape, math.inf, dtype=points.x.dtype, device=points.x.device)
    wide = Vec(*(v[:, None] for v in points))
    for kind, index in frame.all_groups():
        waves = frame.waves[..., None].to(points.x.dtype) if kind == Kind.GROUND else None
        for part in _chunks(index, points.x.numel()):
            p = frame.columns.index_select(2, part)[..., None].to(points.x.dtype)
            local = rotate_in(p, Vec(wide.x - p[col.CX], wide.y - p[col.CY], wide.z - p[col.CZ]))
            value = DISTANCE[kind](local, shape_of(p, waves))
            value = torch.where(p[col.ALIVE] > 0.5, value, math.inf)
            best = torch.minimum(best, value.amin(1))
    return best
