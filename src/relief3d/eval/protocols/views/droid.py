"""DROID: depth of wrist cameras of robot arms, annotated by OmniWorld (specification multiview.md 5.7, 6.1)."""

from __future__ import annotations

import csv
import io
import random
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
from relief3d.eval.protocols.views.sequence_files import fewer_than
from relief3d.eval.protocols.views.video_depth_rules import (
    PAPER_COLUMNS,
    DepthTwin,
    DepthVideo,
    VideoDepthProtocol,
    VideoDepthRules,
    about_every_tenth,
)
from relief3d.eval.published.selfevo import TABLE_4, TABLE_5
from relief3d.io.json_file import read_json_object
from relief3d.io.whole_file import read_utf8

MAX_DEPTH = 10.0
SEQUENCES, SEED = 200, 42
_SCALE = MAX_DEPTH / 65535.0
_DEPTHS, _FRAMES, _METADATA = "depths", "DROID_png_frames", "omniworld_droid_metadata.csv"
_STEREO, _PROCESSED, _RAW = "foundation_stereo", "droid_processed", "droid_raw"


def read_droid_videos(root: Path, most: int = SEQUENCES) -> list[DepthVideo]:
    """Videos of wrist cameras; of more than ``most`` that many are drawn from the sorted names with seed 42.

    Raises:
        InputError: another layout, or the pictures of a chosen video are missing.
    """
    depths = need_folder(root, (_DEPTHS,), "OmniWorld-DROID")
    names = wrist_sequences(depths)
    if not names:
        raise InputError(
            f"holds no <scene>/{_STEREO}/<camera> of a wrist camera named in <scene>/meta_info.json",
            path=depths,
            remedy="unpack the depth archives of OmniWorld-DROID there",
        )
    videos = _video_paths(root / _METADATA)
    return [_video(root, depths, name, videos) for name in choose_sequences(names, most)]


def choose_sequences(names: list[str], most: int = SEQUENCES, seed: int = SEED) -> list[str]:
    """The benchmark's draw: Python's generator with that seed, without replacement from sorted names, sorted."""
    ordered = sorted(names)
    if len(ordered) <= most:
        return ordered
    return sorted(random.Random(seed).sample(ordered, most))


def wrist_sequences(depths: Path) -> list[str]:
    """Names ``<scene>/<camera>``, relative to the folder of depth maps, of all wrist cameras that have depth."""
    names = []
    for stereo in sorted(depths.rglob(_STEREO)):
        scene = stereo.parent
        info = scene / "meta_info.json"
        if not stereo.is_dir() or not info.is_file():
            continue
        wrist = {
            str(serial)
            for key, serial in read_json_object(info).items()
            if key.lower().startswith("wrist_") and key.lower().endswith("cam_serial")
        }
        cameras = sorted(p.name for p in stereo.iterdir() if p.is_dir() and p.name in wrist)
        names += [f"{scene.relative_to(depths).as_posix()}/{camera}" for camera in cameras]
    return names


def _video(root: Path, depths: Path, name: str, videos: dict[str, str]) -> DepthVideo:
    scene, _, camera = name.rpartition("/")
    # The metadata names scenes from "droid_processed" on, without the archive they came in.
    start = scene.find(_PROCESSED)
    key = scene[start:] if start >= 0 else scene
    video = videos.get(key, key.replace(_PROCESSED, _RAW, 1))
    folder = root / _FRAMES / video / "recordings" / "PNG" / camera
    pictures = numbered_files(folder, PICTURE_ENDINGS, "pictures")
    maps = numbered_files(depths / scene / _STEREO / camera, (".png",), "depth maps")
    return folder_video(name, paired_frames(pictures, maps), scaled_depth(_SCALE))


def _video_paths(path: Path) -> dict[str, str]:
    """Paths of recordings by path of their annotation; empty without the file."""
    if not path.is_file():
        return {}
    table = csv.DictReader(io.StringIO(read_utf8(path)))
    columns = {(name or "").strip().lower().replace("_", " "): name for name in table.fieldnames or ()}
    if not {"annotation path", "video path"} <= set(columns):
        raise InputError("lacks the columns 'Annotation Path' and 'Video Path'", path=path)
    annotation, video = columns["annotation path"], columns["video path"]
    return {
        row[annotation].strip().rstrip("/"): row[video].strip().rstrip("/") for row in table if row[video]
    }


PROTOCOLS: tuple[Protocol, ...] = (
    VideoDepthProtocol(
        name="droid",
        title="DROID, 200 videos of wrist cameras: depth",
        source="SelfEvo, Tables 4 and 5; specification multiview.md 6.1",
        reader=read_droid_videos,
        rules=VideoDepthRules(max_depth=MAX_DEPTH, choose=about_every_tenth),
        rows=(
            *TABLE_4.select({key: f"droid.{key}" for key in PAPER_COLUMNS}),
            *TABLE_5.select({key: f"droid.{key}" for key in PAPER_COLUMNS}),
        ),
        twin=DepthTwin(family="objects", path="handheld", moving=2, frames={"smoke": 22, "mini": 80}),
        deviation=fewer_than(SEQUENCES, "videos"),
        layout=(
            f"{_DEPTHS}/omniworld_droid_*/{_PROCESSED}/<...>/<scene>/\n"
            f"  meta_info.json (wrist_cam_serial), {_STEREO}/<camera>/<frame>.png (10/65535 m)\n"
            f"{_FRAMES}/<video path>/recordings/PNG/<camera>/<frame>.png\n"
            f"{_METADATA} (columns 'Annotation Path', 'Video Path'; without it {_PROCESSED} becomes {_RAW})"
        ),
        notes=(
            "The layout and the draw of 200 videos (sorted names, Python's generator, seed 42) were confirmed against "
            "SelfEvo's published evaluation code; the same 200 come out only when the same archives are unpacked.",
            "Depth is FoundationStereo's estimate, not a measurement.",
            f"{TABLE_4.rows[0].source}: {TABLE_4.note}",
            "Table 4 trains on DROID, Table 5 on OmniWorld-Game.",
        ),
    ),
)
