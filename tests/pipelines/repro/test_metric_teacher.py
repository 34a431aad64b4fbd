"""Tables about the prompted teacher: arms differ in what they say, scores are kept, everything runs at budget smoke."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from relief3d.core.errors import InputError
from relief3d.core.progress import SilentProgress
from relief3d.methods.metric_anything.pattern_test import Measured, constant
from relief3d.pipelines.repro import prompted
from relief3d.pipelines.repro.experiment import Arm, ArmRun, Experiment
from relief3d.pipelines.repro.experiments import metric_teacher, metric_teacher_uses
from relief3d.pipelines.repro.prompted import BEST, Scores, preset
from relief3d.pipelines.train.configuration import flat
from relief3d.train.fingerprint import first_difference

EVERY = {e.name: e for e in (*metric_teacher.EXPERIMENTS, *metric_teacher_uses.EXPERIMENTS)}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ArmRun]]:
    """Runs that share one folder and one cache of pictures."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RELIEF3D_CACHE", str(folder / "cache"))
        small = replace(preset("smoke"), worlds=2, picture=(32, 48), crop=(24, 32), radar_crop=(32, 48))
        small = replace(small, detailed=((48, 64), 1, 60), radar_steps=2)
        patch.setitem(prompted.PRESETS, "smoke", small)  # type: ignore[arg-type]
        yield lambda seed=0: ArmRun(folder / "arm", seed, "cpu", SilentProgress(), folder / "shared")


def arms(name: str, budget: Any = "smoke") -> dict[str, Arm]:
    return {arm.name: arm for arm in EVERY[name].plan(budget).arms}


def run(name: str, which: tuple[str, ...], job: Callable[..., ArmRun]) -> dict[str, dict[str, float]]:
    """Numbers of some arms of a table, which must have all of its columns."""
    own = arms(name)
    found = {arm: dict(own[arm].run(job())) for arm in which}
    for numbers in found.values():
        assert {c.key for c in EVERY[name].columns} <= set(numbers)
    return found


@pytest.mark.parametrize("experiment", EVERY.values(), ids=list(EVERY))
@pytest.mark.parametrize("budget", ["smoke", "mini"])
def test_plans(experiment: Experiment, budget: Any) -> None:
    """Every claim names arms that exist, and no two trained arms have the same parameters."""
    plan = experiment.plan(budget)
    names = {arm.name for arm in plan.arms}
    assert {side for c in experiment.comparisons for side in (c.first, c.second)} <= names
    trained = [flat(dict(arm.parameters)) for arm in plan.arms if "training" in arm.parameters]
    if budget == "mini":
        assert all(first_difference(a, b) for i, a in enumerate(trained) for b in trained[:i])
        assert len(plan.seeds) == (1 if experiment.name == "teacher_injections" else 3)
    with pytest.raises(InputError, match="no budget 'paper'"):
        experiment.plan("paper")


def test_nothing_that_is_tested_is_trained_on() -> None:
    p = preset("mini")
    trained = {(family, s.seed) for s in p.sets() for family in s.families}
    for test in (p.test(), p.detailed_test(), p.test(("street", "outdoor"), 2)):
        tested = {(family, s.seed) for s in test.pictures for family in s.families}
        assert not trained & tested
        assert "outdoor" in {family for family, _ in tested} - {family for family, _ in trained}


def test_shares_of_the_worlds_are_nested_and_steps_the_same() -> None:
    p = preset("mini")
    configs = [prompted.lean_config(p, share) for share in metric_teacher.SHARES]
    assert [c.pictures[0].worlds for c in configs] == [3, 6, 12, 24, 48, 60]
    assert len({tuple(s.digest for s in c.pictures) for c in configs}) == 1  # a smaller set is the first part
    assert len({(c.train.steps, c.batch) for c in configs}) == 1


def test_both_networks_train_on_the_same_samples() -> None:
    p = preset("mini")
    lean, tall = flat_of(prompted.lean_config(p)), flat_of(prompted.pyramid_config(p))
    same = {k for k in lean if not k.startswith(("losses.", "size"))}
    assert {k: lean[k] for k in same} == {k: tall[k] for k in same}
    assert lean["sources.reconstructed"] == 1 and lean["prompts.patterns"] == "uniform"
    radar = flat_of(prompted.radar_config(p))
    assert radar["prompts.patterns"] == "radar_returns" and radar["train.steps"] == p.radar_steps


def flat_of(config: Any) -> dict[str, Any]:
    return flat(prompted.to_plain(config))


def test_scores_are_measured_once_and_depend_on_the_test(job: Callable[..., ArmRun]) -> None:
    calls = []

    def spread(case: Any) -> Any:
        calls.append(case.family)
        return constant(case)

    p = prompted.PRESETS["smoke"]
    scores = Scores(p.test(), ("20",))
    first = scores.of(job(), "toy", spread, "20")
    assert len(calls) == len(first) > 2
    again = Scores(p.test(), ("20", "every_8")).of(job(), "toy", spread, "20")
    assert again == first and len(calls) == len(first)
    Scores(p.test(seed=1), ("20",)).of(job(), "toy", spread, "20")
    assert len(calls) == 2 * len(first)


def test_numbers_are_means_over_patterns_and_families(job: Callable[..., ArmRun]) -> None:
    class Fixed(Scores):
        def of(self, run: ArmRun, key: str, spread: Any, pattern: str) -> list[Measured]:
            a, b = {"one": (0.1, 0.3), "two": (0.2, 0.1)}[key]
            shift = 0.1 if pattern == "y" else 0.0
            rows = [("room", a + shift), ("room", a + shift), ("outdoor", b + shift)]
            return [Measured(family, value, (), (), 1 - value, 9) for family, value in rows]

    scores = Fixed(preset("smoke").test(), ("x", "y"))
    one, two = (lambda run: ("one", constant)), (lambda run: ("two", constant))
    found = scores.numbers(job(), one)
    assert found == pytest.approx({"x": 20, "y": 30, "mean": 600**0.5, "held_out": 1200**0.5, "f1": 0.75})
    best = scores.best(job(), [one, two])
    assert best == pytest.approx({"x": 15, "y": 25, "mean": 375**0.5, "held_out": 200**0.5, "f1": 0.8})


def test_patterns_and_density(job: Callable[..., ArmRun]) -> None:
    found = run("teacher_patterns", ("uniform", "aligned", "linear", BEST, "constant"), job)
    assert found[BEST]["every_8"] <= found["linear"]["every_8"] < found["constant"]["every_8"]
    assert len({n["mean"] for n in found.values()}) == 5
    density = run("teacher_density", ("network", "linear"), job)["linear"]
    assert density["uniform-512"] < density["uniform-32"] < density["uniform-8"]


def test_scaling_and_its_trend(job: Callable[..., ArmRun], monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("teacher_scaling", ("data_5", "data_100"), job)
    assert found["data_5"]["mean"] != found["data_100"]["mean"]
    run("teacher_scaling_trend", ("each", "seeds"), job)

    def falling(self: Scores, job: ArmRun, entrant: Any) -> dict[str, float]:
        order.append(1)
        n = (len(order) - 1) % 6
        return {"every_8": 10.0 - n, "mean": [6.0, 5.0, 4.0, 3.0, 1.0, 1.5][n], "held_out": n}

    order: list[int] = []
    monkeypatch.setattr(Scores, "numbers", falling)
    trend = arms("teacher_scaling_trend", "mini")["each"].run(job())
    assert trend["every_8"] == pytest.approx(-1) and trend["held_out"] == pytest.approx(1)
    assert trend["mean"] == pytest.approx(-(1 - 6 * 2 / 210))  # one swap of neighbours
    assert trend["gain"] == pytest.approx(75)


def test_injections_and_sizes(job: Callable[..., ArmRun]) -> None:
    found = run("teacher_injections", ("dpt", "none", "linear"), job)
    assert found["dpt"]["parameters"] == found["none"]["parameters"] > 1e5 and found["dpt"]["seconds"] > 0
    assert math.isnan(found["linear"]["seconds"]) and found["dpt"]["mean"] != found["none"]["mean"]
    sizes = run("teacher_sizes", ("main", "pyramid"), job)
    assert sizes["pyramid"]["parameters"] == found["dpt"]["parameters"] != sizes["main"]["parameters"]
    assert sizes["pyramid"]["mean"] == found["dpt"]["mean"]  # the same network, trained once


def test_radar(job: Callable[..., ArmRun]) -> None:
    found = run("teacher_radar", ("finetuned", "scratch", "pretrained", "linear", "constant"), job)
    assert len({n["mae_80"] for n in found.values()}) == 5
    saved = run("teacher_radar_saved", ("saved",), job)["saved"]
    assert saved["mae_50"] == pytest.approx(
        100 * (1 - found["finetuned"]["mae_50"] / found["scratch"]["mae_50"])
    )


def test_resolution(job: Callable[..., ArmRun]) -> None:
    found = run("teacher_resolution", ("1x", "9x", "linear", "constant"), job)
    assert found["9x"]["f1"] != found["1x"]["f1"] and found["constant"]["f1"] == 0
    assert found["linear"]["mean"] < found["constant"]["mean"]
