"""LIBERO: success rate of a robot policy over four suites (MetricAnything Tab 10)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, numpy_generator
from relief3d.eval.metrics.answers import success_rate
from relief3d.eval.predictions import write_answer
from relief3d.eval.protocols.base import (
    Answer,
    Budget,
    Column,
    Measurement,
    Model,
    Protocol,
    Query,
    Sample,
    Truth,
)
from relief3d.eval.protocols.metric.frames import need_folder
from relief3d.eval.published.metric_downstream import TABLE_10
from relief3d.eval.published.table import PublishedRow
from relief3d.io.json_file import Record, read_json_object
from relief3d.io.names import natural_key

SUITES: Mapping[str, str] = {
    "libero_spatial": "spatial",
    "libero_object": "object",
    "libero_goal": "goal",
    "libero_10": "long",
}
"""Columns by the suite's folder."""
TASKS = 10
EPISODES = 50
_TWIN: Mapping[Budget, tuple[int, int]] = {"smoke": (2, 2), "mini": (TASKS, 10)}
_VERBS = ("pick up", "open", "push", "turn on", "put away", "lift")
_THINGS = ("the bowl", "the drawer", "the plate", "the stove", "the mug", "the cream cheese", "the book")


class Libero(Protocol):
    """Share of successful episodes per suite, and the mean of the four suites."""

    name = "libero"
    title = "LIBERO: success rate over four suites of ten tasks with 50 episodes each"
    source = "MetricAnything Tab 10; metric_depth 9.9, 10.5"
    task = "records"
    columns = (
        Column("spatial", "Spatial", "%", "higher"),
        Column("object", "Object", "%", "higher"),
        Column("goal", "Goal", "%", "higher"),
        Column("long", "Long", "%", "higher"),
        Column("avg", "Avg.", "%", "higher"),
    )
    layout = (
        "bddl_files/{libero_spatial,libero_object,libero_goal,libero_10}/<task>.bddl, ten each\n"
        'answers: one JSON per episode with "success", or the records of all in one (see split_records)'
    )
    notes = (
        "The simulator is not part of this toolkit: a policy is run elsewhere and its episodes are scored here.",
        "50 episodes per task; an episode without a record counts as failed.",
    )

    def open(self, data: Path) -> list[Sample]:
        """The 2000 episodes of the benchmark; see :class:`Protocol`."""
        root = need_folder(data, ("bddl_files", "libero/bddl_files", "libero/libero/bddl_files"), "LIBERO")
        out = []
        for suite in SUITES:
            tasks = sorted((root / suite).glob("*.bddl"), key=lambda p: natural_key(p.name))
            if len(tasks) != TASKS:
                raise InputError(
                    f"holds {len(tasks)} task files (*.bddl), expected {TASKS}",
                    path=root / suite,
                    remedy="check out LIBERO again",
                )
            out += [_sample(suite, t.stem, episode) for t in tasks for episode in range(EPISODES)]
        return out

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Made-up tasks; the truth is that all can be solved."""
        rng = numpy_generator(derive_seed(seed, self.name))
        tasks, episodes = _TWIN[budget]
        out = []
        for suite in SUITES:
            for index in range(tasks):
                words = f"{rng.choice(_VERBS)} {rng.choice(_THINGS)} {index}".replace(" ", "_")
                out += [_sample(suite, words, episode) for episode in range(episodes)]
        return out

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """One episode: ``facts["success"]`` is true or false."""
        success = answer.facts.get("success")
        if not isinstance(success, bool | int | float) or success not in (0, 1):
            raise InputError(f"the answer to '{query.name}' has no fact 'success' that is true or false")
        return self._measurement(query, truth, bool(success))

    def failure(self, query: Query, truth: Truth, reason: str) -> Measurement | None:
        """An episode without a record failed."""
        return self._measurement(query, truth, False)

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """Percent per suite over its episodes; the average counts every suite the same."""
        out = {}
        for key in SUITES.values():
            hits = [m.values[key] for m in measurements if key in m.values]
            out[key] = success_rate(int(sum(hits)), len(hits)) if hits else float("nan")
        known = [v for v in out.values() if math.isfinite(v)]
        out["avg"] = math.fsum(known) / len(known) if known else float("nan")
        return out

    def published(self) -> Sequence[PublishedRow]:
        """All rows of Tab 10."""
        return TABLE_10.rows

    def _measurement(self, query: Query, truth: Truth, success: bool) -> Measurement:
        return Measurement(
            query.name, str(truth.facts["group"]), {SUITES[str(truth.facts["suite"])]: float(success)}
        )


def read_records(path: Path) -> dict[str, bool]:
    """Recorded episodes by the name of their sample.

    Args:
        path: JSON: ``{"episodes": [{"suite": "libero_goal", "task": "...", "episode": 0, "success": true}, ...]}``,
            as a simulator's loop can write it; tasks are named by their .bddl file without ending.

    Raises:
        InputError: damaged, or an episode is recorded twice.
    """
    found: dict[str, bool] = {}
    for index, values in enumerate(Record(read_json_object(path), Path(path)).objects("episodes")):
        row = Record(values, Path(path), f"episode {index + 1}")
        suite, task, episode = row.text("suite"), row.text("task"), row.integer("episode")
        success = row.get("success")
        if (
            suite is None
            or suite not in SUITES
            or task is None
            or episode is None
            or not isinstance(success, bool)
        ):
            raise row.error(
                "needs 'suite', 'task', 'episode' and 'success' (true or false)",
                remedy=f"suites are {', '.join(SUITES)}",
            )
        if "/" in task or "\\" in task or episode < 0:
            raise row.error(f"'{task}' episode {episode} is no task of LIBERO", remedy="name the .bddl file")
        name = _name(suite, task, episode)
        if name in found:
            raise row.error(f"records {suite}/{task} episode {episode} again")
        found[name] = success
    return found


def answers_from_records(path: Path) -> Model:
    """A model that answers with recorded episodes (see :func:`read_records`).

    Raises:
        InputError: as :func:`read_records`; from the model: the episode has no record.
    """
    found = read_records(path)

    def recorded(query: Query) -> Answer:
        if query.name not in found:
            raise InputError(f"no record of {query.name}", path=path)
        return Answer(facts={"success": found[query.name]})

    return recorded


def split_records(path: Path, folder: Path) -> int:
    """Write recorded episodes as a folder of predictions for ``relief3d eval libero --predictions FOLDER``.

    Returns:
        The number of episodes.

    Raises:
        InputError: as :func:`read_records`.
    """
    found = read_records(path)
    for name, success in found.items():
        write_answer(folder, name, Answer(facts={"success": success}))
    return len(found)


def _name(suite: str, task: str, episode: int) -> str:
    return f"{suite}/{task}/{episode:02d}"


def _sample(suite: str, task: str, episode: int) -> Sample:
    name, group = _name(suite, task, episode), f"{suite}/{task}"
    facts: dict[str, Any] = {
        "suite": suite,
        "task": task,
        "episode": episode,
        "instruction": task.replace("_", " ").lower(),
    }

    def query() -> Query:
        return Query(name, "records", ("success",), facts={**facts, "default_answer": False})

    truth: Callable[[], Truth] = lambda: Truth(facts={"success": True, "suite": suite, "group": group})  # noqa: E731
    return Sample(name, group, query, truth)


PROTOCOLS: tuple[Protocol, ...] = (Libero(),)
