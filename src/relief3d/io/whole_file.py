"""Read a whole file into memory, within a limit and with one sentence for every failure."""

from __future__ import annotations

from pathlib import Path

from relief3d.core.errors import InputError
from relief3d.io.formats import check_regular_file, unreadable

GIB = 1024**3


def read_whole(path: str | Path, *, max_bytes: int = 4 * GIB) -> bytes:
    """The bytes of a regular, non-empty file.

    Raises:
        InputError: missing, empty, not a regular file, not readable, or above ``max_bytes``.
    """
    path = check_regular_file(path, max_bytes=max_bytes)
    try:
        return path.read_bytes()
    except OSError as exc:
        raise unreadable(path, exc) from exc


def read_utf8(path: str | Path, *, max_bytes: int = GIB) -> str:
    """The text of a UTF-8 file (a byte-order mark is dropped).

    Raises:
        InputError: as :func:`read_whole`, or when the bytes are not UTF-8.
    """
    try:
        return read_whole(path, max_bytes=max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InputError("the file is not UTF-8 text", path=path) from exc
