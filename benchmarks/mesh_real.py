"""Meshes fused from stereo depth on real picture sets, against meshes fused from true depth of the same views.

    OMP_NUM_THREADS=1 python benchmarks/mesh_real.py [--sets room hololens] [--cache DIR] [--pictures DIR] [--json FILE]

Poses are the given ones and depth ranges come from the true depth, so this measures stereo and fusion. Each
row is one choice of consistency and minimum weight; precision, recall and F are at 1 % and 2 % of the scene's
diagonal (box of 98 % of the true points), from 200k area-uniform samples of both meshes. ``ceiling`` fuses the
true depth of the pixels that another view sees, which no stereo can exceed. The few-view component limit
(50 triangles) was chosen on the room set. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from relief3d.core.contract import Depth, Mesh, Scene
from relief3d.core.memory import peak_rss
from relief3d.core.progress import ConsoleProgress
from relief3d.eval.metrics.mesh import evaluate_meshes
from relief3d.fusion.filters import FilterConfig
from relief3d.fusion.frames import DepthFrame
from relief3d.fusion.fuse import FusionConfig, FusionResult, fuse_frames
from relief3d.fusion.voxel_size import choose_voxel_size
from relief3d.io.cameras_json import read_cameras_json
from relief3d.io.images import write_image
from relief3d.render.pictures import orbit_cameras, render_mesh, scaled_camera, up_direction

REPO = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("RELIEF3D_SHARED", REPO.parent / "shared"))
SETS: dict[str, dict[str, Any]] = {
    "room": {
        "folder": "rendered_room8",
        "views": 3,
        "must": (0.60, 0.78),
        "good": (0.72, 0.86),
        "rows": [(1, 1.0), (2, 1.0)],
        "width": 434,
    },
    "hololens": {
        "folder": "hololens_room",
        "views": 48,
        "must": (0.58, 0.72),
        "good": (0.70, 0.82),
        "rows": [(0, 4.0), (1, 1.0), (1, 2.0), (2, 1.0)],
        "width": 384,
    },
}
RATIO_WIDEN = (0.75, 1.4)


def load(name: str) -> Scene:
    """The first views of a set."""
    scene = read_cameras_json(SHARED / "data" / SETS[name]["folder"] / "cameras.json")
    return scene.replace(views=scene.views[: SETS[name]["views"]])


def stereo_maps(name: str, scene: Scene, cache: Path | None) -> list[dict[str, np.ndarray]]:
    """Depth, agreement and confidence per view by the stereo engine with at least one agreeing neighbour."""
    path = None if cache is None else cache / f"stereo_{name}.npz"
    if path is not None and path.exists():
        with np.load(path) as stored:
            return [
                {key.split("/")[1]: stored[key] for key in stored.files if key.startswith(f"{i}/")}
                for i in range(len(scene))
            ]
    from relief3d.stereo import StereoConfig, estimate_depths

    ranges = {}
    for i, view in enumerate(scene.views):
        depth = view.load_depth()
        assert depth is not None
        low, high = np.quantile(depth.values[depth.valid].numpy(), (0.01, 0.99))
        ranges[i] = (float(low) * RATIO_WIDEN[0], float(high) * RATIO_WIDEN[1])
    config = StereoConfig(max_width=SETS[name]["width"], min_agreeing=1)
    got = estimate_depths(scene, config, progress=ConsoleProgress(), ranges=ranges)
    out = []
    for item in got:
        if item is None:
            out.append({})
            continue
        assert item.camera.K is not None and item.depth.confidence is not None
        out.append(
            {
                "depth": item.depth.values.numpy(),
                "raw": item.raw.numpy(),
                "agreement": item.agreement.numpy(),
                "confidence": item.depth.confidence.numpy(),
                "K": item.camera.K.numpy(),
            }
        )
    if path is not None:
        np.savez(path, **{f"{i}/{k}": v for i, maps in enumerate(out) for k, v in maps.items()})  # type: ignore[arg-type]
    return out


def frames_from(
    scene: Scene, maps: list[dict[str, np.ndarray]], agreeing: int, picture: bool
) -> list[DepthFrame]:
    """Frames of pixels with enough agreement; 0 takes the raw depth."""
    frames = []
    for view, item in zip(scene.views, maps, strict=True):
        if not item:
            continue
        depth = item["raw"] if agreeing == 0 else item["depth"] * (item["agreement"] >= agreeing)
        camera = view.camera.replace(
            width=depth.shape[1], height=depth.shape[0], K=torch.from_numpy(item["K"]), distortion=None
        )
        values = Depth.from_values(
            torch.from_numpy(depth), confidence=torch.from_numpy(item["confidence"].astype(np.float32))
        )
        frames.append(DepthFrame(view.name, values, camera, view.load_image() if picture else None))
    return frames


def true_frames(scene: Scene) -> list[DepthFrame]:
    """Frames of the true depth."""
    out = []
    for view in scene.views:
        depth = view.load_depth()
        assert depth is not None
        out.append(DepthFrame(view.name, depth, view.camera.replace(distortion=None)))
    return out


def seen_elsewhere(frames: list[DepthFrame], tolerance: float = 0.05) -> list[DepthFrame]:
    """Only the pixels whose point another frame shows at the same depth."""
    out = []
    for i, frame in enumerate(frames):
        xyz, rows, cols = frame.points()
        seen = torch.zeros(xyz.shape[0], dtype=torch.bool)
        for j, other in enumerate(frames):
            if i == j:
                continue
            local = xyz @ other.cam_from_world[:3, :3].T + other.cam_from_world[:3, 3]
            pixel = local @ other.K.T
            u, v = (pixel[:, k] / pixel[:, 2].clamp_min(1e-9) for k in (0, 1))
            height, width = other.camera.height, other.camera.width
            inside = (local[:, 2] > 0) & (u >= 0) & (v >= 0) & (u < width) & (v < height)
            depth = other.values()[v.long().clamp(0, height - 1), u.long().clamp(0, width - 1)]
            seen |= inside & (depth > 0) & ((local[:, 2] / depth.clamp_min(1e-9) - 1).abs() < tolerance)
        values = torch.zeros_like(frame.values())
        values[rows[seen], cols[seen]] = frame.values()[rows[seen], cols[seen]]
        out.append(dataclasses.replace(frame, depth=Depth.from_values(values)))
    return out


def row(result: FusionResult, reference: Mesh, diagonal: float) -> dict[str, Any]:
    """Numbers of one mesh."""
    got = evaluate_meshes(result.mesh, reference, (0.01, 0.02), diagonal=diagonal)
    return {
        "faces": int(result.mesh.faces.shape[0]),
        "min_weight": result.min_weight,
        "voxel": round(result.voxel_size, 4),
        **{
            f"at_{round(100 * s.share)}pct": {
                "precision": round(s.precision, 3),
                "recall": round(s.recall, 3),
                "f": round(s.fscore, 3),
            }
            for s in got.scores
        },
        "median_distance": round((got.accuracy_median + got.completeness_median) / 2, 4),
        "normal_consistency": round(got.normal_consistency or 0.0, 3),
    }


def run(name: str, cache: Path | None, pictures: Path | None) -> dict[str, Any]:
    """All rows of a set."""
    scene = load(name)
    truth = true_frames(scene)
    fine = FusionConfig(min_weight=1.0, filters=FilterConfig(edge_ratio=0.0), clean="full", with_color=False)
    reference = fuse_frames(truth, fine)
    voxel = reference.voxel_size
    # The box of 98 % of the points along each axis: a few stray depths must not widen the thresholds.
    diagonal = choose_voxel_size(truth).diagonal
    began = time.perf_counter()
    maps = stereo_maps(name, scene, cache)
    stereo_seconds = time.perf_counter() - began
    rows: dict[str, Any] = {}
    base = FusionConfig(
        voxel_size=voxel, filters=FilterConfig(edge_ratio=1.1), clean="standard", with_color=False
    )
    rows["ceiling"] = row(fuse_frames(seen_elsewhere(truth), fine), reference.mesh, diagonal)
    for agreeing, weight in SETS[name]["rows"]:
        began = time.perf_counter()
        fused = fuse_frames(
            frames_from(scene, maps, agreeing, False), dataclasses.replace(base, min_weight=weight)
        )
        rows[f"agree>={agreeing} weight>={weight:g}"] = {
            **row(fused, reference.mesh, diagonal),
            "fusion_s": round(time.perf_counter() - began, 2),
        }
    rows["default"] = row(fuse_frames(frames_from(scene, maps, 1, False), base), reference.mesh, diagonal)
    if pictures is not None:
        coloured = fuse_frames(frames_from(scene, maps, 1, True), dataclasses.replace(base, with_color=True))
        draw(name, coloured.mesh, reference.mesh, scene, pictures)
    default = rows["default"]
    f = (default["at_1pct"]["f"], default["at_2pct"]["f"])
    return {
        "diagonal": round(diagonal, 2),
        "stereo_s": round(stereo_seconds, 1),
        "rows": rows,
        "must": SETS[name]["must"],
        "good": SETS[name]["good"],
        "default_f": f,
        "verdict": "good"
        if all(a >= b for a, b in zip(f, SETS[name]["good"], strict=True))
        else "must"
        if all(a >= b for a, b in zip(f, SETS[name]["must"], strict=True))
        else "below",
    }


def draw(name: str, mesh: Mesh, reference: Mesh, scene: Scene, folder: Path) -> None:
    """Orbit pictures of both meshes and one input view of the coloured one (never commit these)."""
    folder.mkdir(parents=True, exist_ok=True)
    cameras = [v.camera.replace(distortion=None) for v in scene.views]
    orbit = orbit_cameras(reference, 4, up=up_direction(cameras), elevation=40)
    rows = [torch.cat([render_mesh(m, c, back_faces="cull") for c in orbit], 2) for m in (mesh, reference)]
    write_image(folder / f"{name}_orbit.png", torch.cat(rows, 1))
    middle = cameras[len(cameras) // 2]
    inside = [render_mesh(mesh, scaled_camera(middle, 1.0), mode) for mode in ("colour", "shaded")]
    inside.append(render_mesh(reference, middle))
    write_image(folder / f"{name}_view.png", torch.cat(inside, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--cache", type=Path, help="keep stereo depth here between runs")
    parser.add_argument("--pictures", type=Path, help="write pictures of the meshes here")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = {
        "benchmark": "mesh_real",
        "command": f"python benchmarks/mesh_real.py --sets {' '.join(args.sets)}",
        "samples": 200_000,
        "seed": 0,
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "sets": {name: run(name, args.cache, args.pictures) for name in args.sets},
    }
    result["peak_memory_mb"] = round(peak_rss() / 1e6)
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
