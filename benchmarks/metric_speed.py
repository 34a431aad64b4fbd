"""How long metric depth takes: prompts and the small teacher on a processor, the full networks on an accelerator.

On the processor: preparing a prompt of 2,000 points at 640 x 480 (both alignments and the mask), and the small teacher
at 480 x 360 with 500 points, beside plain interpolation of the same prompt in the same run. On an accelerator:
Student-DepthMap and teacher at their
own 1536 x 1536 (FP32 storage with TF32 allowed, with TF32 off, and bfloat16), Student-PointMap at 640 x 480 with one
token per 14 x 14 pixels; batch 1, from the picture on the device to depth, median of 50 calls after 10. Weights are
random: the time does not depend on them. Without an accelerator these rows say "not measured", and --rehearse runs the
same code with nano networks on the processor.

    python benchmarks/metric_speed.py               # writes results/metric_anything/speed.json and its page
    python benchmarks/metric_speed.py --rehearse    # seconds; writes nothing
    python benchmarks/metric_speed.py --render      # the page from the file
    python benchmarks/metric_speed.py --check       # does the page agree with the file?
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

from relief3d.core.device import Precision, peak_memory, reset_peak_memory, resolve_device
from relief3d.core.provenance import commit, hardware, versions
from relief3d.core.seeding import torch_generator
from relief3d.data.pixelwise_alignment import PixelwiseOptions, align_pixelwise
from relief3d.data.prompt_alignment import inverse, prompt_condition
from relief3d.data.prompt_candidates import prompt_candidates
from relief3d.data.prompt_interpolation import spread_bilateral, spread_linear
from relief3d.eval.protocols.base import Query
from relief3d.eval.protocols.downstream.runtime import REPEATS, WARMUPS, time_model
from relief3d.io.atomic import write_text
from relief3d.io.json_file import write_json
from relief3d.models.metric.inference import PyramidOptions, wrap_metric
from relief3d.models.metric.interface import Focal
from relief3d.models.metric.networks import DepthMap, Teacher
from relief3d.models.metric.pointmap import PointMap
from relief3d.models.metric.pointmap_configs import pointmap_config
from relief3d.models.metric.pointmap_infer import PointMapModel
from relief3d.models.metric.prompted import PromptedDepth
from relief3d.models.metric.refiner import refiner_config
from relief3d.models.metric.sizes import depth_map_config, teacher_config

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "results" / "metric_anything" / "speed.json"
PAGE = ROOT / "docs" / "results" / "metric_speed.md"
ALLOWED = {
    "prompt, every pixel": 250.0,
    "prompt, half resolution": 60.0,
    "small teacher": 500.0,
    "Student-DepthMap, TF32": 278.8,
    "Student-DepthMap, bfloat16": 120.0,
    "teacher, TF32": 285.0,
    "teacher, bfloat16": 120.0,
    "Student-PointMap, TF32": 29.0,
}
"""Milliseconds that the work item allows: the first three on two cores, the others on an H200."""
MODES: tuple[tuple[str, Precision, bool], ...] = (
    ("TF32", "float32", True),
    ("TF32 off", "float32", False),
    ("bfloat16", "bfloat16", True),
)


class Call:
    """Something to be timed by :func:`time_model`, from prepared tensors on."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work

    def prepare(self, query: Query) -> Callable[[], Any]:
        return self.work

    def __call__(self, query: Query) -> Any:
        return self.work()


def timed(
    work: Callable[[], Any], device: torch.device, warmups: int, repeats: int, tf32: bool
) -> dict[str, Any]:
    """Median, least and largest wall time in milliseconds; on a processor also the least time of all its cores."""
    reset_peak_memory(device)
    began = time.process_time()
    query = Query("speed", "runtime", ())
    said = time_model(
        Call(work),
        query,
        device=device,
        warmups=warmups,
        repeats=repeats,
        tf32=tf32,  # type: ignore[arg-type]
    )
    wall = [1e3 * s for s in said.facts["seconds"]]
    row = {
        "median_ms": statistics.median(wall),
        "least_ms": min(wall),
        "most_ms": max(wall),
        "repeats": repeats,
    }
    if device.type == "cpu":
        row["cores_ms"] = 1e3 * (time.process_time() - began) / (warmups + repeats)
    else:
        row["peak_bytes"] = peak_memory(device)
    return row


def steps(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A picture (3, H, W) and depth (H, W) of slanted boxes; what is shown does not change the time."""
    g = torch_generator(seed)
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    depth = 4 + x + 0.5 * y
    image = torch.full((3, height, width), 0.5)
    for _ in range(12):
        top, left, tall, wide, z = torch.rand(5, generator=g).tolist()
        inside = (y >= top) & (y < top + 0.3 * tall) & (x >= left) & (x < left + 0.3 * wide)
        depth = torch.where(inside, 1 + 3 * z + 0.3 * x, depth)
        image = torch.where(inside, torch.rand(3, 1, 1, generator=g), image)
    return image, depth


def sparse(depth: Tensor, count: int, seed: int = 0) -> Tensor:
    """(H, W) with ``count`` known pixels."""
    keep = torch.randperm(depth.numel(), generator=torch_generator(seed))[:count]
    out = torch.zeros(depth.numel())
    out[keep] = depth.reshape(-1)[keep]
    return out.reshape(depth.shape)


def on_processor(small: bool, repeats: int) -> list[dict[str, Any]]:
    """Preparing prompts, the small teacher, and plain ways beside it."""
    device = torch.device("cpu")
    width, height, points = (160, 120, 200) if small else (640, 480, 2000)
    _, depth = steps(height, width)
    prompt = sparse(depth, points)
    prior = F.avg_pool2d(inverse(depth)[None, None], 5, 1, 2)[0, 0] * 0.4 + 0.05
    known, given = prompt > 0, inverse(prompt)
    half = PixelwiseOptions(max_side=width // 2, refine="fits")
    exact = align_pixelwise(prior, given, known)
    coarse = align_pixelwise(prior, given, known, half)
    off = (coarse / exact - 1).abs()
    rows: list[dict[str, Any]] = []

    def add(name: str, what: str, work: Callable[[], Any], **facts: Any) -> None:
        rows.append({"name": name, "what": what} | timed(work, device, 1, repeats, True) | facts)
        sys.stderr.write(f"{name}: {rows[-1]['median_ms']:.0f} ms\n")

    size = f"{width} x {height}, {points} points"
    add("prompt, every pixel", size, lambda: prompt_condition(prior, prompt))
    add(
        "prompt, half resolution",
        size,
        lambda: prompt_condition(prior, prompt, pixelwise=half),
        deviation_mean=float(off.mean()),
        deviation_p99=float(off.reshape(-1)[::3].quantile(0.99)),
    )
    width, height, points = (96, 72, 60) if small else (480, 360, 500)
    image, depth = steps(height, width)
    prompt = sparse(depth, points)
    size = f"{width} x {height}, {points} points"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = PromptedDepth(refiner_config("nano" if small else "mini")).eval()
    add("candidates of a prompt", size, lambda: prompt_candidates(prompt))
    add("small teacher", size, lambda: teacher.predict_sparse(image[None], [prompt]))
    add("plain: linear in 1/z", size, lambda: spread_linear(prompt))
    add("plain: bilateral 16-NN", size, lambda: spread_bilateral(prompt, image))
    return rows


Asked = Callable[[Any, Precision, Tensor], Any]


def networks(small: bool) -> list[tuple[str, Callable[[], Any], Asked, tuple[int, int]]]:
    """Name, network, how it is asked, and size (H, W) of its picture."""
    size: Any = "nano" if small else "full"
    side = 128 if small else 1536

    def student(network: Any, precision: Precision, image: Tensor) -> Any:
        model = wrap_metric(network, PyramidOptions(precision=precision))
        return model.predict(image, Focal.given(1000.0))  # type: ignore[call-arg, arg-type]

    def teacher(network: Any, precision: Precision, image: Tensor) -> Any:
        model = wrap_metric(network, PyramidOptions(precision=precision))
        condition = torch.full_like(image, 0.3)
        return model.predict(image, condition, Focal.given(1000.0))  # type: ignore[call-arg, arg-type]

    def points(network: Any, precision: Precision, image: Tensor) -> Any:
        kind = torch.bfloat16 if precision == "bfloat16" else None
        return PointMapModel(network, tokens="native", autocast=kind).infer(image, Focal.given(600.0))

    return [
        ("Student-DepthMap", lambda: DepthMap(depth_map_config(size)), student, (side, side)),
        ("teacher", lambda: Teacher(teacher_config(size)), teacher, (side, side)),
        (
            "Student-PointMap",
            lambda: PointMap(pointmap_config(size)),
            points,
            (60, 80) if small else (480, 640),
        ),
    ]


def on_accelerator(device: torch.device, small: bool, warmups: int, repeats: int) -> list[dict[str, Any]]:
    """The full networks; rows without times where there is no accelerator."""
    rows: list[dict[str, Any]] = []
    for name, build, ask, (height, width) in networks(small):
        what = f"{width} x {height}"
        if device.type == "cpu" and not small:
            rows += [{"name": f"{name}, {mode}", "what": what} for mode, _, _ in MODES]
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build().eval().to(device)
        image = torch.rand(1, 3, height, width, generator=torch_generator(0)).to(device)
        for mode, precision, tf32 in MODES:
            row = timed(
                lambda n=network, p=precision, i=image, a=ask: a(n, p, i), device, warmups, repeats, tf32
            )
            rows.append({"name": f"{name}, {mode}", "what": what} | row)
            sys.stderr.write(f"{name}, {mode}: {row['median_ms']:.1f} ms\n")
        del network
    return rows


def page(result: dict[str, Any]) -> str:
    """The page of a result."""
    machine = result["hardware"]
    lines = [
        "# Speed of metric depth",
        "",
        f"`{result['command']}`, seed 0, commit {result['commit']}, {result['seconds']:.0f} s on "
        f"{machine['cores']} cores ({machine['machine']}), {result['threads']} threads of torch, accelerator: "
        f"{machine.get('accelerator', 'none')}. Load of the machine {result['load'][0]:.1f} at the start, "
        f"{result['load'][1]:.1f} at the end: far above 0, times of the processor hold other people's work and say "
        "nothing about what is allowed. Random weights.",
        "",
        "| | at | median, ms | least, ms | cores, ms | allowed, ms |",
        "|---|---|---|---|---|---|",
    ]
    for row in [*result["processor"], *result["accelerator"]]:
        times = [f"{row[k]:.1f}" if k in row else "–" for k in ("median_ms", "least_ms", "cores_ms")]
        if "median_ms" not in row:
            times[0] = "not measured"
        allowed = ALLOWED.get(row["name"])
        cells = [row["name"], row["what"], *times, "–" if allowed is None else f"{allowed:g}"]
        lines.append("| " + " | ".join(cells) + " |")
    half = next(r for r in result["processor"] if "deviation_mean" in r)
    lines += [
        "",
        f"Half resolution deviates from the fit at every pixel by {100 * half['deviation_mean']:.2f} % on the mean, "
        f"{100 * half['deviation_p99']:.2f} % at the 99th percentile (inverse depth of this picture; on rooms: "
        "[prompt_preparation.md](prompt_preparation.md)).",
        "",
        "Times of the accelerator: batch 1, from the picture on the device to depth at its size, median of "
        f"{REPEATS} calls after {WARMUPS}. Rows of the processor: {half['repeats']} calls after one. The small "
        "teacher's time holds that of its candidates.",
    ]
    return "\n".join(lines) + "\n"


def measured(small: bool, repeats: int) -> dict[str, Any]:
    """All rows; with ``small`` those of a rehearsal."""
    start, load = time.time(), os.getloadavg()[0]
    device = torch.device("cpu") if small else resolve_device("auto")
    calls = (1, 2) if small else (WARMUPS, REPEATS)
    with torch.no_grad():
        result: dict[str, Any] = {
            "command": "python benchmarks/metric_speed.py",
            "seed": 0,
            "commit": commit(),
            "hardware": hardware(),
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "processor": on_processor(small, 2 if small else repeats),
            "accelerator": on_accelerator(device, small, *calls),
        }
    return result | {"seconds": time.time() - start, "load": [load, os.getloadavg()[0]]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag in ("--rehearse", "--render", "--check"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    if options.check:
        same = PAGE.is_file() and PAGE.read_text() == page(json.loads(RESULT.read_text()))
        return 0 if same else 1
    if options.rehearse:
        sys.stdout.write(page(measured(True, options.repeats)))
        return 0
    if not options.render:
        write_json(RESULT, measured(False, options.repeats))
    write_text(PAGE, page(json.loads(RESULT.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
