"""Procedural rooms scanned by a depth camera: the twins of all surface benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from relief3d.core.contract import Camera, Depth, Mesh, Scene, View
from relief3d.core.seeding import derive_seed
from relief3d.eval.protocols.base import Budget, Query, Sample, Truth
from relief3d.eval.twins.rendered import Clip, ClipPlan, clip_cache, query_scene
from relief3d.fusion.cleaning import drop_small_components
from relief3d.fusion.factory import make_fuser


@dataclass(frozen=True)
class RoomSizes:
    """How large a twin is.

    Attributes:
        rooms: number of scenes.
        frames: pictures per scene.
        size: (H, W) pixels.
        voxel: of the scan's mesh, metres.
    """

    rooms: int
    frames: int
    size: tuple[int, int]
    voxel: float


SIZES: dict[Budget, RoomSizes] = {
    "smoke": RoomSizes(2, 6, (48, 64), 0.06),
    "mini": RoomSizes(10, 24, (120, 160), 0.04),
}


@dataclass(frozen=True)
class Room:
    """A rendered clip of a room.

    Attributes:
        name: of the scene.
        clip: pictures and exact depth.
        sizes: of the twin.
    """

    name: str
    clip: Clip
    sizes: RoomSizes

    def scene(self) -> Scene:
        """Pictures with intrinsics and poses in metres."""
        return query_scene(
            self.clip.images, K=self.clip.K, world_from_cam=self.clip.world_from_cam, metric=True
        )

    def views(self) -> tuple[View, ...]:
        """The frames as depth cameras with exact depth."""
        return tuple(
            View(f"{i:06d}.png", camera, depth=Depth.from_values(depth))
            for i, (camera, depth) in enumerate(zip(self.clip.cameras(), self.clip.depth))
        )


def fused_mesh(
    frames: Sequence[tuple[Camera, Callable[[], Tensor]]],
    voxel: float,
    *,
    truncation_voxels: float = 3.0,
    max_depth: float = float("inf"),
    max_bytes: int = 4 * 1024**3,
    min_triangles: int = 20,
) -> Mesh:
    """A scan's mesh from its depth maps, without loose vertices and crumbs; empty when nothing was measured.

    Args:
        frames: posed pinhole cameras and loaders of (H, W) z-depth, 0 where unknown.
        voxel: metres.
        truncation_voxels: half width of the band.
        max_depth: depth beyond does not count, metres.
        max_bytes: largest size of the volume.
        min_triangles: of a connected piece that is kept.
    """
    fuser = make_fuser(
        "auto", voxel, truncation_voxels, max_depth=max_depth, with_color=False, max_bytes=max_bytes
    )
    for camera, load in frames:
        assert camera.K is not None and camera.cam_from_world is not None
        fuser.integrate(load(), camera.K, camera.cam_from_world)
    return drop_small_components(fuser.extract(1.0), min_triangles)


def room_samples(
    label: str,
    budget: Budget,
    seed: int,
    make_truth: Callable[[Room], Truth],
    make_query: Callable[[Room], Query] | None = None,
) -> list[Sample]:
    """One sample per room; clip and truth are made when first used.

    Args:
        label: of the benchmark, so that twins of different benchmarks differ.
        budget: size.
        seed: of all rooms.
        make_truth: from a rendered room.
        make_query: None asks for a mesh from the posed pictures.
    """
    sizes = SIZES[budget]
    render = clip_cache()
    samples = []
    for i in range(sizes.rooms):
        plan = ClipPlan(derive_seed(seed, label, i) % 2**31, sizes.frames, sizes.size)
        name = f"room{i:02d}"

        def room(name: str = name, plan: ClipPlan = plan) -> Room:
            return Room(name, render(plan), sizes)

        def query(room: Callable[[], Room] = room) -> Query:
            return (make_query or mesh_query)(room())

        def truth(room: Callable[[], Room] = room) -> Truth:
            return make_truth(room())

        samples.append(Sample(name, name, query, truth))
    return samples


def mesh_query(room: Room) -> Query:
    """Posed pictures in, a mesh out."""
    return Query(room.name, "surface", ("mesh",), room.scene())
