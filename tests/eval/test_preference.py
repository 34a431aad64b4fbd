"""Win rates, Wilson intervals and Elo ratings against closed forms and planted ratings."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

from relief3d.core.errors import InputError
from relief3d.eval.metrics.preference import (
    Vote,
    components,
    elo_ratings,
    expected_score,
    fit_ratings,
    online_elo,
    wilson_interval,
    win_matrix,
    win_rate,
)


def votes_of(left: str, right: str, wins: int, losses: int, ties: int = 0) -> list[Vote]:
    spec = ["left"] * wins + ["right"] * losses + ["tie"] * ties
    return [Vote(f"t{i}", left, right, w) for i, w in enumerate(spec)]  # type: ignore[arg-type]


def test_wilson_interval_solves_its_defining_equation() -> None:
    z = norm.ppf(0.975)
    for wins, count in ((8, 10), (0, 5), (5, 5), (12.5, 40)):
        low, high = wilson_interval(wins, count)
        share = wins / count
        for bound in (low, high):
            assert abs(share - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / count), abs=1e-9)
    assert wilson_interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    with pytest.raises(InputError):
        wilson_interval(1, 0)


def test_ties_are_split_not_dropped_and_sides_do_not_matter() -> None:
    votes = votes_of("ours", "x", 5, 1, 4)
    rate = win_rate(votes, "ours")
    assert rate.rate == pytest.approx(0.7) and rate.votes == 10
    assert rate.rate != pytest.approx(5 / 6)  # the rule that drops ties
    assert win_rate(votes, "x").rate == pytest.approx(0.3)
    assert rate.odds == pytest.approx(7 / 3)
    assert win_rate(votes_of("ours", "x", 3, 0), "ours").odds == math.inf
    with pytest.raises(InputError, match="no vote compares"):
        win_rate(votes, "ours", "y")
    with pytest.raises(InputError, match="itself"):
        Vote("t", "a", "a", "left")
    with pytest.raises(InputError, match="left, right or tie"):
        Vote("t", "a", "b", "both")  # type: ignore[arg-type]


def test_four_hundred_points_are_odds_of_ten_to_one() -> None:
    assert expected_score(1400, 1000) == pytest.approx(10 / 11)
    # Two methods with a wide prior: the rating gap is the logarithm of the odds.
    wins = np.array([[0.0, 10000.0], [1000.0, 0.0]])
    fitted = fit_ratings(wins, sigma=1e6)
    assert fitted[0] - fitted[1] == pytest.approx(400, abs=1e-3)


def test_batch_fit_is_the_penalised_maximum_likelihood() -> None:
    rng = np.random.default_rng(0)
    wins = rng.integers(0, 6, (4, 4)).astype(float)
    np.fill_diagonal(wins, 0)

    def loss(r: np.ndarray) -> float:
        gap = (r[:, None] - r[None]) * math.log(10) / 400
        return float((wins * np.log1p(np.exp(-gap))).sum() + 0.5 * (r**2).sum() / 400**2)

    found = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-10})
    assert np.allclose(fit_ratings(wins), found.x, atol=0.05)
    assert loss(fit_ratings(wins)) <= found.fun + 1e-9
    stacked = fit_ratings(np.stack([wins, wins.T]))
    assert np.allclose(stacked[0], fit_ratings(wins)) and np.allclose(
        stacked[1], -fit_ratings(wins), atol=1e-6
    )


def planted(seed: int, ratings: dict[str, float], targets: int) -> list[Vote]:
    rng = np.random.default_rng(seed)
    votes = []
    for t in range(targets):
        for a, b in itertools.combinations(ratings, 2):
            left, right = (a, b) if rng.random() < 0.5 else (b, a)
            won = rng.random() < expected_score(ratings[left], ratings[right])
            votes.append(Vote(f"t{t}", left, right, "left" if won else "right"))
    return votes


def test_planted_ratings_are_recovered_inside_their_intervals() -> None:
    true = {"base": 1000.0, "mid": 1150.0, "best": 1400.0}
    result = elo_ratings(planted(1, true, 400), "base", resamples=200)
    assert result.values["base"] == pytest.approx(1000, abs=1e-9) and result.connected
    for name in ("mid", "best"):
        assert result.values[name] == pytest.approx(true[name], abs=45)
        assert result.low[name] < result.values[name] < result.high[name]
        assert result.low[name] - 10 < true[name] < result.high[name] + 10
    assert result.low["base"] == result.high["base"] == pytest.approx(1000)


def test_a_method_that_won_everything_stays_finite_and_ties_mean_equal() -> None:
    sure = elo_ratings(votes_of("a", "b", 50, 0), "b", resamples=50)
    assert 1200 < sure.values["a"] < 3000
    equal = elo_ratings(votes_of("a", "b", 0, 0, 30), "b", resamples=0)
    assert equal.values["a"] == pytest.approx(1000, abs=1e-9) and equal.low == {}


def test_parts_of_a_graph_that_never_met_are_rated_apart() -> None:
    votes = votes_of("a", "b", 3, 1) + votes_of("c", "d", 1, 3)
    result = elo_ratings(votes, "a", resamples=0)
    assert not result.connected
    assert result.component["a"] == result.component["b"] != result.component["c"] == result.component["d"]
    assert result.values["a"] == pytest.approx(1000)
    assert (result.values["c"] + result.values["d"]) / 2 == pytest.approx(1000)
    chain = np.zeros((5, 5))
    for i, j in ((0, 4), (4, 2), (2, 1)):
        chain[i, j] = 1
    assert (
        len(set(components(chain)[[0, 1, 2, 4]])) == 1 and components(chain)[3] not in components(chain)[[0]]
    )
    with pytest.raises(InputError, match="reference"):
        elo_ratings(votes, "z")
    with pytest.raises(InputError):
        elo_ratings([])


def test_running_update_follows_its_rule() -> None:
    one = online_elo(votes_of("a", "b", 1, 0), passes=3)
    assert one == {"a": pytest.approx(1008.0), "b": pytest.approx(992.0)}
    votes = votes_of("a", "b", 2, 1, 1)
    result = online_elo(votes, passes=50, seed=2)
    rng, total = np.random.default_rng(2), []
    for _ in range(50):
        e = {"a": 1000.0, "b": 1000.0}
        for k in rng.permutation(4):
            s = {"left": 1.0, "right": 0.0, "tie": 0.5}[votes[k].winner]
            gain = 16 * (s - expected_score(e["a"], e["b"]))
            e["a"] += gain
            e["b"] -= gain
        total.append(e["a"])
    assert result["a"] == pytest.approx(np.mean(total), abs=1e-9)
    assert result["a"] + result["b"] == pytest.approx(2000)


def test_win_matrix_weights_votes() -> None:
    wins = win_matrix(np.array([0, 1]), np.array([1, 0]), np.array([1.0, 0.5]), 2, np.array([2.0, 1.0]))
    assert np.allclose(wins, [[0, 2.5], [0.5, 0]])
