"""Predictions expressed in the frame, the scale and with the cameras that are known.

Three kinds of knowledge, each perhaps for some views only; a batch is treated set by set.

*Intrinsics.* The z-depth is kept and the rays become those of the given K, so lateral coordinates change by the ratio
of the focal lengths. Depth does not follow the focal length: whether it should depends on how the network erred. For
cameras that only translate, a wrong focal length f' and depth stretched by f' / f explain the same pictures, but where
depth and field of view come from separate heads nothing ties them, and one common factor cannot be told from the scale,
which given depth determines anyway. With poses but without depth such a factor stays in, so a large change of the focal
length is a warning.

*Poses.* Orientations and centres together determine the similarity (:func:`pose_similarity`): orientations alone make
the rotation well posed, so one camera, cameras in one place and cameras on a line are no special cases; what such sets
leave open is at most the scale. Then the given poses replace the predicted ones exactly, and the other views move
along.

*Depth.* One scale per set: the robust weighted median of the ratios of all known pixels, never one per view.

Where poses and depth both tell the scale, each sets what it measures: depth the depth (dense, and without need of a
long baseline), the centres that of the centres; a network's two scales may differ by some per cent and the given
geometry is consistent. When they differ by more than ``UNIT_CONFLICT`` the given depth and poses are hardly in one
unit: the poses win, since the frame is theirs, and nothing is called metric.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from relief3d.core.contract import Prediction
from relief3d.core.errors import InputError
from relief3d.geometry.alignment import scale_robust
from relief3d.geometry.projection import depth_to_points
from relief3d.geometry.rotations import rotation_angle
from relief3d.geometry.transforms import make_rigid, make_similarity, split_similarity, transform_points
from relief3d.models.multiview.interface import Known
from relief3d.models.multiview.known_inputs import Given, check_known
from relief3d.models.multiview.pose_similarity import PoseFit, pose_similarity

UNIT_CONFLICT = 1.5
"""Scales from depth and from poses that differ by more than this factor belong to different units."""

DISAGREEMENT = 1.1
"""Scales, or focal lengths, that differ by more than this factor are a warning."""

MOST_PIXELS = 1 << 20
"""Pixels per set that take part in the depth scale, evenly spread."""

ScaleSource = Literal["depth", "poses", "none"]


@dataclass(frozen=True)
class Residuals:
    """How far a prediction is from what is known; None where nothing of the kind is known.

    Attributes:
        rotation_deg: median angle between predicted and given orientations.
        centre: median distance between predicted and given centres over the length of the path through the given
            ones (in view order); None also where that is 0.
        depth: median relative error over the pixels with known depth.
    """

    rotation_deg: float | None = None
    centre: float | None = None
    depth: float | None = None


@dataclass(frozen=True)
class SetReport:
    """What was done to one set of views.

    Attributes:
        scale: by which depth was multiplied.
        scale_source: what told it; "none" leaves the network's.
        pose_scale: by which centres were multiplied.
        given_from_predicted: rows of the (4, 4) similarity that moved the views of unknown pose.
        views_K, views_pose, views_depth: how many views had each.
        poses_used: of the views with a pose, how many agreed with the similarity.
        outliers: the views that did not.
        focal_change: median of given over predicted focal length, None without given intrinsics.
        depth_over_poses: scale told by depth over that told by poses, None unless both tell it.
        before: of the prediction as it came.
        after: of the aligned prediction, before the given poses replace the predicted ones.
        warnings: sentences for the user.
    """

    scale: float
    scale_source: ScaleSource
    pose_scale: float
    given_from_predicted: tuple[tuple[float, ...], ...]
    views_K: int
    views_pose: int
    views_depth: int
    poses_used: int
    outliers: tuple[int, ...]
    focal_change: float | None
    depth_over_poses: float | None
    before: Residuals
    after: Residuals
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class KnownReport:
    """One report per set of the batch."""

    sets: tuple[SetReport, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings, each once."""
        return tuple(dict.fromkeys(w for s in self.sets for w in s.warnings))

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


@dataclass(frozen=True)
class _Moves:
    """How one set moves: depth times ``scale``, poses by ``similarity``."""

    scale: float
    similarity: Tensor
    source: ScaleSource
    conflict: bool


def align_to_known(
    prediction: Prediction, known: Known, *, with_scale: bool = True
) -> tuple[Prediction, KnownReport]:
    """Express a prediction in the frame and scale of what is known; see the module's description.

    Args:
        prediction: with any of depth, points, poses and intrinsics.
        known: any subset; views are told apart by ``has_K`` and ``has_pose``, pixels by depth > 0, and matrices that
            are not finite count as unknown.
        with_scale: False keeps the lengths of a prediction that is metric already: frames are aligned rigidly, and a
            scale that depth or poses ask for is only reported.

    Returns:
        The prediction, in its own type and on its own device: depth, points, poses, intrinsics, normals and the metric
        flag changed as needed, everything else as it was; and what was done. ``metric`` is set where the given lengths
        are metres and told the scale of every set; otherwise ``metric_scale`` keeps the way back to metres where there
        was one.

    Raises:
        InputError: shapes that do not fit the prediction, poses that are not rigid, focal lengths that are not
            positive, or a prediction without poses where the poses of some views only are given.
    """
    given = check_known(prediction, known)
    poses = None if prediction.world_from_cam is None else prediction.world_from_cam.detach().cpu().double()
    if poses is None and bool(given.has_pose.any()) and not bool(given.has_pose.all()):
        raise InputError(
            "this prediction has no poses, and those of only some views are known",
            remedy="give the pose of every view or of none",
        )
    depth = prediction.depth
    if depth is None and prediction.cam_points is not None:
        depth = prediction.cam_points[..., 2]
    moves, reports = [], []
    for index in range(given.has_K.shape[0]):
        confidence = None if prediction.depth_confidence is None else prediction.depth_confidence[index]
        move, report = _one_set(
            index, given, poses, None if depth is None else depth[index], confidence, prediction.K, with_scale
        )
        moves.append(move)
        reports.append(report)
    return _moved(prediction, given, poses, moves, with_scale), KnownReport(tuple(reports))


def _one_set(
    index: int,
    given: Given,
    poses: Tensor | None,
    depth: Tensor | None,
    confidence: Tensor | None,
    K: Tensor | None,
    with_scale: bool,
) -> tuple[_Moves, SetReport]:
    """Scale and similarity of one set, and its report."""
    warnings: list[str] = []
    has_pose, known_depth = given.has_pose[index], None if given.depth is None else given.depth[index]
    by_depth, median_depth = None, None
    if depth is not None:
        median_depth = _typical(depth)
        if known_depth is not None and bool(given.has_depth[index].any()):
            by_depth = _depth_scale(depth, known_depth, confidence)
            if by_depth is None:
                warnings.append("the given depth and the prediction have no pixel in common")
    fit: PoseFit | None = None
    if poses is not None and bool(has_pose.any()):
        fit = pose_similarity(
            poses[index][has_pose],
            given.poses[index][has_pose],
            depth=median_depth,
            scale=None if with_scale else 1.0,
            fallback=by_depth,
        )
        warnings.extend(fit.warnings)
    by_poses = fit.scale_from_centres if fit is not None else None
    ratio = by_depth / by_poses if by_depth is not None and by_poses is not None else None
    scale, source = _choose(by_depth, by_poses, ratio, with_scale, warnings)
    if fit is not None:
        similarity = fit.similarity
    else:
        wide = torch.eye(3, dtype=torch.float64)
        similarity = make_similarity(wide.new_tensor(scale), wide, wide.new_zeros(3))
    focal = _focal_change(K, given, index)
    if focal is not None and max(focal, 1 / focal) > DISAGREEMENT and by_depth is None:
        warnings.append(
            f"the given focal lengths are {focal:.2f} times the predicted ones; without known depth the predicted "
            "depth may be wrong by about that factor relative to the camera path"
        )
    numbers = torch.nonzero(has_pose)[:, 0].tolist()
    used = numbers if fit is None else [n for n, good in zip(numbers, fit.inliers.tolist()) if good]
    before, after = _residuals(index, given, poses, depth, similarity, scale)
    report = SetReport(
        scale=scale,
        scale_source=source,
        pose_scale=float(split_similarity(similarity)[0]),
        given_from_predicted=tuple(tuple(row) for row in similarity.tolist()),
        views_K=int(given.has_K[index].sum()),
        views_pose=len(numbers),
        views_depth=int(given.has_depth[index].sum()),
        poses_used=len(used),
        outliers=tuple(n for n in numbers if n not in used),
        focal_change=focal,
        depth_over_poses=ratio,
        before=before,
        after=after,
        warnings=tuple(warnings),
    )
    conflict = ratio is not None and max(ratio, 1 / ratio) > UNIT_CONFLICT
    return _Moves(scale, similarity, source, conflict), report


def _choose(
    by_depth: float | None,
    by_poses: float | None,
    ratio: float | None,
    with_scale: bool,
    warnings: list[str],
) -> tuple[float, ScaleSource]:
    """The scale of the depth and what told it; see the module's description."""
    if not with_scale:
        asked = by_depth if by_depth is not None else by_poses
        if asked is not None and max(asked, 1 / asked) > DISAGREEMENT:
            warnings.append(
                f"the given geometry asks for {asked:.3g} times the predicted lengths, which were kept as told"
            )
        return 1.0, "none"
    if ratio is not None and max(ratio, 1 / ratio) > UNIT_CONFLICT:
        warnings.append(
            f"the given depth asks for {ratio:.3g} times the scale of the given poses: they are hardly in one unit; "
            "the scale of the poses was taken"
        )
        assert by_poses is not None
        return by_poses, "poses"
    if ratio is not None and max(ratio, 1 / ratio) > DISAGREEMENT:
        warnings.append(
            f"the given depth asks for {ratio:.3g} times the scale of the given poses; depth was scaled by the former"
        )
    if by_depth is not None:
        return by_depth, "depth"
    return (1.0, "none") if by_poses is None else (by_poses, "poses")


def _moved(
    prediction: Prediction, given: Given, poses: Tensor | None, moves: list[_Moves], with_scale: bool
) -> Prediction:
    """The prediction with everything in its place."""
    like = next(
        t
        for t in (prediction.depth, prediction.cam_points, prediction.world_points, prediction.world_from_cam)
        if t is not None
    )
    scale = torch.tensor([m.scale for m in moves], dtype=torch.float64)
    factor = scale.to(like.device, like.dtype)
    depth = None if prediction.depth is None else prediction.depth * factor[:, None, None, None]
    new_poses = _new_poses(given, poses, moves)
    new_K = _new_K(prediction, given)
    local = prediction.cam_points
    if local is None and depth is not None and new_K is not None:
        local = depth_to_points(depth, new_K)
    elif local is not None:
        local = local * factor[:, None, None, None, None]
        if bool(given.has_K.any()):
            rays = depth_to_points(local[..., 2], given.K.to(local))
            local = torch.where(given.has_K.to(local.device)[..., None, None, None], rays, local)
    world = prediction.world_points
    if local is not None and new_poses is not None:
        world = transform_points(new_poses.to(local), local.flatten(2, 3)).reshape(local.shape)
    elif world is not None:
        similarity = torch.stack([m.similarity for m in moves]).to(world)
        world = transform_points(similarity, world.flatten(1, 3)).reshape(world.shape)
    normals = prediction.normals
    if normals is not None and prediction.K is not None and bool(given.has_K.any()):
        normals = _new_normals(normals, prediction.K, given)
    metric, metric_scale = _metres(prediction, given, moves, scale, with_scale)
    return replace(
        prediction,
        depth=depth,
        cam_points=local if prediction.cam_points is not None else None,
        world_points=world,
        world_from_cam=None if new_poses is None else new_poses.to(_or(prediction.world_from_cam, like)),
        K=None if new_K is None else new_K.to(_or(prediction.K, like)),
        normals=normals,
        metric=metric,
        metric_scale=metric_scale,
    )


def _or(own: Tensor | None, like: Tensor) -> Tensor:
    return like if own is None else own


def _new_poses(given: Given, poses: Tensor | None, moves: list[_Moves]) -> Tensor | None:
    if poses is None:
        return given.poses if bool(given.has_pose.all()) else None
    moved = torch.stack([_move_poses(m.similarity, p) for m, p in zip(moves, poses)])
    return torch.where(given.has_pose[..., None, None], given.poses, moved)


def _move_poses(similarity: Tensor, poses: Tensor) -> Tensor:
    """World-from-camera (N, 4, 4) in the new world; the scale does not enter the rotations."""
    _, rotation, _ = split_similarity(similarity)
    return make_rigid(rotation @ poses[:, :3, :3], transform_points(similarity, poses[:, :3, 3]))


def _new_K(prediction: Prediction, given: Given) -> Tensor | None:
    if prediction.K is None:
        return given.K if bool(given.has_K.all()) else None
    K = prediction.K.detach().cpu().double()
    return torch.where(given.has_K[..., None, None], given.K, K)


def _new_normals(normals: Tensor, K: Tensor, given: Given) -> Tensor:
    """Rays change by the linear map inv(K given) K predicted, so normals by its inverse transpose."""
    old = K.detach().cpu().double()
    change = torch.linalg.solve(given.K, old)
    eye = torch.eye(3, dtype=torch.float64)
    change = torch.where(given.has_K[..., None, None], change, eye)
    back = torch.linalg.inv(change).to(normals)
    turned = torch.einsum("bnji,bnhwj->bnhwi", back, normals)
    turned = torch.nn.functional.normalize(turned, dim=-1)
    return torch.where(given.has_K.to(normals.device)[..., None, None, None], turned, normals)


def _metres(
    prediction: Prediction, given: Given, moves: list[_Moves], scale: Tensor, with_scale: bool
) -> tuple[bool, Tensor | None]:
    """Whether the result is in metres, and the factor to metres where it is not but one is known."""
    told = torch.tensor([m.source != "none" for m in moves])
    if not with_scale or not bool(told.any()):
        return prediction.metric, prediction.metric_scale
    metres = told & given.metric & torch.tensor([not m.conflict for m in moves])
    if bool(metres.all()):
        return True, None
    back = prediction.metric_scale
    if back is None and prediction.metric:
        back = torch.ones(len(moves), dtype=torch.float32)
    if back is None:
        return False, None
    back = back / scale.to(back.device, back.dtype)
    return False, torch.where(metres.to(back.device), torch.ones_like(back), back)


def _thin(values: Tensor, count: int) -> Tensor:
    """About ``count`` numbers, evenly spread."""
    flat = values.detach().flatten()
    return flat[:: max(1, -(-flat.numel() // count))]


def _typical(depth: Tensor) -> float | None:
    some = _thin(depth, MOST_PIXELS)
    some = some[torch.isfinite(some) & (some > 0)]
    return float(some.median()) if some.numel() else None


def _depth_scale(depth: Tensor, known: Tensor, confidence: Tensor | None) -> float | None:
    """Known over predicted depth of one set, weighted with the confidence."""
    at = torch.nonzero(known.flatten() > 0)[:, 0]
    at = at[:: max(1, -(-at.numel() // MOST_PIXELS))]
    weight = None
    if confidence is not None:
        weight = confidence.detach().flatten()[at.to(confidence.device)].cpu().double().nan_to_num(0.0)
    pred, target = (t.detach().flatten()[at.to(t.device)].cpu().double() for t in (depth, known))
    scale = float(scale_robust(pred, target, weight))
    return scale if scale > 0 and scale < float("inf") else None


def _focal_change(K: Tensor | None, given: Given, index: int) -> float | None:
    has = given.has_K[index]
    if K is None or not bool(has.any()):
        return None
    old = K[index].detach().cpu().double()[has]
    new = given.K[index][has]
    ratio = torch.stack([new[:, 0, 0] / old[:, 0, 0], new[:, 1, 1] / old[:, 1, 1]])
    return float(ratio.log().mean(0).median().exp())


def _residuals(
    index: int,
    given: Given,
    poses: Tensor | None,
    depth: Tensor | None,
    similarity: Tensor,
    scale: float,
) -> tuple[Residuals, Residuals]:
    """Of one set, as predicted and as aligned."""
    has = given.has_pose[index]
    turns: list[float | None] = [None, None]
    misses: list[float | None] = [None, None]
    depths: list[float | None] = [None, None]
    if poses is not None and bool(has.any()):
        target = given.poses[index][has]
        path = float((target[1:, :3, 3] - target[:-1, :3, 3]).norm(dim=-1).sum())
        for i, own in enumerate((poses[index][has], _move_poses(similarity, poses[index][has]))):
            angle = rotation_angle(own[:, :3, :3], target[:, :3, :3])
            turns[i] = float(torch.rad2deg(angle).median())
            distance = float((own[:, :3, 3] - target[:, :3, 3]).norm(dim=-1).median())
            misses[i] = distance / path if path > 0 else None
    if depth is not None and given.depth is not None and bool(given.has_depth[index].any()):
        known = given.depth[index]
        at = torch.nonzero(known.flatten() > 0)[:, 0]
        at = at[:: max(1, -(-at.numel() // MOST_PIXELS))]
        target, pred = (t.detach().flatten()[at.to(t.device)].cpu().double() for t in (known, depth))
        for i, factor in enumerate((1.0, scale)):
            depths[i] = float((factor * pred / target - 1).abs().median())
    before, after = (Residuals(*parts) for parts in zip(turns, misses, depths))
    return before, after
