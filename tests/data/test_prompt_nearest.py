"""Nearest prompt points on a grid, by tree and by shared candidates, and local fits of a batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.nearest_points import nearest_on_grid, prompt_points
from relief3d.data.prompt_alignment import (
    GlobalOptions,
    PixelwiseOptions,
    align_pixelwise,
    prompt_condition,
    prompt_conditions,
)


def masks(counts: list[int], size: tuple[int, int] = (37, 50), seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    out = torch.zeros(len(counts), size[0] * size[1], dtype=torch.bool)
    for row, count in zip(out, counts, strict=True):
        row[torch.randperm(len(row), generator=g)[:count]] = True
    return out.reshape(-1, *size)


def all_distances(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """(h * w, points) by comparing everything."""
    height, width = mask.shape
    v = (torch.arange(grid[0], dtype=torch.float64) + 0.5) * height / grid[0] - 0.5
    u = (torch.arange(grid[1], dtype=torch.float64) + 0.5) * width / grid[1] - 0.5
    cells = torch.stack(torch.meshgrid(v, u, indexing="ij"), -1).reshape(-1, 2)
    return torch.cdist(cells, torch.nonzero(mask).double())


@pytest.mark.parametrize("method", ["tree", "squares"])
@pytest.mark.parametrize("grid", [None, (19, 25), (37, 13)])
def test_neighbours_of_every_cell_are_the_nearest(method, grid) -> None:
    mask = masks([5, 60, 400])
    # A cluster and two straight lines beside an empty half: lists of very different length.
    mask[1] = False
    mask[1, 3:6, 2:9] = mask[1, :, 40] = mask[1, 20, :10] = True
    points = prompt_points(mask)
    assert points.count.tolist() == mask.flatten(1).sum(1).tolist()
    place, far = nearest_on_grid(points, (37, 50), 5, grid, method=method)
    h, w = grid or (37, 50)
    assert place.shape == far.shape == (5, 3, h, w)
    for b in range(3):
        every = all_distances(mask[b], (h, w))
        expected = every.sort(1).values[:, :5]
        torch.testing.assert_close(far[:, b].flatten(1).T.double(), expected, atol=1e-4, rtol=0)
        # The places say which points these are: prompt_points lists them in row-major order.
        told = every.gather(1, place[:, b].flatten(1).T)
        torch.testing.assert_close(told, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["tree", "squares"])
def test_too_few_points_leave_infinite_distances(method) -> None:
    mask = masks([2, 30])
    place, far = nearest_on_grid(prompt_points(mask), (37, 50), 4, method=method)
    assert bool(torch.isinf(far[2:, 0]).all()) and not bool(torch.isinf(far[:2, 0]).any())
    assert not bool(torch.isinf(far[:, 1]).any()) and not bool(place[2:, 0].any())
    mask[0] = False
    with pytest.raises(InputError, match="empty"):
        nearest_on_grid(prompt_points(mask), (37, 50), 4, method=method)


def scenes(counts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(7)
    mask = masks(counts)
    prior = 0.1 + 0.5 * torch.rand(mask.shape, generator=g)
    depth = 1 / (1.7 * prior + 0.05 + 0.02 * torch.randn(mask.shape, generator=g)).clamp_min(0.02)
    return prior, torch.where(mask, depth, torch.zeros_like(depth)), mask


def test_a_batch_is_its_pictures() -> None:
    prior, depth, mask = scenes([5, 60, 200])
    fx = torch.tensor([0.5, 1.0, 1.5])
    together = prompt_conditions(prior, depth, mask, fx_over_width=fx)
    for b in range(3):
        alone = prompt_condition(prior[b], depth[b], mask[b], fx_over_width=float(fx[b])).values
        torch.testing.assert_close(together[b], alone, atol=1e-6, rtol=1e-6)
    for refine in ("values", "fits"):
        options = PixelwiseOptions(max_side=20, refine=refine)
        batch = align_pixelwise(prior, 1 / depth, mask, options)
        each = torch.stack(
            [align_pixelwise(*(v[b] for v in (prior, 1 / depth, mask)), options) for b in range(3)]
        )
        torch.testing.assert_close(batch, each, atol=1e-6, rtol=1e-6)


def test_pictures_with_few_points_beside_others() -> None:
    prior, depth, mask = scenes([1, 3, 80])
    with pytest.raises(InputError, match="not enough known points: 1 of at least 5"):
        prompt_conditions(prior, depth, mask)
    few = prompt_conditions(
        prior, depth, mask, pixelwise=PixelwiseOptions(fewer=True), overall=GlobalOptions(scale_only_below=10)
    )
    assert bool(torch.isfinite(few).all())
    # One point: the scale alone, everywhere the same, within the limits of the clamp.
    y, x = 1 / depth[0][mask[0]], prior[0][mask[0]]
    torch.testing.assert_close(few[0, 0], (prior[0] * (y / x)).clamp(0.5 * float(y), 2 * float(y)))
    alone = align_pixelwise(prior[1], 1 / depth[1], mask[1], PixelwiseOptions(fewer=True))
    torch.testing.assert_close(few[1, 0], alone, atol=1e-6, rtol=1e-6)


def test_fits_of_a_coarse_grid_keep_the_edges_of_the_prior() -> None:
    prior = torch.full((40, 60), 0.2)
    prior[:, 31:] = 0.8
    mask = masks([60], (40, 60))[0]
    truth = 1.3 * prior + 0.02
    prompt = torch.where(mask, truth, torch.zeros_like(truth))
    error = {}
    for refine in ("values", "fits"):
        made = align_pixelwise(prior, prompt, mask, PixelwiseOptions(max_side=20, clamp=False, refine=refine))
        error[refine] = (made - truth).abs()
    columns = slice(29, 33)
    assert float(error["values"][:, columns].mean()) > 0.1
    assert float(error["fits"][:, columns].mean()) < 0.02


def test_fits_of_a_coarse_grid_are_those_of_the_nearest_cell() -> None:
    g = torch.Generator().manual_seed(2)
    coarse = 0.1 + torch.rand(20, 30, generator=g)
    prior = coarse.repeat_interleave(2, 0).repeat_interleave(2, 1)
    mask = masks([40], (40, 60))[0]
    prompt = torch.where(mask, 0.1 + torch.rand(40, 60, generator=g), torch.zeros(40, 60))
    made = align_pixelwise(prior, prompt, mask, PixelwiseOptions(max_side=30, refine="fits"))
    cells = made.unfold(0, 2, 2).unfold(1, 2, 2).flatten(2)
    free = ~mask.unfold(0, 2, 2).unfold(1, 2, 2).flatten(2).any(-1)
    assert float((cells.amax(-1) - cells.amin(-1))[free].max()) < 1e-6
