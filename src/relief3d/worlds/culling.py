"""Which slots a bundle of rays can meet. Used by the eager CPU path only: the answer steers Python loops."""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.worlds import layout as col
from relief3d.worlds.layout import Kind
from relief3d.worlds.shapes import Vec
from relief3d.worlds.tracing import Frame, Groups

UNBOUNDED = frozenset({Kind.SHELL, Kind.GROUND})


def _groups(frame: Frame, wanted: Tensor, skip: frozenset[Kind]) -> Groups:
    """Slot indices by kind for one (S,) bool mask on the CPU."""
    out = []
    for kind, a, b in frame.layout.ranges:
        if kind in skip:
            continue
        index = torch.nonzero(wanted[a:b])[:, 0] + a
        if index.numel():
            out.append((kind, index.to(frame.columns.device)))
    return out


def tile_groups(
    frame: Frame, K: Tensor, world_from_cam: Tensor, tiles: list[tuple[int, int, int, int]]
) -> list[list[Groups]]:
    """Slots whose bounding sphere meets the viewing cone of each tile.

    Args:
        frame: primitives per image.
        K: (I, 3, 3).
        world_from_cam: (I, 4, 4).
        tiles: (y0, y1, x0, x1) pixel ranges.

    Returns:
        Groups for every image and tile.
    """
    box = torch.tensor(tiles, dtype=torch.float32)
    x = box[:, [2, 3, 2, 3]]
    y = box[:, [0, 0, 1, 1]]
    K, pose = K.cpu().float(), world_from_cam.cpu().float()
    columns = frame.columns.cpu().float()
    corner = torch.stack(
        [
            (x - K[:, None, None, 0, 2]) / K[:, None, None, 0, 0],
            (y - K[:, None, None, 1, 2]) / K[:, None, None, 1, 1],
            torch.ones(K.shape[0], *x.shape),
        ],
        -1,
    )
    corner = torch.nn.functional.normalize(corner, dim=-1)
    axis = torch.nn.functional.normalize(corner.sum(2), dim=-1)
    half = torch.acos((corner * axis[:, :, None]).sum(-1).amin(-1).clamp(-1, 1))
    axis = axis @ pose[:, :3, :3].transpose(1, 2)
    offset = columns[col.CX : col.CZ + 1].permute(1, 2, 0) - pose[:, None, :3, 3]
    length = offset.norm(dim=-1).clamp_min(1e-6)
    angle = torch.acos((axis[:, :, None] * offset[:, None]).sum(-1).div(length[:, None]).clamp(-1, 1))
    bound = columns[col.BOUND] + 1e-3
    reach = torch.asin((bound / length).clamp_max(1.0)) + 1e-3
    inside = bound >= length
    wanted = (angle < half[:, :, None] + reach[:, None]) | inside[:, None]
    wanted &= columns[col.ALIVE][:, None] > 0.5
    for kind, a, b in frame.layout.ranges:
        if kind in UNBOUNDED:
            wanted[:, :, a:b] = True
    return [[_groups(frame, mask, frozenset()) for mask in image] for image in wanted]


def shadow_groups(frame: Frame, points: Vec, missed: Tensor, light: Tensor, skip: frozenset[Kind]) -> Groups:
    """Slots that can lie between a patch of surface points and a light, for a single image.

    Args:
        frame: primitives of one image.
        points: (1, R) surface points.
        missed: (1, R) rays without surface.
        light: (1, LIGHT_COLUMNS).
        skip: kinds that cast no shadow.
    """
    xyz = torch.stack(points, -1)[0]
    used = ~missed[0]
    low = torch.where(used[:, None], xyz, torch.inf).amin(0)
    high = torch.where(used[:, None], xyz, -torch.inf).amax(0)
    if not bool(used.any()):
        return []
    middle, radius = 0.5 * (low + high), 0.5 * (high - low).norm()
    target, is_lamp = light[0, 1:4], light[0, 0] > 0.5
    soft = 1.8 * light[0, 7]  # jitter fills a cube, whose corner is sqrt(3) away
    centre = frame.columns[col.CX : col.CZ + 1, 0].T - middle
    bound = frame.columns[col.BOUND, 0]
    direction = torch.where(is_lamp, target - middle, target)
    span = direction.norm().clamp_min(1e-6)
    direction = direction / span
    # The patch and the light are joined by a capsule; the sun's jitter widens it with distance.
    along = (centre @ direction).clamp_min(0)
    along = torch.where(is_lamp, along.minimum(span), along)
    distance = (centre - along[:, None] * direction).norm(dim=-1)
    spread = torch.where(is_lamp, soft, soft * along / span)
    # Towards a lamp the bundle narrows.
    width = torch.where(is_lamp, radius * (1 - (along - bound).clamp_min(0) / span).clamp_min(0), radius)
    wanted = (distance <= bound + width + spread + 1e-3) & (frame.columns[col.ALIVE, 0] > 0.5)
    return _groups(frame, wanted.cpu(), skip)
