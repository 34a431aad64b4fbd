"""Depth of a network at the size of the original picture.

Inverse depth is interpolated, because it is exactly linear on planes. Across a depth edge nothing is mixed: the pixel
goes to the nearer or the farther surface, whichever its colour and position speak for (joint bilateral upsampling,
Kopf et al. 2007, with a vote instead of a mean, since a mean would put pixels into the air between the surfaces).
``benchmarks/depth_upsampling.py`` measures it against plain interpolation.
"""

from __future__ import annotations

import torch
from torch import Tensor

ONE_SURFACE = 1.03
"""Largest ratio of the depths around a pixel that is still one surface."""
BEND = 0.01
"""Largest change, relative, of the step of inverse depth from pixel to pixel on a slanted surface."""
SPACE_SIGMA = 1.0
COLOUR_SIGMA = 0.08
BLOCK = 1 << 18


def upsample_depth(
    depth: Tensor,
    keep: Tensor,
    affine: Tensor,
    size: tuple[int, int],
    *,
    guide: Tensor | None = None,
    small_guide: Tensor | None = None,
) -> Tensor:
    """Depth at the pixels of the original picture.

    Args:
        depth: (H, W) z-depth of the network's picture, 0 where unknown.
        keep: (H, W) bool, pixels that may be used.
        affine: (3, 3) pixel coordinates of the network from those of the original; scaling and shift only.
        size: (h, w) of the original picture.
        guide: (3, h, w) original picture in [0, 1]; None takes the nearest surface at edges.
        small_guide: (3, H, W) the network's picture.

    Returns:
        (h, w) float32, 0 outside the network's picture and where the nearest of its pixels is not kept.
    """
    height, width = depth.shape
    keep = keep & (depth > 0)
    inverse = torch.where(keep, 1 / depth.clamp_min(1e-30), torch.zeros_like(depth)).float()
    x = (affine[0, 0] * (torch.arange(size[1], dtype=torch.float64) + 0.5) + affine[0, 2]).float()
    y = (affine[1, 1] * (torch.arange(size[0], dtype=torch.float64) + 0.5) + affine[1, 2]).float()
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None]
    nearest_row, nearest_col = y.floor().long().clamp(0, height - 1), x.floor().long().clamp(0, width - 1)
    known = inside & keep[nearest_row][:, nearest_col]
    plain, smooth = _bilinear(inverse, x, y)
    out = torch.where(known & smooth, plain, torch.zeros_like(plain))
    rows, cols = torch.nonzero(known & ~smooth, as_tuple=True)
    for at in range(0, len(rows), BLOCK):
        r, c = rows[at : at + BLOCK], cols[at : at + BLOCK]
        colour = None if guide is None else guide[:, r, c]
        out[r, c] = _vote(inverse, x[c], y[r], colour, small_guide)
    return torch.where(out > 0, 1 / out.clamp_min(1e-30), torch.zeros_like(out))


def _bilinear(inverse: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Interpolated inverse depth (h, w), and whether its four pixels are known and one surface."""
    height, width = inverse.shape
    u, v = (x - 0.5).clamp(0, width - 1), (y - 0.5).clamp(0, height - 1)
    x0, y0 = u.floor().long().clamp(0, max(width - 2, 0)), v.floor().long().clamp(0, max(height - 2, 0))
    x1, y1 = (x0 + 1).clamp(max=width - 1), (y0 + 1).clamp(max=height - 1)
    a, b = (u - x0)[None], (v - y0)[:, None]
    top, bottom = inverse[y0], inverse[y1]
    value = (top[:, x0] * (1 - a) + top[:, x1] * a) * (1 - b)
    value += (bottom[:, x0] * (1 - a) + bottom[:, x1] * a) * b
    return value, _one_surface(inverse)[y0][:, x0]


def _one_surface(inverse: Tensor) -> Tensor:
    """(H, W) bool: the pixel and its right, lower and lower right neighbours are known and on one surface.

    Two pixels are when their depths are nearly equal, or when inverse depth goes on as steeply on one side of them,
    as it does on any plane, however slanted.
    """
    across = _continues(inverse)
    down = _continues(inverse.T).T
    known = inverse > 0
    for axis in (0, 1):
        known = known & _next(known, axis)
    return known & across & _next(across, 0) & down & _next(down, 1)


def _continues(values: Tensor) -> Tensor:
    """(H, W) bool for every pixel and its right neighbour; the last column repeats the one before."""
    if values.shape[1] < 2:
        return torch.ones_like(values, dtype=torch.bool)
    step = values[:, 1:] - values[:, :-1]
    size = torch.maximum(values[:, 1:], values[:, :-1])
    good = step.abs() <= (ONE_SURFACE - 1) * size
    far = torch.full_like(step[:, :1], torch.inf)
    for other in (torch.cat([far, step[:, :-1]], 1), torch.cat([step[:, 1:], far], 1)):
        good |= (step - other).abs() <= BEND * size
    return torch.cat([good, good[:, -1:]], 1)


def _next(values: Tensor, axis: int) -> Tensor:
    """The values of the following row or column; the last one repeats."""
    length = values.shape[axis]
    return values.index_select(axis, torch.arange(1, length + 1).clamp(max=length - 1))


def _vote(inverse: Tensor, x: Tensor, y: Tensor, colour: Tensor | None, small: Tensor | None) -> Tensor:
    """Inverse depth (P,) of pixels at depth edges: the mean of the surface that wins the vote around them."""
    height, width = inverse.shape
    x0, y0 = (x - 0.5).floor().long(), (y - 0.5).floor().long()
    step = torch.arange(-1, 3)
    cols = (x0[:, None] + step.repeat(4)).clamp(0, width - 1)
    rows = (y0[:, None] + step.repeat_interleave(4)).clamp(0, height - 1)
    values = inverse[rows, cols]
    distance = (cols + 0.5 - x[:, None]).square() + (rows + 0.5 - y[:, None]).square()
    weight = torch.exp(-distance / (2 * SPACE_SIGMA**2)) * (values > 0)
    near_weight = weight
    if colour is not None and small is not None:
        difference = (small[:, rows, cols] - colour[..., None]).square().sum(0)
        weight = weight * (torch.exp(-difference / (2 * COLOUR_SIGMA**2)) + 1e-6)
    # The two surfaces are told apart by the four pixels around; a wider window may hold a third.
    core = torch.tensor([5, 6, 9, 10])
    inner = values[:, core]
    high = inner.amax(-1)
    low = torch.where(inner > 0, inner, torch.full_like(inner, torch.inf)).amin(-1)
    low = torch.where(torch.isfinite(low), low, high)
    middle = (low * high).sqrt()[:, None]
    near = (values > middle) & (values <= high[:, None] * ONE_SURFACE)
    far = (values <= middle) & (values >= low[:, None] / ONE_SURFACE)
    single = high <= low * ONE_SURFACE
    near = torch.where(single[:, None], values > 0, near)
    wins = ((weight * near).sum(-1) >= (weight * far).sum(-1)) | single
    chosen = torch.where(wins[:, None], near, far)
    # Position alone says where on its surface the pixel lies.
    share = near_weight * chosen
    return (share * values).sum(-1) / share.sum(-1).clamp_min(1e-30)
