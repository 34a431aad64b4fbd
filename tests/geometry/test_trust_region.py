"""Least squares in one unknown: the same stopping points as scipy's MINPACK, from far, hard and hopeless starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch import Tensor

from relief3d.geometry.focal import recover_focal_shift, view_plane_uv
from relief3d.geometry.trust_region import least_squares_in_one_unknown


def bent(t: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Residuals (B, 12) of a fit of sums of exponentials and sines, and their derivatives."""
    g = torch.Generator().manual_seed(seed)
    a, b, c = torch.rand(3, 12, generator=g, dtype=torch.float64)
    x = t[:, None]
    return (a * x).exp() + 3 * (b * x).sin() - 4 * c, a * (a * x).exp() + 3 * b * (b * x).cos()


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-10])
def test_it_stops_where_minpack_does(tolerance: float) -> None:
    for seed in range(12):
        starts = torch.tensor([0.0, 5.0, -7.0, 0.004], dtype=torch.float64)
        found = least_squares_in_one_unknown(
            lambda t, s=seed: bent(t, s),
            starts,
            tolerance=tolerance,
            floor=torch.zeros(4, dtype=torch.float64),
        )
        for start, value in zip(starts, found):

            def residual(x: np.ndarray, s: int = seed) -> np.ndarray:
                return bent(torch.from_numpy(np.asarray(x)), s)[0][0].numpy()

            expected = least_squares(residual, start[None].numpy(), method="lm", ftol=tolerance)
            assert float(value) == pytest.approx(float(expected.x[0]), rel=1e-5, abs=1e-6), (
                seed,
                float(start),
            )


def test_a_flat_problem_and_a_broken_one_stay_where_they_start() -> None:
    start = torch.tensor([0.3, -2.0], dtype=torch.float64)
    zero = torch.zeros(2, 4, dtype=torch.float64)
    tiny = torch.full((2,), 1e-300, dtype=torch.float64)
    flat = least_squares_in_one_unknown(lambda t: (zero + 1, zero), start, tolerance=1e-3, floor=tiny)
    broken = least_squares_in_one_unknown(lambda t: (zero / 0, zero), start, tolerance=1e-3, floor=tiny)
    assert torch.equal(flat, start) and torch.equal(broken, start)


@pytest.mark.parametrize("known", [None, 0.9])
def test_shifts_of_bad_points_are_those_that_moge_finds(known: float | None) -> None:
    """On noise there is no sharp minimum, so stopping early shows."""
    uv = view_plane_uv(64, 64, dtype=torch.float64)
    flat = uv.reshape(-1, 2).numpy()
    early = 0
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        z = 1 + 3 * torch.rand(64, 64, generator=g, dtype=torch.float64)
        noise = 0.3 * torch.randn(64, 64, 2, generator=g, dtype=torch.float64)
        points = torch.cat([(uv + noise) * z[..., None], z[..., None] - 0.5], -1)
        xyz = points.reshape(-1, 3).numpy()

        def residual(t: np.ndarray, xyz: np.ndarray = xyz) -> np.ndarray:
            p = xyz[:, :2] / (xyz[:, 2:] + t)
            f = known if known is not None else (p * flat).sum() / (p * p).sum()
            return (f * p - flat).ravel()

        expected = float(least_squares(residual, np.zeros(1), method="lm", ftol=1e-3).x[0])
        assert float(recover_focal_shift(points, focal=known, tolerance=1e-3).shift) == pytest.approx(
            expected, rel=1e-4, abs=1e-7
        )
        early += abs(float(recover_focal_shift(points, focal=known).shift) - expected) > 1e-5
    assert early
