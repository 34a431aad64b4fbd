"""Unpack ZIP and TAR archives from strangers: all or nothing, inside the target, within limits.

Every member is judged before it is written. Refused are absolute paths, ``..``, drive letters,
backslashes, control characters, links, devices, pipes, sparse files, encrypted members, repeated names
(also when they differ only in case), and whatever exceeds the limits. Sizes are counted while data is
copied, so a false header gains nothing. Archives inside the archive are left packed.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from relief3d.core.errors import InputError
from relief3d.io.atomic import atomic_folder
from relief3d.io.formats import check_regular_file, read_head

_CHUNK = 1024**2
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    UnicodeError,
    ValueError,
    IndexError,
    KeyError,
)


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may ask for.

    Attributes:
        members: number of files and folders.
        total_bytes: sum of unpacked sizes.
        ratio: unpacked bytes per packed byte, checked once ``ratio_from`` bytes are exceeded.
        ratio_from: small archives of very regular data are harmless.
        path_length: characters of a member's path.
        depth: folders above a member.
    """

    members: int = 100_000
    total_bytes: int = 64 * 1024**3
    ratio: float = 200.0
    ratio_from: int = 16 * 1024**2
    path_length: int = 1024
    depth: int = 32


def extract_archive(
    archive: str | Path, target: str | Path, *, limits: ArchiveLimits | None = None, overwrite: bool = False
) -> Path:
    """Unpack a ZIP, TAR, TAR.GZ, TAR.BZ2 or TAR.XZ (recognised by content) into a new folder.

    On any error nothing is left behind.

    Args:
        archive: the file.
        target: folder to create.
        limits: what is acceptable.
        overwrite: replace ``target`` when it exists.

    Returns:
        ``target``.

    Raises:
        InputError: naming the archive, when it is damaged, hostile or above a limit.
    """
    archive, target = Path(archive), Path(target)
    limits = ArchiveLimits() if limits is None else limits
    check_regular_file(archive, max_bytes=limits.total_bytes)
    with atomic_folder(target, overwrite=overwrite) as folder:
        keeper = _Keeper(archive, folder, limits)
        with _one_sentence(keeper):
            if zipfile.is_zipfile(archive):
                _extract_zip(archive, keeper)
            else:
                _extract_tar(archive, keeper)
        if not keeper.names:
            raise keeper.refuse("the archive is empty")
    return target


@dataclass(frozen=True)
class TarMember:
    """A file inside a plain TAR: its name, and where its bytes are in the archive."""

    name: str
    offset: int
    size: int


def list_tar(archive: str | Path, *, limits: ArchiveLimits | None = None) -> list[TarMember]:
    """The files of an uncompressed TAR in order, judged as :func:`extract_archive` does; nothing is written.

    Raises:
        InputError: naming the archive, when it is compressed, damaged, hostile or above a limit.
    """
    archive = Path(archive)
    limits = ArchiveLimits() if limits is None else limits
    check_regular_file(archive, max_bytes=limits.total_bytes)
    head = read_head(archive, 8)
    if head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or head[:6] == b"\xfd7zXZ\0":
        raise InputError(
            "is compressed, so its files cannot be read one by one", path=archive, remedy="unpack it"
        )
    keeper = _Keeper(archive, archive.parent, limits)
    found = []
    with _one_sentence(keeper), archive.open("rb") as raw:
        stream = _CappedReads(raw, keeper)
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r:") as packed:
            for member in _tar_members(packed, keeper):
                keeper.admit(member.name, member.size, is_folder=member.isdir())
                if member.offset_data + member.size > keeper.packed:
                    raise keeper.refuse(f"the member '{member.name[:80]}' is cut short")
                if member.isreg():
                    found.append(TarMember(member.name, member.offset_data, member.size))
            _check_tar_end(packed, stream, keeper)
    return found


@contextmanager
def _one_sentence(keeper: _Keeper) -> Iterator[None]:
    """What reading an archive may raise, as an error that names it."""
    try:
        yield
    except tarfile.ReadError as exc:
        what = "damaged" if keeper.names else "not a ZIP or TAR archive, or damaged"
        raise keeper.refuse(f"the file is {what} ({exc})") from exc
    except _DAMAGED as exc:
        raise keeper.refuse(f"the archive is damaged ({exc or type(exc).__name__})") from exc
    except (MemoryError, RecursionError) as exc:
        raise keeper.refuse("the archive asks for too much memory") from exc
    except OSError as exc:
        # Decompressors report damage without a number, seeking to a false offset is EINVAL.
        if exc.errno in (None, errno.EINVAL):
            raise keeper.refuse(f"the archive is damaged ({exc})") from exc
        raise


class _Keeper:
    """Judges names and sizes and writes what passes."""

    def __init__(self, archive: Path, folder: Path, limits: ArchiveLimits) -> None:
        self.archive, self.folder, self.limits = archive, folder, limits
        self.packed = archive.stat().st_size
        self.names: dict[str, bool] = {}
        self.total = 0

    def refuse(self, message: str) -> InputError:
        return InputError(message, path=self.archive)

    def admit(self, name: str, size: int, *, is_folder: bool) -> Path:
        """The place for a member, or an error."""
        if len(self.names) >= self.limits.members:
            raise self.refuse(f"the archive has more than {self.limits.members} members")
        shown = name[:80].encode("unicode_escape").decode("ascii")
        if is_folder and name in (".", "./"):  # "tar -cf x.tar ." starts with the folder itself
            return self.folder
        pure = PurePosixPath(name)
        parts = pure.parts
        if (
            not parts
            or pure.is_absolute()
            or ".." in parts
            or "\\" in name
            or ":" in name
            or any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in name)
        ):
            raise self.refuse(f"the archive holds a member with an unsafe path: '{shown}'")
        if len(name) > self.limits.path_length or len(parts) > self.limits.depth + 1:
            raise self.refuse(f"the archive holds a path that is too long or too deep: '{shown}'")
        self._claim(parts, is_folder, shown)
        if size < 0:
            raise self.refuse(f"the member '{shown}' has a negative size")
        self._check_total(self.total + size)
        return self.folder.joinpath(*parts)

    def _claim(self, parts: tuple[str, ...], is_folder: bool, shown: str) -> None:
        for end in range(1, len(parts) + 1):
            key = "/".join(parts[:end]).casefold()
            last = end == len(parts)
            if key not in self.names:
                self.names[key] = is_folder or not last
            elif not self.names[key] or (last and not is_folder):
                raise self.refuse(f"the archive holds the name '{shown}' twice")

    def _check_total(self, total: int) -> None:
        if total > self.limits.total_bytes:
            raise self.refuse(f"the archive unpacks to more than {self.limits.total_bytes} bytes")
        if total > self.limits.ratio_from and total > self.limits.ratio * self.packed:
            raise self.refuse(f"the archive expands more than {self.limits.ratio:.0f}-fold, like a bomb")

    def copy(self, source: IO[bytes], place: Path, size: int) -> None:
        """Write a member and count its bytes."""
        place.parent.mkdir(parents=True, exist_ok=True)
        written = 0
        with place.open("xb") as out:
            while chunk := source.read(min(_CHUNK, size - written + 1)):
                written += len(chunk)
                if written > size:
                    raise self.refuse(f"the member '{place.name}' is larger than its header says")
                self._check_total(self.total + written)
                out.write(chunk)
        if written != size:
            raise self.refuse(f"the member '{place.name}' is cut short")
        self.total += written


def _extract_zip(archive: Path, keeper: _Keeper) -> None:
    with zipfile.ZipFile(archive) as packed:
        members = packed.infolist()
        if sum(member.file_size for member in members) > keeper.limits.total_bytes:
            raise keeper.refuse(f"the archive unpacks to more than {keeper.limits.total_bytes} bytes")
        # All names are judged before the first byte is written.
        places = [_zip_place(member, keeper) for member in members]
        keeper._check_total(sum(member.file_size for member in members))
        for member, place in zip(members, places):
            if member.is_dir():
                place.mkdir(parents=True, exist_ok=True)
                continue
            with packed.open(member) as source:
                keeper.copy(source, place, member.file_size)


def _zip_place(member: zipfile.ZipInfo, keeper: _Keeper) -> Path:
    kind = stat.S_IFMT(member.external_attr >> 16) if member.create_system == 3 else 0
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise keeper.refuse(f"the archive holds a link or device: '{member.filename[:80]}'")
    if member.flag_bits & 0x1:
        raise keeper.refuse("the archive is encrypted")
    # zipfile cuts names at NUL and rewrites separators; judge what is really stored.
    return keeper.admit(member.orig_filename, member.file_size, is_folder=member.is_dir())


def _extract_tar(archive: Path, keeper: _Keeper) -> None:
    opened: Any = _decompressed(archive, read_head(archive, 8))
    with opened as raw:
        stream = _CappedReads(raw, keeper)
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r:") as packed:
            for member in _tar_members(packed, keeper):
                place = keeper.admit(member.name, member.size, is_folder=member.isdir())
                if member.isdir():
                    place.mkdir(parents=True, exist_ok=True)
                    continue
                source = packed.extractfile(member)
                if source is None:
                    raise keeper.refuse(f"the member '{member.name[:80]}' cannot be read")
                with source:
                    keeper.copy(source, place, member.size)
            _check_tar_end(packed, stream, keeper)


def _check_tar_end(packed: tarfile.TarFile, stream: _CappedReads, keeper: _Keeper) -> None:
    """The reader takes a damaged header in the middle for the end; a real end is a block of zeros."""
    stream.seek(packed.offset)
    if stream.read(tarfile.BLOCKSIZE) != b"\0" * tarfile.BLOCKSIZE:
        raise keeper.refuse("the archive is damaged or cut short")


def _tar_members(packed: tarfile.TarFile, keeper: _Keeper) -> Iterator[tarfile.TarInfo]:
    for member in packed:
        if member.issparse() or not (member.isreg() or member.isdir()):
            raise keeper.refuse(f"the archive holds a link, device or sparse file: '{member.name[:80]}'")
        yield member


def _decompressed(archive: Path, head: bytes) -> Any:
    if head[:2] == b"\x1f\x8b":
        return gzip.open(archive, "rb")
    if head[:3] == b"BZh":
        return bz2.open(archive, "rb")
    if head[:6] == b"\xfd7zXZ\0":
        return lzma.open(archive, "rb")
    return archive.open("rb")


class _CappedReads:
    """A stream that refuses single large reads: tarfile loads extended headers whole, whatever their size."""

    def __init__(self, raw: IO[bytes], keeper: _Keeper) -> None:
        self._raw, self._keeper = raw, keeper

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > 4 * _CHUNK:
            raise self._keeper.refuse("the archive holds a header of absurd size")
        return self._raw.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()
