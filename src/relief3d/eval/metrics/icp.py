"""Point-to-point ICP (Besl and McKay 1992) with an optional scale, on nearest neighbours of a fixed target.

The rules are those of Open3D's ``registration_icp``, which published evaluation scripts call: neighbours farther
than the threshold are no pairs; the best rigid motion or similarity of the pairs (Umeyama 1991) replaces the
transformation; iteration ends when neither the share of paired points nor their RMSE changes any more. The change of
the RMSE is taken relative to its value, so the result does not depend on the unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.optional import require
from relief3d.geometry.alignment import Similarity, umeyama

_FEWEST_PAIRS = 3


@dataclass(frozen=True)
class IcpResult:
    """Transformation ``x -> scale * rotation @ x + translation`` and how well it fits.

    Attributes:
        scale: 1 without scale estimation and without a scaled start.
        rotation: (3, 3) float64, proper.
        translation: (3,) float64, unit of the target.
        fitness: share of source points with a neighbour within the threshold, after the last update.
        rmse: of the distances of those pairs, unit of the target; 0 without pairs.
        iterations: updates made; 0 when there were fewer than three pairs at the start.
    """

    scale: float
    rotation: Tensor
    translation: Tensor
    fitness: float
    rmse: float
    iterations: int

    def apply(self, points: Tensor) -> Tensor:
        """Transform (N, 3) points, float64."""
        return self.scale * points.detach().cpu().double() @ self.rotation.T + self.translation


class NeighbourTree:
    """Nearest neighbours among (M, 3) fixed points; built once, asked often.

    Raises:
        InputError: no points, or points that are not finite.
    """

    def __init__(self, points: Tensor) -> None:
        self.points = checked_points(points, "the target of nearest neighbours")
        spatial = require("scipy.spatial", extra="mesh", purpose="nearest neighbours")
        # A balanced, compact tree costs more to build than it saves on a few passes of queries.
        self._tree = spatial.cKDTree(self.points.numpy(), leafsize=12, balanced_tree=False)

    def query(self, points: Tensor, threshold: float = math.inf) -> tuple[Tensor, Tensor]:
        """Distance (N,) float64, infinite beyond ``threshold``, and index (N,) int64, M there."""
        distance, index = self._tree.query(
            points.detach().cpu().double().numpy(), distance_upper_bound=threshold, workers=-1
        )
        return torch.from_numpy(distance), torch.from_numpy(index.astype(np.int64))


def checked_points(points: Tensor, what: str) -> Tensor:
    """(N, 3) float64 on the CPU.

    Raises:
        InputError: another shape, no points, or points that are not finite.
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f"{what} must be (N, 3) points, got {tuple(points.shape)}")
    if points.shape[0] == 0:
        raise InputError(f"{what} has no points")
    points = points.detach().cpu().double().contiguous()
    if not bool(torch.isfinite(points).all()):
        raise InputError(f"{what} has points that are not finite")
    return points


def icp(
    src: Tensor,
    dst: Tensor | NeighbourTree,
    *,
    init: Similarity | None = None,
    threshold: float = math.inf,
    iterations: int = 30,
    with_scale: bool = False,
    relative_tolerance: float = 1e-6,
) -> IcpResult:
    """Move ``src`` onto ``dst``; see the module's description.

    Args:
        src: (N, 3) points to move.
        dst: (M, 3) points that stay, or their tree when it is used more than once.
        init: start; None is the identity. Its scale is kept when ``with_scale`` is False.
        threshold: largest distance of a pair, unit of ``dst``; a pair at exactly this distance counts.
        iterations: most updates.
        with_scale: estimate a similarity instead of a rigid motion.
        relative_tolerance: of the fitness and of the RMSE relative to its value.

    Returns:
        The transformation after the last update; with fewer than three pairs it is the start.

    Raises:
        InputError: empty or not finite points, or a threshold that is not positive.
    """
    if not threshold > 0:
        raise InputError(f"the pair distance of ICP must be positive, got {threshold}")
    src = checked_points(src, "the source of ICP")
    tree = dst if isinstance(dst, NeighbourTree) else NeighbourTree(dst)
    fit = _start(init)
    # The tree's own bound is strict.
    bound = math.inf if math.isinf(threshold) else math.nextafter(threshold, math.inf)
    kept_scale = 1.0 if with_scale else float(fit.scale)
    paired, index, fitness, rmse = _pairs(fit.apply(src), tree, bound)
    done = 0
    for _ in range(iterations):
        if int(paired.sum()) < _FEWEST_PAIRS:
            break
        # Fitting the original points anew equals composing updates, without their rounding.
        start = src[paired] * kept_scale
        new = umeyama(start, tree.points[index[paired]], with_scale=with_scale)
        if with_scale and not float(new.scale) > 0:
            break  # all pairs end in one target point: a collapse is no alignment
        fit = Similarity(new.scale * kept_scale, new.rotation, new.translation)
        done += 1
        paired, index, new_fitness, new_rmse = _pairs(fit.apply(src), tree, bound)
        calm = abs(new_fitness - fitness) < relative_tolerance
        calm &= abs(new_rmse - rmse) <= relative_tolerance * rmse
        fitness, rmse = new_fitness, new_rmse
        if calm:
            break
    return IcpResult(float(fit.scale), fit.rotation, fit.translation, fitness, rmse, done)


def _start(init: Similarity | None) -> Similarity:
    if init is None:
        one = torch.ones((), dtype=torch.float64)
        return Similarity(one, torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    return Similarity(*(torch.as_tensor(part).detach().cpu().double() for part in init))


def _pairs(moved: Tensor, tree: NeighbourTree, bound: float) -> tuple[Tensor, Tensor, float, float]:
    """Which points have a neighbour, its index, their share, and their RMSE."""
    distance, index = tree.query(moved, bound)
    paired = torch.isfinite(distance)
    count = int(paired.sum())
    rmse = float(distance[paired].square().mean().sqrt()) if count else 0.0
    return paired, index, count / moved.shape[0], rmse
