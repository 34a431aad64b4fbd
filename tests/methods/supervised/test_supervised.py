"""Supervised training: losses that a perfect answer makes small, baselines, batches by position."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch

from relief3d.core.contract import Batch, Prediction
from relief3d.core.errors import InputError
from relief3d.eval.metrics.cameras import pair_errors
from relief3d.methods.supervised import evaluation, losses, samples
from relief3d.methods.supervised.config import LossConfig, SupervisedConfig, WorldShare
from relief3d.methods.supervised.panels import GAP, TITLE, scene_panel
from relief3d.methods.supervised.recipes import RECIPES
from relief3d.methods.supervised.task import SupervisedTask
from relief3d.models.multiview.pose_encoding import encode_cameras
from relief3d.models.multiview.reliev3r import Reliev3rNet, Reliev3rOutput
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


def test_the_weight_of_confidence_is_its_weight(batch: Batch) -> None:
    t = truth_of(batch)
    logits = torch.ones_like(t.local_points[..., 0])
    off, twice = (
        losses._pi3(t.local_points * 1.3, t.world_from_cam, logits, batch, LossConfig(confidence=weight))
        for weight in (0.0, 2.0)
    )
    assert "confidence" not in off.parts and float(twice.parts["confidence"]) > 0
    torch.testing.assert_close(twice.total - off.total, 2 * twice.parts["confidence"])


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


def test_held_out_worlds_are_no_training_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even of a training run with the evaluation's own seed."""
    seen: list[int] = []
    real = samples.world_source

    def noted(share: WorldShare, seed: int, device: str = "cpu") -> object:
        seen.append(seed)
        return real(share, seed, device)

    monkeypatch.setattr(samples, "world_source", noted)
    for seed in (0, 1, SMOKE.evaluation.seed):
        samples.training_stream(replace(SMOKE, train=replace(SMOKE.train, seed=seed)), "cpu")
    trained = set(seen)
    samples.held_out(replace(SMOKE.evaluation, scenes=1, views=2), "tabletop", (42, 42))
    assert len(trained) == 3 and len(seen) == 4 and seen[-1] not in trained


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


def test_panels_show_five_titled_pictures_per_view(task: SupervisedTask) -> None:
    pictures = task.panels(task.model().eval(), 0)
    assert set(pictures) == {"tabletop_0", "tabletop_1"}
    picture = pictures["tabletop_0"]
    side, top = 42 * 3, TITLE + GAP
    assert picture.shape == (3, top + 3 * side + 2 * GAP, 5 * side + 4 * GAP) and picture.dtype == torch.uint8
    scenes = task._held_out["tabletop"]
    shown = picture[:, top : top + side : 3, :side:3]
    assert torch.equal(shown, (scenes.images[0, 0] * 255).round().to(torch.uint8))
    for column in range(5):  # a title over every column, white between rows
        left = column * (side + GAP)
        assert (picture[:, :TITLE, left : left + side] < 128).any()
    assert (picture[:, top + side : top + side + GAP] == 255).all()


def test_panels_compare_depth_in_one_range(task: SupervisedTask) -> None:
    """A perfect answer in another unit has the colours of the truth and no error; a wrong one has not."""
    scenes = task._held_out["tabletop"]
    assert scenes.depth is not None and scenes.depth_valid is not None
    confidence = torch.zeros_like(scenes.depth)
    confidence[0, 0, 0, 0], confidence[0, 1, 0, 0] = 0.25, -0.5
    picture = scene_panel(scenes, Prediction(depth=scenes.depth * 7, depth_confidence=confidence))
    side, top = 42 * 3, TITLE + GAP
    cells = [picture[:, top : top + side, c * (side + GAP) : c * (side + GAP) + side] for c in range(5)]
    assert torch.equal(cells[1], cells[2])
    known = scenes.depth_valid[0, 0].repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert len(cells[4][:, known].unique(dim=1).T) == 1  # one colour: no error anywhere
    assert not torch.equal(cells[3][:, 0, 0], cells[3][:, -1, -1])  # the most certain pixel stands out
    wrong = scenes.depth.clone()
    wrong[0, 0] *= 2  # one ratio for all views, not one per view
    other = scene_panel(scenes, Prediction(depth=wrong, depth_confidence=confidence))
    assert not torch.equal(other[:, top : top + side, side + GAP : 2 * side + GAP], cells[2])
    assert not torch.equal(other[:, top : top + side, 4 * (side + GAP) :], cells[4])


def test_depth_that_is_left_out_counts_as_wrong(task: SupervisedTask) -> None:
    scenes = task._held_out["tabletop"]
    assert scenes.depth is not None and scenes.depth_valid is not None
    holes = scenes.depth.clone()
    holes[:, :, ::2] = 0
    left_out = (scenes.depth_valid & (holes == 0)).flatten(1).sum(1) / scenes.depth_valid.flatten(1).sum(1)
    assert evaluation.sequence_abs_rel(holes, scenes) == pytest.approx(float(left_out.mean()), abs=1e-5)


def test_numbers_are_what_arithmetic_says(task: SupervisedTask) -> None:
    """AbsRel, AUC and the constants, computed again with loops in numpy."""
    scenes = task._held_out["tabletop"]
    assert scenes.depth is not None and scenes.depth_valid is not None and scenes.world_from_cam is not None
    g = torch.Generator().manual_seed(1)
    depth = (scenes.depth + 1).sqrt() * (1 + 0.2 * torch.rand(scenes.depth.shape, generator=g))
    poses = scenes.world_from_cam.clone()
    poses[..., :3, 3] += 0.3 * torch.randn(poses[..., :3, 3].shape, generator=g)
    found_depth, found_poses = [], []
    for s in range(len(depth)):
        valid = scenes.depth_valid[s].numpy()
        d, t = depth[s].double().numpy()[valid], scenes.depth[s].double().numpy()[valid]
        found_depth.append(np.mean(np.abs(d * np.median(t) / np.median(d) - t) / t))
        a, b = poses[s].double().numpy(), scenes.world_from_cam[s].double().numpy()
        for i in range(len(a)):
            for j in range(i + 1, len(a)):
                p, q = np.linalg.inv(a[i]) @ a[j], np.linalg.inv(b[i]) @ b[j]
                turn = np.degrees(np.arccos(np.clip((np.trace(p[:3, :3].T @ q[:3, :3]) - 1) / 2, -1, 1)))
                u, v = p[:3, 3] / np.linalg.norm(p[:3, 3]), q[:3, 3] / np.linalg.norm(q[:3, 3])
                found_poses.append(max(0, 1 - max(turn, np.degrees(np.arccos(np.clip(u @ v, -1, 1)))) / 30))
    assert evaluation.sequence_abs_rel(depth, scenes) == pytest.approx(float(np.mean(found_depth)), rel=2e-3)
    assert evaluation.area_under_recall(poses, scenes.world_from_cam) == pytest.approx(
        100 * np.mean(found_poses), abs=0.05
    )


def test_constants_come_from_training_and_choose_the_best(task: SupervisedTask) -> None:
    scenes = task._held_out["tabletop"]
    batch = task.batch(0)
    constants = evaluation.constants_of(batch)
    assert constants.trajectories.shape == batch.world_from_cam.shape  # type: ignore[union-attr]
    assert batch.depth is not None and batch.depth_valid is not None
    y, x = 40, 20
    logs = []
    for s in range(len(batch.depth)):
        median = batch.depth[s][batch.depth_valid[s]].median()
        for v in range(batch.depth.shape[1]):
            if batch.depth_valid[s, v, y, x]:
                logs.append(float((batch.depth[s, v, y, x] / median).log()))
    assert float(constants.depth_map[y, x]) == pytest.approx(float(np.exp(np.mean(logs))), rel=1e-4)
    own = scenes.world_from_cam
    assert own is not None
    both = evaluation.Constants(torch.stack([own[1].roll(1, 0), own[0]]).double(), torch.ones(42, 42))
    single = [
        evaluation.score_constants(evaluation.Constants(both.trajectories[i : i + 1], both.depth_map), scenes)
        for i in range(2)
    ]
    best = max(n["auc30_constant"] for n in single)
    assert (
        evaluation.score_constants(both, scenes)["auc30_constant"]
        == best
        > min(n["auc30_constant"] for n in single)
    )


def test_views_come_in_random_order_in_training_and_scoring() -> None:
    """An arc advances one way, so stored order would give poses away."""
    for budget in ("smoke", "mini", "gpu", "paper"):
        assert RECIPES[0].make("nano", budget).stream.grouping.shuffled  # type: ignore[arg-type]
    task = task_of(evaluation=replace(SMOKE.evaluation, scenes=6, views=4))
    orders = [
        [[int(name.rsplit("#")[-1]) for name in row] for row in rows]
        for rows in (task._held_out["tabletop"].names, task.batch(1).names)
    ]
    for rows in orders:
        assert any(row != sorted(row) for row in rows) and any(row != sorted(row)[::-1] for row in rows)


def test_held_out_families_are_no_training_family() -> None:
    for recipe in RECIPES:
        for budget in ("mini", "gpu", "paper"):
            config = recipe.make("nano", budget)  # type: ignore[arg-type]
            trained = {share.family for share in config.worlds}
            assert set(config.evaluation.families) - trained, (recipe.name, budget)
            assert set(config.evaluation.families) & trained


def test_reliev3r_confidence_is_taken_back_to_its_logit(batch: Batch) -> None:
    """It is 2 sigmoid(logit), so 1 is a logit of 0: half certain."""
    t = truth_of(batch)
    flat = torch.zeros_like(t.local_points[..., 0])
    out = Reliev3rOutput(
        depth=t.local_points[..., 2],
        confidence=flat + 2 * torch.sigmoid(torch.tensor(1.5)),
        world_from_cam=t.world_from_cam,
        K=batch.K,
        local_points=t.local_points,
        world_points=t.local_points,
        fov=None,
    )
    fake = _Fake(out)
    mine = losses.supervised_loss(fake, batch, LossConfig(), None)
    want = losses._pi3(t.local_points, t.world_from_cam, flat + 1.5, batch, LossConfig())
    torch.testing.assert_close(mine.parts["confidence"], want.parts["confidence"], rtol=1e-4, atol=1e-6)


class _Fake(Reliev3rNet):
    """Says what it was given."""

    def __init__(self, out: Reliev3rOutput) -> None:
        torch.nn.Module.__init__(self)
        self.out = out

    def forward(self, *_: object, **__: object) -> Reliev3rOutput:
        return self.out


def test_published_schedules() -> None:
    """Specification of the multi-view models, 2.5 and 4.5; VGGT, section 4."""
    pi3, vggt, reliev3r = (r.make("full", "paper") for r in RECIPES)
    assert (pi3.train.steps, vggt.train.steps, reliev3r.train.steps) == (64_000, 160_000, 30_000)
    assert pi3.train.optimiser.lr == 5e-5 and pi3.train.optimiser.betas == (0.9, 0.95)
    assert (
        pi3.train.optimiser.groups[0].pattern == "encoder.*" and pi3.train.optimiser.groups[0].lr_scale == 0.1
    )
    assert pi3.train.schedule.end == 1e-5 and pi3.train.schedule.warmup == 0
    assert (vggt.train.optimiser.lr, vggt.train.schedule.warmup) == (2e-4, 8000)
    assert (reliev3r.train.optimiser.lr, reliev3r.stream.views, reliev3r.stream.images) == (1e-4, (8, 8), 512)
    assert reliev3r.train.schedule.end * reliev3r.train.optimiser.lr == pytest.approx(1e-6)
    assert pi3.losses.normals and all(c.train.optimiser.clip_norm == 1.0 for c in (pi3, vggt, reliev3r))


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
