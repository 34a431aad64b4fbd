"""Pictures that show what a network has learned of a scene."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relief3d.core.contract import Batch, Prediction

SIDE = 140
"""Pictures of miniatures are enlarged to about this many pixels, pixel by pixel."""
GAP, TITLE = 4, 16
"""Pixels between cells, and of the line of titles."""


def scene_panel(batch: Batch, found: Prediction, scene: int = 0) -> Tensor:
    """One row per view, under a line of titles: picture, predicted depth, true depth, confidence, relative error.
    (3, H, W) uint8.

    The predicted depth of all views is brought to the true scale by one ratio of medians; both depths have the colours
    of the true range. Colours of confidence span what the network said in this scene, which its title gives.
    """
    from relief3d.eval.panels import ERROR_LIMIT, beside, depth_error_map, display_scale, to_bytes
    from relief3d.render.colormaps import confidence_colors, depth_colors, depth_limits

    assert batch.depth is not None
    assert batch.depth_valid is not None
    assert found.depth is not None
    assert found.depth_confidence is not None
    truth, valid = batch.depth[scene], batch.depth_valid[scene]
    depth = torch.nan_to_num(found.depth[scene], nan=0.0, posinf=0.0).clamp_min(0)
    depth = depth * display_scale(depth, truth, valid)
    confidence = found.depth_confidence[scene].float()
    low, high = confidence.amin(), confidence.amax()  # every network has a range of its own
    shown = (confidence - low) / (high - low).clamp_min(1e-9)
    near, far = depth_limits(truth)
    times = max(1, SIDE // truth.shape[-2])
    titles = (
        "picture",
        "predicted depth",
        "true depth",
        f"confidence {float(low):.2f}-{float(high):.2f}",
        f"error 0-{100 * ERROR_LIMIT:.0f} %",
    )
    rows = [_titles(titles, truth.shape[-1] * times)]
    for view in range(len(truth)):
        cells = [
            to_bytes(batch.images[scene, view]),
            to_bytes(depth_colors(depth[view], near, far)),
            to_bytes(depth_colors(truth[view], near, far)),
            to_bytes(confidence_colors(shown[view])),
            depth_error_map(depth[view], truth[view], valid[view]),
        ]
        rows.append(beside([_enlarged(cell, times) for cell in cells], GAP))
    width = rows[0].shape[2]
    between = torch.full((3, GAP, width), 255, dtype=torch.uint8)
    return torch.cat([part for row in rows for part in (row, between)][:-1], 1)


def _titles(texts: Sequence[str], width: int) -> Tensor:
    """(3, TITLE, W) black on white, one text over each column."""
    import numpy as np
    from PIL import Image, ImageDraw

    line = Image.new("RGB", (len(texts) * (width + GAP) - GAP, TITLE), "white")
    draw = ImageDraw.Draw(line)
    for column, text in enumerate(texts):
        draw.text((column * (width + GAP) + 2, 2), text, fill="black")
    return torch.from_numpy(np.asarray(line).copy()).permute(2, 0, 1).contiguous()


def _enlarged(picture: Tensor, times: int) -> Tensor:
    return picture.repeat_interleave(times, -2).repeat_interleave(times, -1)
