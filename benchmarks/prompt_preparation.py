"""How long a prompt takes to prepare, and what the quick ways cost in accuracy.

A picture of 640 x 480 with 2,000 points: PDSA at every pixel, on a half-resolution grid enlarged bilinearly, on the
same grid with its fits applied to the full prior, and GMDR. Batches of training pictures. The classical interpolators,
with their error. Truth and pictures are procedural rooms; the prior is the true inverse depth, blurred, scaled, shifted
and bent, as a monocular network's is.

    python benchmarks/prompt_preparation.py             # writes results/metric_anything/prompt_preparation.json
    python benchmarks/prompt_preparation.py --render    # docs/results/prompt_preparation.md from it
    python benchmarks/prompt_preparation.py --check     # does the page agree with the file?
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.provenance import commit, hardware, versions
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.data.nearest_points import nearest_on_grid, prompt_points
from relief3d.data.prompt_alignment import (
    PixelwiseOptions,
    align_global,
    align_pixelwise,
    inverse,
    prompt_conditions,
)
from relief3d.data.prompt_interpolation import INTERPOLATORS
from relief3d.data.prompt_patterns import make_prompt
from relief3d.data.prompt_sampling import CountOptions, sample_prompt
from relief3d.data.prompt_sampling import SamplingOptions as Sampling
from relief3d.io.atomic import write_text
from relief3d.worlds.capture import demo_capture

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "results" / "metric_anything" / "prompt_preparation.json"
PAGE = ROOT / "docs" / "results" / "prompt_preparation.md"
SIZE, POINTS, BATCH = (640, 480), 2000, 16
SIDES = (96, 128, 192)
COUNTS = (100, 500, 2000)
LIMITS = {"half resolution, fits": 60.0, "every pixel": 250.0}
"""Milliseconds on two cores that the work item allows."""
WAYS = {
    "every pixel": PixelwiseOptions(),
    "half resolution, values": PixelwiseOptions(max_side=SIZE[0] // 2),
    "half resolution, fits": PixelwiseOptions(max_side=SIZE[0] // 2, refine="fits"),
}


def timed(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Least and median wall time and least time of all processor cores, in milliseconds, after one run that is not
    counted.
    """
    work()
    wall, cores = [], []
    for _ in range(repeats):
        a, b = time.perf_counter(), time.process_time()
        work()
        wall.append(1e3 * (time.perf_counter() - a))
        cores.append(1e3 * (time.process_time() - b))
    return {"wall_ms": min(wall), "wall_median_ms": statistics.median(wall), "cpu_ms": min(cores)}


def imitated_prior(depth: Tensor, seed: int) -> Tensor:
    """(H, W) disparity: blurred truth, another scale and shift, and a smooth error of 10 %."""
    y = inverse(depth)[None, None]
    y = F.avg_pool2d(F.pad(y, (2, 2, 2, 2), mode="replicate"), 5, 1)
    bend = torch.randn(1, 1, 4, 5, generator=torch_generator(seed))
    bend = F.interpolate(bend, depth.shape, mode="bicubic", align_corners=False)
    return (0.4 * y * torch.exp(0.1 * bend) + 0.05)[0, 0]


def scenes(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Picture (3, H, W) in [0, 1] and depth (H, W) of views of different rooms."""
    out = []
    for index in range(count):
        capture = demo_capture(derive_seed(seed, index) % 1000, 2, SIZE)
        out.append((capture.images[0].float() / 255, capture.depths[0]))
    return out


def near_edges(depth: Tensor) -> Tensor:
    """(H, W) pixels within 4 of a jump of depth by more than 5 %."""
    log = depth.log()[None, None]
    spread = F.max_pool2d(log, 3, 1, 1) + F.max_pool2d(-log, 3, 1, 1)
    return F.max_pool2d((spread > 0.05).float(), 9, 1, 4)[0, 0] > 0


def single(data: list[tuple[Tensor, Tensor]], repeats: int) -> list[dict[str, Any]]:
    """One row per way: times for the first picture, errors over all."""
    rows = []
    prompts = [make_prompt(str(POINTS), depth, seed=i).depth for i, (_, depth) in enumerate(data)]
    priors = [imitated_prior(depth, i) for i, (_, depth) in enumerate(data)]
    exact = [align_pixelwise(x, inverse(p), p > 0) for x, p in zip(priors, prompts, strict=True)]
    for name, options in WAYS.items():
        x, p = priors[0], prompts[0]
        row: dict[str, Any] = {"way": name} | timed(
            lambda x=x, p=p, o=options: align_pixelwise(x, inverse(p), p > 0, o), repeats
        )
        parts: dict[str, list[float]] = {}
        for (_, depth), prior, prompt, full in zip(data, priors, prompts, exact, strict=True):
            made = align_pixelwise(prior, inverse(prompt), prompt > 0, options)
            off, wrong, edge = (made / full - 1).abs(), (made * depth - 1).abs(), near_edges(depth)
            for key, value in {
                "to_exact_mean": off.mean(),
                "to_exact_p99": off.reshape(-1)[::7].quantile(0.99),
                "to_exact_edges": off[edge].mean(),
                "to_truth_mean": wrong.mean(),
                "to_truth_edges": wrong[edge].mean(),
            }.items():
                parts.setdefault(key, []).append(float(value))
        rows.append(row | {key: statistics.fmean(v) for key, v in parts.items()})
        sys.stderr.write(f"{name}\n")
    x, y = priors[0], inverse(prompts[0])
    rows.append({"way": "GMDR"} | timed(lambda: align_global(x, y, y > 0), repeats))
    return rows


def batches(data: list[tuple[Tensor, Tensor]], repeats: int) -> list[dict[str, Any]]:
    """Training batches: the whole condition, milliseconds per picture."""
    rows = []
    for side in SIDES:
        depth = torch.stack(
            [
                F.interpolate(data[i % len(data)][1][None, None], (side, side), mode="nearest-exact")[0, 0]
                for i in range(BATCH)
            ]
        )
        g = torch_generator(0)
        drawn = [sample_prompt(d, None, g, Sampling(CountOptions())) for d in depth]
        prompt = torch.stack([d.prompt.depth for d in drawn if d is not None])
        prior = torch.stack([imitated_prior(d, i) for i, d in enumerate(depth)])
        count = float((prompt > 0).sum()) / BATCH
        for name, grid in (("every pixel", None), ("half resolution, fits", side // 2)):
            options = PixelwiseOptions(max_side=grid, refine="fits")
            time_of = timed(
                lambda p=prior, d=prompt, o=options: prompt_conditions(p, d, pixelwise=o), repeats
            )
            row = {"side": side, "way": name, "points": count}
            rows.append(row | {k: v / BATCH for k, v in time_of.items()})
        points, cells = prompt_points(prompt > 0), (side // 2, side // 2)
        for method in ("tree", "squares"):
            time_of = timed(
                lambda m=method, p=points, s=side, c=cells: nearest_on_grid(p, (s, s), 5, c, method=m),
                repeats,
            )
            row = {"side": side, "way": f"neighbours alone, half resolution, {method}", "points": count}
            rows.append(row | {k: v / BATCH for k, v in time_of.items()})
        sys.stderr.write(f"batches of {side} px\n")
    return rows


def interpolation(data: list[tuple[Tensor, Tensor]]) -> list[dict[str, Any]]:
    """AbsRel of the baselines on clean uniform prompts, and their time."""
    rows = []
    for count in COUNTS:
        for name, spread in INTERPOLATORS.items():
            errors, times = [], []
            for i, (image, depth) in enumerate(data):
                prompt = make_prompt(str(count), depth, seed=i).depth
                start = time.process_time()
                made = spread(prompt, image)
                times.append(1e3 * (time.process_time() - start))
                errors.append(float((made / depth - 1).abs().mean()))
            rows.append(
                {"points": count, "way": name, "abs_rel": statistics.fmean(errors), "cpu_ms": min(times)}
            )
        sys.stderr.write(f"{count} points\n")
    return rows


def page(result: dict[str, Any]) -> str:
    """The page of a result."""
    load = result["load"]
    lines = [
        "# Preparing prompts",
        "",
        f"`{result['command']}`, seed {result['seed']}, commit {result['commit']}, {result['seconds']:.0f} s on "
        f"{result['hardware']['cores']} cores ({result['hardware']['machine']}), {result['threads']} threads of torch; "
        f"{result['rooms']} procedural rooms. The load of the machine was {load[0]:.1f} at the start and {load[1]:.1f} "
        "at the end. Well above 0, wall times hold other people's work, and threads that wait for each other burn core "
        "time too: then both are far above what an idle machine needs, and say nothing about the allowed times. Errors "
        "do not depend on the load.",
        "",
        f"## One picture of {SIZE[0]} x {SIZE[1]}, {POINTS:,} points",
        "",
        "Deviation from the fit at every pixel, and error against the truth, in inverse depth, %; edges: within 4 "
        "pixels of a jump by 5 %.",
        "",
        "| way | least wall, ms | median wall, ms | cores, ms | allowed, ms | deviation | its 99th percentile | at "
        "edges | error | at edges |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in result["single"]:
        cells = [r["way"], *(f"{r[k]:.0f}" for k in ("wall_ms", "wall_median_ms", "cpu_ms"))]
        cells.append(f"{LIMITS[r['way']]:.0f}" if r["way"] in LIMITS else "–")
        keys = ("to_exact_mean", "to_exact_p99", "to_exact_edges", "to_truth_mean", "to_truth_edges")
        cells += [f"{100 * r[k]:.2f}" if k in r else "–" for k in keys]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"## Batches of {BATCH} training pictures, milliseconds per picture",
        "",
        "Whole condition (PDSA, GMDR, mask) unless it says neighbours alone.",
        "",
        "| side | points | way | least wall | cores |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['side']} | {r['points']:.0f} | {r['way']} | {r['wall_ms']:.1f} | {r['cpu_ms']:.1f} |"
        for r in result["batches"]
    ]
    lines += [
        "",
        "## Classical interpolators, clean uniform prompts",
        "",
        "| points | way | AbsRel, % | cores, ms |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {r['points']} | {r['way']} | {100 * r['abs_rel']:.2f} | {r['cpu_ms']:.0f} |"
        for r in result["interpolation"]
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--rooms", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.check:
        same = PAGE.is_file() and PAGE.read_text() == page(json.loads(RESULT.read_text()))
        return 0 if same else 1
    if not options.render:
        start, load = time.time(), os.getloadavg()[0]
        data = scenes(options.rooms, options.seed)
        result = {
            "command": "python benchmarks/prompt_preparation.py",
            "seed": options.seed,
            "commit": commit(),
            "hardware": hardware(),
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "rooms": options.rooms,
            "single": single(data, options.repeats),
            "batches": batches(data, options.repeats),
            "interpolation": interpolation(data),
        }
        result |= {"seconds": time.time() - start, "load": [load, os.getloadavg()[0]]}
        write_text(RESULT, json.dumps(result, indent=1) + "\n")
    write_text(PAGE, page(json.loads(RESULT.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
