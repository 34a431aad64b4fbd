"""Normalisation and multi-scale derivative errors against naive loops, by hand and by their invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.losses.depth_derivatives import (
    derivative_error,
    masked_median,
    ssi_derivative_error,
    ssi_mae,
    ssi_normalise,
    trimmed_mean,
)


def maps(
    seed: int = 0, size: tuple[int, int] = (21, 26), share: float = 0.9
) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    a, b = (
        torch.rand(2, *size, generator=g, dtype=torch.float64),
        torch.rand(2, *size, generator=g, dtype=torch.float64),
    )
    return a, b, torch.rand(2, *size, generator=g) < share


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6, 10, 11, 35, 64, 70, 99, 100])
def test_exactly_a_fifth_rounded_up_is_dropped(count: int) -> None:
    # Powers of two would overflow; distinct values let the sum say which were kept.
    values = torch.arange(1.0, count + 1, dtype=torch.float64)[torch.randperm(count)][None, None]
    kept = count - -(-count // 5)
    expected = sum(range(1, kept + 1)) / max(kept, 1)
    valid = torch.ones(1, 1, count, dtype=torch.bool)
    assert float(trimmed_mean(values, valid, 0.2)) == pytest.approx(expected)


def test_rounding_does_not_drop_one_more() -> None:
    assert 0.07 * 100 > 7
    values = torch.arange(1.0, 101, dtype=torch.float64)[None, None]
    assert float(trimmed_mean(values, torch.ones(1, 1, 100, dtype=torch.bool), 0.07)) == pytest.approx(47.0)


def test_trimming_by_hand_ignores_what_is_not_valid_and_is_per_map() -> None:
    values = torch.arange(1.0, 11).reshape(1, 2, 5).repeat(2, 1, 1)
    valid = torch.ones(2, 2, 5, dtype=torch.bool)
    assert trimmed_mean(values, valid, 0.2).tolist() == [4.5, 4.5]
    values[1] += 100  # a bad picture beside a good one loses its own fifth only
    assert trimmed_mean(values, valid, 0.2).tolist() == [4.5, 104.5]
    valid[1, 0] = False
    assert float(trimmed_mean(values, valid, 0.2)[1]) == pytest.approx(107.5)
    assert float(trimmed_mean(values, torch.zeros_like(valid), 0.2).sum()) == 0
    with pytest.raises(InputError):
        trimmed_mean(values, valid, 1.0)


def test_normalisation_is_by_lower_median_and_both_deviations() -> None:
    x = torch.tensor([[[1.0, 2.0, 4.0, 9.0, 77.0]]])
    valid = torch.tensor([[[True, True, True, True, False]]])
    assert float(masked_median(x, valid)) == 2.0  # the lower of 2 and 4
    # |x - 2| = 1, 0, 2, 7: lower median 1, mean 2.5
    assert ssi_normalise(x, valid)[0, 0].tolist() == [-1.0, 0.0, 2.0, 7.0, 0.0]
    torch.testing.assert_close(
        ssi_normalise(x, valid, "mean")[0, 0], torch.tensor([-0.4, 0.0, 0.8, 2.8, 0.0])
    )
    with pytest.raises(InputError):
        ssi_normalise(x, valid, "mode")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["median", "mean"])
def test_normalised_errors_ignore_scale_and_shift(mode) -> None:
    a, b, valid = maps()
    for error in (ssi_mae, ssi_derivative_error):
        plain = error(a, b, valid, mode=mode)
        torch.testing.assert_close(error(3.7 * a + 0.4, b, valid, mode=mode), plain)
        torch.testing.assert_close(error(a, 0.2 * b - 5, valid, mode=mode), plain)
        assert float(error(-b, b, valid, mode=mode).min()) > 0.1
        torch.testing.assert_close(error(2 * b + 1, b, valid, mode=mode), torch.zeros(2, dtype=a.dtype))


def test_derivatives_of_ramps_and_bowls() -> None:
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    every = torch.ones(1, 12, 16, dtype=torch.bool)

    def value(field: Tensor, kind: str) -> float:
        return float(derivative_error(field[None], every, kind, scales=1))  # type: ignore[arg-type]

    assert value(x, "scharr") == pytest.approx(1.0)
    assert value(y, "scharr") == pytest.approx(1.0)
    assert value(2 * x - 3 * y, "scharr") == pytest.approx(5.0)
    assert value(2 * x - 3 * y, "scharr_squared") == pytest.approx(13.0)
    assert value(2 * x - 3 * y, "laplace") == pytest.approx(0.0, abs=1e-4)
    assert value(x * x + 0.5 * y * y, "laplace") == pytest.approx(3.0, rel=1e-4)


def naive(residual: np.ndarray, valid: np.ndarray, kind: str, scales: int) -> float:
    """The rule written as loops over pixels."""
    scharr = np.array([[-3, 0, 3], [-10, 0, 10], [-3, 0, 3]]) / 32
    laplace = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    weights = np.array([1, 4, 6, 4, 1]) / 16
    r, m, total = np.where(valid, residual, 0.0), valid.astype(float), 0.0
    for _ in range(scales):
        rows, cols = r.shape
        if min(rows, cols) < 4:
            break
        terms = []
        for i in range(1, rows - 1):
            for j in range(1, cols - 1):
                block, known = r[i - 1 : i + 2, j - 1 : j + 2], m[i - 1 : i + 2, j - 1 : j + 2]
                if known.min() < 1:
                    continue
                gx, gy = (scharr * block).sum(), (scharr.T * block).sum()
                terms.append(
                    {
                        "scharr": abs(gx) + abs(gy),
                        "scharr_squared": gx**2 + gy**2,
                        "laplace": abs((laplace * block).sum()),
                    }[kind]
                )
        total += float(np.mean(terms)) if terms else 0.0
        new_r, new_m = (
            np.zeros(((rows + 1) // 2, (cols + 1) // 2)),
            np.zeros(((rows + 1) // 2, (cols + 1) // 2)),
        )
        for i in range(new_r.shape[0]):
            for j in range(new_r.shape[1]):
                ii = np.clip(2 * i + np.arange(-2, 3), 0, rows - 1)
                jj = np.clip(2 * j + np.arange(-2, 3), 0, cols - 1)
                w = weights[:, None] * weights[None]
                share = (w * m[np.ix_(ii, jj)]).sum()
                if share >= 0.5:
                    new_m[i, j] = 1
                    new_r[i, j] = (w * (r * m)[np.ix_(ii, jj)]).sum() / share
        r, m = new_r, new_m
    return total / scales


@pytest.mark.parametrize("kind", ["scharr", "scharr_squared", "laplace"])
@pytest.mark.parametrize("share", [1.0, 0.93, 0.55])
def test_pyramid_with_holes_is_that_of_naive_loops(kind, share: float) -> None:
    a, b, valid = maps(3, share=share)
    found = derivative_error(a - b, valid, kind)
    expected = [naive((a - b)[i].numpy(), valid[i].numpy(), kind, 6) for i in range(2)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_levels_that_vanish_still_divide() -> None:
    a, b, valid = maps(4, (6, 6), 1.0)
    six = derivative_error(a - b, valid)
    # 6 and then 3 pixels: one level only.
    torch.testing.assert_close(six, derivative_error(a - b, valid, scales=1) / 6)
    assert not bool(derivative_error(a - b, torch.zeros_like(valid)).any())
    with pytest.raises(InputError):
        derivative_error(a, valid, "sobel")  # type: ignore[arg-type]


def test_values_that_are_not_valid_do_not_matter() -> None:
    a, b, valid = maps(5)
    plain = ssi_derivative_error(a, b, valid), ssi_mae(a, b, valid, trim=0.2)
    a, b = a.masked_fill(~valid, 1e6), b.masked_fill(~valid, math.nan)
    after = ssi_derivative_error(a, b, valid), ssi_mae(a, b, valid, trim=0.2)
    for x, y in zip(plain, after, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("mode", ["median", "mean"])
def test_gradients_are_those_of_finite_differences(mode) -> None:
    a, b, valid = maps(6, (9, 10))
    a.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ssi_derivative_error(x, b, valid, mode=mode), (a,))
    assert torch.autograd.gradcheck(lambda x: ssi_mae(x, b, valid, mode=mode, trim=0.2), (a,))
    assert torch.autograd.gradcheck(lambda x: derivative_error(x - b, valid, "scharr_squared"), (a,))
