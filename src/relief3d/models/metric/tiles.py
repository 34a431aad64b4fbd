"""A picture as overlapping tiles at three scales, and maps of their tokens joined again (Depth Pro; specification 3.2).

The fine level has the picture's own size, the middle level half of it, the coarse level is one tile. Fine tiles overlap
by a quarter, middle ones by half; of an overlap each tile keeps its own half, so T tokens per tile side lose T / 8 and
T / 4 at inner borders. Tiles lie along the batch: all pictures of the first tile, then all of the second, row by row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

OVERLAPS = (4, 2)
"""A fine tile shares 1/4 of its side with the next, a middle one 1/2."""


class Levels(NamedTuple):
    """Tiles of the three levels, (n * B, C, tile, tile) each; ``sides`` are the tiles per side of the first two."""

    fine: Tensor
    middle: Tensor
    coarse: Tensor
    sides: tuple[int, int]


def tiles_per_side(size: int, tile: int, overlap: int) -> int:
    """How many tiles of side ``tile`` cover ``size`` pixels when neighbours share 1 / ``overlap`` of a tile.

    Raises:
        ValueError: they do not cover it exactly.
    """
    stride = tile - tile // overlap
    if tile % overlap or size < tile or (size - tile) % stride:
        raise ValueError(f"tiles of {tile} pixels that share 1/{overlap} do not cover {size} pixels exactly")
    return (size - tile) // stride + 1


def split(x: Tensor, tile: int, overlap: int) -> Tensor:
    """(B, C, S, S) to tiles (n * n * B, C, tile, tile).

    Raises:
        ValueError: see :func:`tiles_per_side`.
    """
    count, stride = tiles_per_side(x.shape[-1], tile, overlap), tile - tile // overlap
    starts = [i * stride for i in range(count)]
    return torch.cat([x[..., top : top + tile, left : left + tile] for top in starts for left in starts])


def merge(tiles: Tensor, side: int, pad: int) -> Tensor:
    """Maps of tiles (side * side * B, C, T, T) to one (B, C, S, S), S = T + (side - 1) * (T - 2 * pad).

    Args:
        tiles: in the order of :func:`split`.
        side: tiles per side.
        pad: tokens that a tile loses at every border to another tile.
    """
    grid = tiles.unflatten(0, (side, side, -1))
    end = tiles.shape[-1] - pad
    cuts = [slice(pad if i else 0, end if i < side - 1 else None) for i in range(side)]
    return torch.cat(
        [torch.cat([grid[j, i, ..., cuts[j], cuts[i]] for i in range(side)], -1) for j in range(side)], -2
    )


def resize(x: Tensor, size: int, antialias: bool = False) -> Tensor:
    """(B, C, h, w) to (B, C, size, size), bilinear, corners not aligned."""
    if x.shape[-2:] == (size, size):
        return x
    return nn.functional.interpolate(
        x, size=(size, size), mode="bilinear", align_corners=False, antialias=antialias
    )


def split_levels(x: Tensor, tile: int) -> Levels:
    """Tiles of a square picture of side tile * (1 + 3 m); m = 1 is the published pyramid of 25, 9 and 1 tiles.

    With more tiles (m > 1) the coarse level is made from what the published pyramid would see of the picture.

    Raises:
        ValueError: the side is not of that form.
    """
    size = x.shape[-1]
    if x.shape[-2] != size or (size - tile) % (3 * tile) or size == tile:
        raise ValueError(
            f"a pyramid of tiles of {tile} pixels needs squares of {4 * tile}, {7 * tile}, {10 * tile} ... pixels, "
            f"not {x.shape[-2]} x {size}"
        )
    middle = resize(x, size // 2)
    sides = (tiles_per_side(size, tile, OVERLAPS[0]), tiles_per_side(size // 2, tile, OVERLAPS[1]))
    return Levels(
        split(x, tile, OVERLAPS[0]),
        split(middle, tile, OVERLAPS[1]),
        resize(resize(x, 4 * tile), tile),
        sides,
    )


def merge_fine(maps: Tensor, side: int) -> Tensor:
    """Maps of fine tiles to one map of 4 T (for 5 tiles per side)."""
    return merge(maps, side, maps.shape[-1] // 8)


def merge_middle(maps: Tensor, side: int) -> Tensor:
    """Maps of middle tiles to one map of 2 T (for 3 tiles per side)."""
    return merge(maps, side, maps.shape[-1] // 4)
