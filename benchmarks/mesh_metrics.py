"""Mesh metrics of 200k against 200k points: scipy against Open3D in one run. Prints one JSON object.

python benchmarks/mesh_metrics.py [--points 200000] [--json results/foundation/mesh_metrics.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch

from relief3d.core.contract import Mesh
from relief3d.eval.metrics.mesh import evaluate_points, sample_surface
from relief3d.render.open3d_backend import open3d_status


def bumpy(seed: int, noise: float) -> Mesh:
    """A noisy sheet of 2 x 2 m with 180k triangles, folded into waves."""
    n = 301
    axis = torch.linspace(-1, 1, n)
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    z = 0.2 * torch.sin(6 * x) * torch.cos(5 * y)
    z = z + noise * torch.randn(n, n, generator=torch.Generator().manual_seed(seed))
    i = (torch.arange(n - 1)[:, None] * n + torch.arange(n - 1)).reshape(-1)
    faces = torch.cat((torch.stack((i, i + n, i + n + 1), -1), torch.stack((i, i + n + 1, i + 1), -1)))
    return Mesh(torch.stack((x, y, z), -1).view(-1, 3), faces)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    began = time.perf_counter()
    one = sample_surface(bumpy(1, 0.003), args.points, generator)
    two = sample_surface(bumpy(2, 0.0), args.points, generator)
    sampling = time.perf_counter() - began
    usable, why = open3d_status()
    rows = {}
    for backend in ["scipy", "open3d"] if usable else ["scipy"]:
        seconds = []
        for _ in range(args.repeats):
            began = time.perf_counter()
            got = evaluate_points(one, two, (0.01, 0.02), relative=True, backend=backend)  # type: ignore[arg-type]
            seconds.append(round(time.perf_counter() - began, 3))
        rows[backend] = {
            "seconds": seconds,
            "best_s": min(seconds),
            "chamfer_l1": got.chamfer_l1,
            "fscore_1pct": got.scores[0].fscore,
        }
    result = {
        "benchmark": "mesh_metrics",
        "command": f"python benchmarks/mesh_metrics.py --points {args.points} --threads {args.threads}",
        "points": args.points,
        "seed": 0,
        "sampling_s": round(sampling, 3),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "open3d": why,
        "back_ends": rows,
        "targets": {"best_s": 4.0},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
