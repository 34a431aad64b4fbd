"""Confidence intervals by bootstrap over scenes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from relief3d.eval.protocols.base import Measurement

RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Interval:
    """Bounds of a two-sided percentile interval; both None where there are fewer than two groups."""

    low: float | None
    high: float | None


def bootstrap(
    measurements: Sequence[Measurement],
    summarise: Callable[[Sequence[Measurement]], Mapping[str, float]],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> dict[str, Interval]:
    """Interval of every number of a summary when whole groups (scenes) are drawn with replacement.

    Args:
        measurements: of all samples.
        summarise: as :meth:`Protocol.summarise`.
        resamples: number of draws.
        confidence: share of draws inside.
        seed: of the draws.
    """
    groups: dict[str, list[Measurement]] = {}
    for m in measurements:
        groups.setdefault(m.group, []).append(m)
    keys = list(summarise(measurements))
    if len(groups) < 2:
        return {key: Interval(None, None) for key in keys}
    rng = np.random.default_rng(seed)
    names = list(groups)
    draws: dict[str, list[float]] = {key: [] for key in keys}
    for _ in range(resamples):
        # A group drawn twice counts as two scenes, also for means over groups.
        chosen = [
            dataclasses.replace(m, group=f"{m.group}#{turn}")
            for turn, index in enumerate(rng.integers(0, len(names), len(names)))
            for m in groups[names[index]]
        ]
        for key, value in summarise(chosen).items():
            draws[key].append(value)
    tail = (1 - confidence) / 2
    out = {}
    for key in keys:
        finite = np.asarray([v for v in draws[key] if np.isfinite(v)])
        if finite.size < resamples // 2:
            out[key] = Interval(None, None)
        else:
            low, high = np.quantile(finite, [tail, 1 - tail])
            out[key] = Interval(float(low), float(high))
    return out
