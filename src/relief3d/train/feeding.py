"""Batches in order of their position, prepared ahead in worker processes when asked."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from relief3d.core.errors import ReliefError, RunError
from relief3d.train.interrupt import plain_signals
from relief3d.train.task import Task

_SIGNAL = 1.0
"""Seconds in which the signal of a worker's end arrives."""


@dataclass(frozen=True)
class _Failed:
    """An error of a worker, carried whole: torch would turn it into a traceback."""

    error: ReliefError


class _Positions(Dataset[Any]):
    """A task's batches by position."""

    def __init__(self, task: Task, part: int, parts: int) -> None:
        self.task, self.part, self.parts = task, part, parts

    def __getitem__(self, position: int) -> Any:
        try:
            return self.task.batch(position, self.part, self.parts)
        except ReliefError as exc:
            return _Failed(exc)


def feed(
    task: Task, first: int, last: int, *, workers: int = 0, part: int = 0, parts: int = 1
) -> Generator[Any, None, None]:
    """Batches ``first`` ... ``last - 1``; the order and content do not depend on ``workers``.

    Args:
        task: makes batches; must be picklable where workers are started afresh.
        first: position of the first batch.
        last: one after the position of the last.
        workers: processes.
        part: share of every batch that is wanted.
        parts: number of shares.
    """
    if workers == 0:
        for position in range(first, last):
            yield task.batch(position, part, parts)
        return
    # The order of sampler and workers is fixed: batch i comes from worker i mod n, whatever is ready first.
    loader: DataLoader[Any] = DataLoader(
        _Positions(task, part, parts),
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        worker_init_fn=plain_signals,
        generator=torch.Generator(),  # torch draws a seed for its workers; not from the run's random numbers
    )
    ready = iter(loader)
    for _ in range(first, last):
        batch = _next(ready)
        if isinstance(batch, _Failed):
            raise batch.error
        yield batch
    next(ready, None)  # its end sends the workers home


def _next(ready: Iterator[Any]) -> Any:
    """The next batch.

    Raises:
        RuntimeError: torch's word that a worker died.
        RunError: a worker is gone, and torch did not hear of it.
    """
    try:
        return next(ready)
    except (ConnectionError, EOFError) as exc:
        # It died while it handed a batch over. Its end is told by a signal, which may come a moment later.
        time.sleep(_SIGNAL)
        raise RunError(
            "a process that prepares batches died while it handed one over",
            remedy="use fewer workers when the memory is short; resuming goes on from the last save",
        ) from exc
