"""Small pictures and depth maps in every format, made on the spot."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def smooth_rgb(width: int = 48, height: int = 32, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 picture without symmetry, smooth enough for lossy formats."""
    generator = np.random.default_rng(seed)
    coarse = generator.random((5, 6, 3))
    y = np.linspace(0, 3.999, height)
    x = np.linspace(0, 4.999, width)
    y0, x0 = y.astype(int), x.astype(int)
    fy, fx = (y - y0)[:, None, None], (x - x0)[None, :, None]
    top = coarse[y0][:, x0] * (1 - fx) + coarse[y0][:, x0 + 1] * fx
    low = coarse[y0 + 1][:, x0] * (1 - fx) + coarse[y0 + 1][:, x0 + 1] * fx
    return np.round((top * (1 - fy) + low * fy) * 255).astype(np.uint8)


def encode_picture(kind: str, array: np.ndarray | None = None, orientation: int | None = None) -> bytes:
    """``array`` (H, W, 3) uint8 as jpeg, png, webp, tiff, heic, gif or bmp."""
    picture = Image.fromarray(smooth_rgb() if array is None else array)
    options: dict[str, object] = {}
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    stream = io.BytesIO()
    if kind == "heic":
        import pillow_heif

        if orientation is not None:
            options["exif"] = options["exif"].tobytes()  # type: ignore[attr-defined]
        pillow_heif.from_pillow(picture).save(stream, quality=95, **options)
        return stream.getvalue()
    if kind == "jpeg":
        options |= {"quality": 97, "subsampling": 0}
    if kind == "webp":
        options |= {"lossless": True}
    if kind == "tiff":
        options |= {"compression": "tiff_lzw"}
    picture.save(stream, format=kind.upper(), **options)
    return stream.getvalue()


def encode_exr(folder: Path, array: np.ndarray | None = None) -> bytes:
    """A picture as EXR (the library writes to a path only)."""
    import torch

    from relief3d.io.images import write_image

    values = smooth_rgb() if array is None else array
    path = folder / "made.exr"
    write_image(path, torch.from_numpy(values.copy()).permute(2, 0, 1))
    return path.read_bytes()


def depth_values(width: int = 40, height: int = 30) -> np.ndarray:
    """(H, W) float32 plausible depth in metres, between 1 and 4."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return (1.0 + 3.0 * (x + 2 * y) / (width + 2 * height)).astype(np.float32)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk with its checksum."""
    import zlib

    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb_png(width: int = 40_000, height: int = 30_000) -> bytes:
    """A few hundred bytes that declare 1.2 gigapixels."""
    import zlib

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(b"\x00" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    )


def bomb_tiff(width: int = 40_000, height: int = 30_000) -> bytes:
    """A TIFF of 200 bytes that declares 1.2 gigapixels."""
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
        (278, 4, 1, height),
        (279, 4, 1, width * height),
    ]
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\x00" + struct.pack("<I", 8) + body


def bomb_webp() -> bytes:
    """A WebP header (VP8X) that declares 16384 x 65536 pixels."""
    canvas = (16384 - 1).to_bytes(3, "little") + (65536 - 1).to_bytes(3, "little")
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bomb_exr() -> bytes:
    """An EXR header whose data window has 1.6 gigapixels."""

    def attribute(name: bytes, kind: bytes, value: bytes) -> bytes:
        return name + b"\0" + kind + b"\0" + struct.pack("<i", len(value)) + value

    window = struct.pack("<4i", 0, 0, 39_999, 39_999)
    channels = b"Y\0" + struct.pack("<iBBBBii", 2, 0, 0, 0, 0, 1, 1) + b"\0"
    return (
        b"\x76\x2f\x31\x01\x02\0\0\0"
        + attribute(b"channels", b"chlist", channels)
        + attribute(b"compression", b"compression", b"\x00")
        + attribute(b"dataWindow", b"box2i", window)
        + attribute(b"displayWindow", b"box2i", window)
        + attribute(b"lineOrder", b"lineOrder", b"\x00")
        + attribute(b"pixelAspectRatio", b"float", struct.pack("<f", 1))
        + attribute(b"screenWindowCenter", b"v2f", bytes(8))
        + attribute(b"screenWindowWidth", b"float", struct.pack("<f", 1))
        + b"\0"
    )


def bomb_npz() -> bytes:
    """A deflated NPZ of some 200 kB that expands to 200 MB (and a header of a gigapixel)."""
    import zipfile

    stream = io.BytesIO()
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (40000, 30000), }"
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("depth.npy", "w") as out:
        out.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        for _ in range(50):
            out.write(bytes(4_000_000))
    return stream.getvalue()
