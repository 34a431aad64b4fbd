"""ScanNet++ zero-shot with 8 contiguous frames: table 2 of Reliev3R (specification multiview.md 4.7)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Mesh
from relief3d.core.errors import InputError
from relief3d.data.readers.scannetpp import RENDERED, TRANSFORMS, scan_poses, undistorted_camera
from relief3d.data.readers.scannetpp import UNDISTORTED as PICTURES
from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.views.camera_rules import CameraTwin, read_pictures
from relief3d.eval.protocols.views.nview_rules import NViewProtocol, PosedSequence, choose_contiguous
from relief3d.eval.protocols.views.sequence_files import depth_maps, folders_with, without_file
from relief3d.eval.published import reliev3r
from relief3d.io.ply import read_ply
from relief3d.render.factory import make_renderer

SCAN = "scans/mesh_aligned_0.05.ply"
SPLIT = "splits/nvs_sem_val.txt"


def read_scannetpp(root: Path) -> list[PosedSequence]:
    """DSLR sequences of the validation scenes; see the protocol's layout.

    Raises:
        InputError: no scenes, or a scene of the split is missing.
    """
    data = root / "data" if (root / "data").is_dir() else root
    scenes = {p.name: p for p in folders_with(data, TRANSFORMS, "ScanNet++")}
    split = root / SPLIT
    if split.is_file():
        wanted = [line.strip() for line in split.read_text(encoding="utf-8").splitlines() if line.strip()]
        missing = [name for name in wanted if name not in scenes]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(wanted)} validation scenes are missing (the first is {missing[0]})",
                path=data,
                remedy=f"download them with {TRANSFORMS}, or remove {SPLIT} to take the scenes that are there",
            )
        scenes = {name: scenes[name] for name in wanted}
    mesh = functools.lru_cache(maxsize=1)(_read_scan)
    return [_scene(folder, mesh) for folder in scenes.values()]


def _scene(folder: Path, scan: Callable[[Path], Mesh]) -> PosedSequence:
    (width, height), K, names = undistorted_camera(folder)

    @functools.cache
    def poses() -> dict[str, Tensor]:
        return scan_poses(folder, names)

    def world_from_cam(chosen: Sequence[int]) -> Tensor:
        return torch.stack([poses()[names[i]] for i in chosen])

    def depth(chosen: Sequence[int]) -> Tensor:
        size = (height, width)
        if (folder / RENDERED).is_dir():
            return depth_maps([(folder / RENDERED / names[i]).with_suffix(".png") for i in chosen], size)
        cameras = [Camera(size[1], size[0], K, pose) for pose in world_from_cam(chosen)]
        renderer, mesh = make_renderer(), scan(folder / SCAN)
        return torch.stack([renderer.render(mesh, camera, back_faces="keep") for camera in cameras])

    return PosedSequence(
        folder.name,
        names,
        pictures=lambda chosen: read_pictures([folder / PICTURES / names[i] for i in chosen]),
        K=lambda chosen: K.expand(len(chosen), 3, 3),
        world_from_cam=world_from_cam,
        depth=depth,
    )


def _read_scan(path: Path) -> Mesh:
    if not path.is_file():
        raise InputError(
            "the laser scan is missing, from which the true depth is rendered",
            path=path,
            remedy=f"download scans/, or put rendered depth (16-bit PNG, millimetres) into {RENDERED}",
        )
    mesh = read_ply(path)
    if not isinstance(mesh, Mesh):
        raise InputError("holds no triangles", path=path, remedy=f"use the release's {SCAN}")
    return mesh


TWIN = CameraTwin(
    family="room",
    clips={"smoke": 2, "mini": 12},
    frames={"smoke": 9, "mini": 11},
    size={"smoke": (36, 48), "mini": (96, 128)},
)

PROTOCOLS: tuple[Protocol, ...] = (
    NViewProtocol(
        name="scannetpp_8view",
        title="ScanNet++ zero-shot, 8 contiguous frames: points, cameras, depth",
        source="Reliev3R, Table 2; specification multiview.md 4.7, 6.5",
        reader=read_scannetpp,
        choose=choose_contiguous(8),
        rows=reliev3r.TABLE2.select({key: key for key in reliev3r.COLUMNS.split()}),
        twin=TWIN,
        deviation=without_file(SPLIT, "not the validation split"),
        metric=True,
        layout=(
            f"ScanNet++ v2, DSLR: [data/]SCENE/{{{TRANSFORMS}, {PICTURES}/, "
            f"dslr/colmap/{{cameras,images,points3D}}.txt, {SCAN}}}; {SPLIT} chooses the scenes where present; "
            f"{RENDERED}/*.png (millimetres) replaces rendering"
        ),
        notes=(
            "The DSLR pictures are read, undistorted by the official toolkit; the iPhone stream is not used.",
            "True depth is rendered from the laser scan with the undistorted cameras, as map-anything's annotation "
            "does; poses come from dslr/colmap, intrinsics from transforms_undistorted.json.",
            "Which scenes and which 8 frames the paper takes is not known; here the validation split, one set per "
            "scene, consecutive good frames, the first drawn from the scene's name and seed 42.",
            "'scale rel' compares metric scales; the paper does not report it.",
        ),
    ),
)
