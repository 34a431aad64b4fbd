"""Plain baselines and the main job as models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from relief3d.core.errors import InputError, RunError
from relief3d.eval.protocols.base import Query, Truth
from relief3d.eval.twins.rendered import query_scene
from relief3d.pipelines.evaluate import baselines
from relief3d.pipelines.evaluate.main_job import main_job
from relief3d.pipelines.evaluate.models import MODELS, default_models, find_model, named_model
from relief3d.worlds import demo_capture


def query(task: str = "mono_depth", wants: tuple[str, ...] = ("depth",), **tensors: torch.Tensor) -> Query:
    images = torch.zeros(2, 3, 8, 10, dtype=torch.uint8)
    return Query("scene/1", task, wants, query_scene(images), tensors)  # type: ignore[arg-type]


def test_models_are_found_by_name_and_task() -> None:
    assert find_model("constant", "mono_depth").make is not None
    with pytest.raises(InputError, match="did you mean constant"):
        named_model("constnt")
    with pytest.raises(InputError, match="models that do: ball"):
        find_model("constant", "object")
    for model in MODELS:
        assert (model.make is None) != (model.oracle is None)
    for task in {t for m in MODELS for t in m.tasks}:
        assert all(task in named_model(name).tasks for name in default_models(task))


def test_the_constant_answers_everything_asked() -> None:
    wants = ("depth", "world_from_cam", "cam_points", "K")
    answer = baselines.constant(query("views", wants))
    assert set(answer.tensors) == set(wants)
    assert (answer.tensors["depth"] == 2).all() and answer.tensors["K"].shape == (2, 3, 3)
    assert torch.allclose(answer.tensors["cam_points"][..., 2], torch.tensor(2.0))
    assert not torch.equal(*answer.tensors["world_from_cam"])


def test_the_best_constant_is_the_best() -> None:
    generator = torch.Generator().manual_seed(0)
    g = 1 + 9 * torch.rand(2, 8, 10, generator=generator)
    valid = torch.rand(2, 8, 10, generator=generator) > 0.4
    value = float(
        baselines.best_constant(query(), Truth({"depth": g, "valid": valid})).tensors["depth"][0, 0, 0]
    )

    def abs_rel(c: float) -> float:
        return float(((c - g[valid]).abs() / g[valid]).double().mean())

    assert abs_rel(value) <= min(abs_rel(float(c)) for c in torch.linspace(1, 10, 300)) + 1e-6


def test_prompt_interpolation_is_exact_on_planes_in_inverse_depth() -> None:
    rows, cols = torch.meshgrid(torch.arange(8.0), torch.arange(10.0), indexing="ij")
    truth = 1 / (0.1 + 0.02 * rows + 0.03 * cols)
    prompt = torch.zeros(1, 8, 10)
    for r, c in ((0, 0), (0, 9), (7, 0), (7, 9), (3, 4)):
        prompt[0, r, c] = truth[r, c]
    full = baselines.prompt_interpolation(query("prompted_depth", prompt=prompt)).tensors["depth"][0]
    assert torch.allclose(full, truth, rtol=1e-5)
    near = baselines.prompt_nearest(query("prompted_depth", prompt=prompt)).tensors["depth"][0]
    assert near[1, 1] == truth[0, 0] and near[6, 8] == truth[7, 9]


def test_few_or_collinear_prompts_fall_back_to_the_nearest() -> None:
    prompt = torch.zeros(1, 8, 10)
    prompt[0, 2, :5] = torch.tensor([1.0, 2, 3, 4, 5])
    full = baselines.prompt_interpolation(query("prompted_depth", prompt=prompt)).tensors["depth"][0]
    assert full[7, 9] == 5 and torch.isfinite(full).all()
    with pytest.raises(InputError, match="holds no points"):
        baselines.prompt_interpolation(query("prompted_depth", prompt=torch.zeros(1, 8, 10)))
    with pytest.raises(InputError, match="gives no prompt"):
        baselines.prompt_nearest(query("prompted_depth"))


def test_the_main_job_answers_at_the_size_of_the_pictures(tmp_path: Path) -> None:
    room = demo_capture(0, n_views=6, size=(160, 120))
    images = torch.stack(room.images)
    K = torch.stack([c.K for c in room.cameras if c.K is not None])
    poses = torch.stack([c.world_from_cam for c in room.cameras if c.world_from_cam is not None])
    scene = query_scene(images, K=K, world_from_cam=poses, metric=True)
    given = Query("room/clip 1", "views", ("depth", "world_from_cam", "cam_points"), scene)
    answer = main_job(tmp_path)(given)
    depth, truth = answer.need("depth", (6, 120, 160)), torch.stack(room.depths)
    assert bool((depth > 0).all()), "holes are filled"
    assert torch.allclose(answer.need("world_from_cam"), poses.double(), atol=1e-5), "given poses are kept"
    error = ((depth - truth).abs() / truth)[truth > 0]
    assert float(error.median()) < 0.05
    assert torch.allclose(answer.need("cam_points")[..., 2], depth, rtol=1e-4)
    assert not any(tmp_path.iterdir()), "working files are removed"


def test_pictures_that_cannot_be_registered_are_a_failure(tmp_path: Path) -> None:
    noise = torch.randint(0, 255, (3, 3, 64, 80), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with pytest.raises((InputError, RunError)):
        main_job(tmp_path)(Query("noise", "cameras", ("world_from_cam",), query_scene(noise)))
