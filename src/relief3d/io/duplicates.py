"""Is there enough to work with: one picture, the same picture again, pictures that do not decode."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch

from relief3d.core.contract import Scene, View
from relief3d.core.errors import InputError, ReliefError
from relief3d.core.progress import Progress, SilentProgress
from relief3d.io.formats import check_regular_file, unreadable


def content_hash(view: View) -> str:
    """SHA-256 of the picture file, or of the pixels of a picture that is no file of its own."""
    digest = hashlib.sha256()
    if view.path is not None:
        path = check_regular_file(view.path)
        try:
            with path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        except OSError as exc:
            raise unreadable(path, exc) from exc
        return digest.hexdigest()
    image = view.load_image()
    digest.update(str(tuple(image.shape)).encode())
    digest.update((image.clamp(0, 1) * 255).round().to(torch.uint8).contiguous().numpy().tobytes())
    return digest.hexdigest()


def find_duplicate_images(scene: Scene) -> list[tuple[str, ...]]:
    """Groups of views whose pictures are identical, by name, in scene order.

    Raises:
        InputError: a picture cannot be read.
    """
    groups: dict[str, list[str]] = {}
    for view in scene.views:
        groups.setdefault(content_hash(view), []).append(view.name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def without_duplicates(scene: Scene) -> tuple[Scene, list[str]]:
    """The scene with one view per distinct picture, and notes; sparse points are dropped when views go.

    Raises:
        InputError: a picture cannot be read.
    """
    again = {name for group in find_duplicate_images(scene) for name in group[1:]}
    if not again:
        return scene, []
    kept = tuple(view for view in scene.views if view.name not in again)
    listed = ", ".join(sorted(again)[:5]) + (", ..." if len(again) > 5 else "")
    return scene.replace(views=kept, sparse=None), [
        f"{len(again)} pictures are identical to others and were left out: {listed}"
    ]


def require_several_views(scene: Scene, *, source: str = "the input", least: int = 2) -> None:
    """Refuse what cannot be reconstructed because there are too few distinct pictures.

    Args:
        scene: the input.
        source: what the user gave, for the message.
        least: pictures needed.

    Raises:
        InputError: fewer than ``least`` pictures, or all the same.
    """
    if len(scene) < least:
        count = "one picture" if len(scene) == 1 else f"{len(scene)} pictures"
        raise InputError(
            f"only {count}, at least {least} are needed",
            path=source,
            remedy="take more photos of the same place from different positions",
        )
    if len({content_hash(view) for view in scene.views}) < least:
        raise InputError(
            f"the {len(scene)} pictures are identical",
            path=source,
            remedy="take photos of the same place from different positions",
        )


def check_pictures(
    scene: Scene, *, workers: int = 2, progress: Progress | None = None
) -> list[tuple[str, ReliefError]]:
    """Decode every picture once and return the names and errors of those that cannot be used.

    Headers are checked when a scene is opened; truncation shows only in the pixels. Call this before
    long work so that a damaged file is known at once and not after an hour.

    Args:
        scene: the input.
        workers: threads (decoders release the interpreter lock); each holds one picture.
        progress: told about every picture.
    """
    progress = SilentProgress() if progress is None else progress

    def attempt(view: View) -> ReliefError | None:
        try:
            image = view.load_image()
        except ReliefError as exc:
            return exc
        size = (int(image.shape[2]), int(image.shape[1]))
        if size != (view.camera.width, view.camera.height):
            return InputError(
                f"the picture has {size[0]} x {size[1]} pixels, its camera "
                f"{view.camera.width} x {view.camera.height}",
                path=view.path or view.name,
            )
        return None

    bad: list[tuple[str, ReliefError]] = []
    progress.start("checking pictures", len(scene))
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for view, error in zip(scene.views, pool.map(attempt, scene.views)):
            if error is not None:
                bad.append((view.name, error))
            progress.advance()
    progress.finish()
    return bad
