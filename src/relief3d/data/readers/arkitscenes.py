"""ARKitScenes: rooms filmed by iPad with its lidar; laser-scan depth for some frames."""

from __future__ import annotations

import bisect
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
    load_depth,
    load_picture,
    number_rows,
    text_numbers,
    usable_K,
)
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.geometry.projection import intrinsics
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import interpolate_rigid, invert_rigid, make_rigid

DEPTH_OF = {"lowres_wide": "lowres_depth", "wide": "highres_depth", "vga_wide": None, "ultrawide": None}

CARD = DatasetCard(
    name="arkitscenes",
    title="ARKitScenes",
    sources=(
        "https://github.com/apple/ARKitScenes/blob/main/DATA.md",
        "https://github.com/apple/ARKitScenes/blob/main/raw/README.md",
        "https://github.com/apple/ARKitScenes/issues/81",
    ),
    licence="own licence of Apple, non-commercial",
    gives=("image", "K", "pose", "depth", "time"),
    metric=True,
    layout=(
        "{Training,Validation}/VIDEO/[VIDEO_frames/]{lowres_wide.traj, lowres_wide/VIDEO_TIME.png,\n"
        "lowres_wide_intrinsics/VIDEO_TIME.pincam, lowres_depth/VIDEO_TIME.png (16 bit, millimetres),\n"
        "confidence/VIDEO_TIME.png (0 to 2)}; wide with highres_depth, vga_wide, ultrawide in the same way"
    ),
    conventions=(
        ".traj: time, axis-angle and translation of camera from world, inverted; OpenCV camera axes; "
        "poses between two entries are interpolated; pixel centres at integers, as in the official loader, so 0.5 is "
        "added to cx and cy."
    ),
    splits=("Training", "Validation"),
    open_points=(
        "The pixel centre is not stated; the official loader unprojects integer pixels.",
        "Frames more than 'longest_gap' seconds from an entry of the trajectory have no pose.",
        "Poses belong to the wide camera; ultrawide has none.",
    ),
)


def open_arkitscenes(
    root: str | Path,
    *,
    split: str | None = None,
    asset: str = "lowres_wide",
    stride: int = 1,
    longest_gap: float = 0.1,
) -> SceneSet:
    """Videos by their id; see :data:`CARD`.

    Args:
        root: folder with ``Training`` and ``Validation``, or of videos.
        split: one of both.
        asset: which pictures: "lowres_wide", "wide", "vga_wide" or "ultrawide".
        stride: take every so many frames.
        longest_gap: seconds between two entries of the trajectory over which a pose is interpolated.

    Raises:
        InputError: no videos here, or an unknown asset.
    """
    split = CARD.check_split(split)
    if asset not in DEPTH_OF:
        raise InputError(f"ARKitScenes has no pictures '{asset}'", remedy=f"use {', '.join(DEPTH_OF)}")
    base = Path(root) / split if split else Path(root)
    found = folders_holding(base, (asset,), CARD.title, depth=3)
    videos = {folder.name.removesuffix("_frames"): folder for folder in found.values()}
    build = functools.partial(_scene, asset=asset, stride=max(1, stride), longest_gap=longest_gap)
    return SceneSet(CARD, videos, build)


def read_trajectory(path: Path) -> tuple[Tensor, Tensor]:
    """Times (N,) in seconds and ``world_from_cam`` (N, 4, 4) of a ``.traj`` file.

    Raises:
        InputError: missing, damaged, or times that do not increase.
    """
    rows = number_rows(path, 7)
    if bool((rows[:, 0].diff() <= 0).any()) or not bool(torch.isfinite(rows).all()):
        raise InputError("holds times that do not increase", path=path, remedy="download it again")
    return rows[:, 0], invert_rigid(make_rigid(matrix_from_axis_angle(rows[:, 1:4]), rows[:, 4:7]))


def pose_at(times: Tensor, poses: Tensor, time: float, longest_gap: float) -> Tensor | None:
    """Interpolated pose (4, 4), or None outside of the recording or inside of a longer gap.

    File names hold milliseconds, so half of one counts as on time.
    """
    known: list[float] = times.tolist()
    right = bisect.bisect_left(known, time)
    for i in (right, right - 1):
        if 0 <= i < len(known) and abs(known[i] - time) <= 0.0006:
            return poses[i]
    if right in (0, len(known)) or known[right] - known[right - 1] > longest_gap:
        return None
    share = (time - known[right - 1]) / (known[right] - known[right - 1])
    return interpolate_rigid(poses[right - 1], poses[right], torch.tensor(share, dtype=torch.float64))


def read_pincam(path: Path) -> tuple[tuple[int, int], Tensor]:
    """(width, height) and K (3, 3) with pixel centres at +0.5 of a ``.pincam`` file.

    Raises:
        InputError: missing or damaged.
    """
    width, height, fx, fy, cx, cy = text_numbers(path, 6)
    return (int(width), int(height)), usable_K(intrinsics(fx, fy, cx + 0.5, cy + 0.5), path)


def _pincam(folder: Path, asset: str, stem: str) -> Path:
    """The intrinsics of a frame; names differ by a millisecond at times."""
    video, _, time = stem.rpartition("_")
    near = [stem]
    try:
        near += [f"{video}_{float(time) + shift:.3f}" for shift in (-0.001, 0.001)]
    except ValueError as exc:
        raise InputError(f"'{stem}' is not named VIDEO_TIME", path=folder / asset) from exc
    paths = [folder / f"{asset}_intrinsics" / f"{n}.pincam" for n in near]
    return next((p for p in paths if p.is_file()), paths[0])


def _scene(name: str, folder: Path, asset: str, stride: int, longest_gap: float) -> Scene:
    track = None
    if asset != "ultrawide":
        track = read_trajectory(folder / "lowres_wide.traj")
    views, first = [], None
    for picture in files_in(folder / asset, (".png",), "pictures")[::stride]:
        size, K = read_pincam(_pincam(folder, asset, picture.stem))
        time = float(picture.stem.rpartition("_")[2])
        first = time if first is None else first
        pose = None if track is None else pose_at(*track, time, longest_gap)
        view = file_view(picture.name, picture, K, pose, size=size, time=time - first)
        maps = DEPTH_OF[asset]
        if maps is not None and (depth := folder / maps / picture.name).is_file():
            trust = folder / "confidence" / picture.name
            use = trust if asset == "lowres_wide" and trust.is_file() else None
            view = view.replace(depth=functools.partial(load_lidar_depth, depth, use, size))
        views.append(view)
    return Scene(tuple(views), metric=True, ordered=True, info={"dataset": CARD.name, "scene": name})


def load_lidar_depth(path: Path, confidence: Path | None, size: tuple[int, int]) -> Depth:
    """Depth in metres of (width, height) with Apple's confidence (0, 1, 2 become 0, 0.5, 1)."""
    depth = load_depth(path, size, scale=0.001)
    if confidence is None:
        return depth
    level = (load_picture(confidence, size)[0] * 255).round().clamp(0, 2) / 2
    return Depth(depth.values, depth.valid, True, level)
