"""Similarity pose graphs: node poses that agree best with measured relative poses (Strasdat et al. 2010).

Nodes are similarities ``world_from_node`` (4, 4), scale times rotation and translation; an edge (i, j) measures
``node_i_from_node_j``. Solved by Levenberg-Marquardt on the tangent spaces with a Huber weight per edge, so
that a few wrong loop closures cannot bend the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.transforms import invert_similarity, sim3_exp, sim3_log

MAX_NODES = 2000


@dataclass(frozen=True)
class PoseGraphResult:
    """What :func:`solve_pose_graph` returns.

    Attributes:
        poses: (N, 4, 4) float64, the first as given.
        residuals: (E,) length of the remaining error of every edge, after whitening.
        weights: (E,) Huber weights in (0, 1], 0 for edges left out; small ones mark edges that do not fit.
        iterations: accepted and rejected steps together.
        cost: final robust cost.
    """

    poses: Tensor
    residuals: Tensor
    weights: Tensor
    iterations: int
    cost: float


def solve_pose_graph(
    poses: Tensor,
    edges: Tensor,
    measured: Tensor,
    *,
    information: Tensor | None = None,
    huber: float = 1.0,
    iterations: int = 30,
    tolerance: float = 1e-9,
    drop_below: float = 0.0,
) -> PoseGraphResult:
    """Refine similarity poses.

    Args:
        poses: (N, 4, 4) first guess of ``world_from_node``; the first node is held.
        edges: (E, 2) int64 indices (i, j).
        measured: (E, 4, 4) ``node_i_from_node_j``.
        information: (E, 7) square roots of the inverse variances of (translation, rotation, log scale); ones when None.
        huber: whitened residual length from which an edge counts linearly.
        iterations: most steps.
        tolerance: stops when the cost falls by less than this share.
        drop_below: edges whose weight ends below this are left out (weight 0) and the rest is solved again, as long as
            every node stays connected: Huber's kernel alone never quite lets go of a wrong loop.

    Raises:
        InputError: shapes do not fit, indices out of range, nodes that no edge reaches, or too many nodes.
    """
    nodes, count = len(poses), len(edges)
    if poses.shape != (nodes, 4, 4) or edges.shape != (count, 2) or measured.shape != (count, 4, 4):
        raise InputError("a pose graph needs poses (N, 4, 4), edges (E, 2) and measurements (E, 4, 4)")
    if nodes > MAX_NODES:
        raise InputError(f"{nodes} nodes are more than the dense solver takes ({MAX_NODES})")
    if count == 0 or nodes < 2:
        return PoseGraphResult(
            poses.double(), poses.new_zeros(0).double(), poses.new_zeros(0).double(), 0, 0.0
        )
    if int(edges.min()) < 0 or int(edges.max()) >= nodes:
        raise InputError("an edge names a node that does not exist")
    if not _connected(nodes, edges):
        raise InputError("some nodes are not connected to the first one")
    poses, measured = poses.double(), measured.double()
    scale = torch.ones(count, 7, dtype=torch.float64) if information is None else information.double()
    inverse = invert_similarity(measured)
    damping = 1e-6
    residual = _residuals(poses, edges, inverse) * scale
    cost = _huber_cost(residual, huber)
    taken = 0
    while taken < iterations:
        taken += 1
        step = _step(poses, edges, inverse, scale, residual, huber, damping)
        trial = poses.clone()
        trial[1:] = poses[1:] @ sim3_exp(step)
        new_residual = _residuals(trial, edges, inverse) * scale
        new_cost = _huber_cost(new_residual, huber)
        if new_cost < cost:
            gain = (cost - new_cost) / max(cost, 1e-300)
            poses, residual, cost = trial, new_residual, new_cost
            damping = max(damping / 5, 1e-12)
            if gain < tolerance:
                break
        else:
            damping *= 10
            if damping > 1e8:
                break
    length = residual.norm(dim=-1)
    weights = _huber_weight(length, huber)
    kept = weights >= drop_below
    if bool(kept.all()) or not _connected(nodes, edges[kept]):
        return PoseGraphResult(poses, length, weights, taken, cost)
    again = solve_pose_graph(
        poses,
        edges[kept],
        measured[kept],
        information=scale[kept],
        huber=huber,
        iterations=iterations,
        tolerance=tolerance,
    )
    length, weights = (
        (_residuals(again.poses, edges, inverse) * scale).norm(dim=-1),
        torch.zeros_like(weights),
    )
    weights[kept] = again.weights
    return PoseGraphResult(again.poses, length, weights, taken + again.iterations, again.cost)


def chain_poses(relative: Tensor) -> Tensor:
    """(N + 1, 4, 4) ``world_from_node`` of a chain of N ``node_i_from_node_(i+1)``, the first node at the origin."""
    out = [torch.eye(4, dtype=torch.float64)]
    for step in relative.double():
        out.append(out[-1] @ step)
    return torch.stack(out)


def _residuals(poses: Tensor, edges: Tensor, inverse: Tensor) -> Tensor:
    """(E, 7) log of measured^-1 @ pose_i^-1 @ pose_j."""
    i, j = edges.unbind(-1)
    return sim3_log(inverse @ invert_similarity(poses[i]) @ poses[j])


def _huber_weight(length: Tensor, huber: float) -> Tensor:
    return torch.where(length <= huber, torch.ones_like(length), huber / length.clamp_min(1e-300))


def _huber_cost(residual: Tensor, huber: float) -> float:
    length = residual.norm(dim=-1)
    return float(torch.where(length <= huber, 0.5 * length**2, huber * (length - 0.5 * huber)).sum())


def _step(
    poses: Tensor,
    edges: Tensor,
    inverse: Tensor,
    scale: Tensor,
    residual: Tensor,
    huber: float,
    damping: float,
) -> Tensor:
    """(N - 1, 7) change of all nodes but the first."""
    i, j = edges.unbind(-1)
    own, other = poses[i], poses[j]

    def error(xi: Tensor, xj: Tensor, inv: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return sim3_log(inv @ invert_similarity(a @ sim3_exp(xi)) @ (b @ sim3_exp(xj)))

    zero = torch.zeros(len(edges), 7, dtype=torch.float64)
    derivative = torch.func.vmap(torch.func.jacrev(error, argnums=(0, 1)))
    Ji, Jj = derivative(zero, zero, inverse, own, other)
    weight = _huber_weight(residual.norm(dim=-1), huber).sqrt()[:, None]
    r = residual * weight
    Ji, Jj = ((J * scale[:, :, None]) * weight[:, :, None] for J in (Ji, Jj))
    nodes = len(poses)
    H = torch.zeros(nodes, nodes, 7, 7, dtype=torch.float64)
    g = torch.zeros(nodes, 7, dtype=torch.float64)
    for a, A in ((i, Ji), (j, Jj)):
        g.index_add_(0, a, (A.mT @ r[..., None])[..., 0])
        for b, B in ((i, Ji), (j, Jj)):
            H.index_put_((a, b), A.mT @ B, accumulate=True)
    free = (nodes - 1) * 7
    dense = H[1:, 1:].permute(0, 2, 1, 3).reshape(free, free)
    dense.diagonal().mul_(1 + damping).add_(1e-12)
    return -torch.linalg.solve(dense, g[1:].reshape(free)).reshape(nodes - 1, 7)


def _connected(nodes: int, edges: Tensor) -> bool:
    reached = torch.zeros(nodes, dtype=torch.bool)
    reached[0] = True
    i, j = edges.unbind(-1)
    before = 0
    while int(reached.sum()) > before:
        before = int(reached.sum())
        touching = reached[i] | reached[j]
        reached[i[touching]] = True
        reached[j[touching]] = True
    return bool(reached.all())
