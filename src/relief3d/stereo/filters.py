"""Filters on one inverse-depth map, and normals from it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def remove_speckles(inverse: Tensor, step: float, least: int) -> Tensor:
    """Which pixels belong to a smooth region of at least ``least`` pixels.

    Args:
        inverse: (H, W) inverse depth, 0 where unknown.
        step: largest difference of inverse depth between adjacent pixels of one region.
        least: smallest region kept.

    Returns:
        (H, W) bool on the device of the input (the labelling itself runs on the CPU).
    """
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    values = inverse.detach().cpu()
    H, W = values.shape
    known = values > 0
    if least <= 1 or not bool(known.any()):
        return known.to(inverse.device)
    number = torch.arange(H * W).view(H, W)
    starts, ends = [], []
    for here, there in (
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
        ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
    ):
        linked = known[here] & known[there] & ((values[here] - values[there]).abs() <= step)
        starts.append(number[here][linked])
        ends.append(number[there][linked])
    i, j = torch.cat(starts).numpy(), torch.cat(ends).numpy()
    graph = coo_matrix((np.ones(len(i), dtype=np.bool_), (i, j)), shape=(H * W, H * W))
    _, label = connected_components(graph, directed=False)
    size = np.bincount(label)[label].reshape(H, W)
    return (known & torch.from_numpy(size >= least)).to(inverse.device)


def on_edge(inverse: Tensor, jump: float) -> Tensor:
    """Pixels at a depth discontinuity: inverse depth bends by more than ``jump``.

    The second difference is used because inverse depth is exactly linear on any plane, so slanted floors
    are no edges. Unknown pixels are ignored.

    Args:
        inverse: (H, W), 0 where unknown.
        jump: threshold on the absolute second difference along rows or columns.

    Returns:
        (H, W) bool.
    """
    known = inverse > 0
    out = torch.zeros_like(known)
    for values, valid, flags in ((inverse, known, out), (inverse.T, known.T, out.T)):
        if values.shape[1] < 3:
            continue
        bend = (values[:, :-2] - 2 * values[:, 1:-1] + values[:, 2:]).abs() > jump
        flags[:, 1:-1] |= bend & valid[:, :-2] & valid[:, 1:-1] & valid[:, 2:]
    return out & known


def fit_inverse_depth(inverse: Tensor, step: float, window: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Linear fit of inverse depth over a window around every pixel.

    Args:
        inverse: (H, W) inverse depth, 0 where unknown.
        step: pixels whose inverse depth differs from the centre by more than ``window * step`` belong to
            another surface and are left out.
        window: odd side of the fitting window.

    Returns:
        Derivatives along x and along y per pixel, the fitted value at the centre, and where the fit is
        possible (at least three pixels not in line); each (H, W), zeros (the value: the input) elsewhere.
    """
    half = window // 2
    H, W = inverse.shape
    padded = F.pad(inverse, (half,) * 4)
    sums = inverse.new_zeros(9, H, W)  # w, wx, wy, wxx, wxy, wyy, w dr, wx dr, wy dr
    for dy in range(-half, half + 1):
        for dx in range(-half, half + 1):
            other = padded[half + dy : half + dy + H, half + dx : half + dx + W]
            difference = other - inverse
            weight = ((other > 0) & (difference.abs() <= window * step)).to(inverse.dtype)
            difference = difference * weight
            for k, factor in enumerate((1, dx, dy, dx * dx, dx * dy, dy * dy)):
                if factor:
                    sums[k].add_(weight, alpha=factor)
            for k, factor in enumerate((1, dx, dy), start=6):
                if factor:
                    sums[k].add_(difference, alpha=factor)
    count = sums[0].clamp_min(1)
    mx, my, mr = sums[1] / count, sums[2] / count, sums[6] / count
    xx, xy, yy = sums[3] - count * mx * mx, sums[4] - count * mx * my, sums[5] - count * my * my
    xr, yr = sums[7] - count * mx * mr, sums[8] - count * my * mr
    det = xx * yy - xy * xy
    solvable = (inverse > 0) & (det > 0.5)
    scale = torch.where(solvable, 1.0 / det.clamp_min(0.5), torch.zeros_like(det))
    a, b = (yy * xr - xy * yr) * scale, (xx * yr - xy * xr) * scale
    value = torch.where(solvable, inverse + mr - a * mx - b * my, inverse)
    return a, b, value, solvable


def normals_from_inverse_depth(inverse: Tensor, K: Tensor, step: float, window: int = 5) -> Tensor:
    """Surface normals by a plane fit in inverse depth.

    On a plane ``n . X = d`` the inverse depth is ``n . K^-1 p / d``, linear in the pixel ``p``, so a linear fit
    ``q . p`` over a window gives ``n / d = K^T q`` without any approximation on planes.

    Args:
        inverse: (H, W) inverse depth, 0 where unknown.
        K: (3, 3) intrinsics.
        step: see :func:`fit_inverse_depth`.
        window: odd side of the fitting window.

    Returns:
        (H, W, 3) float32 unit normals in the camera frame, facing the camera; zeros where unknown.
    """
    a, b, value, solvable = fit_inverse_depth(inverse, step, window)
    H, W = inverse.shape
    x = torch.arange(W, device=inverse.device) + 0.5
    y = (torch.arange(H, device=inverse.device) + 0.5)[:, None]
    q = torch.stack([a, b, value - a * x - b * y], dim=-1)
    n = -(q @ K.to(q))
    n = n / n.norm(dim=-1, keepdim=True).clamp_min(1e-20)
    return torch.where(solvable[..., None], n, torch.zeros_like(n))
