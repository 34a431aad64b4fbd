"""OmniWorld-Game: clips of video games with depth and cameras (the training release, not its benchmark)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Depth, Scene
from relief3d.core.errors import InputError
from relief3d.data.readers.files import (
    PICTURES,
    file_view,
    folders_in,
    need_file,
    one_of,
    text_numbers,
    usable_K,
)
from relief3d.data.readers.poses import invert_rigid
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.geometry.projection import intrinsics
from relief3d.geometry.rotations import matrix_from_quat_wxyz
from relief3d.geometry.transforms import make_rigid
from relief3d.io.depth import read_depth
from relief3d.io.json_file import Record, read_json_object

NEAR, FAR, UNIT = 1.0, 1000.0, 0.004
_TOO_NEAR, _SKY = 0.0015, 65500.0 / 65535.0

CARD = DatasetCard(
    name="omniworld_game",
    title="OmniWorld-Game",
    sources=(
        "https://huggingface.co/datasets/InternRobotics/OmniWorld",
        "https://github.com/yangzhou24/OmniWorld",
    ),
    licence="CC BY-NC-SA 4.0; the games' owners keep their rights in the pictures; non-commercial",
    gives=("image", "K", "pose", "depth", "time"),
    metric=False,
    layout=(
        "SCENE/split_info.json ('split': lists of frame numbers), SCENE/camera/split_0.json\n"
        "SCENE/color/000000.png, SCENE/depth/000000.png (16 bit), SCENE/fps.txt\n"
        "or the same spread over videos/OmniWorld-Game/SCENE (color) and annotations/OmniWorld-Game/SCENE"
    ),
    conventions=(
        "camera from world as quaternion (w, x, y, z) and translation, OpenCV axes, inverted; pixel centres at +0.5 "
        "already; depth decoded as d / (1000 - 999 d) / 0.004 with d = code / 65535, below 0.0015 and sky unknown."
    ),
    open_points=(
        "The unit of depth and poses is not promised to be metres, so scenes are not marked metric.",
        "gdino_mask (moving things) and flow are not read: a mask in the contract says which pixels may be used.",
    ),
)


@dataclass(frozen=True)
class _Clip:
    cameras: Path  # holds split_info.json and camera/
    pictures: Path  # holds color/
    number: int


def open_omniworld_game(root: str | Path, *, split: str | None = None) -> SceneSet:
    """Clips ("SCENE/split_0", ...), one scene each, because poses of different clips do not share a world.

    Raises:
        InputError: no scenes here, or a ``split_info.json`` is damaged.
    """
    CARD.check_split(split)
    root = Path(root)
    base = root / "annotations" / "OmniWorld-Game"
    base, pictures = (base, root / "videos" / "OmniWorld-Game") if base.is_dir() else (root, root)
    items: dict[str, _Clip] = {}
    for folder in folders_in(base):
        if not (folder / "split_info.json").is_file():
            continue
        for number in range(len(_splits(folder))):
            if (folder / "camera" / f"split_{number}.json").is_file():
                items[f"{folder.name}/split_{number}"] = _Clip(folder, pictures / folder.name, number)
    if not items:
        raise InputError(
            "does not look like OmniWorld-Game: no folder here holds split_info.json and camera/split_0.json",
            path=root,
            remedy="unpack the annotation archives of its scenes",
        )
    return SceneSet(CARD, items, _scene)


def decode_game_depth(path: Path, size: tuple[int, int]) -> Depth:
    """The z-depth of a 16-bit game depth map, in the release's own unit; near pixels and sky are unknown.

    Raises:
        InputError: missing, damaged or of another size.
    """
    try:
        code = read_depth(need_file(path, "depth map"), scale=1.0, metric=False, size=size).values.double()
    except InputError as exc:
        if "no valid pixels" not in exc.message:
            raise
        code = torch.zeros(size[1], size[0], dtype=torch.float64)
    share = code / 65535.0
    known = (share >= _TOO_NEAR) & (share <= _SKY)
    depth = share / (FAR - share * (FAR - NEAR)) / UNIT
    return Depth.from_values(torch.where(known, depth, torch.zeros_like(depth)), metric=False)


def _splits(folder: Path) -> list[list[int]]:
    file = folder / "split_info.json"
    lists = read_json_object(file).get("split")
    if not isinstance(lists, list) or not all(
        isinstance(one, list) and all(type(frame) is int for frame in one) for one in lists
    ):
        raise InputError(
            "'split' must be a list of lists of frame numbers", path=file, remedy="download it again"
        )
    return lists


def _scene(name: str, clip: _Clip) -> Scene:
    frames = _splits(clip.cameras)[clip.number]
    file = clip.cameras / "camera" / f"split_{clip.number}.json"
    K, world_from_cam = _cameras(file, len(frames))
    rate = None
    if (clip.cameras / "fps.txt").is_file():
        rate = text_numbers(clip.cameras / "fps.txt", 1)[0]
        if not 0 < rate < math.inf:
            raise InputError(
                f"holds {rate} frames per second", path=clip.cameras / "fps.txt", remedy="download it again"
            )
    views = []
    for i, frame in enumerate(frames):
        stem = f"{frame:06d}"
        path = one_of(clip.pictures / "color", stem, PICTURES) or clip.pictures / "color" / f"{stem}.png"
        view = file_view(stem, path, K[i], world_from_cam[i], time=frame / rate if rate else None)
        depth = clip.cameras / "depth" / f"{stem}.png"
        if depth.is_file():
            size = (view.camera.width, view.camera.height)
            view = view.replace(depth=functools.partial(decode_game_depth, depth, size))
        views.append(view)
    return Scene(tuple(views), metric=False, ordered=True, info={"dataset": CARD.name, "scene": name})


def _cameras(file: Path, count: int) -> tuple[Tensor, Tensor]:
    record = Record(read_json_object(file), file)

    def stack(key: str, shape: tuple[int, ...]) -> Tensor:
        try:
            values = np.array(record.get(key), dtype=np.float64)
        except (TypeError, ValueError) as exc:
            raise record.error(f"'{key}' is missing or holds no numbers", "download it again") from exc
        if values.ndim == 0 and shape == (count,):
            values = np.full(count, float(values))
        if values.shape != shape or not np.isfinite(values).all():
            raise record.error(f"'{key}' has shape {values.shape}, expected {shape}", "download it again")
        return torch.from_numpy(values)

    focals, cx, cy = stack("focals", (count,)), stack("cx", (count,)), stack("cy", (count,))
    quats, trans = stack("quats", (count, 4)), stack("trans", (count, 3))
    norm = quats.norm(dim=-1, keepdim=True)
    if not bool(((norm - 1).abs() < 0.05).all()):
        raise record.error("'quats' holds a quaternion that is not of length 1", "download it again")
    rows = zip(focals.tolist(), focals.tolist(), cx.tolist(), cy.tolist())
    K = torch.stack([usable_K(intrinsics(*row), file) for row in rows])
    return K, invert_rigid(make_rigid(matrix_from_quat_wxyz(quats / norm), trans))
