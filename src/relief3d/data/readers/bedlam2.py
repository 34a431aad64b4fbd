"""BEDLAM2.0: rendered people and moving cameras, with depth and cameras from Unreal Engine."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Depth, Scene
from relief3d.core.errors import InputError
from relief3d.data.readers.files import file_view, files_in, need_file, usable_K
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.geometry.projection import intrinsics
from relief3d.io.exr import read_exr
from relief3d.io.images import image_size
from relief3d.io.json_file import read_json_object

TEST_LIST = "test_sequences.json"
_DEPTH_CHANNELS = ("FinalImageMovieRenderQueue_WorldDepth.R", "WorldDepth.R", "Depth", "Z", "Y")
_METRES = 0.01  # Unreal counts centimetres
_HALF_MAX = 65504.0  # the largest half-precision number: sky

CARD = DatasetCard(
    name="bedlam2",
    title="BEDLAM2.0",
    sources=("https://bedlam2.is.tue.mpg.de", "https://github.com/PerceivingSystems/bedlam2_render"),
    licence="own licence of the Max Planck Society, non-commercial scientific research, with registration",
    gives=("image", "K", "pose", "depth"),
    metric=True,
    layout=(
        "SESSION/png/SESSION/png/seq_000000/seq_000000_0000.png\n"
        "SESSION/depth/SESSION/exr_depth/seq_000000/seq_000000_0000.exr (WorldDepth, centimetres; optional)\n"
        "SESSION/groundtruth/SESSION/ground_truth/meta_exr_depth/seq_000000/seq_000000_0000_meta.json\n"
        f'{TEST_LIST} (optional: {{"SESSION": ["seq_000000", ...]}})'
    ),
    conventions=(
        "Unreal's left-handed world (x forward, y right, z up, centimetres) becomes (y, -z, x) in metres; a camera "
        "looks along its x axis; yaw turns x to y, pitch lifts, roll turns its right side down; K from focal length "
        "over sensor size, principal point in the middle."
    ),
    splits=("train", "test"),
    open_points=(
        "Layout and pose convention were confirmed against SelfEvo's published evaluation code, the keys of the "
        "intrinsics against third-party code, not against the files themselves.",
        "WorldDepth is taken as z-depth along the view axis.",
        f"The published test list is not public: split needs {TEST_LIST} beside the sessions.",
    ),
)


def open_bedlam2(root: str | Path, *, split: str | None = None) -> SceneSet:
    """Sequences ("SESSION/seq_000000"); see :data:`CARD`.

    Args:
        root: folder of sessions.
        split: "test" takes the sequences named in ``test_sequences.json``, "train" all others, None all.

    Raises:
        InputError: no sequences here, or a split without its list.
    """
    root, split = Path(root), CARD.check_split(split)
    listed: Mapping[str, Any] = {}
    if split is not None:
        listed = read_json_object(need_file(root / TEST_LIST, "list of test sequences"))
    items: dict[str, Path] = {}
    for session in sorted(p for p in root.glob("*/") if (p / "png" / p.name / "png").is_dir()):
        for folder in sorted((session / "png" / session.name / "png").glob("seq_*/")):
            if split is not None and (folder.name in listed.get(session.name, ())) != (split == "test"):
                continue
            items[f"{session.name}/{folder.name}"] = session
    if not items:
        raise InputError(
            "holds no SESSION/png/SESSION/png/seq_*" + (f" of the split '{split}'" if split else ""),
            path=root,
            remedy="unpack the picture archives of BEDLAM2.0, each session into its own folder",
        )
    return SceneSet(CARD, items, _scene)


def _scene(name: str, session: Path) -> Scene:
    sequence = name.rpartition("/")[2]
    pictures = files_in(session / "png" / session.name / "png" / sequence, (".png",), "pictures")
    metas = session / "groundtruth" / session.name / "ground_truth" / "meta_exr_depth" / sequence
    maps = session / "depth" / session.name / "exr_depth" / sequence
    views = []
    for picture in pictures:
        file = need_file(metas / f"{picture.stem}_meta.json", "camera file")
        meta, size = read_json_object(file), image_size(picture)
        view = file_view(
            picture.name,
            picture,
            unreal_intrinsics(meta, size, file),
            unreal_world_from_cam(meta, file),
            size=size,
        )
        if (path := maps / f"{picture.stem}.exr").is_file():
            view = view.replace(depth=functools.partial(load_world_depth, path, size))
        views.append(view)
    return Scene(tuple(views), metric=True, ordered=True, info={"dataset": CARD.name, "scene": name})


def read_world_depth(path: Path) -> Tensor:
    """(H, W) float32 metres of a rendered depth file, 0 for sky.

    Raises:
        InputError: damaged, no depth channel, or no valid pixels.
        MissingExtraError: the package OpenEXR is not installed.
    """
    channels = read_exr(path)
    name = next((c for c in _DEPTH_CHANNELS if c in channels), None)
    if name is None and len(channels) == 1:
        name = next(iter(channels))
    if name is None:
        raise InputError(f"has no depth channel, only {', '.join(sorted(channels))}", path=path)
    stored = torch.from_numpy(channels[name].astype(np.float32))
    known = torch.isfinite(stored) & (stored > 0) & (stored < _HALF_MAX)
    if not bool(known.any()):
        raise InputError("the depth map has no valid pixels", path=path)
    return torch.where(known, stored * _METRES, torch.zeros_like(stored))


def load_world_depth(path: Path, size: tuple[int, int]) -> Depth:
    """The same as a depth map of (width, height).

    Raises:
        InputError: as :func:`read_world_depth`, or another size.
    """
    values = read_world_depth(path)
    if tuple(values.shape) != (size[1], size[0]):
        raise InputError(
            f"the depth map has {values.shape[1]} x {values.shape[0]} pixels, its picture {size[0]} x {size[1]}",
            path=path,
            remedy="use pictures and depth of the same release",
        )
    return Depth.from_values(values)


def unreal_number(meta: Mapping[str, Any], key: str, path: Path) -> float:
    """A number ``unreal/camera/KEY`` of a frame's metadata.

    Raises:
        InputError: missing, no number, or not finite.
    """
    try:
        value = float(meta[f"unreal/camera/{key}"])
    except (KeyError, TypeError, ValueError) as exc:
        raise InputError(f"lacks the number 'unreal/camera/{key}'", path=path) from exc
    if not math.isfinite(value):
        raise InputError(f"'unreal/camera/{key}' is not finite", path=path)
    return value


def unreal_intrinsics(meta: Mapping[str, Any], size: tuple[int, int], path: Path) -> Tensor:
    """(3, 3) pixels of a rendered frame of (width, height): focal length over sensor size, in the middle.

    Raises:
        InputError: an entry is missing or not positive.
    """
    focal, width, height = (
        unreal_number(meta, f"FinalImage/{k}", path) for k in ("focalLength", "sensorWidth", "sensorHeight")
    )
    if min(focal, width, height) <= 0:
        raise InputError("holds a focal length or sensor size that is not positive", path=path)
    K = intrinsics(focal * size[0] / width, focal * size[1] / height, 0.5 * size[0], 0.5 * size[1])
    return usable_K(K, path)


def unreal_world_from_cam(meta: Mapping[str, Any], path: Path) -> Tensor:
    """(4, 4) float64 pose in metres with OpenCV camera axes of the metadata of a rendered frame.

    Unreal's world has x forward, y right, z up, left-handed, in centimetres. A camera looks along its x axis; yaw turns
    it from x to y, pitch lifts it, roll turns its right side down. The right-handed world here is (y, -z, x).

    Args:
        meta: with ``unreal/camera/curPos/{x,y,z}`` and ``unreal/camera/curRot/{pitch,yaw,roll}`` (degrees).
        path: named in errors.

    Raises:
        InputError: an entry is missing or not a number.
    """
    pitch, yaw, roll = (
        math.radians(unreal_number(meta, f"curRot/{k}", path)) for k in ("pitch", "yaw", "roll")
    )
    (cp, sp), (cy, sy), (cr, sr) = ((math.cos(a), math.sin(a)) for a in (pitch, yaw, roll))
    forward = (cp * cy, cp * sy, sp)
    right = (sr * sp * cy - cr * sy, sr * sp * sy + cr * cy, -sr * cp)
    up = (-(cr * sp * cy + sr * sy), sr * cy - cr * sp * sy, cr * cp)
    centre = [unreal_number(meta, f"curPos/{k}", path) * _METRES for k in ("x", "y", "z")]
    columns = torch.tensor([right, [-u for u in up], forward, centre], dtype=torch.float64)
    out = torch.eye(4, dtype=torch.float64)
    out[:3] = torch.stack([columns[:, 1], -columns[:, 2], columns[:, 0]])
    return out
