"""The pycolmap library: late import, quiet logging, interruptible calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

from relief3d.core.errors import RunError
from relief3d.core.optional import require

T = TypeVar("T")
_POLL_SECONDS = 0.1
_CANCEL_SECONDS = 20.0
_LOG_FATAL_ONLY = 3


def load() -> ModuleType:
    """The pycolmap module.

    Raises:
        MissingExtraError: when it is not installed.
    """
    return require("pycolmap", extra="sfm", purpose="estimating cameras from pictures")


@contextmanager
def quiet(pycolmap: ModuleType) -> Iterator[None]:
    """Keep COLMAP's log at errors for a while; its level is process-wide, so it is put back."""
    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = _LOG_FATAL_ONLY
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = before


def run_interruptible(pycolmap: ModuleType, work: Callable[[Any], T], *, seed: int, what: str) -> T:
    """Run a long COLMAP call in a thread so that Ctrl-C reaches Python at once.

    COLMAP runs outside the interpreter for minutes, and a signal handler of Python runs only on the main
    thread between two byte codes. The call therefore gets its own thread (COLMAP's random numbers are
    thread-local, so the seed is set there) and a cancellation token.

    Args:
        pycolmap: the module.
        work: takes the cancellation token and returns the result.
        seed: for COLMAP's random numbers in that thread.
        what: name of the step for the error message.

    Raises:
        KeyboardInterrupt: passed on after COLMAP was told to stop.
        RunError: when COLMAP fails.
    """
    token = pycolmap.CancellationToken()
    done: list[T] = []
    failed: list[BaseException] = []

    def body() -> None:
        pycolmap.set_random_seed(seed)
        try:
            done.append(work(token))
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=body, daemon=True, name=f"colmap {what}")
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
    except BaseException:
        token.cancel()
        thread.join(_CANCEL_SECONDS)
        raise
    if failed:
        raise RunError(f"COLMAP failed while {what}: {failed[0]}") from failed[0]
    return done[0]
