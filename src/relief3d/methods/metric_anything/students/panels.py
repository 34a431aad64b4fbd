"""Pictures that show what a student has learned."""

from __future__ import annotations

import torch
from torch import Tensor

GAP = 4


def student_panel(image: Tensor, found: Tensor, truth: Tensor) -> Tensor:
    """Picture, result, truth in one range of metres, and error; (3, H, W) uint8.

    Args:
        image: (3, H, W) in [0, 1].
        found: (H, W) metres.
        truth: (H, W) metres, 0 for sky.
    """
    from relief3d.eval.panels import beside, depth_error_map, to_bytes
    from relief3d.render.colormaps import depth_colors, depth_limits

    near, far = depth_limits(truth)
    cells = [
        to_bytes(image),
        to_bytes(depth_colors(found, near, far)),
        to_bytes(depth_colors(truth, near, far)),
        depth_error_map(found, truth, truth > 0),
    ]
    return torch.as_tensor(beside(cells, GAP))
