"""Every item is labelled exactly once, whatever happens to workers, runs and pictures in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from labelling.toys import ToyScenes
from relief3d.core.errors import InputError, RunError
from relief3d.labelling.base import LabelerSpec
from relief3d.labelling.run import LabelSettings, Summary, format_summary, label_scenes
from relief3d.labelling.store import LabelStore

TOY = "labelling.toys:Toy"
HERE = LabelSettings(workers=0)
POOL = LabelSettings(workers=2)


def contents(out: Path) -> dict[str, bytes]:
    """Every byte below ``items`` that must not depend on the run."""
    return {
        p.relative_to(out).as_posix(): p.read_bytes()
        for p in sorted((out / "items").rglob("*"))
        if p.is_file() and p.name != "run.json"
    }


def run(out: Path, count: int, settings: LabelSettings = HERE, seed: int = 0, **faults: object) -> Summary:
    return label_scenes(ToyScenes(count), out, LabelerSpec(TOY, faults), settings, seed=seed)


@pytest.fixture
def log(tmp_path: Path) -> str:
    folder = tmp_path / "log"
    folder.mkdir()
    return str(folder)


def test_a_run_is_complete_and_the_second_does_nothing(tmp_path: Path) -> None:
    first = run(tmp_path / "out", 25)
    assert (first.items, first.done_before, first.done_now, first.complete) == (25, 0, 25, True)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    second = run(tmp_path / "out", 25)
    assert (second.done_before, second.done_now, second.complete) == (25, 0, True)
    assert "complete" in format_summary(second, tmp_path / "out")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
    assert not list((tmp_path / "out" / "claims").iterdir()) and not list(
        (tmp_path / "out" / "runs").iterdir()
    )


def test_pool_and_this_process_give_the_same_bytes(tmp_path: Path) -> None:
    run(tmp_path / "a", 12)
    run(tmp_path / "b", 12, POOL)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and len(contents(tmp_path / "a")) == 24


def test_identity_follows_seed_options_version_and_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from labelling.toys import Toy

    out = tmp_path / "out"
    assert run(out, 5).done_now == 5
    assert run(out, 7).done_now == 2  # two new views in the same scene
    assert run(out, 5, seed=1).done_now == 5
    assert run(out, 5, fail_times=2).done_now == 5  # an option of the labeler
    assert run(out, 5, sleep=0.001).done_now == 0  # declared by the labeler to be no part of it
    monkeypatch.setattr(Toy, "version", 2)
    assert run(out, 5).done_now == 5
    assert len(list((out / "manifests").iterdir())) == 4


def test_killed_workers_lose_nothing(tmp_path: Path, log: str) -> None:
    calm = run(tmp_path / "calm", 40)
    wild = run(tmp_path / "wild", 40, POOL, log=log, crash=13)
    assert wild.lost_workers == 3 and wild.done_now == calm.done_now == 40 and wild.complete
    assert contents(tmp_path / "wild") == contents(tmp_path / "calm")
    tries = {p.name: p.stat().st_size for p in Path(log).iterdir()}
    assert {n for n, t in tries.items() if t == 2} == {"v0012", "v0025", "v0038"}
    assert sum(tries.values()) == 43


def test_an_item_that_kills_its_workers_is_quarantined(tmp_path: Path, log: str) -> None:
    settings = replace(POOL, max_kills=2)
    faults = {"log": log, "crash": 8, "crash_times": 99}
    summary = run(tmp_path / "out", 8, settings, **faults)
    assert summary.done_now == 7 and summary.lost_workers == 2 and not summary.complete
    (failure,) = summary.failures
    assert (failure.kind, failure.views, failure.final) == ("killed", ("v0007",), True)
    assert "quarantined" in format_summary(summary, tmp_path / "out")
    assert run(tmp_path / "out", 8, settings, **faults).lost_workers == 0  # not touched again
    healed = run(tmp_path / "out", 8, replace(settings, retry_failed=True))
    assert healed.complete and healed.done_now == 1


def test_failures_are_tried_again_then_listed(tmp_path: Path, log: str) -> None:
    out = tmp_path / "out"
    summary = run(out, 10, log=log, fail=5, fail_times=2, bad=7)
    assert summary.done_now == 9
    assert [(f.kind, f.views[0], f.attempts) for f in summary.failures] == [("input", "v0006", 1)]
    tries = {p.name: p.stat().st_size for p in Path(log).iterdir()}
    assert tries["v0004"] == tries["v0009"] == 3 and tries["v0006"] == 1  # bad input is not tried again
    hopeless = run(tmp_path / "more", 10, log=log, fail=5, fail_times=99)
    assert [(f.kind, f.attempts, f.error) for f in hopeless.failures] == [
        ("error", 3, "ValueError: bad luck")
    ] * 2
    assert not (out / "failures" / "left").exists() and len(list((out / "failures").iterdir())) == 1


def test_a_hanging_item_is_killed_and_tried_again(tmp_path: Path, log: str) -> None:
    summary = run(tmp_path / "out", 4, replace(POOL, item_timeout=1.5), log=log, hang=4)
    # On a machine that is busy enough an innocent item may run over the limit, too, and is tried again.
    assert summary.complete and summary.lost_workers >= 1


def test_workers_that_cannot_start_end_the_run(tmp_path: Path) -> None:
    spec = LabelerSpec("labelling.toys:SlowToBuild")
    with pytest.raises(RunError, match="before they can begin"):
        label_scenes(ToyScenes(3), tmp_path / "out", spec, POOL)


def test_foreign_folders_and_bad_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        run(tmp_path, 3)
    with pytest.raises(InputError, match="out of range"):
        LabelSettings(workers=-1)
    with pytest.raises(InputError, match="nothing to label"):
        run(tmp_path / "out", 0)


def test_a_full_disk_stops_the_run_and_is_not_blamed_on_the_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from relief3d.labelling import execute

    real, calls = execute.write_labels, []

    def full(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(execute, "write_labels", full)
    with pytest.raises(InputError, match="disk is full"):
        run(tmp_path / "out", 5)
    assert not (tmp_path / "out" / "failures").exists()
    assert not list((tmp_path / "out").rglob(".relief3d-*"))
    monkeypatch.undo()
    assert run(tmp_path / "out", 5).done_now == 3


SCRIPT = """
import signal, sys
from pathlib import Path
from labelling.toys import ToyScenes
from relief3d.labelling.base import LabelerSpec
from relief3d.labelling.run import LabelSettings, label_scenes
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs that a shell put in the background
    out, count, sleep, log = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    spec = LabelerSpec("labelling.toys:Toy", {"sleep": sleep, "log": log})
    label_scenes(ToyScenes(count), out, spec, LabelSettings(workers=2))
"""


def start(tmp_path: Path, out: Path, count: int, sleep: float, log: str) -> subprocess.Popen[bytes]:
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    tests = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    command = [sys.executable, str(script), str(out), str(count), str(sleep), log]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def done(out: Path) -> int:
    return len(list((out / "items").glob("*/*/label.json")))


def wait_for(condition, seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def _reached(out: Path, goal: int, process: subprocess.Popen[bytes]) -> bool:
    return done(out) >= goal or process.poll() is not None


def test_kills_of_the_whole_run(tmp_path: Path, log: str) -> None:
    """Short version of benchmarks/labelling_kills.py; `kill -9` of the run, its workers notice and leave."""
    count, out, kills = 40, tmp_path / "out", 2
    for kill in range(kills):
        process = start(tmp_path, out, count, 0.02, log)
        goal = (kill + 1) * count // (kills + 2)
        wait_for(partial(_reached, out, goal, process))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert done(out) < count
    summary = run(out, count)
    assert summary.complete and summary.done_now >= 1
    run(tmp_path / "calm", count)
    assert contents(out) == contents(tmp_path / "calm")
    assert len({json.loads(p.read_text())["item"]["id"] for p in out.glob("items/*/*/label.json")}) == count
    assert not list(out.rglob(".relief3d-*")) and not list((out / "runs").iterdir())
    # At most the items in flight are computed twice.
    assert sum(p.stat().st_size for p in Path(log).iterdir()) <= count + 2 * kills


def test_two_runs_share_the_work(tmp_path: Path, log: str) -> None:
    out = tmp_path / "out"
    process = start(tmp_path, out, 40, 0.03, log)
    wait_for(lambda: done(out) >= 1)
    summary = run(out, 40, POOL, log=log, sleep=0.03)
    assert process.wait(60) == 0 and summary.complete
    assert summary.done_before + summary.done_now + summary.done_elsewhere == 40
    assert sum(p.stat().st_size for p in Path(log).iterdir()) == 40  # claims keep them apart


def test_interruption_frees_everything(tmp_path: Path, log: str) -> None:
    out = tmp_path / "out"
    process = start(tmp_path, out, 60, 0.05, log)
    wait_for(lambda: done(out) >= 3)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) != 0
    store = LabelStore(out)
    assert not list(store.runs.glob("*.json"))
    assert run(out, 60).complete
