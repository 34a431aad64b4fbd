"""Depth at the network's size brought to the size of the picture: ours against plain interpolation.

Views of procedural rooms with exact depth. Small depth is exact at its pixel centres ("sharp") or blurred as networks
blur it ("smooth"); it is enlarged and compared with the truth at every pixel, and at the pixels near depth edges.

    python benchmarks/depth_upsampling.py [--rooms 3] [--views 4]     # writes results/multiview/depth_upsampling.json
    python benchmarks/depth_upsampling.py --render                    # docs/results/depth_upsampling.md from it
    python benchmarks/depth_upsampling.py --check                     # does the page agree with the file?
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.provenance import commit, hardware, versions
from relief3d.io.atomic import write_text
from relief3d.pipelines.multiview.upsampling import upsample_depth
from relief3d.worlds.capture import demo_capture

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "results" / "multiview" / "depth_upsampling.json"
PAGE = ROOT / "docs" / "results" / "depth_upsampling.md"
SIZE = (640, 480)
SIDES = (140, 280)
EDGE, NEAR, WRONG = 1.05, 4, 0.05
METHODS = ("nearest", "bilinear depth", "bilinear inverse depth", "ours without colour", "ours")
MEASURES = ("abs_rel", "edge_abs_rel", "edge_wrong")


def enlarge(small: Tensor, picture: Tensor, small_picture: Tensor, affine: Tensor) -> dict[str, Tensor]:
    """(h, w) depth by every method."""
    size = (picture.shape[1], picture.shape[2])

    def plain(values: Tensor, mode: str) -> Tensor:
        corners = None if mode == "nearest-exact" else False
        return F.interpolate(values[None, None], size, mode=mode, align_corners=corners)[0, 0]

    keep = small > 0
    return {
        "nearest": plain(small, "nearest-exact"),
        "bilinear depth": plain(small, "bilinear"),
        "bilinear inverse depth": 1 / plain(1 / small, "bilinear"),
        "ours without colour": upsample_depth(small, keep, affine, size),
        "ours": upsample_depth(small, keep, affine, size, guide=picture, small_guide=small_picture),
    }


def near_edges(depth: Tensor) -> Tensor:
    """(h, w) pixels within ``NEAR`` of a jump by ``EDGE`` between neighbours."""
    jump = torch.zeros_like(depth)
    for axis in (0, 1):
        a, b = depth.narrow(axis, 0, depth.shape[axis] - 1), depth.narrow(axis, 1, depth.shape[axis] - 1)
        step = (torch.maximum(a, b) > EDGE * torch.minimum(a, b)).float()
        jump.narrow(axis, 0, step.shape[axis]).copy_(
            torch.maximum(jump.narrow(axis, 0, step.shape[axis]), step)
        )
        jump.narrow(axis, 1, step.shape[axis]).copy_(
            torch.maximum(jump.narrow(axis, 1, step.shape[axis]), step)
        )
    return F.max_pool2d(jump[None, None], 2 * NEAR + 1, 1, NEAR)[0, 0] > 0


def smooth(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Depth averaged over the small pixel and its neighbours, in inverse depth."""
    return 1 / F.interpolate(1 / depth[None, None], size, mode="bicubic", antialias=True)[0, 0].clamp_min(
        1e-3
    )


def measure(rooms: int, views: int) -> list[dict[str, Any]]:
    """One row per room, side, kind of small depth and method."""
    rows = []
    for seed in range(rooms):
        capture = demo_capture(seed, views, SIZE)
        for side in SIDES:
            size = (side * SIZE[1] // SIZE[0] // 14 * 14, side)
            affine = torch.diag(
                torch.tensor([size[1] / SIZE[0], size[0] / SIZE[1], 1.0], dtype=torch.float64)
            )
            cameras = [c.replace(width=size[1], height=size[0], K=affine @ c.K) for c in capture.cameras]
            sharp = capture.world.render(cameras, supersample=1).depth
            total: dict[tuple[str, str], list[list[float]]] = {}
            for i, truth in enumerate(capture.depths):
                picture = capture.images[i].float() / 255
                small_picture = F.interpolate(picture[None], size, mode="bicubic", antialias=True)[0].clamp(
                    0, 1
                )
                edges = near_edges(truth)
                for kind, small in (("sharp", sharp[i]), ("smooth", smooth(truth, size))):
                    for name, made in enlarge(small, picture, small_picture, affine).items():
                        error = (made / truth - 1).abs()
                        near = error[edges]
                        values = [
                            float(error.mean()),
                            float(near.mean()),
                            float((near > WRONG).float().mean()),
                        ]
                        total.setdefault((kind, name), []).append(values)
            for (kind, name), values in total.items():
                means = [statistics.fmean(v) for v in zip(*values)]
                rows.append(
                    {"seed": seed, "side": side, "kind": kind, "method": name, **dict(zip(MEASURES, means))}
                )
            sys.stderr.write(f"room {seed}, {side} px\n")
    return rows


def table(result: dict[str, Any]) -> str:
    """The page."""
    lines = [
        "# Depth at original resolution",
        "",
        f"Depth of {SIDES[0]} and {SIDES[1]} px enlarged to {SIZE[0]} x {SIZE[1]} in {result['rooms']} procedural "
        f"rooms, {result['views']} views each; `{result['command']}`, commit {result['commit']}, "
        f"{result['seconds']:.0f} s on {result['hardware']['cores']} cores ({result['hardware']['machine']}).",
        "Near edges: within "
        f"{NEAR} px of a depth jump by {100 * (EDGE - 1):.0f} %; wrong: off by more than {100 * WRONG:.0f} %. "
        "Means over rooms, in brackets the worst room. Sharp: exact at the small pixels' centres; smooth: averaged, as "
        "networks blur.",
        "",
    ]
    for kind in ("sharp", "smooth"):
        for side in SIDES:
            lines += [
                f"## {kind}, {side} px",
                "",
                "| method | AbsRel, % | AbsRel near edges, % | wrong near edges, % |",
                "|---|---|---|---|",
            ]
            for name in METHODS:
                cells = []
                for m in MEASURES:
                    values = [
                        r[m]
                        for r in result["rows"]
                        if (r["kind"], r["side"], r["method"]) == (kind, side, name)
                    ]
                    cells.append(f"{100 * statistics.fmean(values):.2f} ({100 * max(values):.2f})")
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rooms", type=int, default=3)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if not (options.render or options.check):
        began = time.monotonic()
        rows = measure(options.rooms, options.views)
        result = {
            "command": f"python benchmarks/depth_upsampling.py --rooms {options.rooms} --views {options.views}",
            "commit": commit(), "hardware": hardware(), "versions": versions(), "seeds": list(range(options.rooms)),
            "rooms": options.rooms, "views": options.views, "seconds": time.monotonic() - began, "rows": rows,
        }  # fmt: skip
        write_text(RESULT, json.dumps(result, indent=1) + "\n")
    result = json.loads(RESULT.read_text())
    if options.check:
        raise SystemExit(0 if PAGE.read_text() == table(result) else 1)
    write_text(PAGE, table(result))
    sys.stdout.write(table(result))


if __name__ == "__main__":
    main()
