"""Portable float maps (PFM): a text header, then float32 rows from the bottom up.

Source: Paul Debevec's description of the format (pauldebevec.com/Research/HDR/PFM).
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relief3d.core.errors import InputError
from relief3d.io.atomic import write_bytes
from relief3d.io.formats import check_regular_file, unreadable
from relief3d.io.limits import DEFAULT_MAX_PIXELS, check_pixels

_HEADER = re.compile(rb"(P[Ff])\s+(\d{1,9})\s+(\d{1,9})\s+([-+0-9.eE]{1,32})(?:\r\n|\s)")


def read_pfm(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.float32]:
    """(H, W) or (H, W, 3) float32, first row on top.

    The magnitude of the header's scale is ignored, as all common readers do; its sign is the byte order.

    Raises:
        InputError: damaged header, truncated, or larger than ``max_pixels``.
    """
    path = check_regular_file(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(128)
            match = _HEADER.match(head)
            if match is None:
                raise InputError("damaged PFM header", path=path)
            width, height = int(match[2]), int(match[3])
            check_pixels(width, height, path=path, max_pixels=max_pixels)
            channels = 3 if match[1] == b"PF" else 1
            stream.seek(match.end())
            data = stream.read(width * height * channels * 4)
    except OSError as exc:
        raise unreadable(path, exc) from exc
    try:
        scale = float(match[4])
    except ValueError as exc:
        raise InputError("damaged PFM header", path=path) from exc
    if scale == 0 or not math.isfinite(scale):
        raise InputError("damaged PFM header: the scale is zero or not finite", path=path)
    wanted = width * height * channels * 4
    if len(data) < wanted:
        raise InputError(
            f"truncated: {len(data)} of {wanted} bytes of pixels", path=path, remedy="copy the file again"
        )
    values = np.frombuffer(data, dtype="<f4" if scale < 0 else ">f4").astype(np.float32)
    shape = (height, width, 3) if channels == 3 else (height, width)
    return np.ascontiguousarray(values.reshape(shape)[::-1])


def write_pfm(path: str | Path, values: NDArray[np.float32]) -> Path:
    """Write (H, W) or (H, W, 3) float32 little-endian, atomically.

    Raises:
        InputError: another shape, or the file cannot be written.
    """
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] != 3) or 0 in values.shape:
        raise InputError(f"a PFM file holds (H, W) or (H, W, 3) values, got {values.shape}", path=path)
    kind = "PF" if values.ndim == 3 else "Pf"
    head = f"{kind}\n{values.shape[1]} {values.shape[0]}\n-1.0\n".encode()
    return write_bytes(path, head + np.ascontiguousarray(values[::-1], dtype="<f4").tobytes())
