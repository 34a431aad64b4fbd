"""Diagnostics of scale alignment with sensor depth, without a reference mesh (VFM-Recon; specification 8.7)."""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.metrics.depth_errors import depth_errors, unit_hint
from relief3d.geometry.alignment import scale_median
from relief3d.geometry.projection import depth_to_world_points, project_world

AGREEMENT = (0.02, 0.05)


def scale_error(depth: Tensor, truth: Tensor, valid: Tensor) -> float:
    """|ln(median(truth / depth))| of one frame over pixels where both are known.

    Args:
        depth: (H, W) aligned z-depth, 0 or less where unknown.
        truth: (H, W) sensor z-depth.
        valid: (H, W) bool, where the truth counts.

    Raises:
        InputError: "no valid pixels".
    """
    both = _both(depth, truth, valid)
    return abs(float(scale_median(depth[both].double(), truth[both].double()).log()))


def frame_abs_rel(depth: Tensor, truth: Tensor, valid: Tensor, *, median_scaled: bool) -> float:
    """Mean |d - g| / g of one frame, as it is or after scaling by the median of g / d.

    Args:
        depth: (H, W) z-depth, 0 or less where unknown (those pixels do not count).
        truth: (H, W) sensor z-depth.
        valid: (H, W) bool, where the truth counts.
        median_scaled: for depth of unknown scale.

    Raises:
        InputError: "no valid pixels".
    """
    both = _both(depth, truth, valid)
    d, g = depth[both].double(), truth[both].double()
    if median_scaled:
        d = d * scale_median(d, g)
    return float(depth_errors(d, g, torch.ones_like(g, dtype=torch.bool)).abs_rel)


def _both(depth: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    if depth.shape != truth.shape:
        raise InputError(f"depth {tuple(depth.shape)} and truth {tuple(truth.shape)} must have one size")
    both = valid & (truth > 0) & torch.isfinite(depth) & (depth > 0)
    if not bool(both.any()):
        raise InputError("no valid pixels", remedy=unit_hint(depth[depth > 0], truth[valid & (truth > 0)]))
    return both


def next_view_agreement(
    depth: Tensor, K: Tensor, world_from_cam: Tensor, limits: tuple[float, ...] = AGREEMENT
) -> list[tuple[int, list[int]]]:
    """How often each frame's depth agrees with that of the next frame.

    A pixel counts when its point lies in front of the next camera, inside its picture, on a pixel (the nearest) of
    known depth; it agrees when |z - d_next| / d_next is at most the limit. Occluded pixels count as disagreeing.

    Args:
        depth: (N, H, W) z-depth, 0 where unknown.
        K: (N, 3, 3) pixels.
        world_from_cam: (N, 4, 4).
        limits: relative differences.

    Returns:
        For each of the N - 1 pairs the number of pixels that count, and of those that agree within each limit.
    """
    out = []
    height, width = depth.shape[-2:]
    for i in range(depth.shape[0] - 1):
        points = depth_to_world_points(depth[i].double(), K[i].double(), world_from_cam[i].double())
        points = points[depth[i] > 0]
        xy, z = project_world(points, K[i + 1].double(), torch.linalg.inv(world_from_cam[i + 1].double()))
        inside = (z > 1e-6) & (xy >= 0).all(-1) & (xy[:, 0] < width) & (xy[:, 1] < height)
        column, row = xy[inside].long().unbind(-1)
        other = depth[i + 1][row, column].double()
        known = other > 0
        difference = (z[inside][known] - other[known]).abs() / other[known]
        out.append((int(known.sum()), [int((difference <= limit).sum()) for limit in limits]))
    return out
