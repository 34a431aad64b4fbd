"""Orders and mixtures are functions of a number and show every sample equally often."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch

from relief3d.core.contract import Batch
from relief3d.core.errors import InputError
from relief3d.data import draw_order
from relief3d.data.draw_order import Turns, permuted, weighted_turns
from relief3d.data.mixtures import Mixture
from relief3d.data.sources import ENDLESS
from relief3d.data.view_groups import ViewRequest


class Numbers:
    """Samples that hold nothing but their number."""

    def __init__(self, name: str, length: int) -> None:
        self.name, self.length = name, length

    def __len__(self) -> int:
        return self.length

    def key(self, index: int) -> str:
        return f"{index:05d}"

    def sample(self, index: int, request: ViewRequest, seed: int) -> Batch:
        images = torch.full((1, request.views, 3, *request.size), float(index))
        return Batch(images=images, names=(tuple(str(i) for i in range(request.views)),))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16, 17, 1000, 1025])
def test_a_permutation_hits_everything_once(length: int) -> None:
    assert sorted(permuted(i, length, 7) for i in range(length)) == list(range(length))


def test_permutations_depend_on_the_seed_and_look_random() -> None:
    n = 4096
    order = np.array([permuted(i, n, 1) for i in range(n)])
    other = np.array([permuted(i, n, 2) for i in range(n)])
    assert (order == other).mean() < 0.01
    # A random permutation has correlation of about 1 / sqrt(n) with its place, and its steps are as long as those
    # of independent draws (n / 3).
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.06
    assert abs(np.abs(np.diff(order)).mean() / (n / 3) - 1) < 0.05


def test_a_permutation_of_a_huge_range_needs_no_memory() -> None:
    seen = {permuted(i, ENDLESS, 3) for i in range(200)}
    assert len(seen) == 200 and max(seen) > ENDLESS // 2 > min(seen)
    with pytest.raises(InputError):
        permuted(5, 5, 0)


def test_rounds_keep_weights_exactly() -> None:
    assert weighted_turns([1, 1], 0) == Turns((1, 1), 0)
    assert weighted_turns([0.5, 0.3, 0.2], 7) == Turns((5, 3, 2), 7)
    assert weighted_turns([0.999, 0.001], 0) == Turns((999, 1), 0)
    for bad in ([], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")], [1e300, 1]):
        with pytest.raises(InputError):
            weighted_turns(bad, 0)


@pytest.mark.parametrize(
    "weights", [[1, 0.0015], [1.0, 2**0.5, 3.3], [1, 1e-5], [1, 1e-7, 0.3, 1e-6], [1e308, 1e308, 3.14159e307]]
)
def test_weights_that_no_round_keeps_are_kept_in_the_long_run(weights: list[float]) -> None:
    turns = weighted_turns(weights, 5)
    exact = [Fraction(w) / sum(map(Fraction, weights)) for w in weights]
    for rounds in (1, 7, 10**4, 10**8):
        # The turn after so many rounds knows how often its source was drawn before; together they are all draws.
        draw = rounds * 1000
        after: dict[int, int] = {}
        while len(after) < sum(w > 1e-2 for w in weights):
            turn = turns.at(draw)
            after.setdefault(turn.source, turn.nth)
            draw += 1
        for source, nth in after.items():
            assert abs(nth - exact[source] * rounds * 1000) < 4, (rounds, source)
    rare = min(range(len(weights)), key=lambda s: weights[s])
    assert abs(turns.after(10**8)[rare] - exact[rare] * 10**11) < 4
    assert sum(turns.after(10**8)) == 10**11


def test_turns_with_spare_places_count_their_own_draws() -> None:
    turns = weighted_turns([1.0, 2**0.5, 0.0013], 2)
    assert turns.spare > 0
    seen = [0, 0, 0]
    for draw in range(4000):
        turn = turns.at(draw)
        assert turn.nth == seen[turn.source]
        seen[turn.source] += 1
    assert seen[2] in (1, 2, 3)  # 2.15


def test_lattice_points_are_counted_as_by_hand() -> None:
    rng = np.random.default_rng(0)
    for n, m, a, b in rng.integers([0, 1, 0, 0], [60, 40, 100, 100], (300, 4)).tolist():
        assert draw_order._floor_sum(n, m, a, b) == sum((a * k + b) // m for k in range(n))


def test_turns_count_their_own_draws() -> None:
    turns = Turns((5, 3, 2), seed=4)
    seen: Counter[int] = Counter()
    for draw in range(200):
        turn = turns.at(draw)
        assert turn.nth == seen[turn.source]
        seen[turn.source] += 1
    assert seen == {0: 100, 1: 60, 2: 40}
    assert [turns.at(i).source for i in range(10)] != [turns.at(i).source for i in range(10, 20)]


def test_every_sample_comes_once_before_any_comes_again() -> None:
    mixture = Mixture([Numbers("a", 7), Numbers("b", 13)], [2, 1], seed=5)
    seen: dict[int, Counter[int]] = {0: Counter(), 1: Counter()}
    for number in range(100):
        draw = mixture.draw(number)
        assert seen[draw.source][draw.index] == draw.epoch
        seen[draw.source][draw.index] += 1
        for source, length in ((0, 7), (1, 13)):
            counts = [seen[source][i] for i in range(length)]
            assert max(counts) - min(counts) <= 1


def test_epochs_differ_in_order_and_in_seeds() -> None:
    mixture = Mixture([Numbers("a", 50)], seed=5)
    first, second = ([mixture.draw(e * 50 + i) for i in range(50)] for e in (0, 1))
    assert [d.index for d in first] != [d.index for d in second]
    assert not {d.seed for d in first} & {d.seed for d in second}


def test_endless_sources_are_read_in_order() -> None:
    mixture = Mixture([Numbers("a", ENDLESS)])
    assert [mixture.draw(i).index for i in range(5)] == [0, 1, 2, 3, 4]


def test_a_replacement_is_another_sample_of_the_same_source() -> None:
    mixture = Mixture([Numbers("a", 6), Numbers("b", 6)], seed=1)
    for number in range(40):
        draw = mixture.draw(number)
        others = [mixture.instead(draw, attempt) for attempt in range(5)]
        # Five other samples are there and five attempts find them all: one good sample in a source is enough.
        assert {o.index for o in others} == set(range(6)) - {draw.index}
        assert all(o.source == draw.source for o in others) and len({o.seed for o in others}) == 5
        assert mixture.instead(draw, 5).index == others[0].index
        assert others[0] == mixture.instead(draw, 0)


def test_mixtures_refuse_what_makes_no_sense() -> None:
    for sources, weights in (
        ([], None),
        ([Numbers("a", 1), Numbers("a", 2)], None),
        ([Numbers("a", 0)], None),
    ):
        with pytest.raises(InputError):
            Mixture(sources, weights)
    with pytest.raises(InputError, match="2 weights do not fit 1 sources"):
        Mixture([Numbers("a", 3)], [1, 2])
