"""Around a run: its folder is its own, and errors of the machine become sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from relief3d.core.device import is_out_of_memory
from relief3d.core.errors import RunError
from relief3d.io.atomic import remove_leftovers, write_error
from relief3d.io.folder_lock import locked_folder
from relief3d.train.checkpoint import FOLDER, bring_back
from relief3d.train.run_log import PANEL_FOLDER

PATIENCE = 15.0
"""Seconds to wait for a folder: workers of a run that was killed hold its lock until they notice."""


@contextmanager
def alone_in(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """The run's folder, made, without what killed runs left, and locked against a second run.

    Args:
        folder: of the run.
        say: told once when another run has to be waited for.

    Raises:
        InputError: another process trains here, or the folder cannot be made.
    """
    try:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise write_error(folder, exc) from exc
    with locked_folder(folder / FOLDER, PATIENCE, say):
        bring_back(folder)
        # A checkpoint that was cut off may fill the disk that the next one needs.
        for place in (folder, folder / FOLDER, folder / PANEL_FOLDER):
            remove_leftovers(place)
        yield


@contextmanager
def in_words() -> Iterator[None]:
    """Errors of the machine that are nobody's mistake, as one sentence.

    Raises:
        RunError: the memory ran out where no smaller parts help, or a worker died.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        if is_out_of_memory(exc):
            raise RunError(
                f"out of memory outside of the losses (weights, update, average or evaluation): {reason}",
                remedy="use a smaller network or evaluation, or a larger device; resuming goes on from the last save",
            ) from exc
        if "DataLoader worker" in reason:
            raise RunError(
                f"a process that prepares batches died: {reason.strip()}",
                remedy="use fewer workers when the memory is short; resuming goes on from the last save",
            ) from exc
        raise
