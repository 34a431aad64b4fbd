"""VSI-Bench: questions about rooms seen in a video (MetricAnything Tab 11)."""

from __future__ import annotations

import functools
import importlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relief3d.core.errors import InputError, MissingExtraError
from relief3d.core.seeding import derive_seed
from relief3d.eval.aggregation import mean
from relief3d.eval.metrics.answers import mean_relative_accuracy, parse_choice, parse_number
from relief3d.eval.protocols.base import Answer, Budget, Column, Measurement, Protocol, Query, Sample, Truth
from relief3d.eval.protocols.downstream.vsi_rooms import Question, Room, ask, make_room
from relief3d.eval.published.metric_downstream import TABLE_11
from relief3d.eval.published.table import PublishedRow
from relief3d.eval.twins.rendered import query_scene
from relief3d.io.json_file import Record
from relief3d.io.whole_file import read_utf8

NUMERIC: Mapping[str, str] = {
    "object_counting": "obj_cnt",
    "object_abs_distance": "abs_dist",
    "object_size_estimation": "obj_size",
    "room_size_estimation": "room_size",
}
CHOICE: Mapping[str, str] = {
    "object_rel_distance": "rel_dist",
    "object_rel_direction_easy": "rel_dir",
    "object_rel_direction_medium": "rel_dir",
    "object_rel_direction_hard": "rel_dir",
    "route_planning": "route",
    "obj_appearance_order": "appr_order",
}
"""Columns by question type; the three levels of relative direction share one, each with the same weight."""
_COLUMN = {**NUMERIC, **CHOICE}
_KEYS = ("obj_cnt", "abs_dist", "obj_size", "room_size", "rel_dist", "rel_dir", "route", "appr_order")
_MAX_BYTES = 64 * 1024**2
_SIZES: Mapping[Budget, tuple[int, tuple[int, int]]] = {"smoke": (2, (24, 32)), "mini": (20, (120, 160))}


@dataclass(frozen=True)
class _Row:
    """A question of the data set."""

    name: str
    group: str
    question: Question
    facts: Mapping[str, Any]


def read_questions(root: Path) -> list[_Row]:
    """Questions of ``test.jsonl``, ``test.json`` or ``*.parquet``.

    Raises:
        InputError: no such file, a damaged line, an unknown question type, or a truth that cannot be one.
        MissingExtraError: there is only a parquet file and nothing to read it with.
    """
    table, where = _records(root)
    out, seen = [], set()
    for index, values in enumerate(table):
        row = _question(Record(values, where, f"question {index + 1}"), root, index)
        if row.name in seen:
            raise InputError(f"two questions are called '{row.name}'", path=where)
        seen.add(row.name)
        out.append(row)
    if not out:
        raise InputError("holds no questions", path=where)
    return out


def _records(root: Path) -> tuple[list[Mapping[str, Any]], Path]:
    for name in ("test.jsonl", "test.json"):
        path = root / name
        if path.is_file():
            return _json_records(path), path
    parquet = sorted(root.glob("*.parquet")) + sorted(root.glob("data/*.parquet"))
    if not parquet:
        raise InputError(
            "does not look like VSI-Bench: it has no test.jsonl, test.json or *.parquet",
            path=root,
            remedy="download the question table of the data set",
        )
    # The full table comes beside copies of parts of it ("test_debiased", "test_pruned").
    chosen = [p for p in parquet if p.name.startswith("test-")] or parquet[:1]
    out: list[Mapping[str, Any]] = []
    for path in chosen:
        out += _parquet_records(path)
    return out, chosen[0]


def _json_records(path: Path) -> list[Mapping[str, Any]]:
    text = read_utf8(path, max_bytes=_MAX_BYTES)
    try:
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as exc:
        raise InputError(f"not valid JSON: {exc}", path=path) from exc
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise InputError("must hold a list of questions", path=path)
    return rows


def _parquet_records(path: Path) -> list[Mapping[str, Any]]:
    try:
        frame = importlib.import_module("pandas").read_parquet(path)
    except ImportError as exc:
        raise MissingExtraError(
            f"reading {path.name} needs the packages 'pandas' and 'pyarrow'",
            remedy="pip install pandas pyarrow, or use test.jsonl of the same data set",
        ) from exc
    except (OSError, ValueError) as exc:
        raise InputError(f"cannot be read as parquet ({exc})", path=path) from exc
    return [dict(row) for row in frame.to_dict("records")]


def _question(row: Record, root: Path, index: int) -> _Row:
    kind, text, truth = row.text("question_type"), row.text("question"), row.get("ground_truth")
    if kind is None or text is None or truth is None:
        raise row.error("'question_type', 'question' or 'ground_truth' is missing")
    if kind not in _COLUMN:
        raise row.error(f"unknown question type '{kind}'", remedy=f"known are {', '.join(_COLUMN)}")
    given = row.get("options")
    # A table's empty cell is None in JSON and NaN in parquet.
    empty = given is None or (isinstance(given, float) and math.isnan(given))
    if not empty and (isinstance(given, str | Mapping) or not isinstance(given, Iterable)):
        raise row.error("'options' must be a list of texts")
    options = () if empty else tuple(str(o) for o in given)
    if kind in CHOICE:
        truth = parse_choice(str(truth), options)
        if not options or not truth:
            raise row.error("'ground_truth' names none of the 'options'")
    elif not 0 < parse_number(truth) < math.inf:
        raise row.error(f"'ground_truth' must be a positive number, not '{truth}'")
    data, scene = str(row.get("dataset") or "vsi"), str(row.get("scene_name") or "scene")
    video = root / data / f"{scene}.mp4"
    facts: dict[str, Any] = {"dataset": data, "scene_name": scene}
    if video.is_file():
        facts["video"] = str(video)
    number = row.get("id")
    name = f"{data}/{scene}/{index if number is None else number}"
    return _Row(name, f"{data}/{scene}", Question(kind, text, options, str(truth)), facts)


class VsiBench(Protocol):
    """Mean relative accuracy of numbers, accuracy of choices, per type; the mean of the eight types."""

    name = "vsi_bench"
    version = 2
    title = "VSI-Bench: eight kinds of questions about rooms in videos"
    source = "MetricAnything Tab 11; metric_depth 9.9, 10.6"
    task = "records"
    columns = (
        Column("obj_cnt", "Obj. count", "%", "higher"),
        Column("abs_dist", "Abs. dist.", "%", "higher"),
        Column("obj_size", "Obj. size", "%", "higher"),
        Column("room_size", "Room size", "%", "higher"),
        Column("rel_dist", "Rel. dist.", "%", "higher"),
        Column("rel_dir", "Rel. dir.", "%", "higher"),
        Column("route", "Route plan", "%", "higher"),
        Column("appr_order", "Appr. order", "%", "higher"),
        Column("avg", "Avg.", "%", "higher"),
        Column("rank", "Rank", "", "lower"),
    )
    layout = (
        "test.jsonl (or test.json, or test-*.parquet): id, dataset, scene_name, question_type, question, options, "
        "ground_truth\n<dataset>/<scene_name>.mp4 (optional; its path is handed to the model as 'video')"
    )
    notes = (
        "Numbers: share of ten thresholds with relative error below 1 - theta (strict; the benchmark's own script "
        "counts equality too). The first number in an answer is taken.",
        "Choices: the letter, or the option's own words. No answer counts as wrong.",
        "Relative direction is the mean of its three levels; the average is over the types that were asked.",
        "The rank counts published averages that are higher, and is left out on the procedural twin.",
        "In the twin, distances refer to centres of boxes and route questions ignore furniture in between.",
    )

    def open(self, data: Path) -> list[Sample]:
        """One sample per question; see :class:`Protocol`."""
        return [_sample(row) for row in read_questions(data)]

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Questions about procedural rooms with exact answers."""
        count, size = _SIZES[budget]
        build = functools.lru_cache(maxsize=2)(make_room)
        out = []
        for index in range(count):
            own = derive_seed(seed, self.name, index)
            # Which questions a room answers is only known once it is built; pictures are made again when asked for.
            for question in ask(build(own, size), own):
                out.append(_twin_sample(f"room{index:03d}", question, own, size, build))
        return out

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """Score one answer: ``facts["answer"]``, a number or a text."""
        if "answer" not in answer.facts:
            raise InputError(f"the answer to '{query.name}' has no fact 'answer'")
        return self._measurement(query, truth, _score(truth, answer.facts["answer"]))

    def failure(self, query: Query, truth: Truth, reason: str) -> Measurement | None:
        """No answer is a wrong one."""
        return self._measurement(query, truth, 0.0)

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """Percent per type, their mean, and the place among the published averages."""
        types = {kind: mean(measurements, kind) for kind in _COLUMN}
        out = {key: _mean([types[k] for k in _COLUMN if _COLUMN[k] == key]) for key in _KEYS}
        out["avg"] = _mean([out[key] for key in _KEYS])
        real = bool(measurements) and all("published" in m.values for m in measurements)
        better = [r for r in TABLE_11.rows if r.values["avg"] > out["avg"]]
        out["rank"] = 1.0 + len(better) if real and math.isfinite(out["avg"]) else float("nan")
        return out

    def published(self) -> Sequence[PublishedRow]:
        """All rows of Tab 11."""
        return TABLE_11.rows

    def _measurement(self, query: Query, truth: Truth, score: float) -> Measurement:
        values = {str(truth.facts["question_type"]): 100 * score}
        if truth.facts.get("published"):
            values["published"] = 1.0
        return Measurement(query.name, str(truth.facts["group"]), values)


def _score(truth: Truth, answer: object) -> float:
    """In [0, 1]."""
    kind, right = str(truth.facts["question_type"]), str(truth.facts["answer"])
    if kind in NUMERIC:
        return mean_relative_accuracy(parse_number(answer), parse_number(right))
    return float(parse_choice(answer, truth.facts["options"]) == right)


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return math.fsum(known) / len(known) if known else float("nan")


def _sample(row: _Row) -> Sample:
    return Sample(
        row.name,
        row.group,
        load_query=lambda: Query(
            row.name, "records", ("answer",), facts=_shown(row.question) | dict(row.facts)
        ),
        load_truth=lambda: _truth(row.question, row.group, True),
    )


def _twin_sample(group: str, question: Question, seed: int, size: tuple[int, int], build: Any) -> Sample:
    name = f"{group}/{question.kind}"

    def query() -> Query:
        room: Room = build(seed, size)
        return Query(name, "records", ("answer",), scene=query_scene(room.images), facts=_shown(question))

    return Sample(name, group, query, lambda: _truth(question, group, False))


def _shown(question: Question) -> dict[str, Any]:
    return {
        "question_type": question.kind,
        "question": question.text,
        "options": list(question.options),
        "instruction": (
            "Answer with the option's letter." if question.options else "Answer with a single number."
        ),
    }


def _truth(question: Question, group: str, published: bool) -> Truth:
    facts = {
        "answer": question.truth,
        "question_type": question.kind,
        "options": list(question.options),
        "group": group,
        "published": published,
    }
    return Truth(facts=facts)


PROTOCOLS: tuple[Protocol, ...] = (VsiBench(),)
