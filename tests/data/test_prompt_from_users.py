"""Prompts as users bring them: right ones arrive where they belong, wrong ones are refused in a clear sentence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from relief3d.core.contract import SparseDepth
from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.data.metric_prompt import MetricPrompt, coherence
from relief3d.data.prompt_patterns import lidar_hits, make_prompt
from relief3d.data.prompt_preparation import prepare_prompt, prompt_facts, unit_hint
from relief3d.geometry.projection import depth_to_points, intrinsics

SIZE = (48, 64)


def truth() -> Tensor:
    v, u = torch.meshgrid(torch.linspace(0, 1, SIZE[0]), torch.linspace(0, 1, SIZE[1]), indexing="ij")
    return 1.5 + 3 * u + v + 2.0 * ((u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.08)


def dotted(count: int = 120, seed: int = 0) -> Tensor:
    return make_prompt(str(count), truth(), seed=seed).depth


def test_a_good_map_arrives_unchanged_and_without_notes() -> None:
    prompt = MetricPrompt.from_depth_map(dotted(), size=SIZE)
    assert torch.equal(prompt.depth, dotted()) and prompt.points == 120 and prompt.notes == ()
    drawn = MetricPrompt.from_depth_map(truth(), count=33, seed=4)
    assert drawn.points == 33 and torch.equal(drawn.depth[drawn.mask], truth()[drawn.mask])
    assert torch.equal(drawn.mask, MetricPrompt.from_depth_map(truth(), count=33, seed=4).mask)
    assert not torch.equal(drawn.mask, MetricPrompt.from_depth_map(truth(), count=33, seed=5).mask)
    half = torch.zeros(SIZE, dtype=torch.bool)
    half[:, :32] = True
    assert not bool(MetricPrompt.from_depth_map(truth(), valid=half).mask[:, 32:].any())


def test_units_are_named_or_plausible() -> None:
    mm = (dotted() * 1000).round().to(torch.int32)
    right = MetricPrompt.from_depth_map(mm, unit="mm")
    torch.testing.assert_close(right.depth, dotted(), atol=1e-3, rtol=0)
    torch.testing.assert_close(MetricPrompt.from_depth_map(100 * dotted(), unit="cm").depth, dotted())
    with pytest.raises(InputError, match="does not say its unit"):
        MetricPrompt.from_depth_map(mm)
    with pytest.raises(InputError, match="looks like millimetres"):
        MetricPrompt.from_depth_map(mm.float())
    with pytest.raises(InputError, match="hardly in metres"):
        MetricPrompt.from_depth_map(dotted() / 1000)
    # An aerial picture says so itself.
    assert MetricPrompt.from_depth_map(mm.float(), unit="m").depth.max() > 1000
    with pytest.raises(InputError, match="unknown unit"):
        MetricPrompt.from_depth_map(dotted(), unit="ft")  # type: ignore[arg-type]


def test_a_metric_prior_reveals_another_unit() -> None:
    prior = 1 / truth()
    for factor, name in ((1000, "millimetres"), (100, "centimetres"), (0.001, "kilometres")):
        wrong = MetricPrompt.from_depth_map(dotted() * factor, unit="m")
        with pytest.raises(InputError, match=name):
            prepare_prompt(wrong, prior, metric_prior=True)
        prepare_prompt(wrong, prior)  # a relative prior cannot know
    assert prepare_prompt(MetricPrompt.from_depth_map(dotted() * 3), prior, metric_prior=True).notes == ()
    assert unit_hint(1.0) is None and unit_hint(20.0) is None and unit_hint(math.nan) is None
    for factor in (1000.0, 100.0, 0.001):
        assert all(unit_hint(factor * r) for r in (0.46, 2.1)) and not any(
            unit_hint(factor * r) for r in (0.45, 2.3)
        )


def test_negative_nan_and_infinite_depths() -> None:
    depth = dotted()
    at = depth.nonzero()
    depth[tuple(at[0])], depth[tuple(at[1])], depth[tuple(at[2])] = -2.0, math.nan, math.inf
    prompt = MetricPrompt.from_depth_map(depth)
    assert prompt.points == 117 and bool(torch.isfinite(prompt.depth).all())
    assert any("1 negative" in n for n in prompt.notes) and any("1 infinite" in n for n in prompt.notes)
    for share, refused in ((0.45, False), (0.55, True), (1.0, True)):
        some = dotted()
        turned = at[: int(share * len(at))]
        some[turned[:, 0], turned[:, 1]] *= -1
        if not refused:
            assert MetricPrompt.from_depth_map(some).points == 120 - len(turned)
            continue
        with pytest.raises(InputError, match="are negative"):
            MetricPrompt.from_depth_map(some)
    for empty in (torch.zeros(SIZE), torch.full(SIZE, math.nan)):
        with pytest.raises(InputError, match="no points"):
            MetricPrompt.from_depth_map(empty)
    with pytest.raises(InputError, match="finite and positive"):
        MetricPrompt.from_depth_map(torch.full(SIZE, math.inf))


def test_numbers_for_nothing_there_are_dropped() -> None:
    depth = dotted()
    depth[depth == 0] = 1e10  # what renderers write for the sky, far more often than depth
    prompt = MetricPrompt.from_depth_map(depth)
    assert torch.equal(prompt.depth, dotted()) and prompt.notes == (
        "2952 prompt depths of 1e+06 m or more were dropped",
    )
    with pytest.raises(InputError, match="all prompt depths are"):
        MetricPrompt.from_depth_map(torch.full(SIZE, 1e10))


def test_plausible_depths_that_are_odd_as_metres_are_mentioned() -> None:
    for odd, says in (
        (100 * dotted().clamp(max=2.9), "name its unit"),
        ((8 * dotted()).round(), "whole numbers"),
    ):
        (note,) = MetricPrompt.from_depth_map(odd).notes
        assert says in note
        assert MetricPrompt.from_depth_map(odd, unit="m").notes == ()
    constant = torch.where(dotted() > 0, 2.0, 0.0)
    assert (
        MetricPrompt.from_depth_map(constant).notes == () == MetricPrompt.from_depth_map(15 * dotted()).notes
    )


def test_another_size_is_scattered_or_refused() -> None:
    large = MetricPrompt.from_depth_map(dotted(), size=(96, 128))
    assert large.size == (96, 128) and large.points == 120 and "64 x 48" in large.notes[0]
    assert sorted(large.depth[large.mask].tolist()) == sorted(dotted()[dotted() > 0].tolist())
    with pytest.raises(InputError, match="another shape"):
        MetricPrompt.from_depth_map(dotted(), size=(64, 48))
    with pytest.raises(InputError, match="must be a map"):
        MetricPrompt.from_depth_map(dotted()[None])
    K = intrinsics(50.0, 50.0, 32.0, 24.0)
    scaled = MetricPrompt.from_depth_map(dotted(), K=K).at_size((24, 128))
    assert scaled.K is not None and scaled.K.diagonal().tolist() == [100.0, 25.0, 1.0]
    with pytest.raises(InputError, match="resize the prior"):
        prepare_prompt(large, 1 / truth())


def test_single_points_need_to_be_asked_for_and_give_a_finite_map() -> None:
    one = torch.zeros(SIZE)
    one[20, 30] = 2.0
    with pytest.raises(InputError, match="1 of at least 5"):
        MetricPrompt.from_depth_map(one)
    made = prepare_prompt(MetricPrompt.from_depth_map(one, least=1), 1 / truth())
    assert bool(torch.isfinite(made.condition).all())
    scale = (1 / 2.0) * truth()[20, 30]
    torch.testing.assert_close(
        made.condition[1], scale / truth()
    )  # the scale alone, no affine fit of one point


def test_only_outliers_are_noticed_with_and_without_a_prior() -> None:
    g = torch_generator(1)
    depth = dotted(400)
    noise = torch.where(depth > 0, torch.exp(3 * torch.rand(SIZE, generator=g) - 1), torch.zeros_like(depth))
    assert coherence(depth) < 0.5 < 0.8 < coherence(noise)
    alone = MetricPrompt.from_depth_map(noise)
    assert any("outliers" in n for n in alone.notes)
    made = prepare_prompt(alone, 1 / truth())
    assert any("agrees with the prior" in n for n in made.notes) and bool(
        torch.isfinite(made.condition).all()
    )
    good = prepare_prompt(MetricPrompt.from_depth_map(depth), 1 / truth())
    assert good.notes == () and good.facts.agreeing == 1.0
    assert good.facts.scale == pytest.approx(1.0, abs=1e-5) and good.facts.ratio == pytest.approx(1.0)
    some = torch.where(torch.rand(SIZE, generator=g) < 0.2, 3 * depth, depth)
    facts = prompt_facts(MetricPrompt.from_depth_map(some), 1 / truth())
    assert facts.agreeing == pytest.approx(0.8, abs=0.06)
    # One wrong point in five moves a robust fit little; a plain one by a seventh.
    assert facts.scale * float((1 / truth()).mean()) + facts.shift == pytest.approx(
        float((1 / truth()).mean()), rel=0.05
    )


def test_without_a_prior_nothing_is_said_about_one() -> None:
    ramp = torch.exp(torch.linspace(0, 5, SIZE[1])).expand(SIZE)
    prompt = MetricPrompt.from_depth_map(torch.where(dotted(300) > 0, ramp, 0.0))
    made = prepare_prompt(prompt)
    assert made.facts.agreeing < 0.25 and made.notes == ()


def test_without_a_prior_the_fill_is_a_weighted_mean_of_neighbours() -> None:
    prompt = MetricPrompt.from_depth_map(dotted(30))
    made = prepare_prompt(prompt).condition
    y = 1 / prompt.depth[prompt.mask].double()
    torch.testing.assert_close(made[1], torch.full(SIZE, float(y.mean())))
    far = torch.cdist(torch.tensor([[10.0, 20.0]]).double(), prompt.mask.nonzero().double())[0]
    near = far.argsort()[:5]
    w = 1 / far[near] ** 2
    assert float(made[0, 10, 20]) == pytest.approx(float((w * y[near]).sum() / w.sum()), rel=1e-5)


def test_clouds_go_through_their_calibration() -> None:
    K = intrinsics(60.0, 60.0, 32.0, 24.0)
    depth = truth()
    cam = depth_to_points(depth.double(), K).reshape(-1, 3)
    cam_from_sensor = torch.eye(4, dtype=torch.float64)
    cam_from_sensor[:3, :3] = torch.tensor([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])  # x forward, z up
    cam_from_sensor[:3, 3] = torch.tensor([0.3, -0.2, 0.1])
    R, t = cam_from_sensor[:3, :3], cam_from_sensor[:3, 3]
    cloud = (cam - t) @ R
    prompt = MetricPrompt.from_point_cloud(cloud, K, cam_from_sensor, SIZE)
    torch.testing.assert_close(prompt.depth, depth, atol=1e-5, rtol=0)
    both = torch.cat([cloud, (cam * 1.5 - t) @ R])  # the farther of two points is behind
    torch.testing.assert_close(
        MetricPrompt.from_point_cloud(both, K, cam_from_sensor, SIZE).depth, prompt.depth
    )
    millimetres = MetricPrompt.from_point_cloud(cloud * 1000, K, cam_from_sensor, SIZE, unit="mm")
    torch.testing.assert_close(millimetres.depth, depth, atol=1e-5, rtol=0)
    hidden = MetricPrompt.from_point_cloud(cloud, K, cam_from_sensor, SIZE, occlusion=True)
    assert 0.5 * prompt.points < hidden.points < prompt.points
    with pytest.raises(InputError, match="3072 lie behind the camera"):
        MetricPrompt.from_point_cloud(
            cloud, K, torch.diag(torch.tensor([-1.0, 1, -1, 1])) @ cam_from_sensor.float(), SIZE
        )
    with pytest.raises(InputError, match="none of the 3072"):
        MetricPrompt.from_point_cloud(cloud + torch.tensor([0.0, 900.0, 0.0]), K, cam_from_sensor, SIZE)
    dirty = cloud.clone()
    dirty[0] = math.nan
    assert (
        "1 of 3072 prompt points are not finite"
        in MetricPrompt.from_point_cloud(dirty, K, cam_from_sensor, SIZE).notes
    )
    with pytest.raises(InputError, match="must be"):
        MetricPrompt.from_point_cloud(cloud[:, :2], K, cam_from_sensor, SIZE)


def test_points_of_the_contract_and_points_outside() -> None:
    xy = torch.tensor([[0.5, 0.5], [63.9, 47.9], [10.0, 3.0], [5.2, 9.9], [5.9, 9.1], [40.5, 20.5]])
    z = torch.tensor([1.0, 2.0, 3.0, 9.0, 4.0, 5.0])
    prompt = MetricPrompt.from_sparse(SparseDepth(xy, z), SIZE)
    found = {tuple(i): float(prompt.depth[tuple(i)]) for i in prompt.mask.nonzero().tolist()}
    assert found == {(0, 0): 1.0, (47, 63): 2.0, (3, 10): 3.0, (9, 5): 4.0, (20, 40): 5.0}
    outside = torch.cat([xy, torch.tensor([[64.0, 3.0], [3.0, -0.1]])])
    noted = MetricPrompt.from_sparse(SparseDepth(outside, torch.ones(8)), SIZE)
    assert noted.notes == ("2 of 8 prompt points lie outside the picture",)
    with pytest.raises(InputError, match="all 6 prompt points lie outside"):
        MetricPrompt.from_sparse(SparseDepth(xy + 100, z), SIZE)
    with pytest.raises(InputError, match="not in metres"):
        MetricPrompt.from_sparse(SparseDepth(xy, z, metric=False), SIZE)


def test_low_resolution_and_lidar() -> None:
    small = truth()[::4, ::4]
    prompt = MetricPrompt.from_low_res(small, SIZE)
    assert prompt.points == 12 * 16 and torch.equal(prompt.depth[::4, ::4], small)
    with pytest.raises(InputError, match="does not fit"):
        MetricPrompt.from_low_res(truth(), (24, 32))
    lines = MetricPrompt.from_lidar_pattern(truth(), 8)
    assert torch.equal(lines.mask, lidar_hits(*SIZE, 8))
    pattern = make_prompt("downscale_8", truth())
    assert torch.equal(MetricPrompt.from_prompt(pattern).mask, pattern.mask)
