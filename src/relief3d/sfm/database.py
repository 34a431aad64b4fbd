"""Cameras and keypoints in a COLMAP database inside the work folder.

Pictures are handed to COLMAP as upright pixels in memory, because COLMAP ignores the EXIF orientation and
cannot read everything :mod:`relief3d.io` reads. COLMAP never opens a picture file here.

A database is built under a name ending in ``.part`` and renamed when complete; a run that finds a ``.part``
file goes on with the pictures and pairs that are missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import View
from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, stage
from relief3d.matching.base import Features, Matcher
from relief3d.sfm.colmap import quiet
from relief3d.sfm.config import FeatureRecipe
from relief3d.sfm.lenses import Lens

PAIR_BLOCK = 64
"""Pairs matched between two progress reports."""

SIFT_SIZE = 128
"""Length of a SIFT descriptor; a picture without keypoints still needs it."""


def image_id(view_index: int) -> int:
    """COLMAP's id of a view (ids start at 1)."""
    return view_index + 1


def relens(
    pycolmap: ModuleType, source: Path, path: Path, views: Sequence[View], lenses: Sequence[Lens]
) -> None:
    """Copy the keypoints of ``source`` into a database at ``path`` whose images use other lenses."""
    if path.exists():
        return
    part = path.with_name(path.name + ".part")
    remove_database(part)
    with quiet(pycolmap):
        old, new = pycolmap.Database.open(source), pycolmap.Database.open(part)
        try:
            _write_cameras(pycolmap, new, views, lenses)
            with pycolmap.DatabaseTransaction(new):
                for index in range(len(views)):
                    new.write_keypoints(image_id(index), old.read_keypoints(image_id(index)))
                    new.write_descriptors(image_id(index), old.read_descriptors(image_id(index)))
        finally:
            old.close()
            new.close()
    publish(part, path)


def to_uint8(image: Tensor) -> np.ndarray:
    """(3, H, W) float RGB in [0, 1] to (H, W, 3) uint8."""
    values = (image.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return np.ascontiguousarray(values.permute(1, 2, 0).cpu().numpy())


def sift_options(pycolmap: ModuleType, recipe: FeatureRecipe) -> Any:
    """COLMAP's extraction options for one picture at a time on one thread."""
    options = pycolmap.FeatureExtractionOptions()
    options.num_threads = 1
    options.use_gpu = False
    options.sift.max_num_features = recipe.max_features
    options.sift.peak_threshold = recipe.peak_threshold
    options.sift.estimate_affine_shape = recipe.affine_shape
    options.sift.domain_size_pooling = recipe.domain_size_pooling
    options.sift.upright = recipe.upright
    return options


def extract_sift(pycolmap: ModuleType, image: Tensor, mask: Tensor | None, recipe: FeatureRecipe) -> Features:
    """SIFT keypoints of one upright picture.

    Args:
        pycolmap: the module.
        image: (3, H, W) float RGB in [0, 1].
        mask: (H, W) bool, True where keypoints may lie, or None.
        recipe: extraction settings.

    Returns:
        ``Features`` with xy in pixels of ``image`` (centres at +0.5) and uint8 descriptors (N, 128).
    """
    pixels = pycolmap.Bitmap.from_array(to_uint8(image)).clone_as_grey()
    height, width = image.shape[-2:]
    scale = min(1.0, recipe.max_image_size / max(height, width))
    if scale < 1.0:
        pixels.rescale(max(1, round(width * scale)), max(1, round(height * scale)))
    extractor = pycolmap.FeatureExtractor.create(sift_options(pycolmap, recipe), pycolmap.Device.cpu)
    keypoints, descriptors = extractor.extract(pixels)
    rows = np.asarray(pycolmap.keypoints_to_matrix(keypoints), dtype=np.float32).reshape(-1, 4)
    factors = np.array([width / pixels.width, height / pixels.height], dtype=np.float32)
    rows[:, :2] *= factors
    rows[:, 2] *= float(factors.mean())
    values = np.asarray(descriptors.data, dtype=np.uint8).reshape(len(rows), SIFT_SIZE)
    features = Features(
        torch.from_numpy(rows[:, :2].copy()),
        torch.from_numpy(values.copy()),
        torch.from_numpy(rows[:, 2:].copy()),
    )
    return features if mask is None else features.inside(mask)


def write_features(
    pycolmap: ModuleType,
    path: Path,
    views: Sequence[View],
    lenses: Sequence[Lens],
    recipe: FeatureRecipe,
    progress: Progress,
    *,
    threads: int = 1,
    matcher: Matcher | None = None,
) -> None:
    """Build the database of cameras, images and keypoints at ``path`` (complete when the file exists).

    Args:
        pycolmap: the module.
        path: target database.
        views: all views; their pictures are loaded one by one.
        lenses: partition of the views by :func:`relief3d.sfm.lenses.group_lenses`.
        recipe: extraction settings.
        progress: one step per picture.
        threads: pictures worked on at a time.
        matcher: extracts instead of SIFT when given.

    Raises:
        InputError: when a picture or mask has not its camera's size.
    """
    if path.exists():
        return
    part = path.with_name(path.name + ".part")
    with quiet(pycolmap):
        database = open_database(pycolmap, part)
        try:
            if database.num_images() != len(views):
                _write_cameras(pycolmap, database, views, lenses)
            missing = [i for i in range(len(views)) if not database.exists_keypoints(image_id(i))]
            with stage(progress, "features", len(missing)):
                for index, features in _extract_all(pycolmap, views, missing, recipe, threads, matcher):
                    _write_one(pycolmap, database, index, features)
                    progress.advance(note=views[index].name)
        finally:
            database.close()
    publish(part, path)


def open_database(pycolmap: ModuleType, path: Path) -> Any:
    """Open or create a database; one that a killed run left damaged is started anew."""
    try:
        return pycolmap.Database.open(path)
    except (RuntimeError, ValueError):
        remove_database(path)
        return pycolmap.Database.open(path)


def remove_database(path: Path) -> None:
    """Delete a database and SQLite's side files."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def publish(part: Path, path: Path) -> None:
    """Give a closed database its final name; the side files are empty after closing."""
    with part.open("rb") as handle:
        os.fsync(handle.fileno())
    for suffix in ("-wal", "-shm"):
        part.with_name(part.name + suffix).unlink(missing_ok=True)
    part.replace(path)


def _write_cameras(
    pycolmap: ModuleType, database: Any, views: Sequence[View], lenses: Sequence[Lens]
) -> None:
    database.clear_all_tables()
    lens_of = {index: k for k, lens in enumerate(lenses) for index in lens.views}
    with pycolmap.DatabaseTransaction(database):
        for k, lens in enumerate(lenses):
            camera = lens.to_colmap(pycolmap, k + 1)
            database.write_camera(camera, use_camera_id=True)
            rig = pycolmap.Rig(rig_id=k + 1)
            rig.add_ref_sensor(camera.sensor_id)
            database.write_rig(rig, use_rig_id=True)
        for index in range(len(views)):
            camera_id = lens_of[index] + 1
            image = pycolmap.Image(name=view_file_name(index), camera_id=camera_id, image_id=image_id(index))
            frame = pycolmap.Frame(frame_id=image_id(index), rig_id=camera_id)
            frame.add_data_id(image.data_id)
            database.write_frame(frame, use_frame_id=True)
            image.frame_id = image_id(index)
            database.write_image(image, use_image_id=True)


def view_file_name(index: int) -> str:
    """The name a view has inside COLMAP's files; view names may hold anything."""
    return f"view{index:06d}"


def _extract_all(
    pycolmap: ModuleType,
    views: Sequence[View],
    missing: Sequence[int],
    recipe: FeatureRecipe,
    threads: int,
    matcher: Matcher | None,
) -> Iterator[tuple[int, Features]]:
    def one(index: int) -> Features:
        image, mask = load_checked(views[index])
        if matcher is None:
            return extract_sift(pycolmap, image, mask, recipe)
        features = matcher.extract(image)
        return features if mask is None else features.inside(mask)

    if threads == 1 or matcher is not None:
        for index in missing:
            yield index, one(index)
        return
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(missing), threads):
            block = missing[start : start + threads]
            yield from zip(block, pool.map(one, block), strict=True)


def load_checked(view: View) -> tuple[Tensor, Tensor | None]:
    """Picture and mask of a view, checked against its camera's size.

    Raises:
        InputError: when they differ in size.
    """
    image, mask = view.load_image(), view.load_mask()
    expected = (view.camera.height, view.camera.width)
    if tuple(image.shape[-2:]) != expected:
        raise InputError(
            f"the picture of '{view.name}' is {image.shape[-1]}x{image.shape[-2]} pixels, "
            f"its camera says {expected[1]}x{expected[0]}",
            remedy="give the intrinsics of this very picture",
        )
    if mask is not None and tuple(mask.shape[-2:]) != expected:
        raise InputError(f"the mask of '{view.name}' has not the size of its picture")
    return image, mask


def _write_one(pycolmap: ModuleType, database: Any, index: int, features: Features) -> None:
    rows = features.keypoint_rows()
    kind = pycolmap.FeatureExtractorType.SIFT
    values = features.descriptors.cpu().numpy()
    if values.dtype != np.uint8:  # matched outside COLMAP; a place holder keeps its tables complete
        values, kind = np.zeros((len(rows), 128), np.uint8), pycolmap.FeatureExtractorType.UNDEFINED
    with pycolmap.DatabaseTransaction(database):
        database.write_keypoints(image_id(index), rows)
        database.write_descriptors(image_id(index), pycolmap.FeatureDescriptors(kind, values))
