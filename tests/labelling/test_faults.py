"""What is not the fault of an item ends the run or is healed; what is, is written down; nothing waits for ever."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from labelling.toys import ToyScenes
from relief3d.core.errors import InputError, MissingExtraError, RunError
from relief3d.labelling import claims, execute, pool
from relief3d.labelling.base import LabelerSpec
from relief3d.labelling.claims import RunIdentity, registered_run, take_claim
from relief3d.labelling.execute import Job, Workbench
from relief3d.labelling.items import make_plan
from relief3d.labelling.registry import make_labeler
from relief3d.labelling.run import LabelSettings, Summary, label_scenes
from relief3d.labelling.store import LabelStore

HERE = LabelSettings(workers=0)
POOL = LabelSettings(workers=2)


def run(
    out: Path, count: int, settings: LabelSettings = HERE, labeler: str = "Toy", **faults: object
) -> Summary:
    return label_scenes(ToyScenes(count), out, LabelerSpec(f"labelling.toys:{labeler}", faults), settings)


def bench(out: Path, token: str = "me") -> tuple[Workbench, tuple]:
    """A workbench of a run that is registered, with the items of three views."""
    spec = LabelerSpec("labelling.toys:Toy")
    plan = make_plan(ToyScenes(3), make_labeler(spec))
    identity = RunIdentity(token, out / "runs")
    identity.folder.mkdir(parents=True, exist_ok=True)
    identity.path.write_text("{}")
    return Workbench(Job(out, ToyScenes(3), spec, plan.recipe, identity)), plan.items


def test_of_two_writers_the_first_wins(tmp_path: Path) -> None:
    store, won = LabelStore(tmp_path), []

    def fill(name: str, folder: Path) -> None:
        (folder / "label.json").write_text(name)

    def slow(folder: Path) -> None:
        fill("slow", folder)
        won.append(store.publish("abcd", lambda f: fill("quick", f)))

    won.append(store.publish("abcd", slow))
    assert won == [True, False]
    assert (store.item_folder("abcd") / "label.json").read_text() == "quick"
    assert [p.name for p in store.item_folder("abcd").parent.iterdir()] == ["abcd"]


def test_a_folder_without_labels_in_the_way(tmp_path: Path) -> None:
    store = LabelStore(tmp_path)
    folder = store.item_folder("abcd")
    folder.mkdir(parents=True)
    assert store.publish(
        "abcd", lambda f: (f / "label.json").write_text("{}") and None
    )  # empty: nothing is lost
    (folder / "label.json").rename(folder / "other.json")
    with pytest.raises(InputError, match="delete this folder"):
        store.publish("abcd", lambda f: None)


@pytest.mark.parametrize("how", ["full", "words"])
def test_a_labeler_that_finds_the_disk_full_ends_the_run(how: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the disk is full"):
        run(tmp_path / "out", 3, labeler="Clumsy", log=how)
    assert not (tmp_path / "out" / "failures").exists()


def test_no_room_for_scratch_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(prefix: str) -> str:
        raise OSError(28, "No space left on device", f"/scratch/{prefix}")

    monkeypatch.setattr(execute.tempfile, "mkdtemp", full)
    with pytest.raises(InputError, match=r"scratch.*the disk is full"):
        run(tmp_path / "out", 3)
    assert not (tmp_path / "out" / "failures").exists()


def test_a_missing_package_ends_the_run_and_is_not_blamed_on_items(tmp_path: Path) -> None:
    for settings in (HERE, replace(POOL, workers=1)):
        with pytest.raises(MissingExtraError, match="nothing"):
            run(tmp_path / "out", 3, settings, "Clumsy", log="extra")
    assert not (tmp_path / "out" / "failures").exists()


@pytest.mark.parametrize(("how", "kind", "attempts"), [("facts", "error", 3), ("views", "input", 1)])
def test_what_is_no_label_is_the_item_s_failure(how: str, kind: str, attempts: int, tmp_path: Path) -> None:
    summary = run(tmp_path / "out", 2, labeler="Clumsy", log=how)
    assert [(f.kind, f.attempts) for f in summary.failures] == [(kind, attempts)] * 2
    assert not [p for p in (tmp_path / "out" / "items").rglob("*") if p.is_file()]


def test_an_orphan_blames_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that outlives its killed run fails because the next run has cleared its scratch folder away."""
    mine, items = bench(tmp_path)

    def label(item: object, work: Path) -> None:
        (tmp_path / "runs" / "me.json").unlink()
        other = RunIdentity("other", tmp_path / "runs")
        other.path.write_text("{}")
        assert take_claim(tmp_path / "claims", items[0].id, other) is not None
        raise InputError("the database has vanished")

    monkeypatch.setattr(mine, "_label", label)
    assert mine.execute(items[0]).state == "again"
    assert mine.store.failure(items[0].id) is None
    assert len(list((tmp_path / "claims").iterdir())) == 1  # and keeps its hands off the other's claim


def test_a_run_file_cut_off_by_a_power_cut_is_not_alive_for_ever(tmp_path: Path) -> None:
    with registered_run(tmp_path, lease=5.0) as me:
        for name, content in (("nul", b"\0\0\0"), ("list", b"[]"), ("empty", b"")):
            path = tmp_path / f"{name}.json"
            path.write_bytes(content)
            assert claims.is_alive(name, me)  # it may be about to be written
            os.utime(path, (time.time() - 60, time.time() - 60))
            assert not claims.is_alive(name, me)


def test_heartbeats_decide_about_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with registered_run(tmp_path, lease=5.0) as me, registered_run(tmp_path, lease=5.0) as other:
        os.utime(other.path, (time.time() - 60, time.time() - 60))
        assert claims.is_alive(other.token, me)  # here the lock counts, however old the heartbeat
        monkeypatch.setattr(claims, "machine_key", lambda: "elsewhere")
        assert not claims.is_alive(other.token, me)
        os.utime(other.path, (time.time() - 4, time.time() - 4))
        assert claims.is_alive(other.token, me)


def test_claims_keep_living_runs_apart_and_outlive_no_dead_one(tmp_path: Path) -> None:
    with registered_run(tmp_path / "runs") as me, registered_run(tmp_path / "runs") as other:
        mine = take_claim(tmp_path / "claims", "x", me)
        assert mine is not None and mine.held() and take_claim(tmp_path / "claims", "x", other) is None
        again = take_claim(tmp_path / "claims", "x", me)  # its worker died
        assert again is not None and again.held() and not mine.held()
        mine.release()
        assert again.held()
        dead = RunIdentity("dead", tmp_path / "runs")
        assert take_claim(tmp_path / "claims", "y", dead) is not None
        assert claims.remove_void_claims(tmp_path / "claims", me) == 1
        assert [p.name for p in (tmp_path / "claims").iterdir()] == ["x.json"]


def test_what_killed_runs_leave_is_removed_and_what_living_ones_write_is_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, 3)
    item = next((out / "items").iterdir())
    past = time.time() - 30
    old = [item / ".relief3d-a.new", out / "failures" / ".relief3d-b.json", out / "claims" / ".x.12"]
    young = [out / "manifests" / ".relief3d-c.jsonl", out / ".relief3d-probe-1"]  # another run plans
    (out / "failures").mkdir()
    for path in (*old, *young):
        (path.mkdir if path.suffix == ".new" else path.touch)()
        os.utime(path, (past, past))
    (out / "runs" / "gone").mkdir()
    (out / "runs" / "gone" / "x").touch()
    with registered_run(out / "runs"):
        run(out, 4)
        assert all(p.exists() for p in (*old, *young))
    run(out, 5)
    assert not any(p.exists() for p in old) and all(p.exists() for p in young)
    assert not (out / "runs" / "gone").exists()
    os.utime(young[0], (past - 3600, past - 3600))
    (out / "runs" / "killed.json").touch()  # of a run that was killed after its last item
    os.utime(out / "runs" / "killed.json", (past - 3600, past - 3600))
    run(out, 5)
    assert not young[0].exists() and not list((out / "runs").iterdir())


def test_a_dead_worker_is_noticed_although_its_child_lives(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    began = time.monotonic()
    summary = run(tmp_path / "out", 2, replace(POOL, workers=1), log=str(log), crash=2, forks=True)
    assert summary.complete and summary.lost_workers == 1
    assert time.monotonic() - began < 15  # the child sleeps for 20 seconds


def test_a_worker_s_own_errors_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"a worker failed \(ZeroDivisionError: of all things\)"):
        run(tmp_path / "out", 2, replace(POOL, workers=1), "Unbuildable")


def test_workers_killed_while_they_save(tmp_path: Path) -> None:
    """At every call that a save makes of the disk, before and after the rename."""
    log = tmp_path / "log"
    log.mkdir()
    wild = run(tmp_path / "wild", 8, POOL, log=str(log), cut=1)
    run(tmp_path / "calm", 8)
    assert wild.complete and wild.lost_workers == 8
    found, expected = (
        {
            p.relative_to(tmp_path / name): p.read_bytes()
            for p in (tmp_path / name / "items").rglob("*")
            if p.is_file() and p.name != "run.json"
        }
        for name in ("wild", "calm")
    )
    assert found == expected and len(found) == 16
    assert not list((tmp_path / "wild").rglob(".*")) and not list((tmp_path / "wild" / "runs").iterdir())


def test_the_server_that_starts_workers_may_die_too(tmp_path: Path) -> None:
    from multiprocessing import forkserver

    context = pool.start_context("auto")
    if context.get_start_method() != "forkserver":
        pytest.skip("workers start in another way here")
    context.Process(target=int).start()
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    killed = []

    source, spec = ToyScenes(6), LabelerSpec("labelling.toys:Toy", {"sleep": 0.05})
    plan = make_plan(source, make_labeler(spec))
    store = LabelStore(tmp_path)
    store.save_plan(plan)
    with registered_run(store.runs) as me:
        for event in pool.run_pool(Job(tmp_path, source, spec, plan.recipe, me), plan.items, 1):
            if not killed and isinstance(event, pool.Outcome):
                os.kill(server, signal.SIGKILL)
                killed.append(event)
    assert killed and all(store.is_done(item.id) for item in plan.items)


def test_limits_that_would_be_ignored_are_refused() -> None:
    with pytest.raises(InputError, match="local worker processes"):
        LabelSettings(workers=0, item_timeout=1.0)
    with pytest.raises(InputError, match="local worker processes"):
        LabelSettings(workers=2, item_timeout=1.0, cluster="ray")
    with pytest.raises(InputError, match="positive"):
        LabelSettings(workers=2, item_timeout=0.0)
