"""The renderer fused by torch.compile: the same functions, one kernel per step instead of hundreds.

Slots are passed as index tensors, so one compiled function serves all slots of a kind and nothing is
compiled again for another world; only another picture size, layout or number of images compiles anew.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from relief3d.worlds.layout import Kind, Layout
from relief3d.worlds.lighting import Lighting, light_ray, shade, sky_colour
from relief3d.worlds.renderer import NO_SHADOW, SURFACE_OFFSET, Appearance, Pixels
from relief3d.worlds.shapes import HIT, Vec
from relief3d.worlds.surface import Materials, Surface, shade_inputs, surface_plan
from relief3d.worlds.tracing import Frame, hit_slots

UNROLL = {Kind.BOX: 6, Kind.ELLIPSOID: 4, Kind.CYLINDER: 4, Kind.CONE: 2}
"""Slots tested per kernel; kinds that march along the ray are tested one by one."""


def _nearest_step(kind: Kind) -> Callable[..., tuple[Tensor, Tensor]]:
    hit = HIT[kind]

    def step(
        best: Tensor, slot: Tensor, index: Tensor, columns: Tensor, waves: Tensor, o: Vec, d: Vec
    ) -> tuple[Tensor, Tensor]:
        part = columns.index_select(2, index)
        for k in range(index.shape[0]):
            t = hit_slots(hit, part[:, :, k, None], o, d, waves)
            slot = torch.where(t < best, index[k], slot)
            best = torch.minimum(best, t)
        return best, slot

    return step


def _blocked_step(kind: Kind) -> Callable[..., Tensor]:
    hit = HIT[kind]

    def step(
        seen: Tensor, limit: Tensor, index: Tensor, columns: Tensor, waves: Tensor, o: Vec, d: Vec
    ) -> Tensor:
        part = columns.index_select(2, index)
        for k in range(index.shape[0]):
            t = hit_slots(hit, part[:, :, k, None], o, d, waves)
            seen = torch.where(t < limit, 0.0, seen)
        return seen

    return step


class Engine:
    """Compiled steps for one layout and texture bank."""

    def __init__(self, layout: Layout, size: int, layers: int, lamps: int) -> None:
        self.layout, self.size, self.layers, self.lamps = layout, size, layers, lamps
        self.plan = surface_plan(layout)
        self._surface = _compile(self._surface_part)
        self._light = _compile(self._light_part)
        self._nearest = {kind: _compile(_nearest_step(kind)) for kind, _, _ in layout.ranges}
        self._blocked = {
            kind: _compile(_blocked_step(kind)) for kind, _, _ in layout.ranges if kind not in NO_SHADOW
        }

    def _surface_part(
        self, columns: Tensor, waves: Tensor, tables: tuple[Tensor, ...], lights: tuple[Tensor, ...],
        world_of: Tensor, kinds: Tensor, o: Vec, d: Vec, t: Tensor, slot: Tensor, cone: Tensor, jitter: Tensor | None,
    ) -> tuple[Any, ...]:  # fmt: skip
        face, table, instance, texels, noise = tables
        materials = Materials(face, table, instance, texels, self.size, self.layers, noise)
        frame = Frame(columns, waves, self.layout)
        s = shade_inputs(frame, materials, world_of, o, d, t, slot, cone, kinds, self.plan)
        start = Vec(*(s.point[i] + SURFACE_OFFSET * s.normal[i] for i in range(3)))
        lighting = Lighting(*lights)
        rays = []
        for index in range(self.lamps):
            target, reach, _ = light_ray(lighting, index, start, None if jitter is None else jitter[index])
            rays.append((target, reach))
        return (
            tuple(s.point), tuple(s.normal), tuple(s.albedo), s.specular, s.gloss, s.emission, s.instance,
            tuple(start), rays,
        )  # fmt: skip

    def _light_part(
        self, lights: tuple[Tensor, ...], noise: Tensor, found: tuple[Any, ...], seen: tuple[Tensor, ...],
        d: Vec, t: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        lighting = Lighting(*lights)
        point, normal, albedo, specular, gloss, emission, instance, start = found
        s = Surface(Vec(*point), Vec(*normal), Vec(*point), Vec(*albedo), specular, gloss, emission, instance)
        direct = []
        for index in range(self.lamps):
            to_light, _, strength = light_ray(lighting, index, Vec(*start), None)
            direct.append((to_light, strength, seen[index]))
        lit = shade(lighting, s, d, direct)
        missed = torch.isinf(t)
        sky = sky_colour(lighting, noise, d)
        keep = (~missed).to(t.dtype)
        radiance = torch.stack([torch.where(missed, sky[c], lit[c]) for c in range(3)])
        return radiance, torch.stack(list(normal)) * keep, torch.stack(list(albedo)) * keep

    def shade_rays(
        self, frame: Frame, look: Appearance, o: Vec, d: Vec, cone: Tensor, jitter: Tensor | None
    ) -> Pixels:
        """The same as :func:`relief3d.worlds.renderer.shade_rays` for all slots."""
        shape = torch.broadcast_shapes(o.x.shape, d.x.shape)
        o = Vec(*(v.expand(shape[0], 1).contiguous() for v in o))
        best = torch.full(shape, torch.inf, device=d.x.device, dtype=d.x.dtype)
        slot = torch.zeros(shape, dtype=torch.int64, device=d.x.device)
        for kind, index in self._portions(frame, frozenset()):
            best, slot = self._nearest[kind](best, slot, index, frame.columns, frame.waves, o, d)
        m, lighting = look.materials, look.lighting
        lights = (lighting.lights, lighting.sky, lighting.room)
        tables = (m.face, m.table, m.instance, m.texels, m.noise)
        *found, rays = self._surface(
            frame.columns,
            frame.waves,
            tables,
            lights,
            look.world_of,
            look.kinds,
            o,
            d,
            best,
            slot,
            cone,
            jitter,
        )
        start = Vec(*found[7])
        seen = []
        for target, reach in rays:
            clear = torch.ones(shape, device=d.x.device, dtype=d.x.dtype)
            for kind, index in self._portions(frame, NO_SHADOW):
                clear = self._blocked[kind](
                    clear, reach, index, frame.columns, frame.waves, start, Vec(*target)
                )
            seen.append(clear)
        radiance, normal, albedo = self._light(lights, m.noise, tuple(found), tuple(seen), d, best)
        return Pixels(radiance, best, slot, normal, albedo, found[6])

    def _portions(self, frame: Frame, skip: frozenset[Kind]) -> list[tuple[Kind, Tensor]]:
        out = []
        device = frame.columns.device
        for kind, a, b in self.layout.ranges:
            if kind in skip:
                continue
            width = UNROLL.get(kind, 1)
            count = -(-(b - a) // width) * width
            # The last portion repeats its last slot, which changes nothing.
            index = torch.arange(a, a + count, device=device).clamp_max(b - 1)
            out += [(kind, part) for part in index.split(width)]
        return out


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a private copy of a function or bound method.

    torch keys its cache by code object and tells closures apart by guards only, which do not see that an
    enumeration member in a closure differs: without a copy the kernel of one kind would serve another.
    """
    owner = getattr(function, "__self__", None)
    plain: Any = getattr(function, "__func__", function)
    copy = FunctionType(
        plain.__code__.replace(), plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__
    )
    return torch.compile(copy if owner is None else MethodType(copy, owner), dynamic=False)


@lru_cache(maxsize=4)
def engine_for(layout: Layout, size: int, layers: int, lamps: int) -> Engine:
    """The compiled engine for a layout; compilation happens at the first call."""
    return Engine(layout, size, layers, lamps)
