"""7-Scenes: ``frame-N.color.png``, ``frame-N.depth.png`` and ``frame-N.pose.txt`` in the folder of one sequence.

Its page gives a focal length of 585 and the middle of the picture for the depth camera and says that the cameras are
not calibrated to each other. Colour is taken with 525, as public code on these scenes does, at the same place; with
``--intrinsics`` one's own calibration is used. Depth is 16 bit millimetres, 65535 where unknown.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Scene
from relief3d.core.errors import InputError
from relief3d.data.readers.files import file_view, files_in
from relief3d.data.readers.scannet import read_pose
from relief3d.pipelines.mesh.layouts.frames import with_depth_file

COLOR_FOCAL, DEPTH_FOCAL = 525.0, 585.0
SIZE = (640, 480)
UNKNOWN = 65535.0
_COLOR = ".color.png"


def is_seven_scenes(folder: Path) -> bool:
    """A first frame with a pose."""
    first = next(iter(sorted(folder.glob(f"frame-*{_COLOR}"))), None)
    return first is not None and first.with_name(first.name.replace(_COLOR, ".pose.txt")).is_file()


def read_seven_scenes(folder: Path) -> Scene:
    """One view per frame.

    Raises:
        InputError: a pose is missing or damaged, or pictures are not of 640 x 480 pixels.
    """
    views = []
    for picture in files_in(folder, (_COLOR,), "colour pictures"):
        stem = picture.name.removesuffix(_COLOR)
        pose = folder / f"{stem}.pose.txt"
        if not pose.is_file():
            raise InputError(
                f"frame {stem} has no pose",
                path=folder,
                remedy="use poses and pictures of the same recording",
            )
        view = file_view(picture.name, picture, _K(COLOR_FOCAL), read_pose(pose))
        if (view.camera.width, view.camera.height) != SIZE:
            raise InputError(
                f"has {view.camera.width}x{view.camera.height} pixels; the intrinsics are for 640x480",
                path=picture,
                remedy="use the pictures as published",
            )
        depth = folder / f"{stem}.depth.png"
        views.append(with_depth_file(view, depth, scale=0.001, depth_K=_K(DEPTH_FOCAL), nothing=UNKNOWN))
    return Scene(tuple(views), metric=True, ordered=True, info={"layout": "7scenes"})


def _K(focal: float) -> Tensor:
    return torch.tensor([[focal, 0, 320.0], [0, focal, 240.0], [0, 0, 1]], dtype=torch.float64)
