"""Limits on what a file from a stranger may ask of this machine.

Sizes are read from the header and compared before a single pixel is decoded, so a file of a few
kilobytes that declares a picture of gigabytes costs nothing.
"""

from __future__ import annotations

from pathlib import Path

from relief3d.core.errors import InputError

DEFAULT_MAX_PIXELS = 200_000_000
"""Largest picture or depth map that is decoded, in pixels (about 2.4 GB as float32 RGB)."""

DEFAULT_MAX_FILE_BYTES = 4 * 1024**3
"""Largest single picture or depth file that is opened, in bytes."""

MAX_SIDE = 1 << 20
"""Longest side any header may declare, in pixels; larger numbers are corruption."""


def check_pixels(
    width: int, height: int, *, path: str | Path | None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> None:
    """Refuse empty, absurd or too large picture sizes.

    Args:
        width: declared width in pixels.
        height: declared height in pixels.
        path: the file, for the message.
        max_pixels: largest accepted ``width * height``.

    Raises:
        InputError: when the size is not positive or above the limit.
    """
    if width < 1 or height < 1 or width > MAX_SIDE or height > MAX_SIDE:
        raise InputError(f"declares an impossible size of {width} x {height} pixels", path=path)
    if width * height > max_pixels:
        raise InputError(
            f"declares {width} x {height} pixels, more than the limit of {max_pixels / 1e6:.0f} megapixels",
            path=path,
            remedy="shrink the picture or raise the limit with max_pixels",
        )
