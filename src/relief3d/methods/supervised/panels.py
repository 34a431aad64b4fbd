"""Pictures that show what a network has learned of a scene."""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.core.contract import Batch, Prediction

SIDE = 140
"""Pictures of miniatures are enlarged to about this many pixels, pixel by pixel."""


def scene_panel(batch: Batch, found: Prediction, scene: int = 0) -> Tensor:
    """One row per view: picture, predicted depth, true depth, confidence, relative error. (3, H, W) uint8.

    The predicted depth of all views is brought to the true scale by one ratio of medians.
    """
    from relief3d.eval.panels import beside, depth_error_map, display_scale, to_bytes
    from relief3d.render.colormaps import confidence_colors, depth_colors, depth_limits

    assert batch.depth is not None
    assert batch.depth_valid is not None
    assert found.depth is not None
    assert found.depth_confidence is not None
    truth, valid = batch.depth[scene], batch.depth_valid[scene]
    depth = torch.nan_to_num(found.depth[scene], nan=0.0, posinf=0.0).clamp_min(0)
    depth = depth * display_scale(depth, truth, valid)
    confidence = found.depth_confidence[scene].float()
    # Every network has a range of its own; ranks within the scene are comparable.
    low, high = confidence.amin(), confidence.amax()
    shown = (confidence - low) / (high - low).clamp_min(1e-9)
    near, far = depth_limits(truth)
    times = max(1, SIDE // truth.shape[-2])
    rows = []
    for view in range(len(truth)):
        cells = [
            to_bytes(batch.images[scene, view]),
            to_bytes(depth_colors(depth[view], near, far)),
            to_bytes(depth_colors(truth[view], near, far)),
            to_bytes(confidence_colors(shown[view])),
            depth_error_map(depth[view], truth[view], valid[view]),
        ]
        rows.append(beside([_enlarged(cell, times) for cell in cells]))
    return torch.cat(rows, 1)


def _enlarged(picture: Tensor, times: int) -> Tensor:
    return picture.repeat_interleave(times, -2).repeat_interleave(times, -1)
