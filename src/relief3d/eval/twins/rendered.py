"""Clips of procedural worlds with exact truth, rendered when first used."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Scene, View
from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.geometry.transforms import interpolate_rigid
from relief3d.worlds import World, WorldConfig, apply_effects, make_sequences, make_world, phone_effects
from relief3d.worlds.config import Family
from relief3d.worlds.sequences import PathKind

_ANCHORS = 6


@dataclass(frozen=True)
class ClipPlan:
    """Which clip to render.

    Attributes:
        seed: fixes world, path and noise.
        frames: pictures along the path.
        size: (H, W) pixels.
        family: kind of world.
        path: how the camera moves; None draws orbit, walk or handheld.
        moving: number of moving objects.
        seconds: duration, for moving objects.
    """

    seed: int
    frames: int
    size: tuple[int, int]
    family: Family = "room"
    path: PathKind | None = None
    moving: int = 0
    seconds: float = 2.0


@dataclass(frozen=True)
class Clip:
    """A rendered clip.

    Attributes:
        images: (N, 3, H, W) uint8.
        depth: (N, H, W) float32 exact z-depth in metres, 0 for sky.
        normals: (N, H, W, 3) float32 unit, camera frame.
        K: (N, 3, 3) float64.
        world_from_cam: (N, 4, 4) float64, z up.
        world: for meshes and ray casts.
        times: (N,) seconds.
    """

    images: Tensor
    depth: Tensor
    normals: Tensor
    K: Tensor
    world_from_cam: Tensor
    world: World
    times: Tensor

    def cameras(self) -> list[Camera]:
        """One camera per frame with intrinsics and pose."""
        height, width = self.images.shape[-2:]
        return [Camera(width, height, k, pose) for k, pose in zip(self.K, self.world_from_cam)]


def render_clip(plan: ClipPlan) -> Clip:
    """Render one clip: the same plan gives the same bytes on the same kind of device.

    The path runs smoothly through a few checked views (real parallax and overlap between them, free space around).

    Raises:
        InputError: fewer than one frame.
    """
    if plan.frames < 1:
        raise InputError(f"a clip needs at least one frame, got {plan.frames}")
    config = WorldConfig(family=plan.family, texture_size=128, moving=plan.moving)
    world = make_world(plan.seed, config).compact()
    seed = derive_seed(plan.seed, "clip")
    chosen = make_sequences(world, views=_ANCHORS, seed=seed, size=plan.size, kind=plan.path)
    anchors = chosen.world_from_cam[0].double()
    where = torch.linspace(0, _ANCHORS - 1, plan.frames, dtype=torch.float64)
    first = where.floor().clamp(max=_ANCHORS - 2).long()
    poses = interpolate_rigid(anchors[first], anchors[first + 1], where - first)
    K = chosen.K[0, :1].double().expand(plan.frames, 3, 3).contiguous()
    times = torch.linspace(0, plan.seconds, plan.frames)
    generator = torch_generator(seed)
    views = world.render(
        (K.float()[None], poses.float()[None]), plan.size, times=times[None], generator=generator
    )
    images = apply_effects(views.radiance[0], phone_effects(), generator)
    return Clip(
        images=(images.clamp(0, 1) * 255).round().to(torch.uint8),
        depth=torch.where(views.valid[0], views.depth[0], torch.zeros_like(views.depth[0])),
        normals=views.normals[0],
        K=K,
        world_from_cam=poses,
        world=world,
        times=times,
    )


def clip_cache(keep: int = 2) -> Callable[[ClipPlan], Clip]:
    """A :func:`render_clip` that remembers the last few clips; make one per set of samples."""
    return functools.lru_cache(maxsize=keep)(render_clip)


def query_scene(
    images: Tensor,
    *,
    K: Tensor | None = None,
    world_from_cam: Tensor | None = None,
    names: Sequence[str] | None = None,
    metric: bool = False,
    ordered: bool = True,
) -> Scene:
    """A scene of pictures for a model, with only the cameras it is allowed to know.

    Args:
        images: (N, 3, H, W) uint8.
        K: (N, 3, 3) known intrinsics, or None.
        world_from_cam: (N, 4, 4) known poses, or None.
        names: of the views; "000000.png" and so on when None.
        metric: whether known poses are in metres.
        ordered: whether the pictures are consecutive.
    """
    height, width = images.shape[-2:]
    views = []
    for i, image in enumerate(images):
        camera = Camera(
            width,
            height,
            None if K is None else K[i].double(),
            None if world_from_cam is None else world_from_cam[i].double(),
        )
        name = f"{i:06d}.png" if names is None else names[i]
        views.append(View(name=name, camera=camera, image=functools.partial(_unit_range, image)))
    return Scene(tuple(views), metric=metric, ordered=ordered)


def _unit_range(image: Tensor) -> Tensor:
    """(3, H, W) float32 in [0, 1], as :class:`View` promises."""
    return image.float() / 255


def truth_scene(clip: Clip, *, names: Sequence[str] | None = None) -> Scene:
    """The clip as a scene with everything known, for readers and writers."""
    scene = query_scene(clip.images, K=clip.K, world_from_cam=clip.world_from_cam, names=names, metric=True)
    views = [v.replace(depth=Depth.from_values(d)) for v, d in zip(scene.views, clip.depth)]
    return scene.replace(views=tuple(views))
