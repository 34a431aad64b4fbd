"""Pose graphs: exact measurements are met, noise is spread over loops, wrong loops do not bend the rest."""

from __future__ import annotations

import math

import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.geometry.pose_graph import chain_poses, solve_pose_graph
from relief3d.geometry.transforms import invert_similarity, sim3_exp


def circle(count: int) -> torch.Tensor:
    """Similarities on a circle of radius 10 with slowly changing scale."""
    out = []
    for k in range(count):
        a = 2 * math.pi * k / count
        T = torch.eye(4, dtype=torch.float64)
        c, s = math.cos(a), math.sin(a)
        T[:3, :3] = (1 + 0.2 * math.sin(a)) * torch.tensor(
            [[c, -s, 0], [s, c, 0], [0, 0, 1.0]], dtype=torch.float64
        )
        T[:3, 3] = torch.tensor([10 * c, 10 * s, 0.5 * s])
        out.append(T)
    first = invert_similarity(out[0])
    return torch.stack([first @ T for T in out])


def measure(truth: torch.Tensor, edges: torch.Tensor, noise: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    exact = invert_similarity(truth[edges[:, 0]]) @ truth[edges[:, 1]]
    return exact @ sim3_exp(noise * torch.randn(len(edges), 7, generator=generator, dtype=torch.float64))


def path_error(poses: torch.Tensor, truth: torch.Tensor) -> float:
    return float((poses[:, :3, 3] - truth[:, :3, 3]).norm(dim=-1).mean())


def loop_edges(count: int) -> torch.Tensor:
    chain = [(k, k + 1) for k in range(count - 1)]
    return torch.tensor([*chain, (0, count - 1), (2, count - 3), (count // 2, 1)])


def test_exact_measurements_are_met_from_a_bad_start() -> None:
    truth, edges = circle(12), loop_edges(12)
    generator = torch.Generator().manual_seed(1)
    start = truth @ sim3_exp(0.2 * torch.randn(12, 7, generator=generator, dtype=torch.float64))
    start[0] = truth[0]
    out = solve_pose_graph(start, edges, measure(truth, edges, 0.0), iterations=60)
    assert torch.allclose(out.poses, truth, atol=1e-6)
    assert out.cost < 1e-12 and (out.weights == 1).all()


def test_loops_take_most_of_the_drift_away() -> None:
    ratios = []
    for seed in range(5):
        truth, edges = circle(40), loop_edges(40)
        measured = measure(truth, edges, 0.02, seed)
        chained = chain_poses(measured[:39])
        before = path_error(chained, truth)
        out = solve_pose_graph(chained, edges, measured, huber=10.0)
        ratios.append(path_error(out.poses, truth) / before)
    assert sum(ratios) / len(ratios) < 0.5 and max(ratios) < 0.9


def test_a_chain_without_loops_is_left_alone() -> None:
    truth = circle(10)
    edges = torch.tensor([(k, k + 1) for k in range(9)])
    measured = measure(truth, edges, 0.05)
    chained = chain_poses(measured)
    out = solve_pose_graph(chained, edges, measured)
    assert torch.allclose(out.poses, chained, atol=1e-8)


def test_a_wrong_loop_is_down_weighted() -> None:
    truth, good = circle(20), loop_edges(20)
    edges = torch.cat([good, torch.tensor([[3, 12]])])
    measured = measure(truth, edges, 0.002)
    measured[-1] = measured[-1] @ sim3_exp(torch.tensor([4.0, -3, 2, 0.5, 0.5, 0, 0.3], dtype=torch.float64))
    start = chain_poses(measured[:19])
    huber = solve_pose_graph(start, edges, measured, huber=0.02)
    naive = solve_pose_graph(start, edges, measured, huber=1e9)
    clean = solve_pose_graph(start, good, measured[:-1], huber=0.02)
    robust = solve_pose_graph(start, edges, measured, huber=0.02, drop_below=0.05)
    assert float(huber.weights[-1]) < min(0.05, 0.5 * float(huber.weights[:-1].min()))
    assert path_error(huber.poses, truth) < 0.3 * path_error(naive.poses, truth)
    assert robust.weights[-1] == 0 and torch.allclose(robust.poses, clean.poses, atol=1e-4)


def test_information_decides_between_contradicting_edges() -> None:
    poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    edges = torch.tensor([[0, 1], [0, 1]])
    one, two = torch.zeros(2, 7, dtype=torch.float64)
    one[0], two[0] = 1.0, 2.0
    measured = sim3_exp(torch.stack([one, two]))
    strong = torch.tensor([[1.0] * 7, [3.0] * 7])
    out = solve_pose_graph(poses, edges, measured, information=strong, huber=100)
    assert float(out.poses[1, 0, 3]) == pytest.approx((1 + 9 * 2) / 10, abs=1e-3)


def test_gauge_of_the_world_does_not_matter() -> None:
    truth, edges = circle(8), loop_edges(8)
    measured = measure(truth, edges, 0.02)
    moved = sim3_exp(torch.tensor([1.0, 2, 3, 0.4, 0.1, -0.3, 0.7], dtype=torch.float64))
    one = solve_pose_graph(truth, edges, measured).poses
    two = solve_pose_graph(moved @ truth, edges, measured).poses
    assert torch.allclose(moved @ one, two, atol=1e-6)


def test_refusals() -> None:
    truth, edges = circle(6), loop_edges(6)
    measured = measure(truth, edges, 0.0)
    with pytest.raises(InputError, match="needs poses"):
        solve_pose_graph(truth, edges, measured[:2])
    with pytest.raises(InputError, match="does not exist"):
        solve_pose_graph(truth[:3], edges, measured)
    with pytest.raises(InputError, match="not connected"):
        solve_pose_graph(truth, torch.tensor([(k, k + 1) for k in range(4)]), measured[:4])
    assert solve_pose_graph(truth[:1], edges[:0], measured[:0]).iterations == 0
