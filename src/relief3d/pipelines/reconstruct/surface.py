"""Stage 3: depth maps into points, splats and a mesh."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Depth, Mesh, PointCloud, Scene
from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError
from relief3d.core.memory import GIB
from relief3d.core.progress import Progress, stage
from relief3d.fusion.cleaning import CleanConfig, clean_mesh, with_normals
from relief3d.fusion.frames import DepthFrame
from relief3d.fusion.fuse import FusionConfig, fuse_frames
from relief3d.fusion.points import fuse_points
from relief3d.fusion.texture import bake_texture
from relief3d.fusion.texture_views import TextureView
from relief3d.geometry.camera_edits import resize_camera
from relief3d.geometry.masked_resize import masked_nearest_indices
from relief3d.io.glb import write_glb
from relief3d.io.ply import write_ply
from relief3d.io.splat import write_splat_ply
from relief3d.pipelines.reconstruct.config import ReconstructConfig
from relief3d.pipelines.reconstruct.depth import DepthMap
from relief3d.pipelines.reconstruct.pinhole import pinhole_view
from relief3d.pipelines.reconstruct.workspace import STATE_DIR
from relief3d.render.pictures import draw_frusta, orbit_cameras, render_mesh, up_direction
from relief3d.stereo.views import stereo_size

MAX_POINTS = 2_000_000
MAX_SPLATS = 300_000


def solve_surface(
    scene: Scene, maps: Sequence[DepthMap], config: ReconstructConfig, out: Path, progress: Progress
) -> dict[str, Any]:
    """Fuse the depth maps; write ``points.ply``, ``splats.ply``, ``mesh.ply`` and ``mesh.glb``.

    Returns:
        Facts for ``scene.json``.

    Raises:
        InputError: no valid depth at all.
    """
    facts: dict[str, Any] = {"warnings": []}
    frames = [_frame(scene, m, config.resolved_depth_width()) for m in maps]
    voxel = config.voxel_size or 0.0
    if config.mesh:
        result = fuse_frames(
            frames,
            FusionConfig(
                backend=config.fuser,
                voxel_size=voxel,
                clean=CleanConfig(smooth_iterations=2, target_faces=config.mesh_faces),
                # Stereo depth was confirmed by other views already; sensor depth still needs their vote.
                min_weight=1.0 if _by_stereo(scene, config) else 0.0,
                with_color=config.texture != "none",
            ),
            device=resolve_device(config.device),
            progress=progress,
            pictures=None,
        )
        voxel = result.voxel_size
        facts.update(
            voxel_size=voxel,
            truncation=result.truncation,
            backend=result.backend,
            messages=list(result.messages),
            raw_faces=result.raw_faces,
        )
        for message in result.messages:
            progress.message(message)
        mesh = result.mesh
        if config.mesh_quality == "neural" and len(mesh.faces):
            mesh, facts["network"] = _neural(frames, mesh, scene.metric, config, out, progress)
        _write_mesh(mesh, scene, config, out, progress, facts)
    with stage(progress, "point cloud"):
        points = _points(frames, voxel)
        write_ply(out / "points.ply", points)
        if config.splats:
            write_splat_ply(out / "splats.ply", _thinned(points, MAX_SPLATS, config.seed))
    facts["points"] = len(points.xyz)
    return facts


def _neural(
    frames: Sequence[DepthFrame],
    fused: Mesh,
    metric: bool,
    config: ReconstructConfig,
    out: Path,
    progress: Progress,
) -> tuple[Mesh, dict[str, Any]]:
    """The volumetric network's surface in place of the fused one."""
    from relief3d.pipelines.mesh.refine import VolumeRun, neural_surface

    assert config.mesh_weights is not None
    work = out / STATE_DIR / "work" / "volume"
    run = VolumeRun(config.mesh_weights, config.device, int((config.max_memory or 4.0) * GIB), work)
    mesh, facts = neural_surface(frames, fused, run, metric=metric, progress=progress)
    shutil.rmtree(work, ignore_errors=True)
    return clean_mesh(mesh, CleanConfig(min_triangles=100, target_faces=config.mesh_faces)), facts


def _by_stereo(scene: Scene, config: ReconstructConfig) -> bool:
    """Also for networks: their maps were compared with each other."""
    return config.depth_source in ("stereo", "model") or any(
        scene.views[i].depth is None for i in scene.posed
    )


def _frame(scene: Scene, found: DepthMap, longest: int) -> DepthFrame:
    """The map with its picture at the map's size (full pictures of many views would not fit in memory).

    Maps at the size of large pictures hold no more than the network saw: they are thinned to ``longest`` for fusion.
    """
    view = pinhole_view(scene.views[found.index])
    depth, camera = found.load(scene.metric), found.camera
    if max(camera.width, camera.height) > longest:
        width, height = stereo_size(camera.width, camera.height, longest)
        picked = masked_nearest_indices(depth.valid, (height, width))
        confidence = None if depth.confidence is None else picked.take(depth.confidence)
        values = picked.take(depth.values) * picked.valid
        depth = Depth(values, picked.valid, depth.metric, confidence)
        camera = resize_camera(camera, width, height)
    image = None
    if view.image is not None:
        size = (camera.height, camera.width)
        image = torch.nn.functional.interpolate(
            view.load_image()[None], size, mode="bilinear", antialias=True, align_corners=False
        )[0].clamp(0, 1)
    return DepthFrame(view.name, depth, camera, image)


def _write_mesh(
    mesh: Mesh,
    scene: Scene,
    config: ReconstructConfig,
    out: Path,
    progress: Progress,
    facts: dict[str, Any],
) -> None:
    if not len(mesh.faces):
        facts["warnings"].append(
            "no surface was seen often enough for a mesh; points.ply holds what is known"
        )
        return
    mesh = with_normals(mesh)
    facts["faces"] = len(mesh.faces)
    write_ply(out / "mesh.ply", mesh)
    if config.texture == "atlas":
        flat = [pinhole_view(scene.views[i]) for i in scene.posed]
        pictures = [TextureView(v.camera, v.load_image) for v in flat if v.image is not None]
        write_glb(out / "mesh.glb", bake_texture(mesh, pictures, progress=progress))
    else:
        write_glb(out / "mesh.glb", mesh)


def _points(frames: Sequence[DepthFrame], voxel: float) -> PointCloud:
    """Points a voxel apart; the voxel grows until the cloud has a manageable size."""
    if not voxel > 0:
        depths = torch.cat([f.depth.values[f.depth.valid][::50] for f in frames])
        if not len(depths):
            raise InputError("no valid pixels in any depth map")
        voxel = float(depths.median()) / 500
    for _ in range(6):
        points = fuse_points(frames, voxel)
        if len(points.xyz) <= MAX_POINTS:
            break
        voxel *= 1.6
    return points


def _thinned(points: PointCloud, limit: int, seed: int) -> PointCloud:
    count = len(points.xyz)
    if count <= limit:
        return points
    keep = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:limit].sort().values

    def pick(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[keep]

    return dataclasses.replace(
        points,
        xyz=points.xyz[keep],
        rgb=pick(points.rgb),
        normals=pick(points.normals),
        confidence=pick(points.confidence),
    )


def orbit_pictures(scene: Scene, count: int = 4) -> list[Tensor]:
    """(3, H, W) pictures of the mesh from around it, with the cameras drawn in; empty without a mesh."""
    if scene.mesh is None or not len(scene.mesh.faces):
        return []
    cameras = [scene.views[i].camera for i in scene.posed]
    middle = scene.mesh.vertices.double().mean(0)
    start = next((c.centre - middle for c in cameras if c.centre is not None), None)
    views = orbit_cameras(scene.mesh, count, up=up_direction(cameras), start=start)
    extent = float((scene.mesh.vertices.amax(0) - scene.mesh.vertices.amin(0)).norm())
    return [
        draw_frusta(render_mesh(scene.mesh, view, "colour"), view, cameras, 0.02 * extent) for view in views
    ]
