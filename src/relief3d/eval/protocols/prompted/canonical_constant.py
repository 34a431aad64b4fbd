"""Error near and far by the constant C of the distance-balanced loss (MetricAnything Tab 15, right)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from relief3d.core.errors import InputError
from relief3d.eval.aggregation import mean
from relief3d.eval.protocols.base import Answer, Budget, Column, Measurement, Protocol, Query, Sample, Truth
from relief3d.eval.protocols.metric.mono_depth_rules import Shot, TwinPlan, file_shot
from relief3d.eval.protocols.metric.readers_diode import LAYOUT, open_diode
from relief3d.eval.protocols.prompted.completion_rules import LoadedFrame, clamped_errors, shot_loader
from relief3d.eval.published.metric_prompted import TABLE_15_RIGHT
from relief3d.eval.published.table import PublishedRow
from relief3d.eval.twins.rendered import query_scene

BORDER = 40.0
"""Metres: near is (0, 40], far beyond."""


class CanonicalConstant(Protocol):
    """AbsRel of single pictures near and far; every run names the C its model was trained with."""

    name = "canonical_constant"
    title = "DIODE: AbsRel up to 40 m and beyond, one run per constant C"
    source = "MetricAnything Tab 15 right; metric_depth 7.6, 9.1, 11"
    task = "mono_depth"
    columns = (
        Column("near", "0-40 m"),
        Column("far", ">40 m"),
        Column("left_out", "no number", "%"),
    )
    layout = LAYOUT
    notes = (
        "The paper does not name the data set; its table of depth ranges suggests DIODE (our reading).",
        "The true depth of a pixel decides its range; AbsRel per picture and range, then the mean over pictures that "
        "have pixels in it. No alignment; the true intrinsics are given.",
        "Predictions are clamped to [0.001, 1000] m; pixels without a finite one are left out and counted.",
    )

    def open(self, data: Path) -> list[Sample]:
        """Pictures with depth; see :class:`Protocol`."""
        return _samples([file_shot(frame) for frame in open_diode(data)])

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Streets, enlarged so that much lies beyond 40 m."""
        return _samples(TwinPlan("street", scale=2.5).shots(budget, seed, self.name))

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """Errors of one picture; the answer needs ``depth`` (1, H, W) in metres."""
        depth, valid = truth.need("depth"), truth.need("valid")
        values: dict[str, float] = {}
        missing, pixels = 0.0, 0
        for key, part in (("near", depth <= BORDER), ("far", depth > BORDER)):
            counted = valid & part
            if not bool(counted.any()):
                continue
            errors, share = clamped_errors(answer, depth, counted)
            values[key] = float(errors.abs_rel)
            missing, pixels = missing + share * int(counted.sum()), pixels + int(counted.sum())
        if not values:
            raise InputError("no valid pixels", remedy="check the depth maps and masks")
        values["left_out"] = 100 * missing / pixels
        return Measurement(query.name, str(truth.facts["group"]), values)

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """Means over pictures."""
        return {column.key: mean(measurements, column.key) for column in self.columns}

    def published(self) -> Sequence[PublishedRow]:
        """One row per constant."""
        return TABLE_15_RIGHT.rows


def _samples(shots: Sequence[Shot]) -> list[Sample]:
    load = shot_loader(shots)
    return [_sample(shot, load, index) for index, shot in enumerate(shots)]


def _sample(shot: Shot, load: Callable[[int], LoadedFrame], index: int) -> Sample:
    def query() -> Query:
        frame = load(index)
        scene = query_scene(frame.image[None], K=None if frame.K is None else frame.K[None], metric=True)
        return Query(shot.name, "mono_depth", ("depth",), scene=scene)

    def truth() -> Truth:
        depth = load(index).depth[None]
        return Truth({"depth": depth, "valid": depth > 0}, facts={"group": shot.group})

    return Sample(shot.name, shot.group, query, truth)


PROTOCOLS: tuple[Protocol, ...] = (CanonicalConstant(),)
