"""Depth errors against loops over single pixels, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.eval.metrics.depth_errors import depth_errors, unit_hint


def example(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    g = 1 + 9 * torch.rand(3, 5, 7, generator=generator)
    p = g * (1 + 0.3 * torch.randn(3, 5, 7, generator=generator)).clamp_min(0.2)
    return p, g, torch.rand(3, 5, 7, generator=generator) > 0.3


def test_every_number_against_a_loop() -> None:
    p, g, m = example()
    errors = depth_errors(p, g, m)
    for b in range(3):
        pairs = [(float(x), float(y)) for x, y in zip(p[b][m[b]].double(), g[b][m[b]].double())]
        n = len(pairs)
        logs = [math.log(x) - math.log(y) for x, y in pairs]
        ratio = [max(x / y, y / x) for x, y in pairs]
        expected = {
            "abs_rel": sum(abs(x - y) / y for x, y in pairs) / n,
            "sq_rel": sum((x - y) ** 2 / y for x, y in pairs) / n,
            "rmse": math.sqrt(sum((x - y) ** 2 for x, y in pairs) / n),
            "mae": sum(abs(x - y) for x, y in pairs) / n,
            "rmse_log": math.sqrt(sum(e * e for e in logs) / n),
            "log10": sum(abs(math.log10(x) - math.log10(y)) for x, y in pairs) / n,
            "silog": math.sqrt(sum(e * e for e in logs) / n - 0.5 * (sum(logs) / n) ** 2),
            "delta1": sum(r < 1.25 for r in ratio) / n,
            "delta2": sum(r < 1.25**2 for r in ratio) / n,
            "delta3": sum(r < 1.25**3 for r in ratio) / n,
            "delta_105": sum(r < 1.05 for r in ratio) / n,
            "inlier_103": sum(r < 1.03 for r in ratio) / n,
            "inlier_110": sum(r < 1.10 for r in ratio) / n,
            "pixels": n,
        }
        for name, value in expected.items():
            assert float(getattr(errors, name)[b]) == pytest.approx(value, rel=1e-12), name


def test_a_perfect_prediction_is_perfect() -> None:
    _, g, m = example()
    numbers = depth_errors(g[0], g[0], m[0]).as_dict()
    assert all(numbers[k] == 0 for k in ("abs_rel", "sq_rel", "rmse", "mae", "rmse_log", "log10", "silog"))
    assert all(
        numbers[k] == 1 for k in ("delta1", "delta2", "delta3", "delta_105", "inlier_103", "inlier_110")
    )


def test_invariances() -> None:
    p, g, m = example()
    one, two = depth_errors(p[0], g[0], m[0]).as_dict(), depth_errors(3 * p[0], 3 * g[0], m[0]).as_dict()
    for name in ("abs_rel", "rmse_log", "log10", "silog", "delta1", "inlier_110"):
        assert two[name] == pytest.approx(one[name], rel=1e-6)
    for name in ("rmse", "mae", "sq_rel"):  # these have a unit
        assert two[name] == pytest.approx(3 * one[name], rel=1e-6)
    order = torch.randperm(35, generator=torch.Generator().manual_seed(1))
    shuffled = depth_errors(*(t[0].flatten()[order] for t in (p, g, m))).as_dict()
    assert shuffled == pytest.approx(one, rel=1e-12)


def test_limits_are_strict() -> None:
    g = torch.ones(2, 2, dtype=torch.float64)
    assert float(depth_errors(1.25 * g, g, g > 0).delta1) == 0.0
    assert float(depth_errors(1.2499 * g, g, g > 0).delta1) == 1.0


def test_masked_pixels_may_hold_anything() -> None:
    p, g, m = example()
    hurt = torch.where(m, p, torch.full_like(p, float("nan")))
    assert depth_errors(hurt[1], g[1], m[1]).as_dict() == depth_errors(p[1], g[1], m[1]).as_dict()


def test_refusals() -> None:
    p, g, m = example()
    with pytest.raises(InputError, match="no valid pixels"):
        depth_errors(p, g, torch.zeros_like(m))
    with pytest.raises(InputError, match="must have one shape"):
        depth_errors(p[:, :4], g, m)
    with pytest.raises(InputError, match="not positive numbers"):
        depth_errors(torch.zeros_like(p), g, m)
    with pytest.raises(InputError, match="one set"):
        depth_errors(p, g, m).as_dict()


def test_unit_hints() -> None:
    _, g, _ = example()
    assert "millimetres" in str(unit_hint(1000 * g, g)) and "thousandth" in str(unit_hint(g / 1000, g))
    assert unit_hint(5 * g, g) is None and unit_hint(g[:0], g) is None


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_mask_over_unknown_truth_is_refused(bad: float) -> None:
    p, g = torch.full((2, 3), 2.0), torch.full((2, 3), 2.0)
    g[1, 1] = bad
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(InputError, match="true depth is not a positive number"):
        depth_errors(p, g, mask)
    mask[1, 1] = False
    assert float(depth_errors(p, g, mask).abs_rel) == 0


def test_an_empty_batch_has_no_valid_pixels() -> None:
    nothing = torch.zeros(0, 2, 3)
    with pytest.raises(InputError, match="no valid pixels"):
        depth_errors(nothing, nothing, nothing.bool())
