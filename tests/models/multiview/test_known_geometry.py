"""Known cameras and depth: predictions come back exactly, whatever subset is known."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from relief3d.core.contract import Prediction
from relief3d.core.errors import InputError
from relief3d.geometry.alignment import umeyama
from relief3d.geometry.projection import depth_to_points, intrinsics, pixel_rays
from relief3d.geometry.rotations import matrix_from_axis_angle, matrix_from_svd9d, rotation_angle
from relief3d.geometry.transforms import (
    invert_rigid,
    look_at,
    make_rigid,
    make_similarity,
    split_similarity,
    transform_points,
)
from relief3d.models.multiview.interface import Known
from relief3d.models.multiview.known_geometry import align_to_known
from relief3d.models.multiview.pose_similarity import pose_similarity

SIZE = (18, 24)
NORMAL, HEIGHT = torch.tensor([0.2, -0.1, 1.0]).double(), 4.0
"""The procedural scene is the plane NORMAL . x = HEIGHT."""


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arc(count: int, seed: int = 0) -> torch.Tensor:
    """Cameras that look at the plane from an uneven arc."""
    eye = torch.stack([torch.linspace(-2, 2, count), torch.zeros(count), torch.zeros(count)], -1).double()
    eye = eye + 0.2 * normal(count, 3, seed=seed)
    up = torch.tensor([0.0, -1.0, 0.0]).double()
    return look_at(eye, torch.tensor([0.3, 0.2, 4.0]).double() + 0.5 * normal(count, 3, seed=seed + 1), up)


def plane_depth(K: torch.Tensor, poses: torch.Tensor) -> torch.Tensor:
    """Exact z-depth of the plane; (..., H, W)."""
    rays = pixel_rays(K, *SIZE)
    turned = torch.einsum("...ij,...hwj->...hwi", poses[..., :3, :3], rays)
    return (HEIGHT - poses[..., :3, 3] @ NORMAL)[..., None, None] / (turned @ NORMAL)


def truth(count: int = 6, batch: int = 1, poses: torch.Tensor | None = None) -> Known:
    T = torch.stack([arc(count, 10 * i) for i in range(batch)]) if poses is None else poses[None]
    K = torch.stack([intrinsics(20.0 + i, 21.0 + i, 12.5, 8.5) for i in range(count)]).repeat(batch, 1, 1, 1)
    return Known(K, T, plane_depth(K, T))


SCALE, TURN, SHIFT = 0.37, torch.tensor([0.5, -1.1, 0.7]).double(), torch.tensor([3.0, -8.0, 1.5]).double()


def predicted(
    known: Known, dtype: torch.dtype = torch.float64, *, K: torch.Tensor | None = None
) -> Prediction:
    """The truth in another frame and scale, as a perfect network would say it."""
    assert known.world_from_cam is not None and known.depth is not None and known.K is not None
    R = matrix_from_axis_angle(TURN)
    T = known.world_from_cam
    poses = make_rigid(R @ T[..., :3, :3], SCALE * T[..., :3, 3] @ R.T + SHIFT)
    K = known.K if K is None else K
    depth = SCALE * known.depth
    local = depth_to_points(depth, K)
    world = transform_points(poses, local.flatten(2, 3)).reshape(local.shape)
    parts = {"depth": depth, "cam_points": local, "world_points": world, "world_from_cam": poses, "K": K}
    parts["depth_confidence"] = torch.ones_like(depth)
    return Prediction(**{k: v.to(dtype) for k, v in parts.items()})  # type: ignore[arg-type]


def off_plane(out: Prediction) -> float:
    assert out.world_points is not None
    return float(((out.world_points.double() @ NORMAL - HEIGHT) / HEIGHT).abs().max())


def flags(*values: int) -> torch.Tensor:
    return torch.tensor([values]).bool()


@pytest.mark.parametrize(
    "subset", ["K", "poses", "depth", "K poses", "K depth", "poses depth", "K poses depth"]
)
@pytest.mark.parametrize("partial", [False, True])
def test_every_subset_gives_back_the_truth(subset: str, partial: bool) -> None:
    full = truth()
    some = flags(0, 1, 1, 0, 1, 1) if partial else flags(1, 1, 1, 1, 1, 1)
    known = Known(
        full.K if "K" in subset else None,
        full.world_from_cam if "poses" in subset else None,
        torch.where(some[..., None, None], full.depth, 0.0) if "depth" in subset else None,
        has_K=some,
        has_pose=some,
        metric=True,
    )
    out, report = align_to_known(predicted(full), known)
    got = report.sets[0]
    assert out.depth is not None and out.world_from_cam is not None and out.K is not None
    told = subset != "K"
    assert out.metric == told and got.scale_source == (
        "depth" if "depth" in subset else "poses" if told else "none"
    )
    assert torch.allclose(out.depth, full.depth * (1.0 if told else SCALE), rtol=1e-9)
    assert torch.allclose(out.K, full.K)
    if "poses" in subset:
        assert torch.allclose(out.world_from_cam, full.world_from_cam, atol=1e-9)
        assert torch.equal(out.world_from_cam[some], full.world_from_cam[some]), (
            "given poses are kept exactly"
        )
        assert off_plane(out) < 1e-9
        assert got.before.rotation_deg is not None and got.before.rotation_deg > 10
        assert got.after.rotation_deg is not None and got.after.rotation_deg < 1e-5
        assert got.before.centre is not None and got.before.centre > 0.5
        assert got.after.centre is not None and got.after.centre < 1e-9
    if "depth" in subset:
        assert got.after.depth is not None and got.after.depth < 1e-9 < 0.5 < got.before.depth
    assert not report.warnings, report.warnings
    count = int(some.sum())
    assert (got.views_K, got.views_pose, got.views_depth) == tuple(
        count if name in subset else 0 for name in ("K", "poses", "depth")
    )
    json.dumps(report.as_dict())


def test_wrong_intrinsics_keep_the_depth_and_move_the_points_sideways() -> None:
    full = truth()
    wrong = full.K.clone()
    wrong[..., :2, :2] *= 1.2
    wrong[..., 0, 2] += 1
    some = flags(1, 1, 0, 1, 1, 1)
    prediction = predicted(full, K=wrong)
    out, report = align_to_known(prediction, Known(K=full.K, world_from_cam=full.world_from_cam, has_K=some))
    assert torch.allclose(out.depth, full.depth, rtol=1e-9) and torch.allclose(out.K[some], full.K[some])
    assert torch.equal(out.K[~some], wrong[~some])
    assert torch.allclose(out.cam_points[..., 2], out.depth)
    exact = depth_to_points(full.depth, full.K)
    assert torch.allclose(out.cam_points[some], exact[some], atol=1e-9)
    assert torch.allclose(out.cam_points[~some], prediction.cam_points[~some] / SCALE, atol=1e-9)
    assert report.sets[0].focal_change == pytest.approx(1 / 1.2)
    assert "focal lengths are 0.83 times" in report.warnings[0]


def test_depth_stretched_with_the_focal_length_needs_known_depth() -> None:
    """For cameras that only translate, f' = r f and z' = r z show the same pictures: the factor is the scale's."""
    T = torch.eye(4).double().repeat(5, 1, 1)
    T[:, :3, 3] = 0.6 * normal(5, 3, seed=4) * torch.tensor([1.0, 1.0, 0.2])
    full = truth(5, poses=T)
    r = 1.2
    stretched = full.K.clone()
    stretched[..., :2, :2] *= r
    moved = full.world_from_cam.clone()
    moved[..., 2, 3] *= r
    same = replace(full, K=stretched, world_from_cam=moved, depth=r * full.depth)
    prediction = predicted(same)
    out, report = align_to_known(prediction, full)
    assert (
        torch.allclose(out.depth, full.depth, rtol=1e-9)
        and off_plane(out) < 1e-9
        and report.sets[0].scale_source == "depth"
    )
    without, report = align_to_known(prediction, replace(full, depth=None))
    ratio = float((without.depth / full.depth).median())
    assert 1.1 < ratio < 1.3 and "focal lengths" in report.warnings[0]


def test_normals_turn_with_the_rays() -> None:
    full = truth()
    inward = -torch.einsum("bnji,j->bni", full.world_from_cam[..., :3, :3], NORMAL / NORMAL.norm())
    right = inward[:, :, None, None].expand(*full.depth.shape, 3)
    wrong_K = full.K.clone()
    wrong_K[..., 0, 0] *= 1.3
    wrong_K[..., 0, 2] += 6
    shear = torch.linalg.solve(wrong_K, full.K)
    wrong = torch.einsum("bnji,bnhwj->bnhwi", torch.linalg.inv(shear), right)
    prediction = replace(predicted(full, K=wrong_K), normals=torch.nn.functional.normalize(wrong, dim=-1))
    out, _ = align_to_known(prediction, Known(K=full.K))
    assert not torch.allclose(prediction.normals, right, atol=1e-2) and torch.allclose(
        out.normals, right, atol=1e-9
    )


def test_noise_is_averaged_and_wrong_poses_and_depths_do_not_count() -> None:
    full = truth(8)
    clean = predicted(full)
    noisy = clean.world_from_cam.clone()
    turns = matrix_from_axis_angle(0.01 * normal(8, 3, seed=5))
    noisy[0, :, :3, :3] = turns @ noisy[0, :, :3, :3]
    noisy[0, :, :3, 3] += 0.01 * SCALE * normal(8, 3, seed=6)
    bad = noisy.clone()
    bad[0, 3, :3, :3] = matrix_from_axis_angle(torch.tensor([0.0, 2.0, 0.0]).double()) @ bad[0, 3, :3, :3]
    bad[0, 3, :3, 3] += torch.tensor([30.0, 5.0, 0.0])
    some = flags(1, 1, 1, 1, 1, 1, 1, 0)
    for poses, outliers in ((noisy, ()), (bad, (3,))):
        known = Known(world_from_cam=full.world_from_cam, has_pose=some)
        out, report = align_to_known(replace(clean, world_from_cam=poses), known)
        got = report.sets[0]
        assert got.outliers == outliers and got.poses_used == 7 - len(outliers)
        assert got.scale == pytest.approx(1 / SCALE, rel=0.02)
        S = torch.tensor(got.given_from_predicted).double()
        R = matrix_from_axis_angle(TURN)
        assert float(rotation_angle(S[:3, :3] * SCALE, R.T)) < 0.015
        assert float((out.world_from_cam[0, 7, :3, 3] - full.world_from_cam[0, 7, :3, 3]).norm()) < 0.06
        assert got.after.centre < 0.02 and got.after.rotation_deg < 2
    assert "1 of 7 predicted poses disagree" in report.warnings[0]
    depth = full.depth.clone()
    depth[:, :2] *= 5
    out, report = align_to_known(clean, Known(depth=depth))
    assert report.sets[0].scale == pytest.approx(1 / SCALE, rel=1e-6), (
        "one scale per set, not moved by two wrong views"
    )
    assert torch.allclose(out.depth, full.depth, rtol=1e-6)


@pytest.mark.parametrize("wrong", range(8))
def test_any_single_wrong_camera_is_found(wrong: int) -> None:
    full = truth(8)
    poses = predicted(full).world_from_cam.clone()
    for change in ("turn", "shift", "far"):
        bad = poses.clone()
        if change == "turn":
            bad[0, wrong, :3, :3] = (
                matrix_from_axis_angle(torch.tensor([0.3, 0, 0]).double()) @ bad[0, wrong, :3, :3]
            )
        else:
            bad[0, wrong, 1, 3] += {"shift": 0.4, "far": 1e4}[change]
        fit = pose_similarity(bad[0], full.world_from_cam[0])
        assert (~fit.inliers).nonzero().flatten().tolist() == [wrong]
        assert fit.scale_from_centres == pytest.approx(1 / SCALE, rel=1e-6)


@pytest.mark.parametrize("kind", ["one", "same place", "line", "two"])
def test_degenerate_cameras_keep_the_rotation(kind: str) -> None:
    T = arc(6)
    if kind == "same place":
        T[:, :3, 3] = torch.tensor([1.0, 2.0, -1.0])
    if kind == "line":
        T[:, :3, 3] = torch.linspace(0, 1, 6).double()[:, None] * torch.tensor([1.0, 0.3, 0.2]).double()
    some = {"one": flags(0, 0, 1, 0, 0, 0), "two": flags(0, 0, 1, 0, 1, 0)}.get(kind, flags(1, 1, 1, 1, 1, 0))
    full = truth(6, poses=T)
    prediction = predicted(full)
    known = Known(world_from_cam=full.world_from_cam, has_pose=some, metric=True)
    out, report = align_to_known(prediction, known)
    got = report.sets[0]
    angle = rotation_angle(out.world_from_cam[..., :3, :3], full.world_from_cam[..., :3, :3])
    assert float(angle.max()) < 1e-7
    if kind in ("line", "two"):
        assert torch.allclose(out.world_from_cam, full.world_from_cam, atol=1e-9) and off_plane(out) < 1e-9
        assert out.metric and not report.warnings
        return
    assert got.scale_source == "none" and got.scale == 1 and not out.metric
    assert len(report.warnings) == 1 and "the network's" in report.warnings[0]
    # The centres move by a rigid motion that takes the known camera to its place.
    assert torch.equal(out.world_from_cam[some], full.world_from_cam[some])
    apart = (out.world_from_cam[0, 5, :3, 3] - out.world_from_cam[0, 2, :3, 3]).norm()
    true = (full.world_from_cam[0, 5, :3, 3] - full.world_from_cam[0, 2, :3, 3]).norm()
    assert torch.allclose(apart, SCALE * true)
    out, report = align_to_known(prediction, replace(known, depth=full.depth))
    assert torch.allclose(out.world_from_cam, full.world_from_cam, atol=1e-9) and off_plane(out) < 1e-9
    assert out.metric and not report.warnings, "depth tells what the poses do not"


def test_jitter_of_cameras_in_one_place_is_no_scale() -> None:
    full = truth(6)
    T = full.world_from_cam.clone()
    T[..., :3, 3] = torch.tensor([1.0, 2.0, -1.0])
    wobble = 1e-3 * normal(1, 6, 3, seed=8)
    prediction = predicted(replace(full, world_from_cam=T))
    prediction.world_from_cam[..., :3, 3] += wobble
    tripods = [T + 1e-3 * normal(1, 6, 4, 1, seed=seed) * torch.eye(4)[3] for seed in range(9, 21)]
    for tripod in tripods:
        tripod[..., 3, 3] = 1
    for given in (T, *tripods):
        _, report = align_to_known(prediction, Known(world_from_cam=given))
        assert report.sets[0].scale_source == "none" and "do not move apart" in report.warnings[0]
    close = T.clone()
    close[..., :3, 3] += wobble @ matrix_from_axis_angle(TURN) / SCALE
    _, report = align_to_known(prediction, Known(world_from_cam=close))
    assert report.sets[0].scale == pytest.approx(1 / SCALE) and "close together" in report.warnings[0]


def test_collinear_centres_with_noise_do_not_roll() -> None:
    T = arc(6)
    T[:, :3, 3] = torch.linspace(0, 4, 6).double()[:, None] * torch.tensor([1.0, 0.0, 0.0]).double()
    full = truth(6, poses=T)
    poses = predicted(full).world_from_cam[0].clone()
    poses[:, :3, 3] += 1e-4 * normal(6, 3, seed=2)
    fit = pose_similarity(poses, T)
    R = matrix_from_axis_angle(TURN)
    assert float(rotation_angle(fit.similarity[:3, :3] * SCALE, R.T)) < 1e-3


def test_depth_and_poses_that_disagree_are_reported() -> None:
    full = truth()
    prediction = predicted(full)
    _, report = align_to_known(prediction, full)
    assert report.sets[0].depth_over_poses == pytest.approx(1)
    out, report = align_to_known(prediction, replace(full, depth=1.2 * full.depth, metric=True))
    assert report.sets[0].depth_over_poses == pytest.approx(1.2) and "1.2 times" in report.warnings[0]
    assert torch.allclose(out.depth, 1.2 * full.depth) and torch.equal(
        out.world_from_cam, full.world_from_cam
    )
    assert out.metric
    out, report = align_to_known(prediction, replace(full, depth=10 * full.depth, metric=True))
    assert "hardly in one unit" in report.warnings[0] and report.sets[0].scale_source == "poses"
    assert torch.allclose(out.depth, full.depth) and not out.metric and off_plane(out) < 1e-9


def test_a_metric_prediction_may_keep_its_lengths() -> None:
    full = truth()
    metric = replace(predicted(full), metric=True)
    out, report = align_to_known(metric, full, with_scale=False)
    assert torch.equal(out.depth, metric.depth) and out.metric
    assert torch.equal(out.world_from_cam, full.world_from_cam)
    assert report.sets[0].scale == 1 and report.sets[0].pose_scale == pytest.approx(1)
    assert "asks for 2.7 times" in report.warnings[0]
    out, _ = align_to_known(metric, replace(full, metric=False))
    assert not out.metric and torch.allclose(out.metric_scale, torch.tensor([SCALE])), (
        "metres remain within reach"
    )
    out, _ = align_to_known(replace(metric, metric=False, metric_scale=torch.tensor([2.0])), full)
    assert torch.allclose(out.metric_scale, torch.tensor([2 * SCALE]))
    out, _ = align_to_known(metric, Known(K=full.K, metric=True))
    assert out.metric and torch.equal(out.depth, metric.depth)


def test_sets_of_a_batch_are_aligned_one_by_one() -> None:
    full = truth(5, batch=2)
    prediction = predicted(full)
    some = torch.tensor([[1, 1, 1, 1, 0], [0, 0, 1, 0, 0]]).bool()
    prediction = replace(prediction, depth=prediction.depth * torch.tensor([1.0, 3.0])[:, None, None, None])
    depth = full.depth.clone()
    depth[0] = 0
    known = Known(None, full.world_from_cam, depth, has_pose=some, metric=True)
    both, report = align_to_known(prediction, known)
    assert [s.scale_source for s in report.sets] == ["poses", "depth"] and both.metric
    assert torch.allclose(both.depth, full.depth)
    half = replace(known, depth=None)
    mixed, _ = align_to_known(replace(prediction, metric_scale=torch.tensor([2.0, 3.0])), half)
    assert not mixed.metric and mixed.metric_scale.tolist() == [1.0, 3.0], "the first set is in metres now"
    for i in range(2):
        cut = {
            k: None if v is None else v[i : i + 1]
            for k, v in vars(prediction).items()
            if k in ("depth", "cam_points", "world_points", "world_from_cam", "K", "depth_confidence")
        }
        mine = Known(None, full.world_from_cam[i : i + 1], depth[i : i + 1], None, some[i : i + 1], True)
        alone, _ = align_to_known(Prediction(**cut), mine)
        for name in ("depth", "world_points", "world_from_cam"):
            assert torch.equal(getattr(alone, name)[0], getattr(both, name)[i]), name


def test_types_stay_and_single_precision_is_accurate() -> None:
    full = truth()
    prediction = predicted(full, torch.float32)
    before = prediction.world_from_cam.clone()
    out, report = align_to_known(prediction, replace(full, K=None))
    assert torch.equal(prediction.world_from_cam, before), "the input is not written to"
    for name in ("depth", "cam_points", "world_points", "world_from_cam", "K"):
        assert getattr(out, name).dtype == torch.float32, name
    assert off_plane(out) < 2e-6
    assert float(((out.depth - full.depth) / full.depth).abs().max()) < 2e-6
    assert report.sets[0].after.rotation_deg < 1e-3
    far = full.world_from_cam.clone()
    far[..., :3, 3] += torch.tensor([4e5, 5e6, 100.0])
    mixed = replace(prediction, world_from_cam=predicted(full).world_from_cam)
    some = flags(1, 1, 1, 1, 1, 0)
    out, _ = align_to_known(mixed, Known(world_from_cam=far, has_pose=some))
    assert out.world_from_cam.dtype == torch.float64 and out.depth.dtype == torch.float32
    assert torch.allclose(out.world_from_cam, far, rtol=0, atol=1e-6), "each output keeps its own type"
    given32 = Known(world_from_cam=full.world_from_cam.float(), has_pose=flags(1, 1, 1, 0, 0, 0))
    out, _ = align_to_known(prediction, given32)
    assert torch.allclose(out.world_from_cam, full.world_from_cam.float(), atol=1e-5)


def test_predictions_may_lack_parts() -> None:
    full = truth()
    whole = predicted(full)
    out, _ = align_to_known(replace(whole, cam_points=None, world_points=None), full)
    assert out.cam_points is None and off_plane(out) < 1e-9
    out, _ = align_to_known(replace(whole, depth=None), full)
    assert out.depth is None and off_plane(out) < 1e-9
    out, _ = align_to_known(replace(whole, depth=None, cam_points=None), replace(full, depth=None))
    assert off_plane(out) < 1e-9, "points alone take the similarity"
    out, _ = align_to_known(Prediction(depth=whole.depth), full)
    assert torch.equal(out.world_from_cam, full.world_from_cam) and off_plane(out) < 1e-9
    holes = full.K.clone()
    holes[:, 0] = torch.nan
    out, report = align_to_known(whole, Known(K=holes))
    assert report.sets[0].views_K == 5 and torch.isfinite(out.cam_points).all()
    nothing, report = align_to_known(whole, Known())
    assert torch.equal(nothing.depth, whole.depth) and torch.allclose(
        nothing.world_from_cam, whole.world_from_cam
    )
    assert torch.allclose(nothing.world_points, whole.world_points) and not report.warnings


def test_unusable_knowledge_is_refused() -> None:
    full = truth()
    prediction = predicted(full)
    flat, mirrored = full.K.clone(), full.world_from_cam.clone()
    flat[0, 2, 0, 0], mirrored[0, 1, :3, 0] = 0, -mirrored[0, 1, :3, 0]
    with pytest.raises(InputError, match="positive focal lengths"):
        align_to_known(prediction, Known(K=flat))
    align_to_known(prediction, Known(K=flat, has_K=flags(1, 1, 0, 1, 1, 1)))
    with pytest.raises(InputError, match="not a rigid transform"):
        align_to_known(prediction, Known(world_from_cam=mirrored))
    with pytest.raises(InputError, match="does not fit a prediction of 1 sets of 6 views"):
        align_to_known(prediction, Known(world_from_cam=full.world_from_cam[:, :3]))
    with pytest.raises(InputError, match="must have the prediction's shape"):
        align_to_known(prediction, Known(depth=full.depth[..., :-1]))
    with pytest.raises(InputError, match="those of only some views"):
        known = Known(world_from_cam=full.world_from_cam, has_pose=flags(1, 0, 1, 1, 1, 1))
        align_to_known(Prediction(depth=full.depth), known)
    with pytest.raises(InputError, match="empty prediction"):
        align_to_known(Prediction(), full)


def test_relative_poses_of_unknown_views_survive() -> None:
    full = truth()
    some = flags(1, 0, 1, 0, 1, 0)
    out, _ = align_to_known(predicted(full), Known(world_from_cam=full.world_from_cam, has_pose=some))
    a, b = out.world_from_cam[0, 1], full.world_from_cam[0, 1]
    assert torch.allclose(invert_rigid(b) @ a, torch.eye(4).double(), atol=1e-9)
    S = make_similarity(torch.tensor(2.0).double(), matrix_from_axis_angle(TURN), SHIFT)
    given = make_rigid(
        S[:3, :3] / 2 @ full.world_from_cam[..., :3, :3], transform_points(S, full.world_from_cam[..., :3, 3])
    )
    out, report = align_to_known(predicted(full), Known(world_from_cam=given, has_pose=some))
    assert torch.allclose(out.world_from_cam, given, atol=1e-9) and report.sets[0].scale == pytest.approx(
        2 / SCALE
    )


@pytest.mark.parametrize(("count", "line"), [(3, False), (8, False), (8, True)])
def test_orientations_and_centres_together_beat_either_alone(count: int, line: bool) -> None:
    """Mean error of the rotation over 12 draws at 0.02 rad and 2 cm noise; both kinds alone are the same fits."""
    R, errors = matrix_from_axis_angle(TURN).T, []
    for seed in range(12):
        T = arc(count, 100 * seed)
        if line:
            T[:, :3, 3] = (
                torch.linspace(-2, 2, count).double()[:, None] * torch.tensor([1.0, 0.1, 0.0]).double()
            )
        poses = predicted(truth(count, poses=T)).world_from_cam[0].clone()
        poses[:, :3, :3] = matrix_from_axis_angle(0.02 * normal(count, 3, seed=seed)) @ poses[:, :3, :3]
        poses[:, :3, 3] += 0.02 * SCALE * normal(count, 3, seed=seed + 999)
        fit = pose_similarity(poses, T)
        centres = umeyama(poses[:, :3, 3], T[:, :3, 3]).rotation
        turns = matrix_from_svd9d((T[:, :3, :3] @ poses[:, :3, :3].mT).sum(0))
        ours = split_similarity(fit.similarity)[1]
        errors.append([float(rotation_angle(r, R)) for r in (ours, centres, turns)])
        assert bool(fit.inliers.all())
    ours, centres, turns = torch.tensor(errors).mean(0).tolist()
    assert ours < 0.5 * centres and ours < 0.9 * turns
