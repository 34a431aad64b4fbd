"""COLMAP's mappers: incremental, global, and triangulation from known poses."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from relief3d.core.contract import View
from relief3d.core.progress import Progress, stage
from relief3d.sfm.colmap import quiet, run_interruptible
from relief3d.sfm.config import MapRecipe
from relief3d.sfm.database import image_id, view_file_name
from relief3d.sfm.lenses import Lens


def incremental_options(
    pycolmap: ModuleType, recipe: MapRecipe, lenses: Sequence[Lens], *, seed: int, threads: int
) -> Any:
    """COLMAP's options for incremental mapping; given lenses stay constant."""
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads = threads
    options.random_seed = seed + recipe.seed_offset
    options.extract_colors = False
    options.min_num_matches = recipe.min_matches
    options.min_model_size = 3
    options.constant_cameras = {k + 1 for k, lens in enumerate(lenses) if lens.fixed}
    options.mapper.init_min_num_inliers = recipe.init_min_inliers
    options.mapper.init_min_tri_angle = recipe.init_min_angle
    options.mapper.abs_pose_min_num_inliers = recipe.pose_min_inliers
    options.mapper.abs_pose_max_error = recipe.pose_max_error
    options.mapper.filter_min_tri_angle = recipe.filter_min_angle
    options.mapper.filter_max_reproj_error = recipe.filter_max_error
    options.triangulation.min_angle = recipe.filter_min_angle
    options.triangulation.create_max_angle_error = recipe.angle_error
    options.triangulation.continue_max_angle_error = recipe.angle_error
    options.triangulation.ignore_two_view_tracks = not recipe.two_view_tracks
    return options


def map_incremental(
    pycolmap: ModuleType,
    database: Path,
    recipe: MapRecipe,
    lenses: Sequence[Lens],
    progress: Progress,
    *,
    views: int,
    seed: int,
    threads: int = 1,
    start: Path | None = None,
    time_limit: float | None = None,
) -> list[Any]:
    """Incremental structure from motion.

    Args:
        pycolmap: the module.
        database: with verified matches.
        recipe: mapping settings.
        lenses: of the database's cameras.
        progress: one step per registered view (more when several models are tried).
        views: number of views.
        seed: of COLMAP's random numbers.
        threads: of the solver.
        start: folder of a model to continue; its poses stay as they are.
        time_limit: seconds after which COLMAP stops adding views.

    Returns:
        The models COLMAP found, largest first; empty when there is none.
    """
    options = incremental_options(pycolmap, recipe, lenses, seed=seed, threads=threads)
    if start is not None:
        options.fix_existing_frames = True
    if time_limit is not None:
        options.max_runtime_seconds = max(1, int(time_limit))

    def work(token: Any, on_view: Callable[[], None], folder: str) -> dict[int, Any]:
        return pycolmap.incremental_mapping(
            database,
            folder,
            folder,
            options,
            input_path="" if start is None else str(start),
            initial_image_pair_callback=on_view,
            next_image_callback=on_view,
            cancellation_token=token,
        )

    with stage(progress, "mapping", views), quiet(pycolmap), tempfile.TemporaryDirectory() as folder:
        on_view = progress.advance
        models = run_interruptible(
            pycolmap, lambda token: work(token, on_view, folder), seed=options.random_seed, what="mapping"
        )
    return _largest_first(models)


def map_global(
    pycolmap: ModuleType,
    database: Path,
    recipe: MapRecipe,
    lenses: Sequence[Lens],
    progress: Progress,
    *,
    seed: int,
    threads: int = 1,
) -> list[Any]:
    """Global structure from motion (rotation averaging, then global positioning).

    Lenses stay as given only when all are given; otherwise all are refined, since COLMAP's global mapper
    has one switch for all cameras. The database is changed (focal lengths from the view graph).
    """
    all_fixed = all(lens.fixed for lens in lenses)
    options = pycolmap.GlobalPipelineOptions()
    options.num_threads = threads
    options.random_seed = seed + recipe.seed_offset
    options.min_num_matches = recipe.min_matches
    for name in ("refine_focal_length", "refine_extra_params"):
        setattr(options.mapper.bundle_adjustment, name, not all_fixed)
    options.mapper.bundle_adjustment.ceres.use_gpu = False
    options.mapper.global_positioning.use_gpu = False
    options.mapper.min_tri_angle_deg = min(options.mapper.min_tri_angle_deg, recipe.filter_min_angle)
    if recipe.two_view_tracks:
        options.mapper.track_min_num_views_per_track = 2
        options.mapper.global_positioning.min_num_view_per_track = 2

    def work(_token: Any, folder: str) -> dict[int, Any]:
        if not all(lens.prior_focal for lens in lenses):
            pycolmap.calibrate_view_graph(database)
        return pycolmap.global_mapping(database, folder, folder, options)

    with stage(progress, "global mapping"), quiet(pycolmap), tempfile.TemporaryDirectory() as folder:
        models = run_interruptible(
            pycolmap, lambda token: work(token, folder), seed=options.random_seed, what="global mapping"
        )
    return _largest_first(models)


def _largest_first(models: dict[int, Any]) -> list[Any]:
    found = [m for m in models.values() if m.num_reg_images() >= 2]
    return sorted(found, key=lambda m: (m.num_reg_images(), m.num_points3D()), reverse=True)


def posed_model(pycolmap: ModuleType, views: Sequence[View], lenses: Sequence[Lens]) -> Any:
    """A COLMAP model of the views whose poses are given, without points; ids as in the database."""
    model = pycolmap.Reconstruction()
    lens_of = {index: k for k, lens in enumerate(lenses) for index in lens.views}
    for k, lens in enumerate(lenses):
        model.add_camera_with_trivial_rig(lens.to_colmap(pycolmap, k + 1))
    for index, view in enumerate(views):
        pose = view.camera.cam_from_world
        if pose is None:
            continue
        image = pycolmap.Image(
            name=view_file_name(index), camera_id=lens_of[index] + 1, image_id=image_id(index)
        )
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.asarray(pose[:3].numpy())))
    return model


def triangulate(
    pycolmap: ModuleType,
    database: Path,
    model: Any,
    lenses: Sequence[Lens],
    recipe: MapRecipe,
    progress: Progress,
    *,
    seed: int,
    threads: int = 1,
) -> Any:
    """Points from the poses of ``model`` (its own points are replaced); cameras are not changed.

    Returns:
        The COLMAP model with points.
    """
    options = incremental_options(pycolmap, recipe, lenses, seed=seed, threads=threads)

    def work(token: Any, folder: str) -> Any:
        return pycolmap.triangulate_points(
            model, database, folder, folder, True, options, False, cancellation_token=token
        )

    with stage(progress, "triangulation"), quiet(pycolmap), tempfile.TemporaryDirectory() as folder:
        return run_interruptible(
            pycolmap, lambda token: work(token, folder), seed=options.random_seed, what="triangulating"
        )
