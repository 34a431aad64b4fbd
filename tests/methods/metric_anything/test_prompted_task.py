"""Training on sparse prompts: samples by position, augmentation that keeps geometry, plain numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.methods.metric_anything.config import PromptConfig, PromptedConfig, SourcesConfig
from relief3d.methods.metric_anything.evaluation import abs_rel
from relief3d.methods.metric_anything.pictures import Pictures, PictureSet, PictureSource
from relief3d.methods.metric_anything.recipes import prompted
from relief3d.methods.metric_anything.samples import (
    PromptedStream,
    augmented,
    collate,
    make_sample,
    named_prompt,
    observed,
    returns_prompt,
    split,
)
from relief3d.methods.metric_anything.task import PromptedTask
from relief3d.train.task import StepInfo

SMALL = PictureSet(("room",), 2, views=2, size=(32, 48), lidar=(0, 0), texture_size=32)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PromptedConfig:
    folder = tmp_path_factory.mktemp("sets")
    PictureSource(folder, (SMALL,)).fill()
    return replace(prompted("nano", "smoke"), pictures=(SMALL,), folder=str(folder), crop=(24, 32), batch=4)


def same(a: object, b: object) -> None:
    for name in ("image", "depth", "off", "known"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0)
    for name in ("xy", "value", "nearest", "maps"):
        torch.testing.assert_close(
            getattr(a.candidates, name),  # type: ignore[attr-defined]
            getattr(b.candidates, name),  # type: ignore[attr-defined]
            rtol=0,
            atol=0,
        )


def test_batches_are_functions_of_their_position(config: PromptedConfig) -> None:
    one, other = PromptedStream(config), PromptedStream(config)
    other.batch(0)
    same(one.batch(3), other.batch(3))
    assert not torch.equal(one.batch(3).image, one.batch(4).image)
    parts = [one.batch(3, part, 2) for part in range(2)]
    assert parts[0].names + parts[1].names == one.batch(3).names
    torch.testing.assert_close(torch.cat([p.depth for p in parts]), one.batch(3).depth)
    with pytest.raises(InputError, match="cannot be shared"):
        one.batch(0, 0, 3)


def test_every_picture_comes_once_per_epoch(config: PromptedConfig) -> None:
    stream = PromptedStream(replace(config, batch=2))
    epochs = [[i for p in (2 * e, 2 * e + 1) for i, _ in stream.keys(p)] for e in range(6)]
    assert all(sorted(e) == [0, 1, 2, 3] for e in epochs)
    assert len({tuple(e) for e in epochs}) > 1


def plain(depth: torch.Tensor) -> Pictures:
    height, width = depth.shape
    K = torch.tensor([[[40.0, 0, 20.0], [0, 40.0, 10.0], [0, 0, 1]]])
    image = depth[None, None].repeat(1, 3, 1, 1).mul(20).to(torch.uint8)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    points = torch.stack([(x - 20) / 40 * depth, (y - 10) / 40 * depth, depth], -1).reshape(1, -1, 3)
    return Pictures(
        image, depth[None], torch.zeros(1, 3, height, width, dtype=torch.int8),
        torch.zeros(1, height, width, dtype=torch.uint8), K, points, points[:, ::7].clone(), ("plain",),
    )  # fmt: skip


def test_crops_and_mirrors_keep_cameras() -> None:
    """The inverse depth of a plane through a camera tells where each pixel looks."""
    y, x = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(48) + 0.5, indexing="ij")
    ray = torch.stack([(x - 20) / 40, (y - 10) / 40])
    depth = 1 / (0.3 + 0.1 * ray[0] + 0.05 * ray[1])
    config = PromptedConfig(pictures=(SMALL,), crop=(24, 32))
    seen = set()
    for seed in range(12):
        view = augmented(plain(depth), config, torch_generator(seed))
        v, u = torch.meshgrid(torch.arange(24) + 0.5, torch.arange(32) + 0.5, indexing="ij")
        K = view.K[0]
        turned = bool(view.depth[0, 0, 0] < view.depth[0, 0, -1])
        sign = -1 if turned else 1
        found = 1 / (0.3 + sign * 0.1 * (u - K[0, 2]) / 40 + 0.05 * (v - K[1, 2]) / 40)
        torch.testing.assert_close(view.depth[0], found, rtol=1e-4, atol=1e-4)
        seen.add(turned)
    assert seen == {True, False}


def test_returns_are_seen_where_the_picture_shows_them() -> None:
    """After crops and mirrors the cloud of a plane still lands on its own depth; the nearest return wins."""
    depth = 2 + 0.05 * torch.arange(48.0).expand(32, 48)
    config = PromptedConfig(pictures=(SMALL,), crop=(24, 32))
    for seed in range(6):
        view = augmented(plain(depth), config, torch_generator(seed))
        dense, few = (returns_prompt(view, kind) for kind in ("lidar_returns", "radar_returns"))
        torch.testing.assert_close(dense, view.depth[0], rtol=1e-4, atol=1e-4)
        assert 90 < int((few > 0).sum()) < 130  # every seventh
    view = augmented(plain(depth), config, torch_generator(0))
    nearer = replace(view, lidar=torch.cat([view.lidar, 0.5 * view.lidar, 3 * view.lidar], 1))
    torch.testing.assert_close(returns_prompt(nearer, "lidar_returns"), 0.5 * view.depth[0])
    lost = replace(view, lidar=torch.full_like(view.lidar, torch.nan))
    assert not bool(returns_prompt(lost, "lidar_returns").any())


def test_sources_give_their_own_depth_and_only_rendered_is_exact() -> None:
    depth = 2 + 0.05 * torch.arange(160.0).expand(128, 160)
    picture = plain(depth)
    same_picture, exact = observed(picture, SourcesConfig(), torch_generator(0))
    assert same_picture is picture and exact
    seen = [observed(picture, SourcesConfig(1, 1, 1), torch_generator(seed)) for seed in range(40)]
    assert 6 <= sum(exact for _, exact in seen) <= 20  # a third
    for made, exact in seen:
        assert bool((made.depth == picture.depth).all()) == exact
        assert torch.equal(made.image, picture.image)
    rare = [observed(picture, SourcesConfig(10**6, 0, 1), torch_generator(seed))[1] for seed in range(60)]
    assert 3 <= sum(rare) <= 18  # 15 % of all, however few there are
    with pytest.raises(InputError, match="must be rendered"):
        SourcesConfig(1, 1, 0)


def test_single_patterns_and_sources_reach_the_batches(config: PromptedConfig) -> None:
    mixed = replace(
        config,
        sources=SourcesConfig(1, 1, 1),
        prompts=PromptConfig(10, 50, "uniform", noise=False),
        batch=12,
    )
    batch = PromptedStream(mixed).batch(1)
    assert {True, False} == set(batch.exact.tolist())
    same(batch, PromptedStream(mixed).batch(1))
    assert float(batch.off.abs().max()) < 1e-5  # prompts are those of the source, errors and all
    grid = replace(config, prompts=PromptConfig(40, 40, "grid", noise=False))
    view, prompt, exact = PromptedStream(grid).draw(0, 5)
    rows, cols = torch.nonzero(prompt, as_tuple=True)
    steps = {int(s) for v in (rows, cols) for s in v.unique().diff().unique()}
    assert exact and steps <= {4, 8, 12} and bool((prompt[prompt > 0] == view.depth[0][prompt > 0]).all())
    radar = replace(config, prompts=PromptConfig(10, 10, "radar_returns", noise=False))
    _, prompt, _ = PromptedStream(radar).draw(1, 5)
    assert 5 <= int((prompt > 0).sum()) <= 10
    with pytest.raises(InputError, match="need pictures that have them"):
        replace(config, prompts=PromptConfig(patterns="lidar_returns"))


def test_training_can_start_from_weights(config: PromptedConfig, tmp_path: Path) -> None:
    first = PromptedTask(replace(config, train=replace(config.train, seed=7))).model()
    file = tmp_path / "model.safetensors"
    save_file(first.state_dict(), str(file))
    again = PromptedTask(replace(config, start=str(file))).model()
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    with pytest.raises(InputError, match="do not fit PromptRefiner"):
        PromptedTask(replace(config, size="micro", start=str(file))).model()
    with pytest.raises(InputError, match="no such file of weights"):
        PromptedTask(replace(config, start=str(tmp_path / "none"))).model()


def test_samples_know_which_points_are_wrong() -> None:
    depth = torch.full((24, 32), 2.0)
    depth[:4] = 0  # sky
    prompt = torch.zeros(24, 32)
    prompt[10, 5], prompt[12, 20], prompt[20, 9], prompt[15, 15], prompt[2, 3] = 2.0, 3.0, 2.0, 1.0, 2.0
    view = plain(depth)
    view = replace(view, image=view.image.float() / 255)
    sample = make_sample(view, prompt)
    order = sample.candidates.xy[0].long().tolist()
    off = dict(zip(map(tuple, order), sample.off[0].tolist(), strict=True))
    known = dict(zip(map(tuple, order), sample.known[0].tolist(), strict=True))
    assert abs(off[(20, 12)] + 0.4055) < 1e-3 and abs(off[(15, 15)] - 0.6931) < 1e-3
    assert abs(off[(5, 10)]) < 1e-5 and known[(5, 10)] and not known[(3, 2)]
    flat = sample.truth[0][4:]
    torch.testing.assert_close(
        flat + sample.candidates.middle, torch.full_like(flat, -0.6931), atol=1e-3, rtol=0
    )


def test_split_and_collate_are_inverse(config: PromptedConfig) -> None:
    batch = PromptedStream(config).batch(1)
    parts = split(batch, 3)
    assert [len(p.names) for p in parts] == [2, 2]
    same(collate([q for p in parts for q in split(p, len(p.names))]), batch)


def test_named_prompts() -> None:
    depth = torch.rand(24, 32, generator=torch_generator(0)) + 1
    image = torch.rand(3, 24, 32, generator=torch_generator(1))
    clean = named_prompt("uniform-100", depth, image, 5)
    assert int((clean > 0).sum()) == 100 and bool((clean[clean > 0] == depth[clean > 0]).all())
    noisy = named_prompt("uniform-100-noisy", depth, image, 5)
    ratio = (noisy[noisy > 0] / depth[noisy > 0]).log().abs()
    assert 0.005 < float(ratio.median()) < 0.03 and 1 <= int((ratio > 0.15).sum()) <= 12
    for wrong in ("uniform", "uniform-x", "uniform-10-dirty", "spiral-10"):
        with pytest.raises(InputError, match="names no prompt"):
            named_prompt(wrong, depth, image, 0)


def test_abs_rel_is_the_mean_over_pictures_of_their_means() -> None:
    truth = torch.tensor([[[1.0, 2.0], [0, 0]], [[4.0, 4.0], [4.0, 4.0]]])
    found = torch.tensor([[[1.5, 2.0], [9, 9]], [[4.0, 4.4], [4.0, 4.0]]])
    assert abs(abs_rel(found, truth) - (0.25 + 0.025) / 2) < 1e-6


def test_the_task_learns_and_judges(config: PromptedConfig) -> None:
    task = PromptedTask(replace(config, evaluation=replace(config.evaluation, worlds=1)))
    model = task.model()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    batch = task.batch(0)
    losses = []
    for step in range(12):
        report = task.loss(model, batch, StepInfo(step, 12, torch_generator(0)), None)
        assert report.per_sample is not None and report.per_sample.shape == (4,)
        optimiser.zero_grad()
        report.total.backward()
        optimiser.step()
        losses.append(float(report.total.detach()))
    assert losses[-1] < 0.9 * losses[0]
    numbers = task.evaluate(model, 12)
    assert set(numbers) == {"room_uniform-60"} | {
        f"room_uniform-60_{n}" for n in ("nearest", "linear", "bilateral", "guided")
    }
    assert 0 < numbers["room_uniform-60_linear"] < numbers["room_uniform-60_nearest"] < 0.3
    panel = task.panels(model, 12)["room_0"]
    assert panel.dtype == torch.uint8 and panel.shape[0] == 3
    torch.testing.assert_close(
        torch.cat([p.data.flatten() for p in task.model().parameters()]),
        torch.cat([p.data.flatten() for p in task.model().parameters()]),
    )


def test_prompts_of_the_paper_are_uniform_and_clean(config: PromptedConfig) -> None:
    stream = PromptedStream(
        replace(config, prompts=PromptConfig(low=10, high=50, patterns="uniform", noise=False))
    )
    for position in range(3):
        batch = stream.batch(position)
        assert float(batch.off.abs().max()) < 1e-5
        assert bool(((batch.candidates.count >= 10) & (batch.candidates.count <= 50)).all())
