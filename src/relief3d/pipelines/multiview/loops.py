"""Places seen again in a long sequence: candidates that look alike, each verified by the geometry of two views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, SilentProgress, stage
from relief3d.matching.base import Features, Matcher
from relief3d.models.multiview.long_alignment import PairGrid, loop_candidates
from relief3d.sfm import colmap
from relief3d.sfm.config import FeatureRecipe
from relief3d.sfm.database import extract_sift

Frames = Callable[[Sequence[int]], Tensor]
"""Frame numbers -> pictures (n, 3, H, W) in [0, 1]."""

ROUND = 32
"""Verifications between two looks at what they say about the remaining candidates."""
KEPT = 128
"""Frames whose keypoints are kept in memory, about 0.3 MB each."""


@dataclass(frozen=True)
class LoopOptions:
    """What counts as the same place.

    Attributes:
        min_gap: frames between the ends of a loop, at least; less than a chunk tells nothing new.
        threshold: smallest cosine of two descriptors.
        top: candidates considered per frame.
        apart: a loop is not looked for where one was found within so many frames at both ends.
        failures: verifications that may fail within ``apart`` of a pair before it is left alone; the second one is
            for a blurred frame.
        per_hundred: most verified loops per hundred frames.
        checks_per_hundred: most verifications per hundred frames, failed ones included; keeps the cost linear where
            everything looks alike.
        min_inliers: matches that agree with one epipolar geometry, at least.
        min_share: of the matches, at least.
        min_coverage: share of the cells (4 x 4 per picture) with keypoints in which some agree, at least, in both
            pictures; one poster that hangs in two rooms covers little of either.
        max_error: pixels from the epipolar line.
        ratio: a match must be closer than this times the second best.
        max_features: keypoints per picture.
        seed: of the random samples.
    """

    min_gap: int = 100
    threshold: float = 0.4
    top: int = 5
    apart: int = 20
    failures: int = 2
    per_hundred: float = 5.0
    checks_per_hundred: float = 20.0
    min_inliers: int = 20
    min_share: float = 0.4
    min_coverage: float = 0.4
    max_error: float = 2.0
    ratio: float = 0.85
    max_features: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class LoopCheck:
    """What two views say about a candidate.

    Attributes:
        pair: frames (i, j), i < j.
        matches: between their keypoints.
        inliers: that agree with one epipolar geometry.
        coverage: the smaller share of cells covered, see :class:`LoopOptions`.
        accepted: whether they show the same place.
    """

    pair: tuple[int, int]
    matches: int
    inliers: int
    coverage: float
    accepted: bool


class SiftMatcher:
    """SIFT keypoints through COLMAP, matched to their mutual nearest neighbour if it is clearly nearest.

    Raises:
        MissingExtraError: pycolmap is not installed.
    """

    name = "sift"

    def __init__(self, max_features: int = 2000, ratio: float = 0.85) -> None:
        self._pycolmap = colmap.load()
        # Small frames have few strong keypoints, so weak ones are taken too.
        self._recipe = FeatureRecipe(max_features=max_features, peak_threshold=0.02 / 6)
        self._ratio = ratio

    def extract(self, image: Tensor) -> Features:
        """Keypoints of a picture (3, H, W); see :class:`Matcher`."""
        with colmap.quiet(self._pycolmap):
            return extract_sift(self._pycolmap, image, None, self._recipe)

    def match(self, first: Features, second: Features) -> Tensor:
        """(M, 2) int64 indices; see :class:`Matcher`."""
        if min(len(first), len(second)) < 2:
            return torch.zeros(0, 2, dtype=torch.int64)
        a, b = (unit_rows(f.descriptors) for f in (first, second))
        cosine = a @ b.T
        # Lowe's ratio on angles, which is COLMAP's choice too.
        best = cosine.topk(2, dim=1)
        angle = best.values.clamp(-1, 1).acos()
        forward, backward = best.indices[:, 0], cosine.argmax(0)
        rows = torch.arange(len(a))
        keep = (angle[:, 0] < self._ratio * angle[:, 1]) & (backward[forward] == rows)
        return torch.stack([rows[keep], forward[keep]], 1)


def unit_rows(descriptors: Tensor) -> Tensor:
    """(N, D) of any type to float32 rows of length 1."""
    return torch.nn.functional.normalize(descriptors.float(), dim=1)


def find_loops(
    load: Frames,
    descriptors: Tensor,
    *,
    options: LoopOptions | None = None,
    matcher: Matcher | None = None,
    progress: Progress | None = None,
) -> tuple[list[tuple[int, int]], list[LoopCheck]]:
    """Pairs of frames that show the same place.

    Candidates are tried from the most alike on, :data:`ROUND` at a time. Where one is verified its neighbourhood is
    done; where some fail it is given up; and there is a limit per hundred frames, so that verifications and keypoints
    grow with the frames even if everything looks alike. Only the comparison of the descriptors, one product of two
    matrices, grows with their square.

    Args:
        load: gives pictures of some frames; best in a size with enough keypoints.
        descriptors: (N, D), see :mod:`relief3d.models.multiview.retrieval`.
        options: see :class:`LoopOptions`.
        matcher: keypoints and matches; SIFT when None.
        progress: one step per verification.

    Returns:
        The loops, for :func:`relief3d.models.multiview.long_sequence.run_long`, and every check that was made.

    Raises:
        InputError: descriptors that are not (N, D).
        MissingExtraError: pycolmap is not installed.
    """
    options = options or LoopOptions()
    if descriptors.ndim != 2:
        raise InputError(f"descriptors must be (N, D), got {tuple(descriptors.shape)}")
    used = matcher or SiftMatcher(options.max_features, options.ratio)
    candidates = loop_candidates(
        descriptors, min_gap=options.min_gap, threshold=options.threshold, top=options.top, apart=2
    )

    @lru_cache(maxsize=KEPT)
    def features(frame: int) -> tuple[Features, tuple[int, int]]:
        image = load([frame])[0]
        return used.extract(image), (int(image.shape[-1]), int(image.shape[-2]))

    most = max(1, round(options.per_hundred * len(descriptors) / 100))
    budget = max(1, round(options.checks_per_hundred * len(descriptors) / 100))
    found, checks = _Seen(options), list[LoopCheck]()
    with stage(progress or SilentProgress(), "loops", None) as shown:
        while candidates and len(found.loops) < most and len(checks) < budget:
            batch, candidates = found.next_round(candidates, min(ROUND, budget - len(checks)))
            # In the order of the frames, so that pairs that share one follow each other.
            for pair in sorted(batch):
                if len(found.loops) == most:
                    break
                checks.append(verify(pair, features(pair[0]), features(pair[1]), used, options))
                found.note(checks[-1])
                shown.advance(1)
    return sorted(found.loops), checks


class _Seen:
    """Which pairs were verified, which failed, and what that says about others."""

    def __init__(self, options: LoopOptions) -> None:
        self.loops: list[tuple[int, int]] = []
        self._options = options
        self._verified, self._failed = PairGrid(options.apart), PairGrid(options.apart)

    def note(self, check: LoopCheck) -> None:
        if check.accepted:
            self.loops.append(check.pair)
            self._verified.add(check.pair)
        else:
            self._failed.add(check.pair)

    def next_round(
        self, waiting: Sequence[tuple[int, int]], size: int
    ) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The best pairs that are worth a check and do not decide about each other, and all that come after."""
        batch: list[tuple[int, int]] = []
        later: list[tuple[int, int]] = []
        taken = PairGrid(self._options.apart)
        for at, pair in enumerate(waiting):
            if len(batch) == size:
                return batch, [*later, *waiting[at:]]
            if self._verified.near(pair) or self._failed.near(pair) >= self._options.failures:
                continue
            if taken.near(pair):
                later.append(pair)
                continue
            batch.append(pair)
            taken.add(pair)
        return batch, later


def verify(
    pair: tuple[int, int],
    first: tuple[Features, tuple[int, int]],
    second: tuple[Features, tuple[int, int]],
    matcher: Matcher,
    options: LoopOptions,
) -> LoopCheck:
    """Match two views and see how much of them agrees with one epipolar geometry.

    Args:
        pair: their numbers, for the record.
        first: keypoints and (width, height) of the one picture.
        second: of the other.
        matcher: pairs the keypoints.
        options: see :class:`LoopOptions`.
    """
    (a, size_a), (b, size_b) = first, second
    matches = matcher.match(a, b)
    if len(matches) < max(8, options.min_inliers):
        return LoopCheck(pair, len(matches), 0, 0.0, False)
    pycolmap = colmap.load()
    ransac = pycolmap.RANSACOptions()
    ransac.max_error, ransac.random_seed = options.max_error, options.seed
    xy_a, xy_b = a.xy[matches[:, 0]], b.xy[matches[:, 1]]
    with colmap.quiet(pycolmap):
        found = pycolmap.estimate_fundamental_matrix(xy_a.double().numpy(), xy_b.double().numpy(), ransac)
    if found is None:
        return LoopCheck(pair, len(matches), 0, 0.0, False)
    inside = torch.as_tensor(found["inlier_mask"])
    inliers = int(inside.sum())
    coverage = min(_coverage(a.xy, xy_a[inside], size_a), _coverage(b.xy, xy_b[inside], size_b))
    accepted = (
        inliers >= options.min_inliers
        and inliers >= options.min_share * len(matches)
        and coverage >= options.min_coverage
    )
    return LoopCheck(pair, len(matches), inliers, coverage, accepted)


def _coverage(keypoints: Tensor, inliers: Tensor, size: tuple[int, int], cells: int = 4) -> float:
    """Share of the cells with keypoints that have inliers."""

    def occupied(xy: Tensor) -> Tensor:
        cell = (xy / torch.tensor(size) * cells).long().clamp(0, cells - 1)
        return torch.bincount(cell[:, 1] * cells + cell[:, 0], minlength=cells * cells) > 0

    return float(occupied(inliers).sum() / occupied(keypoints).sum().clamp_min(1))
