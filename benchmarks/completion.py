"""Does filling the holes of stereo depth with a prompted network make reconstructions better?

Procedural rooms as phone captures are reconstructed once without completion. Their stereo maps are then filled as
``relief3d reconstruct --completion teacher`` fills them, fused again, and both are compared with the exact truth. An
interrupted run goes on at the room where it stopped.

    python benchmarks/completion.py                    # writes results/metric_anything/completion.json and its page
    python benchmarks/completion.py --weights FILE     # another network than the packaged one
    python benchmarks/completion.py --render           # the page from the file
    python benchmarks/completion.py --check            # does the page agree with the file?
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from relief3d.core.progress import SilentProgress
from relief3d.core.provenance import commit, hardware, versions
from relief3d.eval.reference import compare
from relief3d.io.atomic import write_text
from relief3d.io.depth import write_depth
from relief3d.io.json_file import read_json_object, write_json
from relief3d.models.metric.opening import MetricWeights
from relief3d.pipelines.demo import PHOTOS, RESULT, TRUTH, write_capture
from relief3d.pipelines.reconstruct.completion import StereoMap, complete, completion_weights
from relief3d.pipelines.reconstruct.config import ReconstructConfig
from relief3d.pipelines.reconstruct.depth import depth_file, reload_depth
from relief3d.pipelines.reconstruct.pinhole import pinhole_view
from relief3d.pipelines.reconstruct.run import load_scene, reconstruct
from relief3d.pipelines.reconstruct.surface import solve_surface
from relief3d.stereo.views import PreparedView

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "results" / "metric_anything" / "completion.json"
PAGE = ROOT / "docs" / "results" / "completion.md"
COLUMNS = {
    "f1": "F at 1 %",
    "f2": "F at 2 %",
    "precision": "precision at 1 %",
    "recall": "recall at 1 %",
    "kept": "pixels with depth",
    "abs_rel": "their AbsRel",
}


def numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """What the table shows, in percent."""
    mesh, depth = found["mesh"]["scores"], found["depth"]["mean"]
    values = {
        "f1": mesh["1%"]["fscore"],
        "f2": mesh["2%"]["fscore"],
        "precision": mesh["1%"]["precision"],
        "recall": mesh["1%"]["recall"],
        "kept": depth["kept"],
        "abs_rel": depth["abs_rel"],
    }
    return {k: 100 * float(v) for k, v in values.items()}


def completed(folder: Path, weights: MetricWeights) -> tuple[Path, float, float]:
    """The result of a room with its stereo depth filled and fused again; share of pixels filled, and seconds."""
    result, out = folder / RESULT, folder / "completed"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(result, out)
    scene = load_scene(result)
    views = _stage(result)["views"]
    place = {v.name: i for i, v in enumerate(scene.views)}
    maps = reload_depth(scene, result)
    stereo = {}
    for one in maps:
        view = pinhole_view(scene.views[one.index])
        prepared = PreparedView(one.index, view.name, one.camera, torch.zeros(0))
        near = tuple(place[n] for n in views[view.name]["neighbours"])
        stereo[one.index] = StereoMap(view, prepared, one.load(scene.metric), near)
    began = time.monotonic()
    depths, shares = complete(stereo, scene, weights, "cpu", SilentProgress())
    seconds = time.monotonic() - began
    for one in maps:
        write_depth(depth_file(out / "depth", scene.views[one.index]), depths[one.index])
    solve_surface(scene, reload_depth(scene, out), ReconstructConfig(splats=False), out, SilentProgress())
    return out, mean(shares.values()), seconds / len(maps)


def _stage(result: Path) -> Mapping[str, Any]:
    """Facts of the depth stage."""
    facts: Mapping[str, Any] = read_json_object(result / ".relief3d" / "state.json")["stages"]["depth"][
        "facts"
    ]
    return facts


def room(folder: Path, seed: int, views: int, width: int, weights: MetricWeights) -> dict[str, Any]:
    """Both results of one room."""
    progress = SilentProgress()
    kept = folder / "numbers.json"
    if not kept.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        truth = write_capture(folder, seed=seed, views=views, width=width, progress=progress)
        reconstruct(folder / PHOTOS, folder / RESULT, config=ReconstructConfig(seed=seed, splats=False))
        write_json(kept, numbers(compare(folder / RESULT, truth, mesh=folder / TRUTH / "mesh.ply")))
    out, filled, seconds = completed(folder, weights)
    found = compare(out, folder / TRUTH / "cameras.json", mesh=folder / TRUTH / "mesh.ply")
    return {
        "seed": seed,
        "without": read_json_object(kept),
        "with": numbers(found),
        "filled": 100 * filled,
        "seconds_per_view": seconds,
    }


def page(result: Mapping[str, Any]) -> str:
    """The page of a result."""
    lines = [
        "# Stereo depth completed by a prompted network",
        "",
        f"`{result['command']}`, commit {result['commit']}, weights {result['weights']} (SHA-256 "
        f"{result['digest'][:12]}...), {result['hardware']['cores']} cores ({result['hardware']['machine']}), load "
        f"{result['load'][0]:.1f} to {result['load'][1]:.1f}. {result['views']} photos of {result['width']} pixels per "
        "room; %, higher is better but for AbsRel, which is over more and harder pixels with completion.",
        "",
        "| room | completion | " + " | ".join(COLUMNS.values()) + " | filled | s per view |",
        "|---|---|" + "---|" * (len(COLUMNS) + 2),
    ]
    for row in result["rooms"]:
        for way in ("without", "with"):
            cells = [f"{row[way][k]:.2f}" for k in COLUMNS]
            extra = (
                [f"{row['filled']:.1f}", f"{row['seconds_per_view']:.1f}"] if way == "with" else ["–", "–"]
            )
            lines.append("| " + " | ".join([str(row["seed"]), way, *cells, *extra]) + " |")
    for way in ("without", "with"):
        cells = [f"{mean(r[way][k] for r in result['rooms']):.2f}" for k in COLUMNS]
        lines.append("| " + " | ".join(["mean", way, *cells, "–", "–"]) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag in ("--render", "--check"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--weights", default="")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "completion")
    options = parser.parse_args()
    if options.check:
        same = PAGE.is_file() and PAGE.read_text() == page(json.loads(FILE.read_text()))
        return 0 if same else 1
    if not options.render:
        began, load = time.time(), os.getloadavg()[0]
        config = ReconstructConfig(completion="teacher", completion_model=options.weights)
        weights = completion_weights(config, SilentProgress())
        assert weights is not None
        rooms = []
        for seed in options.seeds:
            # What is kept of an interrupted run holds for these sizes alone.
            folder = options.work / f"room{seed}-{options.views}x{options.width}"
            rooms.append(room(folder, seed, options.views, options.width, weights))
            sys.stderr.write(f"{rooms[-1]}\n")
        seeds = " ".join(map(str, options.seeds))
        flags = f" --seeds {seeds} --views {options.views} --width {options.width}"
        flags += " --weights FILE" if options.weights else ""
        write_json(
            FILE,
            {
                "command": f"python benchmarks/completion.py{flags}",
                "commit": commit(),
                "hardware": hardware(),
                "versions": versions(),
                "weights": weights.label,
                "digest": weights.digest,
                "views": options.views,
                "width": options.width,
                "rooms": rooms,
                "seconds": time.time() - began,
                "load": [load, os.getloadavg()[0]],
            },
        )
    write_text(PAGE, page(json.loads(FILE.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
