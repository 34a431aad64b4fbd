"""Speed of the evaluation, beside a plain implementation in the same run.

    python benchmarks/evaluation.py [--out results/evaluation/speed.json] [--repeats 3]

Budgets on two cores: 100 depth maps of 640 x 480 with median and least-squares alignments 5 s, robust alignments and
boundary F1 20 s, two surfaces of 200,000 samples 6 s, AUC over all pairs of 100 views 1 s.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.spatial
import torch
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.memory import peak_rss
from relief3d.core.provenance import commit, hardware, versions
from relief3d.eval.metrics.boundaries import boundary_f1
from relief3d.eval.metrics.camera_conventions import auc_unit_bins, pi3_pair_errors
from relief3d.eval.metrics.depth_alignment import aligned_pixel_errors, masked_parts
from relief3d.eval.metrics.depth_errors import depth_errors
from relief3d.eval.metrics.mesh import evaluate_points, sample_surface
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import make_rigid
from relief3d.io.json_file import write_json

FRAMES, HEIGHT, WIDTH = 100, 480, 640
BASIC, ROBUST = ("metric", "median", "lstsq_scale", "lstsq"), ("scale", "lad")


def depth_maps() -> tuple[Tensor, Tensor, Tensor]:
    """Smooth scenes with steps; predictions with noise, scale and holes in the truth."""
    generator = torch.Generator().manual_seed(0)
    coarse = 1 + 9 * torch.rand(FRAMES, 1, 12, 16, generator=generator)
    truth = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="nearest")[:, 0]
    predicted = truth * 0.7 + 0.2 + 0.1 * torch.randn(truth.shape, generator=generator)
    return predicted.clamp_min(0.05), truth, torch.rand(truth.shape, generator=generator) > 0.1


def plain_depth(predicted: Tensor, truth: Tensor, mask: Tensor) -> None:
    """Frame after frame in numpy: AbsRel, SqRel, RMSE, RMSElog and the deltas under each basic alignment."""
    p_all, g_all, m_all = (t.numpy() for t in (predicted, truth, mask))
    for _ in BASIC:
        for p, g, m in zip(p_all, g_all, m_all):
            a, b = p[m].astype(np.float64), g[m].astype(np.float64)
            scale = np.median(b) / np.median(a)
            a = np.clip(a * scale, 1e-5, None)
            ratio = np.maximum(a / b, b / a)
            _ = np.mean(np.abs(a - b) / b), np.mean((a - b) ** 2 / b), np.sqrt(np.mean((a - b) ** 2))
            _ = np.sqrt(np.mean((np.log(a) - np.log(b)) ** 2)), [np.mean(ratio < 1.25**k) for k in (1, 2, 3)]


def plain_boundaries(predicted: Tensor, truth: Tensor) -> None:
    """One boolean map per threshold and direction, as the definition reads; ten frames."""
    for p, g in zip(predicted[:10].numpy(), truth[:10].numpy()):
        x, y = 1 / np.maximum(p, 1e-6), 1 / np.maximum(g, 1e-6)
        for t in np.linspace(1.05, 1.25, 10):
            for a, b in ((x, y), (x.T, y.T)):
                for s in (1, -1):
                    u, v = a[:, ::s], b[:, ::s]
                    ours, true = u[:, 1:] / u[:, :-1] > t, v[:, 1:] / v[:, :-1] > t
                    hit = (ours & true).sum()
                    _ = hit / max(ours.sum(), 1), hit / max(true.sum(), 1)


def sheet(seed: int, noise: float) -> Mesh:
    n = 301
    axis = torch.linspace(-1, 1, n)
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    z = 0.2 * torch.sin(6 * x) * torch.cos(5 * y)
    z = z + noise * torch.randn(n, n, generator=torch.Generator().manual_seed(seed))
    i = (torch.arange(n - 1)[:, None] * n + torch.arange(n - 1)).reshape(-1)
    faces = torch.cat((torch.stack((i, i + n, i + n + 1), -1), torch.stack((i, i + n + 1, i + 1), -1)))
    return Mesh(torch.stack((x, y, z), -1).view(-1, 3), faces)


def cameras(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    R = matrix_from_axis_angle(torch.randn(count, 3, generator=generator, dtype=torch.float64))
    return make_rigid(R, torch.randn(count, 3, generator=generator, dtype=torch.float64))


def plain_pairs(predicted: Tensor, true: Tensor) -> None:
    """Pair after pair in numpy."""
    a, b = predicted.numpy(), true.numpy()
    errors = []
    for i in range(len(a)):
        for j in range(i + 1, len(a)):
            p, g = a[j] @ np.linalg.inv(a[i]), b[j] @ np.linalg.inv(b[i])
            angle = np.degrees(np.arccos(np.clip((np.trace(p[:3, :3].T @ g[:3, :3]) - 1) / 2, -1, 1)))
            u, v = p[:3, 3] / np.linalg.norm(p[:3, 3]), g[:3, 3] / np.linalg.norm(g[:3, 3])
            errors.append(max(angle, np.degrees(np.arccos(min(1.0, abs(float(u @ v)))))))
    for t in (5, 15, 30):
        _ = np.mean([np.mean(np.asarray(errors) < k) for k in range(1, t + 1)])


def best(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/evaluation/speed.json"))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    predicted, truth, mask = depth_maps()
    rows: list[dict[str, Any]] = []

    def row(name: str, work: Callable[[], object], budget: float | None, plain: float | None = None) -> float:
        seconds = best(work, args.repeats)
        ratio = None if plain is None else plain / seconds
        rows.append(
            {"name": name, "seconds": seconds, "budget": budget, "plain_seconds": plain, "peer_ratio": ratio}
        )
        sys.stdout.write(f"{name}: {seconds:.2f} s (budget {budget}, ratio to plain {ratio})\n")
        sys.stdout.flush()
        return seconds

    def aligned(methods: tuple[str, ...]) -> None:
        parts = masked_parts(predicted, truth, mask, "frame")
        for method in methods:
            aligned_pixel_errors(parts, method)  # type: ignore[arg-type]

    maps = "100 depth maps 640 x 480"
    one = best(lambda: plain_depth(predicted, truth, mask), 1)
    row(
        f"{maps}: none, median, LS scale, LS scale and shift, per frame",
        lambda: aligned(BASIC),
        5,
        one,
    )
    row(f"{maps}: all errors, no alignment", lambda: depth_errors(predicted, truth, mask), 5)
    robust = row(f"{maps}: robust scale, exact LAD, per frame", lambda: aligned(ROBUST), None)
    plain = 10 * best(lambda: plain_boundaries(predicted, truth), 1)
    edges = row(
        f"{maps}: boundary F1, ten thresholds",
        lambda: [boundary_f1(p, g) for p, g in zip(predicted, truth)],
        None,
        plain,
    )
    rows.append(
        {"name": "robust alignments and boundary F1 together", "seconds": robust + edges, "budget": 20.0}
    )
    row(
        "one video of 100 maps: the papers' Adam scale and shift",
        lambda: aligned_video(predicted, truth, mask),
        None,
    )
    generator = torch.Generator().manual_seed(0)
    a, b = (sample_surface(sheet(s, n), 200_000, generator) for s, n in ((1, 0.003), (2, 0.0)))

    def trees() -> None:
        for x, y in ((a, b), (b, a)):
            scipy.spatial.cKDTree(x.points.numpy()).query(y.points.numpy())

    row("two surfaces of 200,000 samples", lambda: evaluate_points(a, b, (0.01, 0.02)), 6, best(trees, 1))
    p, g = cameras(100), cameras(100)

    def auc() -> None:
        errors = pi3_pair_errors(p, g)
        for t in (3, 5, 15, 30):
            auc_unit_bins(torch.maximum(errors.rotation, errors.translation), t)

    row("AUC over the 4,950 pairs of 100 views", auc, 1, best(lambda: plain_pairs(p, g), 1))
    write_json(
        args.out,
        {
            "command": f"python benchmarks/evaluation.py --repeats {args.repeats}",
            "seed": 0,
            "commit": commit(),
            "hardware": hardware() | {"load": os.getloadavg()[0]},
            "versions": versions(),
            "peak_memory_bytes": peak_rss(),
            "rows": rows,
        },
    )


def aligned_video(predicted: Tensor, truth: Tensor, mask: Tensor) -> None:
    aligned_pixel_errors(masked_parts(predicted, truth, mask, "video"), "scale_shift")


if __name__ == "__main__":
    main()
