"""Two processes (gloo) train as one does, whatever fails in one of them, and their checkpoints are the same files."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.corpora.forked import forked
from tests.corpora.toy_pair import SETS, assert_same, here, lines, one, spoilt, toy, two
from tests.corpora.toy_run import CONFIG
from tests.corpora.toy_task import ToyTask

from relief3d.core.errors import InputError, MissingExtraError
from relief3d.core.optional import available
from relief3d.train.config import LogConfig
from relief3d.train.distributed import AccelerateEngine, Strategy, engine_for
from relief3d.train.processes import MEMORY_FILE, by_first, is_first, one_voice, remembered_parts
from relief3d.train.task import LossReport, StepInfo

needs_accelerate = pytest.mark.skipif(not available("accelerate"), reason="accelerate is not installed")
STRATEGIES: list[Strategy] = ["ddp", "fsdp"]
SHARE = {"ddp": 9, "fsdp": 4}
"""Steps of 20 in two processes; FSDP2 exchanges so much in a step that more would take long here."""


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    one(folder)
    return folder


@pytest.fixture(scope="module")
def single_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    one(folder, config=SETS, task=toy(hook=spoilt))
    return folder


@needs_accelerate
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_equal_one_and_one_goes_on(tmp_path: Path, single: Path, strategy: Strategy) -> None:
    steps = SHARE[strategy]
    ended = two(tmp_path, strategy, stop_at=steps)
    # So many steps of 8 samples, half of them here; process 1 says nothing. With FSDP2 every parameter is spread.
    spread = "28/28" if strategy == "fsdp" else "0/28"
    assert ended.codes == [0, 0] and ended.out == [f"{steps} {4 * steps} {spread}\n", ""], ended.err
    one(tmp_path)
    assert_same(single, tmp_path)


@needs_accelerate
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_go_on_where_one_began(tmp_path: Path, single: Path, strategy: Strategy) -> None:
    one(tmp_path, stop_at=20 - SHARE[strategy])
    ended = two(tmp_path, strategy)
    assert ended.codes == [0, 0], ended.err
    assert_same(single, tmp_path)


@needs_accelerate
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_micro_batches_sets_frozen_parts_and_left_out_steps(
    tmp_path: Path, single_sets: Path, strategy: Strategy
) -> None:
    ended = two(tmp_path, strategy, config=SETS, task=lambda: toy(hook=spoilt))
    assert ended.codes == [0, 0], ended.err
    assert_same(single_sets, tmp_path, steps=SETS.steps)
    # The sample is in the share of process 1, and process 0 writes its name.
    for folder in (single_sets, tmp_path):
        (left_out,) = lines(folder, "not_finite")
        assert left_out["step"] == 4 and left_out["samples"] == ["7:6"]
    for name in ("gradient_norm_first", "gradient_norm_all"):
        norms = [[line[name] or 0.0 for line in lines(f)] for f in (single_sets, tmp_path)]
        assert max(norms[0]) > 0.05 and norms[1] == pytest.approx(norms[0], abs=1e-5)


@needs_accelerate
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_operations_are_those_of_all_processes(tmp_path: Path, strategy: Strategy) -> None:
    config = replace(CONFIG, steps=2, log=LogConfig(every=1, peak_flops=1e9))
    one(tmp_path / "one", config=config)
    assert two(tmp_path / "two", strategy, config=config).codes == [0, 0]
    per_sample = []
    for processes, folder in ((1, "one"), (2, "two")):
        line = lines(tmp_path / folder)[-1]
        per_sample.append(line["flops_per_second"] / line["samples_per_second"])
        # Of the peak of all devices together.
        assert line["utilisation"] == pytest.approx(line["flops_per_second"] / (processes * 1e9), abs=1e-4)
    assert per_sample[0] > 0 and per_sample[1] == pytest.approx(per_sample[0], rel=1e-3)


class Short(ToyTask):
    """Process 1 runs out of memory in step 8 when more than two samples go through at once."""

    def loss(self, model: Any, batch: Any, info: StepInfo, teacher: Any) -> LossReport:
        report = super().loss(model, batch, info, teacher)
        if here() == 1 and info.step == 7 and len(batch["names"]) > 2:
            raise torch.OutOfMemoryError("out of memory: 3 GiB")
        return report


@needs_accelerate
def test_out_of_memory_in_one_process_ends_all_and_is_remembered(tmp_path: Path, single: Path) -> None:
    def short() -> ToyTask:
        made = toy()
        made.__class__ = Short
        return made

    ended = two(tmp_path, task=short)
    assert ended.codes == [1, 1] and ended.err[0] == ""
    assert "out of memory at step 8 on process 1" in ended.err[1] and "in 2 parts" in ended.err[1]
    assert remembered_parts(tmp_path) == 2
    ended = two(tmp_path, task=short)
    assert ended.codes == [0, 0], ended.err
    assert_same(single, tmp_path)
    (tmp_path / MEMORY_FILE).write_text('{"parts": 0}')
    with pytest.raises(InputError, match=r"memory\.json.*remove this file"):
        remembered_parts(tmp_path)


@needs_accelerate
def test_a_killed_process_ends_the_others_and_the_run_goes_on(tmp_path: Path, single: Path) -> None:
    def killed(info: StepInfo, report: LossReport) -> LossReport:
        if here() == 1 and info.step == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return report

    ended = two(tmp_path, task=lambda: toy(spoil=killed))
    assert ended.codes == [1, -signal.SIGKILL]
    assert "lost the connection to another process of this run" in ended.err[0]
    assert two(tmp_path).codes == [0, 0]
    assert_same(single, tmp_path)


@needs_accelerate
def test_one_voice_exact_sums_and_work_of_the_first() -> None:
    def work() -> None:
        with one_voice():
            engine = engine_for(CONFIG, device="cpu")
            # 5001 squared and doubled has more digits than float32.
            flag = torch.tensor(engine.rank == 1)
            assert engine.total(flag, 5001.0**2, 16777217.0) == [1.0, 2 * 5001.0**2, 2 * 16777217.0]
            assert by_first(engine, lambda: "mine") == ("mine" if engine.rank == 0 else None)
            assert is_first() == (engine.rank == 0)
            by_first(engine, refuse)

    def refuse() -> None:
        raise InputError("no such thing")

    ended = forked(work)
    # The errors differ, one of them is raised, and both end with its code.
    assert sorted(map(bool, ended.err)) == [False, True], ended.err
    assert ended.codes in ([1, 2], [1, 1]), ended.err


@needs_accelerate
def test_an_interrupt_of_any_process_saves_and_ends_all(tmp_path: Path, single: Path) -> None:
    def asked(info: StepInfo, report: LossReport) -> LossReport:
        if here() == 1 and info.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return report

    ended = two(tmp_path, task=lambda: toy(spoil=asked))
    # One raises KeyboardInterrupt, which is code 1 here and 130 in a command; the other ends with 130.
    assert sorted(ended.codes) == [1, 130] and sorted(map(bool, ended.err)) == [False, True], ended.err
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step_00000007"
    one(tmp_path)
    assert_same(single, tmp_path)


def test_without_a_launcher_the_remedy_is_named() -> None:
    if not available("accelerate"):
        with pytest.raises(MissingExtraError, match=r"relief3d\[train\]"):
            AccelerateEngine(cpu=True)
        return
    with pytest.raises(InputError, match="torchrun or accelerate launch"):
        AccelerateEngine(cpu=True)


@needs_accelerate
def test_what_does_not_go_together_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="bfloat16"):
        AccelerateEngine(torch.float16, strategy="fsdp", cpu=True)
    monkeypatch.setattr("relief3d.train.distributed.resolve_device", lambda name: torch.device("mps"))
    with pytest.raises(InputError, match="--device cpu"):
        engine_for(CONFIG)


@needs_accelerate
def test_processes_that_cannot_find_each_other_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"cannot find each other.*torchrun"), one_voice():
        raise AssertionError


def test_forks_report_what_happened() -> None:
    def work() -> None:
        print("out", here())
        if here() == 1:
            raise SystemExit(3)

    def stopped(pids: Sequence[int]) -> None:
        assert len(pids) == 2

    ended = forked(work, meanwhile=stopped)
    assert (ended.codes, ended.out, ended.err) == ([0, 3], ["out 0\n", "out 1\n"], ["", ""])
