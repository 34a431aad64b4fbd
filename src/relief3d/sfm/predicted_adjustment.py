"""Bundle adjustment of predicted cameras through pycolmap, and the way back to the predicted frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Camera, View
from relief3d.geometry.rotations import matrix_from_svd9d, rotation_angle
from relief3d.geometry.transforms import make_rigid
from relief3d.sfm.database import image_id, view_file_name
from relief3d.sfm.lenses import Lens, camera_from_colmap, group_lenses
from relief3d.sfm.predicted_tracks import Observations
from relief3d.sfm.refine import COVARIANCE_VIEWS

SQUARE_PIXELS = 0.05
"""Predicted focal lengths of x and y that differ by less belong to square pixels."""

SAME_CAMERA_SPREAD = 1.5
"""Largest over smallest predicted focal length of views of one size taken by one lens; networks err by 20 %."""

RELOCATE_SHARE = 0.3
"""A view that sees fewer of its points within the threshold is placed anew from the other views' points."""

RELOCATE_INLIERS = 20
ROUND_ITERATIONS = 25
FINAL_ITERATIONS = 100
REWEIGHTINGS = 20

Sharing = Literal["auto", "size", "none"]


@dataclass(frozen=True)
class Freedom:
    """What an adjustment may change.

    Attributes:
        focal, centre, lens: focal length, principal point, radial distortion of lenses not given.
        poses: camera poses; those of ``fixed`` views never.
        fixed: views whose pose is given.
    """

    focal: bool
    centre: bool
    lens: bool
    poses: bool
    fixed: frozenset[int]


def lenses_of(views: Sequence[View], sharing: Sharing, radial: bool) -> list[Lens]:
    """Lenses of posed views: given intrinsics stay fixed, predicted ones are shared as ``sharing`` says.

    A shared lens starts from the median of the predictions. ``"auto"`` shares among views of one
    size unless the predicted focal lengths differ by more than ``SAME_CAMERA_SPREAD``; ``"size"`` always does.
    """
    found: list[Lens] = []
    groups: dict[tuple[int, int], list[int]] = {}
    for index, view in enumerate(views):
        camera = view.camera
        distorted = camera.distortion is not None and not camera.distortion.is_identity
        if camera.K_source == "given" or distorted:
            alone = group_lenses([view if camera.K_source == "given" else _estimated(view)])[0]
            found.append(replace(alone, views=(index,)))
        else:
            groups.setdefault((camera.width, camera.height), []).append(index)
    for members in groups.values():
        focal = torch.tensor([_focal(views[i].camera) for i in members])
        together = sharing == "size" or (
            sharing == "auto" and float(focal.max() / focal.min()) <= SAME_CAMERA_SPREAD
        )
        parts = [members] if together else [[i] for i in members]
        found += [_shared(views, part, radial) for part in parts]
    return found


def shared_focal_spread(views: Sequence[View]) -> float:
    """Largest over smallest predicted focal length among views that ``"auto"`` lets share a lens."""
    spread = 1.0
    for lens in lenses_of(views, "auto", False):
        focal = [_focal(views[i].camera) for i in lens.views]
        spread = max(spread, max(focal) / min(focal))
    return spread


def _estimated(view: View) -> View:
    return view.replace(camera=view.camera.replace(K_source="estimated"))


def _focal(camera: Camera) -> float:
    assert camera.K is not None
    return float(camera.K[0, 0] + camera.K[1, 1]) / 2.0


def _shared(views: Sequence[View], members: Sequence[int], radial: bool) -> Lens:
    rows = []
    for i in members:
        K = views[i].camera.K
        assert K is not None
        rows.append(torch.stack([K[0, 0], K[1, 1], K[0, 2], K[1, 2]]))
    fx, fy, cx, cy = (float(v) for v in torch.stack(rows).quantile(0.5, dim=0))
    first = views[members[0]].camera
    model, params = "PINHOLE", (fx, fy, cx, cy)
    if radial:
        model, params = "SIMPLE_RADIAL", ((fx + fy) / 2.0, cx, cy, 0.0)
    elif abs(fx / fy - 1.0) < SQUARE_PIXELS:
        return Lens(
            "SIMPLE_PINHOLE",
            first.width,
            first.height,
            ((fx + fy) / 2.0, cx, cy),
            False,
            True,
            tuple(members),
        )
    return Lens(model, first.width, first.height, params, False, True, tuple(members))


def cameras_with(cameras: Sequence[Camera], lenses: Sequence[Lens], pycolmap: ModuleType) -> list[Camera]:
    """The cameras with the intrinsics of their lenses; fixed lenses and poses stay untouched."""
    out = list(cameras)
    for number, lens in enumerate(lenses):
        if lens.fixed:
            continue
        plain = camera_from_colmap(lens.to_colmap(pycolmap, number + 1), "estimated")
        for index in lens.views:
            out[index] = plain.replace(world_from_cam=cameras[index].world_from_cam)
    return out


def adjust(
    pycolmap: ModuleType,
    cameras: Sequence[Camera],
    lenses: Sequence[Lens],
    observations: Observations,
    xyz: Tensor,
    freedom: Freedom,
    *,
    loss_px: float,
    final: bool,
    threads: int = 1,
) -> tuple[list[Camera], list[Lens], dict[int, float]]:
    """One robust bundle adjustment (Cauchy loss) of the cameras that see ``observations``.

    Args:
        pycolmap: the module.
        cameras: all posed; their intrinsics are those of ``lenses``.
        lenses: partition of the views.
        observations: sightings used; tracks with fewer than two are left out.
        xyz: (T, 3) start of the points.
        freedom: what may change.
        loss_px: residual at which the loss turns over.
        final: iterate until convergence and estimate how certain the focal lengths are.
        threads: of the solver.

    Returns:
        Cameras, lenses, and the relative standard deviation of each adjusted lens's focal length (by its number;
        only when ``final`` and for at most ``COVARIANCE_VIEWS`` views, as in :mod:`relief3d.sfm.refine`).
    """
    model = _model(pycolmap, cameras, lenses, observations, xyz)
    config = pycolmap.BundleAdjustmentConfig()
    used = sorted(model.reg_image_ids())
    used = [i for i in used if model.image(i).num_points3D > 0]
    for i in used:
        config.add_image(i)
        if (i - 1) in freedom.fixed or not freedom.poses:
            config.set_constant_rig_from_world_pose(model.image(i).frame_id)
    open_lenses = freedom.focal or freedom.centre or freedom.lens
    free = []
    for number in {model.image(i).camera_id - 1 for i in used}:
        if lenses[number].fixed or not open_lenses:
            config.set_constant_cam_intrinsics(number + 1)
        else:
            free.append(number)
    if freedom.poses and sum((i - 1) in freedom.fixed for i in used) < 2:
        config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.refine_focal_length = freedom.focal
    options.refine_principal_point = freedom.centre
    options.refine_extra_params = freedom.lens
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.loss_function_scale = loss_px
    options.ceres.use_gpu = False
    options.ceres.solver_options.num_threads = threads
    options.ceres.solver_options.max_num_iterations = FINAL_ITERATIONS if final else ROUND_ITERATIONS
    options.ceres.solver_options.function_tolerance = 1e-6
    adjuster = pycolmap.create_default_ceres_bundle_adjuster(options, config, model)
    adjuster.solve()
    judged = freedom.focal and final and len(used) <= COVARIANCE_VIEWS
    deviation = _focal_deviation(pycolmap, model, adjuster, free) if judged else {}
    moved = [
        replace(lens, params=tuple(float(p) for p in model.camera(k + 1).params)) if k in free else lens
        for k, lens in enumerate(lenses)
    ]
    out = list(cameras_with(cameras, moved, pycolmap))
    for i in used:
        if (i - 1) in freedom.fixed or not freedom.poses:
            continue
        matrix = torch.from_numpy(np.array(model.image(i).cam_from_world().inverse().matrix()))
        out[i - 1] = out[i - 1].replace(world_from_cam=make_rigid(matrix[:, :3], matrix[:, 3]))
    return out, moved, deviation


def _model(
    pycolmap: ModuleType,
    cameras: Sequence[Camera],
    lenses: Sequence[Lens],
    observations: Observations,
    xyz: Tensor,
) -> Any:
    """COLMAP model of the views and of every track with at least two sightings and a finite point."""
    model = pycolmap.Reconstruction()
    lens_of = {index: k for k, lens in enumerate(lenses) for index in lens.views}
    for k, lens in enumerate(lenses):
        model.add_camera_with_trivial_rig(lens.to_colmap(pycolmap, k + 1))
    good = (observations.lengths() >= 2) & torch.isfinite(xyz).all(-1)
    kept = observations.keep(good[observations.track])
    slot = torch.zeros(len(kept), dtype=torch.int64)
    for index, camera in enumerate(cameras):
        mine = kept.view == index
        slot[mine] = torch.arange(int(mine.sum()))
        image = pycolmap.Image(
            name=view_file_name(index), camera_id=lens_of[index] + 1, image_id=image_id(index)
        )
        image.points2D = [pycolmap.Point2D(row) for row in kept.xy[mine].numpy()]
        pose = camera.cam_from_world
        assert pose is not None
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.asarray(pose[:3].numpy())))
    views, slots = kept.view.tolist(), slot.tolist()
    ends = torch.cumsum(kept.lengths(), 0).tolist()
    points = xyz.numpy()
    begin = 0
    for track, end in enumerate(ends):
        if end > begin:
            parts = [pycolmap.TrackElement(views[m] + 1, slots[m]) for m in range(begin, end)]
            model.add_point3D(points[track], pycolmap.Track(parts))
        begin = end
    return model


def _focal_deviation(
    pycolmap: ModuleType, model: Any, adjuster: Any, free: Sequence[int]
) -> dict[int, float]:
    """Relative standard deviation of focal lengths; residuals count as one pixel."""
    covariance = pycolmap.estimate_ba_covariance(pycolmap.BACovarianceOptions(), model, adjuster)
    if covariance is None:
        return {k: float("inf") for k in free}
    found = {}
    for k in free:
        camera = model.camera(k + 1)
        matrix = covariance.get_other_params_cov(camera.params)
        if matrix is not None:
            spread = float(np.asarray(matrix)[0, 0])
            found[k] = float(np.sqrt(max(spread, 0.0)) / camera.mean_focal_length())
    return found


def relocate(
    pycolmap: ModuleType,
    camera: Camera,
    lens: Lens,
    xy: Tensor,
    xyz: Tensor,
    *,
    max_error_px: float,
    seed: int,
) -> Camera | None:
    """The camera at the pose that most points agree with (RANSAC), or None when too few do.

    Args:
        pycolmap: the module.
        camera: with intrinsics.
        lens: the same intrinsics as COLMAP's.
        xy: (M, 2) sightings.
        xyz: (M, 3) their points, from other views.
        max_error_px: of an inlier.
        seed: of RANSAC.
    """
    if len(xy) < RELOCATE_INLIERS:
        return None
    options = pycolmap.AbsolutePoseEstimationOptions()
    options.ransac.max_error = max_error_px
    options.ransac.random_seed = seed
    fit = pycolmap.estimate_and_refine_absolute_pose(
        xy.numpy(), xyz.numpy(), lens.to_colmap(pycolmap, 1), options
    )
    if fit is None or fit["num_inliers"] < max(RELOCATE_INLIERS, 0.25 * len(xy)):
        return None
    matrix = torch.from_numpy(np.array(fit["cam_from_world"].inverse().matrix()))
    return camera.replace(world_from_cam=make_rigid(matrix[:, :3], matrix[:, 3]))


def frame_alignment(source: Tensor, target: Tensor) -> tuple[float, Tensor, Tensor]:
    """Similarity that lays poses onto others robustly: rotation from the orientations, the rest from the centres.

    Orientations determine the rotation also where the centres lie on a line. Reweighted so that a minority of
    views with wrong target poses has no say (Cauchy weights of angle and distance over their medians).

    Args:
        source: (V, 4, 4) world_from_cam to move.
        target: (V, 4, 4) world_from_cam to reach.

    Returns:
        scale (1 where the centres do not tell), rotation (3, 3), translation (3,).
    """
    cs, ct = source[:, :3, 3], target[:, :3, 3]
    turns = target[:, :3, :3] @ source[:, :3, :3].mT
    rotation = turns[rotation_angle(turns[:, None], turns[None]).median(dim=1).values.argmin()]
    w = torch.ones(len(source), dtype=torch.float64)
    for _ in range(REWEIGHTINGS):
        w = _cauchy(rotation_angle(turns, rotation.expand_as(turns)))
        rotation = matrix_from_svd9d((w[:, None, None] * turns).sum(0))
    turned = cs @ rotation.mT
    factor, translation = 1.0, torch.zeros(3, dtype=torch.float64)
    for step in range(REWEIGHTINGS):
        if step:
            w = _cauchy((factor * turned + translation - ct).norm(dim=1))
        share = (w / w.sum())[:, None]
        a, b = turned - (share * turned).sum(0), ct - (share * ct).sum(0)
        energy = float((share * a.square()).sum())
        ratio = float((share * a * b).sum()) / energy if energy > 0 else 1.0
        factor = ratio if ratio > 0 else factor
        translation = (share * (ct - factor * turned)).sum(0)
    return factor, rotation, translation


def _cauchy(residual: Tensor) -> Tensor:
    middle = residual.median().clamp_min(1e-12)
    return 1.0 / (1.0 + (residual / (2.0 * middle)).square())


def move_cameras(
    cameras: Sequence[Camera], scale: float, rotation: Tensor, translation: Tensor
) -> list[Camera]:
    """The cameras in the frame x -> scale * rotation x + translation."""
    out = []
    for camera in cameras:
        pose = camera.world_from_cam
        assert pose is not None
        centre = scale * rotation @ pose[:3, 3] + translation
        out.append(camera.replace(world_from_cam=make_rigid(rotation @ pose[:3, :3], centre)))
    return out
