"""Egocentric-10K: head-mounted fisheye videos of factory workers, in WebDataset tars."""

from __future__ import annotations

import functools
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from relief3d.core.contract import Distortion, Scene
from relief3d.core.errors import InputError
from relief3d.data.readers.files import usable_K
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.data.readers.video_frames import chosen_frames, frame_times, frame_view
from relief3d.geometry.projection import intrinsics, resize_intrinsics
from relief3d.io.atomic import atomic_path
from relief3d.io.json_file import Record, read_json_object
from relief3d.io.names import natural_key

_BLOCK = 1 << 20

CARD = DatasetCard(
    name="egocentric10k",
    title="Egocentric-10K",
    sources=(
        "https://huggingface.co/datasets/builddotai/Egocentric-10K",
        "https://huggingface.co/datasets/builddotai/Egocentric-100K",
    ),
    licence="Apache 2.0 (its card; access after agreeing to conditions)",
    gives=("image", "K", "lens", "time"),
    metric=False,
    layout=(
        "factory_001/workers/worker_001/factory001_worker001_part00.tar with pairs of .mp4 and .json\n"
        "or the .mp4 files unpacked beside it; factory_001/workers/worker_001/intrinsics.json (OpenCV fisheye)"
    ),
    conventions=(
        "K scaled from the size in intrinsics.json to that of the video; k1..k4 of OpenCV's fisheye model; pixel "
        "centres at integers (OpenCV), so 0.5 is added to cx and cy."
    ),
    open_points=(
        "intrinsics.json is described for the later Egocentric-100K; where a worker has none, K is unknown.",
        "There are no poses and no depth.",
    ),
)


@dataclass(frozen=True)
class _Clip:
    file: Path  # a video, or a tar
    member: str | None
    worker: Path


def open_egocentric10k(
    root: str | Path,
    *,
    split: str | None = None,
    cache: str | Path | None = None,
    stride: int = 30,
    most: int | None = None,
) -> SceneSet:
    """Clips, one scene each ("factory_001/worker_001/NAME").

    Args:
        root: folder of factories.
        split: none exist.
        cache: folder to which a clip is copied out of its tar when it is first used; needed for packed clips.
        stride: take every so many frames (30 per second).
        most: at most so many frames of a clip.

    Raises:
        InputError: no clips here, or a tar is damaged.
    """
    CARD.check_split(split)
    chosen_frames(1, stride, most)
    root, items = Path(root), {}
    for worker in sorted(root.glob("factory_*/workers/worker_*/"), key=lambda p: natural_key(p.as_posix())):
        prefix = f"{worker.parent.parent.name}/{worker.name}"
        for video in sorted(worker.glob("*.mp4"), key=lambda p: natural_key(p.name)):
            items[f"{prefix}/{video.stem}"] = _Clip(video, None, worker)
        for tar in sorted(worker.glob("*.tar"), key=lambda p: natural_key(p.name)):
            for member in _videos(tar):
                items.setdefault(f"{prefix}/{PurePosixPath(member).stem}", _Clip(tar, member, worker))
    if not items:
        raise InputError(
            "does not look like Egocentric-10K: no factory_*/workers/worker_* with .tar or .mp4 files",
            path=root,
            remedy="give the folder that holds factory_001",
        )
    folder = None if cache is None else Path(cache)
    return SceneSet(CARD, items, functools.partial(_scene, cache=folder, stride=stride, most=most))


def worker_camera(file: Path) -> tuple[Record, Distortion]:
    """The record of an ``intrinsics.json`` and its lens.

    Raises:
        InputError: damaged, or another lens model.
    """
    record = Record(read_json_object(file), file)
    if record.text("model") != "fisheye":
        raise record.error(f"the lens model '{record.get('model')}' is not known", "only 'fisheye' is read")
    return record, Distortion("fisheye", tuple(record.number(k) or 0.0 for k in ("k1", "k2", "k3", "k4")))


def _videos(tar: Path) -> list[str]:
    """Names of the videos in a tar; only headers are read."""
    try:
        with tarfile.open(tar, "r:") as archive:
            return [m.name for m in archive if m.isfile() and m.name.lower().endswith(".mp4")]
    except (tarfile.TarError, OSError, EOFError) as exc:
        raise InputError(f"is a damaged tar ({exc})", path=tar, remedy="download it again") from exc


def _unpacked(clip: _Clip, cache: Path | None) -> Path:
    if clip.member is None:
        return clip.file
    if cache is None:
        raise InputError(
            f"the clip '{clip.member}' is inside a tar",
            path=clip.file,
            remedy="name a folder to copy clips to (cache), or unpack the tar beside itself",
        )
    # Only the last part of the member's name is used, so nothing can be written outside of the cache.
    target = cache / clip.worker.parent.parent.name / clip.worker.name / PurePosixPath(clip.member).name
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(clip.file, "r:") as archive:
            source = archive.extractfile(clip.member)
            if source is None:
                raise InputError(f"'{clip.member}' is no file", path=clip.file, remedy="download it again")
            with atomic_path(target) as temporary, temporary.open("wb") as out:
                while block := source.read(_BLOCK):
                    out.write(block)
    except (tarfile.TarError, KeyError, EOFError) as exc:
        raise InputError(f"is a damaged tar ({exc})", path=clip.file, remedy="download it again") from exc
    return target


def _scene(name: str, clip: _Clip, cache: Path | None, stride: int, most: int | None) -> Scene:
    times = frame_times(_unpacked(clip, cache))
    K, lens = None, None
    file = clip.worker / "intrinsics.json"
    if file.is_file():
        record, lens = worker_camera(file)
        given = [record.number(k) for k in ("fx", "fy", "cx", "cy", "image_width", "image_height")]
        fx, fy, cx, cy, width, height = (0.0 if v is None else v for v in given)
        if min(fx, fy, width, height) <= 0:
            raise record.error("lacks fx, fy, image_width or image_height", "download it again")
        known = usable_K(intrinsics(fx, fy, cx + 0.5, cy + 0.5), file)
        K = resize_intrinsics(known, (int(width), int(height)), times.size)
    frames = chosen_frames(len(times.pts), stride, most)
    views = tuple(frame_view(times, frame, K, None, lens) for frame in frames)
    return Scene(views, metric=False, ordered=True, info={"dataset": CARD.name, "scene": name})
