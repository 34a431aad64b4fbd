"""Bonn RGB-D Dynamic as videos: depth of five recordings with moving people (specification multiview.md 6.1)."""

from __future__ import annotations

from pathlib import Path

from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.metric.frames import need_folder
from relief3d.eval.protocols.views.frame_folders import (
    PICTURE_ENDINGS,
    folder_video,
    numbered_files,
    paired_frames,
    scaled_depth,
)
from relief3d.eval.protocols.views.video_depth_rules import (
    DepthTwin,
    DepthVideo,
    VideoDepthProtocol,
    VideoDepthRules,
)

RECORDINGS = ("balloon2", "crowd2", "crowd3", "person_tracking2", "synchronous")
FIRST, LAST = 30, 140
MAX_DEPTH = 70.0
_SCALE = 1.0 / 5000.0


def read_bonn_videos(root: Path) -> list[DepthVideo]:
    """Five recordings of 110 frames.

    ``rgb_110`` and ``depth_110`` (prepared folders) are taken whole; otherwise frames 30 to 139 of ``rgb`` and
    ``depth``, each sorted by time and paired by position, as the papers prepare them.

    Raises:
        InputError: a recording, or pictures or depth of it, are missing.
    """
    base = need_folder(root, ("rgbd_bonn_dataset", ""), "Bonn RGB-D Dynamic")
    return [_video(base / f"rgbd_bonn_{name}", name) for name in RECORDINGS]


def _video(folder: Path, name: str) -> DepthVideo:
    if not folder.is_dir():
        raise InputError("the recording is missing", path=folder, remedy="unpack the five recordings here")
    read = scaled_depth(_SCALE)
    if (folder / "rgb_110").is_dir():
        pictures = numbered_files(folder / "rgb_110", PICTURE_ENDINGS, "pictures")
        depths = numbered_files(folder / "depth_110", (".png",), "depth maps")
        return folder_video(name, paired_frames(pictures, depths), read)
    pictures = numbered_files(folder / "rgb", PICTURE_ENDINGS, "pictures")[FIRST:LAST]
    depths = numbered_files(folder / "depth", (".png",), "depth maps")[FIRST:LAST]
    if len(pictures) != len(depths) or not pictures:
        raise InputError(
            f"frames {FIRST} to {LAST - 1} hold {len(pictures)} pictures and {len(depths)} depth maps",
            path=folder,
            remedy="unpack the whole recording",
        )
    return folder_video(name, list(zip(pictures, depths)), read)


PROTOCOLS: tuple[Protocol, ...] = (
    VideoDepthProtocol(
        name="bonn_video",
        title="Bonn RGB-D Dynamic, 5 recordings of 110 frames: video depth",
        source="pi3 and SelfEvo evaluation; specification multiview.md 6.1",
        reader=read_bonn_videos,
        rules=VideoDepthRules(max_depth=MAX_DEPTH),
        twin=DepthTwin(family="room", path="handheld", moving=3, frames={"smoke": 5, "mini": 16}),
        layout=(
            "[rgbd_bonn_dataset/]rgbd_bonn_{balloon2, crowd2, crowd3, person_tracking2, synchronous}/\n"
            "  {rgb_110, rgb}/<time>.png\n"
            "  {depth_110, depth}/<time>.png (1/5000 m, 0 unknown)"
        ),
        notes=(
            "Colour and depth are paired by position, not by time stamp, as in the papers' preparation.",
            "The papers' tables of this benchmark are images and not in the specification.",
        ),
    ),
)
