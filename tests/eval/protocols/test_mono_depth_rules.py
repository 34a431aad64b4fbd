"""Metric depth of single pictures: range, clamp, resize, pooling, no alignment, and each benchmark's parameters."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from corpora.evaluation import measure_samples, truthful
from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer, Measurement, Query, Truth
from relief3d.eval.protocols.metric import (
    booster,
    eth3d_mono,
    middlebury,
    nuscenes_mono,
    sintel_mono,
    sunrgbd,
)
from relief3d.eval.protocols.metric.mono_depth_rules import (
    MonoDepthProtocol,
    TwinPlan,
    compare_depth,
    published_mono,
    summarise_depth,
)
from relief3d.eval.results import make_result

MODULES = (booster, middlebury, sunrgbd, nuscenes_mono, sintel_mono, eth3d_mono)
PROTOCOLS = {p.name: p for m in MODULES for p in m.PROTOCOLS if isinstance(p, MonoDepthProtocol)}


def measure(
    protocol: MonoDepthProtocol, predicted: Tensor, truth: Tensor, valid: Tensor | None = None
) -> Measurement:
    ok = truth > 0 if valid is None else valid
    query = Query("a", "mono_depth", ("depth",))
    facts = {"group": "g"}
    return protocol.measure(
        query, Truth({"depth": truth[None], "valid": ok[None]}, facts=facts), Answer({"depth": predicted})
    )


def noisy(protocol: MonoDepthProtocol, seed: int = 0) -> tuple[list[Tensor], list[Tensor], list[Measurement]]:
    """Truths that reach beyond the range, predictions of half their size with holes, and their measurements."""
    rng = np.random.default_rng(seed)
    low, high = protocol.limits
    truths, answers = [], []
    for i, size in enumerate(((12, 16), (20, 10))):
        truth = np.exp(rng.uniform(math.log(high / 30), math.log(high * 1.4), size)).astype(np.float32)
        truth[rng.random(size) < 0.2 * (i + 1)] = 0
        truth[0, :3] = low / 2, high * 1.2, low
        small = np.exp(rng.uniform(math.log(high / 30), math.log(high), (size[0] // 2, size[1] // 2))).astype(
            np.float32
        )
        small[0, 0] = -1.0
        small[-1, -1] = np.nan
        truths.append(torch.from_numpy(truth))
        answers.append(torch.from_numpy(small))
    return truths, answers, [measure(protocol, a[None], t) for a, t in zip(answers, truths)]


def by_hand(
    truths: list[Tensor], answers: list[Tensor], limits: tuple[float, float], mode: str = "bilinear"
) -> list[dict[str, np.ndarray]]:
    out = []
    for truth, answer in zip(truths, answers):
        kind = {} if mode == "nearest" else {"align_corners": False}
        big = (
            F.interpolate(answer[None, None], size=truth.shape, mode=mode, **kind)[0, 0]
            .numpy()
            .astype(np.float64)
        )
        g = truth.numpy().astype(np.float64)
        t = truth.numpy()
        keep = (t > np.float32(limits[0])) & (t < np.float32(limits[1])) & np.isfinite(big)
        out.append({"p": np.clip(big[keep], 1e-3, 1e3), "g": g[keep]})
    return out


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_numbers_follow_the_rules_and_not_a_neighbours(name: str) -> None:
    protocol = PROTOCOLS[name]
    truths, answers, measurements = noisy(protocol)
    got = protocol.summarise(measurements)

    def pooled(parts: list[dict[str, np.ndarray]]) -> tuple[float, float, float, float]:
        p, g = (np.concatenate([part[k] for part in parts]) for k in "pg")
        e = np.log(p) - np.log(g)
        return (
            float(np.mean(np.abs(p - g) / g)),
            100 * float(np.mean(np.maximum(p / g, g / p) < 1.25)),
            float(np.sqrt(np.mean((p - g) ** 2))),
            float(np.sqrt(np.mean(e**2) - 0.5 * np.mean(e) ** 2)),
        )

    parts = by_hand(truths, answers, protocol.limits)
    right = pooled(parts)
    assert (got["abs_rel"], got["delta1"], got["rmse"], got["silog"]) == pytest.approx(right, rel=1e-6)
    per_image = [float(np.mean(np.abs(q["p"] - q["g"]) / q["g"])) for q in parts]
    assert got["image_abs_rel"] == pytest.approx(np.mean(per_image), rel=1e-6)
    neighbours = {
        "pooling": float(np.mean(per_image)),
        "range": pooled(by_hand(truths, answers, (0.0, math.inf)))[0],
        "resize": pooled(by_hand(truths, answers, protocol.limits, "nearest"))[0],
    }
    p, g = (np.concatenate([part[k] for part in parts]) for k in "pg")
    scaled = p * np.median(g) / np.median(p)
    neighbours["alignment"] = float(np.mean(np.abs(scaled - g) / g))
    for rule, value in neighbours.items():
        assert abs(value - got["abs_rel"]) > 1e-4, rule


def test_ranges_are_those_of_the_tables() -> None:
    assert {name: p.limits for name, p in PROTOCOLS.items()} == {
        "booster": (0.001, 10.0), "middlebury": (0.001, 10.0), "sunrgbd": (0.001, 10.0), "nuscenes_mono": (0.001, 80.0),
        "sintel_mono": (0.01, 80.0), "eth3d_mono": (0.1, 200.0),
    }  # fmt: skip
    assert all(p.pooled and p.clamp == (1e-3, 1e3) for p in PROTOCOLS.values())


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_the_range_of_another_benchmark_counts_other_pixels(name: str) -> None:
    protocol = PROTOCOLS[name]
    steps = sorted(
        {bound * factor for p in PROTOCOLS.values() for bound in p.limits for factor in (0.99, 1.0, 1.01)}
    )
    ladder = torch.tensor([steps])
    counted = {lim: (ladder > lim[0]) & (ladder < lim[1]) for lim in {p.limits for p in PROTOCOLS.values()}}
    assert measure(protocol, ladder[None], ladder).weight == int(counted[protocol.limits].sum())
    assert len({tuple(pixels[0].tolist()) for pixels in counted.values()}) == 4


def test_clamp_is_applied_after_the_resize() -> None:
    protocol = PROTOCOLS["eth3d_mono"]
    truth = torch.full((1, 4), 2.0)
    got = measure(protocol, torch.tensor([[[-9.0, 5000.0]]]), truth).values
    resized = torch.tensor([-9.0, 0.75 * -9 + 0.25 * 5000, 0.25 * -9 + 0.75 * 5000, 5000.0])
    assert got["mae"] == pytest.approx(float((resized.clamp(1e-3, 1e3) - 2).abs().mean()))
    early = F.interpolate(torch.tensor([[[[1e-3, 1e3]]]]), size=(1, 4), mode="bilinear")[0, 0]
    assert got["mae"] != pytest.approx(float((early - 2).abs().mean()))


def test_pictures_without_truth_in_the_range_do_not_count() -> None:
    protocol = PROTOCOLS["sintel_mono"]
    near, far = torch.full((2, 4), 20.0), torch.full((2, 4), 500.0)
    some = [measure(protocol, near[None] * 1.1, near), measure(protocol, near[None], far)]
    assert some[1].weight == 0 and not some[1].values
    assert protocol.summarise(some) == protocol.summarise(some[:1])
    assert protocol.summarise(some)["image_abs_rel"] == pytest.approx(0.1)
    with pytest.raises(InputError, match="no valid pixels in any sample"):
        make_result(protocol, some[1:], model="m", data="d", comparable=False)


def test_unanswered_pixels_show() -> None:
    protocol = PROTOCOLS["booster"]
    truth = torch.full((2, 4), 2.0)
    predicted = truth.clone()
    predicted[0, 0] = float("nan")
    got = protocol.summarise([measure(protocol, predicted[None], truth)])
    assert got["answered"] == pytest.approx(87.5) and got["abs_rel"] == 0
    with pytest.raises(InputError, match="no valid pixels"):
        measure(protocol, torch.full((1, 2, 4), float("nan")), truth)
    with pytest.raises(InputError, match="no valid pixels"):
        measure(protocol, truth[None], torch.zeros(2, 4))
    with pytest.raises(InputError, match="one map"):
        measure(protocol, truth.expand(2, 2, 4), truth)


def test_the_data_sets_own_mask_counts() -> None:
    truth = torch.full((2, 2), 2.0)
    predicted = torch.tensor([[[2.0, 4.0], [2.0, 2.0]]])
    valid = torch.tensor([[True, False], [True, True]])
    assert measure(PROTOCOLS["booster"], predicted, truth, valid).values["abs_rel"] == 0
    assert measure(PROTOCOLS["booster"], predicted, truth).values["abs_rel"] == pytest.approx(0.25)


def test_per_image_means_on_request() -> None:
    _, _, measurements = noisy(PROTOCOLS["booster"])
    pooled, single = (summarise_depth(measurements, pooled=flag) for flag in (True, False))
    assert single["abs_rel"] == pytest.approx(np.mean([m.values["abs_rel"] for m in measurements]))
    assert single["rmse"] == pytest.approx(np.mean([m.values["rmse"] for m in measurements]))
    assert single["abs_rel"] == pooled["image_abs_rel"] != pooled["abs_rel"]


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_twin_gives_intrinsics_and_reaches_beyond_the_range(name: str) -> None:
    protocol = PROTOCOLS[name]
    samples = protocol.twin("smoke")
    query = samples[0].load_query()
    assert query.scene is not None and query.scene.views[0].camera.K is not None
    summary = protocol.summarise(measure_samples(protocol, samples, truthful))
    assert summary["delta1"] == pytest.approx(100) and summary["abs_rel"] == 0
    assert summary["answered"] == pytest.approx(100)
    depth = torch.cat([s.load_truth().tensors["depth"].flatten() for s in samples])
    assert bool((depth >= protocol.limits[1]).any()) and bool(
        ((depth > 0) & (depth < protocol.limits[1])).any()
    )


def test_twin_sizes_and_lidar() -> None:
    plan = TwinPlan("room", tall=True)
    assert [plan.size(w, 48) for w in (0, 1)] == [(48, 64), (64, 48)]
    assert TwinPlan(wide=True).size(0, 48) == (48, 128)
    truth = PROTOCOLS["nuscenes_mono"].twin("smoke")[0].load_truth()
    assert 0.05 < float((truth.need("depth") > 0).float().mean()) < 0.8


def test_published_rows_join_both_tables() -> None:
    rows = {r.method: r for r in published_mono("nuscenes")}
    assert rows["Student-DepthMap"].values == {
        "delta1": 88.1, "abs_rel": 0.152, "log10": 0.063, "delta2": 96.56, "delta3": 98.26,
    }  # fmt: skip
    assert rows["ZeroDepth"].source == "MetricAnything, Table 4"
    assert {r.method: r.values for r in published_mono("middlebury")}["Student-DepthMap"] == {"delta1": 65.8}


@pytest.mark.shared
def test_errors_equal_the_papers_own_code(shared_data: Path) -> None:
    golden = load_file(shared_data.parent / "golden" / "metric_functions.safetensors")
    valid = golden["in/valid_mask"].bool()
    got = compare_depth(golden["in/depth_pred"], golden["in/depth_gt"], valid, (0.0, math.inf), None)
    names = {
        "d1": "delta1", "d2": "delta2", "d3": "delta3", "abs_rel": "abs_rel", "sq_rel": "sq_rel", "rmse": "rmse",
        "mae": "mae", "rmse_log": "rmse_log", "log10": "log10", "silog": "silog",
    }  # fmt: skip
    for theirs, ours in names.items():
        assert got[ours] == pytest.approx(float(golden[f"metricanything/eval_{theirs}"]), rel=1e-5), theirs
    summary = summarise_depth([Measurement("a", "a", got, weight=got["pixels"])])
    assert summary["silog"] == pytest.approx(float(golden["metricanything/eval_silog"]), rel=1e-5)
    assert summary["rmse"] == pytest.approx(float(golden["metricanything/eval_rmse"]), rel=1e-5)
