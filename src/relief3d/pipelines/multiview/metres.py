"""Given metric depth says how long a unit of the scene is, where known poses have no unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from relief3d.core.contract import View
from relief3d.geometry.alignment import weighted_median
from relief3d.pipelines.multiview.known import Given
from relief3d.pipelines.multiview.pictures import Framing
from relief3d.pipelines.multiview.predict import Predicted

LEAST_PIXELS = 100
"""Pixels with both depths needed to trust their ratio."""
MOST_PER_VIEW = 20_000


def without_other_unit(given: Given, views: Sequence[View], *, metric: bool) -> Given:
    """Leaves depth in metres out of what is aligned to when known poses have no unit: the two contradict each other."""
    if metric or not bool(given.has_pose.any()) or not bool(given.has_depth.any()):
        return given
    found = views[int(given.has_depth.int().argmax())].load_depth()
    if found is None or not found.metric:
        return given
    return replace(given, has_depth=torch.zeros_like(given.has_depth))


def in_metres(
    predicted: Predicted, views: Sequence[View], framing: Framing
) -> tuple[Predicted, float | None]:
    """Scale an unscaled prediction by the given metric depth.

    The factor is the median of given depth / predicted depth over all pixels that have both, the exact minimiser of the
    absolute error, so outliers of either kind do not matter.

    Args:
        predicted: in its final frame.
        views: without lens distortion, with their given depth.
        framing: of the network's pictures.

    Returns:
        The prediction in metres and the factor; or as it was and None where no depth says it.
    """
    ratios = []
    for index, view in enumerate(views):
        found = view.load_depth()
        if found is None or not found.metric:
            continue
        values = torch.where(found.valid, found.values, torch.zeros_like(found.values))
        if tuple(values.shape) != (view.camera.height, view.camera.width):
            size = (view.camera.height, view.camera.width)
            values = torch.nn.functional.interpolate(values[None, None], size, mode="nearest-exact")[0, 0]
        true = framing.to_network(index, values)
        depth, trust = predicted.store.read(index)
        depth = depth * float(predicted.factor[index])
        good = (true > 0) & (depth > 0) & (trust > 0)
        ratio = true[good].double() / depth[good].double()
        ratios.append(ratio[:: -(-len(ratio) // MOST_PER_VIEW) or 1])
    samples = torch.cat(ratios) if ratios else torch.zeros(0, dtype=torch.float64)
    if len(samples) < LEAST_PIXELS:
        return predicted, None
    scale = float(weighted_median(samples, torch.ones_like(samples)))
    poses = predicted.world_from_cam.clone()
    poses[:, :3, 3] *= scale
    return replace(predicted, world_from_cam=poses, factor=predicted.factor * scale, metric=True), scale
