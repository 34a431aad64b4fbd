"""`kill -9` of labelling runs, of their workers, and of both while they save: is every item labelled once?

    python benchmarks/labelling_kills.py [--kills 20] --json results/labelling/kills.json
    python benchmarks/labelling_kills.py --ray [--items 500] --json results/labelling/ray_kills.json

Toy labels of a few bytes (tests/labelling/toys.py), so that saving takes a large part of the time. Local: per kind of
kill one folder is labelled and killed at seeded random moments until the number is reached, then finished. Ray: a local
cluster labels all items while its actors are killed from outside and some items kill their worker, with one poison
item; then the same again with the run itself killed in the middle. In the end the bytes of all labels are compared
with those of an undisturbed run in this process. Exit code 1 when anything is lost, doubled, left over or different.
"""

# ruff: noqa: E402 (the search path is changed before imports)
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

# In place of this folder, whose labelling.py would hide the toys.
sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")

from labelling.toys import ToyScenes
from relief3d.core.provenance import commit, hardware, versions
from relief3d.labelling.base import LabelerSpec
from relief3d.labelling.run import LabelSettings, Summary, label_scenes

TOY = "labelling.toys:Toy"
PATIENCE = 600.0


def work(out: Path, items: int, settings: LabelSettings, faults: dict[str, Any]) -> Summary:
    return label_scenes(ToyScenes(items), out, LabelerSpec(TOY, faults), settings)


def _entry(*arguments: Any) -> None:
    os.setsid()
    summary = work(*arguments)
    (arguments[0].parent / "lost.txt").write_text(str(summary.lost_workers))


def start(*arguments: Any) -> Any:
    """A run in a process of its own; forked, so that it need not import torch again."""
    child = multiprocessing.get_context("fork").Process(target=_entry, args=arguments)
    child.start()
    return child


def done(out: Path) -> int:
    return sum(1 for _ in (out / "items").glob("*/*/label.json"))


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("stalled: waited ten minutes in vain")
        time.sleep(0.005)


def reached(out: Path, goal: int, children: list[Any]) -> bool:
    """So many items are done, or a run has ended."""
    return done(out) >= goal or not all(child.is_alive() for child in children)


def saving(out: Path) -> bool:
    return any(out.glob("items/*/.relief3d-*"))


def workers(pids: Path) -> list[int]:
    """Living workers that have written their number down."""
    return sorted(int(p.name) for p in pids.iterdir() if Path(f"/proc/{p.name}").exists())


def servers(parent: int) -> Iterator[int]:
    """The processes from which a run forks its workers."""
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_text()
            above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if above == parent and "forkserver" in words:
            yield int(folder.name)


def contents(out: Path) -> dict[str, bytes]:
    files = (p for p in (out / "items").rglob("*") if p.is_file() and p.name != "run.json")
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in files}


def leftovers(out: Path) -> int:
    """Temporary files, claims and run files that are still there."""
    return sum(1 for _ in out.rglob(".*")) + sum(1 for n in ("claims", "runs") for _ in (out / n).iterdir())


def strike(kind: str, child: Any, pids: Path, dice: random.Random) -> bool:
    """Kill once; whether anything was there to kill."""
    if kind == "run":
        os.kill(child.pid, signal.SIGKILL)
    elif kind == "run and workers":
        for pid in workers(pids):
            os.kill(pid, signal.SIGKILL)
        os.killpg(child.pid, signal.SIGKILL)
    else:
        living = list(servers(child.pid)) if kind == "server of workers" else workers(pids)
        if not living:
            return False
        os.kill(dice.choice(living), signal.SIGKILL)
    return True


def campaign(kind: str, kills: int, items: int, folder: Path, seed: int) -> dict[str, Any]:
    """Kill one way until the number is reached, finish, and look at what is there."""
    dice = random.Random(f"{seed} {kind}")
    out, pids, log = folder / "out", folder / "pids", folder / "log"
    pids.mkdir(parents=True)
    log.mkdir()
    faults: dict[str, Any] = {"sleep": 0.02, "pids": str(pids), "log": str(log)}
    if kind == "worker in a save":
        faults["cut"] = max(1, items // kills)
    settings = LabelSettings(workers=2, max_kills=1000)
    began, killed, in_save, starts = time.perf_counter(), 0, 0, 0
    children: list[Any] = []
    ends_run = kind in ("run", "run and workers", "one of two runs")
    while done(out) < items:
        while len(children) < (2 if kind == "one of two runs" else 1):
            children.append(start(out, items, settings, faults))
            starts += 1
        goal = min(items, done(out) + dice.randint(1, max(1, items // (kills + 2))))
        wait_for(partial(reached, out, goal, children))
        time.sleep(dice.random() * 0.03)
        victim = dice.choice(children)
        if killed < kills and kind != "worker in a save" and done(out) < items and victim.is_alive():
            during = saving(out)
            if strike("run" if kind == "one of two runs" else kind, victim, pids, dice):
                killed, in_save = killed + 1, in_save + during
                if ends_run:
                    victim.join()
        children = [c for c in children if c.is_alive()]
        if done(out) >= items:
            break
    for child in children:
        child.join()
    wait_for(lambda: not workers(pids))
    if kind == "worker in a save":
        killed = in_save = int((folder / "lost.txt").read_text())
    last = work(out, items + 1, LabelSettings(workers=0), {})
    return verdict(out, items + 1, last) | {
        "kind": kind,
        "kills": killed,
        "during_a_save": in_save,
        "starts": starts,
        "labelled_again": sum(p.stat().st_size for p in log.iterdir()) - items,
        "wall_s": round(time.perf_counter() - began, 1),
    }


def verdict(out: Path, items: int, last: Summary, bad: int = 0) -> dict[str, Any]:
    """Compare a folder with that of an undisturbed run; ``bad`` items may be missing."""
    with tempfile.TemporaryDirectory() as calm:
        work(Path(calm) / "out", items, LabelSettings(workers=0), {})
        expected = contents(Path(calm) / "out")
    found = contents(out)
    ids = [json.loads(p.read_text())["item"]["views"][0] for p in out.glob("items/*/*/label.json")]
    return {
        "items": items,
        "lost": items - len(set(ids)) - bad,
        "doubled": len(ids) - len(set(ids)),
        "different": sum(found[k] != expected.get(k) for k in found),
        "failures": len(last.failures),
        "left_over": leftovers(out),
    }


def actors(pids: Path) -> list[int]:
    """Workers of Ray that have labelled something."""
    return workers(pids)


def ray_campaign(items: int, kills: int, folder: Path, seed: int, *, cut: bool) -> dict[str, Any]:
    """Label on a local cluster while actors are killed; with ``cut`` the run itself is killed halfway, then goes on."""
    dice = random.Random(seed)
    out, pids, log = folder / "out", folder / "pids", folder / "log"
    pids.mkdir(parents=True)
    log.mkdir()
    faults = {"sleep": 0.03, "pids": str(pids), "log": str(log), "crash": 0 if cut else items // 4}
    if not cut:
        faults |= {"poison": items - 3}
    settings = LabelSettings(workers=2, cluster="ray")
    began, killed, ends = time.perf_counter(), 0, 0
    child = start(out, items, settings, faults)
    while child.is_alive():
        goal = min(items, done(out) + dice.randint(1, max(1, items // (kills + 2))))
        wait_for(partial(reached, out, goal, [child]))
        if not child.is_alive():
            break
        living = actors(pids)
        if cut and ends == 0 and done(out) > items // 2:
            os.kill(child.pid, signal.SIGKILL)
            ends += 1
            child.join()
            wait_for(lambda: not actors(pids))
            child = start(out, items, settings, faults)
        elif killed < kills and living and done(out) < items * 0.9:
            os.kill(dice.choice(living), signal.SIGKILL)
            killed += 1
        elif killed >= kills and (ends or not cut):
            child.join()
    child.join()
    poison = 0 if cut else 1
    again = work(out, items, LabelSettings(workers=0), faults)
    quarantined = [f.views[0] for f in again.failures if f.kind == "killed"]
    found = verdict(out, items, again, poison)
    return found | {
        "kind": "actors, run killed once" if cut else "actors, crashing items, a poison item",
        "kills": killed,
        "crashing_items": 0 if cut else sum(1 for i in range(items) if i % (items // 4) == items // 4 - 1),
        "runs_killed": ends,
        "quarantined": quarantined,
        "done_by_the_first_command": items - poison if again.done_now == 0 else items - again.done_now,
        "labelled_again": sum(p.stat().st_size for p in log.iterdir()) - items,
        "failures": len(again.failures) - len(quarantined),
        "quarantine_ok": quarantined == ([] if cut else [f"v{items - 3:04d}"]),
        "wall_s": round(time.perf_counter() - began, 1),
    }


KINDS = ("run", "run and workers", "worker", "worker in a save", "server of workers", "one of two runs")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--items", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    items = options.items or (500 if options.ray else 200)
    began = time.perf_counter()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if options.ray:
            for cut in (False, True):
                place = Path(folder) / str(cut)
                rows.append(ray_campaign(items, options.kills, place, options.seed, cut=cut))
                sys.stderr.write(f"{rows[-1]}\n")
        else:
            for kind in KINDS:
                rows.append(campaign(kind, options.kills, items, Path(folder) / kind, options.seed))
                sys.stderr.write(f"{rows[-1]}\n")
    data = {
        "command": "python benchmarks/labelling_kills.py " + " ".join(sys.argv[1:]),
        "seed": options.seed,
        "commit": commit() or "unknown",
        "hardware": hardware(),
        "versions": versions(),
        "rows": rows,
        "wall_s": round(time.perf_counter() - began, 1),
    }
    text = json.dumps(data, indent=1) + "\n"
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text)
    sys.stdout.write(text)
    bad = ("lost", "doubled", "different", "failures", "left_over")
    right = all(not any(row[k] for k in bad) and row.get("quarantine_ok", True) for row in rows)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
