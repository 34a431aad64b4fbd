"""Earth mover's distance of point sets: exact by assignment, or by Sinkhorn's iteration, flagged as such.

Specification objects.md 6.1 (SAM 3D appendix): the minimum over bijections of the mean distance, on 2048 points,
averaged over 3 subsets. The exact solver is SciPy's linear assignment; Sinkhorn (entropy 1e-3) is for large sets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.optional import require
from relief3d.core.seeding import torch_generator
from relief3d.eval.metrics.icp import checked_points

EmdMethod = Literal["exact", "sinkhorn"]
POINTS = 2048
SUBSETS = 3
EPSILON = 1e-3
_MAX_SWEEPS = 2000


@dataclass(frozen=True)
class EarthMovers:
    """An earth mover's distance and how it was found.

    Attributes:
        value: mean distance of the pairs, unit of the points.
        method: "exact", or "sinkhorn": the cost of a blurred plan, never below the exact value by more than the
            marginal error.
        points: of each set that were matched.
        subsets: over which the value is averaged.
        marginal_error: largest L1 error of the plan's row sums; 0 for the exact method.
    """

    value: float
    method: EmdMethod
    points: int
    subsets: int
    marginal_error: float = 0.0


def exact_emd(a: Tensor, b: Tensor) -> float:
    """Minimum over bijections of the mean Euclidean distance of two (N, 3) sets.

    Raises:
        InputError: sets of different size, empty, or not finite.
    """
    a, b = _pair_of_sets(a, b)
    optimize = require("scipy.optimize", extra="mesh", purpose="the exact earth mover's distance")
    cost = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    rows, columns = optimize.linear_sum_assignment(cost)
    return float(cost[rows, columns].mean())


def sinkhorn_emd(
    a: Tensor, b: Tensor, *, epsilon: float = EPSILON, tolerance: float = 1e-4
) -> tuple[float, float]:
    """Transport cost of the entropy-regularised plan (Cuturi 2013), in the log domain with a falling entropy.

    Args:
        a: (N, 3).
        b: (N, 3).
        epsilon: final entropy, unit of the points.
        tolerance: L1 error of the row sums at which iteration ends.

    Returns:
        The cost <plan, distance> and the L1 error of the plan's row sums.

    Raises:
        InputError: as :func:`exact_emd`, or an entropy that is not positive.
    """
    if not epsilon > 0:
        raise InputError(f"the entropy of Sinkhorn's iteration must be positive, got {epsilon}")
    a, b = _pair_of_sets(a, b)
    cost = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    log_mass = -math.log(a.shape[0])
    f, g = torch.zeros(a.shape[0], dtype=a.dtype), torch.zeros(b.shape[0], dtype=a.dtype)
    level = max(float(cost.max()), epsilon)
    plan, error = torch.zeros_like(cost), math.inf
    while True:
        # A falling entropy: started at the final one, the iteration would need the distance divided by it sweeps.
        final = level <= epsilon
        for sweep in range(_MAX_SWEEPS if final else 10):
            f = -level * (torch.logsumexp((g - cost) / level, 1) + log_mass)
            g = -level * (torch.logsumexp((f[:, None] - cost) / level, 0) + log_mass)
            if final and sweep % 10 == 9:
                plan = torch.exp((f[:, None] + g - cost) / level + 2 * log_mass)
                error = float((plan.sum(1) - math.exp(log_mass)).abs().sum())
                if error < tolerance:
                    break
        if final:
            return float((plan * cost).sum()), error
        level = max(level / 2, epsilon)


def earth_movers(
    a: Tensor,
    b: Tensor,
    *,
    points: int = POINTS,
    subsets: int = SUBSETS,
    method: EmdMethod = "exact",
    epsilon: float = EPSILON,
    seed: int = 0,
) -> EarthMovers:
    """Mean earth mover's distance over random subsets of two point sets.

    Sets of one size are thinned by the same indices, so that equal sets have distance 0.

    Args:
        a: (N, 3).
        b: (M, 3).
        points: matched in each subset; fewer when a set has fewer.
        subsets: number of draws; one when nothing needs to be left out.
        method: of each subset.
        epsilon: entropy of Sinkhorn's iteration.
        seed: of the draws.

    Raises:
        InputError: empty or not finite points, or counts that are not positive.
    """
    if points < 1 or subsets < 1:
        raise InputError("the earth mover's distance needs at least one point and one subset")
    a, b = checked_points(a, "the first set"), checked_points(b, "the second set")
    count = min(points, a.shape[0], b.shape[0])
    if count == a.shape[0] == b.shape[0]:
        subsets = 1
    generator = torch_generator(seed)
    values, worst = [], 0.0
    for _ in range(subsets):
        first = torch.randperm(a.shape[0], generator=generator)[:count]
        second = (
            first if a.shape[0] == b.shape[0] else torch.randperm(b.shape[0], generator=generator)[:count]
        )
        if method == "exact":
            values.append(exact_emd(a[first], b[second]))
        else:
            value, error = sinkhorn_emd(a[first], b[second], epsilon=epsilon)
            values.append(value)
            worst = max(worst, error)
    return EarthMovers(math.fsum(values) / len(values), method, count, subsets, worst)


def _pair_of_sets(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = checked_points(a, "the first set"), checked_points(b, "the second set")
    if a.shape != b.shape:
        raise InputError(f"a bijection needs sets of one size, got {a.shape[0]} and {b.shape[0]} points")
    return a, b
