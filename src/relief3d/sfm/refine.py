"""The last adjustment of a chosen model: robust loss, and the principal point where the views can tell it.

COLMAP keeps the principal point in the middle of the picture and minimises squared errors. With a lens shared
by many views its true place is measurable, and it is worth more than any other single step: see the table in
docs/results/foundation (benchmarks/sfm_real.py). Whether it is measurable is decided by the standard
deviation that the adjustment's covariance gives, not by the number of views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import numpy as np

from relief3d.core.progress import Progress, stage
from relief3d.sfm.colmap import quiet, run_interruptible
from relief3d.sfm.lenses import Lens

LOSS_SCALE_PX = 0.5
MIN_VIEWS_FOR_CENTRE = 5
MAX_CENTRE_STD = 0.01
"""Of the longer side: an uncertain principal point stays in the middle."""

COVARIANCE_VIEWS = 100
"""Views up to which the covariance is computed; its cost grows with the cube of the views."""

FUNCTION_TOLERANCE = 1e-6
MAX_CENTRE_SHIFT = 0.08
"""Of the longer side: a principal point further from the middle is not believed."""


@dataclass(frozen=True)
class LensUncertainty:
    """Standard deviations of estimated intrinsics.

    Attributes:
        focal: of the focal length, relative to it.
        centre: of the principal point, relative to the longer side (0 where it was not estimated).
        centre_shift: distance of the principal point from the middle, relative to the longer side.
    """

    focal: float
    centre: float
    centre_shift: float

    def as_dict(self) -> dict[str, float]:
        """JSON-ready."""
        return {k: round(v, 5) for k, v in asdict(self).items()}


def refine_model(
    pycolmap: ModuleType,
    model: Any,
    lenses: Sequence[Lens],
    progress: Progress,
    *,
    seed: int,
    threads: int = 1,
    max_prior_std: float = 0.05,
) -> dict[int, LensUncertainty]:
    """Adjust a COLMAP model in place and say how certain its estimated lenses are.

    Given lenses stay constant. Estimated ones get a principal point when enough views share them and the
    covariance finds it well determined.

    Args:
        pycolmap: the module.
        model: COLMAP reconstruction.
        lenses: in the order of COLMAP's camera ids.
        progress: gets one stage.
        seed: of COLMAP's random numbers.
        threads: of the solver.
        max_prior_std: lenses with a focal length from EXIF go back to it when the views leave theirs
            open by more than this (relative standard deviation).

    Returns:
        COLMAP camera id -> uncertainty, for estimated lenses whose covariance could be computed.
    """
    used = [model.image(i).camera_id for i in model.reg_image_ids()]
    free = [k + 1 for k, lens in enumerate(lenses) if not lens.fixed and k + 1 in used]

    def work(_token: Any) -> dict[int, LensUncertainty]:
        found = adjusted(free)
        loose = {
            c for c in free if lenses[c - 1].prior_focal and c in found and found[c].focal > max_prior_std
        }
        if not loose:
            return found
        for c in loose:
            model.camera(c).params = list(lenses[c - 1].params)
        return adjusted([c for c in free if c not in loose])

    def adjusted(free: list[int]) -> dict[int, LensUncertainty]:
        central = {c for c in free if used.count(c) >= MIN_VIEWS_FOR_CENTRE}
        trusted = central
        if central and central != set(free):
            _solve(pycolmap, model, free, set(), threads)
        if central:
            trial = pycolmap.Reconstruction(model)
            _solve(pycolmap, trial, free, central, threads)
            found = _uncertainty(pycolmap, trial, free, central, threads)
            trusted = {c for c in central if c in found and _believable(found[c])}
            if trusted == central:
                _take(model, trial)
                return found
        _solve(pycolmap, model, free, trusted, threads)
        return _uncertainty(pycolmap, model, free, trusted, threads)

    with stage(progress, "adjustment"), quiet(pycolmap):
        found = run_interruptible(pycolmap, work, seed=seed, what="adjusting the model")
    model.update_point_3d_errors()
    return found


def _believable(lens: LensUncertainty) -> bool:
    return lens.centre <= MAX_CENTRE_STD and lens.centre_shift <= MAX_CENTRE_SHIFT


def _take(model: Any, other: Any) -> None:
    """Copy cameras, poses and points of ``other`` (same ids) into ``model``."""
    for camera_id in model.cameras:
        model.camera(camera_id).params = other.camera(camera_id).params
    for frame_id in model.reg_frame_ids():
        model.frame(frame_id).rig_from_world = other.frame(frame_id).rig_from_world
    for point_id in model.point3D_ids():
        model.point3D(point_id).xyz = other.point3D(point_id).xyz


def _options(pycolmap: ModuleType, centre: bool, threads: int) -> Any:
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.refine_principal_point = centre
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.loss_function_scale = LOSS_SCALE_PX
    options.ceres.use_gpu = False
    options.ceres.solver_options.num_threads = threads
    options.ceres.solver_options.function_tolerance = FUNCTION_TOLERANCE
    return options


def _adjuster(pycolmap: ModuleType, model: Any, free: Sequence[int], central: set[int], threads: int) -> Any:
    config = pycolmap.BundleAdjustmentConfig()
    for colmap_id in model.reg_image_ids():
        config.add_image(colmap_id)
    for camera_id in {model.image(i).camera_id for i in model.reg_image_ids()}:
        if camera_id not in free or (central and camera_id not in central):
            config.set_constant_cam_intrinsics(camera_id)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    return pycolmap.create_default_ceres_bundle_adjuster(
        _options(pycolmap, bool(central), threads), config, model
    )


def _solve(pycolmap: ModuleType, model: Any, free: Sequence[int], central: set[int], threads: int) -> None:
    _adjuster(pycolmap, model, free, central, threads).solve()


def _uncertainty(
    pycolmap: ModuleType, model: Any, free: Sequence[int], central: set[int], threads: int
) -> dict[int, LensUncertainty]:
    """Standard deviations from the inverse Hessian of the robust problem; residuals count as one pixel."""
    if not free or model.num_reg_images() > COVARIANCE_VIEWS:
        return {}
    adjuster = _adjuster(pycolmap, model, free, central, threads)
    options = pycolmap.BACovarianceOptions()
    covariance = pycolmap.estimate_ba_covariance(options, model, adjuster)
    if covariance is None:
        return {}
    found = {}
    for camera_id in free:
        camera = model.camera(camera_id)
        matrix = covariance.get_other_params_cov(camera.params)
        if matrix is None:
            continue
        deviation = np.sqrt(np.maximum(np.diag(np.asarray(matrix)), 0.0))
        longer = float(max(camera.width, camera.height))
        middle = np.array([camera.width / 2.0, camera.height / 2.0])
        centre = np.array([camera.principal_point_x, camera.principal_point_y])
        found[camera_id] = LensUncertainty(
            focal=float(deviation[0] / camera.mean_focal_length()),
            centre=float(deviation[1:3].max() / longer) if camera_id in central else 0.0,
            centre_shift=float(np.linalg.norm(centre - middle) / longer),
        )
    return found
