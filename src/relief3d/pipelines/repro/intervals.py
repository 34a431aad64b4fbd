"""Means and intervals over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

CONFIDENCE = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float | None, tuple[float, float] | None]:
    """Mean and two-sided 95 % interval of Student's t; no interval of fewer than two values, nothing of values that
    are not finite.
    """
    if not values or not all(math.isfinite(v) for v in values):
        return None, None
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    from scipy.stats import t

    half = float(t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)) * statistics.stdev(values)
    half /= math.sqrt(len(values))
    return mean, (mean - half, mean + half)


def excludes_zero(interval: tuple[float, float] | None) -> bool:
    """Whether an effect may be claimed."""
    return interval is not None and (interval[0] > 0 or interval[1] < 0)
