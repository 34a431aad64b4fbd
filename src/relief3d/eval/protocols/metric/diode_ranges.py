"""DIODE by depth range: where a representation of depth loses accuracy (MetricAnything, table 14)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from relief3d.core.errors import InputError
from relief3d.eval.aggregation import mean
from relief3d.eval.protocols.base import Answer, Budget, Column, Measurement, Protocol, Query, Sample, Truth
from relief3d.eval.protocols.metric.mono_depth_rules import (
    CLAMP,
    TwinPlan,
    file_shot,
    mono_samples,
    one_map,
    resize_bilinear,
    same_size,
)
from relief3d.eval.protocols.metric.readers_diode import LAYOUT, open_diode
from relief3d.eval.published.metric_depth import TABLE_14
from relief3d.eval.published.table import PublishedRow

RANGES: dict[str, tuple[float, float]] = {
    "r0_10": (0.0, 10.0),
    "r10_20": (10.0, 20.0),
    "r20_30": (20.0, 30.0),
    "r30_40": (30.0, 40.0),
    "r40_50": (40.0, 50.0),
    "r50": (50.0, math.inf),
}
"""Metres of true depth, by column; a range holds its lower bound and not its upper one."""

_LABELS = ("0-10 m", "10-20 m", "20-30 m (printed 10-30)", "30-40 m", "40-50 m", "over 50 m")


class DiodeRanges(Protocol):
    """AbsRel of metric depth, separately for ranges of the true depth."""

    name = "diode_ranges"
    title = "DIODE: metric depth of single pictures by depth range"
    source = "MetricAnything, Table 14; specification 9.1, 9.2 and 11"
    task = "mono_depth"
    columns = (
        *(Column(key, label) for key, label in zip(RANGES, _LABELS)),
        *(Column(f"image_{key}", f"{label}, mean of pictures") for key, label in zip(RANGES, _LABELS)),
    )
    layout = LAYOUT
    notes = (
        "prediction resized bilinearly to the size of the truth and clamped to [1e-3, 1e3] m; no alignment",
        "a range takes the pixels whose true depth lies in it, lower bound included; all such pixels of the data set "
        "are pooled (our choice, as in tables 3 and 4); the last columns are means of pictures",
        "the published rows are four training representations of one student; the third range is printed as 10-30 m",
        "the true intrinsics are given to the model; fx and fy of DIODE differ by 4.5 %",
    )
    twin_plan = TwinPlan("street", scale=3.0)

    def open(self, data: Path) -> list[Sample]:
        """All validation pictures, indoors and outdoors."""
        return mono_samples([file_shot(f) for f in open_diode(data)])

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Streets three times as large as life, so that far ranges are seen."""
        return mono_samples(self.twin_plan.shots(budget, seed, self.name))

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """Mean error and number of pixels of every range that the picture has.

        Raises:
            InputError: "no valid pixels".
        """
        depth, valid = truth.need("depth")[0], truth.need("valid")[0]
        same_size(query, depth)
        predicted = resize_bilinear(one_map(answer), (depth.shape[0], depth.shape[1]))
        known = valid & (depth > 0) & torch.isfinite(predicted)
        if not bool(known.any()):
            raise InputError("no valid pixels", remedy="check the depth, its unit and the mask")
        p, g = predicted[known].double().clamp(*CLAMP), depth[known].double()
        error = (p - g).abs() / g
        values: dict[str, float] = {}
        for key, (low, high) in RANGES.items():
            inside = (g >= low) & (g < high)
            if bool(inside.any()):
                values[key] = float(error[inside].mean())
                values[f"pixels_{key}"] = float(inside.sum())
        return Measurement(query.name, str(truth.facts["group"]), values, weight=float(g.numel()))

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """Pooled over pixels, and as means of pictures; NaN for a range nobody sees."""
        out: dict[str, float] = {}
        for key in RANGES:
            pairs = [(m.values[f"pixels_{key}"], m.values[key]) for m in measurements if key in m.values]
            total = math.fsum(n for n, _ in pairs)
            out[key] = math.fsum(n * v for n, v in pairs) / total if total else math.nan
            out[f"image_{key}"] = mean(measurements, key)
        return out

    def published(self) -> Sequence[PublishedRow]:
        """Four representations."""
        return TABLE_14.select({key: key for key in RANGES})


PROTOCOLS: tuple[Protocol, ...] = (DiodeRanges(),)
