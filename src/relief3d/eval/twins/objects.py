"""Pictures of procedural objects with exact shape, mask and pose: the twin of the single-object benchmarks.

Each object is one closed primitive of a world of the family "objects": its mesh is exact (chord error below half a
millimetre) and closed. The object frame is the primitive's own: box centred at the origin, longest side 1
(specification objects.md 1.2).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, numpy_generator, torch_generator
from relief3d.eval.metrics.object_pose import silhouette
from relief3d.geometry.projection import intrinsics_from_fov
from relief3d.geometry.transforms import invert_rigid, look_at, make_rigid, make_similarity
from relief3d.worlds import World, WorldConfig, make_world
from relief3d.worlds import layout as col

_TRIES = 16
_SMALLEST_MASK = 0.01
_SMALLEST_SEEN = 0.5
_EDGE_LENGTH = 0.02
_TEXTURES = {"wood": 2, "stripes": 2, "stone": 2, "plaster": 1, "paint": 1, "poster": 2}


@dataclass(frozen=True)
class ObjectPlan:
    """Which picture to make.

    Attributes:
        seed: fixes world and camera.
        size: (H, W) pixels.
        objects: to be asked for in one picture; one makes a close-up, more a view of the table.
        isolated: the object alone on white.
    """

    seed: int
    size: tuple[int, int] = (120, 160)
    objects: int = 1
    isolated: bool = False


@dataclass(frozen=True)
class PosedObject:
    """One object of a picture.

    Attributes:
        mesh: closed, in the object frame.
        cam_from_object: (4, 4) float64 similarity, column vectors, OpenCV camera, metres.
        mask: (H, W) bool, where the object is seen.
        silhouette: (H, W) bool, where it would be seen with nothing in front of it.
    """

    mesh: Mesh
    cam_from_object: Tensor
    mask: Tensor
    silhouette: Tensor


@dataclass(frozen=True)
class ObjectPicture:
    """A picture with its objects.

    Attributes:
        image: (3, H, W) uint8.
        K: (3, 3) float64.
        depth: (H, W) float32 z-depth in metres, 0 where nothing is seen.
        objects: the largest first.
    """

    image: Tensor
    K: Tensor
    depth: Tensor
    objects: tuple[PosedObject, ...]


def render_objects(plan: ObjectPlan) -> ObjectPicture:
    """Make one picture: the same plan gives the same bytes on the same kind of device.

    Raises:
        InputError: no object asked for, or no camera found that sees enough of them.
    """
    if plan.objects < 1:
        raise InputError(f"a picture of objects needs at least one, got {plan.objects}")
    world = _make(plan.seed)
    rng = numpy_generator(derive_seed(plan.seed, "object camera"))
    slots = _object_slots(world)
    for turn in range(_TRIES):
        # Crowded tables may hide every object from all cameras; then the neighbours are cleared away.
        alone = plan.isolated or (plan.objects == 1 and turn >= _TRIES // 2)
        target = slots[int(rng.integers(len(slots)))]
        shown = _only(world, [target], keep_room=not plan.isolated) if alone else world
        close = plan.objects == 1
        centre = world.slots[0, target, :3] if close else world.focus[0, :3]
        reach = float(world.slots[0, target, col.BOUND]) if close else float(world.focus[0, 3])
        fov = math.radians(rng.uniform(35, 60))
        distance = reach / math.tan(fov / 2) * (rng.uniform(1.6, 2.6) if close else 1.0)
        pitch, yaw = math.radians(rng.uniform(15, 45)), rng.uniform(0, math.tau)
        away = (math.cos(pitch) * math.cos(yaw), math.cos(pitch) * math.sin(yaw), math.sin(pitch))
        eye = centre.double() + distance * torch.tensor(away, dtype=torch.float64)
        pose = look_at(eye, centre.double(), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
        K = intrinsics_from_fov(plan.size[1], plan.size[0], fov)
        picture = _picture(shown, K, pose, plan)
        if len(picture.objects) >= plan.objects:
            return dataclasses.replace(picture, objects=picture.objects[: plan.objects])
    raise InputError(f"world {plan.seed} shows no {plan.objects} objects to any camera tried")


def _picture(world: World, K: Tensor, pose: Tensor, plan: ObjectPlan) -> ObjectPicture:
    generator = torch_generator(derive_seed(plan.seed, "object light"))
    views = world.render((K.float()[None, None], pose.float()[None, None]), plan.size, generator=generator)[0]
    found = []
    for slot in _object_slots(world):
        mask = views.instance[0] == world.instance[0, slot]
        if float(mask.double().mean()) < _SMALLEST_MASK:
            continue
        mesh, world_from_object = object_mesh(world, slot)
        cam_from_object = invert_rigid(pose) @ world_from_object
        whole = silhouette(mesh, cam_from_object, K, plan.size)
        # Objects cut by the border have no whole silhouette.
        cut = whole[[0, -1]].any() | whole[:, [0, -1]].any()
        if not bool(cut) and int(mask.sum()) >= _SMALLEST_SEEN * int(whole.sum()):
            found.append(PosedObject(mesh, cam_from_object, mask, whole))
    found.sort(key=lambda item: -int(item.mask.sum()))
    image = views.image[0]
    if plan.isolated and found:
        image = torch.where(found[0].mask, image, torch.ones_like(image))
    depth = torch.where(views.valid[0], views.depth[0], torch.zeros_like(views.depth[0]))
    return ObjectPicture((image.clamp(0, 1) * 255).round().to(torch.uint8), K, depth, tuple(found))


def _only(world: World, slots: list[int], *, keep_room: bool = False) -> World:
    """The world with only some of its objects, with or without everything that is no object."""
    alive = torch.tensor([keep_room and name != "object" for name in world.names[0]])
    alive[slots] = True
    table = world.slots.clone()
    table[0, :, col.ALIVE] *= alive.to(table.dtype)
    return dataclasses.replace(world, slots=table).compact()


def object_mesh(world: World, slot: int) -> tuple[Mesh, Tensor]:
    """Mesh of one primitive in the object frame, and its world_from_object (4, 4) float64 similarity."""
    row = world.slots[0, slot].double()
    rotation = row[col.R00 : col.R00 + 9].reshape(3, 3)
    world_from_own = make_rigid(rotation, row[:3])
    surface = _only(world, [slot]).to_mesh(_EDGE_LENGTH)
    own = (surface.vertices.double() - row[:3]) @ rotation
    low, high = own.amin(0), own.amax(0)
    side, middle = (high - low).amax(), 0.5 * (low + high)
    own_from_object = make_similarity(side, torch.eye(3, dtype=torch.float64), middle)
    return Mesh(((own - middle) / side).float(), surface.faces), world_from_own @ own_from_object


def object_meshes(seed: int, count: int) -> list[Mesh]:
    """Meshes of some objects of a world, each in its object frame, without any picture.

    Raises:
        InputError: the world has fewer objects.
    """
    world = _make(seed)
    slots = _object_slots(world)
    if len(slots) < count:
        raise InputError(f"world {seed} has {len(slots)} objects, {count} were asked for")
    chosen = numpy_generator(derive_seed(seed, "object meshes")).permutation(slots)[:count]
    return [object_mesh(world, int(slot))[0] for slot in chosen]


def _make(seed: int) -> World:
    config = WorldConfig(family="objects", texture_size=64, textures=dict(_TEXTURES))
    return make_world(seed, config).compact()


def _object_slots(world: World) -> list[int]:
    return [i for i, name in enumerate(world.names[0]) if name == "object"]


def object_cache(keep: int = 4) -> Callable[[ObjectPlan], ObjectPicture]:
    """A :func:`render_objects` that remembers the last few pictures; make one per set of samples."""
    return functools.lru_cache(maxsize=keep)(render_objects)
