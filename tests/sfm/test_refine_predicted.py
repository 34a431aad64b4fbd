"""Refinement of predicted cameras: several times better from a rough start, never worse, a reason where it gives up."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from relief3d.core.contract import Camera, Scene
from relief3d.core.errors import InputError
from relief3d.eval.metrics.cameras import pair_errors
from relief3d.geometry.rotations import matrix_from_axis_angle, rotation_angle
from relief3d.sfm import SfmConfig
from relief3d.sfm.consistency import PairMatches
from relief3d.sfm.predicted_adjustment import frame_alignment, lenses_of
from relief3d.sfm.predicted_points import triangulate_tracks
from relief3d.sfm.predicted_report import HeldOut, judge
from relief3d.sfm.predicted_tracks import Observations, hold_out, link_pairs
from relief3d.sfm.refine_predicted import RefineConfig, RefineResult, Tracks, refine_predicted

from .plane_room import SIZE, arc_poses, intrinsics, look_at
from .predicted_scene import disturbed, predicted_room, room_tracks

pytest.importorskip("pycolmap")

FAST = RefineConfig(matching=SfmConfig(max_features=500))


def pose_errors(scene: Scene, poses) -> tuple[float, float]:
    """Mean pairwise errors of rotation and direction, degrees."""
    errors = pair_errors([v.camera.world_from_cam for v in scene.views], poses)
    return float(errors.rotation.mean()), float(errors.translation.mean())


def refine(scene, tracks, tmp_path, **changes) -> RefineResult:
    return refine_predicted(scene, dataclasses.replace(FAST, **changes), tmp_path / "work", tracks=tracks)


def same_cameras(a: Scene, b: Scene) -> bool:
    return all(
        torch.equal(x.camera.world_from_cam, y.camera.world_from_cam)
        and torch.equal(x.camera.K, y.camera.K)
        and x.depth is y.depth
        for x, y in zip(a.views, b.views, strict=True)
    )


@pytest.mark.parametrize("wrong", [0.0, 0.3])
def test_disturbed_cameras_come_out_several_times_better(tmp_path, wrong):
    scene, poses, K = predicted_room(turn_deg=2.0, shift=0.03, focal=1.08)
    result = refine(scene, room_tracks(poses, K, wrong=wrong), tmp_path)
    assert result.report.accepted, result.report.reason
    before, after = pose_errors(scene, poses), pose_errors(result.scene, poses)
    assert after[0] < before[0] / 8 and after[1] < before[1] / 4
    assert all(abs(float(v.camera.K[0, 0]) / 300.0 - 1.0) < 0.01 for v in result.scene.views)
    assert all(v.camera.K_source == "estimated" for v in result.scene.views)
    assert result.report.after.median_px < 0.5 < 5.0 < result.report.before.median_px
    assert result.report.lenses[0]["focal_before"] == pytest.approx(324, rel=0.02)
    assert len(result.scene.sparse) > 200
    json.dumps(result.report.as_dict())


def test_a_start_twenty_per_cent_and_ten_degrees_off_still_converges(tmp_path):
    scene, poses, K = predicted_room(turn_deg=8.0, shift=0.2, focal=1.2)
    result = refine(scene, room_tracks(poses, K, wrong=0.1), tmp_path)
    assert result.report.accepted
    assert max(pose_errors(result.scene, poses)) < 0.6 < 5.0 < max(pose_errors(scene, poses))


def test_frame_and_metric_scale_of_the_prediction_are_kept(tmp_path):
    scene, poses, K = predicted_room(turn_deg=2.0, shift=0.03, focal=1.0)
    result = refine(scene, room_tracks(poses, K), tmp_path)
    assert result.report.accepted and result.scene.metric
    got = torch.stack([v.camera.centre for v in result.scene.views])
    true = torch.stack([p[:3, 3] for p in poses])
    spread = lambda c: float((c - c.mean(0)).norm())  # noqa: E731
    assert spread(got) == pytest.approx(spread(true), rel=0.02)
    assert float((got - true).norm(dim=1).max()) < 0.15  # of a room of 4 m, the predictions' common error
    turn = rotation_angle(
        torch.stack([v.camera.world_from_cam[:3, :3] for v in result.scene.views]),
        torch.stack([p[:3, :3] for p in poses]),
    )
    assert float(torch.rad2deg(turn).max()) < 2.0


@pytest.mark.parametrize("source", ["depth", "cameras"])
def test_depth_is_rescaled_to_the_refined_cameras(tmp_path, source):
    scene, poses, K = predicted_room(turn_deg=1.0, shift=0.02, depth_factor=1.25)
    views = list(scene.views)
    odd = views[2].load_depth()
    views[2] = views[2].replace(depth=dataclasses.replace(odd, values=odd.values * 1.5))
    result = refine(scene.replace(views=tuple(views)), room_tracks(poses, K), tmp_path, scale_from=source)
    ratios = [v.depth_ratio for v in result.report.views]
    usual = 1.0 if source == "depth" else 0.8
    assert ratios[0] == pytest.approx(usual, rel=0.04) and ratios[2] == pytest.approx(usual / 1.5, rel=0.04)
    for k, view in enumerate(result.scene.views):
        assert torch.allclose(view.load_depth().values, views[k].load_depth().values * ratios[k])
    sparse, index = result.scene.sparse, 2
    mine = sparse.obs_view == index
    pose = result.scene.views[index].camera.cam_from_world
    z = sparse.xyz[sparse.obs_point[mine]] @ pose[2, :3] + pose[2, 3]
    depth = result.scene.views[index].load_depth().values
    cell = (sparse.obs_xy[mine] / 4).floor().long()
    inside = ((cell >= 0) & (cell < torch.tensor([SIZE[0] // 4, SIZE[1] // 4]))).all(1)
    read = depth[cell[inside, 1], cell[inside, 0]].double()
    assert float((read / z[inside]).median()) == pytest.approx(1.0, abs=0.01)


def test_true_cameras_are_not_made_worse(tmp_path):
    scene, poses, K = predicted_room(turn_deg=0.0, shift=0.0, focal=1.0, jitter=0.0)
    result = refine(scene, room_tracks(poses, K, wrong=0.1, noise=0.5), tmp_path)
    assert not result.report.accepted and "nothing to gain" in result.report.reason
    assert same_cameras(result.scene, scene)
    assert result.report.after is not None and len(result.scene.sparse) > 200


def test_given_poses_stay_bit_equal_and_hold_frame_and_scale(tmp_path):
    scene, poses, K = predicted_room(turn_deg=2.0, shift=0.05, depth_factor=1.3)
    views = [
        v.replace(camera=Camera(*SIZE, K, poses[k], K_source="given")) if k in (1, 4) else v
        for k, v in enumerate(scene.views)
    ]
    scene = scene.replace(views=tuple(views))
    result = refine(scene, room_tracks(poses, K), tmp_path, fixed_views=("v1", "v4"))
    assert result.report.accepted, result.report.reason
    for k in (1, 4):
        assert torch.equal(result.scene.views[k].camera.world_from_cam, poses[k])
        assert torch.equal(result.scene.views[k].camera.K, K)
        assert result.report.views[k].state == "fixed"
    for view, pose in zip(result.scene.views, poses, strict=True):
        assert torch.allclose(view.camera.world_from_cam, pose, atol=0.02)


def test_one_given_pose_stays_bit_equal(tmp_path):
    scene, poses, K = predicted_room(turn_deg=2.0, shift=0.05)
    views = list(scene.views)
    views[0] = views[0].replace(camera=views[0].camera.replace(world_from_cam=poses[0]))
    result = refine(scene.replace(views=tuple(views)), room_tracks(poses, K), tmp_path, fixed_views=("v0",))
    assert result.report.accepted, result.report.reason
    assert torch.equal(result.scene.views[0].camera.world_from_cam, poses[0])
    for view, pose in zip(result.scene.views, poses, strict=True):
        assert torch.allclose(view.camera.world_from_cam, pose, atol=0.03)


def test_poses_or_lenses_alone_can_be_adjusted(tmp_path):
    scene, poses, K = predicted_room(turn_deg=0.0, shift=0.0, focal=1.1)
    tracks = room_tracks(poses, K)
    lens = refine(scene, tracks, tmp_path, refine_poses=False)
    assert lens.report.accepted
    for old, new in zip(scene.views, lens.scene.views, strict=True):
        assert torch.equal(old.camera.world_from_cam, new.camera.world_from_cam)
        assert float(new.camera.K[0, 0]) == pytest.approx(300.0, rel=0.01)
    scene, _, _ = predicted_room(turn_deg=2.0, shift=0.03, focal=1.0)
    turned = refine(scene, tracks, tmp_path, refine_focal=False)
    assert turned.report.accepted
    assert {float(v.camera.K[0, 0]) for v in turned.scene.views}.isdisjoint({300.0})
    assert max(pose_errors(turned.scene, poses)) < 0.8


def test_one_view_with_a_senseless_pose_is_placed_anew(tmp_path):
    scene, poses, K = predicted_room(turn_deg=1.0, shift=0.02)
    views = list(scene.views)
    wild = disturbed(poses[3], 140.0, 5.0, np.random.default_rng(0))
    views[3] = views[3].replace(camera=views[3].camera.replace(world_from_cam=wild))
    result = refine(scene.replace(views=tuple(views)), room_tracks(poses, K), tmp_path)
    assert result.report.accepted, result.report.reason
    assert result.report.views[3].relocated and not result.report.views[2].relocated
    assert max(pose_errors(result.scene, poses)) < 0.5
    centres = torch.stack([v.camera.centre for v in result.scene.views])
    assert float((centres - torch.stack([p[:3, 3] for p in poses])).norm(dim=1).max()) < 0.2


def test_views_from_one_place_are_returned_as_given(tmp_path):
    poses = [look_at((0.6, -0.2, 0.4), (-1.0 + 0.3 * k, 0.3, 3.2)) for k in range(5)]
    scene, _, K = predicted_room(turn_deg=2.0, shift=0.0, poses=poses)
    views = [
        v.replace(
            camera=v.camera.replace(world_from_cam=disturbed(poses[k], 2.0, 0.02, np.random.default_rng(k)))
        )
        for k, v in enumerate(scene.views)
    ]
    scene = scene.replace(views=tuple(views))
    result = refine(scene, room_tracks(poses, K), tmp_path)
    assert not result.report.accepted and "one place" in result.report.reason
    assert same_cameras(result.scene, scene)


def test_weak_content_is_a_reason_and_not_an_error(tmp_path):
    scene, poses, K = predicted_room()
    tracks = room_tracks(poses, K)
    two = scene.replace(views=scene.views[:2])
    pair = refine(two, Tracks(tracks.xy[:, :2], tracks.visible[:, :2]), tmp_path)
    assert "2 predicted cameras are too few" in pair.report.reason and pair.scene is two
    noise = Tracks(torch.rand(300, 6, 2, generator=torch.manual_seed(0)) * 240, torch.ones(300, 6))
    blank = Tracks(tracks.xy, torch.zeros_like(tracks.visible))
    few = Tracks(tracks.xy[:20], tracks.visible[:20])
    broken = Tracks(torch.full_like(tracks.xy, torch.nan), tracks.visible)
    for junk in (noise, blank, few, broken):
        result = refine(scene, junk, tmp_path)
        assert not result.report.accepted and result.report.reason
        assert same_cameras(result.scene, scene)
    unposed = scene.replace(
        views=tuple(v.replace(camera=v.camera.replace(world_from_cam=None)) for v in scene.views)
    )
    assert refine(unposed, tracks, tmp_path).scene is unposed


def test_a_view_without_prediction_or_without_tracks_takes_no_part(tmp_path):
    scene, poses, K = predicted_room(count=7)
    views = list(scene.views)
    views[0] = views[0].replace(camera=views[0].camera.replace(world_from_cam=None))
    scene = scene.replace(views=tuple(views))
    tracks = room_tracks(poses, K)
    visible = tracks.visible.clone()
    visible[:, 5] = False
    result = refine(scene, Tracks(tracks.xy, visible), tmp_path)
    assert result.report.accepted, result.report.reason
    assert [v.state for v in result.report.views] == ["unplaced", *["refined"] * 4, "kept", "refined"]
    assert result.scene.views[0].camera.world_from_cam is None
    assert torch.equal(result.scene.views[5].camera.world_from_cam, views[5].camera.world_from_cam)
    assert torch.equal(result.scene.views[5].camera.K, views[5].camera.K)
    rest = [1, 2, 3, 4, 6]
    part = result.scene.replace(views=tuple(result.scene.views[i] for i in rest), sparse=None)
    assert max(pose_errors(part, [poses[i] for i in rest])) < 0.8
    assert set(result.scene.sparse.obs_view.tolist()) == set(rest)


def test_mixed_cameras_get_their_own_lenses(tmp_path):
    scene, poses, K = predicted_room(count=7, focal=1.05)
    tracks, zoom = room_tracks(poses, K, per_view=50), 1.35
    xy, views = tracks.xy.clone(), list(scene.views)
    middle = torch.tensor(SIZE) / 2.0
    for k in (1, 4, 6):
        xy[:, k] = (xy[:, k] - middle) * zoom + middle
        big = views[k].camera.K.clone()
        big[:2, :2] *= zoom
        views[k] = views[k].replace(camera=views[k].camera.replace(K=big), depth=None)
    scene = scene.replace(views=tuple(views))
    result = refine(scene, Tracks(xy, tracks.visible), tmp_path)
    assert result.report.accepted, result.report.attempts
    assert [a.split(":")[0] for a in result.report.attempts] == ["shared lenses", "own lenses"]
    for k, view in enumerate(result.scene.views):
        assert float(view.camera.K[0, 0]) == pytest.approx(
            300.0 * (zoom if k in (1, 4, 6) else 1.0), rel=0.04
        )


def test_pictures_are_matched(tmp_path):
    scene, poses, _ = predicted_room(count=4, pictures=True)
    result = refine(scene, None, tmp_path)
    assert result.report.accepted, result.report.reason
    before, after = pose_errors(scene, poses), pose_errors(result.scene, poses)
    assert after[0] < before[0] / 5 and after[1] < before[1] / 3
    assert int(result.scene.sparse.rgb.float().std()) > 5


def test_refinement_repeats_bit_for_bit(tmp_path):
    scene, poses, K = predicted_room(count=4)
    first, again = (refine(scene, room_tracks(poses, K, wrong=0.1), tmp_path) for _ in range(2))
    assert first.report.accepted
    assert all(
        torch.equal(a.camera.world_from_cam, b.camera.world_from_cam) and torch.equal(a.camera.K, b.camera.K)
        for a, b in zip(first.scene.views, again.scene.views, strict=True)
    )


def test_pictures_without_texture_are_returned_as_given(tmp_path):
    scene, _, _ = predicted_room(count=3)
    plain = scene.replace(
        views=tuple(v.replace(image=torch.full((3, *SIZE[::-1]), 0.5)) for v in scene.views)
    )
    result = refine(plain, None, tmp_path)
    assert "0 verified tracks" in result.report.reason and result.scene is plain


def test_wrong_usage_is_refused(tmp_path):
    scene, poses, K = predicted_room(count=3)
    tracks = room_tracks(poses, K, per_view=5)
    with pytest.raises(InputError, match="2 views, the scene has 3"):
        refine(scene, Tracks(tracks.xy[:, :2], tracks.visible[:, :2]), tmp_path)
    with pytest.raises(InputError, match="no view is called 'nobody'"):
        refine(scene, tracks, tmp_path, fixed_views=("nobody",))
    with pytest.raises(InputError, match="visibility"):
        Tracks(tracks.xy, tracks.visible[:, :1])
    with pytest.raises(InputError, match="holdout"):
        RefineConfig(holdout=0.9)


def held(median: float, share: float) -> HeldOut:
    return HeldOut(50, 200, median, median, share, share)


@pytest.mark.parametrize(
    ("before", "after", "accepted", "word"),
    [
        ((5.0, 0.2), (0.5, 0.9), True, "improved"),
        ((0.50, 0.90), (0.50, 0.90), False, "nothing to gain"),
        ((0.50, 0.90), (0.495, 0.91), False, "nothing to gain"),
        ((0.50, 0.90), (0.46, 0.90), False, "nothing to gain"),
        ((0.50, 0.90), (0.44, 0.90), True, "improved"),
        ((0.50, 0.80), (0.505, 0.83), True, "improved"),
        ((0.50, 0.90), (0.40, 0.85), False, "worse"),
        ((0.50, 0.80), (0.60, 0.95), False, "worse"),
        ((float("inf"), 0.1), (float("inf"), 0.1), False, "nothing to gain"),
    ],
)
def test_the_verdict_wants_a_gain_and_no_loss(before, after, accepted, word):
    verdict, reason = judge(held(*before), held(*after))
    assert verdict is accepted and word in reason


def test_linked_tracks_drop_contradicting_views():
    a, b, c = (np.array([[float(i), 1.0] for i in range(3)]) + 10 * k for k in range(3))
    pairs = [
        PairMatches(0, 1, a, b),
        PairMatches(1, 2, b, c),
        PairMatches(0, 2, a[[1]], c[[2]]),  # joins the tracks of keypoints 1 and 2
    ]
    found = link_pairs(pairs)
    assert found.count == 1 and found.view.tolist() == [0, 1, 2]
    assert found.xy.tolist() == [[0.0, 1.0], [10.0, 11.0], [20.0, 21.0]]
    assert link_pairs([]).count == 0
    used, rest = hold_out(link_pairs(pairs[:2]), 0.34, 0)
    assert (used.count, rest.count) == (2, 1) and len(used) + len(rest) == 9


def test_wrong_sightings_have_no_say_in_triangulation():
    poses, K = arc_poses(6), intrinsics()
    cameras = [Camera(*SIZE, K, p) for p in poses]
    tracks = room_tracks(poses, K, noise=0.0, per_view=20)
    seen = tracks.visible & (tracks.visible.sum(1, keepdim=True) >= 5)
    track, view = seen.nonzero(as_tuple=True)
    _, track = track.unique(return_inverse=True)
    xy = tracks.xy[seen].clone()
    first = torch.cat([torch.tensor([True]), track[1:] != track[:-1]])
    xy[first] += 60.0
    points = triangulate_tracks(cameras, Observations(track, view, xy, int(track.max()) + 1), 2.0)
    assert float(points.error[~first].max()) < 1.0 and float(points.error[first].min()) > 50.0


def test_frames_are_aligned_on_a_line_and_despite_a_wrong_pose():
    generator = torch.manual_seed(1)
    poses = torch.eye(4, dtype=torch.float64).repeat(6, 1, 1)
    poses[:, 0, 3] = torch.arange(6)  # centres on a line: only orientations tell the turn about it
    turn = matrix_from_axis_angle(torch.tensor([0.3, -1.0, 0.4], dtype=torch.float64))
    shift = torch.rand(3, dtype=torch.float64, generator=generator)
    moved = poses.clone()
    moved[:, :3, :3] = turn @ poses[:, :3, :3]
    moved[:, :3, 3] = 2.5 * poses[:, :3, 3] @ turn.T + shift
    moved[2, :3, :3] = turn.T
    moved[2, :3, 3] += 7.0
    scale, rotation, translation = frame_alignment(poses, moved)
    assert scale == pytest.approx(2.5, abs=1e-3)
    assert torch.allclose(rotation, turn, atol=1e-4) and torch.allclose(translation, shift, atol=1e-2)


def test_lenses_are_shared_by_size_and_given_ones_stay_apart():
    scene, _, K = predicted_room(count=4)
    views = list(scene.views)
    views[1] = views[1].replace(camera=views[1].camera.replace(K=K, K_source="given"))
    groups = {lens.views: lens for lens in lenses_of(views, "auto", False)}
    assert set(groups) == {(1,), (0, 2, 3)} and groups[(1,)].fixed and not groups[(0, 2, 3)].fixed
    wide = views[3].camera.K.clone()
    wide[:2, :2] *= 2.0
    views[3] = views[3].replace(camera=views[3].camera.replace(K=wide))
    assert {lens.views for lens in lenses_of(views, "auto", False)} == {(0,), (1,), (2,), (3,)}
    assert {lens.views for lens in lenses_of(views, "size", True)} == {(1,), (0, 2, 3)}
