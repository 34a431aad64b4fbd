"""DIODE by depth range: bins, pooling, clamp and resize."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from corpora.evaluation import measure_samples, truthful
from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer, Measurement, Query, Truth
from relief3d.eval.protocols.metric.diode_ranges import PROTOCOLS, RANGES

PROTOCOL = PROTOCOLS[0]


def measure(predicted: Tensor, truth: Tensor) -> Measurement:
    facts = {"group": "g"}
    query = Query("a", "mono_depth", ("depth",))
    return PROTOCOL.measure(
        query,
        Truth({"depth": truth[None], "valid": truth[None] > 0}, facts=facts),
        Answer({"depth": predicted[None]}),
    )


def test_ranges_pool_pixels_and_use_the_true_depth() -> None:
    rng = np.random.default_rng(0)
    truths = [torch.from_numpy(rng.uniform(0, high, (10, 12)).astype(np.float32)) for high in (30, 90)]
    for t in truths:
        t[0, :3] = 0.0
    answers = [torch.from_numpy(rng.uniform(-1, 90, (5, 6)).astype(np.float32)) for _ in truths]
    got = PROTOCOL.summarise([measure(a, t) for a, t in zip(answers, truths)])
    resized = [
        F.interpolate(a[None, None], size=(10, 12), mode="bilinear")[0, 0].numpy().astype(float)
        for a in answers
    ]
    p = np.clip(np.concatenate([r.ravel() for r in resized]), 1e-3, 1e3)
    g = np.concatenate([t.numpy().astype(float).ravel() for t in truths])
    picture = np.repeat([0, 1], 120)
    for key, low, high in (("r0_10", 0, 10), ("r20_30", 20, 30), ("r40_50", 40, 50), ("r50", 50, math.inf)):
        inside = (g > 0) & (g >= low) & (g < high)
        error = np.abs(p - g) / np.where(g > 0, g, 1)
        assert got[key] == pytest.approx(error[inside].mean(), rel=1e-6)
        means = [error[inside & (picture == i)].mean() for i in (0, 1) if (inside & (picture == i)).any()]
        assert got[f"image_{key}"] == pytest.approx(np.mean(means), rel=1e-6)
        if key in ("r0_10", "r20_30"):
            assert got[key] != pytest.approx(got[f"image_{key}"])
    wrong = (g > 0) & (p >= 20) & (p < 30)  # ranges of the prediction
    assert got["r20_30"] != pytest.approx((np.abs(p - g) / np.where(g > 0, g, 1))[wrong].mean())
    printed = (g >= 10) & (g < 30)  # the third range as it is printed
    assert got["r20_30"] != pytest.approx((np.abs(p - g) / np.where(g > 0, g, 1))[printed].mean())


def test_bounds_belong_to_the_upper_range() -> None:
    truth = torch.tensor([[10.0, 20.0, 30.0, 40.0, 50.0]])
    values = measure(truth, truth).values
    assert {k for k in RANGES if k in values} == {"r10_20", "r20_30", "r30_40", "r40_50", "r50"}


def test_a_range_nobody_sees_is_nan_and_nothing_at_all_is_an_error() -> None:
    summary = PROTOCOL.summarise([measure(torch.ones(2, 2), torch.full((2, 2), 5.0))])
    assert summary["r0_10"] == pytest.approx(0.8) and math.isnan(summary["r50"])
    with pytest.raises(InputError, match="no valid pixels"):
        measure(torch.ones(2, 2), torch.zeros(2, 2))


def test_twin_covers_the_ranges() -> None:
    summary = PROTOCOL.summarise(measure_samples(PROTOCOL, PROTOCOL.twin("smoke"), truthful))
    assert all(summary[key] == 0 for key in ("r10_20", "r20_30", "r30_40"))
    assert not math.isnan(summary["r0_10"]) and not math.isnan(summary["r50"])
    assert [r.method for r in PROTOCOL.published()] == ["Depth", "Log depth", "Inverse depth", "Ours"]
