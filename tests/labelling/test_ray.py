"""A local Ray cluster labels 500 items while workers are killed: nothing lost, nothing doubled."""

from __future__ import annotations

from pathlib import Path

import pytest

from labelling.toys import ToyScenes
from relief3d.labelling.base import LabelerSpec
from relief3d.labelling.run import LabelSettings, label_scenes

pytest.importorskip("ray", reason="Ray is not installed (extra 'cluster')")
pytest.importorskip("ray.data", reason="Ray Data is not installed (extra 'cluster')")

# Starting a cluster takes most of the time: a minute alone, several on busy cores.
pytestmark = pytest.mark.timeout(900)

TOY = "labelling.toys:Toy"


def contents(out: Path) -> dict[str, bytes]:
    return {
        p.relative_to(out).as_posix(): p.read_bytes()
        for p in sorted((out / "items").rglob("*"))
        if p.is_file() and p.name != "run.json"
    }


def test_a_ray_cluster_loses_and_doubles_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    count = 500
    faults = {"log": str(log), "crash": 100, "fail": 83, "bad": 250}
    settings = LabelSettings(workers=2, cluster="ray")
    summary = label_scenes(ToyScenes(count), tmp_path / "ray", LabelerSpec(TOY, faults), settings)
    bad = [f.views[0] for f in summary.failures]
    assert bad == ["v0249", "v0499"] and summary.done_now == count - 2
    assert summary.lost_workers == 5
    tries = {p.name: p.stat().st_size for p in log.iterdir()}
    assert len(tries) == count
    crashed = {f"v{i:04d}" for i in range(99, count, 100)}
    failed = {f"v{i:04d}" for i in range(82, count, 83)}
    assert {n for n, t in tries.items() if t > 1} == crashed | failed
    assert sum(tries.values()) == count + len(crashed) + len(failed)
    calm = label_scenes(ToyScenes(count), tmp_path / "calm", LabelerSpec(TOY, {"bad": 250}), LabelSettings(2))
    assert calm.done_now == count - 2
    mine, other = contents(tmp_path / "ray"), contents(tmp_path / "calm")
    assert len(mine) == 2 * (count - 2)
    depths = {k: v for k, v in mine.items() if k.endswith(".npz")}
    assert sorted(depths.values()) == sorted(v for k, v in other.items() if k.endswith(".npz"))
    assert not list((tmp_path / "ray" / "runs").iterdir())
    assert not list((tmp_path / "ray" / "claims").iterdir())


def test_a_poison_item_is_quarantined_on_a_cluster(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    faults = {"log": str(log), "crash": 6, "crash_times": 99}
    settings = LabelSettings(workers=2, cluster="ray", max_kills=2)
    summary = label_scenes(ToyScenes(6), tmp_path / "out", LabelerSpec(TOY, faults), settings)
    assert [(f.kind, f.views) for f in summary.failures] == [("killed", ("v0005",))]
    assert summary.done_now == 5 and (log / "v0005").stat().st_size == 2
