"""Training of the pyramid teacher: the lean network's samples, the condition without a prior, the paper's loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from relief3d.core.seeding import torch_generator
from relief3d.data.metric_prompt import MetricPrompt
from relief3d.data.prompt_preparation import prepare_prompt
from relief3d.methods.metric_anything.config import PyramidTeacherConfig
from relief3d.methods.metric_anything.pictures import PictureSet, PictureSource
from relief3d.methods.metric_anything.pyramid import PyramidTask, condition_of, pyramid_depth
from relief3d.methods.metric_anything.recipes import prompted, pyramid
from relief3d.methods.metric_anything.samples import PromptedStream
from relief3d.models.metric.injection import INJECTIONS
from relief3d.train.task import StepInfo

SMALL = PictureSet(("room",), 2, views=2, size=(32, 48), lidar=(0, 0), texture_size=32)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PyramidTeacherConfig:
    folder = tmp_path_factory.mktemp("sets")
    PictureSource(folder, (SMALL,)).fill()
    return replace(pyramid("nano", "smoke"), pictures=(SMALL,), folder=str(folder), crop=(24, 32), batch=2)


def info() -> StepInfo:
    return StepInfo(0, 10, torch_generator(0))


def test_both_networks_see_the_same_samples(config: PyramidTeacherConfig) -> None:
    lean = replace(
        prompted("nano", "smoke"),
        pictures=config.pictures,
        folder=config.folder,
        crop=config.crop,
        batch=config.batch,
        prompts=config.prompts,
        sources=config.sources,
    )
    one, other = PyramidTask(config).batch(3), PromptedStream(lean).batch(3)
    assert one.names == other.names
    torch.testing.assert_close(one.image, other.image, rtol=0, atol=0)
    torch.testing.assert_close(one.depth, other.depth, rtol=0, atol=0)
    assert torch.equal(one.exact, other.exact)
    points = one.condition[:, 2].flatten(1).sum(1)
    assert points.tolist() == other.candidates.count.tolist()


def test_the_condition_is_that_of_inference(config: PyramidTeacherConfig) -> None:
    prompt = torch.zeros(24, 32)
    where = torch.randperm(24 * 32, generator=torch_generator(0))[:40]
    prompt.view(-1)[where] = 1 + 3 * torch.rand(40, generator=torch_generator(1))
    wanted = prepare_prompt(MetricPrompt.from_depth_map(prompt)).condition
    torch.testing.assert_close(condition_of(prompt), wanted)


def test_the_loss_is_the_paper_s(config: PyramidTeacherConfig) -> None:
    """A prediction that is right everywhere costs nothing; one that is off by c costs 15 c; gradients only rendered."""
    task = PyramidTask(config)
    batch = task.batch(0)
    depth = torch.full_like(batch.depth, 2.0)
    depth[:, 6:20, 8:28] = 4.0
    batch = replace(batch, depth=depth, exact=torch.tensor([True, False]))
    width = batch.image.shape[-1]
    truth = (batch.focal / width)[:, None, None] / depth

    class Fixed(torch.nn.Module):
        def __init__(self, value: torch.Tensor) -> None:
            super().__init__()
            self.value = value

        def forward(self, images: torch.Tensor, condition: torch.Tensor | None) -> object:
            assert condition is not None and condition.shape == (2, 3, 128, 128)
            return type("Said", (), {"canonical": self.value})()

    assert float(task.loss(Fixed(truth), batch, info(), None).total) < 1e-5
    shifted = task.loss(Fixed(truth + 0.1), batch, info(), None)
    assert abs(float(shifted.total) - 1.5) < 1e-4
    wavy = truth + 0.02 * torch.sin(torch.arange(width) * 1.0)
    rendered = task.loss(Fixed(wavy), replace(batch, exact=torch.tensor([True, True])), info(), None)
    measured = task.loss(Fixed(wavy), replace(batch, exact=torch.tensor([False, False])), info(), None)
    assert float(rendered.parts["gradient"]) > 0.1 and float(measured.parts["gradient"]) == 0
    assert float(measured.parts["absolute"]) < float(
        rendered.parts["absolute"]
    )  # the largest fifth is dropped


@pytest.mark.parametrize("kind", [*INJECTIONS, "none"])
def test_every_injection_trains(config: PyramidTeacherConfig, kind: str) -> None:
    task = PyramidTask(replace(config, injection=kind))  # type: ignore[arg-type]
    model, batch = task.model(), task.batch(0)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(2):  # behind two layers of zeros the condition comes through with the second step
        task.loss(model, batch, info(), None).total.backward()
        optimiser.step()
    told = {n for n, p in model.named_parameters() if "injection" in n or ".prompt" in n}
    moved = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert bool(told & moved) == (kind != "none")
    image, prompt = batch.image[0], torch.where(batch.condition[0, 2] > 0, batch.depth[0], 0.0)
    one = pyramid_depth(model, image, prompt, batch.focal[0], blind=kind == "none")  # type: ignore[arg-type]
    other = pyramid_depth(model, image, 2 * prompt, batch.focal[0], blind=kind == "none")  # type: ignore[arg-type]
    assert one.shape == image.shape[-2:] and model.training
    assert torch.equal(one, other) == (kind == "none")


def test_evaluation_has_the_same_columns_as_the_lean_network_s(config: PyramidTeacherConfig) -> None:
    held = replace(config.evaluation, worlds=1, size=(32, 48))
    task = PyramidTask(replace(config, evaluation=held))
    numbers = task.evaluate(task.model(), 0)
    assert set(numbers) == {"room_uniform-60"} | {
        f"room_uniform-60_{n}" for n in ("nearest", "linear", "bilateral", "guided")
    }
    assert task.panels(task.model(), 0)["room_0"].dtype == torch.uint8
    assert task.model_card()["injection"] == "dpt"
    assert [len(p.names) for p in task.split(task.batch(0), 2)] == [1, 1]
