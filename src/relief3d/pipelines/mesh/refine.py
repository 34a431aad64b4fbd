"""Depth and pictures through the volumetric network, for ``mesh`` and for ``reconstruct``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Mesh
from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError, RunError
from relief3d.core.memory import GIB
from relief3d.core.progress import Progress
from relief3d.fusion.frames import DepthFrame
from relief3d.io.depth import read_depth
from relief3d.methods.vfm_recon.alignment import SceneAlignment
from relief3d.methods.vfm_recon.config import SubmapConfig
from relief3d.methods.vfm_recon.overlap import home
from relief3d.methods.vfm_recon.submaps import submaps_of_frames
from relief3d.models.volume.bounds import bounds_from_depth
from relief3d.models.volume.opening import open_volume
from relief3d.models.volume.reconstruct import FrameGroup, VolumeOptions, reconstruct
from relief3d.pipelines.mesh.config import MeshConfig
from relief3d.pipelines.mesh.pictures import KeyframeViews
from relief3d.render.factory import make_renderer
from relief3d.render.protocols import DepthRenderer


@dataclass(frozen=True)
class VolumeFrame:
    """A picture for the network; pictures and depth are loaded when their turn comes.

    Attributes:
        picture: gives (3, H, W) RGB in [0, 1] at the size of ``camera``.
        camera: posed, pinhole.
        depth: gives (h, w) z-depth at the size of ``depth_camera``, 0 where unknown.
        depth_camera: the same camera at the size of the depth map.
    """

    picture: Callable[[], Tensor]
    camera: Camera
    depth: Callable[[], Tensor]
    depth_camera: Camera


@dataclass(frozen=True)
class VolumeRun:
    """How the network is run.

    Attributes:
        weights: file.
        device: name of it.
        max_bytes: ceiling of its tensors.
        work: folder for its own files; the caller removes it.
    """

    weights: Path
    device: str
    max_bytes: int
    work: Path


def volume_surface(
    frames: Sequence[VolumeFrame],
    groups: Sequence[tuple[Sequence[int], Sequence[bool]]],
    run: VolumeRun,
    *,
    metric: bool,
    progress: Progress,
) -> tuple[Mesh, dict[str, Any]]:
    """The surface that a volumetric network sees, without colours, and facts for the report.

    Args:
        frames: with depth that agrees among them.
        groups: numbers of frames that the network sees together, with True for those that count; every frame counts
            in one group.
        run: see :class:`VolumeRun`.
        metric: lengths are metres.
        progress: receives stages.

    Raises:
        InputError: the weights are of another network.
        RunError: the scene is not in metres, or pictures have several shapes.
    """
    if not metric:
        raise RunError(
            "the volumetric network knows metres, and nothing tells how long a metre is in this scene",
            remedy="tell the scale of the cameras, or have the surface of the fused depth",
        )
    shapes = {(f.camera.width, f.camera.height) for f in frames}
    if len(shapes) > 1:
        raise RunError(
            f"the volumetric network takes pictures of one shape, these have {len(shapes)}",
            remedy="use pictures of one camera held one way, or have the surface of the fused depth",
        )
    network = open_volume(run.weights, resolve_device(run.device))
    guided = bool(network.config.guided)
    grid = bounds_from_depth(
        ((f.depth(), *_matrices(f.depth_camera)) for f in frames), voxel_size=network.config.voxel_size
    )
    mesh, report = reconstruct(
        network,
        (_group([frames[k] for k in numbers], keep, guided) for numbers, keep in groups),
        grid,
        VolumeOptions(max_bytes=run.max_bytes),
        folder=run.work,
        progress=progress,
    )
    facts = {
        "weights": run.weights.name,
        "voxel_size": network.config.voxel_size,
        "frames": report.frames,
        "voxels": report.voxels,
        "tiles": report.tiles,
        "seconds": {k: round(v, 2) for k, v in report.seconds.items()},
    }
    return mesh, facts


def _group(frames: Sequence[VolumeFrame], keep: Sequence[bool], guided: bool) -> FrameGroup:
    Ks, poses = zip(*(_matrices(f.camera) for f in frames), strict=True)
    return FrameGroup(
        torch.stack([f.picture() for f in frames]),
        torch.stack(Ks),
        torch.stack(poses),
        torch.stack([f.depth() for f in frames]) if guided else None,
        torch.tensor(list(keep)),
    )


def refined_surface(
    config: MeshConfig,
    views: KeyframeViews,
    alignment: SceneAlignment,
    refined: Path,
    work: Path,
    progress: Progress,
) -> tuple[Mesh, dict[str, Any]]:
    """:func:`volume_surface` of an aligned scene; a keyframe counts in the submap in whose middle it lies.

    Args:
        config: with ``weights``.
        views: keyframes.
        alignment: of them, in metres.
        refined: folder of ``NAME.npz``, the depth of the fused surface.
        work: folder for the network's own files.
        progress: receives stages.

    Raises:
        InputError, RunError: see :func:`volume_surface`.
    """
    assert config.weights is not None
    number = {k: n for n, k in enumerate(alignment.usable)}
    frames = [
        VolumeFrame(
            partial(views.picture, k),
            views.cameras[k].replace(world_from_cam=alignment.cameras[k].world_from_cam),
            partial(_depth, refined / f"{views.names[k]}.npz", alignment.depth_camera(k)),
            alignment.depth_camera(k),
        )
        for k in alignment.usable
    ]
    chain = [m for m in alignment.submaps if m.kind == "chain"]
    places = submaps_of_frames(chain)
    groups = []
    for submap in chain:
        own = [k for k in submap.frames if k in number]
        keep = [home(places[k], alignment.submaps)[0] == submap.index for k in own]
        if any(keep):
            groups.append(([number[k] for k in own], keep))
    run = VolumeRun(config.weights, config.device, int(config.max_memory * GIB), work)
    return volume_surface(frames, groups, run, metric=alignment.metric, progress=progress)


def neural_surface(
    depth_frames: Sequence[DepthFrame], fused: Mesh, run: VolumeRun, *, metric: bool, progress: Progress
) -> tuple[Mesh, dict[str, Any]]:
    """:func:`volume_surface` of pictures whose depth was fused already: ``reconstruct --mesh-quality neural``.

    Args:
        depth_frames: with pictures, in walking order.
        fused: their surface, rendered into every frame as the network's depth, and whose colours are taken over.
        run: see :class:`VolumeRun`.
        metric: lengths are metres.
        progress: receives stages.

    Raises:
        InputError, RunError: see :func:`volume_surface`.
    """
    renderer = make_renderer("auto", resolve_device(run.device))
    frames = [
        VolumeFrame(partial(_picture, f), f.camera, partial(_rendered, renderer, fused, f.camera), f.camera)
        for f in depth_frames
    ]
    size = SubmapConfig().size
    groups = [
        (range(at, min(at + size, len(frames))), [True] * min(size, len(frames) - at))
        for at in range(0, len(frames), size)
    ]
    mesh, facts = volume_surface(frames, groups, run, metric=metric, progress=progress)
    return with_colours_of(mesh, fused), facts


def _picture(frame: DepthFrame) -> Tensor:
    color = frame.color()
    if color is None:
        raise InputError(f"view '{frame.name}' has no picture for the volumetric network")
    return color.permute(2, 0, 1)


def _rendered(renderer: DepthRenderer, mesh: Mesh, camera: Camera) -> Tensor:
    return renderer.render(mesh, camera, back_faces="discard").cpu()


def _depth(path: Path, camera: Camera) -> Tensor:
    """(h, w) at the size of the camera; wholly unknown when the surface is not seen from there."""
    if not path.is_file():
        return torch.zeros(camera.height, camera.width)
    return read_depth(path, scale=1.0, metric=True).values


def _matrices(camera: Camera) -> tuple[Tensor, Tensor]:
    pose = camera.cam_from_world
    assert camera.K is not None and pose is not None
    return camera.K, pose


def with_colours_of(mesh: Mesh, other: Mesh) -> Mesh:
    """A mesh whose vertices take the colour of the nearest vertex of another; as it is when that has none."""
    if other.rgb is None or not len(mesh.vertices) or not len(other.vertices):
        return mesh
    from scipy.spatial import cKDTree

    _, index = cKDTree(other.vertices.numpy()).query(mesh.vertices.numpy())
    return replace(mesh, rgb=other.rgb[torch.from_numpy(index)])
