"""Pyramids of tiles: sizes, order, and that joining undoes splitting."""

from __future__ import annotations

import pytest
import torch

from relief3d.models.metric.tiles import (
    merge,
    merge_fine,
    merge_middle,
    resize,
    split,
    split_levels,
    tiles_per_side,
)


def numbered(batch: int, side: int) -> torch.Tensor:
    """Every cell its own number."""
    return torch.arange(batch * 2 * side * side, dtype=torch.float64).reshape(batch, 2, side, side)


@pytest.mark.parametrize("cells", [8, 16, 24, 40, 72])
@pytest.mark.parametrize("batch", [1, 3])
def test_joining_undoes_splitting(cells: int, batch: int) -> None:
    """A map of tokens cut as the picture is: overlaps hold the same numbers, so any order or cut that is off shows."""
    fine, middle = numbered(batch, 4 * cells), numbered(batch, 2 * cells)
    assert torch.equal(merge_fine(split(fine, cells, 4), 5), fine)
    assert torch.equal(merge_middle(split(middle, cells, 2), 3), middle)


def test_each_tile_keeps_its_half_of_an_overlap() -> None:
    """Tiles that hold their own number: 21 + 3 * 18 + 21 = 96 and 18 + 12 + 18 = 48 (specification 23)."""
    fine = merge(torch.arange(25.0).view(25, 1, 1, 1).expand(25, 1, 24, 24), 5, 3)
    widths = [int((fine[0, 0, 0] == i).sum()) for i in range(5)]
    heights = [int((fine[0, 0, :, 0] == 5 * i).sum()) for i in range(5)]
    assert widths == heights == [21, 18, 18, 18, 21] and fine.shape[-1] == 96
    middle = merge_middle(torch.arange(9.0).view(9, 1, 1, 1).expand(9, 1, 24, 24), 3)
    assert [int((middle[0, 0, 0] == i).sum()) for i in range(3)] == [18, 12, 18]
    large = merge_fine(torch.zeros(25, 1, 72, 72), 5), merge_middle(torch.zeros(9, 1, 72, 72), 3)
    assert [m.shape[-1] for m in large] == [288, 144]


def test_tiles_lie_tile_after_tile_and_picture_after_picture_inside() -> None:
    x = numbered(2, 64)
    tiles = split(x, 16, 4)
    assert tiles.shape == (2 * 25, 2, 16, 16) and tiles_per_side(64, 16, 4) == 5
    assert torch.equal(tiles[0], x[0, :, :16, :16]) and torch.equal(tiles[1], x[1, :, :16, :16])
    assert torch.equal(tiles[2], x[0, :, :16, 12:28]) and torch.equal(tiles[10], x[0, :, 12:28, :16])
    assert torch.equal(tiles[49], x[1, :, 48:, 48:])


def test_levels_of_the_published_pyramid() -> None:
    x = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    levels = split_levels(x, 32)
    assert [len(t) for t in levels[:3]] == [50, 18, 2] and levels.sides == (5, 3)
    for factor, tiles in ((0.5, levels.middle), (0.25, levels.coarse)):
        scaled = torch.nn.functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
        assert torch.equal(tiles[:2], scaled[..., :32, :32])


def test_levels_of_larger_pictures_with_the_same_tiles() -> None:
    x = torch.rand(1, 3, 7 * 16, 7 * 16, generator=torch.Generator().manual_seed(0))
    levels = split_levels(x, 16)
    assert levels.sides == (9, 6) and [len(t) for t in levels[:3]] == [81, 36, 1]
    assert torch.equal(levels.coarse, resize(resize(x, 64), 16))
    assert merge_fine(torch.zeros(81, 1, 8, 8), 9).shape[-1] == 7 * 8
    assert merge_middle(torch.zeros(36, 1, 8, 8), 6).shape[-1] == 7 * 4


@pytest.mark.parametrize("size", [(48, 48), (64, 65), (16, 16), (80, 80), (64, 112)])
def test_other_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="needs squares of 64, 112"):
        split_levels(torch.zeros(1, 3, *size), 16)
    with pytest.raises(ValueError, match="exactly"):
        tiles_per_side(50, 16, 4)
