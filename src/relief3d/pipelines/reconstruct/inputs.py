"""From what the user named to a scene that is worth starting on."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from relief3d.core.contract import Camera, Scene, View
from relief3d.core.errors import InputError
from relief3d.io.folders import find_duplicate_images, open_input
from relief3d.pipelines.reconstruct.config import ReconstructConfig


def read_input(source: str | Path, config: ReconstructConfig) -> Scene:
    """Open the input, attach known cameras, and refuse what cannot be reconstructed.

    Raises:
        InputError: nothing usable, fewer than two different pictures, or cameras that do not match.
    """
    scene = open_input(
        source,
        masks=config.masks,
        depth=config.depth,
        depth_scale=config.depth_scale,
        max_frames=config.video_frames,
    )
    if config.ordered and not scene.ordered:
        scene = scene.replace(ordered=True)
    if config.cameras is not None:
        scene = attach_cameras(scene, open_input(config.cameras, cameras_only=True), config.cameras)
    if config.poses == "ignore":
        scene = scene.replace(
            views=tuple(v.replace(camera=v.camera.replace(world_from_cam=None)) for v in scene.views),
            sparse=None,
            metric=False,
        )
    check_enough(scene, source)
    return scene


def check_enough(scene: Scene, source: str | Path) -> None:
    """Refuse fewer than two pictures, and sets whose pictures are all the same file content."""
    if len(scene) == 0:
        raise InputError(
            "there are no pictures", path=source, remedy="name a folder with at least two photos"
        )
    if len(scene) == 1:
        raise InputError(
            "there is only one picture; reconstruction compares at least two",
            path=source,
            remedy="take more photos while moving sideways",
        )
    files = [v.path for v in scene.views if v.path is not None]
    if len(files) == len(scene):
        groups = find_duplicate_images(files)
        distinct = len(scene) - sum(len(group) - 1 for group in groups)
        if distinct < 2:
            raise InputError(
                "all pictures are identical copies",
                path=source,
                remedy="take photos from different places",
            )


def attach_cameras(scene: Scene, known: Scene, where: Path) -> Scene:
    """Give each view the camera of the same name in ``known`` (full name first, then the bare file name).

    Raises:
        InputError: no view has a known camera, or a camera's size has another shape than its picture.
    """
    by_name = {v.name: v for v in known.views}
    by_base: dict[str, View | None] = {}
    for v in known.views:
        base = PurePosixPath(v.name).name
        by_base[base] = None if base in by_base else v  # an ambiguous bare name matches nothing
    views, found = [], 0
    for view in scene.views:
        match = by_name.get(view.name) or by_base.get(PurePosixPath(view.name).name)
        if match is None:
            views.append(view)
            continue
        found += 1
        views.append(view.replace(camera=_fit_camera(view, match, where)))
    if not found:
        raise InputError(
            f"none of its {len(known)} cameras has the name of one of the {len(scene)} pictures",
            path=where,
            remedy=f"names must agree, for example '{scene.views[0].name}'",
        )
    return scene.replace(views=tuple(views), metric=known.metric or scene.metric)


def _fit_camera(view: View, match: View, where: Path) -> Camera:
    """The known camera at the size of the picture."""
    camera, size = match.camera, (view.camera.width, view.camera.height)
    if (camera.width, camera.height) == size:
        return camera
    sx, sy = size[0] / camera.width, size[1] / camera.height
    if abs(sx / sy - 1) > 0.01:
        raise InputError(
            f"the camera of '{view.name}' is {camera.width}x{camera.height}, its picture {size[0]}x{size[1]}",
            path=where,
            remedy="give cameras for these pictures, not for cropped or rotated ones",
        )
    K = camera.K
    if K is not None:
        K = K.clone()
        K[0] *= sx
        K[1] *= sy
    return camera.replace(width=size[0], height=size[1], K=K)
