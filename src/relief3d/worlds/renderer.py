"""Pictures of worlds: rays, hits, light, truth maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from relief3d.core.parallel import map_on_cores
from relief3d.worlds.culling import shadow_groups, tile_groups
from relief3d.worlds.layout import Kind
from relief3d.worlds.lighting import Lighting, light_ray, shade, sky_colour
from relief3d.worlds.shapes import Vec
from relief3d.worlds.surface import Materials, pixel_cone, shade_inputs, surface_plan
from relief3d.worlds.tracing import Frame, Groups, nearest_hit, occluded

NO_SHADOW = frozenset({Kind.SHELL, Kind.GROUND})
"""Kinds that cast no shadow: nothing lies behind the walls, and the ground only slopes gently."""


SURFACE_OFFSET = 2e-3
"""Metres that shadow rays start above their surface."""


@dataclass(frozen=True)
class RenderedViews:
    """Pictures and exact truth; leading dimensions ``*`` are those of the cameras.

    Attributes:
        image: (*, 3, H, W) RGB in [0, 1], after the camera model if one was applied.
        radiance: (*, 3, H, W) linear light before exposure.
        depth: (*, H, W) z-depth in metres, 0 where the sky is seen.
        valid: (*, H, W) bool, True where a surface is seen.
        normals: (*, H, W, 3) unit, camera frame, facing the camera; 0 for the sky.
        instance: (*, H, W) int64 object number, -1 for the sky.
        albedo: (*, 3, H, W) linear reflectance, 0 for the sky.
        slot: (*, H, W) int64 primitive number, 0 for the sky.
        K: (*, 3, 3) pixels.
        world_from_cam: (*, 4, 4).
        times: (*,) seconds.
    """

    image: Tensor
    radiance: Tensor
    depth: Tensor
    valid: Tensor
    normals: Tensor
    instance: Tensor
    albedo: Tensor
    slot: Tensor
    K: Tensor
    world_from_cam: Tensor
    times: Tensor

    def __getitem__(self, index: int | slice) -> RenderedViews:
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})


@dataclass(frozen=True)
class Appearance:
    """Everything but geometry for a set of images.

    Attributes:
        materials: tables of all worlds.
        lighting: lights of each image.
        world_of: (I,) int64.
        kinds: (S,) int64 kind of each slot.
    """

    materials: Materials
    lighting: Lighting
    world_of: Tensor
    kinds: Tensor


@dataclass(frozen=True)
class Pixels:
    """Per-ray results, (I, R) or (3, I, R)."""

    radiance: Tensor
    t: Tensor
    slot: Tensor
    normal: Tensor
    albedo: Tensor
    instance: Tensor


def camera_rays(K: Tensor, world_from_cam: Tensor, x: Tensor, y: Tensor) -> tuple[Vec, Vec, Tensor]:
    """World rays through pixel positions.

    Args:
        K: (I, 3, 3).
        world_from_cam: (I, 4, 4).
        x: (1, R) or (I, R) pixel positions, centres at +0.5.
        y: the same downwards.

    Returns:
        Origins (I, 1), unit directions (I, R), and the z-depth per unit of ray length (I, R).
    """
    cx = (x - K[:, 0, 2, None]) / K[:, 0, 0, None]
    cy = (y - K[:, 1, 2, None]) / K[:, 1, 1, None]
    scale = torch.rsqrt(cx * cx + cy * cy + 1)
    R = world_from_cam[:, :3, :3]
    d = Vec(*((R[:, i, 0, None] * cx + R[:, i, 1, None] * cy + R[:, i, 2, None]) * scale for i in range(3)))
    o = Vec(*(world_from_cam[:, i, 3, None] for i in range(3)))
    return o, d, scale


def shade_rays(
    frame: Frame,
    appearance: Appearance,
    o: Vec,
    d: Vec,
    cone: Tensor,
    *,
    groups: Groups,
    jitter: Tensor | None,
    cull: bool,
) -> Pixels:
    """Trace and shade one bundle of rays.

    Args:
        frame: primitives per image.
        appearance: materials and light.
        o: ray origins, components (I, 1) or (I, R).
        d: unit directions, components (I, R).
        cone: width of a pixel at unit ray length.
        groups: slots the rays can hit.
        jitter: (L, 3, I, R) light offsets or None.
        cull: restrict shadow rays to slots near the shaded points (one image at a time; waits for the device).
    """
    t, slot = nearest_hit(frame, groups, o, d)
    surface = shade_inputs(
        frame,
        appearance.materials,
        appearance.world_of,
        o,
        d,
        t,
        slot,
        cone,
        appearance.kinds,
        surface_plan(frame.layout),
    )
    lighting = appearance.lighting
    start = Vec(*(surface.point[i] + SURFACE_OFFSET * surface.normal[i] for i in range(3)))
    direct = []
    everything = None if cull else frame.all_groups(skip=NO_SHADOW)
    for index in range(lighting.lights.shape[1]):
        to_light, distance, strength = light_ray(lighting, index, start, None)
        target, reach = to_light, distance
        if jitter is not None:
            # Only the shadow is jittered: jittered shading would sparkle on walls beside a lamp.
            target, reach, _ = light_ray(lighting, index, start, jitter[index])
        blockers = everything
        if blockers is None:
            blockers = shadow_groups(frame, start, torch.isinf(t), lighting.lights[:, index], NO_SHADOW)
        shadow = occluded(frame, blockers, start, target, reach)
        direct.append((to_light, strength, 1.0 - shadow.to(t.dtype)))
    lit = shade(lighting, surface, d, direct)
    missed = torch.isinf(t)
    sky = lit if cull and not bool(missed.any()) else sky_colour(lighting, appearance.materials.noise, d)
    radiance = torch.stack([torch.where(missed, sky[c], lit[c]) for c in range(3)])
    keep = (~missed).to(t.dtype)
    return Pixels(
        radiance,
        t,
        slot,
        torch.stack(surface.normal) * keep,
        torch.stack(surface.albedo) * keep,
        surface.instance,
    )


def _tiles(height: int, width: int, side: int) -> list[tuple[int, int, int, int]]:
    return [
        (y, min(y + side, height), x, min(x + side, width))
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]


def render_pixels(
    frame: Frame,
    appearance: Appearance,
    K: Tensor,
    world_from_cam: Tensor,
    size: tuple[int, int],
    *,
    jitter: Tensor | None = None,
    tile: int | None = None,
    supersample: int = 1,
    compiled: bool = False,
) -> Pixels:
    """All pixels of the images, tile by tile when ``tile`` is given.

    Args:
        frame: primitives per image.
        appearance: materials and light.
        K: (I, 3, 3); world_from_cam: (I, 4, 4).
        world_from_cam: camera poses.
        size: height and width.
        jitter: (L, 3, I, H, W) or None.
        tile: pixels per side of a tile; None renders whole images at once without culling and without any
            wait for the device.
        supersample: samples per pixel and axis for the light; truth maps are those of the pixel centre. Tiles
            take more than one sample only at outlines, whole images everywhere.
        compiled: fuse the work with torch.compile; whole images only.

    Returns:
        Pixels with rays reshaped to (H, W).
    """
    height, width = size
    device, dtype = frame.columns.device, frame.columns.dtype
    xs = torch.arange(width, device=device, dtype=dtype) + 0.5
    ys = torch.arange(height, device=device, dtype=dtype) + 0.5
    cone = pixel_cone(K)[:, None]
    if tile is None:
        x, y = xs.repeat(height)[None], ys.repeat_interleave(width)[None]
        o, d, scale = camera_rays(K, world_from_cam, x, y)
        flat = None if jitter is None else jitter.flatten(-2)
        tracer = _whole_image_tracer(frame, appearance, flat, compiled)
        out = tracer(o, d, cone * scale)
        if supersample > 1:
            light = torch.zeros_like(out.radiance)
            for dx, dy in _offsets(supersample):
                o, d, scale = camera_rays(K, world_from_cam, x + dx, y + dy)
                light = light + tracer(o, d, cone * scale).radiance
            out = replace(out, radiance=light / supersample**2)
        return Pixels(*(_unflatten(getattr(out, f.name), size) for f in fields(out)))
    images = K.shape[0]
    boxes = _tiles(height, width, tile)
    groups_of = tile_groups(frame, K, world_from_cam, boxes)
    canvas = _canvas(images, size, device, dtype)

    def render_tile(job: tuple[int, int]) -> None:
        i, b = job
        y0, y1, x0, x1 = boxes[b]
        one = replace(frame, columns=frame.columns[:, i : i + 1], waves=frame.waves[:, :, i : i + 1])
        x = xs[x0:x1].repeat(y1 - y0)[None]
        y = ys[y0:y1].repeat_interleave(x1 - x0)[None]
        o, d, scale = camera_rays(K[i : i + 1], world_from_cam[i : i + 1], x, y)
        part_jitter = None if jitter is None else jitter[:, :, i : i + 1, y0:y1, x0:x1].flatten(-2)
        look = _one_image(appearance, i)
        width_of = cone[i : i + 1] * scale
        out = shade_rays(one, look, o, d, width_of, groups=groups_of[i][b], jitter=part_jitter, cull=True)
        if supersample > 1:
            edge = torch.nonzero(_outline(out, (y1 - y0, x1 - x0)))[:, 0]
            if edge.numel():
                offsets = _offsets(supersample)
                xe = torch.cat([x[:, edge] + dx for dx, _ in offsets], 1)
                ye = torch.cat([y[:, edge] + dy for _, dy in offsets], 1)
                o, d, scale = camera_rays(K[i : i + 1], world_from_cam[i : i + 1], xe, ye)
                width_of = cone[i : i + 1] * scale
                more = shade_rays(one, look, o, d, width_of, groups=groups_of[i][b], jitter=None, cull=True)
                out.radiance[..., edge] = more.radiance.unflatten(-1, (len(offsets), -1)).mean(-2)
        for f in fields(out):
            value = _unflatten(getattr(out, f.name), (y1 - y0, x1 - x0))
            getattr(canvas, f.name)[..., i : i + 1, y0:y1, x0:x1] = value

    jobs = [(i, b) for i in range(images) for b in range(len(boxes))]
    for _ in map_on_cores(render_tile, jobs, device):
        pass
    return canvas


def _whole_image_tracer(
    frame: Frame, appearance: Appearance, jitter: Tensor | None, compiled: bool
) -> Callable[[Vec, Vec, Tensor], Pixels]:
    if compiled:
        from relief3d.worlds.compiled import engine_for

        m = appearance.materials
        engine = engine_for(frame.layout, m.size, m.layers, appearance.lighting.lights.shape[1])
        return lambda o, d, cone: engine.shade_rays(frame, appearance, o, d, cone, jitter)
    groups = frame.all_groups()
    return lambda o, d, cone: shade_rays(
        frame, appearance, o, d, cone, groups=groups, jitter=jitter, cull=False
    )


def _offsets(n: int) -> list[tuple[float, float]]:
    return [((i + 0.5) / n - 0.5, (j + 0.5) / n - 0.5) for j in range(n) for i in range(n)]


def _outline(pixels: Pixels, size: tuple[int, int]) -> Tensor:
    """(R,) bool: pixels of one tile with another primitive or face beside them."""
    slot = _unflatten(pixels.slot, size)[0] + 1000 * _unflatten(torch.isinf(pixels.t), size)[0]
    normal = _unflatten(pixels.normal, size)[:, 0]
    edge = torch.zeros(size, dtype=torch.bool)
    for axis in (0, 1):
        count = size[axis] - 1
        a, b = slot.narrow(axis, 0, count), slot.narrow(axis, 1, count)
        m, n = normal.narrow(axis + 1, 0, count), normal.narrow(axis + 1, 1, count)
        change = (a != b) | ((m * n).sum(0) < 0.8)
        edge.narrow(axis, 0, count).logical_or_(change)
        edge.narrow(axis, 1, count).logical_or_(change)
    return edge.reshape(-1)


def _unflatten(value: Tensor, size: tuple[int, int]) -> Tensor:
    return value.unflatten(-1, size)


def _canvas(images: int, size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Pixels:
    def empty(*lead: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.empty((*lead, images, *size), device=device, dtype=kind)

    return Pixels(empty(3), empty(), empty(kind=torch.int64), empty(3), empty(3), empty(kind=torch.int64))


def _one_image(appearance: Appearance, i: int) -> Appearance:
    lighting = appearance.lighting
    return replace(
        appearance,
        world_of=appearance.world_of[i : i + 1],
        lighting=Lighting(lighting.lights[i : i + 1], lighting.sky[i : i + 1], lighting.room[i : i + 1]),
    )
