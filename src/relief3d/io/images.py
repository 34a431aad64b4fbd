"""Pictures in and out: every format becomes (3, H, W) float32 RGB in [0, 1], upright.

Decisions: EXIF orientation is applied exactly once, here. Transparency is laid over white and the
opaque part returned as a mask. Embedded colour profiles are converted to sRGB. Grey is repeated,
palette, CMYK and YCbCr are converted, integers are divided by their type's maximum. EXR is linear
light: it is encoded with the sRGB curve and clipped. Only the first frame of an animation is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.io.atomic import atomic_path
from relief3d.io.decoders import decode_image, open_picture
from relief3d.io.deep_pixels import (
    deep_tiff_header,
    is_deep_png,
    needs_tifffile,
    read_deep_png,
    read_deep_tiff,
)
from relief3d.io.exif import (
    ExifInfo,
    camera_from_exif,
    inverse_orientation,
    orient_array,
    oriented_size,
)
from relief3d.io.exr import exr_size, read_exr, write_exr
from relief3d.io.formats import IMAGE_FORMATS, sniff, suffix_note
from relief3d.io.limits import DEFAULT_MAX_PIXELS
from relief3d.io.names import list_images
from relief3d.io.pixels import PixelData, linear_to_srgb, normalise_range, pixels_from_pillow, srgb_to_linear

__all__ = [
    "ImageHeader",
    "LoadedImage",
    "decode_image",
    "image_size",
    "list_images",
    "read_header",
    "read_image",
    "write_image",
]


@dataclass(frozen=True)
class ImageHeader:
    """What the header of a picture says; no pixel was decoded.

    Attributes:
        format: one of :data:`relief3d.io.formats.IMAGE_FORMATS`.
        width, height: size of the upright picture in pixels.
        orientation: EXIF orientation of the stored pixels, 1 when they are upright.
        exif: focal length, camera, time.
        has_alpha: the file carries transparency.
        deep: several channels of more than 8 bits each.
        notes: remarks for the user, for example a wrong suffix.
    """

    format: str
    width: int
    height: int
    orientation: int = 1
    exif: ExifInfo = field(default_factory=ExifInfo)
    has_alpha: bool = False
    deep: bool = False
    notes: tuple[str, ...] = ()

    @property
    def stored_size(self) -> tuple[int, int]:
        """(width, height) of the pixels as stored."""
        return oriented_size(self.orientation, self.width, self.height)

    def camera(self) -> Any:
        """:class:`relief3d.core.contract.Camera` of the upright picture, K from EXIF when present."""
        return camera_from_exif(self.exif, self.width, self.height)


@dataclass(frozen=True)
class LoadedImage:
    """A decoded picture.

    Attributes:
        rgb: (3, H, W) float32 in [0, 1], sRGB-encoded.
        mask: (H, W) bool, True where opaque; None when the file has no transparency.
        header: format, size, orientation, EXIF.
        oriented: True when the orientation was applied to ``rgb`` and ``mask``.
        notes: what the reader decided or gave up, one sentence each.
    """

    rgb: Tensor
    mask: Tensor | None
    header: ImageHeader
    oriented: bool = True
    notes: tuple[str, ...] = ()

    @property
    def exif(self) -> ExifInfo:
        """EXIF facts, empty when the file has none."""
        return self.header.exif

    @property
    def original_size(self) -> tuple[int, int]:
        """(width, height) of the pixels as stored in the file."""
        return self.header.stored_size


def read_header(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageHeader:
    """Format, upright size, orientation and EXIF without decoding pixels.

    Raises:
        InputError: not a picture, damaged header, or larger than ``max_pixels``.
    """
    kind, note = _image_format(path)
    notes = (note,) if note else ()
    if kind == "exr":
        width, height = exr_size(path, max_pixels=max_pixels)
        return ImageHeader("exr", width, height, notes=notes)
    try:
        return _pillow_header(path, kind, max_pixels, notes)
    except InputError as exc:
        # Pillow does not know float colour TIFF at all; a damaged file fails here once more.
        if kind != "tiff" or not isinstance(exc.__cause__, SyntaxError):
            raise
        width, height, orientation = deep_tiff_header(path, max_pixels)
        width, height = oriented_size(orientation, width, height)
        return ImageHeader(kind, width, height, orientation, deep=True, notes=notes)


def _pillow_header(path: str | Path, kind: str, max_pixels: int, notes: tuple[str, ...]) -> ImageHeader:
    with open_picture(path, kind, max_pixels) as (picture, exif):
        width, height = picture.size
        deep = is_deep_png(path) if kind == "png" else kind == "tiff" and needs_tifffile(picture)
        if kind == "tiff" and exif.orientation >= 5:
            # Pillow reports TIFF sizes upright already, all other formats as stored.
            width, height = height, width
        alpha = "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "RGBa", "La")
        orientation = 1 if kind == "heic" else exif.orientation
    width, height = oriented_size(orientation, width, height)
    return ImageHeader(kind, width, height, orientation, exif, alpha, deep, notes)


def image_size(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of the upright picture, from the header alone.

    Raises:
        InputError: as :func:`read_header`.
    """
    header = read_header(path, max_pixels=max_pixels)
    return header.width, header.height


def read_image(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS, orient: bool = True) -> LoadedImage:
    """Read one picture as (3, H, W) float32 RGB in [0, 1].

    Args:
        path: JPEG, PNG, WebP, TIFF, HEIC, EXR, GIF or BMP; recognised by content.
        max_pixels: larger pictures are refused before decoding.
        orient: apply the EXIF orientation. False returns the pixels as stored, which is what camera
            files written by tools that ignore EXIF (COLMAP) describe.

    Raises:
        InputError: not a picture, damaged, truncated, empty or larger than ``max_pixels``.
        MissingExtraError: HEIC or EXR without the package that reads it.
    """
    header = read_header(path, max_pixels=max_pixels)
    notes = list(header.notes)
    if header.format == "exr":
        data = _read_exr_pixels(path, max_pixels)
    else:
        data = _read_pixels(path, header, max_pixels)
    rgb = torch.from_numpy(np.ascontiguousarray(data.rgb)).permute(2, 0, 1)
    alpha = None if data.alpha is None else torch.from_numpy(np.ascontiguousarray(data.alpha))
    turn = header.orientation if orient else 1
    if data.oriented:
        turn = 1 if orient else inverse_orientation(header.orientation)
    rgb = orient_array(rgb, turn).contiguous()
    mask = None
    if alpha is not None:
        alpha = orient_array(alpha, turn)
        mask = alpha >= 0.5
        rgb = rgb * alpha + (1.0 - alpha)
    expected = (header.width, header.height) if orient else header.stored_size
    if (rgb.shape[2], rgb.shape[1]) != expected:
        raise InputError("the pixels do not have the size that the header declares", path=path)
    return LoadedImage(rgb, mask, header, orient, tuple(notes + list(data.notes)))


def write_image(path: str | Path, image: Tensor, *, quality: int = 95, bits: int = 8) -> Path:
    """Write (3, H, W) or (1, H, W) or (H, W) values in [0, 1] as JPEG, PNG, WebP, TIFF or EXR, atomically.

    Args:
        path: the suffix chooses the format.
        image: sRGB-encoded values in [0, 1] (clipped, not finite becomes 0), or uint8. EXR gets linear light.
        quality: of JPEG and WebP, 1 to 100.
        bits: 8, or 16 for grey PNG and TIFF.

    Raises:
        InputError: unknown suffix, wrong shape, or the file cannot be written.
    """
    from PIL import Image

    path = Path(path)
    values = image.detach().cpu()
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[0] not in (1, 3) or 0 in values.shape:
        raise InputError(
            f"a picture must be (3, H, W), (1, H, W) or (H, W), got {tuple(image.shape)}", path=path
        )
    if values.dtype == torch.uint8:
        values = values.float() / 255
    array = np.nan_to_num(values.float().permute(1, 2, 0).numpy(), nan=0.0, posinf=0.0, neginf=0.0).clip(0, 1)
    suffix = path.suffix.lower()
    if suffix == ".exr":
        names = ("R", "G", "B") if array.shape[2] == 3 else ("Y",)
        return write_exr(path, {name: srgb_to_linear(array[..., i]) for i, name in enumerate(names)})
    formats = {
        ".jpg": "JPEG",
        ".jpeg": "JPEG",
        ".png": "PNG",
        ".webp": "WEBP",
        ".tif": "TIFF",
        ".tiff": "TIFF",
    }
    if suffix not in formats:
        raise InputError(
            "unknown picture suffix", path=path, remedy=f"use one of {', '.join(formats)} or .exr"
        )
    if bits == 16:
        if array.shape[2] != 1 or formats[suffix] not in ("PNG", "TIFF"):
            raise InputError("16 bits are written for grey PNG and TIFF only", path=path)
        picture = Image.fromarray(np.round(np.clip(array[..., 0], 0, 1) * 65535).astype(np.uint16))
    else:
        eight = np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)
        picture = Image.fromarray(eight[..., 0] if array.shape[2] == 1 else eight)
    options: dict[str, Any] = {"quality": quality} if formats[suffix] in ("JPEG", "WEBP") else {}
    if formats[suffix] == "JPEG" and quality >= 90:
        options["subsampling"] = 0
    with atomic_path(path) as temporary:
        picture.save(temporary, format=formats[suffix], **options)
    return path


def _image_format(path: str | Path) -> tuple[str, str | None]:
    kind = sniff(path)
    if kind is None:
        raise InputError(
            "is not a picture in a known format", path=path, remedy="use JPEG, PNG, WebP, TIFF, HEIC or EXR"
        )
    if kind not in IMAGE_FORMATS:
        raise InputError(f"is a {kind} file, not a picture", path=path)
    return kind, suffix_note(path, kind)


def _read_pixels(path: str | Path, header: ImageHeader, max_pixels: int) -> PixelData:
    if header.format == "tiff" and header.deep:
        return read_deep_tiff(path, max_pixels)
    with open_picture(path, header.format, max_pixels) as (picture, _):
        if header.format == "heic":
            # libheif applies the container's own rotation; the EXIF copy of it must not be applied again.
            return pixels_from_pillow(picture.to_pillow())
        picture.load()
        if header.deep:
            deep = read_deep_png(path)
            if deep is not None:
                return deep
        data = pixels_from_pillow(picture)
    if header.deep:
        data.notes.append("only the upper 8 of 16 bits were read (pip install 'relief3d[video]' for all)")
    data.oriented = header.format == "tiff"
    return data


def _read_exr_pixels(path: str | Path, max_pixels: int) -> PixelData:
    channels = read_exr(path, max_pixels=max_pixels)
    if all(name in channels for name in "RGB"):
        rgb = np.stack([channels[name] for name in "RGB"], axis=-1)
    else:
        grey = channels.get("Y", next(iter(channels.values())) if len(channels) == 1 else None)
        if grey is None:
            raise InputError(
                f"the EXR file has channels {', '.join(channels)} but no R, G, B or Y", path=path
            )
        rgb = np.repeat(grey[..., None], 3, axis=-1)
    notes = []
    if not np.isfinite(rgb).all():
        notes.append("pixels that are not finite were set to black")
    alpha = channels.get("A")
    if alpha is not None:
        alpha = np.clip(np.nan_to_num(alpha), 0.0, 1.0)
    return PixelData(linear_to_srgb(normalise_range(rgb, linear=True)[0]), alpha, notes)
