"""Depth reprojection: aligned depth into one volume, its surface, and the surface's depth seen from every keyframe.

VFM-Recon's "depth reprojection" (specification 3): fusion by running averages, marching cubes, first-hit rendering.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Mesh
from relief3d.core.errors import InputError, RunError
from relief3d.core.progress import Progress, SilentProgress, stage
from relief3d.fusion.cleaning import drop_small_components
from relief3d.fusion.factory import FuseBackend, make_fuser
from relief3d.fusion.protocols import Fuser
from relief3d.geometry.camera_edits import resize_camera
from relief3d.methods.vfm_recon.alignment import SceneAlignment
from relief3d.methods.vfm_recon.inputs import DepthSource
from relief3d.render.factory import RenderBackend, make_renderer
from relief3d.render.protocols import DepthRenderer

VOXEL = 0.04
INDOOR_DEPTH = 6.0
"""Scenes in metres with a smaller median depth count as indoors."""

TYPICAL_DEPTH = 2.0
DOUBLINGS = 8

Sink = Callable[[int, Tensor, Camera], None]


@dataclass(frozen=True)
class ReprojectionConfig:
    """Settings of fusion and rendering.

    Attributes:
        voxel_size: in the unit of the scene; 0 takes 4 cm indoors, else 4 cm per 2 units of median depth.
        truncation_voxels: half width of the band in voxels.
        min_weight: of a voxel that counts; 2 for noisy video.
        max_depth: aligned depth beyond is ignored; 0 takes 5 m indoors, else the 98th percentile.
        backend: of the fusion.
        renderer: of the depth.
        size: (width, height) of the rendered depth; None takes the size of the aligned maps.
        min_triangles: smaller pieces of the surface are not rendered.
        min_area: pieces with a smaller share of the area are not rendered.
        consistent: keep rendered depth only within 3 voxels of the aligned depth, or where that is unknown.
        max_bytes: largest volume; voxels are doubled beyond it.
        with_color: fuse pictures, where given, into vertex colours.
    """

    voxel_size: float = 0.0
    truncation_voxels: float = 3.0
    min_weight: float = 1.0
    max_depth: float = 0.0
    backend: FuseBackend = "auto"
    renderer: RenderBackend = "auto"
    size: tuple[int, int] | None = None
    min_triangles: int = 100
    min_area: float = 0.001
    consistent: bool = False
    max_bytes: int = 2 * 1024**3
    with_color: bool = True


@dataclass(frozen=True)
class Reprojection:
    """What :func:`fuse_aligned` made.

    Attributes:
        mesh: surface without its small pieces, as it was rendered; empty when nothing qualified.
        raw: all of the surface.
        voxel_size: used, in the unit of the scene.
        max_depth: used.
        frames: keyframes fused.
        rendered: keyframes rendered.
        covered: mean share of the rendered pixels that hit the surface.
        disagreement: mean share of pixels on which overlapping submaps differ too much, per keyframe.
        volume_bytes: of the volume.
        messages: decisions a user should see.
    """

    mesh: Mesh
    raw: Mesh
    voxel_size: float
    max_depth: float
    frames: int
    rendered: int
    covered: float
    disagreement: dict[int, float]
    volume_bytes: int
    messages: tuple[str, ...]


def scene_voxel_size(alignment: SceneAlignment) -> float:
    """4 cm indoors in metres, else 4 cm per two units of median depth, to two digits."""
    middle = alignment.median_depth
    if alignment.metric and middle <= INDOOR_DEPTH:
        return VOXEL
    size = VOXEL * middle / TYPICAL_DEPTH
    digits = 1 - math.floor(math.log10(size))
    return round(size, digits)


def scene_max_depth(alignment: SceneAlignment) -> float:
    """5 m indoors in metres, else the 98th percentile of the aligned depth."""
    if alignment.metric and alignment.median_depth <= INDOOR_DEPTH:
        return 5.0
    return alignment.far_depth


def fuse_aligned(
    alignment: SceneAlignment,
    depths: DepthSource,
    config: ReprojectionConfig | None = None,
    *,
    pictures: Callable[[int], Tensor | None] | None = None,
    sink: Sink | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Reprojection:
    """Fuse the aligned depth of all usable keyframes and render the surface from each.

    Depth comes and goes keyframe by keyframe, so memory is that of the volume, the surface and a few submaps.

    Args:
        alignment: from :func:`relief3d.methods.vfm_recon.align.align_scene`.
        depths: the source that it was aligned with.
        config: see :class:`ReprojectionConfig`.
        pictures: keyframe -> (3, h, w) RGB in [0, 1] of the same field of view, for vertex colours.
        sink: takes (keyframe, refined depth (H, W) with 0 for holes, its camera); nothing is rendered without one.
        device: where the torch back ends work.
        progress: one step per keyframe, twice.

    Raises:
        InputError: no keyframe has usable depth.
        RunError: the volume does not fit in memory at any reasonable voxel size.
    """
    config = config or ReprojectionConfig()
    progress = progress or SilentProgress()
    voxel, limit = (
        config.voxel_size or scene_voxel_size(alignment),
        config.max_depth or scene_max_depth(alignment),
    )
    messages: list[str] = []
    for attempt in range(DOUBLINGS):
        fuser = make_fuser(
            config.backend,
            voxel,
            config.truncation_voxels,
            max_depth=limit,
            with_color=config.with_color and pictures is not None,
            max_bytes=config.max_bytes,
            device=device,
        )
        try:
            disagreement = _integrate(
                fuser, alignment, depths, pictures if config.with_color else None, progress
            )
            break
        except RunError as exc:
            if attempt == DOUBLINGS - 1:
                raise
            voxel *= 2
            messages.append(f"{exc.message}: voxel size doubled to {voxel:.3g}")
            progress.message(messages[-1])
    if fuser.frames == 0:
        raise InputError(
            "no keyframe has usable depth to fuse", remedy="check the depth source and its masks"
        )
    with stage(progress, "extracting mesh"):
        raw = fuser.extract(config.min_weight)
        mesh = drop_small_components(raw, config.min_triangles, config.min_area)
    rendered, covered = 0, 0.0
    if sink is not None:
        renderer = make_renderer(config.renderer, device)
        rendered, covered = _render(alignment, depths, mesh, renderer, config, 3 * voxel, sink, progress)
    return Reprojection(
        mesh, raw, voxel, limit, fuser.frames, rendered, covered, disagreement, fuser.memory_bytes(), tuple(messages)
    )  # fmt: skip


def _integrate(
    fuser: Fuser,
    alignment: SceneAlignment,
    depths: DepthSource,
    pictures: Callable[[int], Tensor | None] | None,
    progress: Progress,
) -> dict[int, float]:
    disagreement: dict[int, float] = {}
    with stage(progress, "fusing aligned depth", len(alignment.usable)) as shown:
        for aligned in alignment.depth_frames(depths):
            found, color = aligned.depth, None
            if pictures is not None and (picture := pictures(aligned.frame)) is not None:
                color = _at_size(picture, found.camera)
            weight = None
            if aligned.weight != 1.0:
                weight = torch.full_like(found.depth.values, aligned.weight)
            fuser.integrate(found.values(), found.K, found.cam_from_world, color, weight)
            if aligned.frame not in disagreement:
                shown.advance(1)
            disagreement[aligned.frame] = aligned.disagreement
    return disagreement


def _at_size(picture: Tensor, camera: Camera) -> Tensor:
    size = (camera.height, camera.width)
    if tuple(picture.shape[-2:]) != size:
        picture = torch.nn.functional.interpolate(
            picture[None].float(), size, mode="bilinear", antialias=True, align_corners=False
        )[0]
    return picture.permute(1, 2, 0).contiguous()


def _render(
    alignment: SceneAlignment,
    depths: DepthSource,
    mesh: Mesh,
    renderer: DepthRenderer,
    config: ReprojectionConfig,
    slack: float,
    sink: Sink,
    progress: Progress,
) -> tuple[int, float]:
    """Refined depth of every usable keyframe into the sink; their number and the mean share of pixels hit."""
    count, covered = 0, 0.0
    aligned = alignment.depth_frames(depths) if config.consistent else None
    with stage(progress, "rendering refined depth", len(alignment.usable)) as shown:
        for frame in alignment.usable:
            camera = alignment.depth_camera(frame)
            if config.size is not None:
                camera = resize_camera(camera, *config.size)
            depth = renderer.render(mesh, camera, back_faces="discard").cpu()
            if aligned is not None:
                given = next(a for a in aligned if a.frame == frame).depth.values()
                depth = consistent_depth(depth, given, slack)
            covered += float((depth > 0).float().mean())
            count += 1
            sink(frame, depth, camera)
            shown.advance(1)
    return count, covered / max(1, count)


def consistent_depth(refined: Tensor, aligned: Tensor, slack: float) -> Tensor:
    """(H, W) refined depth, 0 where aligned depth (of any size, nearest pixel) is known and differs by ``slack``."""
    nearest = torch.nn.functional.interpolate(aligned[None, None], refined.shape, mode="nearest-exact")[0, 0]
    differs = (nearest > 0) & ((refined - nearest).abs() >= slack)
    return torch.where(differs, torch.zeros_like(refined), refined)
