"""Depth of video without flicker of the scale.

A network that sees single frames changes its mind about the scale from frame to frame. Between two frames the change
is the median of the log ratios of depth at pixels whose colour hardly changed and that lie on no edge of depth: things
that move, appear or change their depth are few, and the median does not see them. The log scale then follows the
network's own through a low-pass (exponential average over about 1 / (1 - MEMORY) frames), so that flicker goes and a
lasting change of the whole picture's depth comes through, late by about as many frames. After a cut nothing is carried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MEMORY = 0.9
COLOUR = 0.04
"""Largest change of a colour channel in [0, 1] of a pixel that counts."""
EDGE = 0.05
"""Largest log ratio of the depths of neighbours."""
SIDE = 256
"""Longer side of the maps that are compared."""
LEAST_SHARE, LEAST_PIXELS = 0.02, 16


@dataclass(frozen=True)
class SteadyFrame:
    """What the next frame is compared with.

    Attributes:
        image: (3, h, w) small.
        log_depth: (h, w) of the network's own depth, NaN where unknown.
        smooth: (h, w) bool, known and on no edge of depth.
        shift: what was added to the log depth of this frame.
    """

    image: Tensor
    log_depth: Tensor
    smooth: Tensor
    shift: float = 0.0


def look_at(image: Tensor, depth: Tensor, shift: float = 0.0) -> SteadyFrame:
    """A small copy of a frame: image (3, H, W) in [0, 1], depth (H, W) as the network gave it, 0 where unknown."""
    height, width = depth.shape
    factor = min(1.0, SIDE / max(height, width))
    h, w = max(1, round(height * factor)), max(1, round(width * factor))
    small = F.interpolate(image[None].float(), (h, w), mode="area")[0]
    rows = ((torch.arange(h) + 0.5) * height / h).long().clamp(max=height - 1)
    columns = ((torch.arange(w) + 0.5) * width / w).long().clamp(max=width - 1)
    value = depth[rows[:, None], columns].double()
    log = torch.where(value > 0, value, math.nan).log()
    step = torch.zeros_like(log)
    across, down = (log[:, 1:] - log[:, :-1]).abs(), (log[1:] - log[:-1]).abs()
    for part, change in (
        (step[:, 1:], across),
        (step[:, :-1], across),
        (step[1:], down),
        (step[:-1], down),
    ):
        part.copy_(torch.maximum(part, change.nan_to_num(math.inf)))
    return SteadyFrame(small, log, torch.isfinite(log) & (step < EDGE), shift)


def change_of_scale(before: SteadyFrame, now: SteadyFrame) -> float | None:
    """Log of the factor between the network's scales of two frames; None when too little stayed the same."""
    if before.image.shape != now.image.shape:
        return None
    same = (before.image - now.image).abs().amax(0) < COLOUR
    used = same & before.smooth & now.smooth
    count = int(used.sum())
    if count < max(LEAST_PIXELS, LEAST_SHARE * used.numel()):
        return None
    return float((now.log_depth[used] - before.log_depth[used]).median())


def steady_shift(before: SteadyFrame | None, now: SteadyFrame) -> float:
    """What to add to the log depth of a frame, so that its scale follows the earlier frames'; 0 for a new scene."""
    change = None if before is None else change_of_scale(before, now)
    return 0.0 if before is None or change is None else MEMORY * (before.shift - change)
