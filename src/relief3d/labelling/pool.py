"""Worker processes on this machine that may die at any moment without losing an item.

Every worker computes with one thread and holds one item at a time, so a dead worker tells which item to hand out
again. ``concurrent.futures`` gives up the whole pool in that case, hence this one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from relief3d.core.errors import ReliefError, RunError
from relief3d.labelling.execute import Job, Outcome, Workbench
from relief3d.labelling.items import WorkItem

StartMethod = Literal["auto", "forkserver", "spawn"]

BUSY_SECONDS = 1.0
"""Pause before an item that another run holds is looked at again."""

START_SECONDS = 180.0
"""A worker that is not ready after this time is given up."""

_STARTS_IN_VAIN = 3


@dataclass(frozen=True)
class Died:
    """A worker that was lost, with the item it held."""

    item: WorkItem
    reason: str


@dataclass
class _Worker:
    process: BaseProcess
    link: Connection
    ready: bool = False
    item: WorkItem | None = None
    since: float = 0.0


def start_context(method: StartMethod) -> Any:
    """``forkserver`` where there is one, else ``spawn``; never plain ``fork``, which copies locks that threads hold."""
    if method == "auto":
        method = "forkserver" if sys.platform.startswith("linux") else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["relief3d.labelling.pool"])
    return context


def run_pool(
    job: Job,
    items: Sequence[WorkItem],
    workers: int,
    *,
    item_timeout: float | None = None,
    method: StartMethod = "auto",
) -> Generator[Outcome | Died, None, None]:
    """Execute items on worker processes; yields an outcome for every attempt and every lost worker.

    Items that fail for now, whose worker dies, or which another run holds, are handed out again; the iteration ends
    when every item is done or failed for good. Closing the iterator stops the workers at once.

    Args:
        job: what to do.
        items: the items.
        workers: processes.
        item_timeout: seconds after which a worker is killed.
        method: how processes are started.

    Raises:
        ReliefError: the labeler cannot be built, or labels cannot be written.
        RunError: workers die before they can begin.
    """
    context = start_context(method)
    waiting: deque[WorkItem] = deque(items)
    later: list[tuple[float, WorkItem]] = []
    crew: list[_Worker] = []
    in_vain = 0
    try:
        while waiting or later or any(w.item is not None for w in crew):
            now = time.monotonic()
            waiting.extend(item for at, item in later if at <= now)
            later = [(at, item) for at, item in later if at > now]
            open_items = len(waiting) + len(later) + sum(w.item is not None for w in crew)
            while len(crew) < min(workers, open_items):
                crew.append(_start(context, job))
            for worker in crew:
                if worker.ready and worker.item is None and waiting:
                    _hand_out(worker, waiting)
            for worker in _events(crew, item_timeout, bool(later)):
                message = _receive(worker)
                if message == "ready":
                    worker.ready, in_vain = True, 0
                elif isinstance(message, Outcome) and worker.item is not None:
                    item, worker.item = worker.item, None
                    if message.state == "busy":
                        later.append((time.monotonic() + BUSY_SECONDS, item))
                    elif message.state == "again":
                        waiting.append(item)
                    yield message
                elif isinstance(message, ReliefError):
                    raise message
                else:
                    crew.remove(worker)
                    reason = _bury(worker)
                    if not worker.ready:
                        in_vain += 1
                        if in_vain >= _STARTS_IN_VAIN:
                            raise RunError(f"workers die before they can begin ({reason})")
                    if worker.item is not None:
                        waiting.append(worker.item)
                        yield Died(worker.item, reason)
    finally:
        _dismiss(crew)


def _start(context: Any, job: Job) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=worker_main, args=(theirs, job), daemon=True, name="relief3d label")
    process.start()
    theirs.close()
    return _Worker(process, ours, since=time.monotonic())


def _hand_out(worker: _Worker, waiting: deque[WorkItem]) -> None:
    item = waiting.popleft()
    worker.item, worker.since = item, time.monotonic()
    # When it died just now, the next look at its link notices, and the item is handed out again.
    with contextlib.suppress(OSError):
        worker.link.send(item)


def _events(crew: Sequence[_Worker], item_timeout: float | None, watch: bool) -> list[_Worker]:
    """Workers with a message, or that are gone; those over their time are killed here."""
    limit = 0.2 if watch or item_timeout is not None else 1.0
    ready = set(wait([w.link for w in crew], timeout=limit))
    now = time.monotonic()
    for worker in crew:
        if item_timeout is not None and worker.item is not None and now - worker.since > item_timeout:
            worker.process.kill()
        if not worker.ready and now - worker.since > START_SECONDS:
            worker.process.kill()
    # A worker that dies closes its end of the link, which makes the link ready; unless a process that its labeler has
    # forked still holds a copy of that end.
    return [w for w in crew if w.link in ready or not w.process.is_alive()]


def _receive(worker: _Worker) -> Any:
    """What a worker says; None when it is gone without a word."""
    try:
        return worker.link.recv() if worker.link.poll() else None
    except (EOFError, OSError):
        return None


def _bury(worker: _Worker) -> str:
    worker.link.close()
    worker.process.join(5.0)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    code = worker.process.exitcode
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _dismiss(crew: Sequence[_Worker]) -> None:
    """Idle workers leave by themselves when their link closes; the others are killed."""
    for worker in crew:
        if worker.item is not None:
            worker.process.kill()
        worker.link.close()
    for worker in crew:
        worker.process.join(5.0)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _leave_with_parent() -> None:
    """End this process when the one that started it is gone, even in the middle of an item."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()


def worker_main(link: Connection, job: Job) -> None:
    """A worker: builds the labeler once, then labels what it is sent until the link closes."""
    import torch

    # Ctrl-C reaches the whole process group; the parent decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _leave_with_parent()
    try:
        bench = Workbench(job)
        link.send("ready")
        while True:
            link.send(bench.execute(link.recv()))
    except (EOFError, BrokenPipeError):
        return
    except Exception as exc:  # not the labeler's, whose errors become outcomes
        known = (
            exc
            if isinstance(exc, ReliefError)
            else RunError(f"a worker failed ({type(exc).__name__}: {exc})")
        )
        with contextlib.suppress(BrokenPipeError):
            link.send(known)
