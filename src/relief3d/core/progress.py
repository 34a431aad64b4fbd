"""Progress of long work: stages, steps and an ETA, independent of any terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Protocol, TextIO, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """What long-running code reports to. Implementations must be cheap to call."""

    def start(self, stage: str, total: int | None = None) -> None:
        """Begin ``stage`` with ``total`` steps (None: unknown)."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Say that ``steps`` more steps of the current stage are done."""

    def finish(self, note: str = "") -> None:
        """End the current stage."""

    def message(self, text: str) -> None:
        """One line that stays visible."""


class SilentProgress:
    """Reports nothing; the default of library calls."""

    def start(self, stage: str, total: int | None = None) -> None: ...
    def advance(self, steps: int = 1, note: str = "") -> None: ...
    def finish(self, note: str = "") -> None: ...
    def message(self, text: str) -> None: ...


class ConsoleProgress:
    """Writes stages with elapsed time and ETA to a stream.

    On a terminal the line is redrawn in place; elsewhere (logs, CI) one line per stage start and end
    is printed, plus at most one step line every ``log_every`` seconds.
    """

    def __init__(self, stream: TextIO | None = None, log_every: float = 10.0) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._tty = self._stream.isatty()
        self._log_every = log_every
        self._stage = ""
        self._total: int | None = None
        self._done = 0
        self._began = 0.0
        self._last = 0.0
        self._paced: tuple[float, int] | None = None

    def start(self, stage: str, total: int | None = None) -> None:
        self._stage, self._total, self._done = stage, total, 0
        self._began = self._last = time.monotonic()
        self._paced = None
        self._draw(force=True)

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        if self._paced is None:
            # The first report may be of what an earlier run did, which says nothing about the speed of this one.
            self._paced = (time.monotonic(), self._done)
        self._draw(note)

    def finish(self, note: str = "") -> None:
        elapsed = time.monotonic() - self._began
        self._line(f"  {self._stage}: done in {elapsed:.1f} s{'  ' + note if note else ''}", "\n")

    def message(self, text: str) -> None:
        self._line(f"  {text}", "\n")

    def _draw(self, note: str = "", force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._last < (0.1 if self._tty else self._log_every):
            return
        self._last = now
        text = f"  {self._stage}"
        if self._total:
            text += f"  {self._done}/{self._total}"
            if self._paced is not None and self._paced[1] < self._done < self._total:
                eta = (now - self._paced[0]) / (self._done - self._paced[1]) * (self._total - self._done)
                text += f"  ETA {eta:.0f} s"
        text += f"  {note}" if note else ""
        self._line(text, "" if self._tty else "\n")

    def _line(self, text: str, end: str) -> None:
        prefix = "\r\x1b[2K" if self._tty else ""
        try:
            self._stream.write(f"{prefix}{text}{end}")
            self._stream.flush()
        except (BrokenPipeError, ValueError):
            pass  # a closed terminal must not stop the work


@contextmanager
def stage(progress: Progress, name: str, total: int | None = None) -> Iterator[Progress]:
    """Start and finish a stage: ``with stage(progress, "stereo", n): ...``."""
    progress.start(name, total)
    yield progress
    progress.finish()


def track(progress: Progress, name: str, items: Iterable[T], total: int | None = None) -> Iterator[T]:
    """Iterate over ``items`` while reporting one step for each."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with stage(progress, name, total):
        for item in items:
            yield item
            progress.advance()
