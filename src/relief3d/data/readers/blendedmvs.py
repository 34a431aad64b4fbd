"""BlendedMVS and BlendedMVG: pictures blended with renderings of reconstructed models, in MVSNet's format."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Scene
from relief3d.core.errors import InputError
from relief3d.data.readers.files import (
    file_view,
    files_in,
    folders_holding,
    listed_names,
    load_depth,
    need_file,
    usable_K,
)
from relief3d.data.readers.poses import invert_rigid, rigid_matrix
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.io.whole_file import read_utf8

_LISTS = {
    "train": ("training_list.txt", "BlendedMVS_training.txt"),
    "val": ("validation_list.txt", "BlendedMVS_validation.txt"),
    "BlendedMVS": ("BlendedMVS_list.txt",),
    "BlendedMVS+": ("BlendedMVS+_list.txt",),
    "BlendedMVS++": ("BlendedMVS++_list.txt",),
    "BlendedMVG": ("BlendedMVG_list.txt",),
}

CARD = DatasetCard(
    name="blendedmvs",
    title="BlendedMVS",
    sources=("https://github.com/YoYo000/BlendedMVS", "https://github.com/YoYo000/MVSNet"),
    licence="CC BY 4.0",
    gives=("image", "K", "pose", "depth"),
    metric=False,
    layout=(
        "[.../]PID/{blended_images/00000000.jpg, cams/00000000_cam.txt, rendered_depth_maps/00000000.pfm}\n"
        "lists of scenes beside them choose a split (BlendedMVS_list.txt, training_list.txt, ...)"
    ),
    conventions=(
        "cam.txt: camera from world (OpenCV axes), inverted, and K; pixel centres at +0.5 already, as in MVSNet's "
        "pixel grid; depth in the unit of the poses, 0 where the model has a hole."
    ),
    splits=tuple(_LISTS),
    open_points=(
        "The description does not state the pixel centre; MVSNet's reference code samples at +0.5.",
        "*_masked.jpg is not read: it holds a picture, not a mask.",
    ),
)


def open_blendedmvs(root: str | Path, *, split: str | None = None) -> SceneSet:
    """Scenes by their project id; see :data:`CARD`.

    Raises:
        InputError: no scenes here, a split without its list, or a listed scene that is missing.
    """
    root, split = Path(root), CARD.check_split(split)
    found = folders_holding(root, ("cams",), CARD.title, depth=3)
    scenes = {folder.name: folder for folder in found.values()}
    if split is not None:
        file = next((root / n for n in _LISTS[split] if (root / n).is_file()), None)
        if file is None:
            raise InputError(
                f"has none of {', '.join(_LISTS[split])}",
                path=root,
                remedy="put the list of that split there",
            )
        names = listed_names(file)
        if missing := [n for n in names if n not in scenes]:
            raise InputError(
                f"{len(missing)} of {len(names)} scenes of {file.name} are missing, such as {missing[0]}",
                path=root,
                remedy="download them or shorten the list",
            )
        scenes = {n: scenes[n] for n in names}
    return SceneSet(CARD, scenes, _scene)


def read_mvsnet_camera(path: Path) -> tuple[Tensor, Tensor]:
    """``cam_from_world`` (4, 4) and K (3, 3) of MVSNet's ``cam.txt``, as stored.

    Raises:
        InputError: missing, or not of that form.
    """
    words = read_utf8(need_file(path, "camera file")).split()
    try:
        if words[0] != "extrinsic" or words[17] != "intrinsic" or len(words) < 27:
            raise ValueError("lacks the words extrinsic and intrinsic")
        numbers = [float(w) for w in (*words[1:17], *words[18:27])]
    except (IndexError, ValueError) as exc:
        raise InputError(
            f"is no camera file of MVSNet ({exc})", path=path, remedy="download it again"
        ) from exc
    values = torch.tensor(numbers, dtype=torch.float64)
    return rigid_matrix(values[:16].view(4, 4), path), usable_K(values[16:].view(3, 3), path)


def _scene(name: str, folder: Path) -> Scene:
    pictures = [
        p
        for p in files_in(folder / "blended_images", (".jpg",), "pictures")
        if not p.stem.endswith("_masked")
    ]
    views = []
    for picture in pictures:
        cam_from_world, K = read_mvsnet_camera(folder / "cams" / f"{picture.stem}_cam.txt")
        view = file_view(picture.name, picture, K, invert_rigid(cam_from_world))
        path = folder / "rendered_depth_maps" / f"{picture.stem}.pfm"
        if path.is_file():
            size = (view.camera.width, view.camera.height)
            view = view.replace(depth=functools.partial(load_depth, path, size, metric=False))
        views.append(view)
    return Scene(tuple(views), metric=False, info={"dataset": CARD.name, "scene": name})
