"""The frame of reproductions: every run once, the same result after a kill, honest claims, pages from files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from relief3d.core.errors import InputError, RunError
from relief3d.eval.protocols.base import Column
from relief3d.io.json_file import read_json_object, write_json
from relief3d.pipelines.repro import registry, render, run
from relief3d.pipelines.repro.experiment import Arm, ArmRun, Comparison, Experiment, ExperimentPlan
from relief3d.pipelines.repro.experiments import training
from relief3d.pipelines.repro.intervals import excludes_zero, mean_interval


class Toy:
    """Three arms whose numbers are known; ``dies`` interrupts one run after it has saved something."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.dies: tuple[str, int] | None = None
        self.shift = 1.0
        self.seeds: tuple[int, ...] = (0, 1, 2)

    def arm(self, name: str, value: float, baseline: bool = False) -> Arm:
        def work(job: ArmRun) -> dict[str, float]:
            self.calls.append((name, job.seed))
            half = job.folder / "half.json"
            if not half.is_file():
                write_json(half, {"value": value})
                if self.dies == (name, job.seed):
                    raise KeyboardInterrupt
            return {"error": read_json_object(half)["value"] + 0.01 * job.seed, "rest": 1.0}

        return Arm(name, f"arm {name}", {"value": value}, work, baseline)

    def experiment(self) -> Experiment:
        def plan(budget: str) -> ExperimentPlan:
            arms = (self.arm("a", self.shift), self.arm("b", 2.0), self.arm("flat", 3.0, True))
            return ExperimentPlan("nano", arms, self.seeds)

        return Experiment(
            "reliev3r",
            "toy",
            "A toy",
            (Column("error", "error"), Column("rest", "rest", "m", None)),
            plan,
            (Comparison("a", "b", "error"), Comparison("b", "b", "error")),
            {"reliev3r/table1": {"error": "d_rel"}},
        )


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Toy()
    known = {"reliev3r": (made.experiment(),)}
    monkeypatch.setattr(registry, "load_experiments", lambda: known)
    return made


def go(out: Path) -> Path:
    return run.reproduce("reliev3r", "smoke", out, device="cpu", command=["relief3d", "repro", "reliev3r"])


def numbers(out: Path) -> dict:
    found = read_json_object(out / "results" / "reliev3r" / "toy_smoke.json")
    return {
        "arms": {n: {k: a[k] for k in ("mean", "interval", "per_seed")} for n, a in found["arms"].items()},
        "comparisons": found["comparisons"],
        "parameters": found["parameters"],
    }


def test_every_run_once_and_the_same_result_after_a_kill(toy: Toy, tmp_path: Path) -> None:
    go(tmp_path / "whole")
    assert len(toy.calls) == 7  # two arms by three seeds, and the constant once
    toy.calls.clear()
    toy.dies = ("b", 1)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut")
    assert not (tmp_path / "cut" / "results").exists()  # nothing half-written
    before = list(toy.calls)
    go(tmp_path / "cut")
    assert toy.calls[len(before) :] == [("b", 1), ("b", 2), ("flat", 0)]
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
    found = read_json_object(tmp_path / "cut" / "results" / "reliev3r" / "toy_smoke.json")
    assert found["arms"]["b"]["attempts"] == {"0": 1, "1": 2, "2": 1}
    toy.calls.clear()
    go(tmp_path / "cut")
    assert toy.calls == []


def test_results_say_where_they_come_from(toy: Toy, tmp_path: Path) -> None:
    go(tmp_path)
    found = read_json_object(tmp_path / "results" / "reliev3r" / "toy_smoke.json")
    assert found["command"] == "relief3d repro reliev3r"
    assert {"commit", "hardware", "wall_seconds", "peak_bytes", "versions", "parameters_commit"} <= set(found)
    assert found["peak_bytes"] > 0 and found["seeds"] == [0, 1, 2]
    assert found["parameters"]["arms"]["a"] == {"value": 1.0}
    assert found["arms"]["a"]["per_seed"]["2"]["error"] == pytest.approx(1.02)


def test_changed_parameters_are_refused(toy: Toy, tmp_path: Path) -> None:
    go(tmp_path)
    toy.shift = 1.5
    with pytest.raises(InputError, match=r"'arms\.a\.value' was 1\.0 and is 1\.5 now"):
        go(tmp_path)


def test_effects_are_claimed_only_where_they_may_be(toy: Toy, tmp_path: Path) -> None:
    go(tmp_path / "a")
    first, nothing = numbers(tmp_path / "a")["comparisons"]
    assert first["mean"] == pytest.approx(-1) and first["claimed"] and first["learned"]
    assert nothing["mean"] == 0 and not nothing["claimed"]
    toy.seeds = (0, 1)
    go(tmp_path / "b")
    assert not numbers(tmp_path / "b")["comparisons"][0]["claimed"]  # two seeds are too few
    toy.seeds, toy.shift = (0, 1, 2), 3.5
    go(tmp_path / "c")
    worse = numbers(tmp_path / "c")["comparisons"][0]
    assert excludes_zero(tuple(worse["interval"])) and not worse["learned"] and not worse["claimed"]


def test_without_a_constant_nothing_is_claimed(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(budget: str) -> ExperimentPlan:
        return ExperimentPlan("nano", (toy.arm("a", 1.0), toy.arm("b", 2.0)), toy.seeds)

    bare = replace(toy.experiment(), plan=plan)
    monkeypatch.setattr(registry, "load_experiments", lambda: {"reliev3r": (bare,)})
    page = go(tmp_path).read_text()
    first = numbers(tmp_path)["comparisons"][0]
    assert excludes_zero(tuple(first["interval"])) and not first["claimed"]
    assert "no effect can be claimed, because there is no constant to compare with." in page
    with pytest.raises(InputError, match="no column with a better side"):
        replace(toy.experiment(), comparisons=(Comparison("a", "b", "rest"),))


def test_where_larger_is_better_constants_must_be_smaller(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = replace(toy.experiment(), columns=(Column("error", "score", "", "higher"),))
    monkeypatch.setattr(registry, "load_experiments", lambda: {"reliev3r": (up,)})
    go(tmp_path)
    assert not numbers(tmp_path)["comparisons"][0]["learned"]  # 1 and 2 are less than the constant's 3


def test_both_arms_must_have_learned(toy: Toy, tmp_path: Path) -> None:
    toy.shift = 3.5
    go(tmp_path)
    worse = numbers(tmp_path)["comparisons"][0]  # b alone beats the constant
    assert not worse["learned"]


def test_differences_are_first_minus_second_and_intervals_the_paired_test_s(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scipy.stats import ttest_rel

    table = {"a": [0.31, 0.28, 0.35, 0.30], "b": [0.40, 0.33, 0.52, 0.37], "flat": [0.9] * 4}

    def arm(name: str) -> Arm:
        return Arm(name, name, {}, lambda job: {"error": table[name][job.seed], "rest": 1.0}, name == "flat")

    def plan(budget: str) -> ExperimentPlan:
        return ExperimentPlan("nano", tuple(map(arm, table)), (0, 1, 2, 3))

    monkeypatch.setattr(
        registry, "load_experiments", lambda: {"reliev3r": (replace(toy.experiment(), plan=plan),)}
    )
    go(tmp_path)
    found = numbers(tmp_path)["comparisons"][0]
    wanted = ttest_rel(table["a"], table["b"]).confidence_interval(0.95)
    assert found["differences"] == pytest.approx([-0.09, -0.05, -0.17, -0.07])
    assert found["interval"] == pytest.approx([wanted.low, wanted.high], rel=1e-9) and found["claimed"]


def test_memory_is_that_of_each_run(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from relief3d.core.memory import reset_peak_rss

    if not reset_peak_rss():
        pytest.skip("this system cannot start counting anew")

    def hungry(job: ArmRun) -> dict[str, float]:
        block = torch.ones(60_000_000)
        return {"error": float(block[0]), "rest": 1.0}

    def plan(budget: str) -> ExperimentPlan:
        return ExperimentPlan("nano", (Arm("a", "a", {}, hungry), toy.arm("b", 2.0)), (0,))

    monkeypatch.setattr(
        registry, "load_experiments", lambda: {"reliev3r": (replace(toy.experiment(), plan=plan),)}
    )
    page = go(tmp_path).read_text()
    arms = read_json_object(tmp_path / "results" / "reliev3r" / "toy_smoke.json")["arms"]
    assert arms["a"]["peak_bytes"]["0"] - arms["b"]["peak_bytes"]["0"] > 150_000_000
    assert "Memory is the most of the run." in page


def test_pages_name_the_commits_of_all_runs_and_whether_parameters_were_committed(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "commit", lambda: "aaaaaaaaaaaaaaaa")
    toy.dies = ("b", 1)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "x")
    toy.dies = None
    monkeypatch.setattr(run, "commit", lambda: "bbbbbbbbbbbbbbbb+")
    page = go(tmp_path / "x").read_text()
    assert "Parameters stood in commit aaaaaaaaaaaa before" in page
    assert "Runs of commits aaaaaaaaaaaa, bbbbbbbbbbbb+." in page
    dirty = go(tmp_path / "y").read_text()
    assert "Parameters were not committed before the first run" in dirty


def test_the_page_has_our_rows_and_the_published_ones(toy: Toy, tmp_path: Path) -> None:
    from relief3d.eval.published.registry import load_tables

    page = go(tmp_path).read_text()
    assert page == render.render_page(tmp_path, "reliev3r")
    table = load_tables()["reliev3r/table1"]
    for row in table.rows:
        shown = f"{row.values['d_rel']:.12g}" if "d_rel" in row.values else render.MISSING
        assert f"| {row.method} | {row.source} | {shown} |" in page
    assert "arm a minus arm b: -1 [" in page and "| arm flat | 3 | 1 |" in page
    assert "Budget smoke, size nano, seeds 0, 1, 2" in page
    empty = render.render_page(tmp_path / "nothing", "reliev3r")
    assert "Not measured." in empty


def test_an_arm_without_its_number_is_an_error(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = toy.experiment()
    broken = replace(experiment, columns=(*experiment.columns, Column("other", "other")))
    monkeypatch.setattr(registry, "load_experiments", lambda: {"reliev3r": (broken,)})
    with pytest.raises(RunError, match="gave no 'other'"):
        go(tmp_path)


def test_names() -> None:
    assert "training" in registry.load_experiments()
    with pytest.raises(InputError, match=r"no reproduction 'sam3d'.*there are .*training"):
        registry.find_experiments("sam3d")
    with pytest.raises(InputError, match="did you mean 'training'"):
        registry.find_experiments("trainin")
    with pytest.raises(InputError, match="has no budget 'paper'"):
        training.plan("paper")


def test_intervals_are_student_s() -> None:
    mean, bounds = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2 and bounds is not None
    assert bounds[1] - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert mean_interval([1.0]) == (1.0, None)
    assert mean_interval([1.0, math.nan]) == (None, None)


def test_the_engine_s_own_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = (
        "train.steps=2",
        "stream.images=4",
        "stream.views=[2, 2]",
        "evaluation.scenes=2",
        "evaluation.constants=2",
        "evaluation.views=2",
        "train.log.evaluate=0",
        "train.log.panels=0",
        "train.log.utilisation=false",
    )
    monkeypatch.setitem(training._BUDGETS, "smoke", ("nano", (0,), small))  # type: ignore[arg-type]
    page = run.reproduce("training", "smoke", tmp_path, device="cpu", command=["relief3d"]).read_text()
    found = read_json_object(tmp_path / "results" / "training" / "engine_smoke.json")
    assert set(found["arms"]) == {"plain", "average", "bfloat16", "constant"}
    values = [
        found["arms"][n]["per_seed"]["0"]["abs_rel"] for n in ("plain", "average", "bfloat16", "constant")
    ]
    assert len(set(values)) == 4  # arms differ, so each did what its name says
    assert "float32, moving average" in page


def test_only_some_tables(toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = toy.experiment()
    monkeypatch.setattr(run, "find_experiments", lambda paper: (first, replace(first, name="other")))
    run.reproduce("reliev3r", "smoke", tmp_path, device="cpu", command=["test"], only=["other"])
    assert (tmp_path / "results" / "reliev3r" / "other_smoke.json").is_file()
    assert not (tmp_path / "results" / "reliev3r" / "toy_smoke.json").exists()
    assert len(toy.calls) == 7
    with pytest.raises(InputError, match=r"no table 'third'.*there are toy, other"):
        run.reproduce("reliev3r", "smoke", tmp_path, only=["third"])
