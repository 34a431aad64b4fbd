"""Orders and mixtures are functions of a number and show every sample equally often."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from relief3d.core.contract import Batch
from relief3d.core.errors import InputError
from relief3d.data.draw_order import Turns, permuted, turn_counts
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
    assert turn_counts([1, 1]) == (1, 1)
    assert turn_counts([0.5, 0.3, 0.2]) == (5, 3, 2)
    assert sum(turn_counts([1.0, 2**0.5, 3.3])) == 1000
    for bad in ([], [1, 0], [1, -1], [1, float("nan")], [1, 1e-6]):
        with pytest.raises(InputError):
            turn_counts(bad)


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
        assert all(o.source == draw.source and o.index != draw.index for o in others)
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
