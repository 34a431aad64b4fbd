"""Every kind of picture becomes float32 RGB in [0, 1]."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from corpora.pictures import encode_exr, encode_picture, smooth_rgb
from relief3d.core.errors import InputError
from relief3d.io.images import decode_image, image_size, read_header, read_image, write_image

RGB = smooth_rgb()
GREY = np.asarray(Image.fromarray(RGB).convert("L"))


def rgb_of(path: Path) -> np.ndarray:
    loaded = read_image(path)
    assert loaded.rgb.dtype == torch.float32 and loaded.rgb.is_contiguous()
    assert float(loaded.rgb.min()) >= 0 and float(loaded.rgb.max()) <= 1
    assert (loaded.rgb.shape[2], loaded.rgb.shape[1]) == image_size(path)
    return loaded.rgb.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [("jpeg", 0.01), ("png", 1e-6), ("webp", 1e-6), ("tiff", 1e-6), ("bmp", 1e-6), ("heic", 0.02)],
)
def test_containers(tmp_path: Path, kind: str, tolerance: float) -> None:
    path = tmp_path / "a"
    path.write_bytes(encode_picture(kind, RGB))
    assert read_header(path).format == kind
    assert np.abs(rgb_of(path) - RGB / 255).mean() < tolerance


def save(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format=kind, **options)
    return stream.getvalue()


def grey_alpha() -> Image.Image:
    return Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(GREY)))


MODES: dict[str, tuple[Callable[[], bytes], Callable[[], np.ndarray], float]] = {
    "grey": (lambda: save(Image.fromarray(GREY)), lambda: GREY / 255, 1e-6),
    "one bit": (lambda: save(Image.fromarray(GREY > 128)), lambda: (GREY > 128) * 1.0, 1e-6),
    "palette": (lambda: save(Image.fromarray(RGB).quantize(256)), lambda: RGB.mean(2) / 255, 0.03),
    "cmyk jpeg": (
        lambda: save(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=98),
        lambda: RGB / 255,
        0.02,
    ),
    "cmyk tiff": (lambda: save(Image.fromarray(RGB).convert("CMYK"), "TIFF"), lambda: RGB / 255, 0.02),
    "ycbcr tiff": (
        lambda: save(Image.fromarray(RGB), "TIFF", compression="jpeg", quality=95),
        lambda: RGB / 255,
        0.02,
    ),
    "16 bit grey": (
        lambda: save(Image.fromarray(GREY.astype(np.uint16) * 257)),
        lambda: GREY / 255,
        1e-6,
    ),
    "16 bit grey tiff": (
        lambda: save(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"),
        lambda: GREY / 255,
        1e-6,
    ),
    "float": (
        lambda: save(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"),
        lambda: GREY / 255,
        1e-6,
    ),
    "float 0..255": (
        lambda: save(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
        lambda: GREY / 255,
        1e-6,
    ),
    "32 bit": (lambda: save(Image.fromarray(GREY.astype(np.int32)), "TIFF"), lambda: GREY / 255, 1e-6),
}


@pytest.mark.parametrize("name", list(MODES))
def test_modes(tmp_path: Path, name: str) -> None:
    make, wanted, tolerance = MODES[name]
    path = tmp_path / "a.picture"
    path.write_bytes(make())
    got, expected = rgb_of(path), wanted()
    expected = np.repeat(expected[..., None], 3, axis=2) if expected.ndim == 2 else expected
    got = np.repeat(got.mean(2, keepdims=True), 3, axis=2) if name == "palette" else got
    assert np.abs(got - expected).mean() < tolerance


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (33, 17)])
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int], kind: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(encode_picture(kind, np.full((size[1], size[0], 3), 100, np.uint8)))
    assert image_size(path) == size
    assert np.abs(rgb_of(path) - 100 / 255).max() < 0.02


def test_16_bit_colour_keeps_its_precision(tmp_path: Path) -> None:
    import av
    import tifffile

    values = np.linspace(0, 65535, 40 * 50 * 3).reshape(40, 50, 3).round().astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", values, photometric="rgb", compression="zlib")
    tifffile.imwrite(
        tmp_path / "c.tif", values.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"
    )
    tifffile.imwrite(tmp_path / "d.tif", (values / 65535).astype(np.float32), photometric="rgb")
    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt, context.time_base = 50, 40, "rgb48be", Fraction(1, 25)
    frame = av.VideoFrame(50, 40, "rgb48be")
    line = frame.planes[0].line_size
    frame.planes[0].update(b"".join(row.astype(">u2").tobytes().ljust(line, b"\0") for row in values))
    (tmp_path / "e.png").write_bytes(b"".join(bytes(p) for p in context.encode(frame) + context.encode(None)))
    for name in ("a.tif", "b.tif", "c.tif", "d.tif", "e.png"):
        assert read_header(tmp_path / name).deep
        assert np.abs(rgb_of(tmp_path / name) - values / 65535).max() < 1e-6, name


def test_deep_png_without_the_video_extra_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt, context.time_base = 16, 16, "rgb48be", Fraction(1, 25)
    frame = av.VideoFrame(16, 16, "rgb48be")
    frame.planes[0].update(bytes([0x80]) * frame.planes[0].buffer_size)
    path = tmp_path / "a.png"
    path.write_bytes(b"".join(bytes(p) for p in context.encode(frame) + context.encode(None)))
    monkeypatch.setattr("relief3d.io.deep_pixels.available", lambda module: False)
    loaded = read_image(path)
    assert "upper 8 of 16 bits" in loaded.notes[0]
    assert float(loaded.rgb.mean()) == pytest.approx(128 / 255, abs=0.01)


def test_transparency_is_laid_over_white_and_becomes_the_mask(tmp_path: Path) -> None:
    alpha = np.zeros((32, 48), np.uint8)
    alpha[:, :20], alpha[:, 20:24] = 255, 128
    path = tmp_path / "a.png"
    path.write_bytes(save(Image.fromarray(np.dstack([RGB, alpha]))))
    loaded = read_image(path)
    assert loaded.mask is not None and loaded.header.has_alpha
    assert np.array_equal(loaded.mask.numpy(), alpha >= 128)
    rgb = loaded.rgb.permute(1, 2, 0).numpy()
    assert np.abs(rgb[:, :20] - RGB[:, :20] / 255).max() < 1e-6
    assert (rgb[:, 24:] == 1).all()
    assert np.abs(rgb[:, 21] - (RGB[:, 21] / 255 * 128 / 255 + 127 / 255)).max() < 1e-6


def test_grey_alpha_and_palette_transparency(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(save(grey_alpha()))
    loaded = read_image(path)
    a = GREY / 255
    assert np.abs(loaded.rgb[0].numpy() - (a * a + 1 - a)).max() < 1e-6
    palette = Image.fromarray(RGB).quantize(16)
    path.write_bytes(save(palette, transparency=3))
    mask = read_image(path).mask
    assert mask is not None and np.array_equal(mask.numpy(), np.asarray(palette) != 3)


def test_opaque_alpha_gives_no_mask(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(save(Image.fromarray(RGB).convert("RGBA")))
    assert read_image(path).mask is None


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(tmp_path: Path, kind: str) -> None:
    first, second = (Image.new("RGB", (20, 10), colour) for colour in ((250, 0, 0), (0, 0, 250)))
    path = tmp_path / "a"
    path.write_bytes(save(first, kind, save_all=True, append_images=[second]))
    assert np.abs(rgb_of(path) - np.array([250, 0, 0]) / 255).max() < 0.03


def test_colour_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    # A profile of linear light: mid grey 0.5 in it is 0.735 in sRGB.
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    path = tmp_path / "a.png"
    path.write_bytes(save(Image.fromarray(RGB), icc_profile=srgb.tobytes()))
    assert np.abs(rgb_of(path) - RGB / 255).max() < 1e-6
    path.write_bytes(save(Image.fromarray(RGB), icc_profile=swapped_profile(srgb.tobytes())))
    got = rgb_of(path)
    assert np.abs(got[..., 0] - RGB[..., 2] / 255).mean() < 0.02  # red and blue primaries exchanged
    for broken in (lab.tobytes(), b"no profile", srgb.tobytes()[:200]):
        path.write_bytes(save(Image.fromarray(RGB), icc_profile=broken))
        loaded = read_image(path)
        assert np.abs(loaded.rgb.permute(1, 2, 0).numpy() - RGB / 255).max() < 1e-6
        assert "profile" in loaded.notes[0]


def swapped_profile(profile: bytes) -> bytes:
    """An sRGB profile whose red and blue primaries are exchanged, under another name."""
    data = bytearray(profile)
    count = int.from_bytes(data[128:132], "big")
    at = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = at[b"rXYZ"], at[b"bXYZ"]
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(data).replace("sRGB".encode("utf-16-be"), "tRGB".encode("utf-16-be"))


def test_exr_is_encoded_as_srgb(tmp_path: Path) -> None:
    path = tmp_path / "a.exr"
    path.write_bytes(encode_exr(tmp_path, RGB))
    assert np.abs(rgb_of(path) - RGB / 255).max() < 1e-5
    from relief3d.io.exr import write_exr

    values = np.array([[0.0, 0.5, 1.0, 40.0, np.nan, np.inf, -1.0]], np.float32)
    write_exr(path, {"Y": values})
    loaded = read_image(path)
    assert loaded.rgb[0, 0].tolist() == pytest.approx([0, 0.7354, 1, 1, 0, 0, 0], abs=1e-3)
    assert "not finite" in loaded.notes[0]


def test_wrong_suffix_is_read_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encode_picture("png", RGB))
    loaded = read_image(path)
    assert loaded.notes == ("named .jpg but its content is png",)
    assert np.abs(loaded.rgb.permute(1, 2, 0).numpy() - RGB / 255).max() < 1e-6


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".exr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_write_and_read_back(tmp_path: Path, suffix: str, channels: int) -> None:
    image = torch.from_numpy(RGB.copy()).permute(2, 0, 1).float()[:channels] / 255
    path = write_image(tmp_path / f"a{suffix}", image)
    error = (read_image(path).rgb - image).abs().mean()
    assert float(error) < (0.02 if suffix in (".jpg", ".webp") else 0.002)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_write_clips_and_refuses(tmp_path: Path) -> None:
    image = torch.tensor([[-1.0, 2.0, float("nan"), 0.5]]).repeat(3, 1, 1)
    loaded = read_image(write_image(tmp_path / "a.png", image))
    assert loaded.rgb[0, 0].tolist() == pytest.approx([0, 1, 0, 128 / 255])
    sixteen = read_image(write_image(tmp_path / "b.png", torch.tensor([[0.123456, 1.0]]), bits=16))
    assert float(sixteen.rgb[0, 0, 0]) == pytest.approx(0.123456, abs=1e-5)
    for bad in (torch.zeros(4, 5, 5), torch.zeros(3, 0, 5), torch.zeros(5)):
        with pytest.raises(InputError, match="must be"):
            write_image(tmp_path / "c.png", bad)
    with pytest.raises(InputError, match="suffix"):
        write_image(tmp_path / "c.xyz", image)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_decode_from_memory() -> None:
    assert torch.equal(
        decode_image(encode_picture("png", RGB)), torch.from_numpy(RGB.copy()).permute(2, 0, 1) / 255
    )
    for bad in (b"", b"hello", encode_picture("png", RGB)[:200], encode_picture("gif", RGB)):
        with pytest.raises(InputError):
            decode_image(bad)


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    path = tmp_path / "a.heic"
    path.write_bytes(encode_picture("heic", RGB))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InputError, match=r"relief3d\[heic\]"):
        read_image(path)
