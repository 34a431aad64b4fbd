"""What a program needs around a run in several processes: one voice, one exit code, and what a failure teaches."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from relief3d.core.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    InputError,
    ReliefError,
    RunError,
)
from relief3d.io.json_file import read_json_object, write_json
from relief3d.train.engine import Engine

T = TypeVar("T")
MEMORY_FILE = "memory.json"
_PATIENCE = timedelta(seconds=60)
_LOST = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out waiting")


def world_size() -> int:
    """Processes that a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched() -> bool:
    """Whether this process is one of several that a launcher started."""
    return world_size() > 1


def is_first() -> bool:
    """Whether this process is the only one or number 0 of several: the one that writes and speaks."""
    return not launched() or int(os.environ.get("RANK", "0")) == 0


@contextmanager
def one_voice() -> Iterator[None]:
    """Of several processes, the first that ends with an error raises it; all others exit silently with its code.

    The launcher's store, where processes find each other, holds who was first; nothing waits for anybody. Without
    several processes nothing changes.

    Raises:
        SystemExit: another process has raised what ends this one too.
        RunError: another process is gone without a word.
    """
    if not launched():
        yield
        return
    store, rank = _store(), os.environ["RANK"]
    if rank != "0":
        warnings.simplefilter("ignore")
    try:
        yield
    except (Exception, KeyboardInterrupt) as exc:
        code = _exit_code(exc)
        # A launcher that starts all processes anew keeps its store.
        key = f"relief3d/ended/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        try:
            winner, _, first_code = store.compare_set(key, "", f"{rank}:{code}").decode().partition(":")
        except RuntimeError:  # its keeper is gone, who had the word before it went
            raise SystemExit(code) from None
        if winner != rank:
            raise SystemExit(int(first_code)) from None
        if _lost(exc):
            raise RunError(
                "lost the connection to another process of this run",
                remedy="look for what ended it, memory above all, and run the same command again",
            ) from exc
        raise


def _store() -> dist.Store:
    """The store that the launcher (or process 0) keeps for all."""
    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store, _, _ = next(dist.rendezvous("env://", rank, world, timeout=_PATIENCE))
        return store
    except (KeyError, ValueError, RuntimeError) as exc:
        raise InputError(
            f"processes cannot find each other ({' '.join(str(exc).split())})",
            remedy="use torchrun or accelerate launch (docs/distributed.md)",
        ) from exc


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return error.exit_code if isinstance(error, ReliefError) else EXIT_FAILED


def _lost(error: BaseException) -> bool:
    """Whether an error says that another process does not answer."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and not isinstance(error, ReliefError)
        and any(word in text for word in _LOST)
    )


def by_first(engine: Engine, work: Callable[[], T]) -> T | None:
    """What ``work`` returns on process 0; None on the others, which wait for it.

    Raises:
        RunError: on the others, when ``work`` failed; process 0 raises what it raised.
    """
    result, error = None, None
    if engine.rank == 0:
        try:
            result = work()
        except Exception as exc:
            error = exc
    failed = engine.total(torch.zeros((), device=engine.device), float(error is not None))[1]
    if error is not None:
        raise error
    if failed:
        raise RunError("process 0 failed")
    return result


def remember_parts(folder: Path, parts: int) -> None:
    """Note in a run's folder that batches have to go through in so many pieces."""
    write_json(folder / MEMORY_FILE, {"parts": parts})


def remembered_parts(folder: Path) -> int:
    """Pieces that an earlier failure asked for; 1 without one.

    Raises:
        InputError: the note is damaged.
    """
    path = folder / MEMORY_FILE
    if not path.is_file():
        return 1
    found = read_json_object(path).get("parts")
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise InputError("does not hold a number of parts", path=path, remedy="remove this file")
    return found
