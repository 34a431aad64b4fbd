"""The U-Net over a large volume, piece by piece, within a given memory (specification 6, tiles).

``exact``: every tile is computed with all the surroundings that its values depend on, and equals the untiled result.
``blended``: fewer surroundings, and neighbouring tiles fade into each other; faster, and not exact.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.models.volume.config import VolumeNetConfig
from relief3d.models.volume.unet3d import HALO, MULTIPLE

TileMode = Literal["exact", "blended"]
Box = tuple[tuple[int, int, int], tuple[int, int, int]]
"""First and one past the last grid point of a part, along x, y, z."""
MARGIN = MULTIPLE
"""Points are read between grid points, so a tile gives its neighbours' first values too (one would do)."""
BLEND_HALO, BLEND_REACH = 24, 8
"""Surroundings of a tile that is blended, and how far beyond its border it counts (over 16 voxels in all)."""
MOST_SPLITS = 64


def bytes_per_voxel(config: VolumeNetConfig, item: int = 4) -> int:
    """Bytes of tensors alive at the worst moment of the U-Net per voxel of full resolution, without the library's work
    space; a test holds it against a count.
    """
    given, full = config.channels + config.guided, config.unet_widths[0]
    # The last level: the means, its input, the level before, both joined, and the output before and after its norm.
    return item * (3 * given + 5 * full)


@dataclass(frozen=True)
class Tile:
    """A part of a volume.

    Attributes:
        core: what it is responsible for.
        given: what it gives: the core and a margin, inside the volume.
        region: what is computed for that.
    """

    core: Box
    given: Box
    region: Box

    @property
    def voxels(self) -> int:
        """Number of voxels that are computed."""
        return math.prod(b - a for a, b in zip(*self.region, strict=True))


@dataclass(frozen=True)
class TilePlan:
    """Tiles of a volume.

    Attributes:
        tiles: in order.
        mode: how they meet.
        bytes: of the largest tile, by :func:`bytes_per_voxel`.
        overhead: voxels computed over voxels of the volume.
    """

    tiles: tuple[Tile, ...]
    mode: TileMode
    bytes: int
    overhead: float


def _axis(length: int, parts: int, halo: int, margin: int) -> list[tuple[int, int, int, int, int, int]]:
    """Core, given and region (first, end each) of the parts of an axis."""
    step = math.ceil(length / parts / MULTIPLE) * MULTIPLE
    out = []
    for first in range(0, length, step):
        end = min(first + step, length)
        given = max(0, first - margin), min(length, end + margin)
        out.append((first, end, *given, max(0, given[0] - halo), min(length, given[1] + halo)))
    return out


@dataclass(frozen=True)
class _Way:
    """One way to divide an axis: its parts, the longest region, and all regions together."""

    parts: list[tuple[int, int, int, int, int, int]]
    largest: int
    work: int


def _ways(length: int, halo: int, margin: int, max_core: int | None) -> list[_Way]:
    """The useful ways to divide an axis: more work has to buy smaller parts."""
    out: list[_Way] = []
    for count in range(1, min(MOST_SPLITS, length // MULTIPLE) + 1):
        parts = _axis(length, count, halo, margin)
        if max_core is not None and max(b - a for a, b, *_ in parts) > max(max_core, MULTIPLE):
            continue
        regions = [f - e for *_, e, f in parts]
        if not out or max(regions) < out[-1].largest:
            out.append(_Way(parts, max(regions), sum(regions)))
    if not out:  # more parts than are tried otherwise
        parts = _axis(length, math.ceil(length / max(max_core or 0, MULTIPLE)), halo, margin)
        regions = [f - e for *_, e, f in parts]
        out.append(_Way(parts, max(regions), sum(regions)))
    return out


def plan_tiles(
    shape: tuple[int, int, int],
    config: VolumeNetConfig,
    max_bytes: int,
    mode: TileMode = "exact",
    *,
    max_core: int | None = None,
) -> TilePlan:
    """The tiles that fit a memory with the least computation.

    Args:
        shape: of the volume, multiples of 4.
        config: of the network.
        max_bytes: ceiling for the tensors of one tile.
        mode: how tiles meet.
        max_core: longest side of a core; None: as long as fits.

    Raises:
        InputError: not even the smallest tiles fit.
    """
    halo, margin = (HALO, MARGIN) if mode == "exact" else (BLEND_HALO - BLEND_REACH, BLEND_REACH)
    cost = bytes_per_voxel(config)
    ways = [_ways(n, halo, margin, max_core) for n in shape]
    best: tuple[int, tuple[_Way, ...]] | None = None
    for axes in itertools.product(*ways):
        a, b, c = axes
        if a.largest * b.largest * c.largest * cost > max_bytes:
            continue
        work = a.work * b.work * c.work
        if best is None or work < best[0]:
            best = (work, axes)
    if best is None:
        need = math.prod(min(way.largest for way in axis) for axis in ways) * cost
        raise InputError(
            f"the smallest tiles of this network need {need / 2**20:.0f} MiB, more than the ceiling of "
            f"{max_bytes / 2**20:.0f} MiB",
            remedy="raise the ceiling, take blended tiles or a smaller network",
        )
    tiles = tuple(_tile(parts) for parts in itertools.product(*(way.parts for way in best[1])))
    return TilePlan(tiles, mode, max(t.voxels for t in tiles) * cost, best[0] / math.prod(shape))


def _tile(parts: tuple[tuple[int, int, int, int, int, int], ...]) -> Tile:
    def box(first: int) -> Box:
        low, high = [p[first] for p in parts], [p[first + 1] for p in parts]
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])

    return Tile(box(0), box(2), box(4))


def slices(box: Box, origin: tuple[int, int, int] = (0, 0, 0)) -> tuple[slice, slice, slice]:
    """Of the last three axes of a tensor that begins at ``origin``."""
    first, second, third = (slice(a - o, b - o) for a, b, o in zip(*box, origin, strict=True))
    return first, second, third


def blend_weight(tile: Tile, shape: tuple[int, int, int], device: torch.device | str = "cpu") -> Tensor:
    """Weight of what a tile gives: 1 inside, falling linearly over 16 voxels across inner borders. Weights of all
    tiles at a voxel add up to one wherever cores are 16 voxels or longer; elsewhere the sum is divided out.
    """
    out = torch.ones((), device=device)
    for axis in range(3):
        at = torch.arange(tile.given[0][axis], tile.given[1][axis], device=device) + 0.5
        ramp = torch.ones_like(at)
        if tile.core[0][axis] > 0:
            ramp = torch.minimum(ramp, (at - tile.core[0][axis]) / (2 * BLEND_REACH) + 0.5)
        if tile.core[1][axis] < shape[axis]:
            ramp = torch.minimum(ramp, (tile.core[1][axis] - at) / (2 * BLEND_REACH) + 0.5)
        out = out[..., None] * ramp.clamp(0, 1)
    return out


def boxes(shape: tuple[int, int, int], side: int) -> Iterator[Box]:
    """Parts of at most ``side`` grid points per axis."""
    starts = itertools.product(*(range(0, n, side) for n in shape))
    for a, b, c in starts:
        yield (a, b, c), (min(a + side, shape[0]), min(b + side, shape[1]), min(c + side, shape[2]))
