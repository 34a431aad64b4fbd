"""Where surfaces go between two views: optical flow, scene flow and visibility, exact for rigid motion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.worlds import layout as col
from relief3d.worlds.renderer import RenderedViews
from relief3d.worlds.shapes import Vec
from relief3d.worlds.tracing import nearest_hit, rotate_in
from relief3d.worlds.world import World


@dataclass(frozen=True)
class Flow:
    """Motion of every pixel of one view into another; leading dimensions ``*`` are those of the views.

    Attributes:
        optical: (*, H, W, 2) pixels, target position minus source position; 0 where nothing is seen.
        scene: (*, H, W, 3) metres in the world: how the surface point itself moves (0 for static things).
        depth: (*, H, W) z-depth of the moved point in the target camera.
        visible: (*, H, W) bool: the point is inside the target picture and nothing lies in front of it.
    """

    optical: Tensor
    scene: Tensor
    depth: Tensor
    visible: Tensor


def flow_between(world: World, source: RenderedViews, target: RenderedViews) -> Flow:
    """Exact flow from each source view to the target view of the same position.

    The surface point is carried along with its primitive to the target's time, projected, and checked by a
    ray from the target camera. Waits for no device.

    Args:
        world: the worlds that were rendered; views are spread evenly over them, world by world.
        source: views, flat (I, ...) or (W, V, ...).
        target: views of the same shape; pictures may have another size.
    """
    lead = source.depth.shape[:-2]
    height, width = source.depth.shape[-2:]
    views = lead.numel()
    world_of = torch.arange(world.count, device=world.device).repeat_interleave(views // world.count)
    K, pose = source.K.reshape(-1, 3, 3), source.world_from_cam.reshape(-1, 4, 4)
    depth = source.depth.reshape(views, -1)
    slot = source.slot.reshape(views, -1)
    ys = torch.arange(height, device=K.device, dtype=K.dtype) + 0.5
    xs = torch.arange(width, device=K.device, dtype=K.dtype) + 0.5
    x, y = xs.repeat(height)[None], ys.repeat_interleave(width)[None]
    local = torch.stack(
        [
            (x - K[:, 0, 2, None]) / K[:, 0, 0, None] * depth,
            (y - K[:, 1, 2, None]) / K[:, 1, 1, None] * depth,
            depth,
        ],
        -1,
    )
    points = local @ pose[:, :3, :3].transpose(1, 2) + pose[:, None, :3, 3]
    moved = _carry(world, world_of, points, slot, source.times.reshape(-1), target.times.reshape(-1))
    other_K, other = target.K.reshape(-1, 3, 3), target.world_from_cam.reshape(-1, 4, 4)
    ray = moved - other[:, None, :3, 3]
    cam = ray @ other[:, :3, :3]
    z = torch.where(cam[..., 2] > 1e-4, cam[..., 2], 1e-4)
    u = other_K[:, 0, 0, None] * cam[..., 0] / z + other_K[:, 0, 2, None]
    v = other_K[:, 1, 1, None] * cam[..., 1] / z + other_K[:, 1, 2, None]
    length = torch.linalg.vector_norm(ray, dim=-1).clamp_min(1e-6)
    frame = world.frame(world_of, target.times.reshape(-1).float())
    origin = Vec(*(other[:, i, 3, None] for i in range(3)))
    t, _ = nearest_hit(frame, frame.all_groups(), origin, Vec(*(ray / length[..., None]).unbind(-1)))
    valid = source.valid.reshape(views, -1)
    high, wide = target.depth.shape[-2:]
    inside = (cam[..., 2] > 1e-3) & (u >= 0) & (u < wide) & (v >= 0) & (v < high)
    visible = valid & inside & (t > length - 2e-3 - 1e-3 * length)
    zero = torch.zeros((), device=K.device)
    optical = torch.where(valid[..., None], torch.stack([u - x, v - y], -1), zero)
    scene = torch.where(valid[..., None], moved - points, zero)
    shape = (*lead, height, width)
    return Flow(
        optical.reshape(*shape, 2),
        scene.reshape(*shape, 3),
        torch.where(valid, cam[..., 2], zero).reshape(shape),
        visible.reshape(shape),
    )


def _carry(
    world: World, world_of: Tensor, points: Tensor, slot: Tensor, before: Tensor, after: Tensor
) -> Tensor:
    """Move points (I, R, 3) rigidly with their slots from one time to another."""
    count = len(world.layout)
    flat = torch.arange(slot.shape[0], device=slot.device)[:, None] * count + slot
    old = world.frame(world_of, before.float()).columns.reshape(col.SLOT_COLUMNS, -1)
    new = world.frame(world_of, after.float()).columns.reshape(col.SLOT_COLUMNS, -1)
    a = [old[i][flat] for i in range(col.R00 + 9)]
    b = [new[i][flat] for i in range(col.R00 + 9)]
    p = rotate_in(a, Vec(*(points[..., i] - a[i] for i in range(3))))
    r = col.R00
    out = [b[i] + b[r + 3 * i] * p.x + b[r + 3 * i + 1] * p.y + b[r + 3 * i + 2] * p.z for i in range(3)]
    # Slots that do not move keep the exact point instead of a round trip through their frame.
    static = (world.motion[world_of] == 0).all(-1).reshape(-1)[flat]
    return torch.where(static[..., None], points, torch.stack(out, -1))
