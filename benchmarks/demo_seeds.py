"""The demo on many rooms: every seed, the mean and the worst, against the targets of the main job.

    python benchmarks/demo_seeds.py [--seeds 10] [--out results/foundation/demo_seeds.json]

Each seed is one room and one walk; the photos carry no truth. Finished seeds are kept, so an interrupted run
continues.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from relief3d.pipelines.demo import run_demo

TARGETS = {
    "auc5": (">=", 95.0),
    "ate_percent_of_path": ("<=", 0.5),
    "abs_rel_percent": ("<=", 1.0),
    "kept_of_covisible_percent": (">=", 60.0),
    "fscore2_percent": (">=", 90.0),
}


def row(seed: int, numbers: dict, seconds: float) -> dict[str, float]:
    cameras, depth, mesh = numbers["cameras"], numbers["depth"]["mean"], numbers["mesh"]["scores"]
    ate = cameras["ate_sim3"]
    return {
        "seed": seed,
        "registered": cameras["registered"],
        "auc5": cameras["auc"]["5"],
        "ate_percent_of_path": 100 * ate["rmse"] / ate["path_length"],
        "abs_rel_percent": 100 * depth["abs_rel"],
        "kept_percent": 100 * depth["kept"],
        "kept_of_covisible_percent": 100 * depth["kept_of_seen_1"],
        "kept_of_seen_by_two_percent": 100 * depth["kept_of_seen_2"],
        "ceiling_percent": 100 * depth["ceiling_1"],
        "fscore1_percent": 100 * mesh["1%"]["fscore"],
        "fscore2_percent": 100 * mesh["2%"]["fscore"],
        "precision2_percent": 100 * mesh["2%"]["precision"],
        "recall2_percent": 100 * mesh["2%"]["recall"],
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--quality", default="default")
    parser.add_argument("--out", type=Path, default=Path("results/foundation/demo_seeds.json"))
    args = parser.parse_args()
    done: dict[int, dict[str, float]] = {}
    if args.out.exists():
        done = {int(r["seed"]): r for r in json.loads(args.out.read_text())["rows"]}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        if seed in done:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            began = time.monotonic()
            result = run_demo(Path(scratch) / "demo", seed=seed, views=args.views, quality=args.quality)
            done[seed] = row(seed, result.numbers, time.monotonic() - began)
        sys.stdout.write(json.dumps(done[seed]) + "\n")
        sys.stdout.flush()
        args.out.write_text(json.dumps(summary(list(done.values()), args), indent=1) + "\n")


def summary(rows: list[dict[str, float]], args: argparse.Namespace) -> dict:
    rows = sorted(rows, key=lambda r: r["seed"])
    worst, mean, met = {}, {}, {}
    for name, (sign, target) in TARGETS.items():
        values = [r[name] for r in rows]
        worst[name] = min(values) if sign == ">=" else max(values)
        mean[name] = sum(values) / len(values)
        met[name] = bool(worst[name] >= target if sign == ">=" else worst[name] <= target)
    return {
        "command": f"python benchmarks/demo_seeds.py --seeds {args.seeds} --quality {args.quality}",
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "targets": {k: f"{sign} {v}" for k, (sign, v) in TARGETS.items()},
        "worst": worst,
        "mean": mean,
        "met_by_the_worst_seed": met,
        "rows": rows,
    }


if __name__ == "__main__":
    main()
