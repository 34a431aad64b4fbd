"""Pixels of a depth map that must not be fused: edges, doubtful values, sky, far ranges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Depth
from relief3d.core.errors import InputError


@dataclass(frozen=True)
class FilterConfig:
    """What :func:`filter_depth` removes.

    Attributes:
        edge_ratio: pixels where the largest over the smallest depth in 3x3 exceeds this; 0 keeps edges.
        confidence_percentile: this lowest share of the confident pixels of a map, in percent; 0 keeps all.
        min_confidence: pixels below this confidence.
        max_depth: pixels beyond this depth in world units; 0 means no limit.
        depth_percentile: pixels beyond this percentile of the map's depths; 100 means no limit.
        min_component: connected regions with fewer pixels; 0 keeps all.
    """

    edge_ratio: float = 1.1
    confidence_percentile: float = 0.0
    min_confidence: float = 0.0
    max_depth: float = 0.0
    depth_percentile: float = 100.0
    min_component: int = 0


def depth_edges(depth: Tensor, ratio: float = 1.1) -> Tensor:
    """(H, W) bool, True where the depths in the 3x3 neighbourhood differ by more than ``ratio``.

    Unknown neighbours (0) do not count.
    """
    inverse = torch.where(depth > 0, 1.0 / depth.clamp_min(1e-30), torch.zeros_like(depth))
    return (depth > 0) & (_largest_around(depth) * _largest_around(inverse) > ratio)


def _largest_around(values: Tensor) -> Tensor:
    """Maximum over 3x3 by shifted copies, first across and then down: six times faster than max pooling on a CPU."""
    across = values.clone()
    torch.maximum(across[:, 1:], values[:, :-1], out=across[:, 1:])
    torch.maximum(across[:, :-1], values[:, 1:], out=across[:, :-1])
    out = across.clone()
    torch.maximum(out[1:], across[:-1], out=out[1:])
    torch.maximum(out[:-1], across[1:], out=out[:-1])
    return out


def filter_depth(
    depth: Depth, config: FilterConfig, *, mask: Tensor | None = None, sky: Tensor | None = None
) -> Depth:
    """The depth map without pixels that would harm the surface.

    Args:
        depth: input.
        config: what to remove.
        mask: (H, W) bool, True where pixels may be used, or None.
        sky: (H, W) bool, True on the sky, or None.

    Raises:
        InputError: when a mask does not have the size of the map.
    """
    for name, given in (("mask", mask), ("sky mask", sky)):
        if given is not None and given.shape != depth.values.shape:
            raise InputError(f"{name} {tuple(given.shape)} must have the size of the depth map")
    valid = depth.valid & torch.isfinite(depth.values) & (depth.values > 0)
    if mask is not None:
        valid &= mask
    if sky is not None:
        valid &= ~sky
    values = torch.where(valid, depth.values, torch.zeros_like(depth.values))
    keep = valid.clone()
    if config.max_depth > 0:
        keep &= values <= config.max_depth
    if config.depth_percentile < 100 and bool(valid.any()):
        keep &= values <= _percentile(values[valid], config.depth_percentile)
    if config.edge_ratio > 0:
        keep &= ~depth_edges(values, config.edge_ratio)
    if depth.confidence is not None:
        keep &= depth.confidence >= config.min_confidence
        if config.confidence_percentile > 0 and bool(valid.any()):
            limit = _percentile(depth.confidence[valid], config.confidence_percentile)
            keep &= depth.confidence >= limit
    if config.min_component > 0:
        keep = _large_regions(keep, config.min_component)
    return Depth(torch.where(keep, values, torch.zeros_like(values)), keep, depth.metric, depth.confidence)


def _percentile(values: Tensor, percent: float) -> Tensor:
    """Percentile of any number of values (torch.quantile stops at 16 million)."""
    rank = round(percent / 100 * (values.numel() - 1)) + 1
    return torch.kthvalue(values.float().reshape(-1), max(1, min(values.numel(), rank))).values


def _large_regions(keep: Tensor, least: int) -> Tensor:
    from scipy import ndimage

    label, count = ndimage.label(keep.cpu().numpy())
    sizes = torch.bincount(torch.from_numpy(label).reshape(-1).long(), minlength=count + 1)
    sizes[0] = 0
    return (sizes >= least).to(keep.device)[torch.from_numpy(label).long().to(keep.device)]
