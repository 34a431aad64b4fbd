"""Supervised training: losses that a perfect answer makes small, baselines, batches by position."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch

from relief3d.core.contract import Batch
from relief3d.core.errors import InputError
from relief3d.eval.metrics.cameras import pair_errors
from relief3d.methods.supervised import evaluation, losses
from relief3d.methods.supervised.config import LossConfig, SupervisedConfig, WorldShare
from relief3d.methods.supervised.recipes import RECIPES
from relief3d.methods.supervised.task import SupervisedTask
from relief3d.models.multiview.pose_encoding import encode_cameras
from relief3d.models.multiview.vggt import VggtOutput
from relief3d.train.task import StepInfo

SMOKE = RECIPES[0].make("nano", "smoke")
INFO = StepInfo(0, 10, torch.Generator())


def task_of(index: int = 0, **changes: object) -> SupervisedTask:
    config = RECIPES[index].make("nano", "smoke")
    config = replace(config, evaluation=replace(config.evaluation, scenes=3, constants=4, views=3))
    return SupervisedTask(replace(config, **changes), "cpu")


@pytest.fixture(scope="module")
def task() -> SupervisedTask:
    return task_of()


@pytest.fixture(scope="module")
def batch(task: SupervisedTask) -> Batch:
    return task.batch(0)


@pytest.mark.parametrize("index", range(3))
def test_every_network_gets_gradients_everywhere(index: int, batch: Batch) -> None:
    task = task_of(index)
    model = task.model()
    report = task.loss(model, batch, INFO, None)
    report.total.backward()
    assert torch.isfinite(report.total)
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert all("mask_token" in name for name in without), without
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def truth_of(batch: Batch) -> losses.pi3.Pi3Targets:
    return losses.targets_of(batch)


def test_pi3_loss_of_the_truth_is_nothing_whatever_its_scale(batch: Batch) -> None:
    t = truth_of(batch)
    scale = 7.0
    poses = t.world_from_cam.clone()
    poses[..., :3, 3] *= scale
    assert batch.depth is not None and batch.K is not None
    logits = torch.where(t.valid, 20.0, -20.0)
    report = losses._pi3(scale * t.local_points, poses, logits, batch, LossConfig())
    assert float(report.total) < 1e-3
    wrong = losses._pi3(scale * t.local_points, poses.roll(1, 1), logits, batch, LossConfig())
    assert float(wrong.parts["rotation"]) > 0.1
    # World units do not matter to the targets either.
    other = replace(batch, depth=batch.depth * 3, world_from_cam=_scaled(batch.world_from_cam, 3))
    torch.testing.assert_close(truth_of(other).local_points, t.local_points, rtol=1e-4, atol=1e-4)


def _scaled(poses: torch.Tensor | None, factor: float) -> torch.Tensor:
    assert poses is not None
    out = poses.clone()
    out[..., :3, 3] *= factor
    return out


def test_vggt_loss_of_the_truth_is_nothing(batch: Batch) -> None:
    t = truth_of(batch)
    assert batch.K is not None
    size = (int(batch.images.shape[-2]), int(batch.images.shape[-1]))
    goal = encode_cameras(torch.linalg.inv(t.world_from_cam), batch.K, size)
    depth, one = t.local_points[..., 2], torch.ones_like(t.local_points[..., 2])
    parts = {f.name: None for f in dataclasses.fields(VggtOutput)}
    out = VggtOutput(**{**parts, "pose_encodings": [goal] * 2, "depth": depth, "depth_confidence": one})
    report = losses._vggt(out, batch, LossConfig(), None)
    assert abs(float(report.total)) < 1e-4
    moved = VggtOutput(
        **{**parts, "pose_encodings": [goal + 0.1] * 2, "depth": depth, "depth_confidence": one}
    )
    again = losses._vggt(moved, batch, LossConfig(camera=10.0), None)
    once = losses._vggt(moved, batch, LossConfig(camera=5.0), None)
    torch.testing.assert_close(again.total, 2 * once.total)


def test_confidence_teaches_no_points(batch: Batch) -> None:
    """Its gradient stops at the points: they are trained by their own error alone."""
    t = truth_of(batch)
    local = (t.local_points * 1.3).requires_grad_()
    grads = []
    for weight in (0.0, 1.0):
        report = losses._pi3(
            local,
            t.world_from_cam,
            torch.zeros_like(t.local_points[..., 0]),
            batch,
            LossConfig(confidence=weight),
        )
        grads.append(torch.autograd.grad(report.total, local)[0])
    torch.testing.assert_close(grads[0], grads[1])


def test_losses_need_truth(batch: Batch) -> None:
    with pytest.raises(InputError, match="needs depth"):
        losses.targets_of(replace(batch, depth=None))
    with pytest.raises(InputError, match="no supervised loss for Linear"):
        losses.forward(torch.nn.Linear(1, 1), batch)


def test_batches_are_functions_of_their_position(batch: Batch) -> None:
    again = task_of().batch(0)
    assert torch.equal(again.images, batch.images) and again.names == batch.names
    assert not torch.equal(task_of().batch(1).images[0], batch.images[0])
    seeded = task_of(train=replace(SMOKE.train, seed=1))
    assert not torch.equal(seeded.batch(0).images, batch.images)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(3)
    a = task_of().model().state_dict()
    b = task_of().model().state_dict()
    c = task_of(train=replace(SMOKE.train, seed=1)).model().state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["camera_head.fc_t.weight"], c["camera_head.fc_t.weight"])


def test_held_out_worlds_are_the_same_for_every_seed_and_in_no_batch(task: SupervisedTask) -> None:
    other = task_of(train=replace(SMOKE.train, seed=9))
    mine, theirs = task._held_out["tabletop"], other._held_out["tabletop"]
    assert torch.equal(mine.images, theirs.images)
    assert task.stream.mixture.sources[0].key(0) != mine.names[0][0]


def test_many_scenes_agree_with_the_metric_of_one() -> None:
    g = torch.Generator().manual_seed(0)
    poses = torch.eye(4).repeat(2, 5, 4, 1, 1)
    poses[..., :3, :3] = torch.linalg.qr(torch.randn(2, 5, 4, 3, 3, generator=g))[0]
    poses[..., :3, :3] *= torch.linalg.det(poses[..., :3, :3])[..., None, None]
    poses[..., :3, 3] = torch.randn(2, 5, 4, 3, generator=g)
    rotation, direction = evaluation.pair_angles(poses[0], poses[1])
    for i in range(5):
        one = pair_errors(poses[0, i], poses[1, i])
        torch.testing.assert_close(rotation[i], one.rotation, atol=1e-3, rtol=0)
        torch.testing.assert_close(direction[i], one.translation, atol=1e-3, rtol=0)


def test_baselines_and_scores(task: SupervisedTask) -> None:
    scenes = task._held_out["tabletop"]
    assert scenes.depth is not None and scenes.world_from_cam is not None
    assert evaluation.sequence_abs_rel(scenes.depth * 5, scenes) < 1e-6
    assert evaluation.area_under_recall(scenes.world_from_cam, scenes.world_from_cam) > 99.9
    numbers = task.evaluate(task.model(), 0)
    constant, mean_map = numbers["tabletop_abs_rel_constant"], numbers["tabletop_abs_rel_mean_map"]
    assert 0.1 < mean_map < constant < 0.6
    assert 0 <= numbers["tabletop_auc30_constant"] < 60
    # The constant trajectory is chosen with sight of the truth: the truth among the candidates must win.
    seeing = evaluation.Constants(scenes.world_from_cam[:1].double(), torch.ones(42, 42))
    assert evaluation.score_constants(seeing, scenes)["auc30_constant"] > 100 / len(scenes.images) - 1
    broken = torch.full_like(scenes.depth, float("nan"))
    assert evaluation.sequence_abs_rel(broken, scenes) != evaluation.sequence_abs_rel(broken, scenes)  # NaN


def test_panels_show_five_pictures_per_view(task: SupervisedTask) -> None:
    pictures = task.panels(task.model().eval(), 0)
    assert set(pictures) == {"tabletop_0", "tabletop_1"}
    picture = pictures["tabletop_0"]
    side = 42 * 3
    assert picture.shape == (3, 3 * side, 5 * side + 4 * 4) and picture.dtype == torch.uint8
    scenes = task._held_out["tabletop"]
    assert torch.equal(picture[:, :side:3, :side:3], (scenes.images[0, 0] * 255).round().to(torch.uint8))


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="named twice"):
        SupervisedConfig(worlds=(WorldShare(), WorldShare()))
    with pytest.raises(InputError, match="multiples of 14"):
        SupervisedConfig()
    with pytest.raises(InputError, match="nothing to workers"):
        replace(SMOKE, render_on="device", train=replace(SMOKE.train, workers=1))


def test_a_few_steps_lower_the_loss() -> None:
    task = task_of()
    batch = task.batch(0)
    model = task.model()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    seen = []
    for _ in range(12):
        optimiser.zero_grad()
        report = task.loss(model, batch, INFO, None)
        report.total.backward()
        optimiser.step()
        seen.append(float(report.total.detach()))
    assert seen[-1] < 0.8 * seen[0]
