"""Tables of the students at budget smoke: every arm runs, networks are shared, and the paper's columns exist."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from relief3d.core.progress import SilentProgress
from relief3d.eval.published.registry import load_tables
from relief3d.io.json_file import read_json_object
from relief3d.methods.metric_anything.students.labels import PictureLabel
from relief3d.pipelines.repro import run, student_tests
from relief3d.pipelines.repro.experiment import Experiment
from relief3d.pipelines.repro.experiments import metric_students as tables
from relief3d.pipelines.repro.students import TEACHER, depthmap_config, pointmap_config
from relief3d.train.recipe import Budget


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder of runs and pictures for all tables, as one command has."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("students")
        patch.setenv("RELIEF3D_CACHE", str(folder / "cache"))
        yield folder


def networks(place: Path) -> list[str]:
    found = place.glob("runs/metric_anything/smoke/shared/networks/*")
    return sorted(f.name for f in found if f.name.startswith("metric-student"))


AFTER = {"student_decoders": tables.LABEL_TABLE, "student_scaling_trend": tables.SCALING_TABLE}
"""Tables that read what another one has trained."""


def measured(experiment: Experiment, place: Path) -> dict[str, Any]:
    return run.run_experiment(
        experiment, "smoke", place, device="cpu", command=["test"], progress=SilentProgress()
    )


@pytest.mark.parametrize("experiment", tables.EXPERIMENTS, ids=lambda e: e.name)
def test_every_arm_runs(place: Path, experiment: Experiment) -> None:
    if experiment.name in AFTER:
        measured(AFTER[experiment.name], place)
    before = networks(place)
    found = measured(experiment, place)
    numbers = [n for arm in found["arms"].values() for n in arm["per_seed"].values()]
    if (
        experiment.name != "student_scaling_trend"
    ):  # after one step all shares may be alike, without any order
        assert all(any(v is not None and math.isfinite(v) for v in n.values()) for n in numbers)
    made = set(networks(place)) - set(before)
    if experiment.name in AFTER or experiment.name == "student_label_depths":
        assert not made


def test_all_of_the_data_is_an_arm_of_the_first_table() -> None:
    first, scaling = (e.plan("smoke").arms for e in (tables.LABEL_TABLE, tables.SCALING_TABLE))
    taught = next(arm for arm in first if arm.name == "inverse_teacher")
    assert next(arm for arm in scaling if arm.name == "data_100").parameters == taught.parameters


def test_labels_of_all_arms_come_from_one_teacher(place: Path) -> None:
    measured(tables.PERCENTILE_TABLE, place)
    shared = place / "runs" / "metric_anything" / "smoke" / "shared" / "networks"
    assert len(list(shared.glob("metric-teacher-*"))) == 1
    settled = read_json_object(
        place / "runs" / "metric_anything" / "smoke" / "student_label_depths" / "parameters.json"
    )
    arm = settled["parameters"]["arms"]["teacher"]
    assert arm["labels"]["teacher"] == TEACHER and arm["teacher"]["train"]["steps"] >= 1


def test_pictures_without_any_label_count_as_no_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pictures:
        def __init__(self, *where: Any) -> None: ...

        def picture(self, index: int) -> Any:
            return SimpleNamespace(depth=torch.full((1, 8, 8), 2.0))

    class Labels(Pictures):
        def source(self, index: int) -> str:
            return "captured"

        def label(self, index: int, picture: Any) -> PictureLabel:
            return PictureLabel(picture.depth[0] * (index % 2), "captured")

    monkeypatch.setattr(student_tests, "PictureSource", Pictures)
    monkeypatch.setattr(student_tests, "LabelSource", Labels)
    monkeypatch.setattr(student_tests, "chosen_pictures", lambda *rest: [0, 1])
    nowhere: Any = None
    found = student_tests.label_numbers("smoke", 2, depthmap_config("smoke", "raw"), nowhere)
    assert found["coverage"] == 50 and found["abs_rel"] == 0


@pytest.mark.parametrize("budget", ["smoke", "mini"])
def test_arms_differ_only_in_what_they_compare(budget: Budget) -> None:
    raw, taught = (depthmap_config(budget, kind) for kind in ("raw", "teacher"))
    assert raw.labels.severity == taught.labels.severity and raw.labels.rendered == taught.labels.rendered
    assert raw.train == taught.train and raw.pictures == taught.pictures and raw.hold_out == ("outdoor",)
    assert not {f for rule in raw.pictures for f in rule.families} & set(raw.hold_out)
    assert {r.seed for r in raw.pictures}.isdisjoint({r.seed for r in raw.evaluation.pictures})
    assert pointmap_config(budget).pictures == raw.pictures


def test_published_columns_exist() -> None:
    known = load_tables()
    for experiment in tables.EXPERIMENTS:
        own = {column.key for column in experiment.columns}
        for key, mapping in experiment.published.items():
            assert set(mapping) <= own and set(mapping.values()) <= set(known[key].columns)
