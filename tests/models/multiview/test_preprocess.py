"""Preparing pictures: sizes of the published code, and exact maps back to the original pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from relief3d.core.errors import InputError
from relief3d.models.multiview.preprocess import Mode, pi3_size, prepare


def picture(width: int, height: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def marked(width: int, height: int, x: int, y: int) -> torch.Tensor:
    """Black with a white blob around pixel (x, y)."""
    rows, cols = torch.meshgrid(torch.arange(height) - y, torch.arange(width) - x, indexing="ij")
    return torch.exp(-(rows**2 + cols**2) / 50.0).expand(3, -1, -1)


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        ("vggt-crop", (640, 480), (518, 392)),
        ("vggt-crop", (480, 640), (518, 518)),
        ("vggt-crop", (1920, 1080), (518, 294)),
        ("vggt-pad", (640, 480), (518, 518)),
        ("square", (640, 480), (518, 518)),
        ("keep", (640, 480), (518, 392)),
        ("keep", (480, 640), (392, 518)),
        ("pi3", (640, 480), (574, 434)),
    ],
)
def test_sizes(mode: Mode, size: tuple[int, int], expected: tuple[int, int]) -> None:
    out = prepare([picture(*size)], mode)
    assert tuple(out.images.shape) == (1, 3, expected[1], expected[0])
    assert float(out.images.min()) >= 0 and float(out.images.max()) <= 1


def test_pi3_sizes_against_the_rule() -> None:
    for width, height in ((640, 480), (1920, 1080), (100, 3000), (333, 333), (14, 14), (5000, 20)):
        w, h = pi3_size(width, height)
        assert w % 14 == h % 14 == 0 and w >= 14 and h >= 14
        assert w * h <= 255_000 or min(w, h) == 14
    assert pi3_size(640, 480) == (574, 434)


@pytest.mark.parametrize("mode", ["vggt-crop", "vggt-pad", "square", "keep", "pi3"])
@pytest.mark.parametrize("size", [(640, 480), (300, 500)])
def test_pixels_land_where_the_map_says(mode: Mode, size: tuple[int, int]) -> None:
    x, y = 160, 230
    out = prepare([marked(*size, x, y)], mode)
    image = out.images[0, 0]
    if mode in ("vggt-pad",):  # white borders are not the blob
        x0, y0, x1, y1 = (int(v) for v in out.content[0].round())
        mask = torch.zeros_like(image, dtype=torch.bool)
        mask[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = True
        image = torch.where(mask, image, torch.zeros_like(image))
    rows, cols = torch.meshgrid(*(torch.arange(n) + 0.5 for n in image.shape), indexing="ij")
    found = torch.stack([(cols * image).sum(), (rows * image).sum()]) / image.sum()
    expected = out.network_from_original[0] @ torch.tensor([x + 0.5, y + 0.5, 1.0], dtype=torch.float64)
    assert torch.allclose(found.double(), expected[:2], atol=0.05)


def test_intrinsics_go_there_and_back() -> None:
    out = prepare([picture(640, 480), picture(480, 640, 1)], "vggt-crop")
    K = torch.tensor([[500.0, 0, 320], [0, 505, 240], [0, 0, 1]]).double().repeat(2, 1, 1)
    assert torch.allclose(out.original_intrinsics(out.intrinsics(K)), K)
    # Width 518 of 640, and the middle stays the middle.
    assert float(out.intrinsics(K)[0, 0, 0]) == pytest.approx(500 * 518 / 640)
    assert float(out.intrinsics(K)[0, 0, 2]) == pytest.approx(259)


def test_the_resize_is_pillows_on_eight_bits() -> None:
    image = picture(100, 60)
    eight = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    expected = np.asarray(Image.fromarray(eight).resize((518, 308), Image.Resampling.BICUBIC))
    out = prepare([image], "vggt-crop").images[0]
    assert np.array_equal((out * 255).round().byte().permute(1, 2, 0).numpy(), expected)


def test_different_shapes_share_a_frame_with_white_borders_and_a_note() -> None:
    out = prepare([torch.zeros(3, 480, 640), torch.zeros(3, 640, 480)], "vggt-crop")
    assert out.images.shape == (2, 3, 518, 518)
    assert (out.images[0, :, 0] == 1).all() and (out.images[0, :, 259] == 0).all()
    assert any("different shapes" in n for n in out.notes)
    assert out.content[0].tolist() == pytest.approx([0, 63, 518, 455])


def test_opacity_is_laid_on_white() -> None:
    clear = torch.zeros(4, 28, 28)
    assert (prepare([clear], "keep", side=28).images == 1).all()


def test_refusals() -> None:
    with pytest.raises(InputError, match="no pictures"):
        prepare([], "keep")
    with pytest.raises(InputError, match="not empty"):
        prepare([torch.zeros(3, 0, 5)], "keep")
    with pytest.raises(InputError, match="use 504"):
        prepare([picture(64, 48)], "keep", side=510)
