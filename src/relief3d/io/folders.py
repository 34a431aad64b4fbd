"""Open whatever the user has: a folder, a glob, a video, a COLMAP model or a camera file."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from relief3d.core.contract import Scene, View
from relief3d.core.errors import InputError
from relief3d.core.progress import Progress
from relief3d.io.attachments import attach_cameras, attach_depth, attach_masks
from relief3d.io.formats import (
    IMAGE_FORMATS,
    IMAGE_SUFFIXES,
    VIDEO_FORMATS,
    VIDEO_SUFFIXES,
    sniff,
    unreadable,
)
from relief3d.io.images import read_header
from relief3d.io.limits import DEFAULT_MAX_PIXELS
from relief3d.io.names import Listing, is_glob, scan_images, view_name
from relief3d.io.view_files import load_opaque, load_rgb

logger = logging.getLogger(__name__)

_VIDEO_FILE_LIMIT = 1 << 44
_MODEL_NAMES = frozenset({"cameras", "images", "points3D", "rigs", "frames"})


@dataclass(frozen=True)
class OpenOptions:
    """How to open an input; see :func:`open_input`."""

    masks: Path | None = None
    depth: Path | None = None
    depth_scale: float | None = None
    depth_metric: bool = True
    cameras: Path | None = None
    images: Path | None = None
    max_frames: int | None = None
    recursive: bool = False
    ordered: bool | None = None
    frames_folder: Path | None = None
    skip_bad: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS


def open_input(
    path: str | Path,
    *,
    masks: str | Path | None = None,
    depth: str | Path | None = None,
    depth_scale: float | None = None,
    depth_metric: bool = True,
    cameras: str | Path | None = None,
    images: str | Path | None = None,
    max_frames: int | None = None,
    recursive: bool = False,
    ordered: bool | None = None,
    frames_folder: str | Path | None = None,
    skip_bad: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Progress | None = None,
) -> Scene:
    """Open a folder of pictures, glob, video, COLMAP model, ``cameras.json`` or ``transforms.json``.

    Only headers are read; views load their pictures, depth and masks when asked. A folder is taken for
    the first that it holds of: ``cameras.json``, ``transforms.json``, a COLMAP model, pictures, a
    sub-folder ``images`` with pictures, one video. Pictures with transparency get a mask from it.

    Args:
        path: what the user gave.
        masks: folder of masks named after the pictures.
        depth: folder of depth maps named after the pictures.
        depth_scale: depth = stored value x scale; None: millimetres for integers, 1 for floats.
        depth_metric: ``depth`` is in metres.
        cameras: COLMAP model, ``cameras.json`` or ``transforms.json`` with cameras of these pictures.
        images: folder of the pictures of a COLMAP model; found beside it by default.
        max_frames: of a video, frames to choose (default 80); of pictures, keep so many, evenly spaced.
        recursive: look for pictures in sub-folders too.
        ordered: consecutive pictures follow each other in time; None: true for video only.
        frames_folder: write chosen video frames there as PNG and read them from there.
        skip_bad: leave out pictures with a damaged header instead of failing.
        max_pixels: larger pictures are refused.
        progress: told about video frames.

    Returns:
        Scene with ``info["input"] = {"kind", "notes", "skipped"}``.

    Raises:
        InputError: nothing usable there, with the reason and the remedy.
        MissingExtraError: a format needs a package that is not installed.
    """
    options = OpenOptions(
        _path(masks),
        _path(depth),
        depth_scale,
        depth_metric,
        _path(cameras),
        _path(images),
        max_frames,
        recursive,
        ordered,
        _path(frames_folder),
        skip_bad,
        max_pixels,
    )
    if max_frames is not None and max_frames < 1:
        raise InputError(f"max_frames must be at least 1, got {max_frames}")
    kind, target = detect_input(path, images=options.images, recursive=recursive)
    notes: list[str] = []
    orientations: dict[str, int] = {}
    skipped: list[str] = []
    if kind == "video":
        scene = _open_video(Path(target), options, progress, notes)
    elif kind in ("images", "image"):
        listing = _listing(target, kind, recursive)
        scene = _open_pictures(listing, options, notes, orientations)
        skipped = [f"{view_name(p, listing.root)}: {reason}" for p, reason in listing.skipped]
    else:
        scene = read_camera_file(Path(target), kind, images=options.images)
    scene = _thinned(scene, options, kind, notes)
    scene = _with_attachments(scene, options, orientations, notes)
    if ordered is not None:
        scene = scene.replace(ordered=ordered)
    for note in notes:
        logger.info("%s: %s", path, note)
    report: dict[str, Any] = {"kind": kind, "notes": notes, "skipped": skipped}
    return scene.replace(info={**scene.info, "input": report})


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def detect_input(
    path: str | Path, *, images: Path | None = None, recursive: bool = False
) -> tuple[str, str | Path]:
    """What ``path`` is: (kind, the file or folder to open).

    Kinds: ``images`` (folder or glob), ``image``, ``video``, ``colmap``, ``cameras_json``,
    ``transforms_json``.

    Raises:
        InputError: missing, empty, or nothing that can be opened.
    """
    if is_glob(str(path)):
        return "images", str(path)
    target = Path(path)
    try:
        if target.is_dir():
            return _detect_folder(target, recursive)
        if target.suffix.lower() == ".json":
            return _detect_json(target), target
        kind = sniff(target, max_bytes=_VIDEO_FILE_LIMIT)
    except OSError as exc:
        raise unreadable(target, exc) from exc
    except ValueError as exc:  # a NUL in the name
        raise InputError(f"not a usable path: {str(path)!r}") from exc
    if kind in IMAGE_FORMATS:
        return "image", target
    if kind in VIDEO_FORMATS:
        return "video", target
    if target.suffix.lower() in (".bin", ".txt") and target.stem in _MODEL_NAMES:
        return "colmap", target.parent
    if target.suffix.lower() in VIDEO_SUFFIXES:
        raise InputError("is not a video in a known format", path=target, remedy="use MP4, MOV, MKV or AVI")
    raise InputError(
        "is neither pictures, a video nor cameras",
        path=target,
        remedy="give a folder of photos, a video, a COLMAP model, cameras.json or transforms.json",
    )


def _detect_json(path: Path) -> str:
    from relief3d.io.json_file import read_json_object

    frames = read_json_object(path).get("frames")
    first = frames[0] if isinstance(frames, list) and frames else None
    if not isinstance(first, dict):
        raise InputError(
            "holds no list of 'frames'", path=path, remedy="give cameras.json or transforms.json"
        )
    return "transforms_json" if "transform_matrix" in first or "file_path" in first else "cameras_json"


def _detect_folder(folder: Path, recursive: bool) -> tuple[str, str | Path]:
    from relief3d.io.colmap import find_colmap_model

    for name, kind in (("cameras.json", "cameras_json"), ("transforms.json", "transforms_json")):
        if (folder / name).is_file():
            return kind, folder / name
    if find_colmap_model(folder) is not None:
        return "colmap", folder
    listing = scan_images(folder, recursive=recursive)
    if listing.images:
        return "images", folder
    if (folder / "images").is_dir() and scan_images(folder / "images", recursive=recursive).images:
        return "images", folder / "images"
    videos = [p for p, _ in listing.skipped if p.suffix.lower() in VIDEO_SUFFIXES]
    if len(videos) == 1:
        return "video", videos[0]
    if videos:
        raise InputError(
            f"holds {len(videos)} videos and no pictures", path=folder, remedy="give one of the videos"
        )
    raise _nothing_in(folder, listing)


def _nothing_in(folder: Path, listing: Listing) -> InputError:
    below = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not listing.skipped and not below:
        return InputError("the folder is empty", path=folder, remedy="put photos into it")
    if listing.skipped:
        name, reason = listing.skipped[0]
        detail = f"{len(listing.skipped)} other files, for example {name.name}: {reason}"
        return InputError(
            f"no pictures in this folder ({detail})", path=folder, remedy="use JPEG, PNG, WebP, TIFF or HEIC"
        )
    return InputError(
        "no pictures in this folder",
        path=folder,
        remedy=f"give a sub-folder such as {below[0]}, or use the recursive option",
    )


def _listing(target: str | Path, kind: str, recursive: bool) -> Listing:
    if kind == "image":
        return Listing(Path(target).parent, (Path(target),))
    listing = scan_images(target, recursive=recursive)
    if not listing.images:
        raise InputError(
            "no pictures match this pattern", path=target, remedy="quote the pattern and check it"
        )
    return listing


def _open_pictures(
    listing: Listing, options: OpenOptions, notes: list[str], orientations: dict[str, int]
) -> Scene:
    views: list[View] = []
    bad: list[str] = []
    for file in listing.images:
        name = view_name(file, listing.root)
        try:
            header = read_header(file, max_pixels=options.max_pixels)
        except InputError as exc:
            if not options.skip_bad:
                raise
            bad.append(f"{name} was left out: {exc.message}")
            continue
        notes += [f"{name}: {note}" for note in header.notes]
        orientations[name] = header.orientation
        views.append(
            View(
                name=name,
                camera=header.camera(),
                image=partial(load_rgb, file, options.max_pixels),
                mask=partial(load_opaque, file, options.max_pixels) if header.has_alpha else None,
                path=file,
            )
        )
    notes += bad
    if not views:
        raise InputError(f"none of the {len(bad)} pictures can be read", path=listing.root)
    return Scene(tuple(views))


def _open_video(path: Path, options: OpenOptions, progress: Progress | None, notes: list[str]) -> Scene:
    from relief3d.io.video import DEFAULT_MAX_FRAMES, sample_video, video_scene, write_video_frames

    sample = sample_video(
        path,
        max_frames=max(2, options.max_frames or DEFAULT_MAX_FRAMES),
        max_pixels=options.max_pixels,
        progress=progress,
    )
    notes += sample.notes
    if options.frames_folder is None:
        return video_scene(sample)
    views = write_video_frames(
        sample, options.frames_folder, max_pixels=options.max_pixels, progress=progress
    )
    return video_scene(sample, views)


def read_camera_file(path: Path, kind: str, *, images: Path | None = None, alone: bool = False) -> Scene:
    """Read a COLMAP model, ``cameras.json`` or ``transforms.json``.

    Args:
        path: the file, or the folder of a COLMAP model.
        kind: from :func:`detect_input`.
        images: folder of the pictures of a COLMAP model or ``cameras.json``; found by itself when None.
        alone: cameras without pictures.

    Raises:
        InputError: damaged or inconsistent, or the pictures of a model cannot be found.
    """
    if kind == "cameras_json":
        from relief3d.io.cameras_json import read_cameras_json

        return read_cameras_json(path, images, require_images=not alone)
    if kind == "transforms_json":
        from relief3d.io.transforms_json import read_transforms_json

        return read_transforms_json(path, require_images=not alone)
    from relief3d.io.colmap import find_colmap_model, read_colmap_model

    model = find_colmap_model(path) or path
    return read_colmap_model(model, None if alone else images or _pictures_of_model(model))


def _pictures_of_model(model: Path) -> Path:
    """The folder of a COLMAP model's pictures: ``images`` beside or above it, or a folder above with pictures."""
    above = [model.absolute(), *model.absolute().parents][:4]
    candidates = [folder / "images" for folder in above] + above
    for folder in candidates:
        if folder.is_dir() and _holds_pictures(folder):
            return folder
    raise InputError(
        "the pictures of this COLMAP model were not found beside it",
        path=model,
        remedy="name their folder with images",
    )


def _holds_pictures(folder: Path) -> bool:
    pending = [folder]
    looked = 0
    while pending and looked < 200:
        here = pending.pop()
        for path in sorted(here.iterdir()):
            looked += 1
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                return True
            if folder.name == "images" and path.is_dir() and not path.is_symlink():
                pending.append(path)
    return False


def _thinned(scene: Scene, options: OpenOptions, kind: str, notes: list[str]) -> Scene:
    keep, count = options.max_frames, len(scene)
    if kind == "video" or keep is None or count <= keep:
        return scene
    chosen = [round(i * (count - 1) / max(1, keep - 1)) for i in range(keep)]
    notes.append(f"{keep} of {count} pictures were kept, evenly spaced (max_frames)")
    return _subset(scene, chosen)


def _subset(scene: Scene, chosen: list[int]) -> Scene:
    bare = scene.replace(views=tuple(scene.views[i] for i in chosen), sparse=None)
    if scene.sparse is None:
        return bare
    return attach_cameras(bare, scene, "the model")[0]


def _with_attachments(
    scene: Scene, options: OpenOptions, orientations: Mapping[str, int], notes: list[str]
) -> Scene:
    if options.cameras is not None:
        kind, target = detect_input(options.cameras)
        if kind not in ("colmap", "cameras_json", "transforms_json"):
            raise InputError(
                "holds no cameras",
                path=options.cameras,
                remedy="give a COLMAP model, cameras.json or transforms.json",
            )
        known = read_camera_file(Path(target), kind, alone=True)
        scene, more = attach_cameras(scene, known, options.cameras)
        notes += more
    if options.masks is not None:
        views, more = attach_masks(scene.views, options.masks, orientations, max_pixels=options.max_pixels)
        scene, notes[len(notes) :] = dataclasses.replace(scene, views=views), more
    if options.depth is not None:
        views, more = attach_depth(
            scene.views,
            options.depth,
            orientations,
            scale=options.depth_scale,
            metric=options.depth_metric,
            max_pixels=options.max_pixels,
        )
        scene, notes[len(notes) :] = dataclasses.replace(scene, views=views), more
    return scene
