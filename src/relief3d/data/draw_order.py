"""Orders that are functions of a number: seeded permutations without memory, and weighted turns of sources."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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

    Every round of draws holds each source exactly ``counts`` times, in an order of its own, so that shares are kept at
    every moment and the draws of each source can be counted without looking back. Shares that no short round keeps
    exactly have ``spare`` further places per round. Those go by a Weyl sequence (steps of the golden ratio around a
    circle on which every source has an arc), whose visits to an arc are counted in closed form as well.

    Attributes:
        counts: turns of each source per round.
        seed: of the orders.
        spare: further places per round.
        arcs: of the spare places, ends of the sources' arcs in units of 2**-62; the last is 2**62.
    """

    counts: tuple[int, ...]
    seed: int
    spare: int = 0
    arcs: tuple[int, ...] = ()

    def at(self, draw: int) -> Turn:
        """Turn number ``draw`` = 0, 1, ...; a function of that number alone."""
        done, place = divmod(draw, sum(self.counts) + self.spare)
        before, after = self.after(done), self.after(done + 1)
        order = np.repeat(np.arange(len(self.counts)), [b - a for a, b in zip(before, after)])
        order = np.random.default_rng(derive_seed(self.seed, "round", done)).permutation(order)
        source = int(order[place])
        return Turn(source, before[source] + int((order[:place] == source).sum()))

    def after(self, rounds: int) -> list[int]:
        """Turns of each source in the first rounds."""
        whole = [rounds * count for count in self.counts]
        if not self.spare:
            return whole
        visits = [0, *(_visits(rounds * self.spare, end) for end in self.arcs)]
        return [w + b - a for w, (a, b) in zip(whole, pairwise(visits))]


_CIRCLE = 1 << 62
_STEP = int((5**0.5 - 1) / 2 * _CIRCLE) | 1
_LONGEST = 1000


def weighted_turns(weights: Sequence[float], seed: int) -> Turns:
    """Turns that keep weights exactly: in every round where one of at most 1000 draws can, else in the long run.

    Args:
        weights: positive, of any sum.
        seed: of the orders.

    Raises:
        InputError: no weights, a weight that is not positive, or one too small to get a turn ever.
    """
    values = np.asarray(weights, np.float64)
    if not len(values) or not np.isfinite(values).all() or (values <= 0).any():
        raise InputError("weights of a mixture must be positive numbers", remedy="leave unused sources out")
    share = values / values.max()
    share /= share.sum()
    for length in range(len(values), _LONGEST + 1):
        counts = np.rint(share * length)
        if np.abs(counts - share * length).max() < 1e-9 and counts.min() >= 1:
            return Turns(tuple(int(c) for c in counts), seed)
    counts = np.floor(share * _LONGEST)
    spare = int(_LONGEST - counts.sum())
    left = np.cumsum(share * _LONGEST - counts)
    arcs = [min(_CIRCLE, round(float(end) * _CIRCLE)) for end in left / left[-1]]
    if any(not count and (a >= b or not spare) for count, (a, b) in zip(counts, pairwise([0, *arcs]))):
        raise InputError(
            f"a weight of {values.min():g} beside {values.max():g} is too small ever to get a turn",
            remedy="raise it or leave the source out",
        )
    return Turns(tuple(int(c) for c in counts), seed, spare, (*arcs[:-1], _CIRCLE))


def _visits(steps: int, end: int) -> int:
    """How many of the numbers k * _STEP modulo _CIRCLE, k = 0 ... steps - 1, lie below ``end``."""
    # [x mod m < c] is floor(x / m) - floor((x - c) / m).
    return _floor_sum(steps, _CIRCLE, _STEP, 0) - _floor_sum(steps, _CIRCLE, _STEP, _CIRCLE - end) + steps


def _floor_sum(n: int, m: int, a: int, b: int) -> int:
    """Sum of floor((a k + b) / m) over k = 0 ... n - 1, for numbers that are not negative.

    Lattice points under a line, counted by swapping the axes as in Euclid's algorithm (Graham, Knuth & Patashnik,
    "Concrete Mathematics", 3.5).
    """
    total = 0
    while n:
        total += n * (n - 1) // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        highest = a * n + b
        n, b = divmod(highest, m)
        m, a = a, m
    return total
