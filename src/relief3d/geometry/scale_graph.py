"""Scales of overlapping depth maps from priors and ratios: a linear graph problem in log space.

Nodes are log scales x. A prior says x_m = b_m; an edge (i, j) measured rho = ln median(D_i / D_j). Since s_i D_i and
s_j D_j describe one surface, ln(D_i / D_j) = x_j - x_i, so the residual of an edge is e = x_i - x_j + rho. Minimised is

    sum w_ij e_ij^2 + sum lambda_m (x_m - b_m)^2.

VFM-Recon (arXiv 2603.12657), Eq. 2-5, prints x_i - x_j - rho with the same rho, which pulls scales the wrong way; that
form is kept as ``sign="literal"`` for comparison only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError

Solver = Literal["closed_form", "lm"]
Robust = Literal["none", "huber", "cauchy"]
Sign = Literal["corrected", "literal"]
DENSE_BELOW = 300
"""Nodes below which a dense factorisation is used."""


@dataclass(frozen=True)
class ScaleGraphOptions:
    """How a scale graph is solved.

    Attributes:
        prior_weight: lambda, the weight of a perfect prior beside a perfect edge. The paper gives no value; with robust
            weights 0.5 keeps one wrong edge from moving half a chain.
        solver: ``closed_form`` solves the normal equations (repeatedly, with robust weights); ``lm`` lets scipy
            minimise the same cost from the median of the priors, as the paper does.
        robust: kernel of both terms; ``none`` is the paper's plain least squares.
        delta: residual in log scale where the kernel begins to act.
        iterations: most reweightings.
        tolerance: stops when no scale changes by more.
        sign: ``literal`` is the paper's printed Eq. 5, which is wrong; see the module.
    """

    prior_weight: float = 0.5
    solver: Solver = "closed_form"
    robust: Robust = "cauchy"
    delta: float = 0.05
    iterations: int = 30
    tolerance: float = 1e-6
    sign: Sign = "corrected"

    def __post_init__(self) -> None:
        if self.prior_weight < 0 or self.delta <= 0 or self.iterations < 1:
            raise InputError("a scale graph needs prior_weight >= 0, delta > 0 and at least one iteration")
        for value, known in (
            (self.solver, ("closed_form", "lm")),
            (self.robust, ("none", "huber", "cauchy")),
            (self.sign, ("corrected", "literal")),
        ):
            if value not in known:
                raise InputError(f"unknown choice '{value}'", remedy=f"use one of {', '.join(known)}")


@dataclass(frozen=True)
class ScaleGraph:
    """Measurements about M log scales.

    Attributes:
        priors: (M,) float64 b_m; ignored where the weight is 0 (may be NaN there).
        prior_weights: (M,) float64 lambda_m >= 0.
        edges: (E, 2) int64 pairs (i, j).
        ratios: (E,) float64 rho = ln median(D_i / D_j); ignored where the weight is 0.
        weights: (E,) float64 w >= 0.
    """

    priors: Tensor
    prior_weights: Tensor
    edges: Tensor
    ratios: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        m, e = self.priors.shape[0], self.edges.shape[0]
        shapes = (self.priors.shape, self.prior_weights.shape, self.ratios.shape, self.weights.shape)
        if shapes != ((m,), (m,), (e,), (e,)) or self.edges.shape != (e, 2):
            raise InputError(f"a scale graph of {m} nodes and {e} edges got tensors of shapes {shapes}")
        if m == 0:
            raise InputError("a scale graph needs at least one node")
        if e and (int(self.edges.min()) < 0 or int(self.edges.max()) >= m):
            raise InputError("an edge of the scale graph names a node that does not exist")
        if e and bool((self.edges[:, 0] == self.edges[:, 1]).any()):
            raise InputError("an edge of the scale graph joins a node with itself")
        for name, weight, value in (
            ("prior", self.prior_weights, self.priors),
            ("edge", self.weights, self.ratios),
        ):
            if bool((~torch.isfinite(weight) | (weight < 0)).any()):
                raise InputError(f"{name} weights must be finite and not negative")
            if bool(((weight > 0) & ~torch.isfinite(value)).any()):
                raise InputError(f"a {name} with positive weight has a value that is not finite")


@dataclass(frozen=True)
class ScaleGraphResult:
    """Solved log scales.

    Attributes:
        log_scale: (M,) float64.
        prior_residuals: (M,) x - b, NaN without prior.
        edge_residuals: (E,) x_i - x_j + rho (in the sign that was asked for), NaN for edges of weight 0.
        prior_factors: (M,) robust factor in (0, 1] that the prior's weight ended with; 0 without prior.
        edge_factors: (E,) likewise.
        component: (M,) int64, numbered by the first node.
        unscaled: (M,) bool, nodes of components without any prior; their first node has log scale 0.
        iterations: reweightings, or function evaluations of ``lm``.
        cost: final value of the (robust) cost.
    """

    log_scale: Tensor
    prior_residuals: Tensor
    edge_residuals: Tensor
    prior_factors: Tensor
    edge_factors: Tensor
    component: Tensor
    unscaled: Tensor
    iterations: int
    cost: float


class _Problem:
    """The graph as arrays, with one anchor at 0 per component without prior."""

    def __init__(self, graph: ScaleGraph, options: ScaleGraphOptions) -> None:
        self.options = options
        self.nodes = int(graph.priors.shape[0])
        self.used_edges = (graph.weights > 0).numpy()
        self.used_priors = (graph.prior_weights > 0).numpy()
        edges = graph.edges.numpy()[self.used_edges]
        self.i, self.j = edges[:, 0], edges[:, 1]
        self.w = graph.weights.double().numpy()[self.used_edges]
        sign = 1.0 if options.sign == "corrected" else -1.0
        self.rho = sign * graph.ratios.double().numpy()[self.used_edges]
        self.p = np.flatnonzero(self.used_priors)
        self.b = graph.priors.double().numpy()[self.used_priors]
        self.lam = graph.prior_weights.double().numpy()[self.used_priors]
        self.component = _components(self.nodes, edges)
        self.unscaled = ~np.isin(self.component, self.component[self.p])
        firsts = np.unique(self.component[self.unscaled], return_index=True)[1]
        self.anchors = np.flatnonzero(self.unscaled)[firsts]
        self.anchor_weight = float(self.w.mean()) if self.w.size else 1.0

    def residuals(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of edges and of priors."""
        return x[self.i] - x[self.j] + self.rho, x[self.p] - self.b

    def solve(self, w: np.ndarray, lam: np.ndarray) -> np.ndarray:
        """Minimiser for the given weights."""
        diagonal, right = np.zeros(self.nodes), np.zeros(self.nodes)
        np.add.at(diagonal, self.p, lam)
        np.add.at(right, self.p, lam * self.b)
        np.add.at(diagonal, self.anchors, self.anchor_weight)
        for node, direction in ((self.i, -1.0), (self.j, 1.0)):
            np.add.at(diagonal, node, w)
            np.add.at(right, node, direction * w * self.rho)
        if self.nodes < DENSE_BELOW:
            H = np.diag(diagonal)
            np.add.at(H, (self.i, self.j), -w)
            np.add.at(H, (self.j, self.i), -w)
            return np.asarray(np.linalg.solve(H, right))
        from scipy.sparse import coo_matrix
        from scipy.sparse.linalg import splu

        every = np.arange(self.nodes)
        rows, cols = np.concatenate([every, self.i, self.j]), np.concatenate([every, self.j, self.i])
        sparse = coo_matrix((np.concatenate([diagonal, -w, -w]), (rows, cols)), (self.nodes, self.nodes))
        return np.asarray(splu(sparse.tocsc()).solve(right))

    def factors(self, residual: np.ndarray) -> np.ndarray:
        """Robust factors on the weights, in (0, 1]."""
        scaled = np.abs(residual) / self.options.delta
        if self.options.robust == "none":
            return np.ones_like(residual)
        if self.options.robust == "huber":
            return np.asarray(1.0 / np.maximum(scaled, 1.0))
        return np.asarray(1.0 / (1.0 + scaled**2))

    def kernel(self, squared: np.ndarray) -> np.ndarray:
        """(3, n): the kernel and its first two derivatives at (residual / delta)^2."""
        one, zero = np.ones_like(squared), np.zeros_like(squared)
        if self.options.robust == "none":
            return np.stack([squared, one, zero])
        if self.options.robust == "huber":
            root = np.sqrt(np.maximum(squared, 1.0))
            far = squared > 1
            return np.stack(
                [
                    np.where(far, 2 * root - 1, squared),
                    np.where(far, 1 / root, one),
                    np.where(far, -0.5 / root**3, zero),
                ]
            )
        return np.stack([np.log1p(squared), 1 / (1 + squared), -1 / (1 + squared) ** 2])

    def cost(self, x: np.ndarray) -> float:
        """Robust cost."""
        edge, prior = self.residuals(x)
        square = self.options.delta**2
        return float(
            square
            * (
                (self.w * self.kernel(edge**2 / square)[0]).sum()
                + (self.lam * self.kernel(prior**2 / square)[0]).sum()
            )
        )


def solve_scale_graph(graph: ScaleGraph, options: ScaleGraphOptions | None = None) -> ScaleGraphResult:
    """Log scales that agree best with priors and ratios.

    Robust weights start from the plain solution. A component without any prior gets log scale 0 at its first node.

    Args:
        graph: see :class:`ScaleGraph`; tensors on the CPU.
        options: see :class:`ScaleGraphOptions`.
    """
    options = options or ScaleGraphOptions()
    problem = _Problem(graph, options)
    if options.solver == "lm":
        x, iterations = _levenberg_marquardt(problem)
    else:
        x, iterations = _reweighted(problem)
    edge, prior = problem.residuals(x)
    return ScaleGraphResult(
        log_scale=torch.from_numpy(x),
        prior_residuals=_spread(prior, problem.used_priors, np.nan),
        edge_residuals=_spread(edge, problem.used_edges, np.nan),
        prior_factors=_spread(problem.factors(prior), problem.used_priors, 0.0),
        edge_factors=_spread(problem.factors(edge), problem.used_edges, 0.0),
        component=torch.from_numpy(problem.component),
        unscaled=torch.from_numpy(problem.unscaled),
        iterations=iterations,
        cost=problem.cost(x),
    )


def _spread(values: np.ndarray, used: np.ndarray, empty: float) -> Tensor:
    out = np.full(used.shape, empty)
    out[used] = values
    return torch.from_numpy(out)


def _reweighted(problem: _Problem) -> tuple[np.ndarray, int]:
    x = problem.solve(problem.w, problem.lam)
    if problem.options.robust == "none":
        return x, 1
    solves = 1
    for _ in range(problem.options.iterations):
        edge, prior = problem.residuals(x)
        new = problem.solve(problem.w * problem.factors(edge), problem.lam * problem.factors(prior))
        change = float(np.abs(new - x).max())
        x, solves = new, solves + 1
        if change < problem.options.tolerance:
            break
    return x, solves


def _levenberg_marquardt(problem: _Problem) -> tuple[np.ndarray, int]:
    """The same cost through scipy; robust kernels start from the plain solution, as the reweighting does."""
    from scipy.optimize import least_squares
    from scipy.sparse import coo_matrix

    options, anchors = problem.options, problem.anchors
    E, P, A = len(problem.i), len(problem.p), len(anchors)
    weight = np.concatenate([problem.w, problem.lam, np.full(A, problem.anchor_weight)])
    root = np.sqrt(weight)
    rows = np.concatenate([np.arange(E), np.arange(E), E + np.arange(P + A)])
    cols = np.concatenate([problem.i, problem.j, problem.p, anchors])
    values = np.concatenate([root[:E], -root[:E], root[E:]])
    jacobian = coo_matrix((values, (rows, cols)), (E + P + A, problem.nodes)).toarray()

    def residual(x: np.ndarray) -> np.ndarray:
        edge, prior = problem.residuals(x)
        return np.asarray(root * np.concatenate([edge, prior, x[anchors]]))

    middle = float(np.median(problem.b)) if P else 0.0
    start = np.full(problem.nodes, middle)
    enough = len(weight) >= problem.nodes
    common: dict[str, Any] = {"jac": lambda _: jacobian, "xtol": 1e-12, "ftol": 1e-12, "gtol": 1e-12}
    plain = least_squares(residual, start, method="lm" if enough else "trf", **common)
    if options.robust == "none":
        return np.asarray(plain.x), int(plain.nfev)
    limit = weight * options.delta**2

    def loss(squared: np.ndarray) -> np.ndarray:
        # scipy applies the kernel to weighted residuals; ours acts on the unweighted ones, and not on anchors.
        value, first, second = problem.kernel(squared / limit)
        value, second = value * limit, second / limit
        if A:
            value[E + P :], first[E + P :], second[E + P :] = squared[E + P :], 1.0, 0.0
        return np.stack([value, first, second])

    found = least_squares(residual, plain.x, method="trf", loss=loss, max_nfev=500, **common)
    return np.asarray(found.x), int(plain.nfev + found.nfev)


def _components(nodes: int, edges: np.ndarray) -> np.ndarray:
    """(nodes,) int64 component numbers, in the order of their first nodes."""
    parent = list(range(nodes))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for i, j in edges.tolist():
        a, b = root(i), root(j)
        parent[max(a, b)] = min(a, b)
    roots = np.array([root(n) for n in range(nodes)])
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def prior_reliability(
    count: Tensor,
    spread: Tensor,
    *,
    prior_weight: float,
    half_samples: float = 50.0,
    half_spread: float = 0.10,
    min_samples: int = 10,
    uniform: bool = False,
) -> Tensor:
    """Weights lambda_m of priors: lambda N / (N + half_samples) / (1 + (sigma / half_spread)^2), 0 below the minimum.

    Args:
        count: (M,) samples N behind each prior.
        spread: (M,) robust deviation sigma of the log ratios.
        prior_weight: lambda.
        half_samples: see above.
        half_spread: see above.
        min_samples: fewer give weight 0.
        uniform: lambda for every prior with enough samples, as in the paper.
    """
    n = count.double()
    weight = n / (n + half_samples) / (1 + (spread.double() / half_spread).square())
    weight = torch.ones_like(weight) if uniform else weight.nan_to_num(0.0)
    return torch.where(n >= min_samples, prior_weight * weight, torch.zeros_like(weight))


def edge_reliability(
    share: Tensor,
    spread: Tensor,
    valid: Tensor,
    *,
    half_spread: float = 0.05,
) -> Tensor:
    """Weights of edges: share / (1 + (sigma / half_spread)^2), 0 where invalid.

    Args:
        share: (E,) common valid pixels over the pixels of a full overlap, in [0, 1].
        spread: (E,) robust deviation of the log ratio.
        valid: (E,) bool.
        half_spread: deviation with half the weight.
    """
    weight = share.double().clamp(0, 1) / (1 + (spread.double() / half_spread).square())
    return torch.where(valid, weight.nan_to_num(0.0), torch.zeros_like(weight))
