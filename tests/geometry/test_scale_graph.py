"""T4 of the specification: the scale graph against known scales."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.geometry.scale_graph import (
    DENSE_BELOW,
    ScaleGraph,
    ScaleGraphOptions,
    edge_reliability,
    prior_reliability,
    solve_scale_graph,
)

F64 = torch.float64


def chain(
    count: int,
    seed: int = 0,
    *,
    prior_noise: float = 0.0,
    edge_noise: float = 0.0,
    wrong: tuple[int, ...] = (),
    by: float = 0.5,
    bad_edge: int | None = None,
    loops: int = 0,
    prior_weight: float = 0.5,
) -> tuple[torch.Tensor, ScaleGraph]:
    """True log scales and measurements of a chain of submaps, some priors and one edge wrong."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 0.4, count)
    priors = x + rng.normal(0, 1, count) * prior_noise
    for n, k in enumerate(wrong):
        priors[k] += by if n % 2 == 0 else -by
    edges = np.stack([np.arange(count - 1), np.arange(1, count)], 1).reshape(-1, 2)
    if loops:
        extra = rng.choice(count, (4 * loops, 2))
        edges = np.concatenate([edges, extra[extra[:, 0] < extra[:, 1]][:loops]])
    # D_i = surface / s_i, so ln(D_i / D_j) = x_j - x_i.
    rho = x[edges[:, 1]] - x[edges[:, 0]] + rng.normal(0, 1, len(edges)) * edge_noise
    if bad_edge is not None:
        rho[bad_edge] += 0.4
    graph = ScaleGraph(
        torch.from_numpy(priors),
        torch.full((count,), prior_weight, dtype=F64),
        torch.from_numpy(edges),
        torch.from_numpy(rho),
        torch.ones(len(edges), dtype=F64),
    )
    return torch.from_numpy(x), graph


def error(graph: ScaleGraph, x: torch.Tensor, options: ScaleGraphOptions) -> float:
    return float((solve_scale_graph(graph, options).log_scale - x).abs().mean())


@pytest.mark.parametrize("robust", ["none", "huber", "cauchy"])
@pytest.mark.parametrize("loops", [0, 5])
def test_exact_measurements_give_exact_scales(robust: str, loops: int) -> None:
    x, graph = chain(24, loops=loops)
    for solver in ("closed_form", "lm"):
        result = solve_scale_graph(graph, ScaleGraphOptions(solver=solver, robust=robust))  # type: ignore[arg-type]
        assert (result.log_scale - x).abs().max() < 1e-6
        assert result.edge_residuals.abs().max() < 1e-6
        assert not result.unscaled.any()
        assert result.component.tolist() == [0] * 24


def test_edges_alone_carry_scale_with_the_right_sign() -> None:
    """Two submaps, D_0 twice D_1: s_0 must be half of s_1."""
    graph = ScaleGraph(
        torch.tensor([0.0, math.nan], dtype=F64),
        torch.tensor([1.0, 0.0], dtype=F64),
        torch.tensor([[0, 1]]),
        torch.tensor([math.log(2.0)], dtype=F64),
        torch.tensor([1.0], dtype=F64),
    )
    result = solve_scale_graph(graph)
    assert result.log_scale.exp().tolist() == pytest.approx([1.0, 2.0])
    assert math.isnan(float(result.prior_residuals[1]))
    literal = solve_scale_graph(graph, ScaleGraphOptions(sign="literal", robust="none"))
    assert literal.log_scale.exp().tolist() == pytest.approx([1.0, 0.5])


def test_the_papers_printed_sign_fails() -> None:
    x, graph = chain(24, prior_noise=0.08, edge_noise=0.01, wrong=(5, 17))
    plain = ScaleGraphOptions(robust="none", prior_weight=0.1)
    priors = float((graph.priors - x).abs().mean())
    assert error(graph, x, plain) < 0.6 * priors
    assert error(graph, x, ScaleGraphOptions(robust="none", sign="literal")) > 2 * priors


def test_wrong_priors_need_robust_weights() -> None:
    """As in the specification: priors 3 % noisy, two wrong by 0.3 to 0.7; plain 0.04, robust 0.014 or less."""
    found: dict[str, list[float]] = {"none": [], "huber": [], "cauchy": []}
    for seed in range(40):
        rng = np.random.default_rng(1000 + seed)
        first, second = rng.choice(24, 2, replace=False).tolist()
        x, graph = chain(
            24, seed, prior_noise=0.03, edge_noise=0.01, wrong=(first, second), by=rng.uniform(0.3, 0.7)
        )
        for robust, values in found.items():
            values.append(error(graph, x, ScaleGraphOptions(robust=robust)))  # type: ignore[arg-type]
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    assert mean["none"] > 0.03
    assert mean["huber"] < 0.022
    assert mean["cauchy"] < 0.016


def test_one_wrong_edge_does_not_move_half_the_chain() -> None:
    small, usual = [], []
    for seed in range(20):
        x, graph = chain(24, seed, prior_noise=0.03, edge_noise=0.01, bad_edge=seed % 23)
        usual.append(error(graph, x, ScaleGraphOptions()))
        weak = ScaleGraph(graph.priors, 0.02 * graph.prior_weights, graph.edges, graph.ratios, graph.weights)
        small.append(error(weak, x, ScaleGraphOptions()))
    assert np.mean(usual) < 0.02
    assert np.mean(small) > 3 * np.mean(usual)


@pytest.mark.parametrize("robust", ["none", "huber", "cauchy"])
def test_closed_form_and_lm_agree(robust: str) -> None:
    _, graph = chain(24, 3, prior_noise=0.03, edge_noise=0.01, wrong=(4, 11), loops=3)
    one = solve_scale_graph(graph, ScaleGraphOptions(robust=robust, iterations=200, tolerance=1e-12))  # type: ignore[arg-type]
    two = solve_scale_graph(graph, ScaleGraphOptions(robust=robust, solver="lm"))  # type: ignore[arg-type]
    assert (one.log_scale - two.log_scale).abs().max() < (1e-8 if robust == "none" else 1e-4)
    assert one.cost == pytest.approx(two.cost, rel=1e-6)


def test_a_component_without_prior_is_unscaled_and_fixed_at_its_first_node() -> None:
    x, graph = chain(6)
    weights = graph.prior_weights.clone()
    weights[3:] = 0
    joined = graph.weights.clone()
    joined[2] = 0  # between nodes 2 and 3
    split = ScaleGraph(graph.priors, weights, graph.edges, graph.ratios, joined)
    for solver in ("closed_form", "lm"):
        result = solve_scale_graph(split, ScaleGraphOptions(solver=solver))  # type: ignore[arg-type]
        assert result.component.tolist() == [0, 0, 0, 1, 1, 1]
        assert result.unscaled.tolist() == [False] * 3 + [True] * 3
        assert (result.log_scale[:3] - x[:3]).abs().max() < 1e-6
        assert abs(float(result.log_scale[3])) < 1e-9
        # Relative scales inside the component are still measured.
        assert (result.log_scale[3:] - x[3:] + x[3]).abs().max() < 1e-6
        assert math.isnan(float(result.edge_residuals[2]))


def test_an_isolated_submap_keeps_its_prior() -> None:
    x, graph = chain(5)
    joined = graph.weights.clone()
    joined[3] = 0
    alone = ScaleGraph(graph.priors + 0.1, graph.prior_weights, graph.edges, graph.ratios, joined)
    result = solve_scale_graph(alone)
    assert float(result.log_scale[4]) == pytest.approx(float(x[4]) + 0.1)
    assert result.component.tolist() == [0, 0, 0, 0, 1]


def test_one_submap_without_edges() -> None:
    none = torch.zeros(0, dtype=F64)
    graph = ScaleGraph(
        torch.tensor([0.7], dtype=F64),
        torch.tensor([0.5], dtype=F64),
        torch.zeros(0, 2, dtype=torch.int64),
        none,
        none,
    )
    for solver in ("closed_form", "lm"):
        result = solve_scale_graph(graph, ScaleGraphOptions(solver=solver))  # type: ignore[arg-type]
        assert result.log_scale.tolist() == pytest.approx([0.7])


def test_scaling_everything_shifts_the_solution_only() -> None:
    _, graph = chain(12, 2, prior_noise=0.05, edge_noise=0.02, wrong=(3,))
    shift = math.log(37.0)
    moved = ScaleGraph(graph.priors + shift, graph.prior_weights, graph.edges, graph.ratios, graph.weights)
    one, two = solve_scale_graph(graph), solve_scale_graph(moved)
    assert (two.log_scale - one.log_scale - shift).abs().max() < 1e-9


def test_sparse_and_dense_agree_and_five_hundred_nodes_are_fast() -> None:
    count = 500
    assert count > DENSE_BELOW
    x, graph = chain(count, 1, prior_noise=0.03, edge_noise=0.01, wrong=(50, 300), loops=50)
    began = time.process_time()
    result = solve_scale_graph(graph)
    assert time.process_time() - began < 1.0
    assert (result.log_scale - x).abs().mean() < 0.02
    plain = solve_scale_graph(graph, ScaleGraphOptions(robust="none")).log_scale.numpy()
    A = np.zeros((len(graph.edges), count))
    A[np.arange(len(A)), graph.edges[:, 0]], A[np.arange(len(A)), graph.edges[:, 1]] = 1, -1
    dense = np.linalg.solve(
        A.T @ A + 0.5 * np.eye(count), 0.5 * graph.priors.numpy() - A.T @ graph.ratios.numpy()
    )
    assert np.abs(plain - dense).max() < 1e-9


def test_loops_bound_the_drift_of_long_chains() -> None:
    """A prior at the first node only: errors of edges add up along the chain, unless a loop closes it."""
    drift, closed = [], []
    for seed in range(10):
        x, graph = chain(200, seed, edge_noise=0.01)
        weights = torch.zeros(200, dtype=F64)
        weights[0] = 1.0
        first = ScaleGraph(graph.priors, weights, graph.edges, graph.ratios, graph.weights)
        drift.append(error(first, x, ScaleGraphOptions()))
        extra = torch.tensor([[0, k] for k in range(20, 200, 20)])
        looped = ScaleGraph(
            graph.priors,
            weights,
            torch.cat([graph.edges, extra]),
            torch.cat([graph.ratios, x[extra[:, 1]] - x[extra[:, 0]]]),
            torch.ones(199 + len(extra), dtype=F64),
        )
        closed.append(error(looped, x, ScaleGraphOptions()))
    assert np.mean(closed) < 0.03
    assert np.mean(drift) > 2 * np.mean(closed)


def test_weights_by_hand() -> None:
    weight = prior_reliability(
        torch.tensor([50, 50, 9, 0]), torch.tensor([0.0, 0.10, 0.0, math.nan]), prior_weight=0.5
    )
    assert weight.tolist() == pytest.approx([0.25, 0.125, 0.0, 0.0])
    uniform = prior_reliability(
        torch.tensor([50, 9]), torch.tensor([0.3, 0.0]), prior_weight=0.5, uniform=True
    )
    assert uniform.tolist() == pytest.approx([0.5, 0.0])
    edge = edge_reliability(
        torch.tensor([1.0, 0.5, 0.9]), torch.tensor([0.05, 0.0, 0.0]), torch.tensor([True, True, False])
    )
    assert edge.tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_nonsense_is_refused() -> None:
    _, graph = chain(3)
    with pytest.raises(InputError, match="does not exist"):
        ScaleGraph(graph.priors, graph.prior_weights, graph.edges + 1, graph.ratios, graph.weights)
    with pytest.raises(InputError, match="not finite"):
        ScaleGraph(graph.priors * math.nan, graph.prior_weights, graph.edges, graph.ratios, graph.weights)
    with pytest.raises(InputError, match="not negative"):
        ScaleGraph(graph.priors, -graph.prior_weights, graph.edges, graph.ratios, graph.weights)
    with pytest.raises(InputError, match="itself"):
        ScaleGraph(graph.priors, graph.prior_weights, graph.edges * 0, graph.ratios, graph.weights)
    with pytest.raises(InputError, match="unknown choice"):
        ScaleGraphOptions(sign="other")  # type: ignore[arg-type]
