"""Compare one reconstruction with a reference: cameras, depth and mesh in one table.

The result is brought into the reference's frame by its cameras (:mod:`relief3d.eval.alignment`); nothing is
ever aligned per view, so depth errors include what the cameras got wrong.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Mesh, Scene, View
from relief3d.core.errors import InputError
from relief3d.eval.alignment import CameraAlignment, align_cameras
from relief3d.eval.metrics.cameras import evaluate_cameras
from relief3d.eval.metrics.depth import evaluate_depth
from relief3d.eval.metrics.mesh import cull_samples, evaluate_points, sample_surface, visible_count
from relief3d.fusion.factory import make_fuser
from relief3d.geometry.distortion import undistort_points
from relief3d.geometry.projection import depth_to_world_points, pixel_grid
from relief3d.io.cameras_json import read_cameras_json
from relief3d.io.colmap import find_colmap_model, read_colmap_model
from relief3d.io.folders import detect_input, open_input, read_camera_file
from relief3d.io.glb import read_glb
from relief3d.io.ply import read_ply

MESH_SHARES = (0.01, 0.02)
MESH_SAMPLES = 200_000


def compare(
    result: str | Path, reference: str | Path, *, mesh: str | Path | None = None, samples: int = MESH_SAMPLES
) -> dict[str, Any]:
    """Measure a result folder (or any scene file, for poses alone) against a reference scene.

    Args:
        result: what ``relief3d reconstruct`` wrote.
        reference: scene with true poses and, for depth and mesh, true depth maps.
        mesh: true surface; without it the reference's depth maps are fused, when it has any.
        samples: points per surface.

    Returns:
        ``{"cameras": ..., "depth": ..., "mesh": ..., "alignment": ...}``; parts that cannot be measured are
        absent and ``"skipped"`` says why. Shares are in [0, 1], AUC in percent, lengths in reference units.

    Raises:
        InputError: no views in common, or nothing to compare.
    """
    result, reference = Path(result), Path(reference)
    truth = open_input(reference)
    estimate = _read_cameras(result)
    pairs = match_views(estimate, truth)
    if not pairs:
        raise InputError(
            "no view of the result has the name of a view of the reference",
            path=result,
            remedy=f"names must agree, for example '{truth.views[0].name}'",
        )
    numbers: dict[str, Any] = {"result": result.name, "reference": reference.name, "skipped": {}}
    by_truth = {t: e for e, t in pairs}
    est = [
        estimate.views[by_truth[i]].camera.world_from_cam if i in by_truth else None
        for i in range(len(truth))
    ]
    ref = [v.camera.world_from_cam for v in truth.views]
    if sum(r is not None for r in ref) >= 2:
        numbers["cameras"] = dataclasses.asdict(evaluate_cameras(est, ref))
    else:
        numbers["skipped"]["cameras"] = "the reference has fewer than two poses"
        return numbers
    alignment = align_cameras(est, ref)
    numbers["alignment"] = {"kind": alignment.kind, "scale": alignment.scale}
    depths = _reference_depths(truth)
    if not depths:
        lens = any(v.camera.distortion is not None and v.depth is not None for v in truth.views)
        numbers["skipped"]["depth"] = (
            "the reference's depth belongs to pictures with lens distortion; undistort them first"
            if lens
            else "the reference has no depth"
        )
    elif not (result / "depth" / "cameras.json").is_file():
        numbers["skipped"]["depth"] = "the result has no depth folder"
    else:
        numbers["depth"] = _compare_depth(result, estimate, truth, depths, alignment)
    _compare_mesh(numbers, result, truth, depths, alignment, mesh, samples)
    return numbers


def _read_cameras(result: Path) -> Scene:
    if result.is_dir() and find_colmap_model(result) is not None:
        return read_colmap_model(result)
    kind, target = detect_input(result)
    if kind not in ("colmap", "cameras_json", "transforms_json"):
        raise InputError("holds no cameras", path=result, remedy="give a result folder or a cameras file")
    return read_camera_file(Path(target), kind, alone=True)


def match_views(a: Scene, b: Scene) -> list[tuple[int, int]]:
    """Index pairs of views with the same name, or else the same unambiguous bare file name."""
    full = {v.name: i for i, v in enumerate(b.views)}
    bare: dict[str, int | None] = {}
    for i, v in enumerate(b.views):
        key = PurePosixPath(v.name).name
        bare[key] = None if key in bare else i
    out = []
    for i, v in enumerate(a.views):
        j = full.get(v.name, bare.get(PurePosixPath(v.name).name))
        if j is not None:
            out.append((i, j))
    return out


def _reference_depths(truth: Scene) -> dict[int, Depth]:
    return {
        i: depth
        for i in truth.posed
        if (depth := truth.views[i].load_depth()) is not None and truth.views[i].camera.distortion is None
    }


def _compare_depth(
    result: Path, estimate: Scene, truth: Scene, depths: Mapping[int, Depth], alignment: CameraAlignment
) -> dict[str, Any]:
    """Per-view metrics and their mean; both maps are compared at the pixels of the reference."""
    maps = read_cameras_json(result / "depth" / "cameras.json", require_images=False)
    originals = {v.name: v for v in estimate.views}
    found = {t: maps.views[m] for m, t in match_views(maps, truth)}
    rows: dict[str, Any] = {}
    seen = _covisibility(truth, depths)
    for index, depth in depths.items():
        view = truth.views[index]
        if index not in found:
            rows[view.name] = {"kept": 0.0}
            continue
        map_view = found[index]
        original = originals.get(map_view.name, map_view)
        predicted = _at_reference_pixels(map_view, original, view.camera) * alignment.scale
        rows[view.name] = _depth_row(predicted, depth, seen[index])
    compared = [r for r in rows.values() if "abs_rel" in r]
    if not compared:
        raise InputError("no depth map of the result overlaps the reference's depth", path=result)
    mean = {
        key: sum(r[key] for r in compared) / len(compared)
        for key in ("abs_rel", "delta1", "within_2", "signed_median")
    }
    every = list(rows.values())
    for key in ("kept", "kept_of_seen_1", "kept_of_seen_2"):
        values = [r.get(key, 0.0) for r in every]
        values = [v for v in values if not math.isnan(v)]
        mean[key] = sum(values) / max(1, len(values))
    for minimum in (1, 2):
        shares = [float((seen[i][d.valid] >= minimum).float().mean()) for i, d in depths.items()]
        mean[f"ceiling_{minimum}"] = sum(shares) / len(shares)
    return {"mean": mean, "views": rows, "compared": len(compared), "total": len(every)}


def _depth_row(predicted: Tensor, depth: Depth, seen: Tensor) -> dict[str, float]:
    got = depth.valid & (predicted > 0)
    row = {"kept": float(got.sum() / depth.valid.sum().clamp_min(1))}
    for minimum in (1, 2):
        possible = depth.valid & (seen >= minimum)
        row[f"kept_of_seen_{minimum}"] = (
            float((got & possible).sum() / possible.sum()) if bool(possible.any()) else math.nan
        )
    if not bool(got.any()):
        return row
    m = evaluate_depth(predicted, depth.values, depth.valid)
    ratio = predicted[got] / depth.values[got] - 1
    return {
        **row,
        "abs_rel": float(m.abs_rel),
        "delta1": float((torch.maximum(ratio + 1, 1 / (ratio + 1)) < 1.25).float().mean()),
        "within_2": float((ratio.abs() <= 0.02).float().mean()),
        "signed_median": float(ratio.median()),
    }


def _at_reference_pixels(map_view: View, original: View, camera: Camera) -> Tensor:
    """(H, W) predicted depth at the pixels of the reference camera's picture, by nearest map pixel; 0: none.

    Both describe one picture: a reference pixel is a share of the picture's width and height. When the result
    removed a lens, the same is done to the pixel before the map is read.
    """
    depth = map_view.load_depth()
    if depth is None:
        raise InputError(f"the depth map of '{map_view.name}' is missing")
    height, width = depth.values.shape
    big = original.camera
    xy = pixel_grid(camera.height, camera.width, dtype=torch.float64).reshape(-1, 2)
    if big.distortion is not None and not big.distortion.is_identity and big.K is not None:
        size = torch.tensor([big.width / camera.width, big.height / camera.height], dtype=torch.float64)
        xy = undistort_points(xy * size, big) / size
    x = (xy[:, 0] * width / camera.width).floor().long()
    y = (xy[:, 1] * height / camera.height).floor().long()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    found = torch.where(inside & depth.valid[y, x], depth.values[y, x], torch.zeros(()))
    return found.reshape(camera.height, camera.width)


def _covisibility(truth: Scene, depths: Mapping[int, Depth], slack: float = 0.02) -> dict[int, Tensor]:
    """For every reference map, (H, W) int64 number of *other* views that see the same surface point."""
    cameras = {i: truth.views[i].camera for i in depths}
    out = {}
    for i, depth in depths.items():
        camera = cameras[i]
        assert camera.K is not None and camera.world_from_cam is not None
        points = depth_to_world_points(depth.values.double(), camera.K, camera.world_from_cam).reshape(-1, 3)
        others = [j for j in depths if j != i]
        count = visible_count(
            points,
            [cameras[j] for j in others],
            [depths[j].values for j in others],
            0.0,
            relative_slack=slack,
        )
        out[i] = count.reshape(depth.values.shape) * depth.valid
    return out


def _compare_mesh(
    numbers: dict[str, Any],
    result: Path,
    truth: Scene,
    depths: Mapping[int, Depth],
    alignment: CameraAlignment,
    mesh: str | Path | None,
    samples: int,
) -> None:
    predicted = read_mesh(result / "mesh.ply") if (result / "mesh.ply").is_file() else None
    if predicted is None:
        numbers["skipped"]["mesh"] = "the result has no mesh.ply"
        return
    if mesh is not None:
        surface, source = read_mesh(Path(mesh)), "given mesh"
    elif depths:
        surface, source = fuse_reference(truth, depths), "fused from the reference's depth"
    else:
        numbers["skipped"]["mesh"] = "the reference has neither a mesh nor depth"
        return
    aligned = alignment.mesh(predicted)
    numbers["mesh"] = {"source": source, **compare_meshes(aligned, surface, truth, depths, samples)}
    used = _views_with_maps(result, truth)
    part = {i: d for i, d in depths.items() if i in used}
    if mesh is None and 2 <= len(part) < len(depths):
        # What the pictures that got depth can show; the row above also counts the places nobody reconstructed.
        surface = fuse_reference(truth, part)
        numbers["mesh_of_used_views"] = {
            "views": len(part),
            **compare_meshes(aligned, surface, truth, part, samples, min_views=1),
        }


def _views_with_maps(result: Path, truth: Scene) -> set[int]:
    path = result / "depth" / "cameras.json"
    if not path.is_file():
        return set()
    return {t for _, t in match_views(read_cameras_json(path, require_images=False), truth)}


def compare_meshes(
    predicted: Mesh,
    surface: Mesh,
    truth: Scene,
    depths: Mapping[int, Depth],
    samples: int = MESH_SAMPLES,
    min_views: int = 2,
) -> dict[str, Any]:
    """Accuracy, completeness and F-score at 1 % and 2 % of the diagonal of the surface seen in ``min_views``
    or more views.

    Nothing of the prediction is cut away: what lies off the seen surface costs precision.
    """
    target = sample_surface(surface, samples, torch.Generator().manual_seed(0))
    if len(depths) >= 2:
        extent = float((surface.vertices.amax(0) - surface.vertices.amin(0)).norm())
        cameras = [truth.views[i].camera for i in depths]
        target = cull_samples(
            target, cameras, [d.values for d in depths.values()], 0.005 * extent, min_views=min_views
        )
        if not len(target.points):
            raise InputError("no part of the reference surface is seen in two views")
    found = sample_surface(predicted, samples, torch.Generator().manual_seed(1))
    m = evaluate_points(found, target, MESH_SHARES, relative=True)
    return {
        "diagonal": m.diagonal,
        "accuracy": m.accuracy,
        "completeness": m.completeness,
        "chamfer_l1": m.chamfer_l1,
        "normal_consistency": m.normal_consistency,
        "scores": {
            f"{100 * s.share:g}%": {"precision": s.precision, "recall": s.recall, "fscore": s.fscore}
            for s in m.scores
        },
        "triangles": int(predicted.faces.shape[0]),
    }


def fuse_reference(truth: Scene, depths: Mapping[int, Depth], voxels_along_diagonal: int = 400) -> Mesh:
    """The surface that the reference's own depth maps describe."""
    clouds = []
    for i, depth in depths.items():
        camera = truth.views[i].camera
        assert camera.K is not None and camera.world_from_cam is not None
        points = depth_to_world_points(depth.values.double(), camera.K, camera.world_from_cam)
        clouds.append(points[depth.valid][::97])
    cloud = torch.cat(clouds)
    low, high = (torch.quantile(cloud, q, dim=0) for q in (0.005, 0.995))
    fuser = make_fuser("auto", float((high - low).norm()) / voxels_along_diagonal, with_color=False)
    for i, depth in depths.items():
        camera = truth.views[i].camera
        assert camera.K is not None and camera.cam_from_world is not None
        fuser.integrate(depth.values, camera.K, camera.cam_from_world)
    return fuser.extract(1.0)


def read_mesh(path: Path) -> Mesh:
    """A mesh from PLY or GLB.

    Raises:
        InputError: unreadable, or without faces.
    """
    loaded = read_glb(path) if path.suffix.lower() == ".glb" else read_ply(path)
    if not isinstance(loaded, Mesh) or not len(loaded.faces):
        raise InputError("the file holds no triangles", path=path, remedy="give a mesh as PLY or GLB")
    return loaded


def format_comparison(numbers: Mapping[str, Any]) -> str:
    """A short table for people."""
    lines = []
    if cameras := numbers.get("cameras"):
        auc = "  ".join(f"AUC@{k} {v:.1f}" for k, v in cameras["auc"].items())
        lines.append(f"cameras   {cameras['registered']}/{cameras['total']} registered   {auc}")
        if ate := cameras.get("ate_sim3"):
            share = 100 * ate["rmse"] / ate["path_length"] if ate["path_length"] else math.nan
            lines.append(f"          ATE {ate['rmse']:.4g} ({share:.2f} % of the path)")
    if depth := numbers.get("depth"):
        m = depth["mean"]
        lines.append(
            f"depth     AbsRel {100 * m['abs_rel']:.2f} %   delta<1.25 {100 * m['delta1']:.1f} %   "
            f"within 2 % {100 * m['within_2']:.1f} %"
        )
        lines.append(
            f"          kept {100 * m['kept']:.1f} % of the true pixels; "
            f"{100 * m['kept_of_seen_1']:.1f} % of those seen in another view "
            f"({100 * m['kept_of_seen_2']:.1f} % in two others; ceilings {100 * m['ceiling_1']:.0f} / "
            f"{100 * m['ceiling_2']:.0f} %)"
        )
    if mesh := numbers.get("mesh"):
        scores = "   ".join(f"F@{k} {100 * v['fscore']:.1f}" for k, v in mesh["scores"].items())
        lines.append(f"mesh      {scores}   (diagonal {mesh['diagonal']:.2f}, {mesh['triangles']} triangles)")
        detail = "   ".join(
            f"P/R@{k} {100 * v['precision']:.1f}/{100 * v['recall']:.1f}" for k, v in mesh["scores"].items()
        )
        lines.append(
            f"          {detail}   accuracy {mesh['accuracy']:.4g}, completeness {mesh['completeness']:.4g}"
        )
    if mesh := numbers.get("mesh_of_used_views"):
        scores = "   ".join(f"F@{k} {100 * v['fscore']:.1f}" for k, v in mesh["scores"].items())
        lines.append(f"          {scores}   against the {mesh['views']} views that got depth")
    for part, why in numbers.get("skipped", {}).items():
        lines.append(f"{part:<9} not measured: {why}")
    return "\n".join(lines)
