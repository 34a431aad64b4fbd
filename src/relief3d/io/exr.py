"""OpenEXR files: one reader and one writer for pictures and depth maps."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relief3d.core.errors import InputError
from relief3d.core.optional import require
from relief3d.io.atomic import atomic_path
from relief3d.io.formats import check_regular_file, unreadable
from relief3d.io.limits import DEFAULT_MAX_PIXELS, check_pixels

_HEADER_LIMIT = 1 << 20


def exr_size(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of the data window, from the header alone.

    Source: "OpenEXR File Layout", openexr.com: magic, version, then attributes as name, type, size,
    value until an empty name.

    Raises:
        InputError: not an EXR file, damaged header, or larger than ``max_pixels``.
    """
    path = check_regular_file(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEADER_LIMIT)
    except OSError as exc:
        raise unreadable(path, exc) from exc
    position = 8
    try:
        while head[position] != 0:
            name, position = _token(head, position)
            _, position = _token(head, position)
            (size,) = struct.unpack_from("<i", head, position)
            position += 4
            if name == b"dataWindow" and size == 16:
                x0, y0, x1, y1 = struct.unpack_from("<4i", head, position)
                width, height = x1 - x0 + 1, y1 - y0 + 1
                check_pixels(width, height, path=path, max_pixels=max_pixels)
                return width, height
            if size < 0:
                break
            position += size
    except (IndexError, struct.error, ValueError) as exc:
        raise InputError("damaged EXR header", path=path, remedy="export the file again") from exc
    raise InputError("damaged EXR header: no data window", path=path, remedy="export the file again")


def _token(head: bytes, position: int) -> tuple[bytes, int]:
    end = head.index(b"\x00", position, position + 256)
    return head[position:end], end + 1


def read_exr(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> dict[str, NDArray[np.float32]]:
    """Channels of the first part by name ("R", "G", "B", "A", "Y", "Z", ...), each (H, W) float32.

    Raises:
        InputError: damaged or truncated file, or larger than ``max_pixels``.
        MissingExtraError: the package OpenEXR is not installed.
    """
    width, height = exr_size(path, max_pixels=max_pixels)
    openexr = require("OpenEXR", extra="exr", purpose="reading EXR files")
    try:
        with openexr.File(str(path), separate_channels=True) as file:
            channels = {
                name: np.asarray(channel.pixels, dtype=np.float32)
                for name, channel in file.channels().items()
            }
    except Exception as exc:  # the C++ library raises several types on damaged files
        raise InputError(f"damaged EXR file ({_first_line(exc)})", path=path) from exc
    if not channels:
        raise InputError("the EXR file has no channels", path=path)
    for name, values in channels.items():
        if values.shape != (height, width):
            raise InputError(
                f"channel {name} of the EXR file is subsampled, which is not supported", path=path
            )
    return channels


def write_exr(path: str | Path, channels: Mapping[str, NDArray[np.float32]]) -> Path:
    """Write named (H, W) float32 channels losslessly (ZIP), atomically.

    Raises:
        MissingExtraError: the package OpenEXR is not installed.
        InputError: the file cannot be written.
    """
    openexr = require("OpenEXR", extra="exr", purpose="writing EXR files")
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    data = {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in channels.items()}
    with atomic_path(path) as temporary, openexr.File(header, data) as file:
        file.write(str(temporary))
    return Path(path)


def _first_line(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0][:120] if lines else type(exc).__name__
