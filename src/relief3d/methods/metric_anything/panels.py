"""Pictures that show what a prompted network has learned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GAP = 4


def prompted_panel(image: Tensor, prompt: Tensor, found: Tensor, truth: Tensor, confidence: Tensor) -> Tensor:
    """Picture, prompt (points enlarged), result, truth, error, confidence; (3, H, W) uint8.

    Args:
        image: (3, H, W) in [0, 1].
        prompt: (H, W) metres, 0 where unknown.
        found: (H, W) metres.
        truth: (H, W) metres, 0 where unknown.
        confidence: (H, W) in [0, 1].
    """
    from relief3d.eval.panels import beside, depth_error_map, to_bytes
    from relief3d.render.colormaps import confidence_colors, depth_colors, depth_limits

    near, far = depth_limits(truth)
    points = F.max_pool2d(prompt[None, None], 3, stride=1, padding=1)[0, 0]
    cells = [
        to_bytes(image),
        to_bytes(depth_colors(points, near, far)),
        to_bytes(depth_colors(found, near, far)),
        to_bytes(depth_colors(truth, near, far)),
        depth_error_map(found, truth, truth > 0),
        to_bytes(confidence_colors(confidence)),
    ]
    return torch.as_tensor(beside(cells, GAP))
