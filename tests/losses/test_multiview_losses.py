"""VGGT's and pi3's training losses against reference values, and where they are degenerate."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.corpora.golden import golden, part

from relief3d.losses import pi3, vggt

RELATIVE = 1e-5


@pytest.fixture(scope="module")
def values(shared_data: Path) -> dict[str, torch.Tensor]:
    return golden(shared_data, "multiview_losses_metrics")


def _same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.reshape(-1), expected.reshape(-1), rtol=RELATIVE, atol=1e-7)


@pytest.mark.shared
def test_vggt_camera_loss(values: dict[str, torch.Tensor]) -> None:
    x, y = part(values, "vggt_loss.inputs."), part(values, "vggt_loss.outputs.")
    rounds = [x[f"pose_enc_list.{i}"] for i in range(4)]
    loss = vggt.camera_loss(rounds, x["gt_pose_enc"], x["point_masks"].bool())
    _same(loss.translation, y["loss_T"])
    _same(loss.rotation, y["loss_R"])
    _same(loss.focal, y["loss_FL"])
    _same(loss.total, y["loss_camera"])


@pytest.mark.shared
def test_vggt_dense_losses(values: dict[str, torch.Tensor]) -> None:
    x, y = part(values, "vggt_loss.inputs."), part(values, "vggt_loss.outputs.")
    valid = x["point_masks"].bool()
    depth = vggt.depth_loss(x["depth"][..., 0], x["depth_conf"], x["depths"], valid)
    for found, name in ((depth.confidence, "conf"), (depth.regression, "reg"), (depth.gradient, "grad")):
        _same(found, y[f"loss_{name}_depth"])
    points = vggt.point_loss(x["pred_world_points"], x["depth_conf"], x["world_points"], valid)
    for found, name in ((points.confidence, "conf"), (points.regression, "reg"), (points.gradient, "grad")):
        _same(found, y[f"loss_{name}_point"])
    rounds = [x[f"pose_enc_list.{i}"] for i in range(4)]
    camera = vggt.camera_loss(rounds, x["gt_pose_enc"], valid)
    _same(5 * camera.total + depth.total, y["objective_camera5_depth1"])


@pytest.mark.shared
def test_pi3_loss(values: dict[str, torch.Tensor]) -> None:
    x, y = part(values, "pi3_loss.inputs."), part(values, "pi3_loss.outputs.")
    between = part(values, "pi3_loss.intermediates.")
    valid = x["valid_masks"].bool()
    targets = pi3.pi3_targets(x["gt_world_points"], x["gt_camera_poses"], valid)
    torch.testing.assert_close(targets.local_points, between["gt_local_points"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(targets.world_from_cam, between["gt_camera_poses"], rtol=1e-5, atol=1e-5)
    points, _ = pi3.normalised_prediction(x["pred_local_points"], x["pred_camera_poses"], valid)
    torch.testing.assert_close(points, between["pred_local_points_normalised"], rtol=1e-5, atol=1e-6)
    loss = pi3.pi3_loss(x["pred_local_points"], x["pred_camera_poses"], targets, with_normals=True)
    _same(loss.scale, y["scale"])
    _same(loss.points, y["local_pts_loss"])
    _same(loss.rotation, y["rot_loss"])
    _same(loss.translation, y["trans_loss"])
    _same(loss.camera, y["camera_total"])
    _same(loss.normals, y["normal_loss"])
    _same(loss.points + loss.normals, y["point_total"])
    _same(loss.total, y["total"])


def _scene(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """True world points, poses and mask of two sequences of three views, in double precision."""
    g = torch.Generator().manual_seed(seed)
    z = 2 + torch.rand(2, 3, 12, 14, generator=g, dtype=torch.float64)
    y, x = torch.meshgrid(torch.linspace(-0.4, 0.4, 12), torch.linspace(-0.5, 0.5, 14), indexing="ij")
    local = torch.stack([x.double() * z, y.double() * z, z], -1)
    turn = torch.linalg.matrix_exp(
        0.2 * (lambda a: a - a.mT)(torch.randn(2, 3, 3, 3, generator=g, dtype=torch.float64))
    )
    poses = torch.eye(4, dtype=torch.float64).repeat(2, 3, 1, 1)
    poses[..., :3, :3] = turn
    poses[..., :3, 3] = torch.randn(2, 3, 3, generator=g, dtype=torch.float64)
    world = local @ poses[..., None, :3, :3].mT + poses[..., None, None, :3, 3]
    return world, poses, torch.rand(2, 3, 12, 14, generator=g) > 0.2


def test_pi3_loss_does_not_see_frame_and_scale() -> None:
    world, poses, valid = _scene()
    targets = pi3.pi3_targets(world, poses, valid)
    local = (world - poses[..., None, None, :3, 3]) @ poses[..., None, :3, :3]
    moved = poses.clone()
    moved[..., :3, 3] *= 3.0
    frame = torch.linalg.inv(poses[:, 1:2])
    loss = pi3.pi3_loss(3.0 * local, frame @ moved, targets, with_normals=True)
    assert float(loss.points) < 1e-9 and float(loss.translation) < 1e-12
    # The arc cosine is cut off next to 1, and angles below a degree count as one.
    assert float(loss.rotation) < 2e-3
    assert float(loss.normals) == pytest.approx(float(loss.normals.new_tensor(0.0)), abs=2e-3)
    wrong = pi3.pi3_loss(3.0 * local, poses.flip(1), targets)
    assert float(wrong.rotation) > 0.05 and float(wrong.translation) > 1e-3


def test_the_scale_minimises_the_weighted_distance() -> None:
    world, poses, valid = _scene(1)
    targets = pi3.pi3_targets(world, poses, valid)
    g = torch.Generator().manual_seed(2)
    found = 0.7 * targets.local_points + 0.1 * torch.randn(
        targets.local_points.shape, generator=g, dtype=torch.float64
    )
    weight = pi3.point_weight(targets)
    scale = pi3.align_scale(found, targets.local_points, weight, valid)

    def cost(s: torch.Tensor) -> torch.Tensor:
        # The nearest-neighbour choice takes pixels of a small map a different number of times.
        total = []
        for b in range(2):
            p, t, w = (x[b][valid[b]] for x in (found, targets.local_points, weight))
            index = (torch.arange(4096) * (len(p) / 4096)).long()
            total.append((w[index, None] * (s[b] * p[index] - t[index]).abs()).sum())
        return torch.stack(total)

    for factor in (0.99, 0.999, 1.001, 1.01):
        assert bool((cost(scale * factor) > cost(scale)).all())


@pytest.mark.parametrize("share", [0.0, 0.01])
def test_empty_and_tiny_masks_give_no_nan(share: float) -> None:
    world, poses, valid = _scene(3)
    valid = valid & (torch.rand(valid.shape, generator=torch.Generator().manual_seed(0)) < share)
    targets = pi3.pi3_targets(world, poses, valid)
    local = world.clone().requires_grad_()
    pi3.pi3_loss(local, poses, targets, with_normals=True).total.backward()
    assert local.grad is not None and bool(torch.isfinite(local.grad).all())
    depth = torch.rand(2, 3, 12, 14, dtype=torch.float64, requires_grad=True)
    loss = vggt.depth_loss(depth, 1 + torch.rand_like(depth).detach(), world[..., 2], valid)
    encoding = torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True)
    camera = vggt.camera_loss([encoding], torch.zeros(2, 3, 9, dtype=torch.float64), valid)
    (loss.total + camera.total).backward()
    assert bool(torch.isfinite(depth.grad).all()) and bool(torch.isfinite(encoding.grad).all())  # type: ignore[union-attr]
    assert float(loss.total.detach()) == 0.0 and float(camera.total.detach()) == 0.0


def test_pi3_targets_may_hold_anything_where_nothing_is_known() -> None:
    world, poses, valid = _scene(5)
    clean = pi3.pi3_targets(torch.where(valid[..., None], world, torch.zeros_like(world)), poses, valid)
    for wrong in (float("nan"), float("inf")):
        holes = torch.where(valid[..., None], world, torch.full_like(world, wrong))
        targets = pi3.pi3_targets(holes, poses, valid)
        assert torch.equal(targets.norm, clean.norm)
        local = world.clone().requires_grad_()
        loss = pi3.pi3_loss(local, poses, targets, with_normals=True)
        loss.total.backward()
        assert bool(torch.isfinite(loss.total)) and local.grad is not None
        assert bool(torch.isfinite(local.grad).all())


def test_infinite_labels_and_predictions_are_cut_off() -> None:
    depth = torch.full((1, 1, 20, 20), 2.0, dtype=torch.float64, requires_grad=True)
    target = torch.full((1, 1, 20, 20), 2.0, dtype=torch.float64)
    target[..., 0, 0], target[..., 1, 1] = float("nan"), float("inf")
    loss = vggt.depth_loss(
        depth, torch.full_like(depth, 2.0).detach(), target, torch.ones(1, 1, 20, 20, dtype=torch.bool)
    )
    loss.total.backward()
    assert bool(torch.isfinite(depth.grad).all())  # type: ignore[union-attr]
    assert float(loss.regression.detach()) == pytest.approx(2 * 2 / 400)


def test_the_largest_errors_are_left_out_only_when_there_are_many() -> None:
    few = torch.linspace(0, 1, 900, dtype=torch.float64)
    many = torch.linspace(0, 1, 5000, dtype=torch.float64)
    assert float(vggt._mean_of_smaller(few, 0.98, None)) == pytest.approx(0.5)
    assert float(vggt._mean_of_smaller(many, 0.98, None)) == pytest.approx(0.49, abs=2e-4)


def test_confidence_learns_where_the_error_is_small() -> None:
    world, poses, valid = _scene(4)
    targets = pi3.pi3_targets(world, poses, valid)
    points = targets.local_points.clone()
    points[:, 0] += 1.0
    good = torch.full(valid.shape, 8.0, dtype=torch.float64)
    right = good.clone()
    right[:, 0] = -8.0
    one = torch.ones(2, dtype=torch.float64)
    sky = ~valid
    right[sky] = -8.0
    assert float(pi3.confidence_loss(right, points, targets, one, sky)) < 1e-3
    assert float(pi3.confidence_loss(good, points, targets, one, sky)) > 0.1


def test_sequences_and_maps_count_from_a_hundred_pixels() -> None:
    encoding, target = torch.zeros(2, 2, 9, dtype=torch.float64), torch.ones(2, 2, 9, dtype=torch.float64)
    target[1] = 3.0
    valid = torch.zeros(2, 2, 20, 20, dtype=torch.bool)
    valid[0, 0].view(-1)[:101] = True
    valid[1, 0].view(-1)[:100] = True  # too few in the first view; the second view does not help
    valid[1, 1] = True
    assert float(vggt.camera_loss([encoding], target, valid).total) == pytest.approx(2.5)
    depth = torch.full((1, 1, 20, 20), 2.0, dtype=torch.float64)
    for count, wanted in ((99, 0.0), (100, 1.0)):
        some = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
        some.view(-1)[:count] = True
        loss = vggt.depth_loss(depth, torch.ones_like(depth), depth + 1, some)
        assert float(loss.regression) == pytest.approx(wanted)


def test_errors_are_only_left_out_when_more_than_a_thousand_remain() -> None:
    for count, kept in ((1010, 1010), (1030, 1008)):
        values = torch.arange(count, dtype=torch.float64) / count
        assert float(vggt._mean_of_smaller(values, 0.98, None)) == pytest.approx(float(values[:kept].mean()))


def test_a_mirrored_prediction_has_a_positive_scale() -> None:
    world, poses, valid = _scene(6)
    targets = pi3.pi3_targets(world, poses, valid)
    scale = pi3.align_scale(
        -0.5 * targets.local_points, targets.local_points, pi3.point_weight(targets), valid
    )
    assert scale.tolist() == pytest.approx([2.0, 2.0])


def test_confidence_asks_for_errors_below_two_percent_and_leaves_valid_sky_alone() -> None:
    world, poses, valid = _scene(7)
    valid = torch.ones_like(valid)
    valid[..., 0, :] = False
    targets, one = pi3.pi3_targets(world, poses, valid), torch.ones(2, dtype=torch.float64)
    undecided = torch.zeros(valid.shape, dtype=torch.float64)
    found = pi3.confidence_loss(undecided, targets.local_points, targets, one)
    assert float(found) == pytest.approx(0.05 * math.log(2))
    sure = torch.full(valid.shape, 30.0, dtype=torch.float64)
    for error, wrong in ((0.019, False), (0.021, True)):
        points = targets.local_points + (error / pi3.point_weight(targets))[..., None]
        loss = float(pi3.confidence_loss(sure, points, targets, one))
        assert loss == pytest.approx(0.05 * 30 if wrong else 0.0, abs=1e-6)
    everywhere = torch.ones_like(valid)  # sky that has a depth is no sky
    sure[~valid] = -30.0
    assert float(pi3.confidence_loss(sure, targets.local_points, targets, one, everywhere)) < 1e-6
