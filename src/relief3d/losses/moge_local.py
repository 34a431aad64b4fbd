"""MoGe's loss of local patches: balls around anchor points, each aligned by its own scale and shift.

Source: MoGe and MoGe-2 (Wang et al. 2025); MetricAnything specification 7.8. Ours: every picture gets exactly its
number of patches (the published code spreads them over the batch), so that the loss of a picture does not depend on the
others, and random numbers come from a generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.affine_alignment import align_points_scale_xyz_shift
from relief3d.geometry.masked_resize import masked_nearest_resize
from relief3d.losses.angles import smooth
from relief3d.losses.moge import no_autocast, used_vectors

LEAST_POINTS = 32
SCALE_RANGE = (0.1, 10.0)
"""Local scale over global scale, outside of which a patch is left out."""
TESTS, TESTS_AT_ONCE = 64, 8
NEAREST_SHARE = 0.1
"""The weight 1 / z no longer grows below this share of the picture's harmonic mean depth."""


@dataclass(frozen=True)
class PatchOptions:
    """One level of patches.

    Attributes:
        level: a patch's radius is the half diagonal of the picture divided by this.
        resolution: side of the reduction on which a patch is aligned; the cost grows with its fourth power.
        patches: number per picture.
        trunc: cost of a coordinate, in units of the radius, at which the alignment stops caring.
        beta: errors relative to depth below which they are squared.
    """

    level: int
    resolution: int
    patches: int
    trunc: float = 1.0
    beta: float = 0.0


LEVELS = (PatchOptions(4, 24, 16), PatchOptions(16, 12, 256), PatchOptions(64, 6, 4096))
"""The published ones."""


def relative_focal(K: Tensor, height: int, width: int) -> Tensor:
    """Focal length (*,) in units of the diagonal of the picture, from K (*, 3, 3) in pixels."""
    fx, fy = K[..., 0, 0] / width, K[..., 1, 1] / height
    return (fx.square().reciprocal() + fy.square().reciprocal()).rsqrt()


def local_loss(
    points: Tensor,
    target: Tensor,
    valid: Tensor,
    focal: Tensor,
    global_scale: Tensor | None,
    options: PatchOptions,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(B,) distance within patches after the best scale and shift of each, weighted by 1 / z.

    Args:
        points: (B, H, W, 3) predicted.
        target: (B, H, W, 3) true; anything outside of ``valid``.
        valid: (B, H, W) bool.
        focal: (B,) see :func:`relative_focal`.
        global_scale: (B,) of :func:`global_loss`, to leave out patches whose scale is far from it; None keeps all with
            a positive scale.
        options: of the level.
        generator: on the device of the points; chooses the anchors.

    Raises:
        InputError: shapes do not fit.
    """
    if len(focal) != len(points) or (global_scale is not None and len(global_scale) != len(points)):
        raise InputError("there must be one focal length and one scale per picture")
    with no_autocast(points):
        points, target = used_vectors(points, target, valid)
        losses = []
        for b in range(len(points)):
            scale = None if global_scale is None else global_scale[b]
            losses.append(_one(points[b], target[b], valid[b], focal[b], scale, options, generator))
        return torch.stack(losses)


def _one(
    points: Tensor,
    target: Tensor,
    valid: Tensor,
    focal: Tensor,
    global_scale: Tensor | None,
    options: PatchOptions,
    generator: torch.Generator | None,
) -> Tensor:
    height, width = valid.shape
    none = 0.0 * points.sum()
    if not bool(valid.any()):
        return none
    radius = math.ceil(0.5 / options.level * math.hypot(height, width))
    ball = 0.5 / options.level / focal * target[..., 2]
    rows, cols = _anchors(target, valid, ball, radius, options.patches, generator)
    inside, at = _patches(target, valid, ball, rows, cols, radius)
    enough = inside.flatten(1).sum(1) >= LEAST_POINTS
    if not bool(enough.any()):
        return none
    inside, at = inside[enough], tuple(x[enough] for x in at)
    size = ball[rows, cols][enough]
    found, truth = points[at], target[at]
    side = (options.resolution, options.resolution)
    both, cells = masked_nearest_resize(torch.cat([found, truth], -1), inside, side)
    weight = cells.flatten(1) / (size[:, None] + 1e-7)
    scale, shift = align_points_scale_xyz_shift(
        both[..., :3].flatten(1, 2), both[..., 3:].flatten(1, 2), weight, options.trunc
    )
    good = scale > 0
    if global_scale is not None:
        ratio = scale / torch.where(global_scale > 0, global_scale, 1.0)
        good = (ratio > SCALE_RANGE[0]) & (ratio < SCALE_RANGE[1]) & (global_scale > 0)
    scale, shift = torch.where(good, scale, 0.0), torch.where(good[:, None], shift, 0.0)
    used = inside & good[:, None, None]
    mean = 1 / (1 / target[..., 2][valid].clamp_min(1e-7)).mean()
    weight = 1 / truth[..., 2].clamp_min(NEAREST_SHARE * mean)
    aligned = scale[:, None, None, None] * found + shift[:, None, None, :]
    difference = torch.where(used[..., None], aligned - truth, 0.0).abs() * weight[..., None]
    return smooth(difference, options.beta).flatten(1).mean(1).sum() / options.patches


@torch.no_grad()
def _anchors(
    target: Tensor, valid: Tensor, ball: Tensor, radius: int, count: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Rows and columns (count,) of anchors, drawn with replacement.

    The probability of a pixel is one over the number of its neighbours within the ball, among random pixels of the
    window, so that thin structures are met as often as large surfaces.
    """
    height, width = valid.shape
    device = valid.device
    rows = torch.arange(height, device=device)[:, None, None]
    cols = torch.arange(width, device=device)[None, :, None]
    neighbours = torch.zeros(height, width, device=device)
    for _ in range(0, TESTS, TESTS_AT_ONCE):
        shape = (2, height, width, TESTS_AT_ONCE)
        dy, dx = torch.randint(-radius, radius + 1, shape, device=device, generator=generator)
        y, x = rows + dy, cols + dx
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
        near = (target[y, x] - target[:, :, None]).norm(dim=-1) <= ball[..., None]
        neighbours += (inside & valid[y, x] & near).sum(-1)
    weight = torch.where(valid, 1 / neighbours.clamp_min(1), 0.0)
    chosen = torch.multinomial(weight.flatten(), count, replacement=True, generator=generator)
    return chosen // width, chosen % width


def _patches(
    target: Tensor, valid: Tensor, ball: Tensor, rows: Tensor, cols: Tensor, radius: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Which pixels (n, side, side) of the windows are in the ball, and their rows and columns."""
    height, width = valid.shape
    line = torch.arange(-radius, radius + 1, device=valid.device)
    y = (rows[:, None, None] + line[:, None]).expand(-1, -1, len(line))
    x = (cols[:, None, None] + line).expand(-1, len(line), -1)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    away = (target[y, x] - target[rows, cols][:, None, None]).norm(dim=-1)
    inside &= valid[y, x] & (away <= ball[rows, cols][:, None, None])
    return inside, (y, x)
