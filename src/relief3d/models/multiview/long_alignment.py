"""Joining the chunks of a long sequence: overlaps, robust similarities, candidates for loops (after VGGT-Long)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.geometry.alignment import Similarity, robust_umeyama, umeyama
from relief3d.geometry.transforms import make_similarity

CONFIDENCE_SHARE = 0.1
CONSENSUS = 0.1
"""Inliers of the first guess lie this close, as a share of the points' spread."""

CONSENSUS_POINTS = 500
"""About so many points, evenly taken, vote on the first guess; all of them take part in the fit."""

STEPS = 8


@dataclass(frozen=True)
class OverlapFit:
    """Similarity between two chunks.

    Attributes:
        a_from_b: (4, 4) float64.
        error: median distance after the fit over the median distance of the points to their middle.
        inliers: share of the points within three robust deviations.
        points: how many took part.
        size: median distance of the points to their middle, in the unit of chunk a.
        deviation: how far whole frames are off after the fit (median over the frames of the length of their mean
            residual), over ``size``: what averaging over many points does not remove.
    """

    a_from_b: Tensor
    error: float
    inliers: float
    points: int
    size: float
    deviation: float


def plan_chunks(frames: int, size: int, overlap: int) -> list[range]:
    """Consecutive chunks that share ``overlap`` frames; the last one is moved back so that it is as long as the others.

    Raises:
        InputError: no frames, or an overlap that leaves nothing new.
    """
    if frames < 1:
        raise InputError("a sequence without frames cannot be cut into chunks")
    if not 0 < overlap < size:
        raise InputError(f"the overlap {overlap} must be positive and smaller than the chunk, {size}")
    if frames <= size:
        return [range(frames)]
    starts = list(range(0, frames - size, size - overlap)) + [frames - size]
    return [range(s, s + size) for s in starts]


def home_chunk(chunks: Sequence[range], frames: int) -> Tensor:
    """(frames,) int64: the chunk in which each frame is farthest from an end, where predictions are best."""
    home = torch.zeros(frames, dtype=torch.int64)
    margin = torch.full((frames,), -1.0)
    for index, chunk in enumerate(chunks):
        where = torch.tensor(list(chunk))
        inside = torch.minimum(where - chunk.start, chunk.stop - 1 - where).float()
        better = inside > margin[where]
        home[where[better]] = index
        margin[where[better]] = inside[better]
    return home


def fit_overlap(
    points_a: Tensor,
    confidence_a: Tensor,
    points_b: Tensor,
    confidence_b: Tensor,
    *,
    with_scale: bool = True,
    frames: int = 1,
) -> OverlapFit:
    """Robust similarity between the same pixels in two chunks.

    Points count with the root of the product of their confidences, if both exceed a tenth of the smaller median
    confidence. A consensus of three-point fits comes first, then Tukey weights with the robust deviation.

    Args:
        points_a: (P, 3) in the frame of chunk a.
        confidence_a: (P,) non-negative.
        points_b: (P, 3) in the frame of chunk b.
        confidence_b: (P,).
        with_scale: False for networks that are metric already.
        frames: the points are those of so many frames, equally many each, one frame after the other.

    Raises:
        InputError: fewer than eight usable points, or points that determine no similarity.
    """
    a, b = points_a.double(), points_b.double()
    ca, cb = confidence_a.double(), confidence_b.double()
    floor = CONFIDENCE_SHARE * torch.minimum(ca.median(), cb.median())
    keep = (
        torch.isfinite(a).all(-1) & torch.isfinite(b).all(-1) & (ca >= floor) & (cb >= floor) & (ca * cb > 0)
    )
    if int(keep.sum()) < 8:
        raise InputError(f"two chunks share only {int(keep.sum())} usable points")
    a, b, weight = a[keep], b[keep], (ca * cb)[keep].sqrt()
    size = (a - a.median(0).values).norm(dim=-1).median().clamp_min(1e-12)
    # Least squares alone would shrink towards outliers in b, and never recover: begin from a consensus.
    some = slice(None, None, max(1, len(a) // CONSENSUS_POINTS))
    start = robust_umeyama(
        b[some],
        a[some],
        float(CONSENSUS * size),
        torch_generator(0),
        iterations=200,
        weights=weight[some],
        with_scale=with_scale,
    )
    fit = Similarity(start.scale, start.rotation, start.translation)
    for _ in range(STEPS):
        residual = (fit.apply(b) - a).norm(dim=-1)
        deviation = 1.4826 * residual.median().clamp_min(1e-12)
        # Tukey's weights: points beyond 4.7 deviations do not count at all.
        robust = weight * (1 - (residual / (4.685 * deviation)).clamp(max=1.0).square()).square()
        fit = umeyama(b, a, robust, with_scale=with_scale)
    residual = (fit.apply(b) - a).norm(dim=-1)
    deviation = 1.4826 * residual.median().clamp_min(1e-12)
    near = residual <= 3 * deviation
    frame = (torch.arange(len(keep), device=keep.device) * frames // len(keep))[keep]
    matrix = make_similarity(fit.scale, fit.rotation, fit.translation)
    if not bool(torch.isfinite(matrix).all()) or not float(fit.scale) > 0:
        raise InputError("the points that two chunks share determine no similarity")
    return OverlapFit(
        matrix,
        float(residual.median() / size),
        float(near.double().mean()),
        len(a),
        float(size),
        float(_mean_per_frame((fit.apply(b) - a)[near], frame[near], frames).median() / size),
    )


def _mean_per_frame(residual: Tensor, frame: Tensor, frames: int) -> Tensor:
    """Lengths of the mean residual (P, 3) of every frame that has points; frame (P,) int64."""
    count = torch.bincount(frame, minlength=frames)
    total = residual.new_zeros(frames, 3).index_add_(0, frame, residual)
    seen = count > 0
    return (total[seen] / count[seen, None]).norm(dim=-1)


class PairGrid:
    """Pairs of frames that are found again by being near at both ends, however many there are.

    Args:
        apart: pairs are near when both ends differ by at most so many frames.
    """

    def __init__(self, apart: int) -> None:
        self.apart = apart
        self._cells: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def add(self, pair: tuple[int, int]) -> None:
        """Remember a pair."""
        self._cells.setdefault(self._cell(pair), []).append(pair)

    def near(self, pair: tuple[int, int]) -> int:
        """Number of remembered pairs near this one."""
        a, b = self._cell(pair)
        around = ((a + i, b + j) for i in (-1, 0, 1) for j in (-1, 0, 1))
        return sum(
            abs(pair[0] - i) <= self.apart and abs(pair[1] - j) <= self.apart
            for cell in around
            for i, j in self._cells.get(cell, ())
        )

    def _cell(self, pair: tuple[int, int]) -> tuple[int, int]:
        return pair[0] // (self.apart + 1), pair[1] // (self.apart + 1)


def loop_candidates(
    features: Tensor, *, min_gap: int, threshold: float = 0.85, top: int = 5, apart: int = 25
) -> list[tuple[int, int]]:
    """Pairs of frames (i, j), i < j, that look alike although far apart in time, best first.

    Args:
        features: (N, D), one descriptor per frame.
        min_gap: smallest difference j - i.
        threshold: smallest cosine.
        top: candidates considered per frame.
        apart: a pair is dropped when a better one lies within so many frames on both ends.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    found: list[tuple[float, int, int]] = []
    for j in range(min_gap, len(unit)):
        score = unit[: j - min_gap + 1] @ unit[j]
        best = score.topk(min(top, len(score)))
        found += [(float(s), int(i), j) for s, i in zip(best.values, best.indices) if float(s) >= threshold]
    chosen: list[tuple[int, int]] = []
    grid = PairGrid(apart)
    for _, i, j in sorted(found, key=lambda f: (-f[0], f[1], f[2])):
        if not grid.near((i, j)):
            chosen.append((i, j))
            grid.add((i, j))
    return chosen
