"""From what the user named to a scene whose cameras mean what they say, or to a clear refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Scene, View
from relief3d.core.errors import InputError
from relief3d.core.progress import Progress
from relief3d.geometry.conventions import convert_world_from_cam
from relief3d.geometry.transforms import invert_rigid
from relief3d.io.attachments import attach_cameras, attach_masks
from relief3d.io.folders import detect_input, open_input, read_camera_file
from relief3d.io.limits import DEFAULT_MAX_PIXELS
from relief3d.io.trajectories import read_kitti, read_tum
from relief3d.io.whole_file import read_utf8
from relief3d.pipelines.depth.cameras import GivenIntrinsics, parse_intrinsics
from relief3d.pipelines.mesh.config import MeshConfig
from relief3d.pipelines.mesh.layouts import find_layout
from relief3d.pipelines.mesh.layouts.tanks import read_log
from relief3d.pipelines.reconstruct.cameras import scaled
from relief3d.pipelines.reconstruct.inputs import usable_scene

READINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "opengl": lambda pose: convert_world_from_cam(pose, "opengl", "opencv"),
    "inverse": invert_rigid,
    "inverse-opengl": lambda pose: convert_world_from_cam(invert_rigid(pose), "opengl", "opencv"),
}
"""``world_from_cam`` with OpenCV axes from poses that were meant otherwise."""


def read_recording(source: str | Path, config: MeshConfig, progress: Progress | None = None) -> Scene:
    """Open the input whatever its layout, attach what is known beside it, and refuse what cannot become a mesh.

    Returns:
        At least two views in time order. Either no view has a pose (they must be found), or at least two have, and
        all posed views have intrinsics.

    Raises:
        InputError: nothing usable, fewer than two pictures, poses and pictures differ in number, or poses without
            intrinsics.
    """
    layout = find_layout(Path(source), config.layout)
    if layout is not None:
        scene = layout.read(Path(source))
        scene = _attached(scene, source, config)
    else:
        kind, _ = detect_input(source)
        scene = open_input(
            source,
            masks=config.masks,
            cameras=config.cameras,
            max_frames=config.video_frames if kind == "video" else None,
            progress=progress,
        )
    if config.ordered:
        scene = scene.replace(ordered=True)
    if config.trajectory is not None:
        scene = _with_trajectory(scene, config.trajectory)
    if config.intrinsics is not None:
        scene = _with_intrinsics(scene, config.intrinsics)
    scene = _as_meant(scene, config)
    scene = usable_scene(scene, source)
    _check_cameras(scene, source)
    if config.metres_per_unit is not None:
        if not scene.posed:
            raise InputError(
                "--metres-per-unit is the scale of given poses, and there are none",
                path=source,
                remedy="drop it, or use --anchor for poses that are found from the pictures",
            )
        scene = scaled(scene, config.metres_per_unit)
    return scene


def _attached(scene: Scene, source: str | Path, config: MeshConfig) -> Scene:
    """Cameras and masks for a layout that was not opened by :func:`open_input`."""
    if config.cameras is not None:
        kind, target = detect_input(config.cameras)
        scene, _ = attach_cameras(scene, read_camera_file(Path(target), kind, alone=True), config.cameras)
    if config.masks is not None:
        views, _ = attach_masks(scene.views, config.masks, {}, max_pixels=DEFAULT_MAX_PIXELS)
        scene = scene.replace(views=views)
    return scene


def read_trajectory(path: Path) -> Tensor:
    """(N, 4, 4) poses of a TUM, KITTI or Tanks and Temples file, told apart by their form.

    Raises:
        InputError: none of these, or malformed.
    """
    first = next(
        (
            w
            for line in read_utf8(path).splitlines()
            if (w := line.split("#", 1)[0].replace(",", " ").split())
        ),
        [],
    )
    if len(first) == 3:
        numbers, poses = read_log(path)
        return poses[torch.tensor(numbers).argsort()]
    if len(first) == 8:
        return read_tum(path).world_from_cam
    if len(first) == 12:
        return read_kitti(path).world_from_cam
    raise InputError(
        "is no trajectory that is known",
        path=path,
        remedy="give TUM (8 numbers per line), KITTI (12) or Tanks and Temples (.log) poses",
    )


def _with_trajectory(scene: Scene, path: Path) -> Scene:
    poses = read_trajectory(path)
    if len(poses) != len(scene):
        raise InputError(
            f"holds {len(poses)} poses, but there are {len(scene)} pictures",
            path=path,
            remedy="give one pose per picture in the order of the pictures, or cameras by name with --cameras",
        )
    views = tuple(
        v.replace(camera=v.camera.replace(world_from_cam=pose))
        for v, pose in zip(scene.views, poses, strict=True)
    )
    return scene.replace(views=views, metric=False, sparse=None)


def _with_intrinsics(scene: Scene, text: str) -> Scene:
    given = parse_intrinsics(text)
    if not isinstance(given, GivenIntrinsics):
        raise InputError(
            "--intrinsics takes four numbers or a JSON file with them",
            path=given,
            remedy="give whole cameras with --cameras",
        )
    return scene.replace(views=tuple(given.of_views(scene.views)))


def _as_meant(scene: Scene, config: MeshConfig) -> Scene:
    """Poses in our convention, or without them when they are to be ignored."""
    if config.poses == "given":
        return scene
    if config.poses == "ignore":
        views = tuple(v.replace(camera=v.camera.replace(world_from_cam=None)) for v in scene.views)
        return scene.replace(views=views, sparse=None, metric=False)
    turn = READINGS[config.poses]

    def turned(view: View) -> View:
        pose = view.camera.world_from_cam
        return view if pose is None else view.replace(camera=view.camera.replace(world_from_cam=turn(pose)))

    # Points were triangulated with the poses as they were read.
    return scene.replace(views=tuple(turned(v) for v in scene.views), sparse=None)


def _check_cameras(scene: Scene, source: str | Path) -> None:
    with_pose = [v for v in scene.views if v.camera.world_from_cam is not None]
    if not with_pose:
        return
    bare = [v.name for v in with_pose if v.camera.K is None]
    if bare:
        raise InputError(
            f"{len(bare)} of {len(with_pose)} posed pictures have no intrinsics, for example '{bare[0]}'",
            path=source,
            remedy="give them with --intrinsics fx,fy,cx,cy, or whole cameras with --cameras",
        )
    guessed = [v.name for v in with_pose if v.camera.K_source == "guess"]
    if guessed:
        raise InputError(
            f"the intrinsics of {len(guessed)} posed pictures are only guessed, for example '{guessed[0]}'",
            path=source,
            remedy="give them with --intrinsics fx,fy,cx,cy",
        )
    if len(with_pose) < 2:
        raise InputError(
            "only one picture has a pose",
            path=source,
            remedy="give poses of at least two pictures, or --poses ignore to find them",
        )
