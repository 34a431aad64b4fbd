"""Focal length from point maps: golden values, scipy as oracle, outliers, hand-checked numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.focal import (
    centred_intrinsics,
    focal_from_fov_x,
    focal_from_pixels,
    focal_shift_weiszfeld,
    focal_to_pixels,
    focal_weiszfeld,
    recover_focal_shift,
    view_plane_uv,
    weiszfeld_scale,
)
from relief3d.geometry.projection import depth_to_points


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> dict[str, Tensor]:
    return load_file(shared_data.parent / "golden" / "metric_functions.safetensors")


def scene(height: int, width: int, focal: float, seed: int = 0, batch: int = 1) -> Tensor:
    """(B, H, W, 3) points of a bumpy scene seen by a centred camera."""
    generator = torch.Generator().manual_seed(seed)
    depth = 2 + 3 * torch.rand(batch, height, width, generator=generator, dtype=torch.float64)
    return depth_to_points(depth, centred_intrinsics(torch.tensor(focal).double(), height, width))


@pytest.mark.shared
def test_golden_values(golden: dict[str, Tensor]) -> None:
    torch.testing.assert_close(view_plane_uv(48, 64), golden["moge/view_plane_uv"], rtol=0, atol=1e-7)
    points, mask = golden["in/points_affine"], golden["in/valid_mask"]
    for fit, name in (
        (recover_focal_shift(points, mask), ""),
        (recover_focal_shift(points), "_nomask"),
    ):
        torch.testing.assert_close(fit.focal[None], golden[f"moge/focal{name}"], rtol=1e-4, atol=0)
        torch.testing.assert_close(fit.shift[None], golden[f"moge/shift{name}"], rtol=1e-4, atol=0)
    known = recover_focal_shift(points, mask, 1.2)
    assert float(known.focal) == pytest.approx(1.2)
    torch.testing.assert_close(known.shift[None], golden["moge/shift_known_focal_1.2"], rtol=1e-3, atol=0)


@pytest.mark.shared
def test_unprojection_matches_the_golden_points(golden: dict[str, Tensor]) -> None:
    K = golden["in/intrinsics_normalised"].double()
    K = torch.diag(torch.tensor([64.0, 48.0, 1.0]).double()) @ K
    points = depth_to_points(golden["in/depth_gt"].double(), K).float()
    torch.testing.assert_close(points, golden["moge/unproject"], rtol=1e-5, atol=1e-6)


def test_shift_and_focal_of_exact_points() -> None:
    points = scene(40, 60, 55.0, batch=3)
    points[..., 2] -= torch.tensor([0.0, 0.7, -0.4]).double()[:, None, None]
    points *= 0.5
    fit = recover_focal_shift(points)
    torch.testing.assert_close(
        focal_to_pixels(fit.focal, 40, 60), torch.full((3,), 55.0).double(), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(fit.shift, torch.tensor([0.0, 0.35, -0.2]).double(), rtol=0, atol=1e-6)
    one = recover_focal_shift(points[1])
    assert one.focal.shape == () and float(one.shift) == pytest.approx(0.35, abs=1e-6)


@pytest.mark.parametrize("known", [None, 0.8])
def test_agrees_with_scipy_on_noisy_points(known: float | None) -> None:
    from scipy.optimize import least_squares

    points = scene(64, 64, 50.0, seed=2)[0]
    points = points + 0.05 * torch.randn(points.shape, generator=torch.Generator().manual_seed(3)).double()
    points[..., 2] -= 0.5
    uv = view_plane_uv(64, 64, dtype=torch.float64).reshape(-1, 2).numpy()
    xyz = points.reshape(-1, 3).numpy()

    def focal(t: np.ndarray) -> float:
        p = xyz[:, :2] / (xyz[:, 2:] + t)
        return float((p * uv).sum() / (p * p).sum()) if known is None else known

    def residual(t: np.ndarray) -> np.ndarray:
        return (focal(t) * xyz[:, :2] / (xyz[:, 2:] + t) - uv).ravel()

    expected = least_squares(residual, np.zeros(1), method="lm", ftol=1e-12, xtol=1e-12)
    fit = recover_focal_shift(points, focal=known)
    assert float(fit.shift) == pytest.approx(float(expected.x[0]), rel=1e-4)
    assert float(fit.focal) == pytest.approx(focal(expected.x), rel=1e-4)


def test_few_points_and_bad_points() -> None:
    points = scene(8, 8, 9.0).float()
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    fit = recover_focal_shift(points, mask)
    assert float(fit.focal) == 1.0 and float(fit.shift) == 0.0
    assert float(recover_focal_shift(points, mask, 0.7).focal) == pytest.approx(0.7)
    clean = recover_focal_shift(points, ~mask & (points[..., 2] < 4))
    broken = points.clone()
    broken[points[..., 2] >= 4] = torch.nan
    assert float(recover_focal_shift(broken).focal) == pytest.approx(float(clean.focal))
    with pytest.raises(InputError, match="mask"):
        recover_focal_shift(points, mask[0])
    with pytest.raises(InputError, match="no valid pixels"):
        focal_weiszfeld(points, mask)
    with pytest.raises(InputError, match="no valid pixels"):
        focal_weiszfeld(-points)


def test_a_parallel_plane_keeps_its_depth() -> None:
    """Any shift fits a plane parallel to the picture: none is taken, and the focal length is that of the points."""
    K = centred_intrinsics(torch.tensor(40.0).double(), 48, 64)
    for dtype in (torch.float32, torch.float64):
        plane = depth_to_points(torch.full((48, 64), 2.0, dtype=dtype), K)
        fit = recover_focal_shift(plane)
        assert abs(float(fit.shift)) < 1e-3
        assert float(focal_to_pixels(fit.focal, 48, 64)) == pytest.approx(40.0, rel=1e-3)
        assert float(focal_shift_weiszfeld(plane).focal) == pytest.approx(40.0, rel=1e-3)


def test_worked_numbers() -> None:
    # A square picture with g = sqrt(2): normalised fx = 1.
    assert float(focal_to_pixels(torch.tensor(math.sqrt(2.0)).double(), 200, 200)) / 200 == pytest.approx(1.0)
    assert float(focal_from_pixels(focal_to_pixels(torch.tensor(0.9), 30, 50), 30, 50)) == pytest.approx(0.9)
    # f = w has a field of view of 53.1301 degrees.
    g = focal_from_fov_x(math.radians(53.13010235), 640 / 480)
    assert float(focal_to_pixels(torch.tensor(g).double(), 480, 640)) == pytest.approx(640.0, rel=1e-7)
    p = torch.tensor([[1.0, 0], [2, 0], [3, 0], [40, 0]], dtype=torch.float64)
    q = torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]], dtype=torch.float64)
    assert float(weiszfeld_scale(p, q, iterations=0)[0]) == pytest.approx(5.8)
    assert float(weiszfeld_scale(p, q, iterations=10, tolerance=0)[0]) == pytest.approx(1.1749, abs=5e-5)
    assert float(weiszfeld_scale(p, q, iterations=50, tolerance=0)[0]) == pytest.approx(1.00000002, abs=1e-8)
    assert float(weiszfeld_scale(p, q)[0]) == pytest.approx(1.0, abs=1e-5)


def test_uv_reaches_half_the_diagonal() -> None:
    uv = view_plane_uv(30, 50, dtype=torch.float64)
    corner = uv[-1, -1] * torch.tensor([50 / 49, 30 / 29]).double()
    assert float(corner.norm()) == pytest.approx(1.0)
    assert torch.equal(uv, -uv.flip(0, 1))
    half_pixel = view_plane_uv(30, 50, dtype=torch.float64)[0, 1, 0] - uv[0, 0, 0]
    assert float(half_pixel) == pytest.approx(2 / math.hypot(30, 50))


def _with_outliers(points: Tensor, share: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    bad = torch.rand(points.shape[:-1], generator=generator) < share
    noise = torch.rand(points.shape, generator=generator).double() * torch.tensor([4.0, 3.0, 3.0]).double()
    return torch.where(bad[..., None], noise + torch.tensor([-2.0, -1.5, 2.0]).double(), points)


def test_weiszfeld_stands_gross_outliers() -> None:
    clean = scene(60, 80, 70.0, seed=4)
    dirty = _with_outliers(clean, 0.2, 5)
    fit = focal_weiszfeld(dirty)
    assert float(fit.focal) == pytest.approx(70.0, rel=1e-3)
    assert bool((fit.objective.diff(dim=-1) <= 1e-9 * fit.objective[:, :1]).all())
    few = focal_weiszfeld(dirty, iterations=10, tolerance=0)
    assert few.objective.shape == (1, 11)
    squares = float(focal_weiszfeld(dirty, iterations=0).focal)
    assert abs(squares - 70) > 1
    solver = float(focal_to_pixels(recover_focal_shift(dirty).focal, 60, 80)[0])
    assert abs(solver - 70) > 1  # least squares does not stand them


def test_weiszfeld_needs_points_without_a_shift() -> None:
    points = scene(60, 80, 70.0, seed=6)
    points[..., 2] -= 0.8
    assert abs(float(focal_weiszfeld(points).focal) - 70) > 5
    dirty = _with_outliers(points, 0.2, 7)
    fit = focal_shift_weiszfeld(dirty)
    assert float(fit.focal) == pytest.approx(70.0, rel=1e-3) and float(fit.shift) == pytest.approx(
        0.8, abs=5e-3
    )
    assert bool((fit.objective.diff(dim=-1) <= 1e-9 * fit.objective[:, :1]).all())


def test_weiszfeld_masks_thins_and_clips() -> None:
    points = scene(60, 80, 70.0, seed=8)
    mask = torch.ones(1, 60, 80, dtype=torch.bool)
    mask[:, :20] = False
    broken = points.clone()
    broken[:, :20] = torch.tensor([3.0, 1.0, 1.0]).double()
    assert float(focal_weiszfeld(broken, mask).focal) == pytest.approx(70.0, rel=1e-6)
    assert float(focal_weiszfeld(points, max_points=100).focal) == pytest.approx(70.0, rel=1e-6)
    base = 80 / (2 * math.tan(math.radians(30)))
    wide = scene(60, 80, 1.0, seed=9)
    assert float(focal_weiszfeld(wide).focal) == pytest.approx(0.1 * base)
    batch = torch.cat([points, scene(60, 80, 90.0, seed=8)])
    torch.testing.assert_close(
        focal_weiszfeld(batch).focal, torch.tensor([70.0, 90.0]).double(), rtol=1e-5, atol=0
    )


def test_centred_intrinsics() -> None:
    K = centred_intrinsics(torch.tensor([5.0, 6.0]), 30, 40)
    assert K[1].tolist() == [[6.0, 0, 20.0], [0, 6.0, 15.0], [0, 0, 1.0]]
