"""Dense stereo on picture sets with their reference cameras, against their true depth.

    OMP_NUM_THREADS=1 python benchmarks/stereo_real.py [--sets demo fountain room ...] [--pictures DIR]

Writes ``results/foundation/stereo_real.json``. Poses are the reference ones, so this measures stereo alone;
depth ranges come from the true depth (1 to 99 %, x0.75 to x1.4) except on the fountain, whose range and
reference points come from SIFT tracks of at least three views triangulated with the given cameras. ``demo`` is
a procedural room with exact cameras and camera noise; the other sets are real, or rendered by others.
Accuracy is printed beside the kept share and the covisibility ceiling: neither means much alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from relief3d.core.contract import Depth, Scene, SparsePoints, View
from relief3d.core.memory import peak_rss
from relief3d.core.progress import ConsoleProgress
from relief3d.io.cameras_json import read_cameras_json
from relief3d.stereo import StereoConfig, StereoDepth, StereoResult, estimate_depths

REPO = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("RELIEF3D_SHARED", REPO.parent / "shared"))
OUTPUT = REPO / "results" / "foundation" / "stereo_real.json"
TARGETS = {
    "demo": {
        "must": {"abs_rel": 0.01, "kept_of_seen_by_2": 0.6},
        "good": {"abs_rel": 0.004, "kept_of_seen_by_2": 0.8},
    },
    "fountain": {
        "must": {"abs_rel": 0.003, "within_1": 0.985, "kept": 0.65},
        "good": {"abs_rel": 0.0016, "within_1": 0.995, "kept": 0.75},
    },
    "room": {
        "must": {"abs_rel": 0.06, "delta": 0.95, "kept": 0.40},
        "good": {"abs_rel": 0.04, "delta": 0.97, "kept": 0.50},
    },
    "hololens": {
        "must": {"abs_rel": 0.04, "delta": 0.97, "kept": 0.25},
        "good": {"abs_rel": 0.03, "delta": 0.985, "kept": 0.40},
    },
}


def true_depth(scene: Scene, got: StereoDepth) -> torch.Tensor:
    """(H, W) true depth at stereo resolution (nearest pixel: depth is not mixed across edges)."""
    depth = scene.views[got.index].load_depth()
    assert depth is not None
    H, W = depth.values.shape
    y = ((torch.arange(got.camera.height) + 0.5) * H / got.camera.height).floor().long()
    x = ((torch.arange(got.camera.width) + 0.5) * W / got.camera.width).floor().long()
    return depth.values[y][:, x]


def range_of(scene: Scene, index: int, config: StereoConfig) -> tuple[float, float]:
    """Depth range from the true depth, widened like one from sparse points."""
    depth = scene.views[index].load_depth()
    assert depth is not None
    z = depth.values[depth.valid].double()
    z = z[:: max(1, len(z) // 100_000)]
    low, high = torch.quantile(z, torch.tensor([config.range_low, config.range_high]).double()).tolist()
    return low * config.widen_near, high * config.widen_far


def seen_counts(scene: Scene, got: StereoDepth, result: StereoResult, truth: torch.Tensor) -> torch.Tensor:
    """(H, W) number of neighbours whose true depth shows the same surface (within 5 %): the ceiling."""
    camera = got.camera
    assert camera.K is not None and camera.world_from_cam is not None
    y, x = torch.meshgrid(
        torch.arange(camera.height).double() + 0.5, torch.arange(camera.width).double() + 0.5, indexing="ij"
    )
    rays = torch.stack([x, y, torch.ones_like(x)], -1) @ torch.linalg.inv(camera.K).T
    world = (rays * truth[..., None]) @ camera.world_from_cam[:3, :3].T + camera.world_from_cam[:3, 3]
    count = torch.zeros(truth.shape, dtype=torch.long)
    for n in got.neighbours:
        other = result[n.index]
        if other is None:
            continue
        pose, K = other.camera.cam_from_world, other.camera.K
        assert pose is not None and K is not None
        local = world @ pose[:3, :3].T + pose[:3, 3]
        pixel = local @ K.T
        u, v = (pixel[..., k] / pixel[..., 2].clamp_min(1e-9) for k in (0, 1))
        inside = (
            (local[..., 2] > 0) & (u >= 0) & (v >= 0) & (u < other.camera.width) & (v < other.camera.height)
        )
        there = true_depth(scene, other)[
            v.long().clamp(0, other.camera.height - 1), u.long().clamp(0, other.camera.width - 1)
        ]
        count += inside & (there > 0) & ((local[..., 2] / there.clamp_min(1e-9) - 1).abs() < 0.05)
    return count * (truth > 0)


def score(pairs: list[tuple[torch.Tensor, torch.Tensor, float]]) -> dict[str, float]:
    """Mean over views of the errors of (estimated, true) depths and of the kept share."""
    rows = []
    for found, true, _ in pairs:
        if not len(found):
            continue
        relative = found.double() / true.double() - 1
        ratio = torch.maximum(found / true, true / found)
        rows.append(
            (
                float(relative.abs().mean()),
                float((ratio < 1.25).double().mean()),
                float((relative.abs() < 0.02).double().mean()),
                float((relative.abs() < 0.01).double().mean()),
                float(relative.abs().median()),
                float(relative.median().abs()),
            )
        )
    names = ("abs_rel", "delta", "within_2", "within_1", "median_abs_rel", "signed_median_per_view")
    values = torch.tensor(rows, dtype=torch.float64).mean(0).tolist() if rows else [float("nan")] * 6
    kept = sum(p[2] for p in pairs) / max(1, len(pairs))
    return {**dict(zip(names, values, strict=True)), "kept": kept}


def against_depth(scene: Scene, result: StereoResult) -> dict[str, Any]:
    """Raw and kept depth against dense truth, with the covisibility ceiling."""
    raw, kept, ceiling, of_covisible = [], [], [], []
    for got in result:
        if got is None:
            continue
        truth = true_depth(scene, got)
        known = truth > 0
        seen = seen_counts(scene, got, result, truth)
        total = max(1, int(known.sum()))
        ceiling.append((int((seen >= 1).sum()) / total, int((seen >= 2).sum()) / total))
        for store, depth in ((raw, got.raw), (kept, got.depth.values)):
            both = known & (depth > 0)
            store.append((depth[both], truth[both], int(both.sum()) / total))
        covisible = seen >= 2
        of_covisible.append(
            float(got.depth.valid[covisible].double().mean()) if bool(covisible.any()) else 0.0
        )
    one, two = torch.tensor(ceiling, dtype=torch.float64).mean(0).tolist()
    return {
        "raw": score(raw),
        "kept": score(kept),
        "seen_by_1": one,
        "seen_by_2": two,
        "kept_of_seen_by_2": sum(of_covisible) / len(of_covisible),
    }


def against_points(scene: Scene, result: StereoResult) -> dict[str, Any]:
    """Depth at triangulated points (they favour texture: an upper bound); ``kept`` counts all pixels."""
    sparse = scene.sparse
    assert sparse is not None
    raw, kept, sharp, points = [], [], [], []
    for got in result:
        if got is None:
            continue
        mine = sparse.obs_view == got.index
        pose = got.camera.cam_from_world
        assert pose is not None
        z = sparse.xyz[sparse.obs_point[mine]].double() @ pose[2, :3] + pose[2, 3]
        full = scene.views[got.index].camera
        x = (sparse.obs_xy[mine][:, 0] * got.camera.width / full.width).long().clamp(0, got.camera.width - 1)
        y = (
            (sparse.obs_xy[mine][:, 1] * got.camera.height / full.height)
            .long()
            .clamp(0, got.camera.height - 1)
        )
        for store, depth in ((raw, got.raw), (kept, got.depth.values)):
            found = depth[y, x]
            store.append((found[found > 0], z[found > 0], float((depth > 0).double().mean())))
        found = got.depth.values[y, x]
        clean = (found > 0) & (sparse.error[sparse.obs_point[mine]] < 0.5)
        sharp.append((found[clean], z[clean], float((got.depth.values > 0).double().mean())))
        points.append(float((got.depth.values[y, x] > 0).double().mean()))
    return {
        "raw": score(raw),
        "kept": score(kept),
        "kept_at_points_within_half_a_pixel": score(sharp),
        "points_kept": sum(points) / len(points),
    }


def long_tracks(sparse: SparsePoints, least: int = 3) -> SparsePoints:
    """Only the points seen in at least ``least`` views."""
    length = torch.bincount(sparse.obs_point, minlength=len(sparse))
    keep = length >= least
    number = keep.cumsum(0) - 1
    seen = keep[sparse.obs_point]
    return SparsePoints(
        sparse.xyz[keep],
        sparse.rgb[keep],
        sparse.error[keep],
        number[sparse.obs_point[seen]],
        sparse.obs_view[seen],
        sparse.obs_xy[seen],
    )


def triangulated(scene: Scene) -> Scene:
    """The scene with points triangulated from SIFT tracks, cameras unchanged."""
    from relief3d.sfm import estimate_cameras

    with tempfile.TemporaryDirectory() as folder:
        found = estimate_cameras(scene, workdir=Path(folder)).scene
    assert found.sparse is not None
    before = torch.stack(
        [v.camera.world_from_cam for v in scene.views if v.camera.world_from_cam is not None]
    )
    after = torch.stack([v.camera.world_from_cam for v in found.views if v.camera.world_from_cam is not None])
    assert torch.allclose(before, after, atol=1e-6), "the known-pose path must leave the cameras alone"
    return found.replace(sparse=long_tracks(found.sparse))


def write_pictures(scene: Scene, result: StereoResult, folder: Path) -> None:
    """Grey, raw and kept inverse depth, confidence and normals of every view, side by side."""
    from relief3d.io.images import write_image

    folder.mkdir(parents=True, exist_ok=True)
    for got in result:
        if got is None:
            continue
        near, far = got.range.near, got.range.far

        def tone(depth: torch.Tensor, near: float = near, far: float = far) -> torch.Tensor:
            shade = (1 / depth.clamp_min(1e-6) - 1 / far) / (1 / near - 1 / far)
            return torch.where(depth > 0, 0.1 + 0.9 * shade.clamp(0, 1), torch.zeros_like(shade)).expand(
                3, -1, -1
            )

        small = torch.nn.functional.interpolate(
            scene.views[got.index].load_image()[None], tuple(got.raw.shape), mode="area"
        )[0]
        assert got.depth.confidence is not None
        normals = (got.normals.permute(2, 0, 1) * 0.5 + 0.5) * (got.normals.norm(dim=-1) > 0.5)
        panel = torch.cat(
            [small, tone(got.raw), tone(got.depth.values), got.depth.confidence.expand(3, -1, -1), normals],
            dim=2,
        )
        write_image(folder / f"{Path(got.name).stem}.png", panel)


def demo_scene() -> Scene:
    """The procedural demo capture with exact cameras and depth."""
    from relief3d.worlds.capture import demo_capture

    capture = demo_capture(0, 16, (512, 384))
    return Scene(
        tuple(
            View(f"{i:02d}", camera, image.float() / 255, Depth.from_values(depth))
            for i, (camera, image, depth) in enumerate(
                zip(capture.cameras, capture.images, capture.depths, strict=True)
            )
        ),
        metric=True,
    )


SETS: dict[str, tuple[str, int | None, str, dict[str, Any]]] = {
    "demo": ("procedural demo capture, seed 0", None, "strict", {"max_width": 384}),
    "fountain": ("strecha_fountain_p11", None, "strict", {"max_width": 512}),
    "fountain_fine": ("strecha_fountain_p11", None, "fine", {"max_width": 512}),
    "room": ("rendered_room8", 3, "default", {"max_width": 384}),
    "hololens": ("hololens_room", None, "default", {"max_width": 384}),
    "office": ("rgbd_office5", None, "default", {"max_width": 384}),
}


def run_set(name: str, pictures: Path | None, changes: dict[str, Any]) -> dict[str, Any]:
    """Estimate and score one set."""
    folder, count, profile, preset = SETS[name]
    scene = demo_scene() if name == "demo" else read_cameras_json(SHARED / "data" / folder)
    scene = scene.replace(views=scene.views[:count])
    config = StereoConfig.profile(profile, **{**preset, **changes})  # type: ignore[arg-type]
    ranges = None
    if name.startswith("fountain"):
        scene = triangulated(scene)
    else:
        ranges = {i: range_of(scene, i, config) for i in range(len(scene))}
    began = time.process_time()
    result = estimate_depths(scene, config, "cpu", ConsoleProgress(log_every=60), ranges=ranges)
    cpu = time.process_time() - began
    measured = against_points(scene, result) if name.startswith("fountain") else against_depth(scene, result)
    if pictures is not None:
        write_pictures(scene, result, pictures / name)
    report = result.report
    row = {
        "set": folder,
        "views": len(scene),
        "views_with_depth": sum(r is not None for r in result),
        "profile": profile,
        "settings": {**preset, **changes},
        **measured,
        "strict_share": report.strict_share,
        "poses_doubtful": report.poses_doubtful,
        "verdict": report.verdict,
        "cpu_seconds_per_view": cpu / max(1, len(scene)),
        "wall_seconds_per_view": report.seconds / max(1, len(scene)),
    }
    values = {**measured["kept"], "kept_of_seen_by_2": measured.get("kept_of_seen_by_2", 0.0)}
    row["reached"] = {
        level: all(values[k] <= v if k == "abs_rel" else values[k] >= v for k, v in wanted.items())
        for level, wanted in TARGETS.get(name.split("_")[0], {}).items()
    }
    return row


def show(name: str, row: dict[str, Any]) -> None:
    """One line per depth kind, ceiling beside it."""
    ceiling = ""
    if "seen_by_1" in row:
        ceiling = f"seen by >=1 {row['seen_by_1']:.2f}, >=2 {row['seen_by_2']:.2f}"
        ceiling += f" (kept of it {row['kept_of_seen_by_2']:.2f})"
    for kind in ("raw", "kept"):
        m = row[kind]
        print(
            f"{name:9s} {kind:4s} AbsRel {m['abs_rel']:.4f}  d<1.25 {m['delta']:.4f}  2% {m['within_2']:.3f}  "
            f"1% {m['within_1']:.4f}  kept {m['kept']:.3f}  {ceiling}"
        )
    print(
        f"{'':9s} reached {row['reached']}  doubtful poses {row['poses_doubtful']}  "
        f"{row['cpu_seconds_per_view']:.2f} CPU s per view",
        flush=True,
    )


def main() -> None:
    """Run the named sets and merge their rows into the results file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=sorted(SETS), default=list(SETS))
    parser.add_argument(
        "--pictures", type=Path, help="folder for depth pictures (shows shared photos: keep it out)"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="change a StereoConfig field"
    )
    parser.add_argument("--dry", action="store_true", help="print only, do not write the results file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    changes = {k: json.loads(v) for k, v in (item.split("=", 1) for item in options.set)}
    rows: dict[str, Any] = {}
    for name in options.sets:
        rows[name] = run_set(name, options.pictures, changes)
        show(name, rows[name])
    if options.dry:
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=REPO, capture_output=True, text=True, check=False
    )
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    # Read as late as possible: runs of other sets may have finished meanwhile.
    old = json.loads(OUTPUT.read_text()).get("rows", {}) if OUTPUT.exists() else {}
    record = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/stereo_real.py",
        "commit": commit.stdout.strip(),
        "seed": 0,
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread used",
        "torch": torch.__version__,
        "peak_memory_gb": round(peak_rss() / 1e9, 2),
        "targets": TARGETS,
        "rows": {**old, **rows},
    }
    OUTPUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
