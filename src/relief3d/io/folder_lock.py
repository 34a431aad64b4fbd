"""One process at a time in an output folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from relief3d.core.errors import InputError


def lock_folder(root: Path) -> int | None:
    """Lock the folder itself (no lock file can be left behind); the handle to close, None without such locks.

    Raises:
        InputError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(handle)
        raise InputError(
            "another relief3d run is working in this output folder",
            path=root,
            remedy="wait for it or choose another folder",
        ) from exc
    except OSError:
        os.close(handle)
        return None  # network file systems without locks
    return handle


@contextmanager
def locked_folder(
    root: Path, patience: float = 0.0, say: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the lock of an existing folder.

    Args:
        root: the folder.
        patience: seconds to wait for it: worker processes of a run that was killed keep it until they notice.
        say: told once when there is something to wait for.

    Raises:
        InputError: another process still holds it.
    """
    end = time.monotonic() + patience
    waiting = False
    while True:
        try:
            handle = lock_folder(root)
            break
        except InputError:
            if time.monotonic() >= end:
                raise
            if not waiting and say is not None:
                say(f"{root} is in use; waiting up to {patience:.0f} s")
            waiting = True
            time.sleep(min(0.2, patience))
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
