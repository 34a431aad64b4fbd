"""Orders that are functions of a number: seeded permutations without memory, and weighted turns of sources."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed

_ROUNDS = 6


def permuted(index: int, length: int, seed: int) -> int:
    """Where a seeded permutation of 0 ... length - 1 sends ``index``; constant memory and time for any length.

    A Feistel network (Luby & Rackoff 1988, "How to construct pseudorandom permutations") permutes the next even power
    of two; results beyond the length are sent on until they fall inside (cycle walking, Black & Rogaway 2002).

    Args:
        index: 0 ... length - 1.
        length: up to 2**62.
        seed: of the permutation.

    Raises:
        InputError: index or length out of range.
    """
    if not 0 <= index < length <= 1 << 62:
        raise InputError(f"position {index} is not in an order of {length}")
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    key = seed.to_bytes(16, "little", signed=True)
    value = index
    while True:
        left, right = value >> half, value & mask
        for turn in range(_ROUNDS):
            data = key + bytes([turn, half]) + right.to_bytes(8, "little")
            mixed = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
            left, right = right, left ^ (mixed & mask)
        value = (left << half) | right
        if value < length:
            return value


@dataclass(frozen=True)
class Turn:
    """Whose turn a draw is.

    Attributes:
        source: number of the source.
        nth: how many draws of this source came before.
    """

    source: int
    nth: int


@dataclass(frozen=True)
class Turns:
    """Weighted turns of several sources in shuffled rounds.

    Every round of ``sum(counts)`` draws holds each source exactly ``counts`` times, in an order of its own, so that
    shares are kept at every moment and the draws of each source can be counted without looking back.

    Attributes:
        counts: turns of each source per round.
        seed: of the orders.
    """

    counts: tuple[int, ...]
    seed: int

    def at(self, draw: int) -> Turn:
        """Turn number ``draw`` = 0, 1, ...; a function of that number alone."""
        length = sum(self.counts)
        done, place = divmod(draw, length)
        order = np.repeat(np.arange(len(self.counts)), self.counts)
        order = np.random.default_rng(derive_seed(self.seed, "round", done)).permutation(order)
        source = int(order[place])
        return Turn(source, done * self.counts[source] + int((order[:place] == source).sum()))


def turn_counts(weights: Sequence[float], longest: int = 1000) -> tuple[int, ...]:
    """Turns per round for given weights: the shortest round that keeps them exactly, else one of ``longest`` draws.

    Args:
        weights: positive, of any sum.
        longest: of a round; shares are then kept to half of 1 / longest.

    Raises:
        InputError: no weights, a weight that is not positive, or one too small to get a turn.
    """
    values = np.asarray(weights, np.float64)
    if not len(values) or not np.isfinite(values).all() or (values <= 0).any():
        raise InputError("weights of a mixture must be positive numbers", remedy="leave unused sources out")
    share = values / values.sum()
    for length in range(len(values), longest + 1):
        counts = np.rint(share * length)
        if np.abs(counts - share * length).max() < 1e-9 and counts.min() >= 1:
            return tuple(int(c) for c in counts)
    counts = np.floor(share * longest)
    left = int(longest - counts.sum())
    counts[np.argsort(counts - share * longest, kind="stable")[:left]] += 1
    if counts.min() < 1:
        raise InputError(
            f"a weight of {values.min():g} beside {values.max():g} is too small to get one turn in {longest}",
            remedy="raise it or leave the source out",
        )
    return tuple(int(c) for c in counts)
