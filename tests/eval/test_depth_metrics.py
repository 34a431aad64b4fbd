"""Depth metrics by hand."""

import math

import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.eval.metrics.depth import evaluate_depth


def test_by_hand():
    g = torch.tensor([[1.0, 2.0, 4.0, 0.0]])
    d = torch.tensor([[1.1, 2.0, 2.0, 5.0]])
    m = evaluate_depth(d, g)
    assert float(m.abs_rel) == pytest.approx((0.1 + 0 + 0.5) / 3, abs=1e-6)
    assert float(m.sq_rel) == pytest.approx((0.01 + 0 + 1.0) / 3, abs=1e-6)
    assert float(m.mae) == pytest.approx(2.1 / 3, abs=1e-6)
    assert float(m.rmse) == pytest.approx(math.sqrt(4.01 / 3), abs=1e-6)
    logs = [math.log(1.1), 0.0, math.log(0.5)]
    assert float(m.log10) == pytest.approx(sum(abs(x) for x in logs) / 3 / math.log(10), abs=1e-6)
    assert float(m.rmse_log) == pytest.approx(math.sqrt(sum(x * x for x in logs) / 3), abs=1e-6)
    mean = sum(logs) / 3
    assert float(m.silog) == pytest.approx(100 * math.sqrt(sum((x - mean) ** 2 for x in logs) / 3), abs=1e-4)
    assert torch.allclose(m.delta, torch.tensor([1, 1, 2, 2, 2]).double() / 3)
    assert torch.allclose(m.within, torch.tensor([1, 1, 1]).double() / 3)
    assert float(m.kept) == 1.0 and int(m.pixels) == 3


def test_missing_predictions_lower_kept_only():
    g = torch.full((2, 4), 2.0)
    d = g.clone()
    d[0, 0], d[0, 1], d[1, 0] = 0.0, float("nan"), float("inf")
    m = evaluate_depth(d, g)
    assert float(m.abs_rel) == 0 and float(m.kept) == pytest.approx(5 / 8)


def test_batches_equal_single_maps():
    generator = torch.Generator().manual_seed(0)
    g = 1 + torch.rand(2, 3, 8, 9, generator=generator)
    d = g * (1 + 0.1 * torch.randn(g.shape, generator=generator))
    mask = torch.rand(g.shape, generator=generator) > 0.3
    whole = evaluate_depth(d, g, mask, alignment="scale_shift")
    assert whole.abs_rel.shape == (2, 3) and whole.delta.shape == (2, 3, 5)
    one = evaluate_depth(d[1, 2], g[1, 2], mask[1, 2], alignment="scale_shift")
    assert float(whole.abs_rel[1, 2]) == pytest.approx(float(one.abs_rel))
    assert set(whole.as_dict()) >= {"abs_rel", "delta1", "delta_1.05", "within_2pct", "kept"}


@pytest.mark.parametrize(
    ("alignment", "change"),
    [
        ("median", lambda g: 3 * g),
        ("scale", lambda g: 0.2 * g),
        ("scale_shift", lambda g: (g - 0.5) / 1.7),
        ("inverse_scale_shift", lambda g: 1 / (0.3 / g + 0.1)),
    ],
)
def test_alignments_undo_their_distortion(alignment, change):
    g = 1 + 3 * torch.rand(20, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    d = change(g)
    assert float(evaluate_depth(d, g).abs_rel) > 0.1
    assert float(evaluate_depth(d, g, alignment=alignment).abs_rel) < 1e-6


def test_constant_prediction_with_shift():
    g = 1 + torch.rand(5, 5, generator=torch.Generator().manual_seed(2))
    m = evaluate_depth(torch.full_like(g, 7.0), g, alignment="scale_shift")
    assert math.isfinite(float(m.abs_rel)) and float(m.abs_rel) < 0.5


def test_depth_range():
    g = torch.tensor([[1.0, 5.0, 50.0]])
    assert int(evaluate_depth(g, g, max_depth=10.0).pixels) == 2
    assert int(evaluate_depth(g, g, min_depth=2.0).pixels) == 2


@pytest.mark.parametrize("bad", ["zero_reference", "zero_prediction", "mask", "nan", "one_of_batch"])
def test_no_valid_pixels_is_an_error(bad):
    g, d = torch.ones(2, 4, 4), torch.ones(2, 4, 4)
    mask = None
    if bad == "zero_reference":
        g = g * 0
    elif bad == "zero_prediction":
        d = d * 0
    elif bad == "mask":
        mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    elif bad == "nan":
        d = d * float("nan")
    else:
        g[1] = 0
    with pytest.raises(InputError, match="no valid pixels"):
        evaluate_depth(d, g, mask)


def test_shapes_and_names_are_checked():
    with pytest.raises(InputError, match="must agree"):
        evaluate_depth(torch.ones(2, 2), torch.ones(2, 3))
    with pytest.raises(InputError, match="unknown depth alignment"):
        evaluate_depth(torch.ones(2, 2), torch.ones(2, 2), alignment="affine")
