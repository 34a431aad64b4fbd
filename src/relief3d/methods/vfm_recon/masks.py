"""Which pixels of a foundation depth map are believed (the set Omega of VFM-Recon; specification 2.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relief3d.fusion.filters import depth_edges
from relief3d.methods.vfm_recon.config import MaskConfig
from relief3d.methods.vfm_recon.inputs import SubmapDepth
from relief3d.methods.vfm_recon.submaps import Submap

THINNED = 100_000
"""Percentiles of larger maps are taken from every other row and column."""


class BelievedDepth:
    """Depth of a submap and which of its pixels are believed; thresholds are found once per frame.

    Args:
        submap: which frames.
        maps: their depth.
        config: see :class:`MaskConfig`.
    """

    def __init__(self, submap: Submap, maps: SubmapDepth, config: MaskConfig) -> None:
        self.submap = submap
        self.maps = maps
        self._config = config
        self._floors: dict[int, float] = {}
        self._quantiles: tuple[float, float] | None = None

    def floor(self, place: int) -> float:
        """Lowest confidence that is believed in a frame: the percentile over its known pixels."""
        if place not in self._floors:
            self._floors[place] = self._percentile(place)
        return self._floors[place]

    def _percentile(self, place: int) -> float:
        if self.maps.confidence is None or self._config.confidence_percentile <= 0:
            return float("-inf")
        depth = self.maps.depth[place]
        step = 1 + (depth.numel() > THINNED)
        depth, confidence = depth[::step, ::step], self.maps.confidence[place][::step, ::step]
        known = confidence[torch.isfinite(depth) & (depth > 0)].float()
        if not known.numel():
            return float("-inf")
        rank = round(self._config.confidence_percentile / 100 * (known.numel() - 1)) + 1
        return float(known.kthvalue(rank).values)

    def quantiles(self) -> tuple[float, float]:
        """Median and 98th percentile of the known depth of the submap, from an even choice of pixels; NaN without."""
        if self._quantiles is None:
            n, height, width = self.maps.depth.shape
            step = max(1, round((n * height * width / THINNED) ** 0.5))
            known = self.maps.depth[:, ::step, ::step]
            known = known[torch.isfinite(known) & (known > 0)].float()
            if known.numel():
                far = known.kthvalue(max(1, round(0.98 * known.numel()))).values
                self._quantiles = float(known.median()), float(far)
            else:
                self._quantiles = math.nan, math.nan
        return self._quantiles

    def full(self, place: int, mask: Tensor | None = None) -> Tensor:
        """(H, W) bool: depth known, not at an edge, confidence not among the frame's lowest, inside the mask."""
        depth = self.maps.depth[place]
        keep = torch.isfinite(depth) & (depth > 0)
        if self._config.edge_ratio > 0:
            keep &= ~depth_edges(torch.where(keep, depth, 0.0), self._config.edge_ratio)
        if self.maps.confidence is not None:
            keep &= self.maps.confidence[place] >= self.floor(place)
        return keep if mask is None else keep & mask

    def at(self, place: int, row: Tensor, column: Tensor) -> Tensor:
        """(N,) bool: what :meth:`full` says at some pixels (N,) int64, at the cost of these only."""
        good = _edge_free_at(self.maps.depth[place], row, column, self._config.edge_ratio)
        if self.maps.confidence is not None:
            good &= self.maps.confidence[place][row, column] >= self.floor(place)
        return good


def _edge_free_at(depth: Tensor, row: Tensor, column: Tensor, ratio: float) -> Tensor:
    height, width = depth.shape
    centre = depth[row, column]
    known = torch.isfinite(centre) & (centre > 0)
    if ratio <= 0:
        return known
    largest, nearest = torch.zeros_like(centre), torch.zeros_like(centre)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            r, c = row + down, column + right
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            value = depth[r.clamp(0, height - 1), c.clamp(0, width - 1)]
            good = inside & torch.isfinite(value) & (value > 0)
            value = torch.where(good, value, torch.zeros_like(value))
            largest = torch.maximum(largest, value)
            nearest = torch.maximum(nearest, torch.where(good, 1 / value.clamp_min(1e-30), value))
    return known & (largest * nearest <= ratio)
