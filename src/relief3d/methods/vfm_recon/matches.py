"""Matches between keyframes through any matcher; keypoints are found once per keyframe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from torch import Tensor

from relief3d.core.progress import Progress, SilentProgress, stage
from relief3d.matching.base import Features, Matcher
from relief3d.methods.vfm_recon.inputs import PairMatches

KEPT = 32
"""Keyframes whose keypoints are held; pairs reach a few keyframes, so each is found once."""


class MatchedKeyframes:
    """A match source that matches a pair when it is asked for and remembers the answer.

    Args:
        load: keyframe number -> picture (3, H, W) RGB in [0, 1], at the size of its camera, or smaller with
            ``scale``.
        matcher: keypoints and matches.
        scale: pixels of the camera per pixel of the loaded picture.
    """

    def __init__(self, load: Callable[[int], Tensor], matcher: Matcher, scale: float = 1.0) -> None:
        self._matcher = matcher
        self._scale = scale
        self.found: dict[tuple[int, int], PairMatches] = {}

        @lru_cache(maxsize=KEPT)
        def features(frame: int) -> Features:
            return matcher.extract(load(frame))

        self._features = features

    def __call__(self, a: int, b: int) -> PairMatches:
        """Matches of keyframes a and b, in pixels of their cameras."""
        if (a, b) not in self.found:
            first, second = self._features(a), self._features(b)
            index = self._matcher.match(first, second).cpu()
            # Positions are exact under scaling, because pixel centres are at +0.5.
            xy = [f.xy.cpu().double()[index[:, k]] * self._scale for k, f in enumerate((first, second))]
            self.found[a, b] = PairMatches(xy[0], xy[1])
        return self.found[a, b]


def match_keyframes(
    load: Callable[[int], Tensor],
    pairs: Sequence[tuple[int, int]],
    matcher: Matcher,
    *,
    scale: float = 1.0,
    progress: Progress | None = None,
) -> Mapping[tuple[int, int], PairMatches]:
    """Match all pairs of a plan.

    Args:
        load: see :class:`MatchedKeyframes`.
        pairs: keyframes (a, b), a < b; see :attr:`relief3d.methods.vfm_recon.align.ScenePlan.pairs`.
        matcher: see :class:`MatchedKeyframes`.
        scale: see :class:`MatchedKeyframes`.
        progress: one step per pair.

    Returns:
        Pairs to matches, in pixels of the cameras.
    """
    source = MatchedKeyframes(load, matcher, scale)
    with stage(progress or SilentProgress(), "matching keyframes", len(pairs)) as shown:
        for a, b in sorted(pairs):
            source(a, b)
            shown.advance(1)
    return source.found
