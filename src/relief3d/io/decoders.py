"""Opening pictures with the decoder of exactly the format that their first bytes show."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError, ReliefError
from relief3d.core.optional import require
from relief3d.io.exif import ExifInfo, parse_exif
from relief3d.io.formats import sniff_bytes
from relief3d.io.limits import DEFAULT_MAX_PIXELS, check_pixels
from relief3d.io.pixels import pixels_from_pillow

_PLUGINS = {
    "jpeg": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "png": ("PIL.PngImagePlugin", "PngImageFile"),
    "webp": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "tiff": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "gif": ("PIL.GifImagePlugin", "GifImageFile"),
    "bmp": ("PIL.BmpImagePlugin", "BmpImageFile"),
}


def damaged(path: str | Path, exc: BaseException) -> InputError:
    """The sentence for a picture that its decoder refuses."""
    reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0][:120]
    return InputError(
        f"damaged or truncated picture ({reason})", path=path, remedy="copy it again or remove it"
    )


@contextmanager
def open_picture(path: str | Path, kind: str, max_pixels: int) -> Iterator[tuple[Any, ExifInfo]]:
    """Open a picture with exactly the decoder of its format; yields (PIL image, EXIF facts).

    The decoder class is called directly: only the sniffed format is tried, and our own pixel limit
    holds instead of Pillow's, which lives in a process-wide variable.
    """
    try:
        if kind == "heic":
            heif = require("pillow_heif", extra="heic", purpose="reading HEIC pictures")
            file = heif.open_heif(path)
            check_pixels(*file.size, path=path, max_pixels=max_pixels)
            yield file, _heic_exif(file)
            return
        module, name = _PLUGINS[kind]
        plugin = getattr(importlib.import_module(module), name)
        with Path(path).open("rb") as stream:
            picture = plugin(stream, str(path))
            check_pixels(*picture.size, path=path, max_pixels=max_pixels)
            yield picture, parse_exif(_exif_of(picture))
    except ReliefError:
        raise
    except Exception as exc:  # decoders raise many types on damaged bytes
        raise damaged(path, exc) from exc


def _exif_of(picture: Any) -> Any:
    try:
        return picture.getexif()
    except Exception:  # damaged EXIF does not make a picture unreadable
        return None


def _heic_exif(file: Any) -> ExifInfo:
    from PIL import Image

    raw = file.info.get("exif")
    if not raw:
        return ExifInfo()
    exif = Image.Exif()
    try:
        exif.load(raw)
    except Exception:  # as above
        return ExifInfo()
    return parse_exif(exif)


def decode_image(
    data: bytes,
    *,
    name: str = "picture",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    kinds: tuple[str, ...] = ("jpeg", "png"),
) -> Tensor:
    """Decode a picture held in memory, of one of ``kinds``, to (3, H, W) float32 RGB in [0, 1]; no EXIF is applied.

    Raises:
        InputError: another format, damaged, or larger than ``max_pixels``.
    """
    kind = sniff_bytes(data[:256])
    if kind is None or kind not in kinds:
        raise InputError(f"is neither {' nor '.join(k.upper() for k in kinds)}", path=name)
    module, plugin = _PLUGINS[kind]
    try:
        picture = getattr(importlib.import_module(module), plugin)(io.BytesIO(data))
        check_pixels(*picture.size, path=name, max_pixels=max_pixels)
        picture.load()
        pixels = pixels_from_pillow(picture)
    except ReliefError:
        raise
    except Exception as exc:  # as in open_picture
        raise damaged(name, exc) from exc
    return torch.from_numpy(np.ascontiguousarray(pixels.rgb)).permute(2, 0, 1).contiguous()
