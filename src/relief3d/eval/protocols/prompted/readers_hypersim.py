"""Hypersim test pictures: the raw release (HDF5) or the 16-bit pictures made from it for depth training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.readers.hdf5 import read_hdf5
from relief3d.data.readers.hypersim import FOCAL, split_frames
from relief3d.data.readers.hypersim import SPLIT_TABLE as SPLIT
from relief3d.data.readers.poses import z_from_ray_length
from relief3d.eval.protocols.metric.frames import FrameFile, load_rgb8
from relief3d.geometry.projection import intrinsics
from relief3d.io.depth import read_depth
from relief3d.io.names import natural_key

LAYOUT = """\
metadata_images_split_scene_v1.csv and
ai_001_010/images/scene_cam_00_final_preview/frame.0000.tonemap.jpg with
ai_001_010/images/scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5 (ray length; needs h5py), or
test/ai_001_010/rgb_cam_00_fr0000.png with depth_plane_cam_00_fr0000.png (16-bit millimetres of z-depth)"""

SIZE = (768, 1024)


def open_hypersim(root: Path) -> list[FrameFile]:
    """Test pictures; the scene is the group.

    Raises:
        InputError: neither layout is there, or files are missing.
    """
    for folder in (root / "test", root):
        found = _pictures(folder) if folder.is_dir() else []
        if found:
            return found
    if (root / SPLIT).is_file():
        return _raw(root)
    raise InputError(
        f"does not look like Hypersim: it has no test/ai_*/rgb_cam_*_fr*.png and no {SPLIT}",
        path=root,
        remedy="put the official split table beside the ai_* folders",
    )


def _pictures(folder: Path) -> list[FrameFile]:
    out = []
    for picture in sorted(folder.glob("ai_*/rgb_cam_*_fr*.png"), key=lambda p: natural_key(str(p))):
        scene, rest = picture.parent.name, picture.stem.removeprefix("rgb_")
        depth = picture.with_name(f"depth_plane_{rest}.png")
        if not depth.is_file():
            raise InputError("the depth map is missing", path=depth, remedy="run the conversion again")
        out.append(_frame(f"{scene}/{rest}", scene, picture, _png_loader(depth)))
    return out


def _raw(root: Path) -> list[FrameFile]:
    out = []
    listed = split_frames(root / SPLIT, "test").items()
    for scene, camera, number in [(s, c, frame) for (s, c), frames in listed for frame in frames]:
        images = root / scene / "images"
        picture = images / f"scene_{camera}_final_preview" / f"frame.{number:04d}.tonemap.jpg"
        depth = images / f"scene_{camera}_geometry_hdf5" / f"frame.{number:04d}.depth_meters.hdf5"
        for path in (picture, depth):
            if not path.is_file():
                raise InputError("is missing", path=path, remedy="download the test scenes of Hypersim")
        out.append(_frame(f"{scene}/{camera}_fr{number:04d}", scene, picture, _hdf5_loader(depth)))
    if not out:
        raise InputError("names no public test picture", path=root / SPLIT)
    return out


def _frame(name: str, scene: str, picture: Path, load: Callable[[], Tensor]) -> FrameFile:
    return FrameFile(
        name=name,
        group=scene,
        load_image=lambda: load_rgb8(picture),
        load_depth=load,
        load_valid=lambda: load() > 0,
        K=intrinsics(FOCAL, FOCAL, SIZE[1] / 2, SIZE[0] / 2),
    )


def _png_loader(path: Path) -> Callable[[], Tensor]:
    return lambda: read_depth(path, 0.001).values


def _hdf5_loader(path: Path) -> Callable[[], Tensor]:
    return lambda: plane_depth(torch.from_numpy(read_hdf5(path, what="Hypersim").astype(np.float32)))


def plane_depth(length: Tensor) -> Tensor:
    """z-depth from the length of the ray, 0 where unknown; (H, W) metres in and out."""
    height, width = length.shape
    if (height, width) != SIZE:
        raise InputError(f"a depth map of Hypersim has 1024 x 768 pixels, this one {width} x {height}")
    return z_from_ray_length(length, intrinsics(FOCAL, FOCAL, SIZE[1] / 2, SIZE[0] / 2))
