"""Stage 1: a camera for every picture."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from relief3d.core.contract import Scene
from relief3d.core.progress import Progress
from relief3d.geometry.alignment import weighted_median
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import make_rigid
from relief3d.models.multiview.interface import MultiViewModel
from relief3d.pipelines.multiview.solve import predict_scene
from relief3d.pipelines.reconstruct.config import ReconstructConfig
from relief3d.render.pictures import up_direction
from relief3d.sfm import SfmConfig, estimate_cameras

MIN_SCALE_SAMPLES = 20
"""Sparse points with known depth needed to make a scene metric."""


def solve_cameras(
    scene: Scene,
    config: ReconstructConfig,
    work: Path,
    progress: Progress,
    network: MultiViewModel | None = None,
) -> tuple[Scene, dict[str, Any]]:
    """Cameras and sparse points of the scene.

    With a network (``config.multiview``, or ``network`` itself) they are its prediction. Otherwise, a complete input
    model (all views posed, with points) is used as it is, or structure from motion runs; it honours known intrinsics
    and poses. When pictures came with metric depth and the solved scene has no unit, it is scaled to metres.

    Returns:
        The scene, and facts for ``scene.json``.

    Raises:
        InputError: no model, with the likely reason.
    """
    if network is not None or config.multiview.active:
        return _by_network(scene, config, work, progress, network)
    complete = len(scene.posed) == len(scene) and scene.sparse is not None and len(scene.sparse) > 0
    if complete and config.poses in ("auto", "fixed"):
        assert scene.sparse is not None
        facts: dict[str, Any] = {
            "method": "given model",
            "registered": len(scene),
            "points": len(scene.sparse),
        }
        return scene, facts
    result = estimate_cameras(
        scene,
        SfmConfig(
            features=config.features,
            mapper=config.mapper if config.mapper == "global" else "auto",
            refine_poses=config.poses == "refine",
            effort="auto" if config.retries else "single",
            seed=config.seed,
            threads=max(1, min(os.cpu_count() or 1, 8)),
        ),
        work / "sfm",
        progress,
    )
    solved, facts = result.scene, dict(result.report)
    facts.setdefault("method", "structure from motion")
    if not any(v.camera.world_from_cam is not None for v in scene.views):
        solved = upright(solved)
    if not scene.metric:
        solved, scale = scale_to_metres(solved)
        if scale is not None:
            facts["metric_scale"] = scale
            progress.message(f"scaled to metres by the given depth (factor {scale:.4g})")
    return solved, facts


def _by_network(
    scene: Scene, config: ReconstructConfig, work: Path, progress: Progress, network: MultiViewModel | None
) -> tuple[Scene, dict[str, Any]]:
    """Cameras and points predicted by a network; upright unless poses were given."""
    found = predict_scene(
        scene,
        config.multiview,
        work,
        network=network,
        device=config.device,
        seed=config.seed,
        max_memory=config.max_memory,
        progress=progress,
    )
    solved, facts = found.scene, found.facts
    if not any(v.camera.world_from_cam is not None for v in scene.views):
        solved = upright(solved)
    return solved, facts


def scale_to_metres(scene: Scene) -> tuple[Scene, float | None]:
    """Scale an unscaled scene by the metric depth of its views, where sparse points say which pixel is which.

    The factor is the weighted median of given depth / triangulated depth over all observations (exact
    minimiser of the weighted absolute error), so outliers of either kind do not matter.

    Returns:
        The scene, scaled and marked metric, and the factor; or the scene as it was and None.
    """
    if scene.metric or scene.sparse is None:
        return scene, None
    sparse = scene.sparse
    ratios = []
    for index in scene.posed:
        depth = scene.views[index].load_depth()
        if depth is None or not depth.metric:
            continue
        camera = scene.views[index].camera
        cam_from_world = camera.cam_from_world
        assert cam_from_world is not None
        seen = sparse.obs_view == index
        points = sparse.xyz[sparse.obs_point[seen]]
        z = (points @ cam_from_world[:3, :3].T + cam_from_world[:3, 3])[:, 2]
        xy = sparse.obs_xy[seen].floor().long()
        height, width = depth.values.shape
        x = (xy[:, 0] * width // camera.width).clamp(0, width - 1)
        y = (xy[:, 1] * height // camera.height).clamp(0, height - 1)
        good = depth.valid[y, x] & (z > 0)
        ratios.append(depth.values[y, x].double()[good] / z[good])
    samples = torch.cat(ratios) if ratios else torch.zeros(0, dtype=torch.float64)
    if len(samples) < MIN_SCALE_SAMPLES:
        return scene, None
    scale = float(weighted_median(samples, torch.ones_like(samples)))
    return scaled(scene, scale), scale


def upright(scene: Scene) -> Scene:
    """Turn the world so that up in most pictures is -y, as in an upright OpenCV camera.

    Structure from motion leaves the world's orientation open; viewers then show scenes tilted.
    """
    up = up_direction([scene.views[i].camera for i in scene.posed])
    target = torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)
    axis = torch.linalg.cross(up, target)
    sine = axis.norm()
    angle = torch.atan2(sine, up @ target)
    # Straight upside down has no unique axis; x turns the picture around its middle column.
    axis = axis / sine if sine > 1e-9 else torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    R = matrix_from_axis_angle(axis * angle)
    turn = make_rigid(R, torch.zeros(3, dtype=torch.float64))
    views = tuple(
        v
        if v.camera.world_from_cam is None
        else v.replace(camera=v.camera.replace(world_from_cam=turn @ v.camera.world_from_cam))
        for v in scene.views
    )
    sparse = scene.sparse
    if sparse is not None:
        sparse = dataclasses.replace(sparse, xyz=sparse.xyz @ R.T)
    return scene.replace(views=views, sparse=sparse)


def scaled(scene: Scene, scale: float) -> Scene:
    """The scene with every length multiplied by ``scale`` and marked metric; given depth keeps its unit."""
    views = []
    for view in scene.views:
        pose = view.camera.world_from_cam
        if pose is not None:
            pose = pose.clone()
            pose[:3, 3] *= scale
        views.append(view.replace(camera=view.camera.replace(world_from_cam=pose)))
    sparse = scene.sparse
    if sparse is not None:
        sparse = dataclasses.replace(sparse, xyz=sparse.xyz * scale)
    return scene.replace(views=tuple(views), sparse=sparse, metric=True)
