"""Errors of metric prompts, for robust training and for tests: seeded, on maps (H, W) with 0 where nothing is known.

Errors of triangulated points are made in inverse depth, where they are: a pixel error s at focal length f and baseline
b moves 1/z by s / (f b), which moves z by z^2 s / (f b).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.errors import InputError

_LEAST = 1e-3
"""Metres that no error goes below."""


@dataclass(frozen=True)
class PromptNoise:
    """Errors of one prompt; zeros leave it as it is.

    Attributes:
        relative: standard deviation of ln z.
        triangulation: standard deviation of 1/z in 1/m: pixel error over focal length and baseline.
        outliers: share of points whose depth has nothing to do with their place.
        row_shift, col_shift: pixels by which all points are displaced (misregistration of two sensors).
        near, far: metres outside of which points are lost.
        dropout: share of points lost at random.
    """

    relative: float = 0.0
    triangulation: float = 0.0
    outliers: float = 0.0
    row_shift: int = 0
    col_shift: int = 0
    near: float = 0.0
    far: float = math.inf
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if min(self.relative, self.triangulation, self.near) < 0 or not self.near < self.far:
            raise InputError("noise of a prompt cannot be negative, and its range must not be empty")
        if not (0 <= self.outliers <= 1 and 0 <= self.dropout <= 1):
            raise InputError(
                f"shares of outliers ({self.outliers}) and lost points ({self.dropout}) must lie in [0, 1]"
            )

    @property
    def clean(self) -> bool:
        """Nothing changes."""
        return self == PromptNoise()


CLEAN = PromptNoise()


@dataclass(frozen=True)
class NoiseRanges:
    """What the noise of training prompts is drawn from (our choice; the paper adds none, its data bring it).

    Attributes:
        clean: share of prompts without any error, so that good prompts are honoured (small-model study: 30 to 40 %).
        relative: largest standard deviation of ln z.
        triangulation: largest standard deviation of 1/z, as a share of the prompt's median 1/z.
        outliers: largest share of outliers.
        shift: largest displacement in pixels at a width of 640, in proportion elsewhere.
        dropout: largest share of lost points.
    """

    clean: float = 0.35
    relative: float = 0.05
    triangulation: float = 0.08
    outliers: float = 0.12
    shift: float = 3.0
    dropout: float = 0.2


TRAINING_NOISE = NoiseRanges()


def draw_noise(
    depth: Tensor, generator: torch.Generator, ranges: NoiseRanges = TRAINING_NOISE
) -> PromptNoise:
    """Noise for a prompt (H, W): each kind of error is there half of the time, uniform up to its largest value."""
    dice = torch.rand(8, generator=generator, dtype=torch.float64).tolist()
    if dice[0] < ranges.clean:
        return CLEAN
    sizes = [max(0.0, 2 * d - 1) for d in dice[1:6]]
    known = depth[depth > 0]
    middle = float(1 / known.median()) if known.numel() else 0.0
    reach = ranges.shift * depth.shape[1] / 640 * sizes[3]
    return PromptNoise(
        relative=sizes[0] * ranges.relative,
        triangulation=sizes[1] * ranges.triangulation * middle,
        outliers=sizes[2] * ranges.outliers,
        row_shift=round((2 * dice[6] - 1) * reach),
        col_shift=round((2 * dice[7] - 1) * reach),
        dropout=sizes[4] * ranges.dropout,
    )


def add_noise(depth: Tensor, noise: PromptNoise, generator: torch.Generator) -> Tensor:
    """The prompt with errors.

    Range limits act on the true depth; then measurement errors, outliers, losses and the displacement. An outlier's
    depth is log-uniform between half the smallest and twice the largest of the prompt.

    Args:
        depth: (H, W) metres, 0 where unknown.
        noise: which errors.
        generator: on the CPU; every call draws the same amount, so that one kind of error does not change another's.

    Returns:
        (H, W) metres, 0 where unknown. Not a point is left where all are out of range.
    """
    rows, cols = torch.nonzero(depth > 0, as_tuple=True)
    z = depth[rows, cols]
    normal = torch.randn(2, len(z), generator=generator).to(z)
    uniform = torch.rand(3, len(z), generator=generator).to(z)
    kept = (z >= noise.near) & (z <= noise.far) & (uniform[0] >= noise.dropout)
    low, high = (float(z.min()) / 2, 2 * float(z.max())) if len(z) else (1.0, 1.0)
    # Points whose error reaches infinity stop at twice the farthest depth.
    measured = 1 / (1 / z + noise.triangulation * normal[0]).clamp_min(1 / high)
    measured = measured * torch.exp(noise.relative * normal[1])
    wrong = low * (high / low) ** uniform[2]
    measured = torch.where(uniform[1] < noise.outliers, wrong, measured)
    measured = torch.where(kept, measured.clamp_min(_LEAST), torch.zeros_like(measured))
    return moved(depth.shape, rows, cols, measured, noise.row_shift, noise.col_shift)


def moved(size: Sequence[int], rows: Tensor, cols: Tensor, z: Tensor, down: int, right: int) -> Tensor:
    """(H, W) points displaced by whole pixels; what leaves the picture is lost, the nearest of a pixel remains."""
    height, width = size
    rows, cols = rows + down, cols + right
    kept = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width) & (z > 0)
    return scatter_nearest(height, width, rows[kept], cols[kept], z[kept])


def scatter_nearest(height: int, width: int, rows: Tensor, cols: Tensor, z: Tensor) -> Tensor:
    """(H, W) map of points at pixels (row, column) with the smallest depth on collision, 0 elsewhere."""
    flat = torch.full((height * width,), torch.inf, dtype=z.dtype, device=z.device)
    flat.scatter_reduce_(0, rows * width + cols, z, "amin")
    return torch.where(torch.isinf(flat), torch.zeros_like(flat), flat).reshape(height, width)


def jitter_rows(depth: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(H, W) every point moved up or down by a Gaussian of ``share`` of the height: radar does not know height."""
    height, width = depth.shape
    rows, cols = torch.nonzero(depth > 0, as_tuple=True)
    offset = (torch.randn(len(rows), generator=generator) * share * height).round().long().to(rows.device)
    return scatter_nearest(height, width, (rows + offset).clamp(0, height - 1), cols, depth[rows, cols])


def triangulation_sigma(pixel_error: float, focal: float, baseline: float) -> float:
    """Standard deviation of 1/z (1/m) of points triangulated with that error (pixels), focal length and baseline."""
    if not (focal > 0 and baseline > 0 and pixel_error >= 0):
        raise InputError("focal length and baseline must be positive, the pixel error not negative")
    return pixel_error / (focal * baseline)
