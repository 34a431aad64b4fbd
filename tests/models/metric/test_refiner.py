"""The lean prompted network: units, padding, shapes, gradients, how it starts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.data.prompt_candidates import PromptCandidates, prompt_candidates
from relief3d.models.metric.prompted import PromptedDepth, shrink_prompt, working_size
from relief3d.models.metric.refiner import PromptRefiner, RefinerConfig, _settled

SMALL = RefinerConfig(widths=(8, 12, 16), blocks=(1, 1, 1), key=4, fine=4, point=8)


def net(config: RefinerConfig = SMALL) -> PromptRefiner:
    torch.manual_seed(0)
    model = PromptRefiner(config).eval()
    with torch.no_grad():  # away from the start, where many weights are zero
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return model


def prompt(count: int, seed: int = 0, unit: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    depth = 1 + 3 * torch.rand(32, 40, generator=generator)
    keep = torch.rand(32, 40, generator=generator) < count / 1280
    return torch.where(keep, depth, 0.0) * unit


def picture(seed: int = 0, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, 32, 40, generator=torch.Generator().manual_seed(seed))


def test_results_do_not_depend_on_the_unit() -> None:
    model = net()
    with torch.no_grad():
        one = model(picture(), prompt_candidates(prompt(60)))
        other = model(picture(), prompt_candidates(prompt(60, unit=1000.0)))
    torch.testing.assert_close(one.log_inverse, other.log_inverse, atol=2e-5, rtol=0)
    assert one.log_inverse.shape == (1, 32, 40) and one.mixture.shape == (1, 32, 40)


def test_padding_and_neighbours_in_a_batch_change_nothing() -> None:
    model = net()
    few, many = prompt_candidates(prompt(20, 1)), prompt_candidates(prompt(200, 2))
    with torch.no_grad():
        alone = model(picture(5), few)
        both = model(picture(5).repeat(2, 1, 1, 1), PromptCandidates.stack([few, many]))
    torch.testing.assert_close(alone.log_inverse[0], both.log_inverse[0], atol=1e-5, rtol=0)
    n = int(few.count)
    torch.testing.assert_close(alone.doubt[0, :n], both.doubt[0, :n], atol=1e-5, rtol=0)


def test_one_value_everywhere_stays_that_value_at_the_start() -> None:
    torch.manual_seed(0)
    model = PromptRefiner(SMALL).eval()
    flat = torch.where(prompt(60) > 0, 2.5, 0.0)
    with torch.no_grad():
        found = model(picture(), prompt_candidates(flat))
    assert float(found.mixture.abs().max()) < 0.05
    assert float(found.log_inverse.abs().max()) < 0.2


def test_the_mixture_is_a_choice_among_candidates() -> None:
    """Without planes and corrections it can leave the range of the points nowhere."""
    model = net()
    given = prompt_candidates(prompt(60))
    flat = PromptCandidates(**{**vars(given), "slope": torch.zeros_like(given.slope)})
    with torch.no_grad():
        last = model.judge[-1]
        assert isinstance(last, torch.nn.Linear)
        last.weight[1] = 0
        last.bias[1] = 0
        found = model(picture(), flat)
    low, high = float(given.value.min()), float(given.value.max())
    assert low - 1e-5 <= float(found.mixture.min()) and float(found.mixture.max()) <= high + 1e-5


def test_it_starts_by_choosing_points_of_the_same_colour() -> None:
    """Two halves of two colours and depths: without training each cell already follows its own half."""
    torch.manual_seed(0)
    model = PromptRefiner(SMALL).eval()
    depth = torch.where(torch.arange(40) < 20, 2.0, 4.0).expand(32, 40)
    image = torch.where(torch.arange(40) < 20, 0.2, 0.9).expand(1, 3, 32, 40).contiguous()
    generator = torch.Generator().manual_seed(3)
    given = prompt_candidates(torch.where(torch.rand(32, 40, generator=generator) < 0.05, depth, 0.0))
    given = replace(given, slope=torch.zeros_like(given.slope), maps=torch.zeros_like(given.maps))
    with torch.no_grad():
        model.dense_logits.weight.zero_()
        model.dense_logits.bias.fill_(-30.0)  # type: ignore[union-attr]
        found = model(image, given).mixture + given.middle
    truth = -depth.log()
    assert float((found[0, :, 17:23] - truth[:, 17:23]).abs().mean()) < 0.01


def test_planes_are_carried_to_every_pixel() -> None:
    """Points on one plane of log inverse depth: all candidates agree, so the choice is that plane, pixel by pixel."""
    torch.manual_seed(0)
    model = PromptRefiner(SMALL).eval()
    ys, xs = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    wanted = 0.01 * xs - 0.006 * ys
    keep = torch.rand(32, 40, generator=torch.Generator().manual_seed(3)) < 0.1
    given = prompt_candidates(torch.where(keep, torch.exp(-wanted), 0.0))
    given = replace(given, slope=torch.tensor([0.01, -0.006]).expand_as(given.slope))
    with torch.no_grad():
        model.dense_logits.weight.zero_()
        model.dense_logits.bias.fill_(-1e5)  # type: ignore[union-attr]
        last = model.judge[-1]
        assert isinstance(last, torch.nn.Linear)
        last.weight[1:3] = 0
        last.bias[1], last.bias[2] = 0, 20  # no correction of values, slopes kept
        choose = model.choose[-1]
        assert isinstance(choose, torch.nn.Linear)
        choose.bias[1] = -1e5  # planes alone
        found = model(picture(), given).mixture + given.middle
    torch.testing.assert_close(found[0], wanted, atol=1e-4, rtol=0)


def test_every_parameter_learns() -> None:
    model = net()
    model.train()
    found = model(picture(), prompt_candidates(prompt(60)))
    (found.log_inverse.square().mean() + found.log_error.mean() + found.doubt.mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name


def test_guides_are_candidates() -> None:
    model = net(RefinerConfig(widths=(8, 12, 16), blocks=(1, 1, 1), key=4, fine=4, point=8, guides=2))
    given = prompt_candidates(prompt(60))
    guides = torch.zeros(1, 2, 16, 20)
    with torch.no_grad():
        one = model(picture(), given, guides)
        other = model(picture(), given, guides + 1.0)
        model.dense_logits.bias.fill_(-20.0)  # type: ignore[union-attr]
        model.dense_logits.bias[8:12] = 40.0  # type: ignore[index]
        chosen = model(picture(), given, guides + 0.7)
    assert float((one.log_inverse - other.log_inverse).abs().max()) > 1e-3
    torch.testing.assert_close(chosen.mixture, torch.full_like(chosen.mixture, 0.7), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(34, 46), (2, 2)])
def test_sizes_that_are_no_multiple_of_the_coarsest_stride(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    depth = 1 + torch.rand(size, generator=generator)
    with torch.no_grad():
        found = net()(torch.rand(1, 3, *size, generator=generator), prompt_candidates(depth))
    assert found.log_inverse.shape == (1, *size) and math.isfinite(float(found.log_inverse.sum()))


def test_points_go_to_the_pixel_that_holds_them_and_the_nearest_wins() -> None:
    depth = torch.zeros(6, 8)
    depth[0, 0], depth[1, 1], depth[5, 7] = 3.0, 2.0, 5.0
    small = shrink_prompt(depth, (3, 4))
    assert small.tolist() == [[2.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 5.0]]
    assert working_size(375, 1242, 480) == (144, 480)
    assert working_size(1, 1, 480) == (2, 2)
    assert working_size(100, 100, 480) == (100, 100)


@pytest.mark.parametrize("size", [(32, 40), (33, 47), (90, 60), (1, 1)])
def test_any_size_and_unit(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = PromptedDepth(SMALL).eval()
    generator = torch.Generator().manual_seed(1)
    depth = 2 + torch.rand(size, generator=generator)
    sparse = torch.where(torch.rand(size, generator=generator) < 0.2, depth, 0.0)
    sparse[0, 0] = 2.5
    images = torch.rand(1, 3, *size, generator=generator)
    with torch.no_grad():
        metres = model.predict_sparse(images, [sparse], side=48)
        feet = model.predict_sparse(images, [sparse * 3.28], side=48)
    assert metres.depth.shape == (1, *size) and bool(torch.isfinite(metres.depth).all())
    assert 1.0 < float(metres.depth.median()) < 4.0
    torch.testing.assert_close(feet.depth, metres.depth * 3.28, rtol=1e-4, atol=0)
    assert metres.confidence is not None and 0 < float(metres.confidence.min()) <= 1
    fx = torch.tensor(float(size[1]))
    torch.testing.assert_close(metres.canonical, fx / (size[1] * metres.depth), rtol=1e-5, atol=0)


def test_unusable_prompts_are_refused() -> None:
    model = PromptedDepth(SMALL)
    images = torch.rand(1, 3, 16, 20)
    bad = torch.zeros(16, 20)
    with pytest.raises(InputError, match="no points"):
        model.predict_sparse(images, [bad])
    bad[3, 3] = -2
    with pytest.raises(InputError, match="negative"):
        model.predict_sparse(images, [bad], side=8)
    with pytest.raises(InputError, match="of that size"):
        model.predict_sparse(images, [torch.ones(8, 10)])


def test_the_mixture_takes_one_side_of_an_outline() -> None:
    """Two surfaces, 0.02 apart within each: the mean lies on the heavier one, never between."""
    values = torch.tensor([0.0, 0.02, 1.0, 1.02]).reshape(1, 4, 1, 1)
    for weights, low, high in (
        ((0.3, 0.3, 0.2, 0.2), 0.0, 0.02),
        ((0.2, 0.2, 0.3, 0.3), 1.0, 1.02),
        ((0.0, 0.0, 1.0, 0.0), 1.0, 1.0),
        ((0.26, 0.26, 0.24, 0.24), 0.0, 0.02),
    ):
        log_weight = (torch.tensor(weights) + 1e-12).log().reshape(1, 4, 1, 1)
        mixture, spread, certain = _settled(values, log_weight, torch.tensor([0.0]))
        assert low - 1e-3 <= float(mixture) <= high + 1e-3
        plain = sum(
            w * abs(v - float(mixture)) for w, v in zip(weights, values.flatten().tolist(), strict=True)
        )
        assert math.isclose(float(spread), plain, abs_tol=1e-4) and math.isclose(
            float(certain), max(weights), rel_tol=1e-4
        )


def test_candidates_that_agree_are_averaged() -> None:
    values = torch.tensor([0.01, -0.01, 0.0, 0.02]).reshape(1, 4, 1, 1).requires_grad_()
    log_weight = torch.full((1, 4, 1, 1), 0.25).log()
    mixture = _settled(values, log_weight, torch.tensor([0.1]))[0]
    assert abs(float(mixture.detach()) - 0.005) < 1e-3
    mixture.sum().backward()
    assert float(values.grad.min()) > 0.2  # type: ignore[union-attr]
