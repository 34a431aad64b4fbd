"""LIBERO: the design of 2000 episodes, success rates, recorded episodes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from relief3d.core.errors import InputError
from relief3d.eval.predictions import read_answer
from relief3d.eval.protocols.base import Answer, Measurement
from relief3d.eval.protocols.downstream.libero import SUITES, Libero, answers_from_records, split_records


def checkout(root: Path, tasks: int = 10) -> Path:
    for suite in SUITES:
        folder = root / "libero" / "libero" / "bddl_files" / suite
        folder.mkdir(parents=True)
        for i in range(tasks):
            (folder / f"pick_up_the_bowl_{i}.bddl").write_text("(define (problem x))")
    return root


def test_design(tmp_path: Path) -> None:
    samples = Libero().open(checkout(tmp_path))
    assert len(samples) == 4 * 10 * 50 and len({s.name for s in samples}) == 2000
    assert len({s.group for s in samples}) == 40
    query = samples[0].load_query()
    assert query.facts["instruction"] == "pick up the bowl 0" and query.facts["episode"] == 0
    assert "success" not in query.facts and query.wants == ("success",)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not look like LIBERO"):
        Libero().open(tmp_path)
    with pytest.raises(InputError, match="holds 9 task files"):
        Libero().open(checkout(tmp_path, 9))
    sample = Libero().twin("smoke")[0]
    for wrong in ({}, {"success": "yes"}, {"success": 0.5}):
        with pytest.raises(InputError, match="true or false"):
            Libero().measure(sample.load_query(), sample.load_truth(), Answer(facts=wrong))


def test_suites_count_the_same_whatever_they_hold() -> None:
    def episodes(key: str, successes: int, count: int) -> list[Measurement]:
        return [Measurement(f"{key}{i}", "g", {key: float(i < successes)}) for i in range(count)]

    found = episodes("spatial", 9, 10) + episodes("object", 20, 100) + episodes("goal", 1, 2)
    summary = Libero().summarise(found)
    assert (summary["spatial"], summary["object"], summary["goal"]) == (90.0, 20.0, 50.0)
    assert np.isnan(summary["long"])
    assert summary["avg"] == pytest.approx((90 + 20 + 50) / 3)  # of all episodes it would be 26.8


def test_recorded_episodes_answer(tmp_path: Path) -> None:
    protocol = Libero()
    samples = protocol.open(checkout(tmp_path))
    chosen = [s for s in samples if s.name.startswith("libero_10/")][:4]
    rows = []
    for i, s in enumerate(chosen):
        facts = s.load_query().facts
        rows.append(
            {"suite": facts["suite"], "task": facts["task"], "episode": facts["episode"], "success": i != 1}
        )
    path = tmp_path / "episodes.json"
    path.write_text(json.dumps({"episodes": rows}))
    model = answers_from_records(path)
    measured = [protocol.measure(s.load_query(), s.load_truth(), model(s.load_query())) for s in chosen]
    assert protocol.summarise(measured)["long"] == 75.0
    assert split_records(path, tmp_path / "answers") == 4
    again = [
        protocol.measure(s.load_query(), s.load_truth(), read_answer(tmp_path / "answers", s.name))
        for s in chosen
    ]
    assert again == measured
    other = samples[0]
    with pytest.raises(InputError, match="no record of"):
        model(other.load_query())
    failed = protocol.failure(other.load_query(), other.load_truth(), "no record")
    assert failed is not None and failed.values == {"spatial": 0.0}


def test_records_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "episodes.json"
    good = {"suite": "libero_goal", "task": "t", "episode": 0, "success": True}
    for rows, text in (
        ([good, good], "again"),
        ([good | {"suite": "libero_90"}], "suites are"),
        ([good | {"success": 1}], "true or false"),
    ):
        path.write_text(json.dumps({"episodes": rows}))
        with pytest.raises(InputError, match=text):
            answers_from_records(path)


def test_published_rows() -> None:
    rows = {r.method: r.values for r in Libero().published()}
    assert rows["Ours"] == {"spatial": 88.6, "object": 94.4, "goal": 88.8, "long": 78.8, "avg": 87.7}
    assert len(rows) == 11
