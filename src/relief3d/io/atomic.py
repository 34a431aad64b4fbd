"""Files and folders that are complete or absent, and the rules for output folders.

A file is written under a temporary name in its own folder, flushed to disk, then renamed: a reader
sees the old content or the new, never half of it. Errors of the operating system become one sentence.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from relief3d.core.errors import InputError, ReliefError, RunError

TEMP_PREFIX = ".relief3d-"
"""Names that start like this are leftovers of a killed process and may be deleted."""

_MAPPED: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", "free some space or choose another output folder"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or choose another output folder"),
    errno.EROFS: ("the disk is read-only", "choose another output folder"),
    errno.EACCES: ("no permission to write here", "choose another output folder or change its permissions"),
    errno.EPERM: ("no permission to write here", "choose another output folder or change its permissions"),
    errno.ENAMETOOLONG: ("the file name is too long for this disk", "use a shorter name"),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "choose another output folder"),
    errno.EISDIR: ("is a folder, not a file", "choose another name"),
    errno.ENOENT: ("the folder does not exist", "create it first"),
    errno.ELOOP: ("is a symbolic link that leads back to itself", "remove the link"),
}


def write_error(path: str | Path, exc: OSError) -> ReliefError:
    """Turn an error of the operating system during writing into one sentence.

    Conditions the user can change (full or read-only disk, permissions, names) become
    :class:`InputError`; anything else, such as a failing disk, becomes :class:`RunError`.
    """
    known = _MAPPED.get(exc.errno or 0)
    if known is not None:
        return InputError(known[0], path=path, remedy=known[1])
    return RunError(f"cannot be written ({exc.strerror or exc})", path=path)


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk; folders cannot be opened on some systems."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except OSError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    except OSError as exc:
        tolerated = {errno.EINVAL, errno.ENOTSUP} | ({errno.EBADF, errno.EACCES} if path.is_dir() else set())
        if exc.errno not in tolerated:
            raise
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    """Delete a temporary file or folder; a failure must not hide the error that led here."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as exc:
        raise write_error(path, exc) from exc
    except ValueError as exc:  # a NUL in the name
        raise InputError(f"not a usable file name: {str(path)!r}") from exc


def _make_parent(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        if isinstance(exc, FileExistsError):
            exc = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        raise write_error(target.parent, exc) from exc


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path with the suffix of ``target``; rename it to ``target`` on success.

    The parent folder is created. On any error (Ctrl-C included) the temporary file is deleted and an
    existing ``target`` is left as it was.

    Example:
        >>> with atomic_path("out/mesh.ply") as temporary:  # doctest: +SKIP
        ...     temporary.write_bytes(data)

    Raises:
        InputError: full or read-only disk, no permission, ``target`` is a folder.
        RunError: other failures of the operating system, or nothing was written.
    """
    target = Path(target)
    if _is_folder(target):
        raise InputError("is a folder, not a file", path=target, remedy="choose another name")
    _make_parent(target)
    temporary = target.parent / f"{TEMP_PREFIX}{uuid.uuid4().hex[:12]}{target.suffix[:16]}"
    try:
        yield temporary
        if not temporary.is_file():
            raise RunError("nothing was written", path=target)
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    except OSError as exc:
        raise write_error(target, exc) from exc
    finally:
        _remove(temporary)


def _exists(target: Path) -> InputError:
    return InputError("exists already", path=target, remedy="use --overwrite or another name")


@contextmanager
def atomic_folder(target: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``target``; rename it to ``target`` on success.

    For outputs that are several files which belong together (a COLMAP model). With ``overwrite`` an
    existing folder is moved away first and deleted last; without it, of several writers exactly one wins.

    Raises:
        InputError: ``target`` exists (or appears meanwhile) and ``overwrite`` is false; disk full, read-only, no
            permission.
    """
    target = Path(target)
    if target.exists() and not overwrite:
        raise _exists(target)
    _make_parent(target)
    token = uuid.uuid4().hex[:12]
    temporary, old = (target.parent / f"{TEMP_PREFIX}{token}{end}" for end in (".new", ".old"))
    try:
        temporary.mkdir()
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                _sync(path)
        _sync(temporary)
        if overwrite and target.exists():
            target.replace(old)
        try:
            temporary.replace(target)  # fails when another writer's folder with content has appeared
        except OSError as exc:
            if old.exists():
                old.replace(target)
            if not overwrite and exc.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise _exists(target) from exc
            raise
        _sync(target.parent)
    except OSError as exc:
        raise write_error(target, exc) from exc
    finally:
        _remove(temporary)
        if target.exists():
            _remove(old)


def write_bytes(target: str | Path, data: bytes) -> Path:
    """Write ``data`` to ``target`` atomically and return the path."""
    target = Path(target)
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)
    return target


def write_text(target: str | Path, text: str) -> Path:
    """Write UTF-8 ``text`` (line ends kept as given) to ``target`` atomically and return the path."""
    return write_bytes(target, text.encode("utf-8"))


def remove_leftovers(folder: str | Path) -> int:
    """Delete temporary files that a killed process left directly in ``folder``; return their number."""
    folder = Path(folder)
    found = [p for p in folder.iterdir() if p.name.startswith(TEMP_PREFIX)] if folder.is_dir() else []
    for path in found:
        _remove(path)
    return len(found)


def check_not_inside(output: str | Path, inputs: Iterable[str | Path]) -> None:
    """Refuse an output folder that is an input folder or lies inside one.

    Otherwise a second run would read the results of the first as photos.

    Args:
        output: the folder to be written.
        inputs: input folders; input files are ignored, writing beside a video is fine.

    Raises:
        InputError: naming both folders.
    """
    out = Path(output).resolve()
    for item in inputs:
        source = Path(item).resolve()
        if source.is_dir() and (out == source or source in out.parents):
            raise InputError(
                f"the output folder lies inside the input folder {item}",
                path=output,
                remedy="choose an output folder outside the input",
            )


def prepare_output_folder(
    output: str | Path,
    *,
    overwrite: bool = False,
    inputs: Iterable[str | Path] = (),
    resumable: Callable[[Path], bool] | None = None,
    need_bytes: int = 0,
) -> Path:
    """Create ``output`` and prove that it can be written, before any work begins.

    Args:
        output: the folder.
        overwrite: accept a folder that already holds files.
        inputs: input folders that must not contain ``output``.
        resumable: says whether a non-empty folder is an unfinished run of ours, which may be continued.
        need_bytes: free space required on the disk.

    Raises:
        InputError: the folder holds files, lies inside an input, or cannot be written; too little space.
    """
    output = Path(output)
    if not _is_folder(output) and output.exists():
        raise InputError("is a file, not a folder", path=output, remedy="choose another output folder")
    check_not_inside(output, inputs)
    try:
        output.mkdir(parents=True, exist_ok=True)
        filled = any(not p.name.startswith(TEMP_PREFIX) for p in output.iterdir())
        if filled and not overwrite and not (resumable is not None and resumable(output)):
            raise InputError(
                "the output folder is not empty",
                path=output,
                remedy="use --overwrite or choose another folder",
            )
        probe = output / f"{TEMP_PREFIX}probe-{uuid.uuid4().hex[:12]}"
        try:
            probe.write_bytes(b"relief3d")
            _sync(probe)
        finally:
            _remove(probe)
        free = shutil.disk_usage(output).free
    except FileExistsError as exc:
        raise InputError("a part of this path is a file, not a folder", path=output) from exc
    except OSError as exc:
        raise write_error(output, exc) from exc
    if free < need_bytes:
        raise InputError(
            f"the disk has {free / 1e9:.1f} GB free, but {need_bytes / 1e9:.1f} GB are needed",
            path=output,
            remedy="free some space or choose another output folder",
        )
    return output
