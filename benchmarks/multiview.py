"""Time and memory of VGGT and pi3 at full size, with random weights: the plain way against the engine.

python benchmarks/multiview.py [--json results/multiview/performance.json] [--views 1 2 4 8 16 32 64] [--timed-224 16]
python benchmarks/multiview.py --device auto   (on an accelerator: the same rows there in bfloat16, and the targets)
python benchmarks/multiview.py --render        (writes docs/performance.md from the results)

"plain" (benchmarks/multiview_plain.py) uses the same weights, keeps the output of every pair of blocks and runs the
same heads (cameras, depth, points for VGGT); "engine" is what the library does. Both are timed in turn, in one process,
and compared by the ratio of their medians. Memory is counted twice: the bytes of tensors alive at the worst moment
(exact, also for sizes that do not fit this machine, where nothing is computed) and, for timed runs on a CPU, the growth
of the process' resident memory. Weights and pictures are not part of either.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import multiview_plain as plain
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from relief3d.core.device import resolve_device
from relief3d.core.provenance import commit, hardware, versions
from relief3d.core.tensor_memory import PeakTensorBytes
from relief3d.models.multiview.attention_choice import attention_by_name
from relief3d.models.multiview.configs import pi3_config, vggt_config
from relief3d.models.multiview.interface import autocast_dtype
from relief3d.models.multiview.pi3 import Pi3
from relief3d.models.multiview.vggt import Vggt

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "results" / "multiview" / "performance.json"
PAGE = ROOT / "docs" / "performance.md"
CHUNK = 8
DEVICE_ROWS = (
    ("VGGT cameras, 100 frames at 518x392, bfloat16", "s", 4.0),
    ("VGGT cameras and depth, 100 frames at 518x392, bfloat16", "s", 6.0),
    ("VGGT cameras and depth, 100 frames: peak memory", "GB", 25.0),
    ("VGGT cameras, 100 frames, merged tokens", "s", 2.5),
    ("VGGT cameras and depth, 1,000 frames fit: peak memory", "GB", 139.0),
)
"""What an accelerator of the H200 class should reach."""
Run = Callable[[], Any]


def arms(network: nn.Module, images: Tensor) -> dict[str, Run]:
    if isinstance(network, Vggt):
        return {
            "plain": lambda: plain.vggt(network, images),
            "engine": lambda: network(images, heads=("camera", "depth", "points"), chunk=CHUNK),
        }
    assert isinstance(network, Pi3)
    return {"plain": lambda: plain.pi3(network, images), "engine": lambda: network(images, chunk=CHUNK)}


def build(name: str, size: str) -> nn.Module:
    return (Vggt(vggt_config(size)) if name == "vggt" else Pi3(pi3_config(size))).eval()  # type: ignore[arg-type]


def counted(name: str, size: str, views: int, side: int) -> dict[str, int]:
    """Bytes alive at the worst moment, by arm, without computing anything."""
    out = {}
    with FakeTensorMode(), torch.inference_mode():
        network = build(name, size)
        for arm, run in arms(network, torch.zeros(1, views, 3, side, side)).items():
            with PeakTensorBytes() as memory:
                answer = run()
            out[arm] = memory.peak
            del answer
    return out


class Grown:
    """Growth of memory above what was there at the start: resident memory (Linux), or an accelerator's allocations."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> Grown:
        gc.collect()
        self.bytes: int | None = None
        if self.device.type != "cpu":
            _synchronise(self.device, reset=True)
            self.before: int | None = torch.get_device_module(self.device).memory_allocated()
            return self
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        self.before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        peak = _status("VmHWM") if self.device.type == "cpu" else int(_synchronise(self.device))
        self.bytes = None if peak is None or self.before is None else peak - self.before


def _status(key: str) -> int | None:
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    return next(int(line.split()[1]) * 1024 for line in path.read_text().splitlines() if line.startswith(key))


def timed(network: nn.Module, views: int, side: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """Seconds and memory of every arm, in turn; on an accelerator in bfloat16, after one run that is not counted."""
    images = torch.rand(1, views, 3, side, side, generator=torch.Generator().manual_seed(views)).to(device)
    dtype = autocast_dtype("auto", device)
    low = torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
    runs = arms(network, images)
    runs = {arm: runs[arm] for arm in ("plain", "engine")}
    seconds: dict[str, list[float]] = {arm: [] for arm in runs}
    processor: dict[str, list[float]] = {arm: [] for arm in runs}
    resident: dict[str, int | None] = {}
    depth = {}
    with torch.inference_mode(), low:
        for repeat in range(repeats + (device.type != "cpu")):
            for arm, run in runs.items():
                with Grown(device) as memory:
                    began, spent = time.perf_counter(), time.process_time()
                    answer = run()
                    _synchronise(device)
                    if repeat or device.type == "cpu":
                        processor[arm].append(round(time.process_time() - spent, 4))
                        seconds[arm].append(round(time.perf_counter() - began, 4))
                resident[arm] = memory.bytes
                depth[arm] = _depth(answer).clone()
                del answer
    change = ((depth["engine"] - depth["plain"]).abs() / depth["plain"].abs()).max()
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "threads": torch.get_num_threads(),
        "resident_bytes": resident,
        "largest_relative_change_of_depth": float(change),
    }


def _depth(answer: Any) -> Tensor:
    if isinstance(answer, dict):
        return answer["depth"]
    return answer.depth if hasattr(answer, "depth") else answer.local_points[..., 2]


def on_device(
    device: torch.device, frames: int, more: int, size: str, side: tuple[int, int]
) -> dict[str, float]:
    """The rows for a large accelerator; rehearsed on a CPU with few frames and a small network."""
    network = build("vggt", size).to(device)
    dtype = autocast_dtype("auto", device) or torch.bfloat16

    def run(heads: tuple[str, ...], count: int, merged: bool = False) -> tuple[float, float]:
        images = torch.rand(1, count, 3, *side, device=device)
        options: dict[str, Any] = {"heads": heads, "chunk": CHUNK}
        if merged:
            rows, cols = side[0] // 14, side[1] // 14
            specials = network.aggregator.specials  # type: ignore[union-attr]
            options["attend"] = attention_by_name(
                "merged", tokens_per_view=specials + rows * cols, grid=(rows, cols), specials=specials
            )
        best, peak = float("inf"), 0.0
        for _ in range(3 if count == frames else 1):
            _synchronise(device, reset=True)
            began = time.perf_counter()
            with torch.inference_mode(), torch.autocast(device.type, dtype=dtype):
                answer = network(images, **options)
            peak = max(peak, _synchronise(device))
            best = min(best, time.perf_counter() - began)
            del answer
        return best, peak

    cameras, _ = run(("camera",), frames)
    dense, peak = run(("camera", "depth"), frames)
    merged, _ = run(("camera",), frames, merged=True)
    _, many = run(("camera", "depth"), more)
    return dict(zip((name for name, _, _ in DEVICE_ROWS), (cameras, dense, peak / 1e9, merged, many / 1e9)))


def _synchronise(device: torch.device, reset: bool = False) -> float:
    if device.type == "cpu":
        return 0.0
    backend = torch.get_device_module(device)
    backend.synchronize()
    if reset:
        backend.reset_peak_memory_stats()
    return float(backend.max_memory_allocated())


def measure(args: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(args.json.read_text()) if args.json.exists() and args.resume else {}
    rows: dict[str, Any] = result.get("rows", {})
    limits = {224: args.timed_224, 518: args.timed_518}

    def keep() -> None:
        result.update(
            benchmark="multiview",
            command="python benchmarks/multiview.py",
            size=args.size,
            seed=0,
            chunk=CHUNK,
            commit=commit(),
            versions=versions(),
            hardware=hardware(),
            rows=rows,
        )
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")

    device = resolve_device(args.device)
    if device.type != "cpu" or args.rehearse:
        small = device.type == "cpu"
        frames = (3, 6, "nano", (42, 56)) if small else (100, 1000, args.size, (392, 518))
        found = on_device(device, *frames)
        if small:
            print(json.dumps(found, indent=2))
            return result
        result["device_rows"] = {k: round(v, 3) for k, v in found.items()}
        result["device_hardware"] = hardware()
        keep()
        for name in args.models:
            network = build(name, args.size).to(device)
            for side in args.sides:
                for views in args.views:
                    measured = timed(network, views, side, args.repeats, device)
                    kept = result.setdefault("device_timed", {})
                    kept[f"{name} {side} {views}"] = {"model": name, "side": side, "views": views, **measured}
                    keep()
        return result
    for name in args.models:
        network: nn.Module | None = None
        for side in args.sides:
            for views in args.views:
                row = rows.setdefault(f"{name} {side} {views}", {"model": name, "side": side, "views": views})
                if "counted_bytes" not in row:
                    row["counted_bytes"] = counted(name, args.size, views, side)
                if views <= limits.get(side, 0) and "seconds" not in row:
                    if network is None:
                        torch.manual_seed(0)
                        network = build(name, args.size)
                    repeats = args.repeats if views * (side / 224) ** 2 <= 6 else 1
                    row.update(timed(network, views, side, repeats, device))
                keep()
                print(name, side, views, {k: v for k, v in row.items() if k != "model"}, flush=True)
    return result


def render(result: dict[str, Any]) -> str:
    """The page docs/performance.md."""
    lines = [
        "# Time and memory of the multi-view networks",
        "",
        f"Made by `python benchmarks/multiview.py --render` from `{RESULT.relative_to(ROOT)}`. "
        f"Size {result['size']}, random weights, float32, seed {result['seed']}, commit {result['commit']}, "
        f"{_machine(result)}.",
        "",
        "Plain: the same weights run as the first public implementations do (every layer kept, all views at once, "
        "eight views per dense head). Engine: this library. Tensor memory is what is alive at the worst moment beyond "
        "weights and pictures; it is counted exactly, also where a run would not fit. Resident: growth of the process "
        "in the timed run, which includes work space and the allocator's slack. Times are medians of runs in turn; the "
        "processor ratio compares processor time, with one thread where that was measured too, and is less disturbed "
        "by other work on the machine.",
        "",
    ]
    for name, title in (("vggt", "VGGT, cameras + depth + points"), ("pi3", "pi3")):
        rows = [r for r in result["rows"].values() if r["model"] == name]
        if not rows:
            continue
        lines += [
            f"## {title}",
            "",
            "| side | views | plain, tensors | engine, tensors | ratio | plain, resident | engine, resident | plain | "
            "engine | time ratio | processor ratio | largest change |",
            "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(_row(r) for r in sorted(rows, key=lambda r: (r["side"], r["views"]))),
            "",
        ]
    lines += ["## On an accelerator", "", "| what | target | measured |", "| --- | ---: | ---: |"]
    found = result.get("device_rows", {})
    for name, unit, target in DEVICE_ROWS:
        measured = f"{found[name]:.2f} {unit}" if name in found else "not measured"
        lines.append(f"| {name} | <= {target:g} {unit} | {measured} |")
    many = [r for r in result.get("device_timed", {}).values() if r["views"] >= 16]
    ratios = [
        statistics.median(r["seconds"]["plain"]) / statistics.median(r["seconds"]["engine"]) for r in many
    ]
    least = f"{min(ratios):.2f} times (worst row)" if ratios else "not measured"
    lines.append(f"| engine against plain, 16 views and more | >= 1.3 times faster | {least} |")
    lines += [
        "",
        "Rows that say 'not measured' need a large accelerator; the same command fills them where there is one "
        "(`--device auto`), and `--rehearse` runs their code on any machine.",
        "",
        "Targets on a CPU: at most 0.4 times the plain way's tensor memory, and never slower (up to 16 views at 224, "
        "2 at 518). pi3's plain way keeps only its last two layers, as the original does, so there is less to save.",
        "",
    ]
    return "\n".join(lines)


def _machine(result: dict[str, Any]) -> str:
    found = result["hardware"]
    return f"{found.get('cpu', found.get('machine', 'CPU'))}, {found['cores']} cores"


def _row(row: dict[str, Any]) -> str:
    held = row["counted_bytes"]
    cells = [str(row["side"]), str(row["views"]), _gb(held["plain"]), _gb(held["engine"])]
    cells.append(f"{held['engine'] / held['plain']:.2f}")
    if "seconds" in row:
        resident, seconds = (
            row["resident_bytes"],
            {k: statistics.median(v) for k, v in row["seconds"].items()},
        )
        cells += [_gb(resident["plain"]), _gb(resident["engine"])]
        cells += [f"{seconds['plain']:.1f} s", f"{seconds['engine']:.1f} s"]
        cells.append(f"{seconds['engine'] / seconds['plain']:.2f}")
        spent = row.get("single_thread", row).get("processor_seconds")
        medians = {k: statistics.median(v) for k, v in spent.items()} if spent else {}
        cells.append(f"{medians['engine'] / medians['plain']:.2f}" if medians else "-")
        cells.append(f"{row['largest_relative_change_of_depth']:.0e}")
    else:
        cells += ["-"] * 7
    return "| " + " | ".join(cells) + " |"


def _gb(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e9:.2f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["vggt", "pi3"], choices=["vggt", "pi3"])
    parser.add_argument("--size", default="full")
    parser.add_argument("--sides", nargs="+", type=int, default=[224, 518])
    parser.add_argument("--views", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--timed-224", type=int, default=16, help="most views that are timed at 224")
    parser.add_argument("--timed-518", type=int, default=2, help="most views that are timed at 518")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rehearse", action="store_true", help="run the accelerator's part small, on a CPU")
    parser.add_argument("--resume", action="store_true", help="keep rows that the file already has")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--json", type=Path, default=RESULT)
    args = parser.parse_args()
    if not args.render:
        measure(args)
    else:
        PAGE.write_text(render(json.loads(args.json.read_text())))
        print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
