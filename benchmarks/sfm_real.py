"""Cameras from real photos: relief3d beside plain pycolmap with default options, in one run.

    python benchmarks/sfm_real.py [--sets fountain castle ...] [--output results/foundation/sfm_real.json]

Sets are read from the folder named by RELIEF3D_SHARED (default ../shared). Each set is solved with unknown and with
given intrinsics. AUC counts every pair of views with a reference; a pair with a view that was not placed fails, so
registering fewer views can only lower it. Translation directions are signed. A set whose result exists in the
output file is not run again unless ``--again`` is given.
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

import numpy as np
import torch

from relief3d.core.contract import Scene
from relief3d.core.errors import ReliefError
from relief3d.core.memory import peak_rss
from relief3d.core.progress import ConsoleProgress
from relief3d.eval.metrics.cameras import evaluate_cameras
from relief3d.io.atomic import write_text
from relief3d.io.cameras_json import read_cameras_json
from relief3d.sfm import SfmConfig, estimate_cameras

SETS = {
    "fountain": "strecha_fountain_p11",
    "castle": "strecha_castle_p19",
    "fox": "fox_head25",
    "hololens_room": "hololens_room",
    "temple_ring": "middlebury_temple_ring16",
    "rendered_room8": "rendered_room8",
    "rgbd_office5": "rgbd_office5",
}
MODES = ("unknown", "given")


def stripped(scene: Scene, mode: str) -> Scene:
    """The pictures alone, with their intrinsics when ``mode`` is "given"."""
    views = tuple(
        v.replace(
            camera=v.camera.replace(world_from_cam=None, K=v.camera.K if mode == "given" else None),
            depth=None,
            sparse_depth=None,
            mask=None,
        )
        for v in scene.views
    )
    return scene.replace(views=views, metric=False)


def plain(scene: Scene, mode: str, folder: Path) -> list[torch.Tensor | None]:
    """Pycolmap with default options: features, exhaustive matching, incremental mapping; largest model."""
    import pycolmap

    pycolmap.logging.minloglevel = 2
    paths = [v.path for v in scene.views]
    assert all(p is not None for p in paths)
    root = paths[0].parent  # type: ignore[union-attr]
    database = folder / "database.db"
    names = [p.name for p in paths]  # type: ignore[union-attr]
    extraction, matching = pycolmap.FeatureExtractionOptions(), pycolmap.FeatureMatchingOptions()
    options = pycolmap.IncrementalPipelineOptions()
    extraction.num_threads = matching.num_threads = options.num_threads = 1
    if mode == "unknown":
        pycolmap.extract_features(database, root, names, extraction_options=extraction)
    else:
        options.ba_refine_focal_length = options.ba_refine_extra_params = False
        options.mapper.abs_pose_refine_focal_length = options.mapper.abs_pose_refine_extra_params = False
        for name, view in zip(names, scene.views, strict=True):
            K = view.camera.K
            assert K is not None
            reader = pycolmap.ImageReaderOptions()
            reader.camera_model = "PINHOLE"
            reader.camera_params = ",".join(str(float(K[i, j])) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
            pycolmap.extract_features(
                database, root, [name], pycolmap.CameraMode.PER_IMAGE, reader, extraction_options=extraction
            )
    pycolmap.match_exhaustive(database, matching_options=matching)
    models = pycolmap.incremental_mapping(database, root, folder, options)
    if not models:
        return [None] * len(names)
    best = max(models.values(), key=lambda m: m.num_reg_images())
    poses: dict[str, torch.Tensor] = {}
    for index in best.reg_image_ids():
        T = np.vstack([best.image(index).cam_from_world().inverse().matrix(), [0.0, 0.0, 0.0, 1.0]])
        poses[best.image(index).name] = torch.from_numpy(T)
    return [poses.get(name) for name in names]


def measured(estimated: list[torch.Tensor | None], reference: list[torch.Tensor | None]) -> dict[str, Any]:
    report = evaluate_cameras(estimated, reference)
    facts: dict[str, Any] = {
        "registered": report.registered,
        "total": report.total,
        "auc": {k: round(v, 1) for k, v in report.auc.items()},
        "rra": {k: round(v, 1) for k, v in report.rra.items()},
        "rta": {k: round(v, 1) for k, v in report.rta.items()},
    }
    if report.ate_sim3 is not None:
        facts["ate_rmse"] = round(report.ate_sim3.rmse, 5)
        facts["path_length"] = round(report.ate_sim3.path_length, 4)
    return facts


def run_arm(arm: str, scene: Scene, mode: str, seed: int) -> dict[str, Any]:
    reference = [v.camera.world_from_cam for v in scene.views]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if arm == "pycolmap":
            facts = measured(plain(stripped(scene, mode), mode, Path(folder)), reference)
        else:
            try:
                result = estimate_cameras(
                    stripped(scene, mode), SfmConfig(seed=seed), folder, ConsoleProgress()
                )
            except ReliefError as exc:
                facts = {"refused": str(exc), **measured([None] * len(scene), reference)}
            else:
                facts = measured([v.camera.world_from_cam for v in result.scene.views], reference)
                keys = ("chosen", "points", "reprojection_px", "explained", "lenses", "seconds", "warnings")
                facts |= {k: result.report[k] for k in keys}
                facts["attempts"] = [
                    {k: a.get(k) for k in ("name", "registered", "seconds")}
                    for a in result.report["attempts"]
                ]
    facts["wall_seconds"] = round(time.perf_counter() - began, 1)
    return facts


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument(
        "--arms", nargs="+", choices=("pycolmap", "relief3d"), default=["pycolmap", "relief3d"]
    )
    parser.add_argument("--output", type=Path, default=Path("results/foundation/sfm_real.json"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="run again what the output file holds already")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared = Path(os.environ.get("RELIEF3D_SHARED", "../shared")) / "data"
    table: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    rows: dict[str, Any] = table.setdefault("rows", {})
    for name in options.sets:
        scene = read_cameras_json(shared / SETS[name])
        for mode in options.modes:
            for arm in options.arms:
                key = f"{name}/{mode}/{arm}"
                if key in rows and not options.again:
                    continue
                rows[key] = run_arm(arm, scene, mode, options.seed) | {"commit": commit()}
                table |= {
                    "command": "python benchmarks/sfm_real.py",
                    "seed": options.seed,
                    "threads": 1,
                    "hardware": f"{platform.machine()}, {os.cpu_count()} cores (shared with other work)",
                    "peak_rss_mib": max(table.get("peak_rss_mib", 0), round(peak_rss() / 2**20)),
                    "auc": "exact area, signed direction, all pairs with a reference; unplaced views fail",
                }
                write_text(options.output, json.dumps(table, indent=1, sort_keys=True) + "\n")
                row = rows[key]
                print(
                    f"{key:36s} {row['registered']:3d}/{row['total']:<3d} AUC {row['auc']} {row['wall_seconds']} s",
                    flush=True,
                )
                if "refused" in row:
                    print(f"    refused: {row['refused']}", flush=True)


if __name__ == "__main__":
    main()
