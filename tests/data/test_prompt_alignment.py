"""Alignment of a dense prior to sparse depth: golden values, exactness, invariances, naive re-computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data import prompt_alignment
from relief3d.data.prompt_alignment import (
    FLOOR,
    PRIOR_DA,
    GlobalOptions,
    PixelwiseOptions,
    align_global,
    align_pixelwise,
    fill_holes,
    fit_affine,
    inverse,
    nearest_known,
    prompt_condition,
)


@pytest.fixture
def golden(shared_data: Path) -> dict[str, Tensor]:
    return load_file(shared_data.parent / "golden" / "metric_functions.safetensors")


def scene(points: int = 40, seed: int = 0, size: tuple[int, int] = (24, 32)) -> tuple[Tensor, Tensor, Tensor]:
    """Prior disparity, prompt disparity (0 elsewhere) and mask, with a local error between them."""
    g = torch.Generator().manual_seed(seed)
    x = 0.1 + 0.5 * torch.rand(size, generator=g)
    mask = torch.zeros(size, dtype=torch.bool).reshape(-1)
    mask[torch.randperm(mask.numel(), generator=g)[:points]] = True
    mask = mask.reshape(size)
    y = 1.7 * x + 0.05 + 0.02 * torch.randn(size, generator=g)
    return x, torch.where(mask, y.clamp_min(0.01), torch.zeros_like(y)), mask


@pytest.mark.shared
def test_global_fit_has_the_golden_value(golden: dict[str, Tensor]) -> None:
    prior, prompt = golden["in/priorda_pred_disparity"][0], golden["in/priorda_sparse_disparity"][0]
    fit = align_global(prior, prompt, golden["in/priorda_sparse_mask"][0])
    torch.testing.assert_close(
        fit.disparity, golden["priorda/global_aligned_disparity"][0], rtol=0, atol=1e-6
    )


@pytest.mark.shared
def test_pixelwise_fit_has_the_golden_value_apart_from_ties(golden: dict[str, Tensor]) -> None:
    prior, prompt = golden["in/priorda_pred_disparity"][0], golden["in/priorda_sparse_disparity"][0]
    mask = golden["in/priorda_sparse_mask"][0]
    ours = align_pixelwise(prior, prompt, mask, PRIOR_DA)
    _, far = nearest_known(mask, torch.nonzero(torch.ones_like(mask)).flip(-1), 6)
    tie = ((far[:, 5] - far[:, 4]) < 1e-9).reshape(mask.shape)
    assert 0 < float(tie.float().mean()) < 0.07
    error = (ours - golden["priorda/knn_aligned_disparity_K5"][0]).abs()
    assert float(error[~tie].max()) < 1e-5
    assert float(error[tie].max()) < 0.1  # another of two equally distant points


def naive_pixelwise(x: Tensor, y: Tensor, mask: Tensor, k: int = 5, power: float = 2.0) -> Tensor:
    out = y.double().clone()
    known = np.argwhere(mask.numpy())
    for r, c in np.argwhere(~mask.numpy()):
        far = np.hypot(known[:, 0] - r, known[:, 1] - c)
        near = np.argsort(far, kind="stable")[:k]
        w = (1 / far[near]) / (1 / far[near]).sum()
        rows = known[near]
        xs = np.array([float(x[i, j]) for i, j in rows])
        ys = np.array([float(y[i, j]) for i, j in rows])
        root = w ** (power / 2)
        a = np.stack([xs, np.ones(k)], 1) * root[:, None]
        s, t = np.linalg.lstsq(a, ys * root, rcond=None)[0]
        out[r, c] = s * float(x[r, c]) + t
    return out


def test_pixelwise_fit_is_weighted_least_squares_with_squared_inverse_distances() -> None:
    x, y, mask = scene()
    ours = align_pixelwise(x, y, mask, PixelwiseOptions(clamp=False)).double()
    _, far = nearest_known(mask, torch.nonzero(torch.ones_like(mask)).flip(-1), 6)
    clear = ((far[:, 5] - far[:, 4]) > 1e-9).reshape(mask.shape)
    right, wrong = naive_pixelwise(x, y, mask), naive_pixelwise(x, y, mask, power=1.0)
    assert float((ours - right)[clear].abs().max()) < 1e-4
    assert float((ours - wrong)[clear].abs().max()) > 1e-2


@pytest.mark.parametrize("points", [5, 6, 60])
def test_both_maps_are_exact_when_one_affine_map_explains_the_prompt(points: int) -> None:
    x, _, mask = scene(points)
    y = 1.7 * x + 0.05
    prompt = torch.where(mask, y, torch.zeros_like(y))
    torch.testing.assert_close(
        align_pixelwise(x, prompt, mask, PixelwiseOptions(clamp=False)), y, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(align_global(x, prompt, mask).disparity, y, atol=1e-5, rtol=0)
    robust = align_global(x, prompt, mask, GlobalOptions(robust="huber"))
    torch.testing.assert_close(robust.disparity, y, atol=1e-5, rtol=0)


def test_clamp_keeps_each_pixel_within_its_own_neighbours() -> None:
    x, y, mask = scene()
    x = torch.where(mask, x, 3 * x - 0.5)  # far more contrast off the prompt than on it
    free = align_pixelwise(x, y, mask, PixelwiseOptions(clamp=False))
    kept = align_pixelwise(x, y, mask)
    near, _ = nearest_known(mask, torch.nonzero(~mask).flip(-1), 5)
    ys = y.reshape(-1)[near]
    low, high = 0.5 * ys.amin(-1), 2 * ys.amax(-1)
    assert bool((free[~mask] < 0.9 * low).any()) and bool((free[~mask] > 1.1 * high).any())
    torch.testing.assert_close(kept[~mask].double(), free[~mask].double().clamp(low, high))
    torch.testing.assert_close(kept[mask], y[mask])


def test_only_values_that_are_not_positive_become_the_floor() -> None:
    x = torch.tensor([[0.0, 0.9, 1.0001, 1.0005, 1.5, 2.0]])
    y = torch.where(x > 1.2, x - 1, torch.zeros_like(x))  # so the fit is x - 1
    fit = align_global(x, y, y > 0)
    expected = torch.tensor([[1e-3, 1e-3, 0.0001, 0.0005, 0.5, 1.0]])
    torch.testing.assert_close(fit.disparity, expected, atol=2e-7, rtol=0)


def test_flat_prior_takes_the_scale_alone() -> None:
    _, y, mask = scene()
    flat = align_pixelwise(torch.full_like(y, 0.3), y, mask, PixelwiseOptions(clamp=False))
    assert bool(torch.isfinite(flat).all()) and float(flat.min()) > 0
    s, t = fit_affine(torch.full((4,), 2.0), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert float(t) == 0.0 and float(s) == pytest.approx(1.25)


def test_jitter_is_seeded_and_small() -> None:
    x, y, mask = scene()
    runs = [
        align_pixelwise(x, y, mask, PixelwiseOptions(clamp=False, jitter=torch.Generator().manual_seed(seed)))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    plain = align_pixelwise(x, y, mask, PixelwiseOptions(clamp=False))
    assert float((runs[0] - plain).abs().median()) < 1e-3


def test_coarse_fit_stays_near_the_full_one_on_a_smooth_prior() -> None:
    v, u = torch.meshgrid(torch.linspace(0, 1, 60), torch.linspace(0, 1, 80), indexing="ij")
    x = 0.2 + 0.2 * v + 0.1 * u
    _, _, mask = scene(80, size=(60, 80))
    prompt = torch.where(mask, 1.3 * x + 0.02, torch.zeros_like(x))
    coarse = align_pixelwise(x, prompt, mask, PixelwiseOptions(max_side=20))
    error = (coarse - 1.3 * x - 0.02).abs()
    assert float(error[4:-4, 4:-4].max()) < 1e-3  # at the border the coarse grid ends half a cell inside
    assert float(error.max()) < 0.02
    torch.testing.assert_close(coarse[mask], prompt[mask])


def test_search_without_a_tree_finds_the_same_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, mask = scene(200)
    where = torch.rand(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 20
    near, far = nearest_known(mask, where, 5)
    monkeypatch.setattr(prompt_alignment, "_CHUNK", 1000)
    flat = torch.nonzero(mask.reshape(-1))[:, 0]
    points = torch.nonzero(mask).flip(-1).double()
    other, distance = prompt_alignment._search(flat, points, where, 5)
    torch.testing.assert_close(distance, far, atol=1e-12, rtol=0)
    assert torch.equal(other, near)  # random positions have no ties


def test_holes_take_the_plain_mean_of_five_neighbours() -> None:
    g = torch.Generator().manual_seed(3)
    depth = 1 + 4 * torch.rand(20, 24, generator=g)
    depth[torch.rand(20, 24, generator=g) < 0.3] = 0
    filled = fill_holes(depth)
    known = np.argwhere(depth.numpy() > 0)
    checked = 0
    for r, c in np.argwhere(depth.numpy() == 0):
        far = np.sort(np.hypot(known[:, 0] - r, known[:, 1] - c))
        if far[5] - far[4] < 1e-9:
            continue
        near = np.argsort(np.hypot(known[:, 0] - r, known[:, 1] - c))[:5]
        assert float(filled[r, c]) == pytest.approx(depth.numpy()[tuple(known[near].T)].mean(), rel=1e-5)
        checked += 1
    assert checked > 10
    assert torch.equal(filled[depth > 0], depth[depth > 0])


def test_global_fit_ignores_the_order_of_points_and_overwrites_nothing() -> None:
    x, y, mask = scene()
    fit = align_global(x, y, mask)
    flipped = align_global(x.flip(0, 1), y.flip(0, 1), mask.flip(0, 1))
    torch.testing.assert_close(flipped.disparity.flip(0, 1), fit.disparity, atol=1e-6, rtol=0)
    assert float((fit.disparity[mask] - y[mask]).abs().max()) > 1e-3
    slope, offset = np.polyfit(x[mask].double().numpy(), y[mask].double().numpy(), 1)
    assert (fit.scale, fit.shift) == pytest.approx((slope, offset), rel=1e-6)
    assert fit.residual == pytest.approx(float((fit.disparity - y)[mask].abs().double().median()), rel=1e-3)


def test_negative_global_disparity_gets_the_floor() -> None:
    x = torch.linspace(0, 1, 100).reshape(10, 10)
    mask = x > 0.5
    fit = align_global(x, torch.where(mask, 2 * x - 0.9, torch.zeros_like(x)), mask)
    assert float(fit.disparity.min()) == pytest.approx(FLOOR)
    assert float(fit.disparity[x < 0.4].max()) == pytest.approx(FLOOR)


def test_huber_resists_outliers() -> None:
    x, _, mask = scene(200)
    y = torch.where(mask, 1.7 * x + 0.05, torch.zeros_like(x))
    wrong = torch.nonzero(mask)[::8]
    noisy = y + torch.where(
        mask, 0.005 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), 0.0
    )
    noisy[wrong[:, 0], wrong[:, 1]] = 3.0
    plain, robust = align_global(x, noisy, mask), align_global(x, noisy, mask, GlobalOptions(robust="huber"))
    truth = 1.7 * x + 0.05
    assert float((robust.disparity - truth).abs().mean()) < 0.4 * float(
        (plain.disparity - truth).abs().mean()
    )


def test_huber_is_three_reweighted_fits() -> None:
    x, _, mask = scene(60)
    xs = x[mask].double().numpy()
    g = np.random.default_rng(0)
    ys = 1.7 * xs + 0.05 + 0.02 * g.standard_normal(60) + np.where(g.random(60) < 0.2, 0.5, 0.0)
    y = torch.zeros_like(x).double()
    y[mask] = torch.from_numpy(ys)
    design, w = np.stack([xs, np.ones(60)], 1), np.ones(60)
    for step in range(4):
        s, t = np.linalg.lstsq(design * np.sqrt(w)[:, None], ys * np.sqrt(w), rcond=None)[0]
        residual = torch.from_numpy(ys - s * xs - t)
        mad = float((residual - residual.median()).abs().median())
        before, w = w, np.minimum(1.0, 1.345 * 1.4826 * mad / np.maximum(np.abs(residual.numpy()), 1e-12))
        assert step == 0 or float(np.abs(before - w).max()) > 1e-4  # every step still changes something
    fit = align_global(x.double(), y, mask, GlobalOptions(robust="huber"))
    assert (fit.scale, fit.shift) == (pytest.approx(s, rel=1e-6), pytest.approx(t, rel=1e-6))


def test_locally_weighted_fit_has_both_limits() -> None:
    x, y, mask = scene(100)
    wide = align_global(x, y, mask, GlobalOptions(mode="lwlr", bandwidth=1e4))
    torch.testing.assert_close(wide.disparity, align_global(x, y, mask).disparity, atol=5e-3, rtol=0)
    # Two halves with their own scale: only the local fit can follow both.
    left = torch.arange(x.shape[1])[None].expand_as(x) < x.shape[1] // 2
    truth = torch.where(left, 1.0 * x, 2.0 * x)
    prompt = torch.where(mask, truth, torch.zeros_like(x))
    local = align_global(x, prompt, mask, GlobalOptions(mode="lwlr"))
    assert float((local.disparity - truth).abs().mean()) < 0.6 * float(
        (align_global(x, prompt, mask).disparity - truth).abs().mean()
    )


def test_locally_weighted_fit_at_one_grid_point_by_hand() -> None:
    x, y, mask = scene(60, size=(16, 16))
    ours = align_global(x, y, mask, GlobalOptions(mode="lwlr", bandwidth=0.3))
    known = torch.nonzero(mask).double()
    xs, ys = x[mask].double(), y[mask].double()
    b = 0.3 * (16**2 + 16**2) ** 0.5
    w = torch.exp(-((known - torch.tensor([5.0, 9.0])) ** 2).sum(1) / (2 * b * b)) / (2 * np.pi) ** 0.5
    design = torch.stack([xs, torch.ones_like(xs)], 1)
    ridge = 1e-3 * float((xs**2).mean()) * torch.eye(2, dtype=torch.float64)
    s, t = torch.linalg.solve(design.T @ (w[:, None] * design) + ridge, design.T @ (w * ys))
    assert float(ours.disparity[5, 9]) == pytest.approx(float(s * x[5, 9] + t), rel=1e-5)


def test_few_radar_points() -> None:
    x, y, mask = scene(4)
    with pytest.raises(InputError, match="not enough known points: 4 of at least 5"):
        align_pixelwise(x, y, mask)
    assert bool(torch.isfinite(align_pixelwise(x, y, mask, PixelwiseOptions(fewer=True))).all())
    assert align_global(x, y, mask, GlobalOptions(scale_only_below=4)).shift != 0.0
    fit = align_global(x, y, mask, GlobalOptions(scale_only_below=10))
    assert fit.shift == 0.0
    assert fit.scale == pytest.approx(
        float((x * y)[mask].double().sum() / (x * x)[mask].double().sum()), rel=1e-5
    )
    with pytest.raises(InputError, match="not enough known points"):
        align_global(x, y, torch.zeros_like(mask))


def test_condition_has_the_papers_channel_order_and_canonical_scale() -> None:
    x, y, mask = scene()
    depth = inverse(y)
    plain = prompt_condition(x, depth)
    assert plain.points == int(mask.sum()) and plain.values.shape == (3, 24, 32)
    torch.testing.assert_close(plain.values[0], align_pixelwise(x, y, mask), atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.values[1], align_global(x, y, mask).disparity, atol=1e-5, rtol=0)
    assert torch.equal(plain.values[2], mask.float())
    canonical = prompt_condition(x, depth, fx_over_width=0.8)
    torch.testing.assert_close(canonical.values[:2], 0.8 * plain.values[:2])
    assert torch.equal(canonical.values[2], mask.float())


def test_shapes_and_modes_are_checked() -> None:
    x, y, mask = scene()
    with pytest.raises(InputError, match="must be"):
        align_global(x[:-1], y, mask)
    with pytest.raises(InputError, match="robust"):
        align_global(x, y, mask, GlobalOptions(mode="lwlr", robust="huber"))
    assert inverse(torch.tensor([0.0, -1.0, float("inf"), 2.0])).tolist() == [0, 0, 0, 0.5]
