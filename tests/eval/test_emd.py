"""Earth mover's distance against POT and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.eval.metrics.emd import earth_movers, exact_emd, sinkhorn_emd

ot = pytest.importorskip("ot")


def clouds(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(n, 3, generator=generator, dtype=torch.float64) * 2 - 1
    b = torch.rand(n, 3, generator=generator, dtype=torch.float64) * 1.5 - 0.5
    return a, b


def pot(a: torch.Tensor, b: torch.Tensor) -> float:
    cost = ot.dist(a.numpy(), b.numpy(), metric="euclidean")
    uniform = np.full(len(a), 1 / len(a))
    return float(ot.emd2(uniform, uniform, cost))


@pytest.mark.parametrize("n", [1, 7, 200])
def test_exact_distance_equals_pot(n: int) -> None:
    a, b = clouds(n)
    assert exact_emd(a, b) == pytest.approx(pot(a, b), abs=1e-6)


def test_exact_distance_is_the_minimum_over_all_bijections() -> None:
    a, b = clouds(6, seed=3)
    cost = np.linalg.norm(a.numpy()[:, None] - b.numpy()[None], axis=2)
    best = min(np.mean([cost[i, j] for i, j in enumerate(p)]) for p in itertools.permutations(range(6)))
    assert exact_emd(a, b) == pytest.approx(best, abs=1e-12)


def test_sinkhorn_is_close_to_the_exact_distance_and_flagged() -> None:
    a, b = clouds(100, seed=1)
    value, error = sinkhorn_emd(a, b)
    assert value == pytest.approx(pot(a, b), rel=5e-3)
    assert error < 1e-3
    result = earth_movers(a, b, method="sinkhorn")
    assert result.method == "sinkhorn" and result.value == pytest.approx(value)
    assert earth_movers(a, b).method == "exact"


def test_a_shift_costs_its_length_and_order_does_not_matter() -> None:
    a, _ = clouds(50)
    moved = (a + torch.tensor([0.3, 0.0, 0.4], dtype=torch.float64))[
        torch.randperm(50, generator=torch.Generator().manual_seed(1))
    ]
    assert earth_movers(a, moved).value == pytest.approx(0.5, abs=1e-12)


def test_subsets_are_averaged_and_equal_sets_have_distance_zero() -> None:
    a, b = clouds(60)
    assert earth_movers(a, a.clone(), points=20).value == 0.0
    result = earth_movers(a, b, points=20, subsets=3, seed=5)
    generator = torch.Generator().manual_seed(5)
    picks = [torch.randperm(60, generator=generator)[:20] for _ in range(3)]
    assert result.value == pytest.approx(np.mean([pot(a[p], b[p]) for p in picks]), abs=1e-6)
    assert (result.points, result.subsets) == (20, 3)
    assert earth_movers(a[:20], b, points=64).points == 20


def test_bad_sets_are_refused() -> None:
    a, b = clouds(5)
    with pytest.raises(InputError, match="one size"):
        exact_emd(a, b[:4])
    with pytest.raises(InputError, match="no points"):
        earth_movers(a[:0], b)
    with pytest.raises(InputError, match="at least one point"):
        earth_movers(a, b, points=0)
    with pytest.raises(InputError, match="positive"):
        sinkhorn_emd(a, b, epsilon=0.0)
