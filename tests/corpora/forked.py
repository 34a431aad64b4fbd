"""Several processes of one run without a launcher: forks of the test's process, so that nothing is imported again."""

from __future__ import annotations

import importlib
import os
import re
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from relief3d.core.optional import available


def preload(*modules: str) -> None:
    """Import what the forks will need once, here; what is not installed stays absent."""
    for module in modules:
        if available(module.partition(".")[0]):
            importlib.import_module(module)


@dataclass(frozen=True)
class Ended:
    """Exit codes (negative: signals) and what was written, by process."""

    codes: list[int]
    out: list[str]
    err: list[str]


def forked(
    work: Callable[[], object],
    *,
    processes: int = 2,
    meanwhile: Callable[[Sequence[int]], None] | None = None,
    timeout: float = 280.0,
) -> Ended:
    """Run ``work`` in every process, with the environment that ``torchrun`` would give.

    Args:
        work: ends normally (code 0), by SystemExit, or by an error (code 1 and a traceback).
        processes: how many.
        meanwhile: gets the processes' numbers.
        timeout: seconds after which all are killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pids = [_fork(work, rank, processes, port, folder) for rank in range(processes)]
        try:
            if meanwhile is not None:
                meanwhile(pids)
            codes = _wait(pids, timeout)
        except BaseException:
            _kill(pids)
            raise
        out, err = (
            [(folder / f"{kind}{r}").read_text() for r in range(processes)] for kind in ("out", "err")
        )
    return Ended(codes, out, [own_words(text) for text in err])


def own_words(text: str) -> str:
    """What a process said, without libtorch's warnings: it may complain when the keeper of the store is gone first."""
    noise = re.compile(
        r"(\[rank\d+\]:)?\s*\[[WE]\d|Exception raised from |frame #\d|<omitting python frames>|$"
    )
    return "".join(line for line in text.splitlines(keepends=True) if not noise.match(line))


def _fork(work: Callable[[], object], rank: int, world: int, port: int, folder: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for number, kind in ((1, "out"), (2, "err")):
            file = os.open(folder / f"{kind}{rank}", os.O_CREAT | os.O_WRONLY)
            os.dup2(file, number)
        # pytest put its own streams in their place.
        sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1) for n in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        torch.set_num_threads(1)
        work()
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pids: Sequence[int], timeout: float) -> list[int]:
    codes: dict[int, int] = {}
    end = time.monotonic() + timeout
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            raise TimeoutError(f"processes still run after {timeout} s")
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue
