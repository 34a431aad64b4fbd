"""Truncated, mutated and oversized files: a typed error or a usable result, quickly, never a crash.

``RELIEF3D_STRESS=10`` multiplies the number of mutations.
"""

from __future__ import annotations

import io
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from corpora.pictures import (
    bomb_exr,
    bomb_npz,
    bomb_png,
    bomb_tiff,
    bomb_webp,
    depth_values,
    encode_exr,
    encode_picture,
    smooth_rgb,
)
from corpora.videos import panning_frames, write_video
from relief3d.core.contract import Depth
from relief3d.core.errors import InputError, ReliefError
from relief3d.core.memory import peak_rss
from relief3d.io.depth import read_depth, write_depth
from relief3d.io.images import image_size, read_image
from relief3d.io.video import sample_video

STRESS = int(os.environ.get("RELIEF3D_STRESS", "1"))
SIZES = ((48, 32), (31, 57), (64, 64), (100, 20))
CUTS = (0.05, 0.4, 0.75, 0.97)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """Four small files of every kind."""
    folder = tmp_path_factory.mktemp("corpus")
    files: dict[str, list[bytes]] = {}
    for kind in ("jpeg", "png", "webp", "tiff", "heic", "gif", "bmp"):
        files[kind] = [encode_picture(kind, smooth_rgb(w, h, i), 6) for i, (w, h) in enumerate(SIZES)]
    files["exr"] = [encode_exr(folder, smooth_rgb(w, h)) for w, h in SIZES]
    for suffix in ("png", "npy", "npz", "exr", "pfm"):
        files[f"depth {suffix}"] = [
            write_depth(folder / f"d.{suffix}", torch.from_numpy(depth_values(w, h))).read_bytes()
            for w, h in SIZES
        ]
    files["deep tiff"] = [deep_tiff(w, h) for w, h in SIZES]
    return files


def deep_tiff(width: int, height: int) -> bytes:
    import tifffile

    stream = io.BytesIO()
    values = (smooth_rgb(width, height).astype(np.uint16)) * 257
    tifffile.imwrite(stream, values, photometric="rgb")
    return stream.getvalue()


def reader(kind: str) -> Callable[[Path], object]:
    return read_depth if kind.startswith("depth") else read_image


KINDS = ["jpeg", "png", "webp", "tiff", "heic", "gif", "bmp", "exr", "deep tiff"] + [
    f"depth {s}" for s in ("png", "npy", "npz", "exr", "pfm")
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_is_a_typed_error(tmp_path: Path, corpus: dict[str, list[bytes]], kind: str) -> None:
    """Only a cut behind the last pixel (a trailing marker) may pass, and then the pixels are all there."""
    complete = 0
    for number, data in enumerate(corpus[kind]):
        whole = tmp_path / f"{number}.whole"
        whole.write_bytes(data)
        for cut in CUTS:
            path = tmp_path / f"{number}.bin"
            path.write_bytes(data[: int(len(data) * cut)])
            began = time.monotonic()
            try:
                result = reader(kind)(path)
            except InputError as exc:
                assert path.name in str(exc) and "\n" not in str(exc)
            else:
                complete += 1
                assert torch.equal(pixels(result), pixels(reader(kind)(whole)))
            assert time.monotonic() - began < 2
    assert complete <= 4


def pixels(result: object) -> torch.Tensor:
    return result.values if isinstance(result, Depth) else result.rgb  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
def test_empty_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.bin"
    path.touch()
    with pytest.raises(InputError, match="empty"):
        reader(kind)(path)


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes_never_escape(tmp_path: Path, corpus: dict[str, list[bytes]], kind: str) -> None:
    generator = np.random.default_rng(zlib.crc32(kind.encode()))
    path = tmp_path / "a.bin"
    for _ in range(11 * STRESS):
        data = bytearray(corpus[kind][generator.integers(4)])
        near_start = generator.random() < 0.5
        for _ in range(generator.integers(1, 6)):
            data[generator.integers(min(64, len(data)) if near_start else len(data))] = generator.integers(
                256
            )
        path.write_bytes(data)
        began = time.monotonic()
        try:
            result = reader(kind)(path)
        except ReliefError as exc:
            assert "\n" not in str(exc)
        else:
            assert bool(torch.isfinite(pixels(result)).all())
        assert time.monotonic() - began < 2
    assert peak_rss() < 3 * 1024**3


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (bomb_png, read_image),
        (bomb_tiff, read_image),
        (bomb_webp, read_image),
        (bomb_exr, read_image),
        (bomb_exr, read_depth),
        (bomb_npz, read_depth),
        (lambda: b"Pf\n40000 30000\n-1\n" + bytes(100), read_depth),
        (lambda: bytes(np.lib.format.MAGIC_PREFIX) + b"\x01\x00" + npy_header(), read_depth),
    ],
    ids=["png", "tiff", "webp", "exr", "exr depth", "npz", "pfm", "npy"],
)
def test_bombs_are_refused_before_decoding(
    tmp_path: Path, make: Callable[[], bytes], read: Callable[[Path], object]
) -> None:
    path = tmp_path / "bomb.bin"
    path.write_bytes(make())
    before, began = peak_rss(), time.monotonic()
    with pytest.raises(InputError, match=r"megapixels|GB|damaged|impossible"):
        read(path)
    assert time.monotonic() - began < 0.5
    assert peak_rss() - before < 200 * 1024**2


def npy_header() -> bytes:
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (40000, 30000), }\n"
    return len(text).to_bytes(2, "little") + text


def test_the_limit_is_an_option(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_picture("png", smooth_rgb(40, 30)))
    with pytest.raises(InputError, match="max_pixels"):
        read_image(path, max_pixels=1199)
    assert image_size(path, max_pixels=1200) == (40, 30)


def test_pictures_above_pillows_own_limit_are_read(tmp_path: Path) -> None:
    """Pillow warns above 89 and fails above 179 megapixels; the limit here is our own."""
    from PIL import Image

    path = tmp_path / "a.png"
    Image.new("1", (20_000, 9_500)).save(path)
    assert image_size(path) == (20_000, 9_500)


NOT_PICTURES = {
    "text": b"hello, this is no picture at all",
    "html": b"<!DOCTYPE html><html></html>",
    "pdf": b"%PDF-1.7 ........................",
    "zip": b"PK\x03\x04" + bytes(60),
    "zeros": bytes(500),
    "video": b"\x00\x00\x00\x18ftypisom" + bytes(60),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "playlist": b"#EXTM3U\nfile:///etc/passwd\n",
}


@pytest.mark.parametrize("kind", list(NOT_PICTURES))
def test_wrongly_suffixed_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(NOT_PICTURES[kind])
    with pytest.raises(InputError, match="picture"):
        read_image(path)


def test_playlists_are_not_videos(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(NOT_PICTURES["playlist"])
    with pytest.raises(InputError, match="not a video"):
        sample_video(path)


def test_flipped_bytes_in_video(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", panning_frames(12, width=64, height=48)).read_bytes()
    generator = np.random.default_rng(5)
    path = tmp_path / "b.mp4"
    used = 0
    for _ in range(12 * STRESS):
        data = bytearray(source)
        for _ in range(generator.integers(1, 30)):
            data[generator.integers(32, len(data))] = generator.integers(256)
        path.write_bytes(data)
        try:
            sample = sample_video(path)
        except ReliefError as exc:
            assert "\n" not in str(exc)
        else:
            used += 1
            assert 1 <= len(sample.frames) <= sample.decoded
    assert used > 0
