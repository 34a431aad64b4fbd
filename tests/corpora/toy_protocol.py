"""A tiny protocol: four pictures of constant depth in two scenes, AbsRel without alignment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from relief3d.core.errors import RunError
from relief3d.eval import aggregation
from relief3d.eval.metrics.depth_errors import depth_errors
from relief3d.eval.protocols.base import (
    Answer,
    Budget,
    Column,
    Measurement,
    Protocol,
    Query,
    Sample,
    Truth,
)
from relief3d.eval.published.table import PublishedRow
from relief3d.eval.twins.rendered import query_scene

SIZE = (6, 8)
NAMES = ("a/0", "a/1", "b/0", "b/1")


class ToyProtocol(Protocol):
    """AbsRel of depth i + 1 metres."""

    name = "toy"
    title = "constant depths"
    source = "made up for tests"
    task = "mono_depth"
    columns = (Column("abs_rel", "AbsRel", "%"),)
    layout = "depths.txt"

    def __init__(self) -> None:
        self.measured: list[str] = []

    def open(self, data: Path) -> list[Sample]:
        return self.twin("smoke")

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        return [
            Sample(name, name[0], partial(self._query, name), partial(self._truth, i))
            for i, name in enumerate(NAMES)
        ]

    def _query(self, name: str) -> Query:
        images = torch.zeros(1, 3, *SIZE, dtype=torch.uint8)
        return Query(name, "mono_depth", ("depth",), query_scene(images))

    def _truth(self, index: int) -> Truth:
        return Truth({"depth": torch.full((1, *SIZE), index + 1.0)})

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        self.measured.append(query.name)
        g = truth.need("depth")
        p = answer.need("depth", g.shape)
        errors = depth_errors(p.double(), g, g > 0)
        return Measurement(query.name, query.name[0], {"abs_rel": 100 * float(errors.abs_rel.mean())})

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        return {"abs_rel": aggregation.mean(measurements, "abs_rel")}

    def published(self) -> Sequence[PublishedRow]:
        return (PublishedRow("Someone|else", "Paper, Table 1", {"abs_rel": 12.5}),)

    def failure(self, query: Query, truth: Truth, reason: str) -> Measurement | None:
        return Measurement(query.name, query.name[0], {"abs_rel": 100.0}) if "worst" in reason else None


def times(
    factor: float, broken: Sequence[str] = (), reason: str = "it broke"
) -> Callable[[Query, Truth], Answer]:
    """An oracle whose depth is the truth times a factor, and that fails on some samples."""

    def oracle(query: Query, truth: Truth) -> Answer:
        if query.name in broken:
            raise RunError(reason)
        return Answer({"depth": truth.need("depth") * factor})

    return oracle
