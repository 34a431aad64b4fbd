"""Prompts for training: how many points, where they lie, and how they reach the working resolution.

The paper draws N in [2,000, 40,000] uniformly from the valid pixels (MetricAnything 3.1; the distribution of N and what
happens to sparse sources are ours, specification 2.1). Those numbers belong to the working picture of 1536 x 1536; a
smaller picture gets proportionally fewer, so that the spacing of points in pixels stays that of the paper. For
robustness other patterns than the uniform one can be mixed in, and far sparser prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.prompt_alignment import MIN_DEPTH, NEIGHBOURS
from relief3d.data.prompt_noise import (
    CLEAN,
    NoiseRanges,
    PromptNoise,
    add_noise,
    draw_noise,
    jitter_rows,
    scatter_nearest,
)
from relief3d.data.prompt_patterns import RADAR_POINTS, Prompt, lidar_hits

POINTS = (2000, 40000)
WORKING_PIXELS = 1536 * 1536
RADAR_ROWS = 0.05
"""Standard deviation of a radar return's row, as a share of the picture's height."""
SPARSE_SHARE = (0.3, 1.0)
"""Sources with fewer valid pixels than the smallest N give this share of them, so that some lie outside the prompt."""

_PROBE, _LEAST_LINES = 16, 4
"""Lidar lines that say how many points a line has in a picture, and the fewest lines of a prompt."""

Kind = Literal["uniform", "keypoints", "lidar", "grid", "hole", "range", "radar", "cluster"]


@dataclass(frozen=True)
class CountOptions:
    """How many points a training prompt has.

    Attributes:
        low, high: N is log-uniform between them.
        full_pixels: pixels of the picture these numbers are for; smaller pictures get proportionally fewer, larger
            ones not more. 0 takes the numbers as they are for every size.
        sparse: share of prompts that are far sparser: log-uniform from ``fewest`` to the (scaled) ``low``.
        fewest: see ``sparse``.
    """

    low: int = POINTS[0]
    high: int = POINTS[1]
    full_pixels: int = WORKING_PIXELS
    sparse: float = 0.0
    fewest: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high or self.fewest < NEIGHBOURS or not 0 <= self.sparse <= 1:
            raise InputError(f"no prompt can have between {self.low} and {self.high} points")

    def bounds(self, pixels: int) -> tuple[float, float]:
        """Smallest and largest N of a picture with that many pixels."""
        share = min(1.0, pixels / self.full_pixels) if self.full_pixels else 1.0
        return max(float(NEIGHBOURS), self.low * share), max(float(NEIGHBOURS), self.high * share)


PAPER_COUNT = CountOptions()

MIXED: Mapping[Kind, float] = MappingProxyType(
    {
        "uniform": 0.35,
        "keypoints": 0.25,
        "lidar": 0.15,
        "grid": 0.08,
        "hole": 0.05,
        "range": 0.04,
        "radar": 0.03,
        "cluster": 0.05,
    }
)
"""Shares of the kinds for robust training (our choice)."""


@dataclass(frozen=True)
class SamplingOptions:
    """Training prompts.

    Attributes:
        count: how many points.
        kinds: share of each kind; the paper's is uniform alone.
        noise: of the points; None for none (the paper's).
    """

    count: CountOptions = PAPER_COUNT
    kinds: Mapping[Kind, float] = field(default_factory=lambda: {"uniform": 1.0})
    noise: NoiseRanges | None = None

    def __post_init__(self) -> None:
        if not self.kinds or min(self.kinds.values()) < 0 or sum(self.kinds.values()) <= 0:
            raise InputError("the kinds of prompts need positive shares")
        if strange := set(self.kinds) - set(MIXED):
            raise InputError(
                f"there is no kind of prompt '{sorted(strange)[0]}'", remedy=f"use {', '.join(MIXED)}"
            )


def robust_options(sparse: float = 0.3) -> SamplingOptions:
    """All kinds with noise, and a share of far sparser prompts."""
    return SamplingOptions(CountOptions(sparse=sparse), MIXED, NoiseRanges())


@dataclass(frozen=True)
class DrawnPrompt:
    """A training prompt.

    Attributes:
        prompt: depth and mask at the truth's resolution.
        kind: where its points lie.
        noise: the errors it was given.
    """

    prompt: Prompt
    kind: Kind
    noise: PromptNoise


def draw_count(
    valid: int, pixels: int, generator: torch.Generator, options: CountOptions = PAPER_COUNT
) -> int:
    """Number of prompt points of a picture; 0 when it has fewer than five valid pixels and must be left out.

    Args:
        valid: valid pixels of its truth.
        pixels: all its pixels.
        generator: on the CPU; two numbers are drawn in every case.
        options: see :class:`CountOptions`.
    """
    luck, where = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    if valid < NEIGHBOURS:
        return 0
    low, high = options.bounds(pixels)
    if luck < options.sparse:
        low, high = min(float(options.fewest), low), low
    elif valid < low:
        share = SPARSE_SHARE[0] + (SPARSE_SHARE[1] - SPARSE_SHARE[0]) * where
        return max(NEIGHBOURS, round(valid * share))
    return min(valid, max(NEIGHBOURS, round(low * (high / low) ** where)))


def sample_prompt(
    depth: Tensor,
    valid: Tensor | None,
    generator: torch.Generator,
    options: SamplingOptions = SamplingOptions(),
    *,
    image: Tensor | None = None,
) -> DrawnPrompt | None:
    """A prompt out of the truth of a training sample.

    Args:
        depth: (H, W) metres, 0 in holes.
        valid: (H, W) bool; depth above 1e-4 when None.
        generator: on the CPU; one seed, one prompt.
        options: count, kinds, noise.
        image: (3, H, W) in [0, 1] or uint8, for keypoints; without it "keypoints" follow the edges of depth.

    Returns:
        None for a sample to leave out: fewer than five valid pixels, or fewer than five points left.
    """
    depth = depth.float()
    known = torch.isfinite(depth) & (depth > MIN_DEPTH)
    known = known if valid is None else known & valid
    count = draw_count(int(known.sum()), depth.numel(), generator, options.count)
    names = list(options.kinds)
    shares = torch.tensor([options.kinds[n] for n in names], dtype=torch.float64)
    kind = names[int(torch.multinomial(shares, 1, generator=generator))]
    if count == 0:
        return None
    chosen = choose_pixels(kind, depth, known, count, generator, image)
    if int(chosen.sum()) < NEIGHBOURS:
        kind, chosen = "uniform", choose_pixels("uniform", depth, known, count, generator, image)
    given = torch.where(chosen, depth, torch.zeros_like(depth))
    if kind == "radar":
        given = jitter_rows(given, RADAR_ROWS, generator)
    noise = CLEAN
    if options.noise is not None:
        noise = draw_noise(given, generator, options.noise)
        noisy = given if noise.clean else add_noise(given, noise, generator)
        given, noise = (noisy, noise) if int((noisy > 0).sum()) >= NEIGHBOURS else (given, CLEAN)
    return DrawnPrompt(Prompt(given, given > 0), kind, noise)


def choose_pixels(
    kind: Kind,
    depth: Tensor,
    known: Tensor,
    count: int,
    generator: torch.Generator,
    image: Tensor | None = None,
) -> Tensor:
    """(H, W) bool, which known pixels a prompt of some kind holds, about ``count`` of them.

    =============  =========================================================================================
    uniform        without replacement, the paper's
    keypoints      likelier where the picture's gradient is large, as detectors choose
    lidar          lines of a virtual lidar with random tilt and offset
    grid           a regular grid (low-resolution sensor) with a random offset
    hole           uniform outside of a rectangle of up to 60 % of each side
    range          uniform among the nearest 30 to 90 % of depths
    radar          30 to 100 points at most in the middle third of the rows (then their rows are blurred)
    cluster        around a few random places
    =============  =========================================================================================
    """
    if kind == "lidar":
        return _lidar(known, count, generator)
    if kind == "grid":
        return _grid(known, count, generator)
    weight = known.double()
    if kind == "keypoints":
        weight = weight * _texture(depth if image is None else image)
    elif kind == "hole":
        weight = weight * ~_rectangle(depth.shape, generator).to(known.device)
    elif kind == "range":
        share = 0.3 + 0.6 * float(torch.rand((), generator=generator))
        limit = depth[known].sort().values[int(share * (int(known.sum()) - 1))]
        weight = weight * (depth <= limit)
    elif kind == "radar":
        height = depth.shape[0]
        weight[: height // 3] = 0
        weight[height - height // 3 :] = 0
        count = min(count, int(torch.randint(RADAR_POINTS[0], RADAR_POINTS[1] + 1, (), generator=generator)))
    elif kind == "cluster":
        weight = weight * _blobs(depth.shape, generator).to(weight)
    return _weighted(weight, count, generator)


def _weighted(weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """That many pixels without replacement, with chances in proportion to the weight (exponential race)."""
    flat = weight.reshape(-1)
    noise = (
        torch.rand(flat.numel(), generator=generator, dtype=torch.float64).clamp_min(1e-300).to(flat.device)
    )
    times = torch.where(flat > 0, -noise.log() / flat.clamp_min(1e-300), torch.inf)
    count = min(count, int((flat > 0).sum()))
    out = torch.zeros_like(flat, dtype=torch.bool)
    if count:
        out[times.topk(count, largest=False).indices] = True
    return out.reshape(weight.shape)


def _texture(image: Tensor) -> Tensor:
    """(H, W) gradient of a picture relative to its mean, cut at 8 times it, with a little everywhere."""
    grey = image.float() if image.ndim == 2 else image.float().mean(0)
    padded = F.pad(grey[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    across, down = padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]
    size = torch.sqrt(across.square() + down.square())
    size = size / size.mean().clamp_min(1e-9)
    return (size.clamp_max(8.0).square() + 0.02).double()


def _lidar(known: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Scan lines, tilted by up to 4 degrees and moved; as many lines as give about ``count`` points."""
    height, width = known.shape
    tilt, down, keep = torch.rand(3, generator=generator).tolist()
    per_line = max(1.0, int(lidar_hits(height, width, _PROBE).sum()) / _PROBE)
    lines = max(_LEAST_LINES, min(height // 2, round(count / (0.85 * per_line))))
    hits = torch.nonzero(lidar_hits(height, width, lines))
    step = max(
        1, round(0.85 * len(hits) / max(count, 1))
    )  # fewer columns where a few lines already are too much
    hits = hits[hits[:, 1] % step == step // 2]
    slope = math.tan(math.radians(8 * tilt - 4))
    rows = hits[:, 0] + slope * (hits[:, 1] - width / 2) + (down - 0.5) * height / lines
    rows = rows.round().long()
    inside = (rows >= 0) & (rows < height)
    out = torch.zeros(height, width, dtype=torch.bool)
    out[rows[inside], hits[inside, 1]] = True
    out &= torch.rand(height, width, generator=generator) < 0.7 + 0.3 * keep
    return out.to(known.device) & known


def _grid(known: Tensor, count: int, generator: torch.Generator) -> Tensor:
    height, width = known.shape
    share = float(known.double().mean())
    step = max(2, round(math.sqrt(height * width * share / max(count, 1))))
    top, left = (int(torch.randint(0, min(step, n), (), generator=generator)) for n in (height, width))
    out = torch.zeros_like(known)
    out[top::step, left::step] = True
    return out & known


def _rectangle(size: torch.Size, generator: torch.Generator) -> Tensor:
    out = torch.zeros(size, dtype=torch.bool)
    share = 0.2 + 0.4 * torch.rand(2, generator=generator)
    place = torch.rand(2, generator=generator)
    (top, left), (down, right) = (
        [int(p * (1 - s) * n) for p, s, n in zip(place.tolist(), share.tolist(), size, strict=True)],
        [math.ceil(s * n) for s, n in zip(share.tolist(), size, strict=True)],
    )
    out[top : top + down, left : left + right] = True
    return out


def _blobs(size: torch.Size, generator: torch.Generator) -> Tensor:
    """(H, W) sum of two to five Gaussians of 8 % of the larger side."""
    height, width = size
    number = int(torch.randint(2, 6, (), generator=generator))
    centres = torch.rand(number, 2, generator=generator) * torch.tensor([height, width])
    rows, cols = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    sigma = 0.08 * max(height, width)
    total = torch.zeros(height, width)
    for y, x in centres.tolist():
        total += torch.exp(-((rows - y) ** 2 + (cols - x) ** 2) / (2 * sigma * sigma))
    return torch.where(total > 1e-4, total, torch.zeros_like(total)).double()


def scatter_prompt(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """A prompt at another resolution: each point goes to the pixel its centre falls into, the nearest one remains.

    Args:
        depth: (H, W) metres, 0 where unknown.
        size: (h, w) of the working picture, which shows the same view stretched.

    Returns:
        (h, w) metres: point (row, col) at (floor((row + 0.5) h / H), floor((col + 0.5) w / W)).
    """
    height, width = depth.shape
    rows, cols = torch.nonzero(torch.isfinite(depth) & (depth > 0), as_tuple=True)
    # In integers: (2 row + 1) h // (2 H), so that no rounding moves a point.
    to_row = torch.div((2 * rows + 1) * size[0], 2 * height, rounding_mode="floor")
    to_col = torch.div((2 * cols + 1) * size[1], 2 * width, rounding_mode="floor")
    return scatter_nearest(size[0], size[1], to_row, to_col, depth[rows, cols])
