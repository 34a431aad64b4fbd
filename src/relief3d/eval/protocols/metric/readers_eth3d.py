"""ETH3D high-resolution multi-view training set, single pictures with laser depth (Schöps et al. 2017).

Layout: ``<scene>/images/dslr_images/*.JPG``, ``<scene>/dslr_calibration_jpg/{cameras,images}.txt``,
``<scene>/ground_truth_depth/dslr_images/*.JPG`` (no pictures: little-endian float32 rows, infinite where unknown).
The depth belongs to the distorted pictures; the undistorted ones (``dslr_images_undistorted``,
``dslr_calibration_undistorted``) come without depth.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.readers.files import usable_K
from relief3d.eval.protocols.metric.frames import FrameFile, load_rgb8
from relief3d.geometry.projection import intrinsics
from relief3d.io.images import read_header
from relief3d.io.names import natural_key
from relief3d.io.whole_file import read_utf8, read_whole

LAYOUT = """<scene>/images/dslr_images/*.JPG
<scene>/dslr_calibration_jpg/{cameras,images}.txt
<scene>/ground_truth_depth/dslr_images/*.JPG (raw float32)
undistorted pictures: images/dslr_images_undistorted and dslr_calibration_undistorted"""

_CENTRE_PARAMETERS = {"SIMPLE_PINHOLE": 3, "SIMPLE_RADIAL": 3, "RADIAL": 3}
"""Camera models with one focal length; all others begin with fx, fy, cx, cy."""


def has_undistorted(root: Path) -> bool:
    """Whether all scenes of the set come with undistorted pictures."""
    flat = {p.parent.parent for p in root.glob("*/dslr_calibration_undistorted/images.txt")}
    return bool(flat) and flat >= {p.parent.parent for p in root.glob("*/dslr_calibration_jpg/images.txt")}


def read_eth3d(
    root: Path, *, undistorted: bool = False, focal: Literal["calibration", "exif"] = "calibration"
) -> list[FrameFile]:
    """Pictures of all scenes below ``root``, in order of their names (454 in the 13 training scenes).

    Args:
        root: the folder that holds the scenes.
        undistorted: the pictures without lens distortion. Their depth must have been made by the user
            (``ground_truth_depth/dslr_images_undistorted``, the same raw format); it is asked for only when loaded.
        focal: "calibration" takes K from ``cameras.txt`` (COLMAP's format, centres at +0.5; lens distortion is left
            out of K), "exif" the focal length of the picture's header with a centred principal point, as the metric
            depth tables do for the raw pictures.

    Raises:
        InputError: no scene, or a file is missing or malformed.
    """
    kind = "undistorted" if undistorted else "jpg"
    scenes = sorted(p.parent.parent for p in root.glob(f"*/dslr_calibration_{kind}/images.txt"))
    if not scenes:
        raise InputError(
            f"has no scene with dslr_calibration_{kind}/images.txt",
            path=root,
            remedy="unpack the ETH3D training archives (dslr_jpg and dslr_depth) into this folder",
        )
    return [frame for scene in scenes for frame in _scene(scene, scene / f"dslr_calibration_{kind}", focal)]


def _scene(scene: Path, calibration: Path, focal: str) -> list[FrameFile]:
    cameras = _cameras(calibration / "cameras.txt")
    frames = []
    for name, camera in sorted(
        _pictures(calibration / "images.txt").items(), key=lambda item: natural_key(item[0])
    ):
        if camera not in cameras:
            raise InputError(f"'{name}' names camera {camera}, which cameras.txt lacks", path=calibration)
        (width, height), K = cameras[camera]
        picture = scene / "images" / name
        load_depth = partial(_depth, scene / "ground_truth_depth" / name, width, height)
        frames.append(
            FrameFile(
                name=f"{scene.name}/{Path(name).stem}",
                group=scene.name,
                load_image=partial(load_rgb8, picture),
                load_depth=load_depth,
                load_valid=lambda load=load_depth: load() > 0,  # type: ignore[misc]
                K=K if focal == "calibration" else _exif_intrinsics(picture),
            )
        )
    return frames


def _rows(path: Path) -> list[list[str]]:
    return [line.split() for line in read_utf8(path).splitlines() if not line.startswith("#")]


def _cameras(path: Path) -> dict[str, tuple[tuple[int, int], Tensor]]:
    out = {}
    for row in _rows(path):
        if not row:
            continue
        try:
            key, model, width, height = row[0], row[1], int(row[2]), int(row[3])
            numbers = [float(v) for v in row[4:]]
            if model in _CENTRE_PARAMETERS:
                numbers = [numbers[0], *numbers]
            fx, fy, cx, cy = numbers[:4]
        except (IndexError, ValueError) as exc:
            raise InputError(f"holds a line that is no camera: {' '.join(row)[:80]}", path=path) from exc
        if min(width, height) < 1:
            raise InputError(f"names a camera of {width} x {height} pixels", path=path)
        out[key] = ((width, height), usable_K(intrinsics(fx, fy, cx, cy), path))
    return out


def _pictures(path: Path) -> dict[str, str]:
    """Camera of every picture; observations stand in every second line and are not needed."""
    rows = [
        row for row in _rows(path) if len(row) == 10 and not row[9].replace(".", "", 1).lstrip("-").isdigit()
    ]
    if not rows:
        raise InputError("names no picture", path=path)
    return {row[9]: row[8] for row in rows}


def _exif_intrinsics(picture: Path) -> Tensor:
    if not picture.is_file():
        raise InputError("is missing", path=picture, remedy="complete the data set")
    K = read_header(picture).camera().K
    if K is None:
        raise InputError(
            "has no focal length in its header", path=picture, remedy="use the original pictures"
        )
    return K


def _depth(path: Path, width: int, height: int) -> Tensor:
    if not path.is_file():
        raise InputError("is missing", path=path, remedy="unpack the dslr_depth archive into the same folder")
    data = read_whole(path)
    if len(data) != 4 * width * height:
        raise InputError(f"does not hold {width} x {height} float32 values ({len(data)} bytes)", path=path)
    depth = torch.from_numpy(np.frombuffer(data, "<f4").reshape(height, width).astype(np.float32))
    return torch.where(torch.isfinite(depth) & (depth > 0), depth, torch.zeros_like(depth))
