"""Training of the students: both learn, start from weights, and are judged; their losses follow the labels."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.geometry.projection import depth_to_points
from relief3d.losses.metric_depth import StudentOptions
from relief3d.losses.moge_local import PatchOptions
from relief3d.methods.metric_anything.pictures import PictureSet, PictureSource
from relief3d.methods.metric_anything.students.config import LabelConfig, PointLosses, StudentEvaluation
from relief3d.methods.metric_anything.students.point_losses import point_map_loss, point_weights
from relief3d.methods.metric_anything.students.recipes import depthmap, pointmap
from relief3d.methods.metric_anything.students.samples import StudentBatch
from relief3d.methods.metric_anything.students.task import DepthMapTask, PointMapTask
from relief3d.models.metric.pointmap import PointMapOutput
from relief3d.pipelines.train.registry import load_recipes
from relief3d.train.task import StepInfo

RULE = PictureSet(("room",), 2, views=2, size=(48, 64), lidar=(0, 0), texture_size=32)
OTHER = replace(RULE, worlds=1, seed=9)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for rule in (RULE, OTHER):
        PictureSource(folder, (rule,)).fill()
    return folder


def small(config: Any, root: Path, **changes: Any) -> Any:
    own = {
        "pictures": (RULE,),
        "folder": str(root),
        "evaluation": StudentEvaluation((OTHER,), near=2.0),
        "labels": LabelConfig("raw", reconstructed=1.0),
    }
    return replace(config, **{**own, **changes})


def trained(task: Any, steps: int, lr: float) -> tuple[Any, list[float]]:
    model, losses = task.model(), []
    optimiser = torch.optim.Adam(model.parameters(), lr)
    batch = task.batch(0)
    for step in range(steps):
        report = task.loss(model, batch, StepInfo(step, steps, torch_generator(0)), None)
        optimiser.zero_grad()
        report.total.backward()
        optimiser.step()
        losses.append(float(report.total.detach()))
    return model, losses


def test_both_students_are_recipes() -> None:
    recipes = load_recipes()
    assert {"metric-student-depthmap", "metric-student-pointmap"} <= set(recipes)
    for name, backbone in (("depthmap", "encoder.patch_encoder*"), ("pointmap", "encoder.backbone*")):
        config = recipes[f"metric-student-{name}"].make("full", "paper")
        assert config.train.optimiser.groups[0].pattern == backbone
        assert config.train.optimiser.groups[0].lr_scale == 0.1
    assert depthmap("full", "paper").train.steps == 200_000
    assert depthmap("full", "paper").losses == StudentOptions()  # 10 and 2, C = 400, as published


def test_student_depthmap_learns_and_is_judged(root: Path) -> None:
    task = DepthMapTask(small(depthmap("nano", "smoke"), root))
    model, losses = trained(task, 6, 3e-3)
    assert losses[-1] < 0.95 * losses[0]
    numbers = task.evaluate(model, 8)
    assert {"abs_rel", "delta1", "rmse", "boundary", "near", "room_abs_rel", "abs_rel_constant"} <= set(
        numbers
    )
    assert "fov" not in numbers and model.training
    panel = task.panels(model, 8)["room_0"]
    assert panel.dtype == torch.uint8 and panel.shape[0] == 3
    assert task.data_plan().sources[0].samples == 4


def test_student_pointmap_learns_depth_and_focal_length(root: Path) -> None:
    task = PointMapTask(small(pointmap("nano", "smoke"), root))
    model, losses = trained(task, 12, 3e-3)
    assert losses[-1] < 0.8 * losses[0]
    numbers = task.evaluate(model, 12)
    assert math.isfinite(numbers["abs_rel"]) and 0 <= numbers["fov"] < 120 and "fov_constant" in numbers
    assert model.config.tokens == task.config.tokens == tuple(task.model_card()["tokens"])
    assert task.panels(model, 12)


def test_decoders_objectives_and_starts_change_what_is_trained(root: Path, tmp_path: Path) -> None:
    config = small(depthmap("nano", "smoke"), root)
    inverse, unet = DepthMapTask(config), DepthMapTask(replace(config, skip_order="unet"))
    batch, info = inverse.batch(0), StepInfo(0, 1, torch_generator(0))
    model = inverse.model()
    assert not torch.equal(
        inverse.forward(model, batch).canonical, unet.forward(unet.model(), batch).canonical
    )
    values = set()
    for space in ("balanced", "depth", "log_depth", "inverse_depth"):
        task = DepthMapTask(replace(config, losses=StudentOptions(space=space)))  # type: ignore[arg-type]
        values.add(round(float(task.loss(model, batch, info, None).total.detach()), 5))
    assert len(values) == 4
    changed = {k: v + 1 for k, v in model.state_dict().items()}
    save_file(changed, tmp_path / "start.safetensors")
    begun = DepthMapTask(replace(config, start=str(tmp_path / "start.safetensors"))).model()
    torch.testing.assert_close(begun.state_dict(), changed)
    with pytest.raises(InputError):
        PointMapTask(
            small(pointmap("nano", "smoke"), root, start=str(tmp_path / "start.safetensors"))
        ).model()


def test_a_folder_of_settings_makes_the_same_weights(root: Path) -> None:
    one, two = (PointMapTask(small(pointmap("nano", "smoke"), root)).model() for _ in range(2))
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)


# ---- the point map's loss -------------------------------------------------------------------------------------------


def scene(kinds: tuple[str, ...] = ("A", "A")) -> tuple[StudentBatch, torch.Tensor]:
    y, x = torch.meshgrid(torch.arange(20) + 0.5, torch.arange(28) + 0.5, indexing="ij")
    depth = torch.stack([3 + 0.1 * x, 2 + 0.1 * y + 0.05 * x])
    depth[:, :4] = 0
    K = torch.tensor([[25.0, 0, 14.0], [0, 25.0, 10.0], [0, 0, 1]]).expand(2, 3, 3)
    count = len(kinds)
    batch = StudentBatch(
        torch.zeros(2, 3, 20, 28),
        depth,
        depth == 0,
        K,
        kinds,
        (False,) * count,
        ("a", "b"),  # type: ignore[arg-type]
    )
    return batch, depth_to_points(depth.clamp_min(0.5), K)


def parts(points: torch.Tensor, batch: StudentBatch, scale: float, options: PointLosses) -> dict[str, float]:
    found = PointMapOutput(points, None, (batch.depth > 0).float(), torch.full((2,), scale))
    report = point_map_loss(found, batch, options, torch_generator(0))
    return {k: float(v) for k, v in {**report.parts, "total": report.total}.items()}


def test_the_loss_vanishes_for_true_points_and_tells_scale_from_shape() -> None:
    batch, points = scene()
    options = PointLosses(8, (PatchOptions(4, 6, 2),), metric_depth=1.0, rays=1.0)
    assert parts(points, batch, 1.0, options)["total"] < 1e-3
    half = parts(0.5 * points, batch, 2.0, options)
    assert half["total"] < 1e-3  # points are up to scale, which a head of its own says
    wrong = parts(points, batch, 2.0, options)
    assert wrong["metric_depth"] == pytest.approx(math.log(2), abs=1e-4)
    assert wrong["metric_scale"] == pytest.approx(math.log(2) ** 2, abs=1e-3)
    assert wrong["global"] < 1e-4 and wrong["rays"] < 1e-3
    wide = points * torch.tensor([1.3, 1.3, 1.0])
    assert parts(wide, batch, 1.0, options)["rays"] > 0.03


def test_kinds_of_labels_and_options_choose_the_terms() -> None:
    published = point_weights(PointLosses())
    assert published["A"]["patch_64"] == 1 and "patch_64" not in published["B"]
    assert published["C"].get("edge") is None and published["A"]["metric_scale"] == 0.1
    few = point_weights(PointLosses(patches=(), metric_scale=0.0))
    assert not [t for t in few["A"] if t.startswith("patch_")] and few["A"]["metric_scale"] == 0
    _, points = scene()
    bent = points + 0.2 * torch.sin(9 * points)
    dense, sparse = (
        parts(bent, scene(kinds)[0], 1.0, PointLosses(8, ())) for kinds in (("A", "A"), ("C", "C"))
    )
    assert dense["edge"] > 0 and sparse["edge"] == 0 and sparse["global"] == pytest.approx(dense["global"])
    assert list(dense) == list(sparse)
    with pytest.raises(InputError, match="no patches of level 5"):
        PointLosses(patches=(PatchOptions(5, 4, 1),))
