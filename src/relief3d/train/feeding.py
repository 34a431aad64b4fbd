"""Batches in order of their position, prepared ahead in worker processes when asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from relief3d.train.task import Task


class _Positions(Dataset[Any]):
    """A task's batches by position."""

    def __init__(self, task: Task, part: int, parts: int) -> None:
        self.task, self.part, self.parts = task, part, parts

    def __getitem__(self, position: int) -> Any:
        return self.task.batch(position, self.part, self.parts)


def feed(
    task: Task, first: int, last: int, *, workers: int = 0, part: int = 0, parts: int = 1
) -> Iterator[Any]:
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
    )
    yield from loader
