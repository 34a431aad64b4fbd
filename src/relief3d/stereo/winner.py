"""From a cost volume to depth: best plane, position between planes, score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Winner:
    """The best hypothesis of each pixel of one view.

    Attributes:
        inverse_depth: (H, W) float32, 0 where rejected (the best plane is the first or the last, or the
            costs say nothing).
        zncc: (H, W) float32 correlation of the winning plane in [0, 1].
        spacing: inverse depth between planes.
    """

    inverse_depth: Tensor
    zncc: Tensor
    spacing: float


def planes_at(index: Tensor, planes: Tensor) -> Tensor:
    """Inverse depth at fractional plane indices, interpolated in the actual list of planes.

    Args:
        index: (*) float, in [0, D - 1].
        planes: (D,) inverse depths, any monotonous spacing.
    """
    low = index.floor().clamp(0, len(planes) - 2).long()
    part = index - low
    return planes[low] * (1 - part) + planes[low + 1] * part


def parabola_offset(left: Tensor, centre: Tensor, right: Tensor) -> Tensor:
    """Minimum of the parabola through three costs, in steps from the centre, within [-0.5, 0.5]."""
    curvature = left - 2 * centre + right
    offset = 0.5 * (left - right) / curvature.clamp_min(1e-6)
    return torch.where(curvature > 1e-6, offset, torch.zeros_like(offset)).clamp_(-0.5, 0.5)


def pick_winner(aggregated: Tensor, raw: Tensor, planes: Tensor) -> Winner:
    """Lowest aggregated cost per pixel with a sub-plane fit.

    Args:
        aggregated: (H, W, D) costs after aggregation.
        raw: (H, W, D) matching costs, for the score.
        planes: (D,) inverse depths.
    """
    count = len(planes)
    index = aggregated.argmin(dim=-1, keepdim=True)
    inner = index.clamp(1, count - 2)
    left, centre, right = (aggregated.gather(-1, inner + k)[..., 0] for k in (-1, 0, 1))
    place = inner[..., 0] + parabola_offset(left, centre, right)
    zncc = 1.0 - raw.gather(-1, index)[..., 0]
    at_end = (index[..., 0] == 0) | (index[..., 0] == count - 1)
    rejected = at_end | (zncc <= 0)
    inverse = torch.where(rejected, torch.zeros_like(zncc), planes_at(place, planes))
    return Winner(inverse, zncc.clamp(0, 1), float((planes[0] - planes[-1]).abs() / (count - 1)))
