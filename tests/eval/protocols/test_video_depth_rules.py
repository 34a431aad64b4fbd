"""The rules that all video depth benchmarks share: frames, resizing, mask, clip, scope, weights."""

import math

import numpy as np
import pytest
import torch

from corpora.video_layouts import brute_force, check_video_rules, depth_map, drifting
from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer
from relief3d.eval.protocols.views.video_depth_rules import (
    DepthVideo,
    VideoDepthProtocol,
    VideoDepthRules,
    about_every_tenth,
    resize_prediction,
)


def protocol(rules: VideoDepthRules, frames: tuple[int, ...] = (3, 5)) -> VideoDepthProtocol:
    maps = {
        f"v{k}": torch.stack([torch.from_numpy(depth_map(9 * k + i)) for i in range(n)])
        for k, n in enumerate(frames)
    }

    def video(name: str) -> DepthVideo:
        depth = maps[name]
        names = [f"{i}.png" for i in range(len(depth))]
        return DepthVideo(
            name,
            names,
            pictures=lambda chosen: torch.zeros(len(chosen), 3, 12, 16, dtype=torch.uint8),
            depth=lambda chosen: depth[list(chosen)],
        )

    return VideoDepthProtocol("x", "X", "nowhere", lambda _: [video(n) for n in maps], rules)


@pytest.mark.parametrize(
    ("max_depth", "clip", "neighbours"),
    [
        (70.0, 70.0, [(70.0, None), (None, 70.0), (10.0, None)]),
        (70.0, None, [(70.0, 70.0), (None, None)]),
        (10.0, None, [(70.0, None), (None, None)]),
        (None, None, [(70.0, None), (None, 70.0)]),
    ],
)
def test_mask_clip_scope_and_weights(tmp_path, max_depth, clip, neighbours):
    p = protocol(VideoDepthRules(max_depth, clip))
    check_video_rules(p, p.open(tmp_path), max_depth, clip, neighbours)


def test_an_alignment_per_frame_is_another_named_choice(tmp_path):
    p = protocol(VideoDepthRules(scope="frame"))
    sample = p.open(tmp_path)[0]
    query, truth = sample.load_query(), sample.load_truth()
    answer = drifting(query, truth)
    got = p.measure(query, truth, answer).values
    maps = answer.tensors["depth"].numpy(), truth.tensors["depth"].numpy()
    assert got["abs_rel_lstsq"] == pytest.approx(brute_force(*maps, None, None, "frame")[0], rel=1e-5)


def test_about_every_tenth_frame():
    assert about_every_tenth(1) == [0] and about_every_tenth(19) == [0]
    assert about_every_tenth(20) == [0, 19]
    assert about_every_tenth(47) == [0, 15, 30, 46]  # linspace 0, 15.33, 30.67, 46: cut, not rounded
    assert about_every_tenth(100) == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    with pytest.raises(InputError):
        about_every_tenth(0)


def test_frames_are_chosen_before_anything_is_loaded(tmp_path):
    p = protocol(VideoDepthRules(choose=about_every_tenth), frames=(25, 47))
    samples = p.open(tmp_path)
    assert [len(s.load_truth().tensors["depth"]) for s in samples] == [2, 4]
    scene = samples[1].load_query().scene
    assert [v.name for v in scene.views] == ["0.png", "15.png", "30.png", "46.png"] and not scene.ordered
    dense = protocol(VideoDepthRules(), frames=(3,)).open(tmp_path)[0].load_query().scene
    assert dense.ordered and len(dense) == 3


def cubic(x: float, a: float = -0.75) -> float:
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


@pytest.mark.parametrize("size", [(9, 14), (3, 4)])
def test_resizing_is_bicubic_without_antialiasing(size):
    small = torch.rand(1, 6, 7, generator=torch.Generator().manual_seed(0))
    got = resize_prediction(small, size)[0]
    for row in range(size[0]):
        for col in range(size[1]):
            y, x = (row + 0.5) * 6 / size[0] - 0.5, (col + 0.5) * 7 / size[1] - 0.5
            value = sum(
                cubic(y - j) * cubic(x - i) * float(small[0, min(max(j, 0), 5), min(max(i, 0), 6)])
                for j in range(math.floor(y) - 1, math.floor(y) + 3)
                for i in range(math.floor(x) - 1, math.floor(x) + 3)
            )
            assert float(got[row, col]) == pytest.approx(value, abs=1e-5)
    assert resize_prediction(small, (6, 7)) is small


def test_predictions_of_another_size_are_resized_before_alignment(tmp_path):
    p = protocol(VideoDepthRules())
    sample = p.open(tmp_path)[0]
    query, truth = sample.load_query(), sample.load_truth()
    g = truth.tensors["depth"]
    half = torch.rand(len(g), 6, 8, generator=torch.Generator().manual_seed(1)) * 8 + 1
    resized = torch.nn.functional.interpolate(
        half[:, None], g.shape[-2:], mode="bicubic", align_corners=False
    )
    got = p.measure(query, truth, Answer({"depth": half})).values["abs_rel_lstsq"]
    assert got == pytest.approx(brute_force(resized[:, 0].numpy(), g.numpy(), None, None)[0], rel=1e-5)
    linear = torch.nn.functional.interpolate(
        half[:, None], g.shape[-2:], mode="bilinear", align_corners=False
    )
    assert abs(got - brute_force(linear[:, 0].numpy(), g.numpy(), None, None)[0]) > 1e-4


def test_bad_answers_are_refused(tmp_path):
    p = protocol(VideoDepthRules(max_depth=0.5))
    sample = p.open(tmp_path)[0]
    query, truth = sample.load_query(), sample.load_truth()
    with pytest.raises(InputError, match="no valid pixels"):
        p.measure(query, truth, Answer({"depth": truth.tensors["depth"]}))
    p = protocol(VideoDepthRules())
    truth = p.open(tmp_path)[0].load_truth()
    with pytest.raises(InputError, match="expected 3 maps"):
        p.measure(query, truth, Answer({"depth": torch.ones(2, 12, 16)}))
    with pytest.raises(InputError, match="lacks 'depth'"):
        p.measure(query, truth, Answer({}))
    with pytest.raises(InputError, match="not numbers"):
        p.measure(query, truth, Answer({"depth": torch.full((3, 12, 16), float("nan"))}))


def test_nothing_measured_gives_no_number():
    summary = protocol(VideoDepthRules()).summarise([])
    assert set(summary) == {c.key for c in protocol(VideoDepthRules()).columns}
    assert all(np.isnan(v) for v in summary.values())
