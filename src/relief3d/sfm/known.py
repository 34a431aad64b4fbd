"""Views whose poses are given: triangulate, check that the poses belong to the pictures, adjust on request."""

from __future__ import annotations

import shutil
import time
from typing import Any

import numpy as np
import torch

from relief3d.core.errors import InputError
from relief3d.geometry.alignment import umeyama
from relief3d.sfm import mapping
from relief3d.sfm.attempts import Attempt, Run, prepare
from relief3d.sfm.config import MapRecipe, Recipe
from relief3d.sfm.consistency import SUPPORT_POINTS, Agreement, agreement, read_verified
from relief3d.sfm.refine import refine_model

MIN_EXPLAINED = 0.5
"""Given poses that explain a smaller share of the verified matches do not belong to the pictures."""

MIN_MATCHES = 100
ADJUST_ROUNDS = 2


def known_poses(run: Run) -> Attempt:
    """Points from given intrinsics and poses.

    With ``refine_poses`` the poses are adjusted to the matches, starting from the given ones, in two rounds of
    triangulation and bundle adjustment; the result is laid back onto the given camera centres by a similarity, so
    that world and scale stay the user's.

    Raises:
        InputError: when the poses contradict the pictures.
    """
    recipe = Recipe("known poses", mapping=MapRecipe(filter_min_angle=1.0, two_view_tracks=True))
    lenses, database = prepare(run, recipe)
    began = time.monotonic()
    config, lens_options = run.config, {"seed": run.config.seed, "threads": run.config.threads}
    verified = read_verified(run.pycolmap, database, len(run.scene))
    model = mapping.posed_model(run.pycolmap, run.scene.views, lenses)
    _check_poses(agreement(model, verified), config.refine_poses)
    given = _centres(model)
    recipes = [recipe.mapping]
    if config.refine_poses:
        loose = MapRecipe(filter_min_angle=1.0, filter_max_error=12.0, angle_error=6.0)
        recipes = [loose, *[recipe.mapping] * ADJUST_ROUNDS]
    for k, step in enumerate(recipes):
        model = mapping.triangulate(run.pycolmap, database, model, lenses, step, run.progress, **lens_options)
        if config.refine_poses and k < ADJUST_ROUNDS and model.num_points3D() > 0:
            refine_model(run.pycolmap, model, lenses, run.progress, **lens_options)
    if config.refine_poses:
        _lay_back(run.pycolmap, model, given)
        _restore_unseen(run.pycolmap, model, mapping.posed_model(run.pycolmap, run.scene.views, lenses))
    run.spend("mapping", began)
    return Attempt(recipe, lenses, database, time.monotonic() - began, model)


def _check_poses(fit: Agreement, refine: bool) -> None:
    limit = MIN_EXPLAINED / 2 if refine else MIN_EXPLAINED
    if fit.matches < MIN_MATCHES or fit.explained >= limit:
        return
    remedy = "check their convention (world_from_cam, OpenCV axes) and order"
    raise InputError(
        f"the given poses contradict the pictures: they explain {100 * fit.explained:.0f} % of the matches, "
        f"half of which miss by more than {fit.median_px:.0f} px",
        remedy=remedy if refine else f"{remedy}, or let them be estimated or adjusted",
    )


def _centres(model: Any) -> dict[int, np.ndarray]:
    return {i: np.array(model.image(i).projection_center()) for i in model.reg_image_ids()}


def _restore_unseen(pycolmap: Any, model: Any, given: Any) -> None:
    """Views that see too few points to be adjusted get their given pose back."""
    for i in model.reg_image_ids():
        if model.image(i).num_points3D < SUPPORT_POINTS:
            model.frame(model.image(i).frame_id).set_cam_from_world(
                model.image(i).camera_id, given.image(i).cam_from_world()
            )


def _lay_back(pycolmap: Any, model: Any, given: dict[int, np.ndarray]) -> None:
    """Move the model so that its camera centres fit the given ones best."""
    now = _centres(model)
    ids = sorted(i for i in now if i in given and model.image(i).num_points3D >= SUPPORT_POINTS)
    if len(ids) < 3:
        return
    source = torch.from_numpy(np.stack([now[i] for i in ids]))
    target = torch.from_numpy(np.stack([given[i] for i in ids]))
    spread = torch.linalg.svdvals(target - target.mean(0))
    if spread[1] < 1e-3 * spread[0]:
        return  # on one line the turn about it is free; the fixed gauge has kept it
    s, R, t = umeyama(source, target, with_scale=True)
    matrix = np.hstack([float(s) * R.numpy(), t.numpy().reshape(3, 1)])
    model.transform(pycolmap.Sim3d(matrix))


def some_poses(run: Run) -> Attempt:
    """Add the views without pose to those whose poses are given and stay as they are."""
    recipe = Recipe("continue from given poses")
    lenses, database = prepare(run, recipe)
    began = time.monotonic()
    options: dict[str, Any] = {"seed": run.config.seed, "threads": run.config.threads}
    verified = read_verified(run.pycolmap, database, len(run.scene))
    posed = mapping.posed_model(run.pycolmap, run.scene.views, lenses)
    _check_poses(agreement(posed, verified), run.config.refine_poses)
    model = mapping.triangulate(
        run.pycolmap, database, posed, lenses, recipe.mapping, run.progress, **options
    )
    start = run.folder / "given"
    shutil.rmtree(start, ignore_errors=True)
    start.mkdir()
    model.write(start)
    models = mapping.map_incremental(
        run.pycolmap,
        database,
        recipe.mapping,
        lenses,
        run.progress,
        views=len(run.scene),
        start=start,
        **options,
    )
    if models and models[0].num_reg_images() >= model.num_reg_images():
        model = models[0]
    run.spend("mapping", began)
    return Attempt(recipe, lenses, database, time.monotonic() - began, model)
