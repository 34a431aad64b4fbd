"""ScanNet as exported by its SensReader: rooms filmed with a depth sensor on a tablet."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Depth, Scene
from relief3d.core.errors import InputError
from relief3d.data.readers.files import (
    file_view,
    files_in,
    folders_holding,
    listed_names,
    load_depth,
    need_file,
    one_of,
    same_centre_depth,
    text_numbers,
    usable_K,
)
from relief3d.data.readers.poses import rigid_matrix
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.io.images import image_size

DEPTH_SCALE = 0.001
_SPLITS = {"train": "scannetv2_train.txt", "val": "scannetv2_val.txt", "test": "scannetv2_test.txt"}

CARD = DatasetCard(
    name="scannet",
    title="ScanNet",
    sources=(
        "http://www.scan-net.org/ScanNet/",
        "https://github.com/ScanNet/ScanNet/tree/master/SensReader/python",
    ),
    licence="ScanNet terms of use, non-commercial research and education",
    gives=("image", "K", "pose", "depth"),
    metric=True,
    layout=(
        "[scans/ or scans_test/]scene0000_00/{color/0.jpg, depth/0.png (16 bit, millimetres), pose/0.txt,\n"
        "intrinsic/intrinsic_color.txt, intrinsic/intrinsic_depth.txt} (exported by SensReader)\n"
        "scannetv2_{train,val,test}.txt choose a split"
    ),
    conventions=(
        "world from camera, OpenCV axes; pixel centres at integers, so 0.5 is added to cx and cy; depth maps are moved "
        "to the colour camera (same place and attitude after export), each pixel taking the nearest value."
    ),
    splits=tuple(_SPLITS),
    open_points=(
        "Its own page was not at hand: the layout follows SensReader's exports as public code reads them.",
        "The few millimetres between both sensors (colorToDepthExtrinsics) are ignored, as in the export.",
    ),
)


def open_scannet(
    root: str | Path, *, split: str | None = None, stride: int = 1, farthest: float = 10.0
) -> SceneSet:
    """Exported scans; frames without a valid pose are left out.

    Args:
        root: folder of scans, or one that holds ``scans`` or ``scans_test``.
        split: needs the official list of that name beside the scans.
        stride: take every so many frames.
        farthest: metres from which on the sensor's depth counts as unknown.

    Raises:
        InputError: no exported scans here, or a listed one is missing.
    """
    root, split = Path(root), CARD.check_split(split)
    found = folders_holding(root, ("intrinsic",), CARD.title + " exported by SensReader", depth=2)
    scans = {folder.name: folder for folder in found.values()}
    if split is not None:
        names = listed_names(need_file(root / _SPLITS[split], f"list of the split '{split}'"))
        if missing := [n for n in names if n not in scans]:
            raise InputError(
                f"lacks {len(missing)} of the {len(names)} scans of {_SPLITS[split]}, such as {missing[0]}",
                path=root,
                remedy="export them or shorten the list",
            )
        scans = {n: scans[n] for n in names}
    return SceneSet(CARD, scans, functools.partial(_scene, stride=max(1, stride), farthest=farthest))


def matrix_file(path: Path) -> Tensor:
    """(4, 4) float64 of a text file; entries may be infinite.

    Raises:
        InputError: missing, or not sixteen numbers.
    """
    return torch.tensor(text_numbers(path, 16), dtype=torch.float64).view(4, 4)


def read_pose(path: Path) -> Tensor | None:
    """``world_from_cam`` (4, 4) float64, or None where tracking failed (entries that are not finite).

    Raises:
        InputError: missing, or not a rigid transform.
    """
    matrix = matrix_file(path)
    return rigid_matrix(matrix, path, tolerance=1e-3) if bool(torch.isfinite(matrix).all()) else None


def read_intrinsics(path: Path) -> Tensor:
    """(3, 3) float64 pixels with centres at +0.5; the file has them at integers."""
    K = usable_K(matrix_file(path)[:3, :3].clone(), path)
    K[:2, 2] += 0.5
    return K


def _scene(name: str, folder: Path, stride: int, farthest: float) -> Scene:
    K = read_intrinsics(folder / "intrinsic" / "intrinsic_color.txt")
    depth_K = read_intrinsics(folder / "intrinsic" / "intrinsic_depth.txt")
    size: tuple[int, int] | None = None
    views = []
    for file in files_in(folder / "pose", (".txt",), "poses")[::stride]:
        pose = read_pose(file)
        if pose is None:
            continue
        picture = one_of(folder / "color", file.stem, (".jpg", ".png"))
        if picture is None:
            raise InputError(
                f"lacks frame {file.stem}", path=folder / "color", remedy="export the scan completely"
            )
        size = size or image_size(picture)
        view = file_view(picture.name, picture, K, pose, size=size)
        depth = folder / "depth" / f"{file.stem}.png"
        if depth.is_file():
            load = functools.partial(load_sensor_depth, depth, depth_K, K, size, farthest)
            view = view.replace(depth=load)
        views.append(view)
    if not views:
        raise InputError(
            "holds no frame with a valid pose", path=folder / "pose", remedy="leave this scan out"
        )
    return Scene(tuple(views), metric=True, ordered=True, info={"dataset": CARD.name, "scene": name})


def load_sensor_depth(
    path: Path, depth_K: Tensor, K: Tensor, size: tuple[int, int], farthest: float
) -> Depth:
    """Sensor depth (its own K) as seen by the colour camera K of (width, height), metres."""
    depth = load_depth(path, image_size(need_file(path, "depth map")), scale=DEPTH_SCALE, farthest=farthest)
    return same_centre_depth(depth, depth_K, K, size)
