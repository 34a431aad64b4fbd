"""What approximate attention across views saves, and what it changes, against exact attention.

Two parts: the attention alone (16 heads of 64 channels, 261 tokens per view, as VGGT has at 224 pixels), and whole
networks. Every arm runs in turn within every repeat, in changing order, and times are compared as ratios of medians; on
a CPU it is the time of this process, since other work may share the cores. Memory is the peak of the tensors that a run
creates. The output of a network is compared with that of exact attention.

    python benchmarks/efficient_attention.py --json results/multiview/efficient_attention.json
    python benchmarks/efficient_attention.py --render results/multiview/efficient_attention.json

With ``--weights FILE --images FOLDER`` the loss is measured on a trained network instead of random ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relief3d.core.contract import Prediction
from relief3d.core.device import resolve_device, synchronize
from relief3d.core.provenance import commit, hardware, versions
from relief3d.core.seeding import torch_generator
from relief3d.core.tensor_memory import PeakTensorBytes
from relief3d.geometry.rotations import rotation_angle
from relief3d.models.multiview.attention_choice import AttentionSettings, attention_by_name
from relief3d.models.multiview.configs import SIZES, pi3_config, vggt_config
from relief3d.models.multiview.interface import InferenceOptions, Known, wrap
from relief3d.models.multiview.loading import load_multiview
from relief3d.models.multiview.pi3 import AlternatingDecoder, Pi3
from relief3d.models.multiview.preprocess import prepare
from relief3d.models.multiview.vggt import Vggt
from relief3d.nn.attention import Attend
from relief3d.nn.sparse_attention import SparseConfig
from relief3d.nn.token_merging import MergeConfig

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results" / "efficient_attention.md"
PATCH, SIDE = 14, 224
ARMS: Mapping[str, tuple[str, AttentionSettings]] = {
    "exact": ("exact", AttentionSettings()),
    "merged 0.9": ("merged", AttentionSettings(merge=MergeConfig(0.9))),
    "sparse 0.25": ("sparse", AttentionSettings(sparse=SparseConfig(0.25))),
    "sparse 0.1": ("sparse", AttentionSettings(sparse=SparseConfig(0.1))),
    "windowed 4": ("windowed", AttentionSettings(window=4)),
}
CAUTION = (
    "Networks with random weights attend diffusely and see no geometry, so these losses say little about trained ones; "
    "they show that the arms run, what they save, and how to measure: --weights FILE --images FOLDER."
)


def arms(specials: int, grid: tuple[int, int]) -> dict[str, Attend]:
    tokens = specials + grid[0] * grid[1]
    return {
        arm: attention_by_name(
            name,  # type: ignore[arg-type]
            tokens_per_view=tokens,
            grid=grid,
            specials=specials,
            settings=settings,
        )
        for arm, (name, settings) in ARMS.items()
    }


def compared(
    runs: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Times and peaks of every arm, both also over those of the first; and the answers."""
    names, times = list(runs), {name: [] for name in runs}
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    peaks, answers = {}, {}
    for name, run in runs.items():
        with PeakTensorBytes() as counted:
            answers[name] = run()
        peaks[name] = counted.peak
    for i in range(repeats):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            synchronize(device)
            began = clock()
            runs[name]()
            synchronize(device)
            times[name].append(clock() - began)
    middle = {name: statistics.median(t) for name, t in times.items()}
    base = names[0]
    found = {
        name: {
            "seconds": round(middle[name], 4),
            "all_seconds": [round(t, 4) for t in times[name]],
            "time_ratio": round(middle[name] / middle[base], 4),
            "peak_mb": round(peaks[name] / 1e6, 2),
            "memory_ratio": round(peaks[name] / peaks[base], 3),
        }
        for name in names
    }
    return found, answers


def attention_alone(
    views: Sequence[int], repeats: int, device: torch.device, dtype: torch.dtype
) -> Iterator[dict[str, Any]]:
    """Random queries, keys and values: time does not depend on what they hold."""
    for count in views:
        generator = torch_generator(0)
        shape = (1, 16, count * 261, 64)
        q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
        with torch.inference_mode():
            runs = {n: partial(a, q, k, v) for n, a in arms(5, (16, 16)).items()}
            row = {"views": count, "arms": compared(runs, repeats, device)[0]}
        report(f"attention alone, {count} views", row["arms"])
        yield row


def report(title: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    cells = ", ".join(f"{n}: {r['seconds']:.2f} s x{r['time_ratio']:.2f}" for n, r in found.items())
    sys.stderr.write(f"{title}: {cells}\n")


def pictures(views: int, height: int, width: int) -> Tensor:
    """(1, N, 3, H, W): windows that wander over one smooth random texture, so that views overlap."""
    generator = torch_generator(1)
    layers = [
        nn.functional.interpolate(
            torch.randn(1, 3, 4 * scale, 6 * scale, generator=generator),
            (2 * height, 3 * width),
            mode="bicubic",
        )
        / scale**0.5
        for scale in (1, 4, 16, 48)
    ]
    texture = torch.stack(layers).sum(0)[0].sigmoid()
    angle = torch.linspace(0, 5, views)
    x = ((1 + angle.cos()) / 2 * (2 * width - 1)).long()
    y = ((1 + angle.sin()) / 2 * (height - 1)).long()
    return torch.stack([texture[:, b : b + height, a : a + width] for a, b in zip(x, y)])[None]


def from_folder(folder: Path, views: int, network: nn.Module) -> Tensor:
    """Evenly spaced pictures of a folder, prepared as the network wants them."""
    from relief3d.io.images import read_image  # needs Pillow

    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = [files[round(i * (len(files) - 1) / max(1, views - 1))] for i in range(views)]
    ready = prepare([read_image(p).rgb for p in chosen], wrap(network).prepare_mode)
    return ready.images[None]


def random_network(kind: str, size: str) -> nn.Module:
    """With LayerScale at 1: at the initial 0.01 attention would hardly change the output, whatever it does."""
    torch.manual_seed(0)
    network: nn.Module = Vggt(vggt_config(size)) if kind == "vggt" else Pi3(pi3_config(size))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(1.0)
    return network.eval()


def specials_of(network: nn.Module) -> int:
    if isinstance(network, Vggt):
        return network.aggregator.specials
    assert isinstance(network, AlternatingDecoder)
    return network.config.registers


def change(exact: Prediction, other: Prediction) -> dict[str, float]:
    """How far an answer is from that of exact attention, each in a frame and scale of its own first view."""
    assert exact.depth is not None and other.depth is not None
    assert exact.world_from_cam is not None and other.world_from_cam is not None
    relative = (other.depth.double() / exact.depth.double() - 1).abs().flatten()
    a, b = (
        (p[0, :1].double().inverse() @ p[0].double()) for p in (exact.world_from_cam, other.world_from_cam)
    )
    angle = torch.rad2deg(rotation_angle(a[:, :3, :3], b[:, :3, :3]))
    depth = exact.depth.double().median()
    shift = (a[:, :3, 3] - b[:, :3, 3]).norm(dim=-1) / depth
    return {
        "depth_change_median": float(relative.median()),
        "depth_change_mean": float(relative.mean()),
        "rotation_deg_median": float(angle[1:].median()),
        "rotation_deg_max": float(angle[1:].max()),
        "centre_shift_over_depth_median": float(shift[1:].median()),
    }


def network_rows(
    label: str,
    network: nn.Module,
    views: Sequence[int],
    repeats: int,
    device: torch.device,
    precision: Any,
    images: Path | None,
) -> Iterator[dict[str, Any]]:
    network = network.to(device)
    for count in views:
        batch = (pictures(count, SIDE, SIDE) if images is None else from_folder(images, count, network)).to(
            device
        )
        grid = (batch.shape[-2] // PATCH, batch.shape[-1] // PATCH)
        runs = {}
        known = None
        if wrap(network).name == "reliev3r":
            side = max(batch.shape[-2:])
            K = torch.tensor([[side, 0, batch.shape[-1] / 2], [0, side, batch.shape[-2] / 2], [0, 0, 1.0]])
            known = Known(K=K.to(device).expand(1, count, 3, 3))
        for arm, attend in arms(specials_of(network), grid).items():
            model = wrap(network, InferenceOptions(precision, attend=attend))
            runs[arm] = partial(model.predict, batch, known)
        found, answers = compared(runs, repeats, device)
        for arm, answer in answers.items():
            found[arm] |= change(answers["exact"], answer)
        report(f"{label}, {count} views", found)
        yield {"network": label, "views": count, "size": list(batch.shape[-2:]), "arms": found}


class ResultFile:
    """The result, written after every row; rows of earlier runs stay unless they are measured again."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.path: Path | None = args.json
        self.began = time.perf_counter()
        self.row = {
            "command": "python benchmarks/efficient_attention.py " + " ".join(sys.argv[1:]),
            "commit": commit(),
            "repeats": args.repeats,
            "device": str(device),
            "precision": args.precision,
            "weights": args.weights,
            "layer_scale": "as trained" if args.weights else 1.0,
            "hardware": hardware(),
        }
        self.data: dict[str, Any] = {
            "benchmark": "efficient_attention",
            "seed": 0,
            "versions": versions(),
            "caution": CAUTION,
            "attention": [],
            "networks": [],
        }
        if self.path is not None and self.path.is_file():
            self.data |= json.loads(self.path.read_text())

    def add(self, part: str, row: dict[str, Any]) -> None:
        now = time.perf_counter()
        row |= self.row | {"wall_seconds": round(now - self.began, 1)}
        self.began = now

        def key(r: Mapping[str, Any]) -> tuple[Any, ...]:
            return (r.get("network", ""), r["views"], r["device"], r["precision"])

        self.data[part] = [r for r in self.data[part] if key(r) != key(row)] + [row]
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(".partial")
            temporary.write_text(json.dumps(self.data, indent=1) + "\n")
            temporary.replace(self.path)


def render(data: Mapping[str, Any]) -> str:
    """The page of a result file."""
    rows = sorted(data["attention"], key=lambda r: r["views"])
    where = sorted(
        {
            f"{r['device']} ({r['hardware'].get('accelerator', str(r['hardware']['threads']) + ' thread')},"
            f" {r['precision']})"
            for r in rows + data["networks"]
        }
    )
    out = [
        "# Approximate attention across views",
        "",
        "Made by `benchmarks/efficient_attention.py --render` from `results/multiview/efficient_attention.json`, which"
        " holds command, commit and hardware of every row.",
        "",
        "Ratios are to exact attention in the same run: medians of interleaved repeats of the process's own time;"
        " memory is the peak of the tensors that a run creates (weights and inputs not counted)."
        f" Measured on: {', '.join(where)}.",
        "",
        "## Attention alone",
        "",
        "16 heads of 64 channels, 261 tokens per view.",
        "",
        "| views | repeats | arm | seconds | time ratio | memory ratio |",
        "|---:|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        for arm, r in row["arms"].items():
            out.append(
                f"| {row['views']} | {row['repeats']} | {arm} | {r['seconds']:.3f} | {r['time_ratio']:.3f} |"
                f" {r['memory_ratio']:.2f} |"
            )
    out += ["", "## Whole networks", ""]
    if any(r["weights"] is None for r in data["networks"]):
        out += [data["caution"], ""]
    out += [
        "| network | views | arm | seconds | time ratio | memory ratio | depth change (median) | rotation (median)"
        " | centre shift / depth |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in data["networks"]:
        for arm, r in row["arms"].items():
            out.append(
                f"| {row['network']} | {row['views']} | {arm} | {r['seconds']:.3f} | {r['time_ratio']:.3f} |"
                f" {r['memory_ratio']:.2f} | {r['depth_change_median']:.2%} | {r['rotation_deg_median']:.2f}° |"
                f" {r['centre_shift_over_depth_median']:.4f} |"
            )
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--attention-views", type=int, nargs="*", default=[16, 32, 64])
    parser.add_argument("--network", choices=("vggt", "pi3"), nargs="+", default=["vggt", "pi3"])
    parser.add_argument("--size", choices=SIZES, nargs="+", default=["nano", "micro", "mini", "small"])
    parser.add_argument("--views", type=int, nargs="*", default=[8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=("auto", "float32", "bfloat16"))
    parser.add_argument(
        "--weights", help="file of weights, or a published name; full size unless one --size is given"
    )
    parser.add_argument("--images", type=Path, help="folder of pictures instead of the random texture")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--render", type=Path)
    args = parser.parse_args()
    if args.render:
        PAGE.write_text(render(json.loads(args.render.read_text())))
        return
    torch.set_num_threads(args.threads)
    device = resolve_device(args.device)
    dtype = torch.float32 if args.precision == "float32" else torch.bfloat16
    file = ResultFile(args, device)
    for row in attention_alone(args.attention_views, args.repeats, device, dtype):
        file.add("attention", row)
    if args.weights:
        size = args.size[0] if len(args.size) == 1 and args.size[0] != "full" else None
        empty = None if size is None else random_network(args.network[0], size)
        network = load_multiview(args.weights, network=empty, device=device)
        label = f"{Path(args.weights).name}{'' if size is None else ' ' + size}"
        networks = [(label, lambda: network)]
    else:
        networks = [(f"{k} {s}", partial(random_network, k, s)) for s in args.size for k in args.network]
    for label, make in networks:
        for row in network_rows(label, make(), args.views, args.repeats, device, args.precision, args.images):
            file.add("networks", row)
    if not args.json:
        sys.stdout.write(json.dumps(file.data, indent=1) + "\n")


if __name__ == "__main__":
    main()
