"""The same work on a Ray cluster, through Ray Data. The only file that imports Ray.

Ray moves work items, not pictures or labels: every node must see the input and the output folder under the same paths.
A worker that dies is started again by Ray, with the items it had; those that are done are not touched again. An item
that kills its workers repeatedly is quarantined by the count of its starts, as in the local pool.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from relief3d.core.errors import ReliefError, RunError
from relief3d.core.optional import require
from relief3d.labelling.execute import Job, Outcome, Workbench
from relief3d.labelling.items import WorkItem
from relief3d.labelling.pool import BUSY_SECONDS, Died

MAX_BLOCKS = 4096
"""Tasks into which the items of one round are divided at most."""


class RayWorker:
    """What runs in every actor: one workbench with one thread."""

    def __init__(self, job: Job) -> None:
        import torch

        torch.set_num_threads(1)
        self._bench = Workbench(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """One item as a row ``{"item": JSON}`` to its outcome as a row."""
        item = _item(row["item"])
        kills = self._bench.store.starts(self._bench.job.run.token, item.id)
        try:
            outcome = self._bench.execute(item)
            while outcome.state == "again":  # a second round of tasks would have to start actors anew
                outcome = self._bench.execute(item)
            return {**asdict(outcome), "kills": kills, "broken": ""}
        except ReliefError as exc:
            # An exception of ours would be wrapped and tried again; as a row it reaches the driver at once.
            return {**asdict(Outcome(item.id, "again")), "kills": kills, "broken": str(exc)}


def _item(text: str) -> WorkItem:
    values = json.loads(text)
    return WorkItem(values["id"], values["scene"], tuple(values["views"]), tuple(values["digests"]))


def run_ray(job: Job, items: Sequence[WorkItem], workers: int) -> Generator[Outcome | Died, None, None]:
    """Execute items on a Ray cluster: the one that RAY_ADDRESS names or this process is connected to, else a local one.

    Args:
        job: what to do.
        items: the items.
        workers: actors, one core each.

    Yields:
        As :func:`relief3d.labelling.pool.run_pool`.

    Raises:
        MissingExtraError: Ray is not installed.
        RunError: labels cannot be written, or the labeler cannot be built.
    """
    ray = require("ray", extra="cluster", purpose="labelling on a cluster")
    data = require("ray.data", extra="cluster", purpose="labelling on a cluster")
    started = not ray.is_initialized()
    if started:
        _connect(ray, workers)
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    try:
        waiting = list(items)
        while waiting:
            by_id = {item.id: item for item in waiting}
            again: list[WorkItem] = []
            pause = 0.0
            for row in _round(data, job, waiting, workers):
                item = by_id[row["id"]]
                if row["broken"]:
                    raise RunError(row["broken"])
                for _ in range(int(row["kills"])):
                    yield Died(item, "killed")
                if row["state"] in ("again", "busy"):
                    again.append(item)
                    pause = BUSY_SECONDS if row["state"] == "busy" else pause
                yield Outcome(row["id"], row["state"], bool(row["fresh"]), float(row["seconds"]))
            waiting = again
            if pause:
                time.sleep(pause)
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any, workers: int) -> None:
    """Join the cluster of RAY_ADDRESS, or start one of this process whose workers import from where it does."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return
    places = os.pathsep.join(p for p in sys.path if p)
    ray.init(
        num_cpus=workers + 1,
        include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": places}},
        **quiet,
    )


def _round(data: Any, job: Job, items: Sequence[WorkItem], workers: int) -> Iterator[dict[str, Any]]:
    rows = [{"item": json.dumps(asdict(item))} for item in items]
    blocks = min(len(rows), MAX_BLOCKS)
    outcomes = data.from_items(rows, override_num_blocks=blocks).map(
        RayWorker,
        fn_constructor_kwargs={"job": job},
        compute=data.ActorPoolStrategy(size=max(1, min(workers, len(rows)))),
        num_cpus=1,
    )
    yield from outcomes.iter_rows()
