"""An interrupted run ends with the bits of an uninterrupted one."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.corpora.toy_task import ToyTask

from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError
from relief3d.train.checkpoint import find_checkpoint, load_checkpoint, tensors_digest
from relief3d.train.config import (
    CheckpointConfig,
    EmaConfig,
    GroupConfig,
    LogConfig,
    OptimiserConfig,
    ScheduleConfig,
    TrainConfig,
)
from relief3d.train.engine import SingleEngine
from relief3d.train.loop import TrainResult, fit
from relief3d.train.run_log import LOG_FILE

BASE = TrainConfig(
    steps=12,
    accumulate=2,
    ema=EmaConfig(0.9, ramp=4),
    optimiser=OptimiserConfig(lr=1e-2),
    checkpoint=CheckpointConfig(every=4, keep_last=2, best="mse"),
    log=LogConfig(every=3, evaluate=3, utilisation=False),
)
CASES = {
    "plain": replace(BASE, accumulate=1, ema=None),
    "accumulation and ramp": BASE,
    "frozen group": replace(
        BASE, optimiser=OptimiserConfig(lr=1e-2, groups=(GroupConfig("encoder.*", frozen=True),))
    ),
    "average every 3, cosine decay": replace(BASE, ema=EmaConfig(0.9, final=1.0, every=3)),
    "average copies first": replace(BASE, ema=EmaConfig(0.9, copy_first=True)),
}


def digests(folder: Path) -> dict[str, str]:
    found = find_checkpoint(folder)
    assert found is not None
    return {name: tensors_digest(tensors) for name, tensors in load_checkpoint(found).tensors.items()}


def lines(folder: Path) -> list[dict[str, Any]]:
    timed = {"samples_per_second", "seconds_per_step", "seconds_left", "peak_bytes"}
    text = (folder / LOG_FILE).read_text()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in text.splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, TrainResult]]:
    """A case's run in one piece, made once."""

    @functools.cache
    def make(case: str) -> tuple[Path, TrainResult]:
        folder = tmp_path_factory.mktemp("whole")
        return folder, fit(ToyTask(), CASES[case], folder, device="cpu")

    return make


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stops", [(1,), (4, 5), (7,), (11,)])
def test_pieces_end_with_the_bits_of_the_whole(
    tmp_path: Path,
    case: str,
    stops: tuple[int, ...],
    uninterrupted: Callable[[str], tuple[Path, TrainResult]],
) -> None:
    config = CASES[case]
    folder, whole = uninterrupted(case)
    for stop in stops:
        part = fit(ToyTask(), config, tmp_path / "parts", device="cpu", stop_at=stop)
        assert part.step == stop and not part.finished
        torch.manual_seed(stop)  # whatever other code draws in between
    parts = fit(ToyTask(), config, tmp_path / "parts", device="cpu")
    assert digests(folder) == digests(tmp_path / "parts")
    assert (whole.numbers, whole.best, whole.skipped) == (parts.numbers, parts.best, parts.skipped)
    assert lines(folder) == lines(tmp_path / "parts")


def test_a_run_depends_on_its_seed(tmp_path: Path) -> None:
    fit(ToyTask(), BASE, tmp_path / "a", device="cpu")
    fit(ToyTask(), replace(BASE, seed=1), tmp_path / "b", device="cpu")
    assert digests(tmp_path / "a")["model"] != digests(tmp_path / "b")["model"]


def test_workers_do_not_change_the_bits(tmp_path: Path) -> None:
    config = replace(BASE, steps=5)
    fit(ToyTask(), config, tmp_path / "none", device="cpu")
    fit(ToyTask(), replace(config, workers=2), tmp_path / "two", device="cpu", stop_at=2)
    fit(ToyTask(), replace(config, workers=1), tmp_path / "two", device="cpu")
    assert digests(tmp_path / "none") == digests(tmp_path / "two")


def test_smaller_parts_are_remembered(tmp_path: Path) -> None:
    def crowded(position: int, batch: dict[str, Any]) -> None:
        del position, batch

    class Small(ToyTask):
        def loss(self, model: Any, batch: Any, info: Any, teacher: Any) -> Any:
            if len(batch["names"]) > 4:
                raise torch.OutOfMemoryError("out of memory")
            return super().loss(model, batch, info, teacher)

    config = replace(BASE, steps=6)
    fit(Small(hook=crowded), config, tmp_path / "whole", device="cpu")
    fit(Small(), config, tmp_path / "parts", device="cpu", stop_at=2)
    fit(Small(), config, tmp_path / "parts", device="cpu")
    assert digests(tmp_path / "whole") == digests(tmp_path / "parts")
    events = [line for line in lines(tmp_path / "parts") if line["kind"] == "out_of_memory"]
    assert [e["parts"] for e in events] == [2]


def test_loss_scale_is_restored(tmp_path: Path) -> None:
    def engine() -> SingleEngine:
        made = SingleEngine(resolve_device("cpu"), torch.float16)
        made.scaler.set_growth_interval(2)
        return made

    config = replace(BASE, ema=None, accumulate=1, steps=6)
    task = ToyTask(dropout=0.0, norm=False)
    fit(task, config, tmp_path / "whole", engine=engine())
    fit(task, config, tmp_path / "parts", engine=engine(), stop_at=3)
    last = engine()
    fit(task, config, tmp_path / "parts", engine=last)
    assert digests(tmp_path / "whole") == digests(tmp_path / "parts")
    scales = [
        load_checkpoint(tmp_path / p / "checkpoints" / "step_00000006").state["scaler"]["scale"]
        for p in ("whole", "parts")
    ]
    assert scales[0] == scales[1] == last.scaler.get_scale() != 65536.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 13}, "'train.steps' was 12 and is 13 now"),
        ({"seed": 5}, "'train.seed' was 0 and is 5 now"),
        ({"accumulate": 1}, "'train.accumulate'"),
        ({"ema": None}, "'train.ema"),
        (
            {"schedule": ScheduleConfig("constant")},
            "'train.schedule.kind' was 'cosine' and is 'constant' now",
        ),
        ({"precision": "bfloat16"}, "'train.precision' was 'auto' and is 'bfloat16' now"),
        ({"optimiser": OptimiserConfig(lr=2e-2)}, "'train.optimiser.lr' was 0.01 and is 0.02 now"),
        (
            {"optimiser": OptimiserConfig(lr=1e-2, groups=(GroupConfig("head.*"),))},
            "'train.optimiser.groups",
        ),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    fit(ToyTask(), BASE, tmp_path, device="cpu", stop_at=2)
    before = digests(tmp_path)
    with pytest.raises(InputError) as caught:
        fit(ToyTask(), replace(BASE, **change), tmp_path, device="cpu")
    assert said in str(caught.value) and "another folder" in str(caught.value)
    assert digests(tmp_path) == before


def test_other_data_or_task_is_refused(tmp_path: Path) -> None:
    fit(ToyTask(), BASE, tmp_path, device="cpu", stop_at=1, settings={"data": {"size": 8, "sets": ["a"]}})
    for task, settings, said in (
        (ToyTask(), {"data": {"size": 9, "sets": ["a"]}}, "'settings.data.size' was 8 and is 9 now"),
        (ToyTask(), {"data": {"size": 8, "sets": ["a"]}, "new": 1}, "'settings.new' was absent and is 1 now"),
        (ToyTask(name="other"), {"data": {"size": 8, "sets": ["a"]}}, "'task' was 'toy'"),
    ):
        with pytest.raises(InputError, match=said):
            fit(task, BASE, tmp_path, device="cpu", settings=settings)


def test_options_that_do_not_matter_may_change(tmp_path: Path) -> None:
    config = replace(BASE, steps=6)
    fit(ToyTask(), config, tmp_path / "a", device="cpu", stop_at=2)
    other = replace(config, log=LogConfig(every=1, evaluate=3), checkpoint=CheckpointConfig(every=1))
    fit(ToyTask(), other, tmp_path / "a", device="cpu")
    fit(ToyTask(), config, tmp_path / "b", device="cpu")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_another_network_of_the_same_name_is_refused(tmp_path: Path) -> None:
    fit(ToyTask(), BASE, tmp_path, device="cpu", stop_at=1)
    wider = ToyTask(network=lambda: torch.nn.Linear(8, 4))
    with pytest.raises(InputError, match="another network"):
        fit(wider, BASE, tmp_path, device="cpu")


def test_counters_go_on(tmp_path: Path) -> None:
    fit(ToyTask(), BASE, tmp_path, device="cpu", stop_at=5)
    fit(ToyTask(), BASE, tmp_path, device="cpu")
    saved = load_checkpoint(tmp_path / "checkpoints" / "step_00000012")
    assert saved.state["counters"]["samples"] == 12 * 2 * 8
    assert saved.state["ema_updates"] == 12
    assert [line["samples"] for line in lines(tmp_path) if line["kind"] == "train"] == [48, 96, 144, 192]
