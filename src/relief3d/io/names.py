"""Which files of a folder are pictures, and in which order."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from relief3d.core.errors import InputError
from relief3d.io.formats import IMAGE_FORMATS, IMAGE_SUFFIXES, sniff, unreadable

_DIGITS = re.compile(r"(\d+)")
_QUIET_NAMES = frozenset({"thumbs.db", "desktop.ini"})


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that orders ``img2`` before ``img10`` and ignores case.

    Example:
        >>> sorted(["img10.jpg", "img2.jpg"], key=natural_key)
        ['img2.jpg', 'img10.jpg']
    """
    parts = [p for p in _DIGITS.split(name) if p]
    key = [(0, int(p), p) if p.isdecimal() and len(p) < 400 else (1, 0, p.casefold()) for p in parts]
    return (*key, (-1, 0, name))


@dataclass(frozen=True)
class Listing:
    """What a folder or glob holds.

    Attributes:
        root: the folder that view names are relative to.
        images: picture files in natural order.
        skipped: files that are not pictures, as (path, reason), hidden files left out.
    """

    root: Path
    images: tuple[Path, ...]
    skipped: tuple[tuple[Path, str], ...] = ()


def is_glob(text: str) -> bool:
    """True when ``text`` contains wildcard characters and no such file or folder exists."""
    return glob.has_magic(text) and not os.path.lexists(text)


def list_images(source: str | Path, *, recursive: bool = False) -> list[Path]:
    """Picture files of a folder or glob in natural order (see :func:`scan_images`)."""
    return list(scan_images(source, recursive=recursive).images)


def scan_images(source: str | Path, *, recursive: bool = False) -> Listing:
    """Find the pictures of a folder or glob.

    A file with a picture's suffix is listed (whether it can be read shows later, with its own error).
    A file with another suffix is listed when its content is a picture. Hidden files, folders, pipes
    and broken links are never listed; all but hidden ones are reported in ``skipped``.

    Args:
        source: a folder, or a pattern such as ``photos/*.jpg`` (``**`` crosses folders).
        recursive: search sub-folders too; links to folders are not followed, so loops are harmless.

    Raises:
        InputError: no such folder, or it cannot be listed.
    """
    if is_glob(str(source)):
        return _sort_out(*_glob(Path(source)))
    root = Path(source)
    if not root.is_dir():
        raise InputError("no such folder", path=root, remedy="check the spelling")
    return _sort_out(root, _walk(root, recursive))


def _glob(pattern: Path) -> tuple[Path, list[Path]]:
    """(folder before the first wildcard, matches without hidden ones); linked folders are not followed by ``**``."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:first])
    try:
        found = list(root.glob(str(Path(*parts[first:]))))
    except OSError as exc:
        raise unreadable(root, exc) from exc
    except ValueError as exc:
        raise InputError(f"not a usable pattern ({exc})", path=pattern) from exc
    hidden = [any(part.startswith(".") for part in p.relative_to(root).parts) for p in found]
    return root, [p for p, skip in zip(found, hidden) if not skip]


def _walk(root: Path, recursive: bool) -> list[Path]:
    found: list[Path] = []
    pending = [root]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    path = folder / entry.name
                    if entry.is_dir(follow_symlinks=False):
                        if recursive:
                            pending.append(path)
                        if path.suffix.lower() not in IMAGE_SUFFIXES:
                            continue
                    found.append(path)
        except OSError as exc:
            raise unreadable(folder, exc) from exc
    return found


def _sort_out(root: Path, found: list[Path]) -> Listing:
    images: list[Path] = []
    skipped: list[tuple[Path, str]] = []
    visible = {p for p in found if not p.name.startswith(".") and p.name.lower() not in _QUIET_NAMES}
    for path in sorted(visible, key=lambda p: natural_key(p.as_posix())):
        if path.is_dir():
            if path.suffix.lower() in IMAGE_SUFFIXES:
                skipped.append((path, "is a folder, not a file"))
            continue
        try:
            kind = sniff(path)
        except InputError as exc:
            # A damaged or empty picture is listed, so that reading it names it; pipes and links are not.
            if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
                images.append(path)
            else:
                skipped.append((path, exc.message))
            continue
        if path.suffix.lower() in IMAGE_SUFFIXES or kind in IMAGE_FORMATS:
            images.append(path)
        else:
            skipped.append((path, "not a picture"))
    return Listing(root, tuple(images), tuple(skipped))


def visible_files(folder: str | Path) -> list[Path]:
    """All regular files below ``folder`` in natural order; hidden ones and linked folders are left out.

    Raises:
        InputError: a folder cannot be listed.
    """
    found = [path for path in _walk(Path(folder), recursive=True) if path.is_file()]
    return sorted(found, key=lambda path: natural_key(path.as_posix()))


def view_name(path: Path, root: Path) -> str:
    """Name of a picture below ``root`` with ``/`` between parts; bytes that are not UTF-8 become U+FFFD."""
    try:
        name = path.relative_to(root).as_posix()
    except ValueError:
        name = path.name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
