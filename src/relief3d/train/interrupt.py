"""Ctrl-C and SIGTERM as a wish: the step under way is finished and saved, then the run ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopWish:
    """Whether somebody asked the run to end."""

    def __init__(self) -> None:
        self.wanted = False

    def ask(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Handler of a signal: the first is a wish, a second Ctrl-C interrupts at once (saved files stay whole)."""
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True


@contextmanager
def stop_wishes() -> Iterator[StopWish]:
    """Catch SIGINT and SIGTERM inside; the handlers from before come back after. Only the main thread can."""
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = {number: signal.signal(number, wish.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def plain_signals(worker: int = 0) -> None:
    """In a worker process: Ctrl-C is the main process' business, and so is the first SIGTERM.

    Schedulers send SIGTERM to all processes of a job. A worker that died of it would be an error in the middle of the
    step that the main process wants to finish; that process ends its workers itself. A second one ends the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _second_ends)


def _second_ends(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
