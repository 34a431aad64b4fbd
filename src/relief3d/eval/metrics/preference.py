"""Preference tests: win rate with Wilson's interval, Bradley-Terry (Elo) ratings, connected comparison graphs.

Specification objects.md 5.5 and 6.4. A difference of 400 points is odds of 10:1. Ties count half a win for each side
everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from relief3d.core.errors import InputError

Winner = Literal["left", "right", "tie"]
SCORES: dict[str, float] = {"left": 1.0, "right": 0.0, "tie": 0.5}
"""Share of a win that the left candidate gets."""
ANCHOR = 1000.0
PRIOR_SIGMA = 400.0
ONLINE_K = 16.0
_Z95 = 1.959963984540054
_POINTS_TO_LOGIT = math.log(10.0) / 400.0
_NEWTON_STEPS = 60


@dataclass(frozen=True)
class Vote:
    """One comparison.

    Attributes:
        target: what was shown; the unit of the bootstrap.
        left, right: names of the methods.
        winner: "left", "right" or "tie".
    """

    target: str
    left: str
    right: str
    winner: Winner

    def __post_init__(self) -> None:
        if self.winner not in SCORES:
            raise InputError(f"a vote's winner is left, right or tie, not '{self.winner}'")
        if self.left == self.right:
            raise InputError(f"a vote on '{self.target}' compares '{self.left}' with itself")


@dataclass(frozen=True)
class WinRate:
    """Share of comparisons won, ties split.

    Attributes:
        rate: in [0, 1].
        low, high: Wilson's 95% interval.
        votes: number of comparisons.
    """

    rate: float
    low: float
    high: float
    votes: int

    @property
    def odds(self) -> float:
        """Wins per loss: the n of "n : 1"; infinite without losses."""
        return self.rate / (1 - self.rate) if self.rate < 1 else math.inf


@dataclass(frozen=True)
class Ratings:
    """Elo ratings of methods.

    Attributes:
        values: rating by method.
        component: number of the connected part of the comparison graph by method; ratings of different parts cannot
            be compared.
        low, high: 95% interval by bootstrap over targets, or empty.
    """

    values: dict[str, float]
    component: dict[str, int]
    low: dict[str, float]
    high: dict[str, float]

    @property
    def connected(self) -> bool:
        """True when all methods can be compared."""
        return len(set(self.component.values())) <= 1


def wilson_interval(wins: float, count: float, z: float = _Z95) -> tuple[float, float]:
    """Wilson's score interval of a share (1927); ``wins`` may hold halves.

    Raises:
        InputError: no comparison, or more wins than comparisons.
    """
    if not count > 0 or not 0 <= wins <= count:
        raise InputError(f"a win rate needs 0 <= wins <= votes and a vote, got {wins} of {count}")
    share, square = wins / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    spread = z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max(0.0, middle - spread), min(1.0, middle + spread)


def win_rate(votes: Sequence[Vote], method: str, against: str | None = None) -> WinRate:
    """Win rate of a method over another one, or over all others.

    Raises:
        InputError: no vote compares them.
    """
    scores = []
    for vote in votes:
        if method not in (vote.left, vote.right):
            continue
        other = vote.right if vote.left == method else vote.left
        if against is not None and other != against:
            continue
        left = SCORES[vote.winner]
        scores.append(left if vote.left == method else 1 - left)
    if not scores:
        raise InputError(f"no vote compares '{method}' with {against or 'another method'}")
    wins = math.fsum(scores)
    low, high = wilson_interval(wins, len(scores))
    return WinRate(wins / len(scores), low, high, len(scores))


def expected_score(rating: float, other: float) -> float:
    """Probability that the first wins: 1 / (1 + 10^((other - rating) / 400))."""
    return 1.0 / (1.0 + 10.0 ** ((other - rating) / 400.0))


def win_matrix(
    left: np.ndarray, right: np.ndarray, score: np.ndarray, methods: int, weight: np.ndarray | None = None
) -> np.ndarray:
    """(M, M) float64 of wins of row over column, ties half.

    Args:
        left: (V,) method numbers.
        right: (V,).
        score: (V,) share of the win of the left one.
        methods: M.
        weight: (V,) of the votes, or None.
    """
    wins = np.zeros((methods, methods))
    weight = np.ones(len(score)) if weight is None else weight
    np.add.at(wins, (left, right), weight * score)
    np.add.at(wins, (right, left), weight * (1 - score))
    return wins


def components(wins: np.ndarray) -> np.ndarray:
    """(M,) int64 number of the connected part of the comparison graph each method belongs to, from 0."""
    linked = (wins + wins.T) > 0
    label = np.arange(len(wins))
    for _ in range(len(wins)):
        label = np.minimum(label, np.where(linked, label[None], len(wins)).min(1, initial=len(wins)))
    return np.unique(label, return_inverse=True)[1].astype(np.int64)


def fit_ratings(wins: np.ndarray, *, sigma: float = PRIOR_SIGMA) -> np.ndarray:
    """Bradley-Terry ratings by penalised maximum likelihood (Newton), before anchoring.

    Args:
        wins: (*, M, M) wins of row over column, ties half to each.
        sigma: of the normal prior around 0, points.

    Returns:
        (*, M) points.

    Raises:
        InputError: a prior width that is not positive.
    """
    if not sigma > 0:
        raise InputError(f"the prior of ratings needs a positive width, got {sigma}")
    wins = np.asarray(wins, dtype=np.float64)
    games = wins + np.swapaxes(wins, -1, -2)
    precision = 1.0 / (sigma * _POINTS_TO_LOGIT) ** 2
    theta = np.zeros(wins.shape[:-1])
    eye = np.eye(wins.shape[-1])

    def objective(at: np.ndarray) -> np.ndarray:
        gap = at[..., :, None] - at[..., None, :]
        return (wins * np.logaddexp(0, -gap)).sum((-1, -2)) + 0.5 * precision * (at**2).sum(-1)

    for _ in range(_NEWTON_STEPS):
        gap = theta[..., :, None] - theta[..., None, :]
        chance = 1 / (1 + np.exp(-np.clip(gap, -60, 60)))
        gradient = (games * chance - wins).sum(-1) + precision * theta
        curvature = games * chance * (1 - chance)
        hessian = -curvature + eye * (curvature.sum(-1)[..., None] + precision)
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        # Newton's step overshoots where the likelihood is flat; halving it restores descent.
        factor = np.ones(theta.shape[:-1])
        before = objective(theta)
        for _ in range(20):
            worse = objective(theta - factor[..., None] * step) > before + 1e-12
            if not worse.any():
                break
            factor = np.where(worse, factor / 2, factor)
        theta = theta - factor[..., None] * step
        if np.abs(step).max(initial=0.0) < 1e-12:
            break
    return theta / _POINTS_TO_LOGIT


def anchor_ratings(
    ratings: np.ndarray, component: np.ndarray, reference: int | None, value: float = ANCHOR
) -> np.ndarray:
    """Shift every connected part: the one with the reference so that it has ``value``, others to that mean.

    Args:
        ratings: (*, M).
        component: (M,) from :func:`components`.
        reference: number of the reference method, or None.
        value: points.
    """
    out = ratings.copy()
    for part in np.unique(component):
        members = component == part
        if reference is not None and members[reference]:
            shift = ratings[..., reference, None]
        else:
            shift = ratings[..., members].mean(-1, keepdims=True)
        out[..., members] = ratings[..., members] - shift + value
    return out


def elo_ratings(
    votes: Sequence[Vote],
    reference: str | None = None,
    *,
    sigma: float = PRIOR_SIGMA,
    resamples: int = 1000,
    seed: int = 0,
) -> Ratings:
    """Batch Elo ratings with intervals by bootstrap over targets.

    Args:
        votes: of any number of methods.
        reference: the method that has 1000; None puts the mean there.
        sigma: width of the prior on ratings.
        resamples: draws of the bootstrap; 0 leaves the intervals empty.
        seed: of the draws.

    Raises:
        InputError: no vote, or a reference that no vote names.
    """
    if not votes:
        raise InputError("ratings need at least one vote")
    names = sorted({v.left for v in votes} | {v.right for v in votes})
    if reference is not None and reference not in names:
        raise InputError(
            f"no vote names the reference '{reference}'", remedy=f"use one of {', '.join(names)}"
        )
    number = {name: i for i, name in enumerate(names)}
    targets = sorted({v.target for v in votes})
    place = {name: i for i, name in enumerate(targets)}
    # (T, M, M): resampling targets is then a product with their multiplicities.
    table = np.zeros((len(targets), len(names), len(names)))
    for vote in votes:
        i, j, score = number[vote.left], number[vote.right], SCORES[vote.winner]
        table[place[vote.target], i, j] += score
        table[place[vote.target], j, i] += 1 - score
    total = table.sum(0)
    part = components(total)
    anchor = None if reference is None else number[reference]
    fitted = anchor_ratings(fit_ratings(total, sigma=sigma), part, anchor)
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    if resamples:
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(len(targets), np.full(len(targets), 1 / len(targets)), size=resamples)
        drawn = np.tensordot(counts.astype(np.float64), table, 1)
        spread = anchor_ratings(fit_ratings(drawn, sigma=sigma), part, anchor)
        bounds = np.quantile(spread, [0.025, 0.975], axis=0)
        low = {name: float(bounds[0, i]) for name, i in number.items()}
        high = {name: float(bounds[1, i]) for name, i in number.items()}
    values = {name: float(fitted[i]) for name, i in number.items()}
    return Ratings(values, {name: int(part[i]) for name, i in number.items()}, low, high)


def online_elo(
    votes: Sequence[Vote], *, k: float = ONLINE_K, passes: int = 100, start: float = ANCHOR, seed: int = 0
) -> dict[str, float]:
    """Ratings by the running update E += k (score - expected), averaged over random orders of the votes.

    For dashboards only; results are reported with :func:`elo_ratings`.

    Raises:
        InputError: no vote or no pass.
    """
    if not votes or passes < 1:
        raise InputError("running ratings need at least one vote and one pass")
    names = sorted({v.left for v in votes} | {v.right for v in votes})
    number = {name: i for i, name in enumerate(names)}
    left = np.array([number[v.left] for v in votes])
    right = np.array([number[v.right] for v in votes])
    score = np.array([SCORES[v.winner] for v in votes])
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(len(votes)) for _ in range(passes)])
    rating = np.full((passes, len(names)), start)
    row = np.arange(passes)
    for step in range(len(votes)):
        i, j, s = left[order[:, step]], right[order[:, step]], score[order[:, step]]
        chance = 1 / (1 + 10 ** ((rating[row, j] - rating[row, i]) / 400))
        gain = k * (s - chance)
        rating[row, i] += gain
        rating[row, j] -= gain
    return {name: float(rating[:, i].mean()) for name, i in number.items()}
