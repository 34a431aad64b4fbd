"""Metric distances of a full panorama from a network for ordinary pictures (MetricAnything specification 6.7)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.panorama import (
    VIEWS,
    icosahedron_views,
    merge_distances,
    panorama_directions,
    split_panorama,
)
from relief3d.geometry.projection import pixel_rays
from relief3d.models.metric.interface import Focal, MetricModel

LARGEST_ASPECT_ERROR = 0.02


@dataclass(frozen=True)
class PanoramaOptions:
    """Options of :func:`panorama_distance`.

    Attributes:
        side: of the twelve square views, in pixels.
        height: of the result in pixels (it is twice as wide); None: of the panorama, at most twice ``side``.
        batch: views at a time.
    """

    side: int = 512
    height: int | None = None
    batch: int = 4


@dataclass(frozen=True)
class PanoramaResult:
    """What is known about a panorama.

    Attributes:
        distance: (H, 2H) lengths of rays in metres; 0 where there is no surface.
        valid: (H, 2H) bool.
        points: (H, 2H, 3) metres, x right, y down, z towards the middle of the picture; 0 where there is no surface.
        scales: (12,) by which the views' own distances are larger than the merged ones: far from 1 where the network
            contradicts itself.
    """

    distance: Tensor
    valid: Tensor
    points: Tensor
    scales: Tensor


@torch.no_grad()
def panorama_distance(
    model: MetricModel, image: Tensor, options: PanoramaOptions | None = None
) -> PanoramaResult:
    """Distances of an equirectangular panorama.

    The network sees twelve views of 90 degrees and is told their focal length; their distances are merged.

    Args:
        model: any that needs pictures only.
        image: (3, H, 2H) RGB in [0, 1].
        options: None for the defaults.

    Raises:
        InputError: a picture that is no full panorama, or nothing in it has a surface.
    """
    o = options or PanoramaOptions()
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise InputError(f"a panorama must be (3, H, 2H) floating-point, got {tuple(image.shape)}")
    height, width = (int(n) for n in image.shape[1:])
    if abs(width / height - 2) > 2 * LARGEST_ASPECT_ERROR:
        raise InputError(
            f"a full panorama is twice as wide as high, not {width} x {height}",
            remedy="give an equirectangular picture of the whole sphere",
        )
    if o.side < 2 or o.batch < 1 or (o.height is not None and o.height < 2):
        raise InputError("views and panorama need at least 2 pixels, and a batch at least one view")
    views = icosahedron_views(o.side)
    pictures = split_panorama(image, views, o.side)
    lengths = pixel_rays(views.K, o.side, o.side).norm(dim=-1).to(image)
    focal = float(views.K[0, 0])
    distances, masks = [], []
    for start in range(0, VIEWS, o.batch):
        part = pictures[start : start + o.batch]
        found = model.predict(part, Focal.given([focal] * len(part)))
        seen = found.depth > 0
        distances.append(found.depth * lengths)
        masks.append(seen if found.valid is None else seen & found.valid)
    rows = min(height, 2 * o.side) if o.height is None else o.height
    merged = merge_distances(torch.cat(distances), torch.cat(masks), views, (rows, 2 * rows))
    directions = panorama_directions(rows, 2 * rows).to(merged.distance)
    return PanoramaResult(
        merged.distance, merged.valid, directions * merged.distance[..., None], merged.scales
    )
