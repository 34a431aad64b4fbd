"""What goes wrong in a run is noticed, named and survived: values that are not finite, and too little memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.corpora.toy_task import ToyTask

from relief3d.core.device import resolve_device
from relief3d.core.errors import RunError
from relief3d.train import run_state
from relief3d.train.checkpoint import find_checkpoint, load_checkpoint, tensors_digest
from relief3d.train.config import CheckpointConfig, EmaConfig, GuardConfig, LogConfig, TrainConfig
from relief3d.train.engine import SingleEngine
from relief3d.train.loop import fit
from relief3d.train.task import LossReport, StepInfo

CONFIG = TrainConfig(
    steps=8,
    ema=EmaConfig(0.9),
    checkpoint=CheckpointConfig(every=2),
    log=LogConfig(every=1, utilisation=False),
)
NAN = float("nan")


def plain_task(**options: Any) -> ToyTask:
    return ToyTask(dropout=0.0, norm=False, **options)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def spoil_data(position: int, batch: dict[str, Any]) -> None:
    if position == 4:
        batch["x"][3] = NAN


def spoil_loss(info: StepInfo, report: LossReport) -> LossReport:
    if info.step != 4:
        return report
    each = report.per_sample
    assert each is not None
    factor = torch.ones_like(each)
    factor[6] = float("inf")
    return LossReport((each * factor).mean(), report.parts, each * factor)


class _Poison(torch.autograd.Function):
    """Identity whose gradient is not finite."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * NAN


def spoil_gradient(info: StepInfo, report: LossReport) -> LossReport:
    return LossReport(_Poison.apply(report.total), report.parts) if info.step == 4 else report


@pytest.mark.parametrize(
    ("options", "where", "named"),
    [
        ({"hook": spoil_data}, "loss", ["4:3"]),
        ({"spoil": spoil_loss}, "loss", ["4:6"]),
        ({"spoil": spoil_gradient}, "gradient", [f"4:{i}" for i in range(8)]),
    ],
)
def test_a_bad_step_is_left_out_and_its_samples_named(
    tmp_path: Path, options: dict[str, Any], where: str, named: list[str]
) -> None:
    result = fit(plain_task(**options), CONFIG, tmp_path / "run", device="cpu")
    assert result.skipped == 1 and result.step == 8
    (event,) = events(tmp_path / "run", "not_finite")
    assert (event["step"], event["where"], event["samples"]) == (5, where, named)
    stop = replace(CONFIG, guard=GuardConfig("stop"))
    with pytest.raises(RunError, match=f"{where} is not finite at step 5 .*{named[0]}"):
        fit(plain_task(**options), stop, tmp_path / "stop", device="cpu")
    found = find_checkpoint(tmp_path / "stop")
    assert found is not None and load_checkpoint(found).step == 4


def test_a_skipped_step_changes_nothing(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=5, checkpoint=CheckpointConfig(every=1, keep_last=9))
    fit(plain_task(hook=spoil_data), config, tmp_path, device="cpu")
    before, after = (load_checkpoint(tmp_path / "checkpoints" / f"step_0000000{i}") for i in (4, 5))
    for name in ("model", "ema", "optimiser"):
        assert tensors_digest(before.tensors[name]) == tensors_digest(after.tensors[name])
    assert after.state["ema_updates"] == 4 and after.state["counters"]["skipped"] == 1


def test_spoilt_optimiser_state_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    fit(plain_task(), CONFIG, tmp_path, device="cpu", stop_at=4)
    good = find_checkpoint(tmp_path)

    class Spoiling(SingleEngine):
        def update(self, optimiser: torch.optim.Optimizer, good: bool) -> None:
            for state in optimiser.state.values():
                state["exp_avg"].fill_(NAN)
            super().update(optimiser, good)

    for name, every in (("saving", 1), ("next step", 50)):
        config = replace(CONFIG, checkpoint=CheckpointConfig(every=every))
        with pytest.raises(RunError, match=r"optimiser's state .* not finite") as caught:
            fit(plain_task(), config, tmp_path, engine=Spoiling(resolve_device("cpu"), None))
        assert "resuming goes on from it" in str(caught.value), name
        assert find_checkpoint(tmp_path) == good
    assert events(tmp_path, "not_finite")[-1]["step"] == 6


def test_patience_ends_a_run_that_never_recovers(tmp_path: Path) -> None:
    def all_bad(position: int, batch: dict[str, Any]) -> None:
        if position >= 2:
            batch["y"][0] = NAN

    config = replace(CONFIG, guard=GuardConfig(patience=3))
    with pytest.raises(RunError, match="3 in a row"):
        fit(plain_task(hook=all_bad), config, tmp_path, device="cpu")
    assert [e["step"] for e in events(tmp_path, "not_finite")] == [3, 4, 5]
    found = find_checkpoint(tmp_path)
    assert (
        found is not None and torch.isfinite(load_checkpoint(found).tensors["model"]["head.0.weight"]).all()
    )


def _bad_at(*positions: int) -> Callable[[int, dict[str, Any]], None]:
    def spoil(position: int, batch: dict[str, Any]) -> None:
        if position in positions:
            batch["y"][0] = NAN

    return spoil


def test_patience_counts_steps_in_a_row_across_resuming(tmp_path: Path) -> None:
    config = replace(CONFIG, guard=GuardConfig(patience=2))
    assert fit(plain_task(hook=_bad_at(2, 4, 6)), config, tmp_path / "a", device="cpu").skipped == 3
    config = replace(CONFIG, guard=GuardConfig(patience=3))
    task = plain_task(hook=_bad_at(2, 3, 4))
    assert fit(task, config, tmp_path / "b", device="cpu", stop_at=4).skipped == 2
    with pytest.raises(RunError, match=r"step 5 .3 in a row"):
        fit(task, config, tmp_path / "b", device="cpu")


def test_steps_that_are_left_out_do_not_count_for_the_average(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=6, ema=EmaConfig(0.9, every=2))
    task = plain_task(hook=_bad_at(2))
    fit(task, config, tmp_path / "whole", device="cpu")
    fit(task, config, tmp_path / "parts", device="cpu", stop_at=4)
    fit(task, config, tmp_path / "parts", device="cpu")
    for name in ("whole", "parts"):  # after steps 2 and 5, the second and fourth good ones
        saved = load_checkpoint(tmp_path / name / "checkpoints" / "step_00000006")
        assert saved.state["ema_updates"] == 2
    averages = [
        load_checkpoint(tmp_path / n / "checkpoints/step_00000006").tensors["ema"] for n in ("whole", "parts")
    ]
    assert tensors_digest(averages[0]) == tensors_digest(averages[1])


def test_overflow_lowers_the_loss_scale_and_the_run_goes_on(tmp_path: Path) -> None:
    engine = SingleEngine(resolve_device("cpu"), torch.float16)
    engine.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)  # which these gradients bear
    config = replace(CONFIG, ema=None, guard=GuardConfig("stop"))
    result = fit(plain_task(spoil=spoil_gradient), config, tmp_path, engine=engine)
    assert result.skipped == 1 and engine.scaler.get_scale() == 128.0
    (event,) = events(tmp_path, "not_finite")
    assert event["where"] == "gradient"


def test_lines_after_a_skipped_step_are_not_doubled_by_resuming(tmp_path: Path) -> None:
    fit(plain_task(hook=spoil_data), CONFIG, tmp_path, device="cpu", stop_at=4)
    with pytest.raises(ZeroDivisionError):
        fit(plain_task(hook=spoil_data, spoil=_crash_at(5)), CONFIG, tmp_path, device="cpu")
    fit(plain_task(hook=spoil_data), CONFIG, tmp_path, device="cpu")
    assert len(events(tmp_path, "not_finite")) == 1
    assert [e["step"] for e in events(tmp_path, "train")] == list(range(1, 9))


def _crash_at(step: int) -> Callable[[StepInfo, LossReport], LossReport]:
    def spoil(info: StepInfo, report: LossReport) -> LossReport:
        return LossReport(report.total * (1 // (info.step - step)), {}) if info.step == step else report

    return spoil


# ---- memory -------------------------------------------------------------------------------------------------------


class Crowded(ToyTask):
    """A task that runs out of memory at one place while its batches have more than two samples."""

    place = ""

    def _full(self, place: str, count: int) -> None:
        if place == self.place and count > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def to(self, batch: Any, device: torch.device) -> Any:
        self._full("to device", len(batch["names"]))
        return super().to(batch, device)

    def loss(self, model: Any, batch: Any, info: StepInfo, teacher: Any) -> LossReport:
        count = len(batch["names"])
        if self.place == "second micro-batch" and batch["names"][0].startswith("1:"):
            self.place = "loss"
        handle = model.head[0].register_forward_hook(lambda *_: self._full("forward", count))
        try:
            report = super().loss(model, batch, info, teacher)
        finally:
            handle.remove()
        self._full("loss", count)
        if self.place == "backward" and report.total.requires_grad:
            report.total.register_hook(lambda _: self._full("backward", count))
        return report


@pytest.mark.parametrize("place", ["to device", "forward", "loss", "backward", "second micro-batch"])
def test_smaller_parts_after_the_memory_ran_out_give_the_same(tmp_path: Path, place: str) -> None:
    config = replace(CONFIG, accumulate=2, steps=4)
    plain = fit(plain_task(), config, tmp_path / "plain", device="cpu")
    said: list[str] = []

    class Hearing:
        def start(self, stage: str, total: int | None = None) -> None: ...
        def advance(self, steps: int = 1, note: str = "") -> None: ...
        def finish(self, note: str = "") -> None: ...
        def message(self, text: str) -> None:
            said.append(text)

    task = Crowded(dropout=0.0, norm=False)
    task.place = place
    small = fit(task, config, tmp_path / "small", device="cpu", progress=Hearing())
    for (name, a), b in zip(plain.model.state_dict().items(), small.model.state_dict().values()):
        assert torch.allclose(a, b, atol=1e-5, rtol=0), name
    assert [e["parts"] for e in events(tmp_path / "small", "out_of_memory")] == [2, 4]
    assert "2 GiB" in events(tmp_path / "small", "out_of_memory")[0]["reason"]
    assert sum("out of memory at step 1" in text and "parts" in text for text in said) == 2
    assert all(p.dtype is torch.float32 for p in small.model.parameters())


def test_single_samples_that_do_not_fit_end_the_run(tmp_path: Path) -> None:
    def never(info: StepInfo, report: LossReport) -> LossReport:
        raise MemoryError

    with pytest.raises(RunError, match="out of memory at step 1, even with single samples"):
        fit(plain_task(spoil=never), CONFIG, tmp_path, device="cpu")
    assert [e["parts"] for e in events(tmp_path, "out_of_memory")] == [2, 4, 8]


def test_other_errors_are_no_memory_errors(tmp_path: Path) -> None:
    def wrong(info: StepInfo, report: LossReport) -> LossReport:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        fit(plain_task(spoil=wrong), CONFIG, tmp_path, device="cpu")


def test_first_not_finite_looks_at_everything() -> None:
    good, bad = torch.ones(2), torch.tensor([1.0, NAN])
    assert run_state.first_not_finite({"model": {"a": good}, "optimiser": {"b": good}}) is None
    for kind, word in (("model", "weights"), ("optimiser", "optimiser's state"), ("ema", "average")):
        found = run_state.first_not_finite({"model": {"a": good}, kind: {"x": bad}})
        assert found is not None and word in found and "'x'" in found
