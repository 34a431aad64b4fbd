"""Ratios of submaps from the frames they share (VFM-Recon, Eq. 2-4; specification 2.5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.methods.vfm_recon.config import EdgeConfig
from relief3d.methods.vfm_recon.masks import BelievedDepth


@dataclass(frozen=True)
class Edge:
    """What two submaps say about each other's scale.

    Attributes:
        i, j: submaps, i < j.
        rho: ln median(D_i / D_j) over the believed pixels of shared frames; NaN without any.
        spread: robust deviation of the log ratio.
        pixels: common believed pixels (of the full maps; estimated where only some were looked at).
        share: of all pixels of the shared frames.
        frames: number of shared keyframes.
        valid: enough pixels that agree well enough.
    """

    i: int
    j: int
    rho: float
    spread: float
    pixels: int
    share: float
    frames: int
    valid: bool


def edge_ratio(first: BelievedDepth, second: BelievedDepth, config: EdgeConfig, overlap: int) -> Edge:
    """The edge between two submaps that share keyframes.

    Maps of different sizes are compared at the pixels of the first, with the nearest pixel of the second.

    Args:
        first: depth of submap i.
        second: depth of submap j.
        config: see :class:`EdgeConfig`.
        overlap: frames that neighbours usually share; an edge of fewer has a smaller share.
    """
    i, j = first.submap, second.submap
    shared = [t for t in i.frames if t in j.frames]
    height, width = first.maps.depth.shape[-2:]
    total = max(1, len(shared) * height * width)
    stride = max(1, math.ceil(math.sqrt(total / config.most_pixels)))
    limits = (_limits(first, config), _limits(second, config))
    values = [_log_ratio((first, i.position(t)), (second, j.position(t)), stride, limits) for t in shared]
    ratio = torch.cat(values) if values else torch.zeros(0)
    count = min(int(ratio.numel()) * stride * stride, total)
    if not count:
        return Edge(i.index, j.index, math.nan, math.nan, 0, 0.0, len(shared), False)
    rho = float(ratio.median())
    spread = 1.4826 * float((ratio - rho).abs().median())
    enough = count >= min(config.min_pixels, 0.1 * total)
    share = min(1.0, count / (overlap * height * width))
    valid = enough and spread <= config.max_spread
    return Edge(i.index, j.index, rho, spread, count, share, len(shared), valid)


def _limits(depth: BelievedDepth, config: EdgeConfig) -> tuple[float, float]:
    """Smallest and largest depth that counts; each map has its own, since their scales differ."""
    middle, _ = depth.quantiles()
    return config.near * middle, config.far * middle


def _log_ratio(
    a: tuple[BelievedDepth, int],
    b: tuple[BelievedDepth, int],
    stride: int,
    limits: tuple[tuple[float, float], tuple[float, float]],
) -> Tensor:
    """ln(D_a / D_b) at believed pixels of one shared frame."""
    height, width = a[0].maps.depth.shape[-2:]
    rows, columns = torch.meshgrid(
        torch.arange(stride // 2, height, stride), torch.arange(stride // 2, width, stride), indexing="ij"
    )
    rows, columns = rows.reshape(-1), columns.reshape(-1)
    values, keep = [], torch.ones(rows.shape, dtype=torch.bool)
    for (depth, place), (near, far) in zip((a, b), limits, strict=True):
        h, w = depth.maps.depth.shape[-2:]
        r, c = (rows * 2 + 1) * h // (2 * height), (columns * 2 + 1) * w // (2 * width)
        value = depth.maps.depth[place][r, c]
        keep &= depth.at(place, r, c) & (value >= near) & (value <= far)
        values.append(value)
    return (values[0][keep] / values[1][keep]).double().log()
