"""Bundle adjustment of predicted cameras, from truth disturbed at growing levels, as a network would err.

    python benchmarks/refine_predicted.py [--sets fountain room ...] [--seeds 0 1] [--again] [--check]

Every camera is turned about a random axis, its centre is moved in a random direction and its focal length is
scaled; pictures are matched once per set. Procedural sets also bring their exact depth, off by a few per cent per
view. Results go to ``results/multiview/refine_predicted.json`` and from there to
``docs/results/multiview_refinement.md``; runs in the file are not repeated without ``--again``. ``--check`` runs
nothing and says by its exit code whether the page agrees with the file. Real sets are read from the folder named by
RELIEF3D_SHARED (default ../shared) and left out when it is absent.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Scene, View
from relief3d.core.provenance import commit, hardware, versions
from relief3d.core.seeding import derive_seed
from relief3d.eval.metrics.cameras import evaluate_cameras, pair_errors
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.io.atomic import write_text
from relief3d.io.cameras_json import read_cameras_json
from relief3d.sfm import SfmConfig
from relief3d.sfm.refine_predicted import RefineConfig, RefineReport, refine_predicted
from relief3d.worlds import WorldConfig, demo_capture, make_sequences, make_world

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "results" / "multiview" / "refine_predicted.json"
PAGE = ROOT / "docs" / "results" / "multiview_refinement.md"
REAL = {"fountain": "strecha_fountain_p11", "castle": "strecha_castle_p19"}
DEPTH_ERROR = 0.03


@dataclass(frozen=True)
class Level:
    """Size of the disturbance.

    Attributes:
        turn_deg: rotation error of every view, degrees.
        shift: error of every centre, relative to the mean distance of neighbouring centres.
        focal: common error of the focal length, up or down.
        jitter: standard deviation of the focal length among views, relative.
    """

    turn_deg: float
    shift: float
    focal: float
    jitter: float


LEVELS = (
    Level(0.0, 0.0, 0.0, 0.0),
    Level(0.25, 0.01, 0.01, 0.002),
    Level(1.0, 0.03, 0.03, 0.01),
    Level(2.0, 0.06, 0.06, 0.02),
    Level(5.0, 0.15, 0.10, 0.03),
    Level(10.0, 0.30, 0.20, 0.05),
    Level(20.0, 0.60, 0.30, 0.05),
    Level(40.0, 1.00, 0.40, 0.05),
)


def demo_room() -> Scene:
    capture = demo_capture(0, n_views=10, size=(512, 384))
    return _scene([i.float() / 255 for i in capture.images], capture.cameras, capture.depths)


def world_set(family: str, kind: str, seed: int) -> Callable[[], Scene]:
    def make() -> Scene:
        world = make_world(seed, WorldConfig(family=family, texture_size=512))  # type: ignore[arg-type]
        size = (384, 512)
        path = make_sequences(world, views=8, seed=seed, size=size, kind=kind)  # type: ignore[arg-type]
        cameras = [
            Camera(size[1], size[0], K, T)
            for K, T in zip(path.K[0].double(), path.world_from_cam[0].double(), strict=True)
        ]
        views = world.render(cameras, supersample=2)
        return _scene(list(views.image), cameras, list(views.depth))

    return make


def _scene(images: Sequence[Tensor], cameras: Sequence[Camera], depths: Sequence[Tensor]) -> Scene:
    views = [
        View(f"v{k}", c, image=i, depth=Depth.from_values(d))
        for k, (i, c, d) in enumerate(zip(images, cameras, depths, strict=True))
    ]
    return Scene(tuple(views), metric=True)


SETS: dict[str, Callable[[], Scene]] = {
    "room (procedural, 10 views)": demo_room,
    "objects (procedural, 8 views)": world_set("objects", "orbit", 1),
    "outdoor (procedural, 8 views)": world_set("outdoor", "walk", 2),
}


def available() -> dict[str, Callable[[], Scene]]:
    """All sets whose data are here."""
    found = dict(SETS)
    shared = Path(os.environ.get("RELIEF3D_SHARED", "../shared")) / "data"
    for name, folder in REAL.items():
        if (shared / folder).is_dir():
            found[f"{name} (photos)"] = functools.partial(read_cameras_json, shared / folder)
        else:
            print(f"left out: {name}, no {folder} under RELIEF3D_SHARED", file=sys.stderr)
    return found


def disturb(truth: Scene, level: Level, seed: int) -> Scene:
    """The scene with cameras (and depth) wrong by ``level``."""
    rng = np.random.default_rng(derive_seed(seed, "disturb", str(level)))
    centres = torch.stack([_pose(v)[:3, 3] for v in truth.views])
    base = float((centres[1:] - centres[:-1]).norm(dim=1).mean())
    common = math.exp((1 if seed % 2 == 0 else -1) * math.log1p(level.focal))
    views = []
    for view in truth.views:
        axis, way = rng.standard_normal(3), rng.standard_normal(3)
        pose, K = _pose(view).clone(), view.camera.K
        assert K is not None
        turn = torch.from_numpy(axis / np.linalg.norm(axis) * math.radians(level.turn_deg))
        pose[:3, :3] = matrix_from_axis_angle(turn) @ pose[:3, :3]
        pose[:3, 3] += torch.from_numpy(way / np.linalg.norm(way) * level.shift * base)
        K = K.clone()
        K[:2, :2] *= common * math.exp(level.jitter * rng.standard_normal())
        depth = view.load_depth()
        if depth is not None:
            factor = 1.0 + DEPTH_ERROR * float(rng.standard_normal())
            depth = Depth(depth.values * factor, depth.valid, depth.metric, depth.confidence)
        camera = view.camera.replace(K=K, world_from_cam=pose, K_source="estimated")
        views.append(view.replace(camera=camera, depth=depth, sparse_depth=None))
    return truth.replace(views=tuple(views))


def _pose(view: View) -> Tensor:
    assert view.camera.world_from_cam is not None
    return view.camera.world_from_cam


def measured(scene: Scene, truth: Scene) -> dict[str, float]:
    """Camera errors against the truth."""
    poses, reference = [_pose(v) for v in scene.views], [_pose(v) for v in truth.views]
    found = evaluate_cameras(poses, reference, thresholds=(5.0, 30.0))
    errors = pair_errors(poses, reference)
    focal = [
        abs(math.log(float(a.camera.K[0, 0] / b.camera.K[0, 0])))  # type: ignore[index]
        for a, b in zip(scene.views, truth.views, strict=True)
    ]
    scale = math.nan if found.ate_sim3 is None else found.ate_sim3.scale
    return {
        "auc5": round(found.auc["5"], 2),
        "auc30": round(found.auc["30"], 2),
        "rotation_deg": round(float(errors.rotation.median()), 4),
        "direction_deg": round(float(errors.translation.nanmedian()), 4),
        "focal_percent": round(100 * float(np.median(focal)), 3),
        "scale_error_percent": round(100 * abs(scale - 1.0), 3),
    }


def run(truth: Scene, level: Level, seed: int, work: Path) -> dict[str, Any]:
    """One row: disturb, refine, measure."""
    start = disturb(truth, level, seed)
    began = time.perf_counter()
    config = RefineConfig(matching=SfmConfig(max_features=3000), max_tracks=5000, seed=seed)
    result = refine_predicted(start, config, work)
    report: RefineReport = result.report
    return {
        "before": measured(start, truth),
        "after": measured(result.scene, truth),
        "accepted": report.accepted,
        "reason": report.reason,
        "tracks": report.tracks,
        "held_out_before": None if report.before is None else report.before.as_dict(),
        "held_out_after": None if report.after is None else report.after.as_dict(),
        "plans": len(report.attempts),
        "seconds": round(time.perf_counter() - began, 1),
    }


def label(level: Level) -> str:
    return (
        f"{level.turn_deg:g}°, {100 * level.shift:g} %, {100 * level.focal:g} % ± {100 * level.jitter:g} %"
        if level.turn_deg
        else "exact"
    )


def num(value: Any, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def render(table: dict[str, Any]) -> str:
    """The results page."""
    order = [label(level) for level in LEVELS]
    lines = [
        "# Refinement of predicted cameras",
        "",
        "Rendered from `results/multiview/refine_predicted.json` by `benchmarks/refine_predicted.py`; do not edit "
        "by hand.",
        "",
        f"`{table['command']}`, commit {table['commit']}, {table['hardware']['machine']}, "
        f"{table['hardware']['cores']} cores shared with other work, one thread; "
        f"{table['wall_seconds'] / 60:.0f} minutes in all.",
        "",
        "True cameras are disturbed independently per view: rotation error, error of the centre in per cent of the "
        "distance of neighbours, common focal error in per cent ± its spread among views. A real network's errors "
        "are smoother over the views, so this is a stand-in. Held-out tracks took no part in the adjustment, "
        "but they choose between plans and decide whether a view keeps its prediction; "
        "`kept` means that the predicted cameras were returned. Means over the seeds "
        f"({', '.join(str(s) for s in table['seeds'])}); AUC: exact area, signed direction, all pairs.",
    ]
    for name in table["sets"]:
        lines += [
            "",
            f"## {name}",
            "",
            "| disturbance | accepted | AUC@5 before → after | AUC@30 before → after | rotation ° | direction ° | "
            "focal % | scale % | held-out median px | held-out < 2 px, % | s |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for text in order:
            rows = [r for r in table["rows"] if r["set"] == name and r["level"] == text]
            if rows:
                lines.append(_line(text, rows))
    lines += ["", "## Where it stops helping", "", *_limits(table, order)]
    return "\n".join(lines) + "\n"


def _line(text: str, rows: list[dict[str, Any]]) -> str:
    def mean(part: str, key: str) -> float | None:
        values = [r[part][key] for r in rows if r[part] is not None]
        return None if not values or any(v is None for v in values) else float(np.mean(values))

    def change(key: str, digits: int) -> str:
        return f"{num(mean('before', key), digits)} → {num(mean('after', key), digits)}"

    def held(key: str, factor: float, digits: int) -> str:
        parts = [mean(p, key) for p in ("held_out_before", "held_out_after")]
        return " → ".join(num(None if v is None else factor * v, digits) for v in parts)

    yes = sum(r["accepted"] for r in rows)
    cells = [
        text, f"{yes}/{len(rows)}", change("auc5", 1), change("auc30", 1), change("rotation_deg", 2),
        change("direction_deg", 2), change("focal_percent", 1), change("scale_error_percent", 1),
        held("median_px", 1.0, 2), held("share_2px", 100.0, 1), num(np.mean([r["seconds"] for r in rows]), 0),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _limits(table: dict[str, Any], order: list[str]) -> list[str]:
    """One line per set, and whether an accepted run was worse than its start."""
    lines = []
    for name in table["sets"]:
        rows = [r for r in table["rows"] if r["set"] == name]
        helped = [
            text
            for text in order
            if (mine := [r for r in rows if r["level"] == text])
            and all(r["accepted"] and r["after"]["auc5"] >= 80.0 for r in mine)
        ]
        failed = [
            text
            for text in order[1:]
            if any(r["level"] == text and not (r["accepted"] and r["after"]["auc5"] >= 80.0) for r in rows)
        ]
        lines.append(
            f"- {name}: AUC@5 reaches 80 at {'; '.join(helped) if helped else 'no level'}"
            f"{'. Not at ' + '; '.join(failed) if failed else ''}."
        )
    worse = [
        r
        for r in table["rows"]
        if r["accepted"]
        and (
            r["after"]["auc30"] < r["before"]["auc30"] - 0.1 or r["after"]["auc5"] < r["before"]["auc5"] - 0.1
        )
    ]
    accepted = sum(r["accepted"] for r in table["rows"])
    lines += [
        "",
        f"Of {len(table['rows'])} runs {accepted} were accepted; {len(worse)} of these lost AUC. Held-out errors fell "
        "there too: they cannot see an error that tracks do not show, such as a focal length that the views leave "
        "open, or reference cameras that fit the pictures less well than the adjusted ones.",
        "",
    ]
    for r in worse:
        change = (
            f"{key.upper().replace('AUC', 'AUC@')} {num(r['before'][key], 1)} → {num(r['after'][key], 1)}"
            for key in ("auc5", "auc30")
        )
        lines.append(f"- {r['set']}, {r['level']}, seed {r['seed']}: {', '.join(change)}.")
    kept = [r for r in table["rows"] if not r["accepted"]]
    lines += ["", "Reasons for keeping the prediction:", ""]
    lines += [f"- {r['set']}, {r['level']}, seed {r['seed']}: {r['reason']}" for r in kept]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", help="first words of the sets' names")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--again", action="store_true", help="run again what the file holds already")
    parser.add_argument("--check", action="store_true", help="only compare the page with the file")
    options = parser.parse_args()
    if options.check:
        text = render(json.loads(options.output.read_text()))
        sys.exit(0 if PAGE.exists() and PAGE.read_text() == text else 1)
    torch.set_num_threads(1)
    table: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    rows: list[dict[str, Any]] = table.setdefault("rows", [])
    sets = available()
    for name, make in sets.items():
        if options.sets and name.split(" ")[0] not in options.sets:
            continue
        done = {(r["level"], r["seed"]) for r in rows if r["set"] == name}
        todo = [
            (level, seed)
            for level in LEVELS
            for seed in (options.seeds[:1] if level.turn_deg == 0 else options.seeds)
            if options.again or (label(level), seed) not in done
        ]
        if not todo:
            continue
        truth = make()
        with tempfile.TemporaryDirectory() as folder:
            for level, seed in todo:
                began = time.perf_counter()
                row = {"set": name, "level": label(level), **asdict(level), "seed": seed, "commit": commit()}
                row |= run(truth, level, seed, Path(folder))
                rows[:] = [r for r in rows if (r["set"], r["level"], r["seed"]) != (name, label(level), seed)]
                rows.append(row)
                listed = [n for n in sets if any(r["set"] == n for r in rows)]
                table |= {
                    "command": f"python benchmarks/refine_predicted.py --seeds {' '.join(map(str, options.seeds))}",
                    "commit": commit(), "hardware": hardware(), "versions": versions(),
                    "seeds": sorted({r["seed"] for r in rows}), "sets": listed,
                    "wall_seconds": round(table.get("wall_seconds", 0.0) + time.perf_counter() - began, 1),
                }  # fmt: skip
                options.output.parent.mkdir(parents=True, exist_ok=True)
                write_text(options.output, json.dumps(table, indent=1, sort_keys=True) + "\n")
                print(
                    f"{name:32s} {label(level):24s} {seed} {'accepted' if row['accepted'] else 'kept':8s} AUC@5 "
                    f"{row['before']['auc5']:5.1f} -> {row['after']['auc5']:5.1f}  {row['seconds']} s  {row['reason']}",
                    flush=True,
                )
    if options.output == RESULT:
        write_text(PAGE, render(table))


if __name__ == "__main__":
    main()
