"""Ways of turning the measurements of many samples into one number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from relief3d.eval.protocols.base import Measurement


def mean(measurements: Sequence[Measurement], key: str) -> float:
    """Mean over samples that have the value; NaN without any."""
    values = [m.values[key] for m in measurements if key in m.values]
    return math.fsum(values) / len(values) if values else float("nan")


def weighted_mean(measurements: Sequence[Measurement], key: str) -> float:
    """Mean weighted by :attr:`Measurement.weight` (number of valid pixels); NaN without any."""
    pairs = [(m.weight, m.values[key]) for m in measurements if key in m.values]
    total = math.fsum(w for w, _ in pairs)
    return math.fsum(w * v for w, v in pairs) / total if total > 0 else float("nan")


def group_mean(measurements: Sequence[Measurement], key: str) -> float:
    """Mean over groups of the mean over the group's samples (every scene counts the same); NaN without any."""
    groups: dict[str, list[float]] = {}
    for m in measurements:
        if key in m.values:
            groups.setdefault(m.group, []).append(m.values[key])
    means = [math.fsum(v) / len(v) for v in groups.values()]
    return math.fsum(means) / len(means) if means else float("nan")


def pooled(measurements: Sequence[Measurement], key: str) -> np.ndarray:
    """All entries of the array of that name, joined, float64."""
    arrays = [np.asarray(m.arrays[key], dtype=np.float64) for m in measurements if key in m.arrays]
    return np.concatenate(arrays) if arrays else np.zeros(0)


def median(measurements: Sequence[Measurement], key: str) -> float:
    """Median over samples that have the value; NaN without any."""
    values = [m.values[key] for m in measurements if key in m.values]
    return float(np.median(values)) if values else float("nan")
