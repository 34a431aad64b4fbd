"""2D metrics of a mesh: its rendered depth against sensor depth (Atlas; specification 8.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.metrics.depth_errors import depth_errors

MAX_DEPTH = 10.0


def rendered_depth_metrics(
    rendered: Tensor, sensor: Tensor, max_depth: float = MAX_DEPTH
) -> dict[str, float] | None:
    """Metrics of one frame over the pixels with 0 < rendered and 0 < sensor < ``max_depth``.

    Args:
        rendered: (H, W) z-depth of the mesh in metres, 0 where no surface is hit.
        sensor: (H, W) z-depth in metres, 0 where unknown.
        max_depth: sensor depth from here on does not count, metres.

    Returns:
        ``abs_rel``, ``abs_diff`` (m), ``sq_rel`` (m), ``rmse`` (m), ``rmse_log``, ``d105``, ``d110``, ``d125``,
        ``d125_2``, ``d125_3`` (shares of max(d/g, g/d) strictly below 1.05, 1.10, 1.25, 1.25^2, 1.25^3) and ``comp``
        (share of all pixels with a rendered depth); None for a frame without a pixel to compare.

    Raises:
        InputError: the maps differ in size.
    """
    if rendered.shape != sensor.shape or rendered.ndim != 2:
        raise InputError(
            f"rendered depth {tuple(rendered.shape)} and sensor depth {tuple(sensor.shape)} must have one size"
        )
    mask = (rendered > 0) & (sensor > 0) & (sensor < max_depth)
    if not bool(mask.any()):
        return None
    errors = depth_errors(rendered, sensor, mask)
    return {
        "abs_rel": float(errors.abs_rel),
        "abs_diff": float(errors.mae),
        "sq_rel": float(errors.sq_rel),
        "rmse": float(errors.rmse),
        "rmse_log": float(errors.rmse_log),
        "d105": float(errors.delta_105),
        "d110": float(errors.inlier_110),
        "d125": float(errors.delta1),
        "d125_2": float(errors.delta2),
        "d125_3": float(errors.delta3),
        "comp": float((rendered > 0).to(torch.float64).mean()),
    }
