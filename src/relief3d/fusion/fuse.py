"""Depth frames into one clean surface: the whole of fusion in one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError, RunError
from relief3d.core.progress import Progress, SilentProgress, stage
from relief3d.fusion.cleaning import QUALITY, CleanConfig, MeshQuality, clean_mesh
from relief3d.fusion.factory import FuseBackend, choose_backend, make_fuser
from relief3d.fusion.filters import FilterConfig, filter_depth
from relief3d.fusion.frames import DepthFrame
from relief3d.fusion.protocols import Fuser
from relief3d.fusion.voxel_size import choose_voxel_size

_FEW_VIEWS = 6
_FEW_VIEWS_TRIANGLES = 50
"""Few views leave real surfaces in small pieces: on three views of a room, 50 instead of 200 raised F by .02."""


@dataclass(frozen=True)
class FusionConfig:
    """Settings of :func:`fuse_frames`.

    Attributes:
        backend: ``auto``, ``open3d`` or ``torch``.
        voxel_size: world units; 0 chooses it from the scene.
        divisions: voxels along the scene's diagonal when the size is chosen.
        truncation_voxels: half width of the band in voxels.
        min_weight: of a voxel that counts; 0 takes 2, or 1 below 6 frames.
        confidence_weights: weigh pixels by their confidence (mean 1 per map) instead of equally.
        filters: applied to every map first.
        clean: a preset name (whose smallest component is 50 triangles below 6 frames), or a
            :class:`~relief3d.fusion.cleaning.CleanConfig`, which is used as it is.
        max_bytes: memory budget of the volume.
        with_color: vertex colours from the pictures.
    """

    backend: FuseBackend = "auto"
    voxel_size: float = 0.0
    divisions: float = 400.0
    truncation_voxels: float = 4.0
    min_weight: float = 0.0
    confidence_weights: bool = False
    filters: FilterConfig = dataclasses.field(default_factory=FilterConfig)
    clean: MeshQuality | CleanConfig = "standard"
    max_bytes: int = 2 * 1024**3
    with_color: bool = True


@dataclass(frozen=True)
class FusionResult:
    """A surface and how it was made.

    Attributes:
        mesh: clean surface with normals; empty when nothing qualified.
        raw_faces: faces before cleaning.
        voxel_size, truncation: world units.
        min_weight: used for extraction.
        frames: number of maps that held usable depth.
        backend: which back end ran, and ``backend_reason`` why.
        volume_bytes: size of the volume.
        messages: decisions a user should see.
    """

    mesh: Mesh
    raw_faces: int
    voxel_size: float
    truncation: float
    min_weight: float
    frames: int
    backend: str
    backend_reason: str
    volume_bytes: int
    messages: tuple[str, ...]


def fuse_frames(
    frames: Sequence[DepthFrame],
    config: FusionConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    pictures: Sequence[Callable[[], Tensor] | None] | None = None,
) -> FusionResult:
    """Fuse depth maps into a clean mesh.

    Args:
        frames: posed depth maps in one world frame.
        config: settings; None takes the defaults.
        device: where the torch back end works.
        progress: what to report to.
        pictures: one loader of a (3, h, w) picture per frame, for frames without one; loaded one at a time.

    Raises:
        InputError: when no frame has a valid depth.
        RunError: when the volume does not fit in memory at any reasonable voxel size.
    """
    config = config or FusionConfig()
    progress = progress or SilentProgress()
    if pictures is not None and len(pictures) != len(frames):
        raise InputError(f"{len(frames)} depth frames but {len(pictures)} pictures")
    _cleaning(config.clean, len(frames))
    kept = [dataclasses.replace(f, depth=filter_depth(f.depth, config.filters)) for f in frames]
    messages = []
    voxel_size = config.voxel_size
    if voxel_size <= 0:
        choice = choose_voxel_size(
            kept,
            divisions=config.divisions,
            truncation_voxels=config.truncation_voxels,
            max_bytes=config.max_bytes,
        )
        voxel_size = choice.voxel_size
        messages.append(choice.reason)
    backend, why = choose_backend(config.backend, device)
    messages.append(f"fusion back end {backend}: {why}")
    for _ in range(8):
        fuser = make_fuser(
            backend,
            voxel_size,
            config.truncation_voxels,
            with_color=config.with_color,
            max_bytes=config.max_bytes,
            device=device,
        )
        try:
            _integrate(fuser, kept, config, progress, pictures)
            break
        except RunError as exc:
            voxel_size *= 2
            messages.append(f"{exc.message}: voxel size doubled to {voxel_size:.3g}")
            progress.message(messages[-1])
    else:
        raise RunError("the scene does not fit in memory at any voxel size", remedy="set a depth limit")
    if fuser.frames == 0:
        raise InputError("no valid pixels in any depth map to fuse", remedy="check the depth stage")
    min_weight = config.min_weight or (1.0 if fuser.frames < _FEW_VIEWS else 2.0)
    with stage(progress, "extracting mesh"):
        raw = fuser.extract(min_weight)
        clean = _cleaning(config.clean, fuser.frames)
        mesh = clean_mesh(raw, clean)
    if raw.faces.shape[0] and not mesh.faces.shape[0]:
        messages.append("no piece of the surface is large enough for the cleaning asked for; kept uncleaned")
        mesh = clean_mesh(raw, CleanConfig(min_triangles=1))
    return FusionResult(
        mesh=mesh,
        raw_faces=int(raw.faces.shape[0]),
        voxel_size=voxel_size,
        truncation=fuser.truncation,
        min_weight=min_weight,
        frames=fuser.frames,
        backend=fuser.name,
        backend_reason=why,
        volume_bytes=fuser.memory_bytes(),
        messages=tuple(messages),
    )


def _cleaning(clean: MeshQuality | CleanConfig, frames: int) -> CleanConfig:
    if isinstance(clean, CleanConfig):
        return clean
    if clean not in QUALITY:
        raise InputError(f"unknown mesh quality '{clean}'", remedy=f"choose one of {', '.join(QUALITY)}")
    few = {"min_triangles": _FEW_VIEWS_TRIANGLES} if frames < _FEW_VIEWS else {}
    return dataclasses.replace(QUALITY[clean], **few)


def _integrate(
    fuser: Fuser,
    frames: Sequence[DepthFrame],
    config: FusionConfig,
    progress: Progress,
    pictures: Sequence[Callable[[], Tensor] | None] | None,
) -> None:
    with stage(progress, "fusing depth", len(frames)):
        for i, frame in enumerate(frames):
            loader = None if pictures is None else pictures[i]
            if config.with_color and frame.image is None and loader is not None:
                frame = dataclasses.replace(frame, image=loader())
            weight = confidence_weight(frame) if config.confidence_weights else None
            fuser.integrate(
                frame.values(),
                frame.K,
                frame.cam_from_world,
                frame.color() if config.with_color else None,
                weight,
            )
            progress.advance(note=frame.name)


def confidence_weight(frame: DepthFrame) -> Tensor | None:
    """(H, W) fusion weights: confidence over its mean among valid pixels, within [0.1, 4]; None without confidence.

    A mean of 1 keeps the meaning of the minimum weight as a number of views.
    """
    confidence = frame.depth.confidence
    if confidence is None or not bool(frame.depth.valid.any()):
        return None
    mean = confidence[frame.depth.valid].mean().clamp_min(1e-6)
    return (confidence / mean).clamp(0.1, 4.0).nan_to_num(0.1)
