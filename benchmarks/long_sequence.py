"""Long sequences: drift with and without loops, memory and time of thousands of frames, loops found in pictures.

    python benchmarks/long_sequence.py [--part network oracle rendered] [--frames 2000] [--seeds 0 1 2]

Parts: ``network`` runs one of our networks, with random weights, over a long video (time and memory mean something, its
geometry nothing); ``oracle`` joins passes of exact truth in a random similarity frame each, with noise that grows
along the pass; ``rendered`` finds loops in rendered pictures by an encoder and verifies them with SIFT, only depth and
poses of the passes are the oracle's. Parts that are not run keep their numbers of the last run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Prediction
from relief3d.core.memory import GIB, peak_rss
from relief3d.core.provenance import commit, hardware
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.eval.metrics.cameras import ate
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import invert_rigid, make_rigid, sim3_exp, split_similarity
from relief3d.models.multiview.configs import vggt_config
from relief3d.models.multiview.interface import wrap
from relief3d.models.multiview.long_sequence import LongOptions, LongResult, run_long
from relief3d.models.multiview.retrieval import thumbnail_descriptors, view_descriptors
from relief3d.models.multiview.vggt import Vggt
from relief3d.pipelines.multiview.loops import LoopOptions, find_loops
from relief3d.worlds.config import demo_config
from relief3d.worlds.generate import make_world
from relief3d.worlds.paths import look_at, smooth_wander
from relief3d.worlds.world import World

OUT = Path("results/multiview/long_sequence.json")
CEILING_GIB = 4.0
TARGETS = {"drift_percent": 1.0, "time_ratio": 1.2, "peak_gib": CEILING_GIB}
SHORT = 200
"""Frames of the short runs that the long one is compared with."""
SAME_PLACE = (0.7, 25.0)
"""Metres and degrees within which two frames count as the same place when recall is measured."""


class Clocked:
    """A function with the wall and processor time spent in it."""

    def __init__(self, function: Any) -> None:
        self.function, self.wall, self.processor = function, 0.0, 0.0

    def __call__(self, *arguments: Any) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        out = self.function(*arguments)
        self.wall += time.perf_counter() - wall
        self.processor += time.process_time() - processor
        return out


def walk(world: World, frames: int, laps: float, seed: int, radii: tuple[float, float]) -> Tensor:
    """(N, 4, 4): laps around the room's middle, looking outwards and ahead, each lap a little elsewhere."""
    best: tuple[float, np.ndarray] | None = None
    for trial in range(12):
        rng = np.random.default_rng(derive_seed(seed, "walk", trial))
        rx, ry = radii[0] * rng.uniform(0.8, 1.1), radii[1] * rng.uniform(0.8, 1.1)
        a = rng.uniform(0, math.tau) + np.linspace(0, math.tau * laps, frames)
        w = smooth_wander(rng, frames, 4, knots=max(9, round(8 * laps)))
        x, y = rx * np.cos(a) * (1 + 0.07 * w[:, 0]), ry * np.sin(a) * (1 + 0.07 * w[:, 1])
        eyes = np.stack([x, y, 1.5 + 0.08 * w[:, 2]], -1)
        look = np.arctan2(ry * np.cos(a), -rx * np.sin(a)) - 0.9 + 0.1 * w[:, 3]
        ahead = np.stack([np.cos(look), np.sin(look), np.full(frames, -0.12)], -1)
        poses = np.stack([look_at(e, e + d) for e, d in zip(eyes, ahead)])
        clear = float(world.sdf(torch.from_numpy(eyes).float()).min())
        if best is None or clear > best[0]:
            best = (clear, poses)
    assert best is not None
    return torch.from_numpy(best[1])


def room(seed: int, size: tuple[float, float, float]) -> World:
    return make_world(seed, replace(demo_config(), room_size=size, texture_size=256, furniture=14)).compact()


def camera(size: tuple[int, int], focal: float) -> Tensor:
    height, width = size
    f = focal * width
    return torch.tensor([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]], dtype=torch.float64)


class Oracle:
    """Exact depth and poses, in a random similarity frame per pass.

    Noise: depth of every pixel by a share; poses and the scale of depth by a random walk along the pass, so that
    passes drift like those of a network. The two ends of a loop are one pass: true geometry in a frame of its own,
    unless the loop is one of ``false``, whose second end is put where the first is.
    """

    def __init__(self, depth: Tensor, K: Tensor, poses: Tensor, seed: int, noise: float) -> None:
        self.depth, self.K, self.poses, self.seed, self.noise = depth, K, poses, seed, noise
        self.false: set[tuple[int, int]] = set()
        self.ends = LongOptions().loop_frames

    def predict(self, images: Tensor, numbers: Sequence[int]) -> Prediction:
        generator = torch_generator(derive_seed(self.seed, "pass", *numbers))
        n, (height, width) = len(numbers), self.depth.shape[1:]

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        frame = sim3_exp(torch.cat([3 * random(3), random(3), 0.3 * random(1)]))
        s, R, t = split_similarity(frame)
        wander = self.noise * random(n, 7).cumsum(0)
        off = make_rigid(matrix_from_axis_angle(0.1 * wander[:, 3:6]), 0.5 * wander[:, :3])
        own = self.poses[list(numbers)] @ off
        if self._is_false(numbers):
            k = self.ends
            own[k:] = own[k // 2] @ invert_rigid(own[-k // 2]) @ own[k:]
        poses = make_rigid(R @ own[:, :3, :3], s * own[:, :3, 3] @ R.T + t)
        grain = 1 + 2 * self.noise * random(n, height, width)
        depth = s * self.depth[list(numbers)] * grain * (0.3 * wander[:, 6]).exp()[:, None, None]
        ones = torch.ones(1, n, height, width)
        return Prediction(
            depth=depth.clamp_min(0)[None], depth_confidence=ones, K=self.K.expand(1, n, 3, 3),
            world_from_cam=poses[None],
        )  # fmt: skip

    def _is_false(self, numbers: Sequence[int]) -> bool:
        if len(numbers) != 2 * self.ends or numbers[-1] - numbers[0] == len(numbers) - 1:
            return False
        a, b = numbers[0], numbers[self.ends]
        return any(abs(i - a) + abs(j - b) <= 2 * self.ends for i, j in self.false)


def drift(poses: Tensor, truth: Tensor) -> dict[str, float]:
    """Errors of the camera centres after one similarity, in percent of the path."""
    errors = ate(poses, truth)
    assert errors is not None
    return {
        "path_m": errors.path_length,
        "ate_percent": 100 * errors.rmse / errors.path_length,
        "largest_percent": 100 * errors.max / errors.path_length,
    }


def blank(numbers: Sequence[int]) -> Tensor:
    return torch.zeros(len(numbers), 3, 1, 1)


def joined(
    frames: int, oracle: Oracle, options: LongOptions, loops: Sequence[tuple[int, int]]
) -> tuple[LongResult, float]:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = run_long(frames, blank, oracle.predict, Path(folder), options=options, loops=loops)
    return out, time.perf_counter() - began


def oracle_part(args: argparse.Namespace) -> dict[str, Any]:
    frames, laps, noise = args.frames, 4, 0.01
    options = LongOptions(chunk=40, overlap=15, points=60)
    rows = []
    for seed in args.seeds:
        world = room(seed, (24.0, 16.0, 3.0))
        poses = walk(world, frames, laps, seed, (7.0, 4.5))
        size = (18, 24)
        K = camera(size, 0.7)
        depth = exact_depth(world, K, poses, size)
        lap = frames // laps
        true = [(i, i + lap) for i in range(20, frames - lap - 20, max(1, frames // 60))]
        false = wrong_pairs(poses, round(0.3 / 0.7 * len(true)), seed)
        row: dict[str, Any] = {"seed": seed, "true_given": len(true), "false_given": len(false)}
        for name, pairs in (("open", []), ("loops", true), ("loops_30_percent_false", true + false)):
            oracle = Oracle(depth, K, poses, seed, noise)
            oracle.false = set(false) if name.endswith("false") else set()
            out, seconds = joined(frames, oracle, options, pairs)
            row[name] = {
                **drift(out.world_from_cam, poses), "believed": len(out.loops),
                "false_believed": len(set(out.loops) & set(false)), "seconds": round(seconds, 1),
            }  # fmt: skip
        rows.append(row)
        say(row)
    return {
        "frames": frames, "chunk": options.chunk, "overlap": options.overlap, "noise": noise, "rows": rows,
    }  # fmt: skip


def exact_depth(world: World, K: Tensor, poses: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W) true z-depth by casting rays, without pictures."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    rays = torch.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], torch.ones_like(x)], -1).reshape(
        -1, 3
    )
    out = []
    for part in poses.split(50):
        turned = (rays.double() @ part[:, :3, :3].mT).float()
        origins = part[:, None, :3, 3].float().expand_as(turned)
        t, _ = world.raycast(origins.reshape(1, -1, 3), turned.reshape(1, -1, 3))
        out.append((t.reshape(len(part), -1) / rays.norm(dim=-1)).reshape(-1, height, width))
    depth = torch.cat(out).double()
    return torch.where(torch.isfinite(depth), depth, torch.zeros_like(depth))


def wrong_pairs(poses: Tensor, count: int, seed: int) -> list[tuple[int, int]]:
    """Pairs of frames far apart in time and place."""
    rng = np.random.default_rng(derive_seed(seed, "false"))
    centre, found = poses[:, :3, 3], []
    while len(found) < count:
        i, j = sorted(int(v) for v in rng.integers(20, len(poses) - 20, 2))
        if j - i > 100 and float((centre[i] - centre[j]).norm()) > 4:
            found.append((i, j))
    return found


class Video:
    """Frames made when asked for: rendered pictures of a walk, each slowly panned over by a smaller window."""

    def __init__(self, frames: int, size: tuple[int, int], seed: int, pictures: int = 50) -> None:
        self.frames, self.size = frames, size
        world = room(seed, (7.0, 9.0, 2.7))
        large = (size[0] + 4, size[1] + 40)
        poses = walk(world, pictures, 1.0, seed, (1.6, 2.4))
        K = camera(large, 0.7).expand(1, pictures, 3, 3)
        self.pictures = world.render((K, poses[None]), large).image[0]

    def load(self, numbers: Sequence[int]) -> Tensor:
        height, width = self.size
        out = []
        for n in numbers:
            place = n * len(self.pictures) / self.frames
            x, y = round(40 * (place % 1)), n % 5
            out.append(self.pictures[int(place), :, y : y + height, x : x + width])
        return torch.stack(out)


def compared(long: dict[str, Any], short: Sequence[dict[str, Any]], clock: str) -> dict[str, float]:
    """Milliseconds per frame of the short runs, and how many times as many the long one takes."""
    key = f"{clock}_ms_per_frame"
    times = sorted(r[key] for r in short)
    median = statistics.median(times)
    return {
        "short_fastest_ms": times[0], "short_median_ms": median, "short_slowest_ms": times[-1], "long_ms": long[key],
        "ratio_to_median": long[key] / median, "ratio_to_fastest": long[key] / times[0],
    }  # fmt: skip


def network_part(args: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    network = Vggt(replace(vggt_config(args.size), heads=("camera", "depth"))).eval()
    model = wrap(network)
    size = (args.height, args.width)
    options = LongOptions(chunk=40, overlap=10, points=500)
    video = Video(args.frames, size, 0)
    model.predict(video.load(range(options.chunk))[None])  # first call: caches, not counted
    rows: list[dict[str, Any]] = []
    # Short runs on both sides of the long one: others may use this machine, and not evenly.
    around = [SHORT] * args.repeats
    for frames in (*around, args.frames, *around):
        predict = Clocked(lambda images, numbers: model.predict(images))
        load = Clocked(video.load)
        wall, processor = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            out = run_long(frames, load, predict, Path(folder), options=options)
            disk = sum(p.stat().st_size for p in Path(folder).iterdir())
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        rows.append(
            {
                "frames": frames, "chunks": len(out.chunks), "wall_s": wall, "processor_s": processor,
                "network_wall_s": predict.wall, "network_processor_s": predict.processor,
                "loading_processor_s": load.processor,
                "joining_processor_s": processor - predict.processor - load.processor,
                "wall_ms_per_frame": 1000 * wall / frames,
                "processor_ms_per_frame": 1000 * processor / frames,
                "peak_gib": peak_rss() / GIB, "disk_gib": disk / GIB,
            }
        )  # fmt: skip
        say(rows[-1])
    long = rows[args.repeats]
    short = rows[: args.repeats] + rows[args.repeats + 1 :]
    return {
        "network": "vggt", "size": args.size, "weights": "random", "seed": 0,
        "parameters_m": sum(p.numel() for p in network.parameters()) / 1e6,
        "picture": f"{size[1]}x{size[0]}", "chunk": options.chunk, "overlap": options.overlap,
        "rows": rows, "time": {key: compared(long, short, key) for key in ("wall", "processor")},
        "peak_gib": peak_rss() / GIB,
        "joining_share": long["joining_processor_s"] / long["processor_s"],
    }  # fmt: skip


def recall(descriptors: Tensor, poses: Tensor, min_gap: int) -> dict[str, float]:
    """Share of the frames that have a true revisit whose best (best five) candidates hold one."""
    centre, ahead = poses[:, :3, 3], poses[:, :3, 2]
    angle = torch.rad2deg((ahead @ ahead.T).clamp(-1, 1).acos())
    place = torch.arange(len(poses))
    far = (place[:, None] - place).abs() >= min_gap
    true = (torch.cdist(centre, centre) < SAME_PLACE[0]) & (angle < SAME_PLACE[1]) & far
    asked = true.any(1).nonzero()[:, 0]
    best = (descriptors @ descriptors.T).masked_fill(~far, -9.0)[asked].topk(5).indices
    hit = true[asked[:, None], best]
    return {
        "asked": len(asked), "at_1": float(hit[:, 0].double().mean()), "at_5": float(hit.any(1).double().mean()),
    }  # fmt: skip


def rendered_part(args: argparse.Namespace) -> dict[str, Any]:
    frames, size, noise = 240, (120, 160), 0.02
    options = LongOptions(chunk=24, overlap=8, points=100)
    looking = LoopOptions(min_gap=60)
    rows = []
    for seed in args.seeds:
        world = room(100 + seed, (7.0, 9.0, 2.7))
        poses = walk(world, frames, 1.5, seed, (1.6, 2.4))
        K = camera(size, 0.7)
        views = [
            world.render((K.expand(1, len(p), 3, 3), p[None]), size) for p in poses.split(24)
        ]  # in parts, for memory
        images, depth = torch.cat([v.image[0] for v in views]), torch.cat([v.depth[0] for v in views])

        def load(numbers: Sequence[int], images: Tensor = images) -> Tensor:
            return images[list(numbers)]

        def small(numbers: Sequence[int], images: Tensor = images) -> Tensor:
            return torch.nn.functional.interpolate(
                images[list(numbers)], size=(112, 154), mode="bilinear", antialias=True
            )

        row: dict[str, Any] = {"seed": seed, "recall": {}}
        for name in ("nano", "mini"):
            torch.manual_seed(seed)
            network = Vggt(replace(vggt_config(name), heads=("camera",))).eval()  # type: ignore[arg-type]
            for kind, components in (("whitened", 128), ("plain", None)):
                described = view_descriptors(network, small, frames, components=components)
                row["recall"][f"{name}, random weights, {kind}"] = recall(described, poses, looking.min_gap)
                if kind == "whitened":
                    chosen = described
        row["recall"]["thumbnail (no network)"] = recall(
            thumbnail_descriptors(small, frames, components=None), poses, looking.min_gap
        )
        began = time.perf_counter()
        loops, checks = find_loops(load, chosen, options=looking)
        row["verified"], row["tried"] = len(loops), len(checks)
        row["false_verified"] = sum(not _same(poses, pair) for pair in loops)
        row["verification_s"] = round(time.perf_counter() - began, 1)
        oracle = Oracle(depth[:, ::4, ::4].double(), camera((30, 40), 0.7), poses, seed, noise)
        for name, pairs in (("open", []), ("closed", loops)):
            out, _ = joined(frames, oracle, options, pairs)
            row[name] = {**drift(out.world_from_cam, poses), "believed": len(out.loops)}
        rows.append(row)
        say(row)
    return {
        "frames": frames, "picture": "160x120", "chunk": options.chunk, "overlap": options.overlap, "noise": noise,
        "same_place": {"metres": SAME_PLACE[0], "degrees": SAME_PLACE[1]}, "rows": rows,
    }  # fmt: skip


def _same(poses: Tensor, pair: tuple[int, int]) -> bool:
    """The two frames look at some of the same things: close, and less than half a field of view apart."""
    a, b = poses[pair[0]], poses[pair[1]]
    angle = math.degrees(math.acos(max(-1.0, min(1.0, float(a[:3, 2] @ b[:3, 2])))))
    return float((a[:3, 3] - b[:3, 3]).norm()) < 1.5 and angle < 40


def say(row: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def merge(files: Sequence[Path], out: Path) -> None:
    """Runs in other files, in one: a part of theirs replaces ours, seeds of ours that it lacks stay."""
    data: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"targets": TARGETS, "parts": {}}
    for path in files:
        for name, part in json.loads(path.read_text())["parts"].items():
            have = data["parts"].get(name)
            if name != "network":
                rows = signed(part) + ([] if have is None else signed(have))
                first: dict[int, dict[str, Any]] = {}
                for row in rows:
                    first.setdefault(row["seed"], row)
                part["rows"] = [first[seed] for seed in sorted(first)]
                part["seeds"] = sorted(first)
                part["seconds"] = round(sum(r["run_s"] for r in part["rows"]), 1)
            elif "time" not in part:
                # Runs from before there were several short ones: the same numbers from their rows.
                long = max(part["rows"], key=lambda r: r["frames"])
                short = [r for r in part["rows"] if r is not long]
                part["time"] = {key: compared(long, short, key) for key in ("wall", "processor")}
                part.pop("time_ratio")
            data["parts"][name] = part
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(data, indent=1) + "\n")


def signed(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows that say where they come from: commit, load of the machine, and their share of the time."""
    facts = {
        "commit": part["commit"],
        "load": part["hardware"].get("load", part["hardware"].get("load_before")),
        "run_s": part["seconds"] / len(part["rows"]),
    }
    return [{**facts, **row} for row in part["rows"]]


PARTS = {"network": network_part, "oracle": oracle_part, "rendered": rendered_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--size", default="mini")
    parser.add_argument("--repeats", type=int, default=3, help="short runs before and after the long one")
    parser.add_argument("--height", type=int, default=56)
    parser.add_argument("--width", type=int, default=84)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--merge", type=Path, nargs="*", default=[], help="take rows of other runs over, run nothing"
    )
    args = parser.parse_args()
    if args.merge:
        merge(args.merge, args.out)
        return
    data = json.loads(args.out.read_text()) if args.out.exists() else {"targets": TARGETS, "parts": {}}
    for name in args.part:
        began, load = time.perf_counter(), os.getloadavg()[0]
        data["parts"][name] = {
            **PARTS[name](args),
            "command": f"python benchmarks/long_sequence.py --part {name} --frames {args.frames}"
            + (f" --size {args.size} --repeats {args.repeats}" if name == "network" else ""),
            "seeds": args.seeds if name != "network" else [0], "commit": commit(),
            "hardware": {**hardware(), "load": round(load, 1), "load_after": round(os.getloadavg()[0], 1)},
            "seconds": round(time.perf_counter() - began, 1),
        }  # fmt: skip
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
