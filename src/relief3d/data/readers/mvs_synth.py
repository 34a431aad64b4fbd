"""MVS-Synth: 120 sequences of a video game's city with cameras and dense depth."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Scene
from relief3d.data.readers.files import file_view, files_in, folders_holding, load_depth, usable_K
from relief3d.data.readers.poses import invert_rigid, rigid_matrix
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.geometry.projection import intrinsics
from relief3d.io.json_file import Record, read_json_object

CARD = DatasetCard(
    name="mvs_synth",
    title="MVS-Synth",
    sources=(
        "https://phuang17.github.io/DeepMVS/mvs-synth.html",
        "https://huggingface.co/datasets/phuang17/MVS-Synth",
    ),
    licence="research and education only, by the game's owners' rules (see its page)",
    gives=("image", "K", "pose", "depth"),
    metric=False,
    layout=(
        "[GTAV_540/]0000/{images/0000.png, depths/0000.exr, poses/0000.json "
        "('extrinsic' 4 x 4, 'f_x', 'f_y', 'c_x', 'c_y')}"
    ),
    conventions=(
        "camera from world, inverted; where its rotation mirrors (a left-handed world seen by an OpenCV camera), the "
        "world's y axis is turned over; pixel centres at +0.5 already (c_x is half the width); depth is z, infinite "
        "in the sky."
    ),
    open_points=(
        "Its own page was not at hand: files and keys follow public converters and the archive's listing.",
        "That the stored world is left-handed follows from two independent public converters, not from the page.",
        "The unit is not stated (one converter takes tenths of a metre), so scenes are not marked metric.",
    ),
)


def open_mvs_synth(root: str | Path, *, split: str | None = None) -> SceneSet:
    """Sequences ("0000", ...); see :data:`CARD`.

    Raises:
        InputError: no sequences here.
    """
    CARD.check_split(split)
    return SceneSet(CARD, folders_holding(Path(root), ("poses",), CARD.title, depth=2), _scene)


def right_handed_camera_from_world(extrinsic: Tensor, path: Path) -> Tensor:
    """(4, 4) rigid ``cam_from_world`` of a stored matrix that may mirror the world.

    Raises:
        InputError: it is neither rigid nor a mirrored rigid transform.
    """
    if float(torch.linalg.det(extrinsic[:3, :3])) < 0:
        extrinsic = extrinsic * torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=extrinsic.dtype)
    return rigid_matrix(extrinsic, path, "extrinsic matrix")


def _scene(name: str, folder: Path) -> Scene:
    views = []
    for picture in files_in(folder / "images", (".png",), "pictures"):
        file = folder / "poses" / f"{picture.stem}.json"
        record = Record(read_json_object(file), file)
        matrix = record.matrix("extrinsic", [(4, 4)])
        fx, fy, cx, cy = (record.number(k) for k in ("f_x", "f_y", "c_x", "c_y"))
        if matrix is None or fx is None or fy is None or cx is None or cy is None:
            raise record.error("lacks 'extrinsic', 'f_x', 'f_y', 'c_x' or 'c_y'", "download it again")
        K = usable_K(intrinsics(fx, fy, cx, cy), file)
        pose = invert_rigid(right_handed_camera_from_world(matrix, file))
        view = file_view(picture.name, picture, K, pose)
        depth = folder / "depths" / f"{picture.stem}.exr"
        if depth.is_file():
            size = (view.camera.width, view.camera.height)
            view = view.replace(depth=functools.partial(load_depth, depth, size, metric=False))
        views.append(view)
    return Scene(tuple(views), metric=False, ordered=True, info={"dataset": CARD.name, "scene": name})
