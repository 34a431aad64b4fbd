"""TUM RGB-D meshes: the scan is fused from sensor depth (specification 8.5; VFM-Recon, Table 3 left)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Camera, View
from relief3d.core.errors import InputError
from relief3d.eval.metrics.mesh_atlas import refuse_mesh
from relief3d.eval.metrics.mesh_transformerfusion import observed_space
from relief3d.eval.protocols.base import Protocol, Query, Sample
from relief3d.eval.protocols.surfaces.readers_tum import (
    LAYOUT,
    MAX_DEPTH,
    find_sequences,
    sequence_scene,
    sequence_views,
)
from relief3d.eval.protocols.surfaces.surface_rules import (
    AtlasProtocol,
    Benchmark,
    SurfaceTruth,
    TransformerFusionProtocol,
    sensor_depth,
)
from relief3d.eval.protocols.surfaces.twin_rooms import Room, fused_mesh, room_samples
from relief3d.eval.published.vfm_recon import TABLE3

VOXEL = 0.02
TRUNCATION_VOXELS = 2.0
MASK_VOXEL = 0.04


def near_depth(view: View, max_depth: float = MAX_DEPTH) -> Tensor:
    """(H, W) sensor depth, 0 beyond ``max_depth`` metres."""
    depth = sensor_depth(view)
    return torch.where(depth <= max_depth, depth, torch.zeros(()))


def sensor_truth(views: Sequence[View], voxel: float = VOXEL, mask_voxel: float = MASK_VOXEL) -> SurfaceTruth:
    """A scan from sensor depth up to 3.5 m, and the space it observed.

    Args:
        views: posed depth cameras.
        voxel: of the fusion, metres; the band is two voxels.
        mask_voxel: of the occlusion mask, metres; a voxel is occluded when no frame sees it in front of its depth
            plus two of these voxels. Depth beyond 3.5 m observes nothing, like in the fusion.

    Raises:
        InputError: no surface came out.
    """
    frames = [(v.camera, functools.partial(near_depth, v)) for v in views]
    mesh = fused_mesh(frames, voxel, truncation_voxels=TRUNCATION_VOXELS)
    if mesh.faces.shape[0] == 0:
        raise InputError(f"no valid pixels: the sensor depth within {MAX_DEPTH} m gives no surface")
    centres = torch.stack([c.centre for c, _ in frames if c.centre is not None]).float()
    corners = torch.cat((mesh.vertices, centres))
    low, high = corners.amin(0) - 3 * mask_voxel, corners.amax(0) + 3 * mask_voxel
    occlusion = observed_space(((c, load()) for c, load in frames), low, high, mask_voxel)
    return SurfaceTruth(mesh=mesh, reference=mesh.vertices, views=tuple(views), occlusion=occlusion)


def _camera_list(views: Sequence[View]) -> list[Camera]:
    return [v.camera for v in views]


def _open(data: Path) -> list[Sample]:
    def query(name: str, folder: Path) -> Query:
        return Query(name, "surface", ("mesh",), sequence_scene(name, folder))

    def truth(name: str, folder: Path) -> SurfaceTruth:
        return sensor_truth(sequence_views(name, folder))

    return [
        Sample(name, name, functools.partial(query, name, folder), functools.partial(truth, name, folder))
        for name, folder in find_sequences(data)
    ]


def _room_truth(room: Room) -> SurfaceTruth:
    return sensor_truth(room.views(), room.sizes.voxel, room.sizes.voxel)


def _atlas_room_truth(room: Room) -> SurfaceTruth:
    # Trimming loses slivers at depth edges; a reference trimmed alike keeps the twin's best score perfect.
    plain = _room_truth(room)
    trimmed = refuse_mesh(plain.need_mesh(), _camera_list(plain.views))
    return SurfaceTruth(mesh=plain.mesh, reference=trimmed.vertices, views=plain.views)


_ROWS = TABLE3.select({key: f"tum.{key}" for key in ("prec", "recall", "f1")})
_NOTES = (
    "Our adaptation: the paper names neither sequences nor reference meshes. The 13 sequences of deep-video-mvs; "
    "frames whose nearest picture and pose are at most 0.02 s away; pictures and depth undistorted (fr1, fr2).",
    "The reference is fused from all sensor depth up to 3.5 m at 2 cm, truncation 4 cm; threshold 5 cm.",
)

PROTOCOLS: tuple[Protocol, ...] = (
    TransformerFusionProtocol(
        Benchmark(
            "tum_mesh",
            "TUM RGB-D meshes, protocol 'transformerfusion' with an own occlusion mask",
            "VFM-Recon, Table 3; specification scene_reconstruction.md 8.5 and 8.1",
            LAYOUT,
            (
                *_NOTES,
                "Occlusion mask: a voxel of 4 cm is occluded when no frame sees it in front of its depth + 2 voxels.",
            ),
            _open,
            functools.partial(room_samples, "tum_mesh", make_truth=_room_truth),
            _ROWS,
            {"acc": 4.0, "comp": 2.0, "chamfer": 3.0, "recall": 99.9, "f1": 99.9},
        )
    ),
    AtlasProtocol(
        Benchmark(
            "tum_mesh_atlas",
            "TUM RGB-D meshes, protocol 'atlas'",
            "VFM-Recon, Table 3; specification scene_reconstruction.md 8.5 and 8.2",
            LAYOUT,
            (*_NOTES, "Rules of scannet_mesh_atlas with the cameras of the undistorted depth frames."),
            _open,
            functools.partial(room_samples, "tum_mesh", make_truth=_atlas_room_truth),
            _ROWS,
        )
    ),
)
