"""What happens around the steps of a run: its folder, its workers, signals, evaluations that fail, starting anew."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.corpora.toy_task import ToyTask, toy_model

from relief3d.core.errors import InputError, RunError
from relief3d.train import around
from relief3d.train import checkpoint as saving
from relief3d.train.checkpoint import find_checkpoint, load_checkpoint, tensors_digest
from relief3d.train.config import CheckpointConfig, GuardConfig, LogConfig, TrainConfig
from relief3d.train.engine import SingleEngine
from relief3d.train.guard import HeldBuffers
from relief3d.train.loop import fit
from relief3d.train.task import LossReport, StepInfo

CONFIG = TrainConfig(
    steps=6,
    checkpoint=CheckpointConfig(every=2),
    log=LogConfig(every=1, evaluate=2, panels=2, utilisation=False),
)


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def end(folder: Path) -> dict[str, str]:
    found = find_checkpoint(folder)
    assert found is not None and found.name == "step_00000006"
    return {name: tensors_digest(tensors) for name, tensors in load_checkpoint(found).tensors.items()}


# ---- the folder ---------------------------------------------------------------------------------------------------


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(around, "PATIENCE", 0.0)
    said: list[str] = []

    class Meanwhile(ToyTask):
        def batch(self, position: int, part: int = 0, parts: int = 1) -> dict[str, Any]:
            if position == 3:
                with pytest.raises(InputError, match="another relief3d run"):
                    fit(ToyTask(), CONFIG, tmp_path, device="cpu")
                said.append("refused")
            return super().batch(position, part, parts)

    fit(Meanwhile(), CONFIG, tmp_path, device="cpu")
    assert said == ["refused"]
    assert [line["step"] for line in lines(tmp_path, "train")] == [1, 2, 3, 4, 5, 6]
    fit(ToyTask(), CONFIG, tmp_path, device="cpu")  # the lock is free again


def test_what_killed_runs_left_is_removed_at_the_start(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "checkpoints", tmp_path / "panels"):
        (place / ".relief3d-0123.new").mkdir(parents=True)
        (place / ".relief3d-4567.jsonl").write_text("x")
    with pytest.raises(ZeroDivisionError):  # before anything is saved
        fit(ToyTask(spoil=lambda info, report: 1 // 0), CONFIG, tmp_path, device="cpu")
    assert list(tmp_path.rglob(".relief3d-*")) == []


def test_a_replacement_that_was_killed_halfway_is_undone(tmp_path: Path) -> None:
    config = replace(CONFIG, checkpoint=CheckpointConfig(every=2, keep_last=1))
    fit(ToyTask(), config, tmp_path / "a", device="cpu", stop_at=4)
    held = tmp_path / "a" / "checkpoints"
    (held / "step_00000004").rename(held / ".relief3d-0123.old")
    result = fit(ToyTask(), config, tmp_path / "a", device="cpu", stop_at=4)
    assert result.step == 4 and len(lines(tmp_path / "a", "train")) == 4
    assert sorted(p.name for p in held.iterdir()) == ["latest", "step_00000004"]
    saving.bring_back(tmp_path / "a")  # nothing to do
    assert sorted(p.name for p in held.iterdir()) == ["latest", "step_00000004"]


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(InputError, match="run"):
        fit(ToyTask(), CONFIG, tmp_path / "run", device="cpu")


def test_weights_of_a_task_without_a_seed_of_its_own_are_repeatable(tmp_path: Path) -> None:
    ends = []
    for name in ("a", "b"):
        torch.rand(3)
        task = ToyTask(network=lambda: torch.nn.Linear(8, 4))
        fit(task, CONFIG, tmp_path / name, device="cpu")
        ends.append(end(tmp_path / name))
    assert ends[0] == ends[1]


# ---- evaluations and pictures that fail ---------------------------------------------------------------------------


class Failing(ToyTask):
    """Evaluation or pictures fail at one step, as long as they are asked to."""

    place, at = "", 0

    def evaluate(self, model: Any, step: int) -> Any:
        if (self.place, self.at) == ("evaluate", step):
            raise ValueError("no held-out data")
        return super().evaluate(model, step)

    def panels(self, model: Any, step: int) -> Any:
        if (self.place, self.at) == ("panels", step):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().panels(model, step)


@pytest.mark.parametrize("place", ["evaluate", "panels"])
@pytest.mark.parametrize("at", [2, 6])
def test_an_evaluation_that_fails_loses_no_training(tmp_path: Path, place: str, at: int) -> None:
    config = replace(CONFIG, checkpoint=CheckpointConfig(every=100, best="mse"))
    whole = fit(ToyTask(), config, tmp_path / "whole", device="cpu")
    task = Failing()
    task.place, task.at = place, at
    with pytest.raises(ValueError if place == "evaluate" else RunError):
        fit(task, config, tmp_path / "parts", device="cpu")
    found = find_checkpoint(tmp_path / "parts")
    assert found is not None and load_checkpoint(found).step == at
    task.at = 0
    parts = fit(task, config, tmp_path / "parts", device="cpu")
    assert end(tmp_path / "whole") == end(tmp_path / "parts")
    assert (whole.numbers, whole.best) == (parts.numbers, parts.best)
    for name in ("whole", "parts"):
        assert [line["step"] for line in lines(tmp_path / name, "evaluation")] == [2, 4, 6]
        assert len(list((tmp_path / name / "panels").iterdir())) == 3
    best = tmp_path / "parts" / "checkpoints" / f"step_{parts.best[0]:08d}"  # type: ignore[index]
    assert load_checkpoint(best).state["counters"]["best"][0] == parts.best[0]  # type: ignore[index]
    states = [load_checkpoint(tmp_path / n / "checkpoints/step_00000006").state for n in ("whole", "parts")]
    assert states[0]["counters"] == states[1]["counters"]


def test_the_best_without_numbers_is_an_error(tmp_path: Path) -> None:
    class Silent(ToyTask):
        def evaluate(self, model: Any, step: int) -> dict[str, float]:
            return {}

    with pytest.raises(InputError, match=r"no evaluation number 'mse'.*leave it empty"):
        fit(Silent(), replace(CONFIG, checkpoint=CheckpointConfig(best="mse")), tmp_path, device="cpu")


def test_of_equal_values_the_first_is_the_best(tmp_path: Path) -> None:
    class Flat(ToyTask):
        def evaluate(self, model: Any, step: int) -> dict[str, float]:
            return {"score": float("inf") if step == 2 else 1.0}

    for higher in (False, True):
        config = replace(
            CONFIG, checkpoint=CheckpointConfig(every=1, keep_last=1, best="score", higher=higher)
        )
        result = fit(Flat(), config, tmp_path / str(higher), device="cpu")
        assert result.best == (4, 1.0)
        kept = sorted(p.name for p in (tmp_path / str(higher) / "checkpoints").glob("step_*"))
        assert kept == ["step_00000004", "step_00000006"]


# ---- signals, threads, workers ------------------------------------------------------------------------------------


def test_ctrl_c_in_the_last_evaluation_is_not_lost(tmp_path: Path) -> None:
    class Asked(ToyTask):
        def evaluate(self, model: Any, step: int) -> Any:
            if step == 6:
                os.kill(os.getpid(), signal.SIGINT)
            return super().evaluate(model, step)

    with pytest.raises(KeyboardInterrupt):
        fit(Asked(), CONFIG, tmp_path, device="cpu")
    assert end(tmp_path) and fit(ToyTask(), CONFIG, tmp_path, device="cpu").finished


def test_a_run_in_another_thread(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    ended: list[int] = []
    thread = threading.Thread(
        target=lambda: ended.append(fit(ToyTask(), CONFIG, tmp_path, device="cpu").step)
    )
    thread.start()
    thread.join()
    assert ended == [6] and signal.getsignal(signal.SIGINT) == before


class _Group(ToyTask):
    """SIGTERM for the whole group of processes in step 4, as schedulers send it."""

    def loss(self, model: Any, batch: Any, info: StepInfo, teacher: Any) -> LossReport:
        if info.step == 3:
            os.killpg(0, signal.SIGTERM)
            time.sleep(0.2)
        return super().loss(model, batch, info, teacher)


def _in_own_group(folder: Path) -> None:
    os.setpgid(0, 0)
    try:
        fit(_Group(), replace(CONFIG, workers=2, steps=50), folder, device="cpu")
    except KeyboardInterrupt:
        os._exit(77)


def test_sigterm_to_the_group_of_processes_is_a_polite_stop_too(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=_in_own_group, args=(tmp_path,))
    child.start()
    child.join()
    found = find_checkpoint(tmp_path)
    assert child.exitcode == 77 and found is not None and load_checkpoint(found).step == 4


def test_a_worker_that_died_is_one_sentence(tmp_path: Path) -> None:
    class Dying(ToyTask):
        def batch(self, position: int, part: int = 0, parts: int = 1) -> dict[str, Any]:
            if position == 3 and torch.utils.data.get_worker_info() is not None:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().batch(position, part, parts)

    with pytest.raises(RunError, match=r"process that prepares batches died.*fewer workers"):
        fit(Dying(), replace(CONFIG, workers=1), tmp_path, device="cpu")


def test_memory_that_runs_out_in_the_update_is_one_sentence(tmp_path: Path) -> None:
    class Full(SingleEngine):
        def update(self, optimiser: torch.optim.Optimizer, good: bool) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(RunError, match=r"out of memory outside of the losses.*2 GiB"):
        fit(ToyTask(), CONFIG, tmp_path, engine=Full(torch.device("cpu"), None))


# ---- steps that are left out --------------------------------------------------------------------------------------


def test_running_statistics_of_a_skipped_step_are_put_back(tmp_path: Path) -> None:
    def spoil(position: int, batch: dict[str, Any]) -> None:
        if position == 3:
            batch["x"][5] = float("nan")

    config = replace(CONFIG, checkpoint=CheckpointConfig(every=1, keep_last=9))
    result = fit(ToyTask(hook=spoil), config, tmp_path, device="cpu")
    assert result.skipped == 1
    before, after = (
        load_checkpoint(tmp_path / f"checkpoints/step_0000000{i}").tensors["model"] for i in (3, 4)
    )
    assert "encoder.1.running_mean" in before
    assert tensors_digest(before) == tensors_digest(after)


def test_statistics_of_a_pass_that_ran_out_of_memory_are_put_back(tmp_path: Path) -> None:
    class Crowded(ToyTask):
        def loss(self, model: Any, batch: Any, info: StepInfo, teacher: Any) -> LossReport:
            report = super().loss(model, batch, info, teacher)
            if len(batch["names"]) > 4:
                raise torch.OutOfMemoryError("out of memory")
            return report

    fit(Crowded(), CONFIG, tmp_path, device="cpu", stop_at=1)
    saved = load_checkpoint(tmp_path / "checkpoints" / "step_00000001")
    assert int(saved.tensors["model"]["encoder.1.num_batches_tracked"]) == 2


def test_held_buffers_come_back() -> None:
    model = toy_model()
    held = HeldBuffers(model)
    before = tensors_digest(model.state_dict())
    held.keep()
    model(torch.randn(8, 8))
    assert tensors_digest(model.state_dict()) != before
    held.back()
    assert tensors_digest(model.state_dict()) == before


class Quiet(ToyTask):
    """A task that gives no loss per sample."""

    def loss(self, model: Any, batch: Any, info: StepInfo, teacher: Any) -> LossReport:
        report = super().loss(model, batch, info, teacher)
        return LossReport(report.total, report.parts)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("action", ["skip", "stop"])
def test_samples_are_found_where_the_task_does_not_say(tmp_path: Path, norm: bool, action: Any) -> None:
    def spoil(position: int, batch: dict[str, Any]) -> None:
        if position == 3:
            batch["y"][[2, 5]] = float("nan")

    task, config = Quiet(hook=spoil, norm=norm), replace(CONFIG, guard=GuardConfig(action))
    if action == "stop":
        with pytest.raises(RunError, match=r"samples 3:2, 3:5\).*guard.action = skip"):
            fit(task, config, tmp_path, device="cpu")
    else:
        fit(task, config, tmp_path, device="cpu")
    (event,) = lines(tmp_path, "not_finite")
    assert (event["where"], event["samples"]) == ("loss", ["3:2", "3:5"])


def test_what_the_guard_advises_works(tmp_path: Path) -> None:
    """Resuming after ``stop`` with ``skip`` goes on; no remedy names a change that the folder refuses."""

    def spoil(position: int, batch: dict[str, Any]) -> None:
        if position == 3:
            batch["y"][0] = float("nan")

    config = replace(CONFIG, guard=GuardConfig("stop"))
    with pytest.raises(RunError, match="not finite at step 4") as caught:
        fit(ToyTask(hook=spoil), config, tmp_path, device="cpu")
    assert "learning rate" not in str(caught.value)
    result = fit(ToyTask(hook=spoil), replace(config, guard=GuardConfig("skip")), tmp_path, device="cpu")
    assert result.finished and result.skipped == 1


def test_the_end_is_evaluated_drawn_and_logged_whatever_the_intervals(tmp_path: Path) -> None:
    log = LogConfig(every=2, evaluate=2, panels=2, utilisation=False)
    fit(ToyTask(), replace(CONFIG, steps=3, log=log), tmp_path, device="cpu")
    assert [line["step"] for line in lines(tmp_path, "train")] == [2, 3]
    assert [line["step"] for line in lines(tmp_path, "evaluation")] == [2, 3]
    assert sorted(p.name[:8] for p in (tmp_path / "panels").iterdir()) == ["00000002", "00000003"]
