"""ScanNet++: rooms with a laser scan and pictures of a still camera (DSLR)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from relief3d.core.contract import Scene, View
from relief3d.core.errors import InputError
from relief3d.data.readers.files import (
    file_view,
    folders_holding,
    listed_names,
    load_depth,
    load_file_mask,
    need_file,
    one_of,
    usable_K,
)
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.geometry.projection import intrinsics
from relief3d.io.colmap import read_colmap_model
from relief3d.io.json_file import Record, read_json_object
from relief3d.io.names import natural_key

TRANSFORMS = "dslr/nerfstudio/transforms_undistorted.json"
UNDISTORTED = "dslr/resized_undistorted_images"
RENDERED = "dslr/undistorted_depths"
_RAW, _RAW_MASKS, _COLMAP = "dslr/resized_images", "dslr/resized_anon_masks", "dslr/colmap"
_UNDISTORTED_MASKS = "dslr/resized_undistorted_masks"

CARD = DatasetCard(
    name="scannetpp",
    title="ScanNet++",
    sources=(
        "https://scannetpp.mlsg.cit.tum.de/scannetpp/documentation",
        "https://github.com/scannetpp/scannetpp",
    ),
    licence="ScanNet++ terms of use, non-commercial research, after registration",
    gives=("image", "K", "lens", "pose", "depth (where rendered)", "mask"),
    metric=True,
    layout=(
        f"[data/]SCENE/{{dslr/colmap/, {TRANSFORMS}, {UNDISTORTED}/}} (undistorted by the official toolkit), or\n"
        f"[data/]SCENE/{{dslr/colmap/, {_RAW}/}} (fisheye, undistorted=False)\n"
        f"{RENDERED}/DSC00001.png (16 bit, millimetres; from the toolkit; optional), masks beside; splits/NAME.txt"
    ),
    conventions=(
        "poses from COLMAP (camera from world, inverted; they stand in the frame of the laser scan, metres); pixel "
        "centres at +0.5 already; masks: bright may be used."
    ),
    splits=("nvs_sem_train", "nvs_sem_val", "nvs_test", "sem_test", "nvs_test_small"),
    open_points=(
        "Its own page was not at hand: the layout follows the toolkit's file list and public converters.",
        "The iPhone stream is not read: its depth.bin needs the official toolkit.",
    ),
)


def open_scannetpp(root: str | Path, *, split: str | None = None, undistorted: bool = True) -> SceneSet:
    """Scenes with their DSLR pictures; see :data:`CARD`.

    Args:
        root: of the data set.
        split: takes the scenes of ``splits/SPLIT.txt``.
        undistorted: pinhole pictures made by the official toolkit; False takes the fisheye pictures as released.

    Raises:
        InputError: no scenes here, or one of the split is missing.
    """
    root, split = Path(root), CARD.check_split(split)
    data = root / "data" if (root / "data").is_dir() else root
    scenes = folders_holding(data, (TRANSFORMS if undistorted else _COLMAP,), CARD.title)
    if split is not None:
        names = listed_names(need_file(root / "splits" / f"{split}.txt", f"list of the split '{split}'"))
        if missing := [n for n in names if n not in scenes]:
            raise InputError(
                f"{len(missing)} of {len(names)} scenes of '{split}' are missing, such as {missing[0]}",
                path=data,
                remedy="download them, or leave split out",
            )
        scenes = {n: scenes[n] for n in names}
    build: Callable[[str, Path], Scene] = _undistorted if undistorted else _fisheye
    return SceneSet(CARD, scenes, build)


def undistorted_camera(folder: Path) -> tuple[tuple[int, int], Tensor, list[str]]:
    """(width, height), K (3, 3) and the good pictures of a scene's undistorted DSLR pictures, in natural order.

    The file counts as nerfstudio's, whose pixel centres are at +0.5.

    Raises:
        InputError: the file is missing or damaged.
    """
    file = folder / TRANSFORMS
    top = Record(read_json_object(file), file)
    width, height, fx, fy, cx, cy = (need_positive(top, k) for k in ("w", "h", "fl_x", "fl_y", "cx", "cy"))
    size, K = (int(width), int(height)), usable_K(intrinsics(fx, fy, cx, cy), file)
    names = [str(f.get("file_path", "")) for f in top.objects("frames") if not f.get("is_bad")]
    return size, K, sorted(names, key=natural_key)


def scan_poses(folder: Path, pictures: Sequence[str]) -> dict[str, Tensor]:
    """``world_from_cam`` (4, 4) of pictures by name, in the frame of the laser scan (metres).

    Only COLMAP's poses stand in that frame; nerfstudio's world axes are permuted.

    Raises:
        InputError: the COLMAP model is damaged or lacks one of them.
    """
    views = read_colmap_model(folder / _COLMAP).views
    poses = {v.name: pose for v in views if (pose := v.camera.world_from_cam) is not None}
    if lacking := [p for p in pictures if p not in poses]:
        raise InputError(f"the COLMAP model has no picture {lacking[0]}", path=folder / _COLMAP)
    return {p: poses[p] for p in pictures}


def _undistorted(name: str, folder: Path) -> Scene:
    size, K, pictures = undistorted_camera(folder)
    poses = scan_poses(folder, pictures)
    views = [_view(folder, UNDISTORTED, _UNDISTORTED_MASKS, p, K, poses[p], size) for p in pictures]
    return _as_scene(name, views, folder)


def _fisheye(name: str, folder: Path) -> Scene:
    views = []
    for known in sorted(read_colmap_model(folder / _COLMAP).views, key=lambda v: natural_key(v.name)):
        camera = known.camera
        size = (camera.width, camera.height)
        view = _view(folder, _RAW, _RAW_MASKS, known.name, camera.K, camera.world_from_cam, size)
        views.append(view.replace(camera=camera, depth=None))
    return _as_scene(name, views, folder)


def _as_scene(name: str, views: list[View], folder: Path) -> Scene:
    if not views:
        raise InputError("holds no usable picture", path=folder / "dslr", remedy="leave this scene out")
    return Scene(tuple(views), metric=True, ordered=True, info={"dataset": CARD.name, "scene": name})


def _view(
    folder: Path,
    pictures: str,
    masks: str,
    picture: str,
    K: Tensor | None,
    pose: Tensor | None,
    size: tuple[int, int],
) -> View:
    depth, stem = folder / RENDERED / Path(picture).with_suffix(".png"), Path(picture).stem
    mask = one_of(folder / masks, stem, (".png", ".JPG", ".jpg"))
    return file_view(
        picture,
        folder / pictures / picture,
        K,
        pose,
        size=size,
        depth=functools.partial(load_depth, depth, size, scale=0.001) if depth.is_file() else None,
        mask=functools.partial(load_file_mask, mask, size) if mask is not None else None,
    )


def need_positive(top: Record, key: str) -> float:
    """A number that must be there and positive.

    Raises:
        InputError: it is not.
    """
    value = top.number(key)
    if value is None or not value > 0:
        raise top.error(f"'{key}' is missing or not positive", "run the official undistortion again")
    return value
