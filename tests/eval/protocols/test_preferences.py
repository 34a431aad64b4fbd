"""Votes: reading, ties, agreement, Elo of linked methods, intervals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from corpora.evaluation import measure_samples, truthful
from relief3d.core.errors import InputError
from relief3d.eval.metrics.preference import Vote, elo_ratings, win_rate
from relief3d.eval.protocols.base import Answer, Query, Truth
from relief3d.eval.protocols.objects.preferences import PROTOCOLS, read_votes
from relief3d.eval.statistics import bootstrap

OBJECTS, SCENES = PROTOCOLS
VOTES = [
    ("t0", "ours", "a", "left"), ("t0", "b", "ours", "right"), ("t0", "a", "b", "tie"),
    ("t1", "ours", "a", "tie"), ("t1", "b", "ours", "left"), ("t1", "a", "b", "left"),
    ("t2", "a", "ours", "right"), ("t2", "ours", "b", "left"),
]  # fmt: skip


def write(folder: Path, votes: list, study: dict | None = None) -> Path:
    lines = [json.dumps(dict(zip(("target", "left", "right", "winner"), v))) for v in votes]
    (folder / "votes.jsonl").write_text("\n".join(lines) + "\n\n")
    if study is not None:
        (folder / "study.json").write_text(json.dumps(study))
    return folder


def test_recorded_votes_give_win_rate_and_elo(tmp_path: Path) -> None:
    samples = OBJECTS.open(write(tmp_path, VOTES, {"subject": "ours", "reference": "b"}))
    assert [s.name for s in samples] == ["t0", "t1", "t2"]
    query = samples[0].load_query()
    assert query.facts["pairs"] == [["ours", "a"], ["b", "ours"], ["a", "b"]]
    assert "winners" not in query.facts and "methods" not in query.facts
    summary = OBJECTS.summarise(measure_samples(OBJECTS, samples, truthful))
    plain = [Vote(*v) for v in VOTES]
    rate = win_rate(plain, "ours")
    assert summary["win_rate"] == pytest.approx(100 * rate.rate) == pytest.approx(100 * 4.5 / 6)
    assert summary["win_rate"] != pytest.approx(100 * 4 / 5)  # ties dropped
    assert (summary["win_low"], summary["win_high"]) == pytest.approx((100 * rate.low, 100 * rate.high))
    assert summary["odds"] == pytest.approx(rate.odds)
    assert summary["elo"] == pytest.approx(elo_ratings(plain, "b", resamples=0).values["ours"], abs=1e-6)
    assert summary["agreement"] == 100 and summary["votes"] == 8


def test_agreement_counts_a_tie_as_half() -> None:
    query = Query("t", "records", ("winners",), facts={"pairs": [["ours", "a"]] * 3})
    truth = Truth(facts={"winners": ["left", "left", "tie"], "methods": ["ours", "a"], "sets": [""] * 3})
    judged = OBJECTS.measure(query, truth, Answer(facts={"winners": ["left", "tie", "right"]}))
    assert OBJECTS.summarise([judged])["agreement"] == pytest.approx(100 * 2 / 3)
    # "equal" and "both_bad" of the annotation tool are ties.
    same = OBJECTS.measure(query, truth, Answer(facts={"winners": ["left", "equal", "both_bad"]}))
    assert np.allclose(same.arrays["score"], [1, 0.5, 0.5])
    with pytest.raises(InputError, match="3 verdicts"):
        OBJECTS.measure(query, truth, Answer(facts={"winners": ["left"]}))
    with pytest.raises(InputError, match="left, right or tie"):
        OBJECTS.measure(query, truth, Answer(facts={"winners": ["left", "up", "tie"]}))


def test_elo_is_not_available_across_unlinked_methods(tmp_path: Path) -> None:
    votes = [("t0", "ours", "a", "left"), ("t1", "b", "c", "left")]
    samples = OBJECTS.open(write(tmp_path, votes, {"subject": "ours", "reference": "c"}))
    summary = OBJECTS.summarise(measure_samples(OBJECTS, samples, truthful))
    assert math.isnan(summary["elo"]) and summary["win_rate"] == 100 and summary["odds"] == math.inf


def test_bootstrap_draws_targets(tmp_path: Path) -> None:
    samples = OBJECTS.open(write(tmp_path, VOTES))
    intervals = bootstrap(measure_samples(OBJECTS, samples, truthful), OBJECTS.summarise, resamples=40)
    low, high = intervals["win_rate"].low, intervals["win_rate"].high
    assert low is not None and high is not None and low < 75 <= high


def test_subject_and_reference_have_defaults_and_are_checked(tmp_path: Path) -> None:
    study = read_votes(write(tmp_path, VOTES))
    assert (study.subject, study.reference, study.methods) == ("ours", "a", ["ours", "a", "b"])
    for bad in ({"subject": "z"}, {"reference": "z"}, {"subject": "a", "reference": "a"}):
        with pytest.raises(InputError):
            read_votes(write(tmp_path, VOTES, bad))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not valid JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ('{"target": "t", "left": "a", "right": "b"}', "lacks winner"),
        ('{"target": "t", "left": "a", "right": "b", "winner": "a"}', "left, right or tie"),
        ('{"target": "t", "left": "a", "right": "a", "winner": "tie"}', "with itself"),
        ('{"target": "../t", "left": "a", "right": "b", "winner": "tie"}', "plain name"),
    ],
)
def test_broken_votes_name_their_line(tmp_path: Path, line: str, message: str) -> None:
    good = json.dumps({"target": "t", "left": "a", "right": "b", "winner": "left"})
    (tmp_path / "votes.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(InputError, match=message):
        read_votes(tmp_path)


def test_missing_votes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks votes\.jsonl"):
        OBJECTS.open(tmp_path)
    (tmp_path / "votes.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no votes"):
        OBJECTS.open(tmp_path)


def test_simulated_voters_prefer_the_better_method_and_published_ratios() -> None:
    summary = OBJECTS.summarise(measure_samples(OBJECTS, OBJECTS.twin("smoke"), truthful))
    assert summary["win_rate"] > 50 and summary["elo"] > 1000
    assert OBJECTS.published()[0].values == {"odds": 5} and SCENES.published()[0].values == {"odds": 6}
    assert [r.values["agreement"] for r in OBJECTS.published()[1:]] == [68.9, 65, 75]
