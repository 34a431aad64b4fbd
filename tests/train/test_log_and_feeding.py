"""What a run says, and how batches reach it."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.corpora.toy_task import ToyTask

from relief3d.core.errors import InputError, RunError
from relief3d.core.optional import available
from relief3d.core.progress import ConsoleProgress
from relief3d.io.images import read_image
from relief3d.train import feeding
from relief3d.train.checkpoint import load_checkpoint
from relief3d.train.config import CheckpointConfig, LogConfig, TrainConfig
from relief3d.train.feeding import feed
from relief3d.train.interrupt import stop_wishes
from relief3d.train.loop import fit
from relief3d.train.run_log import RunLog
from relief3d.train.throughput import count_flops, measure_peak


class Hearing:
    """A console that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, stage: str, total: int | None = None) -> None: ...
    def finish(self, note: str = "") -> None: ...
    def message(self, text: str) -> None: ...
    def advance(self, steps: int = 1, note: str = "") -> None:
        self.notes.append(note)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_line_has_losses_speed_memory_and_time_left(tmp_path: Path) -> None:
    console = Hearing()
    config = TrainConfig(steps=6, log=LogConfig(every=2, evaluate=3, panels=3, peak_flops=1e12))
    fit(ToyTask(), config, tmp_path, device="cpu", progress=console)
    train = [line for line in lines(tmp_path) if line["kind"] == "train"]
    assert [line["step"] for line in train] == [2, 4, 6]
    assert {"loss", "largest", "gradient_norm_all", "lr", "peak_bytes", "seconds_left"} <= set(train[0])
    assert train[-1]["samples"] == 48 and train[-1]["seconds_left"] == 0.0
    assert train[0]["utilisation"] == pytest.approx(train[0]["flops_per_second"] / 1e12, abs=1e-4)
    assert [line["step"] for line in lines(tmp_path) if line["kind"] == "evaluation"] == [3, 6]
    assert (
        "samples/s" in console.notes[-1] and "% of peak" in console.notes[-1] and "left" in console.notes[-1]
    )
    pictures = sorted(p.name for p in (tmp_path / "panels").iterdir())
    assert pictures == ["00000003_grey.png", "00000006_grey.png"]
    assert torch.allclose(read_image(tmp_path / "panels" / pictures[0]).rgb, torch.full((3, 4, 4), 100 / 255))


def test_operations_are_those_of_the_formula(tmp_path: Path) -> None:
    def work() -> None:
        x = torch.randn(5, 8)
        (x @ layer.T).sum().backward()

    layer = torch.randn(3, 8, requires_grad=True)
    # Forward 2 * 5 * 8 * 3, backward the same once more for the weights (the input needs no gradient).
    assert count_flops(work)[1] == 2 * 240
    config = TrainConfig(steps=2, log=LogConfig(every=1))
    fit(ToyTask(network=lambda: torch.nn.Linear(8, 4)), config, tmp_path, device="cpu", stop_at=1)
    fit(ToyTask(network=lambda: torch.nn.Linear(8, 4)), config, tmp_path, device="cpu")
    saved = load_checkpoint(tmp_path / "checkpoints" / "step_00000002")
    assert saved.state["counters"]["flops_per_sample"] == 2 * (2 * 8 * 4)
    assert 1e6 < measure_peak(torch.device("cpu"), torch.float32, seconds=0.0) < 1e15


def test_counting_operations_changes_no_bit(tmp_path: Path) -> None:
    ends = []
    for counted in (True, False):
        config = TrainConfig(steps=3, log=LogConfig(utilisation=counted))
        ends.append(fit(ToyTask(), config, tmp_path / str(counted), device="cpu").model.state_dict())
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def test_torn_and_later_lines_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    kept = '{"kind": "train", "step": 3}\n'
    path.write_text(kept + '{"kind": "train", "step": 4}\nnot json\n{"kind": "train", "st')
    log = RunLog(tmp_path, 10, step=3)
    log.event("train", 4, loss=float("nan"))
    assert path.read_text() == kept + '{"kind": "train", "step": 4, "loss": null}\n'


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    log = RunLog(tmp_path, 10)
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(InputError, match="disk is full"):
        log.event("train", 1)


@pytest.mark.skipif(not available("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrainConfig(steps=4, log=LogConfig(every=2, panels=4, tensorboard=True, utilisation=False))
    fit(ToyTask(), config, tmp_path, device="cpu")
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [line["loss"] for line in lines(tmp_path) if line["kind"] == "train"]
    found = board.Scalars("train/loss")
    assert [event.step for event in found] == [2, 4]
    assert [event.value for event in found] == pytest.approx(losses)
    assert [event.step for event in board.Images("grey")] == [4]


def test_the_best_is_kept_through_resuming(tmp_path: Path) -> None:
    class Scored(ToyTask):
        def evaluate(self, model: Any, step: int) -> dict[str, float]:
            return {"score": {2: 5.0, 4: 1.0, 6: float("nan"), 8: 2.0}[step]}

    config = TrainConfig(
        steps=8,
        log=LogConfig(evaluate=2, utilisation=False),
        checkpoint=CheckpointConfig(every=1, keep_last=1, best="score"),
    )
    for stop in (5, 8):
        result = fit(Scored(), config, tmp_path, device="cpu", stop_at=stop)
    assert result.best == (4, 1.0)
    kept = sorted(p.name for p in (tmp_path / "checkpoints").glob("step_*"))
    assert kept == ["step_00000004", "step_00000008"]
    with pytest.raises(InputError, match=r"no evaluation number 'psnr'.*score"):
        other = replace(config, checkpoint=CheckpointConfig(best="psnr"))
        fit(Scored(), other, tmp_path / "other", device="cpu")


def test_a_resumed_run_on_no_terminal_says_plain_lines_and_the_time_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("relief3d.core.progress.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    console = ConsoleProgress(stream, log_every=5.0)
    console.start("toy", 1000)
    console.advance(900)  # of an earlier run
    for _ in range(3):
        clock[0] += 6.0
        console.advance(1, "loss 1")
    said = stream.getvalue()
    assert "\r" not in said and "\x1b" not in said
    assert said.splitlines()[-1] == "  toy  903/1000  ETA 582 s  loss 1"
    config = TrainConfig(steps=2, log=LogConfig(every=1, utilisation=False))
    fit(ToyTask(), config, tmp_path, device="cpu", progress=console)
    assert "toy: done" in stream.getvalue()


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_order_of_batches_does_not_depend_on_workers(workers: int) -> None:
    names = [batch["names"][0] for batch in feed(ToyTask(), 3, 40, workers=workers, part=1, parts=2)]
    assert names == [f"{i}:4" for i in range(3, 40)]


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_workers_stay_what_they_are(workers: int) -> None:
    def refuse(position: int, batch: dict[str, Any]) -> None:
        if position == 2:
            raise InputError("is damaged", path="a.png", remedy="remove it")

    with pytest.raises(InputError) as caught:
        list(feed(ToyTask(hook=refuse), 0, 4, workers=workers))
    assert str(caught.value) == "a.png: is damaged (remove it)"


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), stop_wishes() as wish:
        os.kill(os.getpid(), signal.SIGINT)
        assert wish.wanted
        os.kill(os.getpid(), signal.SIGINT)


def test_a_worker_lost_while_handing_over_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection breaks before the signal of the worker's end arrives, or it never does."""
    monkeypatch.setattr(feeding, "_SIGNAL", 0.01)

    def broken() -> Iterator[int]:
        yield 1
        raise ConnectionResetError(104, "reset by peer")

    ready = broken()
    assert feeding._next(ready) == 1
    with pytest.raises(RunError, match="died while it handed one over"):
        feeding._next(ready)
