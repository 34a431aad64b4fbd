"""Colour pictures with more than 8 bits per channel, which Pillow would cut to 8.

16-bit colour PNG goes through FFmpeg (PyAV) when that is installed; TIFF with 16-bit or float colour
goes through tifffile, which scikit-image brings along.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relief3d.core.errors import InputError, ReliefError
from relief3d.core.optional import available, require
from relief3d.io.exif import valid_orientation
from relief3d.io.formats import check_regular_file, unreadable
from relief3d.io.limits import check_pixels
from relief3d.io.pixels import PixelData, normalise_range

_PNG_COLOUR_TYPES = {2: ("rgb48le", 3), 4: ("ya16le", 2), 6: ("rgba64le", 4)}
_TIFF_GREY, _TIFF_RGB = 1, 2
_TIFF_ORIENTATION, _TIFF_ASSOCIATED_ALPHA = 274, 1


def is_deep_png(path: str | Path) -> bool:
    """True for PNG files with 16 bits in each of several channels (IHDR of the PNG specification)."""
    path = check_regular_file(path)
    with path.open("rb") as stream:
        head = stream.read(33)
    return len(head) >= 26 and head[12:16] == b"IHDR" and head[24] == 16 and head[25] in _PNG_COLOUR_TYPES


def read_deep_png(path: str | Path) -> PixelData | None:
    """Pixels of a 16-bit colour PNG at full precision, or None when PyAV is not installed.

    The size must have been checked before. Damage that FFmpeg hides is caught by the caller, which
    lets Pillow decode the same file.
    """
    if not available("av"):
        return None
    av = require("av", extra="video", purpose="reading 16-bit colour PNG at full precision")
    path = Path(path)
    with path.open("rb") as stream:
        name, channels = _PNG_COLOUR_TYPES[stream.read(26)[25]]
    try:
        with av.open(f"file:{path.absolute()}", format="png_pipe") as container:
            frame = next(container.decode(video=0))
            if frame.is_corrupt:
                return None
            plane = frame.reformat(format=name).planes[0]
            rows = np.frombuffer(plane, dtype="<u2").reshape(frame.height, plane.line_size // 2)
            array = rows[:, : frame.width * channels].reshape(frame.height, frame.width, channels)
    except (av.error.FFmpegError, StopIteration, ValueError):
        return None  # Pillow judges the file; it also reads 16-bit colour, at 8 bits
    return _split(normalise_range(array)[0])


def needs_tifffile(picture: Any) -> bool:
    """True when an opened Pillow TIFF has several channels of more than 8 bits."""
    bits = picture.tag_v2.get(258, (8,))
    bits = bits if isinstance(bits, tuple) else (bits,)
    return len(bits) > 1 and max(bits) > 8


def deep_tiff_header(path: str | Path, max_pixels: int) -> tuple[int, int, int]:
    """(stored width, stored height, EXIF orientation) of the first page, read by tifffile.

    Raises:
        InputError: damaged, or larger than ``max_pixels``.
    """
    with _first_page(path, max_pixels) as page:
        tag = page.tags.get(_TIFF_ORIENTATION)
        orientation = valid_orientation(int(tag.value)) if tag is not None else 1
        return int(page.imagewidth), int(page.imagelength), orientation


def read_deep_tiff(path: str | Path, max_pixels: int) -> PixelData:
    """Pixels as stored of the first page of a 16-bit, 32-bit or float TIFF.

    Raises:
        InputError: damaged, truncated, too large, or neither grey nor RGB.
    """
    with _first_page(path, max_pixels) as page:
        if page.photometric not in (_TIFF_GREY, _TIFF_RGB) or page.samplesperpixel > 5:
            raise InputError("this kind of TIFF is not supported", path=path, remedy="save it as grey or RGB")
        _check_strips(page, path)
        array: NDArray[Any] = page.asarray()
        planar = page.planarconfig == 2
        extra = tuple(int(sample) for sample in page.extrasamples)
        size = (int(page.imagelength), int(page.imagewidth))
    if array.ndim == 3 and planar:
        array = np.moveaxis(array, 0, -1)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[:2] != size or array.dtype.kind not in "fui":
        raise InputError(f"damaged picture (pixels of shape {array.shape})", path=path)
    values, notes = normalise_range(array)
    return _split(values, notes, premultiplied=bool(extra) and extra[0] == _TIFF_ASSOCIATED_ALPHA)


@contextmanager
def _first_page(path: str | Path, max_pixels: int) -> Iterator[Any]:
    tifffile = require("tifffile", extra="all", purpose="reading TIFF with more than 8 bits per channel")
    log = logging.getLogger("tifffile")
    log.addFilter(_silent)  # one sentence is enough; the parser logs every damaged tag
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            check_pixels(int(page.imagewidth), int(page.imagelength), path=path, max_pixels=max_pixels)
            yield page
    except ReliefError:
        raise
    except OSError as exc:
        raise unreadable(path, exc) from exc
    except Exception as exc:  # the parser raises many types on damaged bytes
        reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0][:120]
        raise InputError(f"damaged or truncated picture ({reason})", path=path) from exc
    finally:
        log.removeFilter(_silent)


def _silent(record: logging.LogRecord) -> bool:
    return False


def _check_strips(page: Any, path: str | Path) -> None:
    """A strip that ends beyond the file would be filled with zeros: that is truncation."""
    size = Path(path).stat().st_size
    if any(o + n > size for o, n in zip(page.dataoffsets, page.databytecounts)):
        raise InputError("damaged or truncated picture (pixels missing)", path=path, remedy="copy it again")


def _split(
    values: NDArray[np.float32], notes: list[str] | None = None, *, premultiplied: bool = False
) -> PixelData:
    channels = values.shape[2]
    alpha = values[..., -1] if channels in (2, 4) else None
    rgb = values[..., :3] if channels >= 3 else np.repeat(values[..., :1], 3, axis=-1)
    if alpha is not None and premultiplied:
        rgb = np.clip(rgb / np.maximum(alpha, 1e-6)[..., None], 0.0, 1.0)
    if alpha is not None and bool((alpha == 1).all()):
        alpha = None
    return PixelData(rgb, alpha, notes or [])
