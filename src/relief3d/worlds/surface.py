"""What is at a hit: normal, texture coordinates, material and its colour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from relief3d.worlds import layout as col
from relief3d.worlds.layout import Kind, Layout
from relief3d.worlds.noise import lookup_volume
from relief3d.worlds.shapes import NORMAL, ROUND, Shape, Vec
from relief3d.worlds.textures import lookup_texture
from relief3d.worlds.tracing import Frame, rotate_in, shape_of


@dataclass(frozen=True)
class Materials:
    """Appearance tables of a batch of worlds.

    Attributes:
        face: (W, S, 6) int64 material of each face (-x, +x, -y, +y, -z, +z; round kinds: side 0, caps 4, 5).
        table: (W, M, MATERIAL_COLUMNS) float32.
        instance: (W, S) int64 object number.
        texels, size, layers: the texture bank.
        noise: (n**3,) tileable noise volume.
    """

    face: Tensor
    table: Tensor
    instance: Tensor
    texels: Tensor
    size: int
    layers: int
    noise: Tensor


@dataclass(frozen=True)
class Surface:
    """Per-ray surface facts, each (I, R) unless said otherwise.

    Attributes:
        point, normal: world position and unit normal facing the ray.
        local: position in the slot's own frame.
        albedo: linear reflectance.
        specular, gloss, emission: material numbers.
        instance: object number, -1 for a miss.
    """

    point: Vec
    normal: Vec
    local: Vec
    albedo: Vec
    specular: Tensor
    gloss: Tensor
    emission: Tensor
    instance: Tensor


def _select(condition: Tensor, a: Vec, b: Vec) -> Vec:
    return Vec(*(torch.where(condition, x, y) for x, y in zip(a, b, strict=True)))


class KindPlan(NamedTuple):
    """What surface evaluation needs to know of one kind; plain values, so that it can be traced."""

    number: int
    normal: Callable[[Vec, Shape], Vec]
    is_ground: bool
    is_round: bool


def surface_plan(layout: Layout) -> tuple[KindPlan, ...]:
    """The kinds that occur in a layout."""
    return tuple(
        KindPlan(int(kind), NORMAL[kind], kind == Kind.GROUND, kind in ROUND) for kind, _, _ in layout.ranges
    )


def _local_normal(
    plan: tuple[KindPlan, ...], waves: Tensor, kind_of: Tensor, local: Vec, p: list[Tensor]
) -> Vec:
    shape = shape_of(p, None)
    normal: Vec | None = None
    for kind in plan:
        this = kind.normal(local, shape._replace(waves=waves) if kind.is_ground else shape)
        normal = this if normal is None else _select(kind_of == kind.number, this, normal)
    assert normal is not None
    length = torch.rsqrt((normal.x**2 + normal.y**2 + normal.z**2).clamp_min(1e-20))
    return Vec(normal.x * length, normal.y * length, normal.z * length)


def _texture_coordinates(
    plan: tuple[KindPlan, ...], kind_of: Tensor, local: Vec, n: Vec, p: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Face number and metric texture coordinates (metres on the surface, v downwards)."""
    ax, ay, az = n.x.abs(), n.y.abs(), n.z.abs()
    on_x = (ax > ay) & (ax >= az)
    on_z = (az > ay) & ~on_x
    u = torch.where(on_x, torch.copysign(local.y, local.y * n.x), local.x)
    v = torch.where(on_z, -local.y, -local.z)
    axis = torch.where(on_x, n.x, torch.where(on_z, n.z, n.y))
    face = torch.where(on_x, 0, torch.where(on_z, 4, 2)) + (axis > 0).to(torch.int64)
    if any(kind.is_round for kind in plan):
        is_round = torch.zeros_like(kind_of, dtype=torch.bool)
        for kind in plan:
            if kind.is_round:
                is_round = is_round | (kind_of == kind.number)
        cap = is_round & (az > 0.999)
        side = is_round & ~cap
        radius = torch.maximum(p[col.S0], p[col.S1])
        u = torch.where(side, torch.atan2(local.y, local.x) * radius, u)
        v = torch.where(side, -local.z, v)
        face = torch.where(side, 0, face)
    return face, u, v


def shade_inputs(
    frame: Frame,
    materials: Materials,
    world_of: Tensor,
    o: Vec,
    d: Vec,
    t: Tensor,
    slot: Tensor,
    cone: Tensor,
    kinds: Tensor,
    plan: tuple[KindPlan, ...],
) -> Surface:
    """Look up everything shading needs at the hits.

    Args:
        frame: primitives of the images.
        materials: appearance of all worlds.
        world_of: (I,) world of each image.
        o: ray origins, components (I, 1) or (I, R).
        d: unit directions, components (I, R).
        t: distance from :func:`relief3d.worlds.tracing.nearest_hit`.
        slot: primitive from there.
        cone: (I, 1) or (I, R) width of a pixel at unit distance along the ray, for the mip level.
        kinds: (S,) int64 kind of each slot.
        plan: from :func:`surface_plan`.
    """
    missed = torch.isinf(t)
    t = torch.where(missed, 1.0, t)
    count = frame.columns.shape[2]
    images = torch.arange(frame.columns.shape[1], device=t.device)[:, None]
    flat = images * count + slot
    table = frame.columns.reshape(col.SLOT_COLUMNS, -1)
    p = [column[flat] for column in table[: col.BOUND]]
    p.append(p[-1])  # the bounding radius is never read at a hit
    point = Vec(o.x + t * d.x, o.y + t * d.y, o.z + t * d.z)
    local = rotate_in(p, Vec(point.x - p[col.CX], point.y - p[col.CY], point.z - p[col.CZ]))
    kind_of = kinds[slot]
    n = _local_normal(plan, frame.waves, kind_of, local, p)
    face, u, v = _texture_coordinates(plan, kind_of, local, n, p)
    r = col.R00
    normal = Vec(
        p[r] * n.x + p[r + 1] * n.y + p[r + 2] * n.z,
        p[r + 3] * n.x + p[r + 4] * n.y + p[r + 5] * n.z,
        p[r + 6] * n.x + p[r + 7] * n.y + p[r + 8] * n.z,
    )
    facing = (normal.x * d.x + normal.y * d.y + normal.z * d.z).abs()
    world = world_of[:, None]
    instance = torch.where(missed, -1, materials.instance.reshape(-1)[world * count + slot])
    material = materials.face.reshape(-1)[(world * count + slot) * 6 + face]
    row = world * materials.table.shape[1] + material
    m = [column[row] for column in materials.table.reshape(-1, col.MATERIAL_COLUMNS).T.contiguous()]
    albedo = _albedo(materials, m, u, v, local, slot, t * cone, facing)
    return Surface(
        point, normal, local, albedo, m[col.M_SPECULAR], m[col.M_GLOSS], m[col.M_EMISSION], instance
    )


def _albedo(
    materials: Materials,
    m: list[Tensor],
    u: Tensor,
    v: Tensor,
    local: Vec,
    slot: Tensor,
    width: Tensor,
    facing: Tensor,
) -> Vec:
    cos, sin = m[col.M_COS], m[col.M_SIN]
    tu = m[col.M_SU] * (cos * u - sin * v) + m[col.M_OU]
    tv = m[col.M_SV] * (sin * u + cos * v) + m[col.M_OV]
    # Square root of the foreshortening: a compromise between blur along and aliasing across slanted surfaces.
    footprint = width * torch.rsqrt(facing.clamp_min(0.05))
    density = torch.maximum(m[col.M_SU].abs(), m[col.M_SV].abs()) * materials.size
    level = torch.log2((footprint * density).clamp_min(1e-3))
    red, green, blue = lookup_texture(
        materials.texels, materials.size, materials.layers, m[col.M_LAYER].to(torch.int32), tu, tv, level
    )
    shift = slot.to(u.dtype) * 7.31
    stain = torch.zeros_like(u)
    # Blotches, grain and speckle; the finer ones fade out before they could alias.
    for cells, weight in ((5.0, 1.0), (37.0, 0.6), (140.0, 0.6)):
        x, y, z = local.x * cells + shift, local.y * cells - shift, local.z * cells + shift
        fade = (1.5 - footprint * cells).clamp(0, 1)
        stain = stain + weight * fade * (lookup_volume(materials.noise, x, y, z) - 0.5)
    stain = 1 + m[col.M_DIRT] * stain
    out = []
    for value, gain, bias in zip(
        (red, green, blue), m[col.M_GAIN : col.M_GAIN + 3], m[col.M_BIAS : col.M_BIAS + 3], strict=True
    ):
        shown = ((value * gain + bias) * stain).clamp(0.02, 0.97)
        out.append(shown * shown)
    return Vec(*out)


def pixel_cone(K: Tensor) -> Tensor:
    """Width of a pixel at unit z-depth, (..., 3, 3) -> (...)."""
    return 2.0 / (K[..., 0, 0] + K[..., 1, 1])
