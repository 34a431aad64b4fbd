"""Independent tensor work on several cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
MAX_WORKERS = 8


def worker_count(device: torch.device, items: int) -> int:
    """Threads worth using: the cores this process may use on the CPU (as set for torch), one on an accelerator."""
    if device.type != "cpu":
        return 1
    return max(1, min(torch.get_num_threads(), os.cpu_count() or 1, MAX_WORKERS, items))


def map_on_cores(
    function: Callable[[Item], Result], items: Sequence[Item], device: torch.device
) -> Iterator[Result]:
    """Yield ``function(item)`` in order, computing several items at a time without gradients.

    On the CPU every worker computes with one thread. Splitting the many small operations of one item over all cores
    instead makes the cores wait for each other: measured three times slower as soon as anything else runs.
    When the consumer stops early or an item fails, items that have not begun are dropped.
    """
    workers = worker_count(device, len(items))

    def work(item: Item) -> Result:
        with torch.no_grad():
            return function(item)

    if workers == 1:
        yield from map(work, items)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)  # the workers' setting reaches some libraries of the whole process
