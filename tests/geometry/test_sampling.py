from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch.autograd import gradcheck

from relief3d.core.errors import InputError
from relief3d.geometry.projection import depth_to_points, intrinsics, pixel_grid
from relief3d.geometry.sampling import sample_depth, sample_image, sample_map

from .draws import F64, close, generator, properties, seeds, uniform


@properties
@given(seeds)
def test_pixel_centres_read_the_pixels(seed: int) -> None:
    g = generator(seed)
    image = uniform(g, 0, 1, 2, 3, 7, 9)
    grid = pixel_grid(7, 9, dtype=F64).expand(2, 7, 9, 2)
    for mode in ("bilinear", "nearest", "bicubic"):
        assert close(sample_image(image, grid, mode), image, 1e-12)
    assert close(sample_map(image[:, 0], grid), image[:, 0], 1e-12)


@properties
@given(seeds)
def test_bilinear_is_exact_on_linear_pictures(seed: int) -> None:
    g = generator(seed)
    grid = pixel_grid(8, 11, dtype=F64)
    slope, offset = uniform(g, -1, 1, 3, 2), uniform(g, -1, 1, 3)
    image = (grid @ slope.T + offset).permute(2, 0, 1)
    xy = torch.stack([uniform(g, 0.5, 10.5, 40), uniform(g, 0.5, 7.5, 40)], dim=-1)
    assert close(sample_image(image, xy), (xy @ slope.T + offset).T, 1e-12)


def test_padding_and_half_pixel_border() -> None:
    image = torch.ones(1, 4, 4, dtype=F64)
    edge = torch.tensor([[0.0, 2.0], [-1.0, 2.0]], dtype=F64)
    assert sample_image(image, edge).flatten().tolist() == pytest.approx([0.5, 0.0])
    assert sample_image(image, edge, padding="border").flatten().tolist() == pytest.approx([1.0, 1.0])


def test_broadcasting_and_wrong_shapes() -> None:
    image = torch.rand(4, 1, 3, 5, 6)
    xy = torch.rand(1, 2, 7, 8, 2) * 5
    out = sample_image(image, xy)
    assert out.shape == (4, 2, 3, 7, 8)
    assert torch.allclose(out[2, 1], sample_image(image[2, 0], xy[0, 1]))
    with pytest.raises(InputError):
        sample_image(image, torch.rand(3, 2, 7, 2))
    with pytest.raises(InputError):
        sample_image(image, torch.rand(4, 1, 7, 3))


def test_gradients() -> None:
    g = generator(0)
    image = uniform(g, 0, 1, 2, 4, 5).requires_grad_()
    # Positions away from cell borders, where bilinear interpolation has a kink.
    xy = (torch.floor(uniform(g, 0, 3, 6, 2)) + 0.5 + uniform(g, 0.2, 0.8, 6, 2)).requires_grad_()
    assert gradcheck(sample_image, (image, xy))
    depth = (1 + 0.01 * uniform(g, 0, 1, 4, 5)).requires_grad_()
    assert gradcheck(
        lambda d, p: sample_depth(d, p)[0], (depth, xy.detach().clamp(0.7, 3.3).requires_grad_())
    )


@properties
@given(seeds)
def test_depth_reads_smooth_surfaces_closely(seed: int) -> None:
    g = generator(seed)
    K = intrinsics(50, 50, 8, 6)
    n = torch.tensor([0.2, -0.1, 1.0], dtype=F64)
    rays = depth_to_points(torch.ones(12, 16, dtype=F64), K)
    depth = 3.0 / (rays @ n)
    xy = torch.stack([uniform(g, 0.5, 15.5, 30), uniform(g, 0.5, 11.5, 30)], dim=-1)
    truth = 3.0 / ((xy - torch.tensor([8.0, 6.0], dtype=F64)) / 50 @ n[:2] + 1)
    z, valid = sample_depth(depth, xy)
    assert bool(valid.all())
    assert close(z, truth, 1e-4)


def test_depth_never_mixes_surfaces_or_holes() -> None:
    depth = torch.full((6, 8), 2.0)
    depth[:, 4:] = 3.0
    depth[0, 0] = 0.0
    depth[5, 0] = torch.nan
    xy = torch.tensor(
        [[4.0, 3.0], [2.0, 3.0], [6.0, 3.0], [0.7, 0.7], [0.7, 5.3], [9.0, 3.0], [torch.nan, 1.0]]
    )
    z, valid = sample_depth(depth, xy)
    assert valid.tolist() == [False, True, True, False, False, False, False]
    assert z.tolist() == pytest.approx([0, 2, 3, 0, 0, 0, 0])
    batched, _ = sample_depth(depth.expand(2, 3, 6, 8), xy.expand(2, 3, 7, 2))
    assert torch.equal(batched[1, 2], z)
    assert sample_depth(depth, torch.tensor([[0.0, 3.0], [8.0, 6.0]]))[0].tolist() == pytest.approx(
        [2.0, 3.0]
    )
