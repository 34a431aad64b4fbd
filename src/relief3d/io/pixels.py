"""From the pixel layouts that files use to float32 RGB in [0, 1] and an optional alpha."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


@dataclass
class PixelData:
    """Decoded pixels before orientation.

    Attributes:
        rgb: (H, W, 3) float32 in [0, 1].
        alpha: (H, W) float32 in [0, 1] or None when opaque.
        notes: what was decided, one sentence each.
        oriented: the decoder has applied the EXIF orientation already.
    """

    rgb: Float
    alpha: Float | None = None
    notes: list[str] = field(default_factory=list)
    oriented: bool = False


def pixels_from_pillow(picture: Any) -> PixelData:
    """Convert a loaded ``PIL.Image`` of any mode.

    Modes: 1, L, LA, P, PA, RGB, RGBA, RGBX, CMYK, YCbCr, LAB, HSV, I;16*, I, F. Premultiplied modes
    (La, RGBa) are divided by their alpha.
    """
    mode = picture.mode
    if mode in ("F", "I") or mode.startswith("I;"):
        values, notes = normalise_range(np.asarray(picture))
        return PixelData(np.repeat(values[..., None], 3, axis=-1), None, notes)
    notes = []
    picture, note = _to_srgb(picture)
    if note:
        notes.append(note)
    has_alpha = picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info
    if picture.mode == "La":
        picture = picture.convert("LA")
    wanted = "RGBA" if has_alpha else "RGB"
    if picture.mode != wanted:
        picture = picture.convert(wanted)
    array = np.asarray(picture, dtype=np.float32) / np.float32(255)
    if not has_alpha:
        return PixelData(array, None, notes)
    alpha = array[..., 3]
    return PixelData(array[..., :3], None if bool((alpha == 1).all()) else alpha, notes)


def _to_srgb(picture: Any) -> tuple[Any, str | None]:
    """Apply an embedded colour profile; a broken profile is ignored with a note."""
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return picture, None
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in (ImageCms.getProfileDescription(source) or "").lower():
            return picture, None
        target = ImageCms.createProfile("sRGB")
        out_mode = "RGBA" if picture.mode == "RGBA" else "RGB"
        if picture.mode == "L" and "transparency" in picture.info:
            return picture, None
        converted = ImageCms.profileToProfile(picture, source, target, outputMode=out_mode)
        if converted is None:
            return picture, "its colour profile could not be applied and was ignored"
        if "transparency" in picture.info:
            converted.info["transparency"] = picture.info["transparency"]
        return converted, None
    except Exception:  # the colour engine raises several types on damaged profiles
        return picture, "its colour profile is damaged and was ignored"


def normalise_range(values: NDArray[Any], *, linear: bool = False) -> tuple[Float, list[str]]:
    """Bring integers or floats of unknown range to [0, 1]; not finite becomes 0.

    uint8 and uint16 are divided by their maximum. Wider integers and floats are taken as [0, 1],
    [0, 255] or [0, 65535], the smallest that holds the largest value.

    Args:
        values: any shape.
        linear: scene-linear light, only clipped.
    """
    if values.dtype == np.uint8 or values.dtype == np.bool_:
        return values.astype(np.float32) / np.float32(1 if values.dtype == np.bool_ else 255), []
    if values.dtype in (np.dtype(np.uint16), np.dtype(">u2")):
        return values.astype(np.float32) / np.float32(65535), []
    notes = []
    whole = np.issubdtype(values.dtype, np.integer)
    out = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if out.size and not linear:
        top = float(out.max())
        scale = 1.0
        if whole or top > 1.5:
            scale = next((s for s in (255.0, 65535.0) if top <= s), top)
            notes.append(f"values up to {top:g} were divided by {scale:g}")
        out = out / np.float32(scale)
    return np.clip(out, 0.0, 1.0).astype(np.float32, copy=False), notes


def linear_to_srgb(values: Float) -> Float:
    """IEC 61966-2-1 encoding of linear light in [0, 1]."""
    curve = 1.055 * np.power(np.maximum(values, 0.0031308), 1 / 2.4) - 0.055
    return np.where(values <= 0.0031308, 12.92 * values, curve).astype(np.float32)


def srgb_to_linear(values: Float) -> Float:
    """Inverse of :func:`linear_to_srgb`."""
    curve = np.power((np.maximum(values, 0.04045) + 0.055) / 1.055, 2.4)
    return np.where(values <= 0.04045, values / 12.92, curve).astype(np.float32)
