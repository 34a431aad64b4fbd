"""A batch of procedural worlds: parameters, rendering, ray casting and distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Mesh
from relief3d.core.errors import InputError
from relief3d.worlds import layout as col
from relief3d.worlds.layout import Layout
from relief3d.worlds.lighting import Lighting
from relief3d.worlds.renderer import Appearance, Pixels, RenderedViews, render_pixels
from relief3d.worlds.shapes import Vec
from relief3d.worlds.surface import Materials
from relief3d.worlds.textures import TextureBank
from relief3d.worlds.tracing import Frame, make_frame, nearest_hit, signed_distance

_PER_WORLD = ("slots", "motion", "waves", "face", "materials", "instance", "lights", "sky", "room", "focus")


@dataclass(frozen=True)
class World:
    """One or more worlds with the same slot layout.

    World frame: metres, z up, floor or mean ground at z = 0.

    Attributes:
        layout: kinds of the slots.
        slots: (W, S, SLOT_COLUMNS); motion: (W, S, MOTION_COLUMNS); waves: (W, WAVES, 4).
        motion: velocities and yaw rates.
        waves: height-field waves.
        face: (W, S, 6) int64 material of each face.
        materials: (W, M, MATERIAL_COLUMNS).
        instance: (W, S) int64 object number.
        lights: (W, L, LIGHT_COLUMNS).
        sky: (W, SKY_COLUMNS).
        room: (W, 6) centre and half sizes of the room, half sizes 0 outdoors.
        focus: (W, 8) where cameras belong: centre xyz of the interesting part, its radius, free-space half
            sizes x and y, and eye height range.
        names: (W, S) nested tuples, what each slot belongs to.
        bank: texture pictures; noise: (n**3,) tileable noise.
        noise: noise volume.
    """

    layout: Layout
    slots: Tensor
    motion: Tensor
    waves: Tensor
    face: Tensor
    materials: Tensor
    instance: Tensor
    lights: Tensor
    sky: Tensor
    room: Tensor
    focus: Tensor
    names: tuple[tuple[str, ...], ...]
    bank: TextureBank
    noise: Tensor

    @property
    def count(self) -> int:
        """Number of worlds."""
        return int(self.slots.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.slots.device

    def to(self, device: torch.device | str) -> World:
        """The same worlds on another device."""
        moved: dict[str, Any] = {
            f.name: value.to(device)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor | TextureBank)
        }
        return replace(self, **moved)

    def select(self, index: int) -> World:
        """One world of the batch, as a batch of one."""
        cut: dict[str, Any] = {name: getattr(self, name)[index : index + 1] for name in _PER_WORLD}
        return replace(self, **cut, names=self.names[index : index + 1])

    def compact(self) -> World:
        """The same worlds without the slots that none of them uses; call it once, it waits for the device."""
        used = (self.slots[..., col.ALIVE] > 0.5).any(0)
        keep = torch.nonzero(used)[:, 0]
        counts = {kind: int(used[a:b].sum()) for kind, a, b in self.layout.ranges}
        cut: dict[str, Any] = {
            name: getattr(self, name)[:, keep] for name in ("slots", "motion", "face", "instance")
        }
        names = tuple(tuple(row[i] for i in keep.tolist()) for row in self.names)
        return replace(self, layout=Layout.of(counts), names=names, **cut)

    def frame(self, world_of: Tensor, times: Tensor) -> Frame:
        """Primitives of images that show ``world_of`` (I,) at ``times`` (I,)."""
        return make_frame(
            self.slots[world_of], self.motion[world_of], self.waves[world_of], times, self.layout
        )

    def appearance(self, world_of: Tensor) -> Appearance:
        """Materials and lights for images of ``world_of`` (I,)."""
        kinds = torch.cat(
            [torch.full((b - a,), int(kind), device=self.device) for kind, a, b in self.layout.ranges]
        )
        materials = Materials(
            self.face,
            self.materials,
            self.instance,
            self.bank.texels,
            self.bank.size,
            self.bank.layers,
            self.noise,
        )
        lighting = Lighting(self.lights[world_of], self.sky[world_of], self.room[world_of])
        return Appearance(materials, lighting, world_of, kinds)

    def render(
        self,
        cameras: Sequence[Camera] | tuple[Tensor, Tensor],
        size: tuple[int, int] | None = None,
        *,
        times: Tensor | None = None,
        generator: torch.Generator | None = None,
        tile: int | None = 112,
        supersample: int = 1,
        compile: bool = False,
    ) -> RenderedViews:
        """Render views with their exact truth.

        Args:
            cameras: cameras of one size with K and pose (only for a single world; views lead the result), or
                the tensors ``K`` (W, V, 3, 3) and ``world_from_cam`` (W, V, 4, 4), whose (W, V) leads it.
            size: height and width; needed with tensors.
            times: seconds, of the leading shape; 0 when None.
            generator: jitters lights for soft shadows; hard shadows when None. On the world's device.
            tile: tile side of the CPU path, which skips slots a tile cannot see. None renders everything at
                once and never waits for the device; it is always None on accelerators.
            supersample: light samples per pixel and axis, against jagged outlines; truth maps stay those of
                the pixel centre.
            compile: fuse the renderer with torch.compile (needs a C++ compiler on the CPU); the first call per
                layout and picture size takes a minute or more. Implies ``tile=None``.

        Returns:
            The views; ``image`` is exposed with a plain gamma, see :mod:`relief3d.worlds.effects` for more.

        Raises:
            InputError: for cameras without K or pose, of several sizes, or for several worlds.
        """
        K, pose, size = self._camera_tensors(cameras, size)
        lead = K.shape[:2]
        world_of = torch.arange(self.count, device=self.device).repeat_interleave(lead[1])
        K, pose = K.flatten(0, 1), pose.flatten(0, 1)
        if times is None:
            times = torch.zeros(K.shape[0], device=self.device)
        times = times.to(self.device, torch.float32).reshape(-1)
        jitter = None
        if generator is not None:
            shape = (self.lights.shape[1], 3, K.shape[0], *size)
            jitter = torch.rand(shape, generator=generator, device=self.device) * 2 - 1
        pixels = render_pixels(
            self.frame(world_of, times),
            self.appearance(world_of),
            K,
            pose,
            size,
            jitter=jitter,
            tile=tile if self.device.type == "cpu" and not compile else None,
            supersample=supersample,
            compiled=compile,
        )
        views = assemble_views(pixels, K, pose, times)
        if isinstance(cameras, tuple) and isinstance(cameras[0], Tensor):
            return replace(
                views, **{f.name: getattr(views, f.name).unflatten(0, lead) for f in fields(views)}
            )
        return views

    def _camera_tensors(
        self, cameras: Sequence[Camera] | tuple[Tensor, Tensor], size: tuple[int, int] | None
    ) -> tuple[Tensor, Tensor, tuple[int, int]]:
        if isinstance(cameras, tuple) and isinstance(cameras[0], Tensor):
            K, pose = cameras
            if size is None or K.shape[0] != self.count:
                raise InputError("rendering from camera tensors needs the picture size and one row per world")
            return K.to(self.device, torch.float32), pose.to(self.device, torch.float32), size
        listed: list[Camera] = list(cameras)  # type: ignore[arg-type]
        if self.count != 1:
            raise InputError(
                "a list of cameras renders one world", remedy="use World.select or camera tensors"
            )
        if not listed:
            raise InputError("no camera to render")
        if len({(c.width, c.height) for c in listed}) != 1:
            raise InputError("cameras to render together must have one picture size")
        if any(c.K is None or c.world_from_cam is None for c in listed):
            raise InputError("cameras to render need intrinsics and a pose")
        K = torch.stack([c.K for c in listed if c.K is not None])
        pose = torch.stack([c.world_from_cam for c in listed if c.world_from_cam is not None])
        own = (listed[0].height, listed[0].width)
        return K[None].to(self.device, torch.float32), pose[None].to(self.device, torch.float32), own

    def raycast(
        self, origins: Tensor, directions: Tensor, times: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """First hits of rays.

        Args:
            origins: (W, R, 3) or (W, 1, 3) metres.
            directions: (W, R, 3), any length.
            times: (W,) seconds.

        Returns:
            Distance along the unit direction (W, R), infinity for misses, and slot (W, R), 0 for misses.
        """
        frame = self._world_frame(times)
        d = torch.nn.functional.normalize(directions.to(self.device, torch.float32), dim=-1)
        o = origins.to(self.device, torch.float32)
        return nearest_hit(frame, frame.all_groups(), Vec(*o.unbind(-1)), Vec(*d.unbind(-1)))

    def sdf(self, points: Tensor, times: Tensor | None = None) -> Tensor:
        """Signed distance to the nearest surface, negative inside solids and outside the room.

        Exact outside boxes, rounded boxes, cylinders, cones, tori and the room; correct to first order near
        the surface of ellipsoids, superquadrics, lathes and the ground (the sign is always exact).

        Args:
            points: (W, N, 3), or (N, 3) for a single world; float32 or float64.
            times: (W,) seconds, 0 when None.

        Returns:
            (W, N) or (N,) metres, of the dtype of the points.
        """
        single = points.ndim == 2
        wide = points[None] if single else points
        value = signed_distance(self._world_frame(times), Vec(*wide.to(self.device).unbind(-1)))
        return value[0] if single else value

    def to_mesh(self, resolution: float = 0.05, *, method: str = "tessellate") -> Mesh:
        """Surface of a single world as triangles; see :func:`relief3d.worlds.meshing.world_mesh`."""
        from relief3d.worlds.meshing import world_mesh

        return world_mesh(self, resolution, method=method)

    def _world_frame(self, times: Tensor | None) -> Frame:
        world_of = torch.arange(self.count, device=self.device)
        if times is None:
            times = torch.zeros(self.count, device=self.device)
        return self.frame(world_of, times.to(self.device, torch.float32))


def assemble_views(pixels: Pixels, K: Tensor, pose: Tensor, times: Tensor) -> RenderedViews:
    """Turn per-ray results into maps: ray length to z-depth, world normals to camera normals."""
    height, width = pixels.t.shape[-2:]
    x = (torch.arange(width, device=K.device, dtype=K.dtype) + 0.5 - K[:, 0, 2, None]) / K[:, 0, 0, None]
    y = (torch.arange(height, device=K.device, dtype=K.dtype) + 0.5 - K[:, 1, 2, None]) / K[:, 1, 1, None]
    scale = torch.rsqrt(x[:, None, :] ** 2 + y[:, :, None] ** 2 + 1)
    valid = torch.isfinite(pixels.t)
    depth = torch.where(valid, pixels.t, 0.0) * scale
    normals = torch.einsum("cihw,icd->ihwd", pixels.normal, pose[:, :3, :3])
    radiance = pixels.radiance.transpose(0, 1)
    image = (radiance.clamp_min(0) ** (1 / 2.2)).clamp(0, 1)
    return RenderedViews(
        image,
        radiance,
        depth,
        valid,
        normals,
        pixels.instance,
        pixels.albedo.transpose(0, 1),
        pixels.slot,
        K,
        pose,
        times,
    )
