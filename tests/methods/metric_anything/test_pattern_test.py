"""The test of prompt patterns: prompts that depend on names alone, measures with known values, ways of spreading."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.methods.metric_anything.pattern_test import (
    Case,
    Measured,
    PatternTest,
    PatternTestConfig,
    aligned,
    classical,
    constant,
    family_mean,
    lean,
    lean_at,
    pattern_prompt,
    pyramid,
)
from relief3d.methods.metric_anything.pictures import Pictures, PictureSet
from relief3d.models.metric.networks import Teacher
from relief3d.models.metric.refiner import PromptRefiner, refiner_config
from relief3d.models.metric.sizes import teacher_config

SIZE = (48, 64)


def view(name: str = "room-0-0", far: float = 4.0) -> Pictures:
    """A wall at 4 m with a step at half of its distance, and its own points as raw returns."""
    height, width = SIZE
    depth = torch.full((1, height, width), far)
    depth[:, 16:36, 20:44] = far / 2
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    points = torch.stack([(x - 32) / 60 * depth[0], (y - 24) / 60 * depth[0], depth[0]], -1).reshape(1, -1, 3)
    K = torch.tensor([[[60.0, 0, 32.0], [0, 60.0, 24.0], [0, 0, 1]]])
    image = (depth / 8)[:, None].expand(1, 3, height, width).contiguous()
    empty = torch.zeros(1, height, width, dtype=torch.uint8)
    normals = torch.zeros(1, 3, height, width, dtype=torch.int8)
    return Pictures(image, depth, normals, empty, K, points, points[:, 5::40].clone(), (name,))


def test_patterns_by_name() -> None:
    one = view()
    truth = one.depth[0]
    counts = {}
    for pattern in (
        "20",
        "every_8",
        "downscale_8",
        "LiDAR_16",
        "keypoints-60",
        "lidar_returns",
        "radar_returns",
    ):
        prompt = pattern_prompt(pattern, one, 3)
        counts[pattern] = int((prompt > 0).sum())
        if pattern != "downscale_8":  # there a pixel is a mixture of its neighbours
            torch.testing.assert_close(prompt[prompt > 0], truth[prompt > 0], rtol=1e-5, atol=1e-5)
        assert torch.equal(prompt, pattern_prompt(pattern, one, 3))
    assert torch.nonzero(pattern_prompt("every_16", one, 3)).tolist()[:2] == [[8, 8], [8, 24]]
    assert (
        counts["20"] == 20
        and counts["downscale_8"] == counts["every_8"] == 6 * 8
        and counts["keypoints-60"] == 60
    )
    assert counts["lidar_returns"] == truth.numel() and counts["radar_returns"] == len(one.radar[0])
    assert not torch.equal(pattern_prompt("20", one, 3), pattern_prompt("20", one, 4))
    sky = replace(one, depth=torch.zeros_like(one.depth))
    assert not bool(pattern_prompt("20", sky, 0).any())
    with pytest.raises(InputError, match="no prompt pattern"):
        pattern_prompt("spiral", one, 0)
    with pytest.raises(InputError, match="names no prompt"):
        pattern_prompt("spiral-20", one, 0)


@pytest.fixture
def test_(tmp_path: Path) -> PatternTest:
    made = PatternTest(tmp_path, PatternTestConfig((PictureSet(("room",), 2, 2, SIZE),), reaches=(3.0, 80.0)))
    made.__dict__["views"] = [view("room-0-0"), view("room-1-0", 6.0), view("street-0-0", 100.0)]
    return made


def test_measures_have_known_values(test_: PatternTest) -> None:
    """10 % too far everywhere: AbsRel 0.1, MAE by reach, contours kept."""
    found = test_.measure("20", lambda case: 1.1 * case.view.depth[0])
    assert [m.family for m in found] == ["room", "room", "street"]
    assert all(m.abs_rel == pytest.approx(0.1, rel=1e-5) and m.points == 20 for m in found)
    near, wall = 20 * 24, 48 * 64 - 20 * 24
    assert found[0].mae[0] == pytest.approx(0.2, rel=1e-4)  # only the step at 2 m is within 3 m
    assert found[0].mae[1] == pytest.approx((0.2 * near + 0.4 * wall) / (near + wall), rel=1e-4)
    assert found[0].rmse[1] == pytest.approx(math.sqrt((0.04 * near + 0.16 * wall) / (near + wall)), rel=1e-4)
    assert math.isnan(found[2].mae[0]) and found[2].mae[1] == pytest.approx(5.0, rel=1e-4)
    assert found[0].f1 > 0.9
    flat = test_.measure("20", constant)
    assert flat[0].f1 == 0 and flat[0].abs_rel > 0.1


def test_prompts_are_those_of_the_picture_whatever_else_is_tested(test_: PatternTest) -> None:
    whole = test_.cases("20")
    alone = PatternTest(test_.root, test_.config)
    alone.__dict__["views"] = test_.views[1:]
    assert torch.equal(alone.cases("20")[0].prompt, whole[1].prompt)
    assert not torch.equal(whole[0].prompt > 0, whole[1].prompt > 0)
    other = PatternTest(test_.root, replace(test_.config, seed=1))
    other.__dict__["views"] = test_.views
    assert not torch.equal(other.cases("20")[0].prompt, whole[0].prompt)
    few = replace(test_.views[0], radar=torch.full((1, 96, 3), torch.nan))
    test_.__dict__["views"] = [few, *test_.views[1:]]
    assert [c.view.names[0] for c in test_.cases("radar_returns")] == ["room-1-0", "street-0-0"]
    test_.__dict__["views"] = [few]
    with pytest.raises(InputError, match="no picture of the test"):
        _fresh(test_).cases("radar_returns")


def _fresh(test: PatternTest) -> PatternTest:
    made = PatternTest(test.root, test.config)
    made.__dict__["views"] = test.views
    return made


def test_families_count_the_same() -> None:
    def one(family: str, value: float) -> Measured:
        return Measured(family, value, (), (), 0.0, 1)

    rows = [one("room", 1.0), one("room", 3.0), one("street", 8.0), one("street", math.nan)]
    assert family_mean(rows, lambda m: m.abs_rel) == 5.0
    assert family_mean(rows, lambda m: m.abs_rel, "room") == 2.0
    assert math.isnan(family_mean(rows, lambda m: m.abs_rel, "outdoor"))


def test_ways_of_spreading() -> None:
    picture = view()
    case = Case(picture, pattern_prompt("uniform-200", picture, 0))
    network = PromptRefiner(refiner_config("nano")).eval()
    with torch.no_grad():
        direct, half = lean(network)(case), lean_at(network, "nano", 32)(case)
        same = lean_at(network, "nano", 64)(case)
    assert direct.shape == half.shape == SIZE
    torch.testing.assert_close(direct, same, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(direct, half, rtol=1e-3)
    assert float((classical("nearest")(case) / picture.depth[0] - 1).abs().mean()) < 0.1
    tall = Teacher(teacher_config("nano")).eval()
    told, blind = pyramid(tall), pyramid(tall, blind=True)
    twice = Case(picture, 2 * case.prompt)
    assert torch.equal(blind(case), blind(twice)) and told(case).shape == SIZE
    fitted, fitted_twice = aligned(tall)(case), aligned(tall)(twice)
    torch.testing.assert_close(fitted_twice, 2 * fitted, rtol=1e-3, atol=1e-3)


def test_a_test_needs_views_that_exist() -> None:
    with pytest.raises(InputError, match="do not have 3 views"):
        PatternTestConfig((PictureSet(("room",), 2, 2, SIZE),), views=3)
