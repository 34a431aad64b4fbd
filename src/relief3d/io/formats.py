"""What kind of file is this: decided by its first bytes, never by its suffix."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from relief3d.core.errors import InputError
from relief3d.io.limits import DEFAULT_MAX_FILE_BYTES

IMAGE_FORMATS = frozenset({"jpeg", "png", "webp", "tiff", "heic", "exr", "gif", "bmp"})
DEPTH_FORMATS = frozenset({"png", "tiff", "npy", "npz", "exr", "pfm"})
VIDEO_FORMATS = frozenset({"mp4", "matroska", "avi", "mpegts", "mpegps", "flv", "ogg", "asf"})

IMAGE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".apng",
        ".webp",
        ".tif",
        ".tiff",
        ".heic",
        ".heif",
        ".hif",
        ".avif",
        ".exr",
        ".gif",
        ".bmp",
    }
)
VIDEO_SUFFIXES = frozenset(
    {
        ".mp4",
        ".m4v",
        ".mov",
        ".qt",
        ".mkv",
        ".webm",
        ".avi",
        ".mts",
        ".m2ts",
        ".ts",
        ".mpg",
        ".mpeg",
        ".flv",
        ".ogv",
        ".3gp",
        ".wmv",
    }
)

SUFFIXES_OF_FORMAT: dict[str, frozenset[str]] = {
    "jpeg": frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"}),
    "png": frozenset({".png", ".apng"}),
    "webp": frozenset({".webp"}),
    "tiff": frozenset({".tif", ".tiff"}),
    "heic": frozenset({".heic", ".heif", ".hif", ".avif"}),
    "exr": frozenset({".exr"}),
    "gif": frozenset({".gif"}),
    "bmp": frozenset({".bmp"}),
    "npy": frozenset({".npy"}),
    "npz": frozenset({".npz"}),
    "pfm": frozenset({".pfm"}),
}

_HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"mif2", b"avif", b"avis"}
)


def sniff_bytes(head: bytes) -> str | None:
    """Name the format that starts with ``head`` (32 bytes or more are enough), or None.

    Returns:
        One of :data:`IMAGE_FORMATS`, :data:`DEPTH_FORMATS` or :data:`VIDEO_FORMATS`. A ZIP file is
        reported as ``"npz"``.
    """
    starts: tuple[tuple[bytes, str], ...] = (
        (b"\xff\xd8\xff", "jpeg"),
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"II*\x00", "tiff"),
        (b"MM\x00*", "tiff"),
        (b"II+\x00", "tiff"),
        (b"MM\x00+", "tiff"),
        (b"\x76\x2f\x31\x01", "exr"),
        (b"GIF87a", "gif"),
        (b"GIF89a", "gif"),
        (b"\x93NUMPY", "npy"),
        (b"PK\x03\x04", "npz"),
        (b"\x1a\x45\xdf\xa3", "matroska"),
        (b"\x00\x00\x01\xba", "mpegps"),
        (b"FLV\x01", "flv"),
        (b"OggS", "ogg"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    )
    for magic, name in starts:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[4:8] == b"ftyp":
        brands = {head[8:12]} | {head[i : i + 4] for i in range(16, len(head) - 3, 4)}
        return "heic" if head[8:12] in _HEIF_BRANDS or brands & {b"heic", b"avif"} else "mp4"
    if head[4:8] in (b"moov", b"mdat", b"wide"):
        return "mp4"
    if head[:2] == b"BM" and head[6:10] == b"\x00\x00\x00\x00":
        return "bmp"
    if head[:3] in (b"Pf\n", b"PF\n", b"Pf ", b"PF ", b"Pf\r", b"PF\r"):
        return "pfm"
    if head[:1] == b"\x47" and (len(head) <= 188 or head[188:189] == b"\x47"):
        return "mpegts"
    if head[4:5] == b"\x47" and head[196:197] == b"\x47":
        return "mpegts"
    return None


def check_regular_file(path: str | Path, *, max_bytes: int = DEFAULT_MAX_FILE_BYTES) -> Path:
    """Make sure ``path`` is an ordinary, non-empty file before anything opens it.

    Opening a named pipe would wait for ever and a device could deliver endless bytes, so only
    regular files pass. Links are followed.

    Raises:
        InputError: missing, a folder, a pipe or device, a link loop, empty, or above ``max_bytes``.
    """
    path = Path(path)
    try:
        info = os.stat(path)  # noqa: PTH116 (one call, so that the errors below are complete)
    except OSError as exc:
        raise unreadable(path, exc) from exc
    except ValueError as exc:  # a NUL in the name
        raise InputError(f"not a usable file name: {str(path)!r}") from exc
    if stat.S_ISDIR(info.st_mode):
        raise InputError("is a folder, not a file", path=path)
    if not stat.S_ISREG(info.st_mode):
        raise InputError("is not an ordinary file (a pipe, socket or device)", path=path)
    if info.st_size == 0:
        raise InputError("the file is empty (0 bytes)", path=path, remedy="copy it again or remove it")
    if info.st_size > max_bytes:
        raise InputError(
            f"the file has {info.st_size / 1e9:.1f} GB, more than the limit of {max_bytes / 1e9:.1f} GB",
            path=path,
        )
    return path


def unreadable(path: str | Path, exc: OSError) -> InputError:
    """The sentence for a file that the system does not let us read."""
    known = {
        errno.ENOENT: ("no such file", "check the spelling"),
        errno.ENOTDIR: ("no such file", "check the spelling"),
        errno.EACCES: ("no permission to read it", "change the file's permissions"),
        errno.EPERM: ("no permission to read it", "change the file's permissions"),
        errno.ELOOP: ("is a symbolic link that leads back to itself", "remove the link"),
        errno.ENAMETOOLONG: ("the file name is too long for this system", "shorten it"),
        errno.EISDIR: ("is a folder, not a file", None),
        errno.EMFILE: ("too many files are open", "close some or raise ulimit -n"),
    }
    message, remedy = known.get(exc.errno or 0, (f"cannot be read ({exc.strerror or exc})", None))
    return InputError(message, path=path, remedy=remedy)


def read_head(path: str | Path, count: int = 256, *, max_bytes: int = DEFAULT_MAX_FILE_BYTES) -> bytes:
    """The first ``count`` bytes of a regular file.

    Raises:
        InputError: as :func:`check_regular_file`.
    """
    path = check_regular_file(path, max_bytes=max_bytes)
    try:
        with path.open("rb") as stream:
            return stream.read(count)
    except OSError as exc:
        raise unreadable(path, exc) from exc


def sniff(path: str | Path, *, max_bytes: int = DEFAULT_MAX_FILE_BYTES) -> str | None:
    """Name the format of a file by its content, or None when it is not one we read.

    Raises:
        InputError: as :func:`check_regular_file`.
    """
    return sniff_bytes(read_head(path, max_bytes=max_bytes))


def suffix_note(path: str | Path, found: str) -> str | None:
    """A note when the suffix of ``path`` promises another format than ``found``, else None."""
    suffix = Path(path).suffix.lower()
    if not suffix or suffix in SUFFIXES_OF_FORMAT.get(found, frozenset()):
        return None
    promised = next((name for name, known in SUFFIXES_OF_FORMAT.items() if suffix in known), None)
    return None if promised is None else f"named {suffix} but its content is {found}"
