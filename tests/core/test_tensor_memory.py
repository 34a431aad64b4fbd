"""Counting the bytes of live tensors."""

from __future__ import annotations

import torch

from relief3d.core.tensor_memory import PeakTensorBytes


def test_counts_what_is_alive_and_remembers_the_worst_moment() -> None:
    given = torch.zeros(1000)
    with PeakTensorBytes() as memory:
        a = given + 1
        assert memory.live == 4000
        view = a.view(10, 100)
        del a
        assert memory.live == 4000, "a view keeps its storage alive and costs nothing itself"
        b = view * 2
        del view
        assert (memory.live, memory.peak) == (4000, 8000)
        b.add_(1)
        assert memory.live == 4000, "in place is free"
        given.view(2, 500)
        assert memory.live == 4000, "views of what existed before do not count"
        del b
        assert (memory.live, memory.peak) == (0, 8000)


def test_several_results_of_one_operation_count_each() -> None:
    with PeakTensorBytes() as memory:
        values, index = torch.arange(10.0).sort()
        assert memory.live == 10 * 4 + 10 * 8
        del values, index
    assert memory.live == 0
