"""Chunks that agree best with their joints and with those loops that do not contradict the rest.

Joints between neighbours are trusted, loops are not: two places may look alike. Loops therefore get the truncated
squared cost, solved by graduated non-convexity (Yang et al. 2020, "Graduated Non-Convexity for Robust Spatial
Perception"); Huber's kernel alone shares the blame of a wrong loop among the joints and never quite lets go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from relief3d.geometry.pose_graph import PoseGraphResult, solve_pose_graph
from relief3d.geometry.transforms import split_similarity
from relief3d.models.multiview.long_alignment import OverlapFit

GROWTH = 1.6
ROUNDS = 40
LEAST_DEVIATION = 1e-3
"""Share of the scene's size; nobody measures a joint better than this."""


def close_graph(
    similarity: Tensor,
    joints: Sequence[OverlapFit],
    loops: Sequence[tuple[tuple[int, int], OverlapFit]],
    *,
    tolerance: float,
) -> PoseGraphResult:
    """Similarities of chunks with loops.

    Args:
        similarity: (C, 4, 4) of the chain of chunks.
        joints: C - 1 fits of neighbours.
        loops: chunks (i, j) and the fit ``i_from_j``.
        tolerance: a loop is left out when it contradicts the rest by more, in deviations of a typical joint.

    Returns:
        Poses, and per edge (joints, then loops) residuals in such deviations and weights, 0 for loops left out.
    """
    edges = torch.tensor([(i, i + 1) for i in range(len(joints))] + [edge for edge, _ in loops])
    fits = [*joints, *(fit for _, fit in loops)]
    measured = torch.stack([f.a_from_b for f in fits])
    information = _information(joints, fits)
    weights = torch.ones(len(fits), dtype=torch.float64)
    limit, mu, poses = tolerance**2, 0.0, similarity
    total = 0
    for _ in range(ROUNDS):
        # A weight of exactly 0 is fine: the chain of joints keeps every chunk connected.
        result = solve_pose_graph(
            poses,
            edges,
            measured,
            information=information * weights.sqrt()[:, None],
            huber=math.inf,
            iterations=8,
            tolerance=1e-6,
        )
        poses, total = result.poses, total + result.iterations
        plain = solve_pose_graph(
            poses, edges, measured, information=information, huber=math.inf, iterations=0
        )
        squared = plain.residuals.square()
        worst = float(squared[len(joints) :].max())
        if mu == 0.0:
            if worst <= limit:
                break
            mu = limit / (2 * worst - limit)
        new = weights.clone()
        new[len(joints) :] = _truncated(squared[len(joints) :], limit, mu)
        settled = bool(((new == 0) | (new == 1)).all()) and torch.equal(new, weights)
        weights, mu = new, mu * GROWTH
        if settled:
            break
    weights = torch.where(weights > 0.5, 1.0, 0.0).double()
    final = solve_pose_graph(
        poses, edges, measured, information=information * weights[:, None], huber=math.inf
    )
    plain = solve_pose_graph(
        final.poses, edges, measured, information=information, huber=math.inf, iterations=0
    )
    return PoseGraphResult(final.poses, plain.residuals, weights, total + final.iterations, final.cost)


def _information(joints: Sequence[OverlapFit], fits: Sequence[OverlapFit]) -> Tensor:
    """(E, 7) roots of the information; translations count in the unit of the chunk that an edge leads to."""
    typical = sorted(j.deviation for j in joints)[len(joints) // 2]
    out = torch.full((len(fits), 7), 1 / max(LEAST_DEVIATION, typical), dtype=torch.float64)
    for row, fit in zip(out, fits):
        row[:3] /= max(fit.size / float(split_similarity(fit.a_from_b)[0]), 1e-12)
    return out


def _truncated(squared: Tensor, limit: float, mu: float) -> Tensor:
    """Weights of the truncated squared cost at one stage: 1 well inside the limit, 0 well outside."""
    between = (limit * mu * (mu + 1) / squared.clamp_min(1e-300)).sqrt() - mu
    inside, outside = squared <= limit * mu / (mu + 1), squared >= limit * (mu + 1) / mu
    return torch.where(inside, 1.0, torch.where(outside, 0.0, between)).double()
