"""The main job on every real photo set, with our own cameras and with the reference cameras, against the truth.

    python benchmarks/real_sets.py [--only NAME ...] [--out results/foundation/real_sets.json] [--keep out/real]

Finished runs are kept in the result file, so an interrupted benchmark continues; ``--again`` repeats. The output
folders stay under ``--keep`` (ignored by git: they show pixels of photos that may not be redistributed).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relief3d.core.errors import ReliefError
from relief3d.core.progress import ConsoleProgress
from relief3d.eval.reference import compare, format_comparison
from relief3d.pipelines.reconstruct import ReconstructConfig, reconstruct


@dataclass(frozen=True)
class Run:
    """One reconstruction: what is given, and which options differ from the defaults."""

    name: str
    data: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    compared: bool = True


def own(name: str, data: str, compared: bool = True, **options: Any) -> Run:
    """From the photos alone."""
    return Run(name, data, "images", options, compared)


def given(name: str, data: str, **options: Any) -> Run:
    """With the reference's intrinsics and poses; its depth is hidden."""
    return Run(name, data, "cameras.json", {"depth_source": "stereo", **options})


RUNS = (
    own("fountain, own cameras", "strecha_fountain_p11"),
    own("castle, own cameras", "strecha_castle_p19"),
    own("fox, own cameras", "fox_head25"),
    own("sceaux, own cameras", "sceaux_castle11", compared=False),
    given("rendered room, given cameras", "rendered_room8"),
    own("rendered room, own cameras", "rendered_room8"),
    given("hololens, given cameras", "hololens_room"),
    own("hololens, own cameras", "hololens_room", ordered=True),
    given("temple ring, given cameras", "middlebury_temple_ring16"),
    own("temple ring, own cameras", "middlebury_temple_ring16"),
    given("office, given cameras", "rgbd_office5"),
    own("office, own cameras", "rgbd_office5"),
    given("office, sensor depth", "rgbd_office5", depth_source="given"),
)


def execute(run: Run, data: Path, keep: Path) -> dict[str, Any]:
    folder = data / run.data
    out = keep / run.name.replace(", ", "-").replace(" ", "_")
    began = time.monotonic()
    config = ReconstructConfig(**{"overwrite": True, **run.options})
    try:
        scene = reconstruct(folder / run.source, out, config=config, progress=ConsoleProgress())
    except ReliefError as exc:
        return {
            "refused": str(exc).replace(str(folder), run.data),
            "seconds": round(time.monotonic() - began, 1),
        }
    row: dict[str, Any] = {
        "registered": scene.info["registered"],
        "views": scene.info["views"],
        "seconds": scene.info["seconds"],
        "peak_gib": round(scene.info["peak_memory_bytes"] / 1024**3, 2),
        "depth_views": scene.info["depth_views"],
        "depth_kept": scene.info["depth_kept"],
        "triangles": (scene.info["mesh"] or {}).get("faces"),
    }
    if run.compared:
        numbers = compare(out, folder / "cameras.json")
        sys.stdout.write(format_comparison(numbers) + "\n")
        cameras = numbers["cameras"]
        row["auc5"] = cameras["auc"]["5"]
        row["cameras"] = {name: cameras[name] for name in ("auc", "rra", "rta", "rpe")}
        for name in ("ate_sim3", "ate_rigid"):
            if cameras[name] is not None:
                row["cameras"][name] = {k: cameras[name][k] for k in ("rmse", "mean", "path_length", "count")}
        if depth := numbers.get("depth"):
            row["depth"] = depth["mean"]
        row |= {name: numbers[name] for name in ("mesh", "mesh_of_used_views") if name in numbers}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/foundation/real_sets.json"))
    parser.add_argument("--keep", type=Path, default=Path("out/real"))
    args = parser.parse_args()
    data = Path(os.environ.get("RELIEF3D_SHARED", "../shared")) / "data"
    result: dict[str, Any] = {"rows": {}}
    if args.out.exists():
        result = json.loads(args.out.read_text())
    for run in RUNS:
        if args.only and not any(word in run.name for word in args.only):
            continue
        if run.name in result["rows"] and not args.again:
            continue
        sys.stdout.write(f"== {run.name}\n")
        sys.stdout.flush()
        row = execute(run, data, args.keep)
        result["command"] = "python benchmarks/real_sets.py"
        result["hardware"] = f"{os.cpu_count()} cores, {platform.machine()}"
        result["rows"][run.name] = {"set": run.data, "options": dict(run.options), **row}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
