"""Tanks and Temples: pictures and a ``.log`` trajectory of ``world_from_cam`` matrices (OpenCV axes).

https://www.tanksandtemples.org/tutorial/: every entry is a line of three integers, the first of which is the number of
the picture, and four lines of a 4x4 matrix. Intrinsics are not part of it: give them with ``--intrinsics``, or
pictures whose EXIF holds the focal length.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Scene
from relief3d.core.errors import InputError
from relief3d.data.readers.poses import rigid_matrix
from relief3d.io.folders import open_input
from relief3d.io.names import scan_images
from relief3d.io.whole_file import read_utf8


def is_tanks(folder: Path) -> bool:
    """Pictures and exactly one trajectory."""
    return len(_logs(folder)) == 1 and _pictures(folder) is not None


def _logs(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.glob("*.log")) if _looks_right(p)]


def _looks_right(path: Path) -> bool:
    with path.open("rb") as stream:
        words = stream.readline(200).split()
    return len(words) == 3 and all(w.lstrip(b"-").isdigit() for w in words)


def _pictures(folder: Path) -> Path | None:
    """The folder that holds the pictures: this one, ``images``, or one named as the log."""
    names = ["", "images", *(p.name.split("_")[0].split(".")[0] for p in _logs(folder))]
    return next((p for n in names if (p := folder / n).is_dir() and scan_images(p).images), None)


def read_log(path: Path) -> tuple[list[int], Tensor]:
    """Numbers of pictures and ``world_from_cam`` (N, 4, 4) float64 of a ``.log`` trajectory.

    Raises:
        InputError: malformed, naming the line, or not a rigid transform.
    """
    lines = [(n, line.split()) for n, line in enumerate(read_utf8(path).splitlines(), 1) if line.strip()]
    if not lines or len(lines) % 5:
        raise InputError(
            f"holds {len(lines)} lines of text, not five per picture", path=path, remedy="copy it again"
        )
    numbers, poses = [], []
    for start in range(0, len(lines), 5):
        at, head = lines[start]
        try:
            numbers.append(int(head[0]))
            rows = [[float(w) for w in words] for _, words in lines[start + 1 : start + 5]]
            matrix = torch.tensor(rows, dtype=torch.float64)
        except (ValueError, IndexError) as exc:
            raise InputError(f"line {at}: no entry of a trajectory follows", path=path) from exc
        if tuple(matrix.shape) != (4, 4):
            raise InputError(f"line {at}: no 4x4 matrix follows", path=path)
        poses.append(rigid_matrix(matrix, path, f"pose of line {at}", tolerance=1e-3))
    return numbers, torch.stack(poses)


def read_tanks(folder: Path) -> Scene:
    """One view per picture, in the order of their names, which is that of the trajectory.

    Raises:
        InputError: another number of poses than of pictures, or a malformed trajectory.
    """
    log = _logs(folder)[0]
    pictures = _pictures(folder)
    assert pictures is not None
    scene = open_input(pictures)
    numbers, poses = read_log(log)
    if len(poses) != len(scene):
        raise InputError(
            f"holds {len(poses)} poses, but there are {len(scene)} pictures",
            path=log,
            remedy="use the trajectory of these pictures, complete",
        )
    order = torch.tensor(numbers).argsort().tolist()
    views = [
        view.replace(camera=view.camera.replace(world_from_cam=poses[k]))
        for view, k in zip(scene.views, order, strict=True)
    ]
    return scene.replace(views=tuple(views), metric=False, ordered=False, info={"layout": "tanks"})
