"""``relief3d demo``: render a procedural room as a phone capture, reconstruct it, compare with the truth."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relief3d.core.contract import Scene, View
from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, SilentProgress, stage
from relief3d.eval.reference import compare
from relief3d.io.atomic import atomic_folder
from relief3d.io.cameras_json import write_cameras_json
from relief3d.io.depth import write_depth
from relief3d.io.images import write_image
from relief3d.io.json_file import write_json
from relief3d.io.ply import write_ply
from relief3d.pipelines.reconstruct.config import ReconstructConfig
from relief3d.pipelines.reconstruct.run import reconstruct
from relief3d.worlds.capture import demo_capture

PHOTOS, TRUTH, RESULT = "photos", "truth", "result"
PARTS = (PHOTOS, TRUTH, RESULT, "evaluation.json")


@dataclass(frozen=True)
class DemoResult:
    """Where things are and what was measured (see :func:`relief3d.eval.reference.compare`)."""

    photos: Path
    report: Path
    numbers: dict[str, Any]


def run_demo(
    out: str | Path,
    *,
    seed: int = 0,
    views: int = 20,
    width: int = 640,
    quality: str = "default",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DemoResult:
    """Render, reconstruct as a user would (the photos carry no truth), evaluate.

    Args:
        out: folder for ``photos/``, ``truth/``, ``result/`` and ``evaluation.json``.
        seed: which room and which walk.
        views: number of photos.
        width: of the photos, in pixels; 4:3.
        quality: depth profile of the reconstruction.
        overwrite: replace an earlier demo.
        progress: receives stages and steps.

    Raises:
        InputError: the folder holds something else, or an earlier demo and ``overwrite`` is false.
    """
    out, progress = Path(out), progress or SilentProgress()
    config = ReconstructConfig(quality=quality, seed=seed, overwrite=True)  # type: ignore[arg-type]
    _prepare(out, overwrite)
    truth = write_capture(out, seed=seed, views=views, width=width, progress=progress)
    reconstruct(out / PHOTOS, out / RESULT, config=config, progress=progress)
    with stage(progress, "evaluation against the exact truth", 1):
        numbers = compare(out / RESULT, truth, mesh=out / TRUTH / "mesh.ply")
    write_json(out / "evaluation.json", numbers)
    return DemoResult(out / PHOTOS, out / RESULT / "report.html", numbers)


def write_capture(out: Path, *, seed: int, views: int, width: int, progress: Progress) -> Path:
    """Photos as JPEG in ``out/photos``; cameras, depth and mesh of the truth in ``out/truth``.

    Returns:
        The ``cameras.json`` of the truth; its names are those of the photos.
    """
    height = width * 3 // 4
    with stage(progress, f"rendering {views} photos of a procedural room (seed {seed})", 1):
        capture = demo_capture(seed, views, (width, height))
    with atomic_folder(out / PHOTOS) as folder:
        for i, image in enumerate(capture.images):
            write_image(folder / photo_name(i), image.float() / 255, quality=93)
    with atomic_folder(out / TRUTH) as folder:
        files = {}
        for i, depth in enumerate(capture.depths):
            name = f"{Path(photo_name(i)).stem}.npz"
            write_depth(folder / name, depth)
            files[photo_name(i)] = (name, 1.0)
        known = tuple(View(photo_name(i), camera) for i, camera in enumerate(capture.cameras))
        write_cameras_json(Scene(known, metric=True), folder / "cameras.json", depth=files)
        write_ply(folder / "mesh.ply", capture.world.to_mesh())
    return out / TRUTH / "cameras.json"


def photo_name(index: int) -> str:
    """File name of photo ``index``."""
    return f"room_{index:03d}.jpg"


def _prepare(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError("is a file, not a folder", path=out, remedy="name another folder with --out")
    strange = [p.name for p in out.iterdir() if p.name not in PARTS]
    if strange:
        raise InputError(
            f"the folder holds other files ({strange[0]})", path=out, remedy="name another folder"
        )
    if any(out.iterdir()) and not overwrite:
        raise InputError("holds an earlier demo", path=out, remedy="add --overwrite or name another folder")
    for name in PARTS:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
