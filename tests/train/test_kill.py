"""``kill -9`` at any moment: the run goes on by itself and ends with the weights of an uninterrupted one."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tests.corpora.toy_task import ToyTask

from relief3d.core.provenance import commit, hardware, versions
from relief3d.io.json_file import write_json
from relief3d.train.checkpoint import FOLDER, POINTER, find_checkpoint, load_checkpoint, tensors_digest
from relief3d.train.config import CheckpointConfig, EmaConfig, LogConfig, OptimiserConfig, TrainConfig
from relief3d.train.loop import fit

CONFIG = TrainConfig(
    steps=24,
    accumulate=2,
    ema=EmaConfig(0.9),
    optimiser=OptimiserConfig(lr=1e-2),
    checkpoint=CheckpointConfig(every=2, keep_last=2, best="mse"),
    log=LogConfig(every=1, evaluate=5, utilisation=False),
)
TABLE = Path(__file__).resolve().parents[2] / "results" / "training" / "kill_resume.json"
STRESS = pytest.param(
    (50, 15),
    marks=[
        pytest.mark.stress,
        pytest.mark.timeout(3600),
        pytest.mark.skipif(not os.environ.get("RELIEF3D_STRESS"), reason="full counts run in 'make stress'"),
    ],
)


def start(folder: Path) -> Any:
    """A process that trains or goes on; forked, so that it need not import torch again."""
    child = multiprocessing.get_context("fork").Process(
        target=fit, args=(ToyTask(), CONFIG, folder), kwargs={"device": "cpu"}
    )
    child.start()
    return child


def saving(folder: Path) -> bool:
    """Whether a save is under way or was cut off: something temporary, or a folder newer than the pointer's."""
    held = folder / FOLDER
    if not held.is_dir():
        return False
    names = [p.name for p in held.iterdir()]
    newest = max((n for n in names if n.startswith("step_")), default="")
    pointer = held / POINTER
    named = pointer.read_text().strip() if pointer.is_file() else ""
    return any(n.startswith(".relief3d-") for n in names) or newest > named


def finals(folder: Path) -> tuple[dict[str, str], list[tuple[Any, ...]]]:
    found = find_checkpoint(folder)
    assert found is not None and found.name == "step_00000024"
    digests = {k: tensors_digest(v) for k, v in load_checkpoint(found).tensors.items()}
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return digests, [(e["kind"], e["step"], e.get("loss"), e.get("mse")) for e in lines]


def kill_once(folder: Path, chance: random.Random, seconds: float, aim: bool) -> bool:
    """Start a run and kill it, after a random time or soon after a random save began; whether a save was cut off."""
    child = start(folder)
    began, saves, inside, target = time.monotonic(), 0, False, chance.randrange(11)
    moment = chance.uniform(0, seconds)
    # Not is_alive(), which takes the child away when it has ended, so that there is nothing left to be killed.
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if aim:
            now = saving(folder)
            saves += now and not inside
            inside = now
            if now and saves > target:
                time.sleep(chance.uniform(0, 0.01))
                break
        elif time.monotonic() - began >= moment:
            break
        time.sleep(0.0005)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    return saving(folder)


@pytest.mark.parametrize("counts", [(6, 1), STRESS], ids=["6", "50"])
def test_killed_runs_end_with_the_same_bits(tmp_path: Path, counts: tuple[int, int]) -> None:
    kills, wanted = counts
    began = time.monotonic()
    whole = start(tmp_path / "whole")
    whole.join()
    seconds = time.monotonic() - began
    reference = finals(tmp_path / "whole")
    chance, rows, inside = random.Random(7), [], 0
    while len(rows) < kills or inside < wanted:
        assert len(rows) < 4 * kills, f"only {inside} of {len(rows)} kills cut a save off"
        folder = tmp_path / str(len(rows))
        cut = kill_once(folder, chance, seconds, aim=len(rows) % 2 == 1)
        found = find_checkpoint(folder)
        rows.append({"inside_save": cut, "resumed_from": found.name if found else "the start"})
        inside += cut
        again = start(folder)
        again.join()
        assert again.exitcode == 0, rows[-1]
        assert finals(folder) == reference, rows[-1]
        assert not list((folder / FOLDER).glob(".relief3d-*"))
    print(
        f"\n{len(rows)} kills, {inside} inside a save: all resumed by themselves and ended with identical weights"
    )
    if kills == 50:
        result = {
            "command": "make stress",
            "kills": len(rows),
            "inside_a_save": inside,
            "resumed_with_identical_weights": len(rows),
            "sha256_of_weights": reference[0]["model"],
            "seed": 7,
            "moments": rows,
            "commit": commit(),
            "hardware": hardware(),
            "versions": versions(),
            "seconds": round(time.monotonic() - began, 1),
        }
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        write_json(TABLE, result)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_stop_finishes_the_step_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)

    class Stopped(ToyTask):
        def batch(self, position: int, part: int = 0, parts: int = 1) -> Any:
            if position == 6:  # step 4
                os.kill(os.getpid(), number)
            return super().batch(position, part, parts)

    with pytest.raises(KeyboardInterrupt):
        fit(Stopped(), CONFIG, tmp_path / "a", device="cpu")
    assert signal.getsignal(number) == before
    found = find_checkpoint(tmp_path / "a")
    assert found is not None and load_checkpoint(found).step == 4
    fit(ToyTask(), CONFIG, tmp_path / "a", device="cpu")
    fit(ToyTask(), CONFIG, tmp_path / "b", device="cpu")
    assert finals(tmp_path / "a") == finals(tmp_path / "b")


def test_torch_is_left_as_it_was(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(11)
    wanted = torch.rand(3)
    torch.manual_seed(11)
    fit(ToyTask(), CONFIG, tmp_path, device="cpu", stop_at=2)
    assert torch.equal(torch.rand(3), wanted)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_saves_by_time(tmp_path: Path) -> None:
    from dataclasses import replace

    config = replace(CONFIG, steps=3, checkpoint=CheckpointConfig(every=100, seconds=1e-9, keep_last=5))
    fit(ToyTask(), config, tmp_path, device="cpu")
    assert sorted(p.name[-1] for p in (tmp_path / FOLDER).glob("step_*")) == ["1", "2", "3"]
