"""Photos to mesh on this machine: wall time, peak memory and the share of each stage, as a user would run it.

    python benchmarks/reconstruct.py [--set strecha_fountain_p11] [--out results/foundation/reconstruct.json]

Runs the ordinary command in a process of its own on the pictures alone (no cameras given) and reads what the
operating system says about that process. The plan made before the run is recorded beside the measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GIB = 1024**3


def shared() -> Path:
    return Path(os.environ.get("RELIEF3D_SHARED", "../shared")) / "data"


def load() -> float:
    return os.getloadavg()[0]


def run(folder: Path, out: Path, extra: list[str]) -> dict[str, object]:
    command = [sys.executable, "-m", "relief3d", "reconstruct", str(folder), "-o", str(out), "-q", *extra]
    before, began = load(), time.monotonic()
    subprocess.run(command, check=True)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    info = json.loads((out / "scene.json").read_text())["info"]
    stages = {name: round(record["seconds"], 1) for name, record in info["stages"].items()}
    total = sum(stages.values())
    return {
        "pictures": info["views"],
        "registered": info["registered"],
        "seconds": round(seconds, 1),
        "peak_gib": round(peak / GIB, 2),
        "stage_seconds": stages,
        "stage_share": {name: round(s / total, 3) for name, s in stages.items()},
        "triangles": (info["mesh"] or {}).get("faces"),
        "load_before": round(before, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", default="strecha_fountain_p11")
    parser.add_argument("--out", type=Path, default=Path("results/foundation/reconstruct.json"))
    parser.add_argument("extra", nargs="*", help="further options of relief3d reconstruct, after --")
    args = parser.parse_args()
    folder = shared() / args.set / "images"
    with tempfile.TemporaryDirectory() as scratch:
        measured = run(folder, Path(scratch) / "out", args.extra)
    plan = subprocess.run(
        [sys.executable, "-m", "relief3d", "plan", str(folder), *args.extra],
        capture_output=True,
        text=True,
        check=True,
    )
    result = {
        "command": f"python benchmarks/reconstruct.py --set {args.set} {' '.join(args.extra)}".strip(),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "set": args.set,
        **measured,
        "plan": plan.stdout.splitlines(),
        "targets": {"seconds": 240, "peak_gib": 4.0},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
