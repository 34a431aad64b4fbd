"""DL3DV-benchmark with 8 contiguous frames: tables 1, 3 and 4 of Reliev3R (specification multiview.md 4.7)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Scene
from relief3d.core.errors import InputError
from relief3d.data.readers.dl3dv import DEPTH_ENDINGS, PICTURE_FOLDERS
from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.views.camera_rules import CameraTwin, read_pictures
from relief3d.eval.protocols.views.nview_rules import NViewProtocol, PosedSequence, choose_contiguous
from relief3d.eval.protocols.views.sequence_files import (
    PICTURES,
    depth_maps,
    fewer_than,
    folders_with,
    one_of,
)
from relief3d.eval.published import reliev3r
from relief3d.geometry.distortion import unproject_rays
from relief3d.geometry.projection import pixel_grid, resize_intrinsics
from relief3d.io.images import image_size
from relief3d.io.json_file import Record, read_json_object
from relief3d.io.names import natural_key
from relief3d.io.transforms_json import read_transforms_json

SCENES = 140
"""Of the public benchmark."""
COLUMNS = {key: key for key in reliev3r.COLUMNS.split()}


def read_dl3dv(root: Path) -> list[PosedSequence]:
    """Scenes of the benchmark release with depth maps beside them; see the protocol's layout.

    Raises:
        InputError: no scenes, no pictures, or scenes without depth maps.
    """
    inside = (
        "nerfstudio/transforms.json" if any(root.glob("*/nerfstudio/transforms.json")) else "transforms.json"
    )
    scenes = folders_with(root, inside, "the DL3DV benchmark")
    bare = [scene.name for scene in scenes if not (scene / "depth").is_dir()]
    if bare:
        raise InputError(
            f"{len(bare)} of {len(scenes)} scenes have no folder 'depth' (the first is {bare[0]}); the public "
            "release holds no depth",
            path=root,
            remedy="annotate the scenes with map-anything's pipeline and put one map per picture into SCENE/depth, or "
            "take the scenes without depth out of the folder",
        )
    cached = functools.lru_cache(maxsize=2)(functools.partial(read_transforms_json, require_images=False))
    return [_scene(folder, (folder / inside).parent, cached) for folder in scenes]


def _scene(folder: Path, base: Path, read: Callable[[Path], Scene]) -> PosedSequence:
    file = base / "transforms.json"
    entries = Record(read_json_object(file), file).objects("frames")
    stems = sorted({_stem(str(e.get("file_path", ""))) for e in entries}, key=natural_key)
    pictures = next((base / name for name in PICTURE_FOLDERS if (base / name).is_dir()), None)
    if pictures is None:
        raise InputError(
            f"has none of the picture folders {', '.join(PICTURE_FOLDERS)}", path=base, remedy="download one"
        )

    def files(chosen: Sequence[int]) -> list[Path]:
        return [_picture(pictures, stems[i]) for i in chosen]

    def size(chosen: Sequence[int]) -> tuple[int, int]:
        width, height = image_size(files(chosen)[0])
        return height, width

    def cameras(chosen: Sequence[int]) -> list[Camera]:
        known = {_stem(view.name): view.camera for view in read(base).views}
        return [_sized(known[stems[i]], size(chosen), file) for i in chosen]

    return PosedSequence(
        folder.name,
        [f"{stem}.png" for stem in stems],
        pictures=lambda chosen: read_pictures(files(chosen)),
        K=lambda chosen: torch.stack([c.K for c in cameras(chosen) if c.K is not None]),
        world_from_cam=lambda chosen: torch.stack(
            [c.world_from_cam for c in cameras(chosen) if c.world_from_cam is not None]
        ),
        depth=lambda chosen: depth_maps(
            [_depth(folder / "depth", stems[i]) for i in chosen], size(chosen), metric=False
        ),
        rays=lambda chosen: torch.stack([lens_rays(c) for c in cameras(chosen)]),
    )


def lens_rays(camera: Camera) -> Tensor:
    """(H, W, 3) camera-frame rays with z = 1 of the pixels of a picture with lens distortion; float64.

    Raises:
        InputError: without intrinsics.
    """
    if camera.K is None:
        raise InputError("rays need known intrinsics")
    grid = pixel_grid(camera.height, camera.width, dtype=torch.float64).reshape(-1, 2)
    rays, _ = unproject_rays(grid, camera.K, camera.distortion)
    return (rays / rays[:, 2:]).reshape(camera.height, camera.width, 3)


def _sized(camera: Camera, size: tuple[int, int], file: Path) -> Camera:
    """The camera of the same picture at another size (H, W)."""
    if camera.K is None or camera.world_from_cam is None:
        raise InputError("a frame has no pose or intrinsics", path=file)
    K = resize_intrinsics(camera.K, (camera.width, camera.height), (size[1], size[0]))
    return camera.replace(width=size[1], height=size[0], K=K)


def _stem(file_path: str) -> str:
    return PurePosixPath(file_path.replace("\\", "/")).stem


def _picture(folder: Path, stem: str) -> Path:
    return one_of(folder, stem, PICTURES) or folder / f"{stem}.png"


def _depth(folder: Path, stem: str) -> Path:
    return one_of(folder, stem, DEPTH_ENDINGS) or folder / f"{stem}.npy"


TWIN = CameraTwin(
    family="outdoor",
    clips={"smoke": 2, "mini": 12},
    frames={"smoke": 9, "mini": 11},
    size={"smoke": (36, 48), "mini": (96, 128)},
)
"""More frames than the set needs, so that the choice of the contiguous frames matters."""

PROTOCOLS: tuple[Protocol, ...] = (
    NViewProtocol(
        name="dl3dv_8view",
        title="DL3DV-benchmark, 8 contiguous frames: points, cameras, depth",
        source="Reliev3R, Tables 1, 3, 4; specification multiview.md 4.7, 6.5",
        reader=read_dl3dv,
        choose=choose_contiguous(8),
        rows=tuple(
            row for t in (reliev3r.TABLE1, reliev3r.TABLE3, reliev3r.TABLE4) for row in t.select(COLUMNS)
        ),
        twin=TWIN,
        deviation=fewer_than(SCENES, "scenes"),
        layout=(
            "DL3DV-Benchmark: SCENE/nerfstudio/{transforms.json, images_4/ or images_8/} (SCENE/transforms.json too), "
            "and SCENE/depth/FRAME.{npy,exr,png} from map-anything's annotation: z-depth of the pictures' pixels in "
            "the unit of the poses (PNG: thousandths)"
        ),
        notes=(
            "The release has no depth. Scenes without it are refused instead of measured by cameras alone: ATE is "
            "normalised by the true points, and a table with AUC alone would not be this benchmark.",
            "Which 8 contiguous frames the paper takes is not known; here one set per scene, consecutive registered "
            "frames, the first drawn from the scene's name and seed 42.",
            "Pictures keep their lens distortion, as published; true points follow the lens, K is the pinhole part.",
            *(f"{t.rows[0].source}: {t.note}" for t in (reliev3r.TABLE1, reliev3r.TABLE3)),
        ),
    ),
)
