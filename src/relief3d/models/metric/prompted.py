"""The lean prompted network on pictures and prompts of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.data.prompt_candidates import PromptCandidates, prompt_candidates
from relief3d.data.prompt_sampling import scatter_prompt
from relief3d.models.metric.interface import (
    Focal,
    MetricPrediction,
    check_pictures,
    complete_focal,
)
from relief3d.models.metric.refiner import PromptRefiner, RefinerConfig

SIDE = 480
"""Pixels of the longer side at which the network works by default."""
LIMIT = 8000
"""Points that the network is told at most; more are thinned evenly."""
CLOSE = 0.1
"""Confidence is the probability, as the network sees it, that the relative error is smaller than this."""


class PromptedDepth(nn.Module):
    """Sparse metric depth and a picture in, dense metric depth out.

    Results are in the unit of the prompt. Points are followed closely, but never copied: a point that its
    surroundings and the picture speak against is corrected.

    Args:
        config: sizes of the network.
    """

    name = "prompt-refiner"

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.net = PromptRefiner(config)

    def predict_sparse(
        self,
        images: Tensor,
        prompts: Sequence[Tensor],
        focal: Focal | None = None,
        *,
        side: int = SIDE,
    ) -> MetricPrediction:
        """Depth of pictures.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            prompts: B maps (H, W) of sparse z-depth, 0 where unknown.
            focal: only passed on; the scale comes from the prompt.
            side: longer side at which the network works; pictures are never enlarged.

        Raises:
            InputError: pictures that cannot be used, prompts of another size, without points, or with negative or
                non-finite depths.
        """
        check_pictures(images)
        height, width = (int(n) for n in images.shape[-2:])
        if len(prompts) != len(images) or any(tuple(p.shape) != (height, width) for p in prompts):
            raise InputError(
                f"{len(images)} pictures of {width}x{height} need as many prompts of that size, got "
                f"{[tuple(p.shape) for p in prompts]}"
            )
        size = working_size(height, width, side)
        small = images.float()
        if size != (height, width):
            small = F.interpolate(small, size, mode="bilinear", align_corners=False, antialias=True)
        found = [prompt_candidates(shrink_prompt(p.cpu(), size), limit=LIMIT) for p in prompts]
        candidates = PromptCandidates.stack(found).to(images.device)
        refined = self.net(small, candidates)
        log_inverse = refined.log_inverse.float() + candidates.middle[:, None, None]
        log_error = refined.log_error.float()
        if size != (height, width):
            # Inverse depth is linear on planes.
            inverse = F.interpolate(
                log_inverse.exp()[:, None], (height, width), mode="bilinear", align_corners=False
            )
            log_error = F.interpolate(
                log_error[:, None], (height, width), mode="bilinear", align_corners=False
            )[:, 0]
            log_inverse = inverse[:, 0].clamp_min(1e-30).log()
        full = complete_focal(focal, images, warn=False)
        return MetricPrediction(
            depth=torch.exp(-log_inverse),
            focal=full.pixels,
            focal_sources=full.sources,
            canonical=torch.exp(log_inverse) * full.pixels[:, None, None] / width,
            confidence=1 - torch.exp(-CLOSE * torch.exp(-log_error)),
        )


def working_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Even height and width, the longer at most ``side``, close to the picture's aspect; 2 at least."""
    factor = min(1.0, side / max(height, width))
    return max(2, 2 * math.floor(height * factor / 2)), max(2, 2 * math.floor(width * factor / 2))


def shrink_prompt(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Sparse depth on another grid: every point goes to the pixel that holds it, and the nearest one wins.

    Args:
        depth: (H, W), 0 where unknown.
        size: (h, w).

    Raises:
        InputError: negative or non-finite depths.
    """
    if not bool(torch.isfinite(depth).all()) or bool((depth < 0).any()):
        raise InputError("a prompt holds negative or non-finite depths", remedy="mark unknown pixels with 0")
    return depth if size == tuple(depth.shape) else scatter_prompt(depth, size)
