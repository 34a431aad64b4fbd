"""Depth from sparse prompts: masks, clamp, averaging and prompts against independent numbers."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from corpora.evaluation import measure_samples
from relief3d.core.errors import InputError
from relief3d.data.prompt_patterns import make_prompt
from relief3d.eval.protocols.base import Answer, Query, Sample, Truth
from relief3d.eval.protocols.metric.frames import FrameFile
from relief3d.eval.protocols.prompted.completion_rules import (
    FrameTwin,
    PromptColumn,
    PromptedDepth,
    post_aligned,
)
from relief3d.eval.protocols.registry import find_protocol
from relief3d.pipelines.evaluate.baselines import best_constant, prompt_interpolation, prompt_nearest

SIZE = (12, 16)


def frame(name: str, depth: Tensor) -> FrameFile:
    return FrameFile(
        name=name,
        group=name.split("/")[0],
        load_image=lambda: torch.zeros(3, *depth.shape, dtype=torch.uint8),
        load_depth=lambda: depth,
        load_valid=lambda: depth > 0,
        K=torch.tensor([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]], dtype=torch.float64),
    )


def protocol(
    frames: Sequence[FrameFile], pattern: str = "20", unit: str = "%", seconds: bool = False
) -> PromptedDepth:
    return PromptedDepth(
        "test",
        "test",
        "test",
        reader=lambda root: list(frames),
        prompts=(PromptColumn("x", "X", pattern),),
        depth_range=(1.0, 10.0),
        twin=FrameTwin(),
        unit=unit,
        seconds=seconds,
    )


def maps(seed: int, low: float = 0.5, high: float = 12.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    depth = low + (high - low) * torch.rand(SIZE, generator=g)
    return torch.where(torch.rand(SIZE, generator=g) < 0.2, torch.zeros_like(depth), depth)


def answers(tests: PromptedDepth, guesses: Sequence[Tensor]) -> float:
    samples = tests.open(Path())
    found = [
        tests.measure(s.load_query(), s.load_truth(), Answer({"depth": g[None]}))
        for s, g in zip(samples, guesses)
    ]
    return tests.summarise(found)["x"]


def test_absrel_is_per_picture_over_the_range_without_alignment() -> None:
    depths = [maps(0), maps(1)]
    depths[1][:, :13] = 0  # few pixels: pooling would give this picture little weight
    guesses = [1.1 * depths[0] + 0.3, 0.5 * depths[1] + 0.2]
    per_picture, pooled, unmasked, scaled = [], [], [], []
    for depth, guess in zip(depths, guesses):
        d, p = depth.double().numpy().ravel(), guess.double().numpy().ravel()
        inside = (d >= 1) & (d <= 10) & (d > 0)
        errors = np.abs(p - d)[inside] / d[inside]
        per_picture.append(errors.mean())
        pooled.append(errors)
        unmasked.append((np.abs(p - d)[d > 0] / d[d > 0]).mean())
        scale = np.median(d[inside]) / np.median(p[inside])
        scaled.append((np.abs(scale * p - d)[inside] / d[inside]).mean())
    ours = answers(protocol([frame("a/0", depths[0]), frame("b/0", depths[1])]), guesses)
    assert ours == pytest.approx(100 * np.mean(per_picture), rel=1e-5)
    for other in (np.concatenate(pooled).mean(), np.mean(unmasked), np.mean(scaled)):
        assert abs(ours - 100 * other) > 0.1
    plain = answers(protocol([frame("a/0", depths[0]), frame("b/0", depths[1])], unit=""), guesses)
    assert plain == pytest.approx(ours / 100)


@pytest.mark.parametrize("name", ["nyu_completion", "eth3d_completion", "kitti_completion", "kitti_scaling"])
def test_columns_mean_what_the_table_says(name: str) -> None:
    benchmark = find_protocol(name)
    assert isinstance(benchmark, PromptedDepth)
    patterns = {p.key: p.pattern for p in benchmark.prompts}
    assert patterns == {
        "8x": "downscale_8", "16x": "downscale_16", "lidar": "LiDAR_64", "extreme": "100",
        "lidar_8": "LiDAR_8", "lidar_16": "LiDAR_16", "lidar_32": "LiDAR_32",
    } or (name == "kitti_scaling" and patterns == {"8x": "downscale_8"})  # fmt: skip


def test_the_range_is_closed() -> None:
    depth = torch.full(SIZE, 5.0)
    depth[0, 0], depth[0, 1], depth[0, 2], depth[0, 3] = 1.0, 10.0, 0.999, 10.001
    truth = protocol([frame("a/0", depth)]).open(Path())[0].load_truth()
    assert truth.need("valid")[0, 0, :4].tolist() == [True, True, False, False]


def test_predictions_are_clamped_and_missing_ones_counted() -> None:
    depth = torch.full(SIZE, 4.0)
    guess = depth.clone()
    guess[0, 0] = -3.0  # counts as 0.001
    guess[0, 1] = 1e9  # counts as 1000
    guess[0, 2] = float("nan")
    tests = protocol([frame("a/0", depth)])
    sample = tests.open(Path())[0]
    m = tests.measure(sample.load_query(), sample.load_truth(), Answer({"depth": guess[None]}))
    pixels = depth.numel() - 1
    expected = ((4 - 0.001) / 4 + (1000 - 4) / 4) / pixels
    assert m.values["x"] == pytest.approx(100 * expected, rel=1e-6)
    assert m.values["left_out"] == pytest.approx(100 / depth.numel())
    with pytest.raises(InputError, match="no valid pixels"):
        tests.measure(
            sample.load_query(), sample.load_truth(), Answer({"depth": torch.full((1, *SIZE), torch.nan)})
        )


def test_truth_outside_of_the_range_is_no_truth() -> None:
    tests = protocol([frame("a/0", torch.full(SIZE, 30.0))])
    sample = tests.open(Path())[0]
    with pytest.raises(InputError, match="no valid pixels"):
        tests.measure(
            sample.load_query(), sample.load_truth(), Answer({"depth": torch.full((1, *SIZE), 2.0)})
        )


def test_smaller_answers_are_resized_bilinearly() -> None:
    depth = torch.full(SIZE, 4.0)
    tests = protocol([frame("a/0", depth)])
    sample = tests.open(Path())[0]
    small = torch.full((1, 6, 8), 5.0)
    m = tests.measure(sample.load_query(), sample.load_truth(), Answer({"depth": small}))
    assert m.values["x"] == pytest.approx(25.0)
    with pytest.raises(InputError, match="lacks 'depth'"):
        tests.measure(sample.load_query(), sample.load_truth(), Answer())


def test_prompts_hold_all_valid_depth_and_are_seeded_by_the_name() -> None:
    depth = maps(3)
    sample = protocol([frame("scene/000123", depth)]).open(Path())[0]
    query = sample.load_query()
    prompt = query.tensors["prompt"][0]
    expected = make_prompt("20", depth, seed=zlib.crc32(b"scene/000123"))
    assert torch.equal(prompt, expected.depth) and int((prompt > 0).sum()) == 20
    other = protocol([frame("scene/000124", depth)]).open(Path())[0].load_query().tensors["prompt"][0]
    assert not torch.equal(prompt, other)
    everything = protocol([frame("s/0", depth)], "5000").open(Path())[0].load_query().tensors["prompt"][0]
    assert float(everything.max()) > 10 and torch.equal(everything, depth)  # beyond the range of the errors


def test_a_query_shows_the_picture_the_camera_and_the_prompt_only() -> None:
    query = protocol([frame("a/0", maps(4))]).open(Path())[0].load_query()
    assert set(query.tensors) == {"prompt"} and query.wants == ("depth",) and not query.facts
    assert query.scene is not None
    view = query.scene.views[0]
    assert view.depth is None and view.camera.world_from_cam is None and view.camera.K is not None
    covered = protocol([frame("a/0", maps(4))], "distance_2_6").open(Path())[0].load_query()
    assert set(covered.tensors) == {"prompt", "fit"}


def test_pictures_and_depth_of_different_size_are_refused() -> None:
    wrong = frame("a/0", maps(0))
    bad = FrameFile(
        wrong.name,
        wrong.group,
        lambda: torch.zeros(3, 5, 5, dtype=torch.uint8),
        wrong.load_depth,
        wrong.load_valid,
    )
    with pytest.raises(InputError, match="pixels"):
        protocol([bad]).open(Path())[0].load_query()


def test_times_are_taken_from_the_answer() -> None:
    depth = torch.full(SIZE, 4.0)
    tests = protocol([frame("a/0", depth)], seconds=True)
    sample = tests.open(Path())[0]
    answer = Answer({"depth": depth[None]}, facts={"seconds": [0.3, 0.1, 0.2]})
    m = tests.measure(sample.load_query(), sample.load_truth(), answer)
    assert m.values["ms_x"] == pytest.approx(200)
    assert np.isnan(tests.summarise([])["x"])


def test_models_without_prompts_are_aligned_afterwards() -> None:
    depth = maps(5, 1.0, 9.0)
    sample = protocol([frame("a/0", depth)], "60").open(Path())[0]
    query, truth = sample.load_query(), sample.load_truth()
    dense = torch.where(depth > 0, depth, torch.full_like(depth, 3.0))

    def relative(q: Query) -> Answer:  # right up to scale and shift of its inverse
        return Answer({"depth": (1.0 / (0.4 / dense + 0.7))[None]})

    tests = protocol([frame("a/0", depth)], "60")
    before = tests.measure(query, truth, relative(query)).values["x"]
    after = tests.measure(query, truth, post_aligned(relative)(query)).values["x"]
    assert before > 20 and after < 0.01
    with pytest.raises(InputError, match="gives no prompt"):
        post_aligned(relative)(Query("a", "mono_depth", ("depth",)))


def first_of_each(samples: list[Sample], keys: Sequence[str]) -> list[Sample]:
    return [next(s for s in samples if s.name.endswith(f"/{key}")) for key in keys]


@pytest.mark.parametrize("name", ["nyu_completion", "kitti_completion", "eth3d_completion"])
def test_interpolated_prompts_beat_the_best_constant(name: str) -> None:
    tests = find_protocol(name)
    samples = first_of_each(tests.twin("smoke", seed=3), ("8x", "lidar_8", "extreme"))

    def interpolated(query: Query, truth: Truth) -> Answer:
        return prompt_interpolation(query)

    def nearest(query: Query, truth: Truth) -> Answer:
        return prompt_nearest(query)

    constant = tests.summarise(measure_samples(tests, samples, best_constant))
    for key, linear in tests.summarise(measure_samples(tests, samples, interpolated)).items():
        if key in ("8x", "lidar_8", "extreme"):
            assert linear < 0.7 * constant[key], key
    near = tests.summarise(measure_samples(tests, samples, nearest))
    assert near["extreme"] < 0.7 * constant["extreme"]
