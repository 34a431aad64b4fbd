"""From what the user named to a scene that is worth starting on."""

from __future__ import annotations

from pathlib import Path

from relief3d.core.contract import Scene
from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, SilentProgress, track
from relief3d.io.duplicates import without_duplicates
from relief3d.io.folders import detect_input, open_input
from relief3d.pipelines.reconstruct.config import ReconstructConfig


def read_input(source: str | Path, config: ReconstructConfig, progress: Progress | None = None) -> Scene:
    """Open the input, attach known cameras, and refuse what cannot be reconstructed.

    Raises:
        InputError: nothing usable, fewer than two different pictures, or cameras that do not match.
    """
    kind, _ = detect_input(source)
    scene = open_input(
        source,
        masks=config.masks,
        depth=config.depth,
        depth_scale=config.depth_scale,
        cameras=config.cameras,
        max_frames=config.video_frames if kind == "video" else None,
        ordered=True if config.ordered else None,
        progress=progress,
    )
    if config.poses == "ignore":
        scene = scene.replace(
            views=tuple(v.replace(camera=v.camera.replace(world_from_cam=None)) for v in scene.views),
            sparse=None,
            metric=False,
        )
    if config.depth is not None:
        # A wrong size or unit should stop the run now, not after minutes of structure from motion.
        for view in track(progress or SilentProgress(), "checking depth maps", scene.views):
            view.load_depth()
    return usable_scene(scene, source, least=1 if config.multiview.active else 2)


def usable_scene(scene: Scene, source: str | Path, least: int = 2) -> Scene:
    """The scene without copies of the same picture.

    Args:
        scene: as opened.
        source: named in errors.
        least: pictures needed; a network reconstructs a single one.

    Raises:
        InputError: fewer pictures, a missing one, or all the same.
    """
    if len(scene) < least:
        raise InputError(
            "there is only one picture; reconstruction compares at least two",
            path=source,
            remedy="take more photos while moving sideways, or use a network (--model)",
        )
    missing = [v.name for v in scene.views if v.image is None]
    if missing:
        raise InputError(
            f"'{missing[0]}' has no picture", path=source, remedy="put the picture where it is expected"
        )
    distinct, notes = without_duplicates(scene)
    if len(distinct) < least:
        raise InputError(
            "all pictures are identical copies", path=source, remedy="take photos from different places"
        )
    if not notes:
        return scene
    return distinct.replace(info={**distinct.info, "notes": [*distinct.info.get("notes", ()), *notes]})
