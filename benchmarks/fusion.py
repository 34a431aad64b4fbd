"""Fusion, extraction and depth rendering of a synthetic room: torch against Open3D in one run.

A room of 6 x 5 x 3 m with 12 boxes and 8 spheres (seed 0), seen by cameras of 640x480 on an ellipse at
height 1.5 m that look outward; exact depth. Prints one JSON object.

    python benchmarks/fusion.py --frames 100 --voxel 0.02 [--threads 2] [--json results/foundation/fusion.json]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from pathlib import Path

import torch

from relief3d.core.contract import Camera, Mesh
from relief3d.core.memory import peak_rss
from relief3d.fusion.factory import make_fuser
from relief3d.geometry.transforms import look_at
from relief3d.render.factory import make_renderer
from relief3d.render.open3d_backend import open3d_status

BOX_FACES = torch.tensor(
    [
        [0, 2, 1], [1, 2, 3], [4, 5, 6], [5, 7, 6], [0, 1, 4], [1, 5, 4],
        [2, 6, 3], [3, 6, 7], [0, 4, 2], [2, 4, 6], [1, 3, 5], [3, 7, 5],
    ]
)  # fmt: skip


def box(low: torch.Tensor, high: torch.Tensor, cells: int, inward: bool = False) -> Mesh:
    """A box of subdivided faces, counter-clockwise from outside (from inside when ``inward``)."""
    bits = torch.tensor([[(i >> k) & 1 for k in range(3)] for i in range(8)], dtype=torch.float32)
    vertices, faces = low + bits * (high - low), BOX_FACES.flip(1) if not inward else BOX_FACES
    for _ in range(cells):
        a, b, c = vertices[faces].unbind(1)
        start, n = vertices.shape[0], faces.shape[0]
        vertices = torch.cat((vertices, (a + b) / 2, (b + c) / 2, (c + a) / 2))
        ab, bc, ca = (torch.arange(n) + start + k * n for k in range(3))
        i, j, k = faces.unbind(1)
        faces = torch.cat([torch.stack(p, -1) for p in ((i, ab, ca), (ab, j, bc), (ca, bc, k), (ab, bc, ca))])
    return orient(Mesh(vertices, faces), (low + high) / 2, inward)


def orient(mesh: Mesh, middle: torch.Tensor, inward: bool) -> Mesh:
    """Turn every face of a convex shape outward (or inward)."""
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    outward = (torch.linalg.cross(b - a, c - a) * (a - middle)).sum(-1) > 0
    return Mesh(mesh.vertices, torch.where((outward != inward)[:, None], mesh.faces, mesh.faces.flip(1)))


def sphere(centre: torch.Tensor, radius: float) -> Mesh:
    """A cube of subdivided faces blown up to a sphere."""
    cube = box(-torch.ones(3), torch.ones(3), 4)
    return Mesh(torch.nn.functional.normalize(cube.vertices, dim=-1) * radius + centre, cube.faces)


def room(seed: int = 0) -> Mesh:
    """The room and what stands in it."""
    g = torch.Generator().manual_seed(seed)
    parts = [box(torch.tensor([-3.0, -2.5, 0]), torch.tensor([3.0, 2.5, 3]), 3, inward=True)]
    for i in range(20):
        angle = 2 * math.pi * i / 20 + 0.2 * float(torch.rand(1, generator=g))
        spot = torch.tensor([2.3 * math.cos(angle), 1.9 * math.sin(angle)])
        size = 0.3 + 0.7 * torch.rand(3, generator=g)
        if i % 5 < 3:
            low = torch.cat((spot - size[:2] / 2, torch.zeros(1)))
            parts.append(box(low, low + size, 2))
        else:
            radius = 0.15 + 0.25 * float(torch.rand(1, generator=g))
            parts.append(sphere(torch.cat((spot, torch.tensor([radius]))), radius))
    offset, vertices, faces = 0, [], []
    for part in parts:
        vertices.append(part.vertices)
        faces.append(part.faces + offset)
        offset += part.vertices.shape[0]
    return Mesh(torch.cat(vertices), torch.cat(faces))


def cameras(count: int, width: int = 640, height: int = 480) -> list[Camera]:
    """Cameras on an ellipse that look outward."""
    focal = 525.0 * width / 640
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    out, up = [], torch.tensor([0.0, 0.0, 1.0])
    for i in range(count):
        angle = 2 * math.pi * i / count
        flat = torch.tensor([1.2 * math.cos(angle), 1.0 * math.sin(angle), 1.5])
        out.append(Camera(width, height, K, look_at(flat, flat + torch.tensor([flat[0], flat[1], -0.3]), up)))
    return out


def measure(
    backend: str, depths: list[torch.Tensor], views: list[Camera], voxel: float, color: bool
) -> dict[str, object]:
    """Times of one back end."""
    fuser = make_fuser(backend, voxel, 4.0, with_color=color)  # type: ignore[arg-type]
    picture = torch.rand(*depths[0].shape, 3, generator=torch.Generator().manual_seed(0)) if color else None
    began, cpu_began = time.perf_counter(), time.process_time()
    for depth, view in zip(depths, views, strict=True):
        fuser.integrate(depth, view.K, view.cam_from_world, picture)  # type: ignore[arg-type]
    fused, cpu = time.perf_counter(), time.process_time() - cpu_began
    mesh = fuser.extract(1.0)
    done = time.perf_counter()
    renderer = make_renderer(backend)  # type: ignore[arg-type]
    step = max(1, len(views) // 10)
    error, covered = [], []
    render_began = time.perf_counter()
    for depth, view in list(zip(depths, views, strict=True))[::step]:
        seen = renderer.render(mesh, view)
        both = (seen > 0) & (depth > 0)
        error.append((seen - depth)[both].abs())
        covered.append(float((seen > 0).float().mean()))
    render_seconds = (time.perf_counter() - render_began) / len(error)
    joined = torch.cat(error)
    return {
        "integrate_s": round(fused - began, 3),
        "integrate_cpu_s": round(cpu, 3),
        "extract_s": round(done - fused, 3),
        "render_s_per_frame": round(render_seconds, 3),
        "volume_mb": round(fuser.memory_bytes() / 1e6, 1),
        "vertices": int(mesh.vertices.shape[0]),
        "triangles": int(mesh.faces.shape[0]),
        "depth_error_mean_mm": round(1000 * float(joined.mean()), 3),
        "depth_error_median_mm": round(1000 * float(joined.median()), 3),
        "covered": round(sum(covered) / len(covered), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--voxel", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--color", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    usable, why = open3d_status()
    backends = ["open3d", "torch"] if usable else ["torch"]
    mesh, views = room(), cameras(args.frames)
    renderer = make_renderer("auto")
    depths = [renderer.render(mesh, view) for view in views]
    result = {
        "benchmark": "fusion",
        "command": f"python benchmarks/fusion.py --frames {args.frames} --voxel {args.voxel} --threads {args.threads}"
        + (" --color" if args.color else ""),
        "frames": args.frames,
        "size": [640, 480],
        "voxel_m": args.voxel,
        "color": args.color,
        "seed": 0,
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "open3d": why,
        "torch": torch.__version__,
        "back_ends": {name: measure(name, depths, views, args.voxel, args.color) for name in backends},
        "targets": {"open3d_integrate_s": 1.5, "torch_over_open3d": 20},
    }
    both = result["back_ends"]
    if usable:
        result["torch_over_open3d"] = round(both["torch"]["integrate_s"] / both["open3d"]["integrate_s"], 1)  # type: ignore[index]
    result["peak_memory_mb"] = round(peak_rss() / 1e6)
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
