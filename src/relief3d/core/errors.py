"""Errors a person can act on.

Every error raised on purpose is a :class:`ReliefError`: one sentence that names the file (if any)
and the remedy. The command line turns it into that sentence plus an exit code; a traceback is shown
only with ``--debug``.
"""

from __future__ import annotations

from pathlib import Path

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class ReliefError(Exception):
    """Base of all deliberate errors.

    Args:
        message: what is wrong, without a trailing full stop.
        path: the file or folder concerned, shown first.
        remedy: what the user can do about it, without a trailing full stop.
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, path: str | Path | None = None, remedy: str | None = None) -> None:
        self.message = message
        self.path = None if path is None else Path(path)
        self.remedy = remedy
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        head = f"{self.path}: " if self.path is not None else ""
        tail = f" ({self.remedy})" if self.remedy else ""
        return f"{head}{self.message}{tail}"

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments need help to cross process boundaries (worker pools).
        return (_rebuild, (type(self), self.message, self.path, self.remedy))


def _rebuild(cls: type[ReliefError], message: str, path: Path | None, remedy: str | None) -> ReliefError:
    return cls(message, path=path, remedy=remedy)


class InputError(ReliefError):
    """What the user gave cannot be used: bad file, bad option, impossible request. Exit code 2."""

    exit_code = EXIT_BAD_INPUT


class RunError(ReliefError):
    """Something failed while running on acceptable input (disk full, solver failure). Exit code 1."""


class MissingExtraError(InputError):
    """An optional dependency is not installed; the remedy is the pip command. Exit code 2."""
