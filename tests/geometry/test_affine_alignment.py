"""Exact truncated-L1 alignment and the masked resize: golden values, brute force, invariances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry import affine_alignment
from relief3d.geometry.affine_alignment import (
    align_depth_affine,
    align_disparity_least_squares,
    align_points_scale,
    align_points_scale_xyz_shift,
    align_points_scale_z_shift,
    align_points_xyz_shift,
    align_points_z_shift,
    align_trunc,
)
from relief3d.geometry.masked_resize import masked_nearest_indices, masked_nearest_resize


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> dict[str, Tensor]:
    return load_file(shared_data.parent / "golden" / "metric_functions.safetensors")


def draws(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cost(a: float, x: Tensor, y: Tensor, w: Tensor, trunc: float | None) -> float:
    values = w * (a * x - y).abs()
    return float((values if trunc is None else values.clamp(max=trunc)).sum())


@pytest.mark.shared
@pytest.mark.parametrize(("name", "trunc"), [("none", None), ("0.3", 0.3)])
def test_scale_has_the_golden_value(golden: dict[str, Tensor], name: str, trunc: float | None) -> None:
    fit = align_trunc(golden["in/align_x"], golden["in/align_y"], golden["in/align_w"], trunc)
    torch.testing.assert_close(fit.scale, golden[f"moge/align_trunc_{name}_a"], rtol=1e-6, atol=0)
    torch.testing.assert_close(fit.loss, golden[f"moge/align_trunc_{name}_loss"], rtol=1e-6, atol=0)


@pytest.mark.shared
def test_the_other_solvers_have_the_golden_values(golden: dict[str, Tensor]) -> None:
    x, y, w = (golden[f"in/align_{k}"] for k in "xyw")
    scale, shift = align_depth_affine(x + 3, y + 5, w)
    torch.testing.assert_close(scale, golden["moge/align_depth_affine_scale"], rtol=1e-6, atol=0)
    torch.testing.assert_close(shift, golden["moge/align_depth_affine_shift"], rtol=0, atol=1e-6)
    mask = golden["moge/resized_mask"]
    p, q = (golden[f"moge/resized_{k}"][mask][None] for k in ("pred", "gt"))
    w = 1 / q[..., 2]
    torch.testing.assert_close(align_points_scale(p, q, w), golden["moge/align_points_scale"])
    for name, trunc in (("none", None), ("1.0", 1.0)):
        for kind, solver in (("z", align_points_scale_z_shift), ("xyz", align_points_scale_xyz_shift)):
            scale, shift = solver(p, q, w, trunc)
            torch.testing.assert_close(scale, golden[f"moge/align_scale_{kind}shift_{name}_scale"])
            torch.testing.assert_close(shift, golden[f"moge/align_scale_{kind}shift_{name}_shift"])
    torch.testing.assert_close(align_points_z_shift(p, q, w)[0], golden["moge/align_z_shift"])
    torch.testing.assert_close(align_points_xyz_shift(p, q, w)[0], golden["moge/align_xyz_shift"])
    valid = golden["in/valid_mask"]
    fit = align_disparity_least_squares(golden["in/depth_pred"][valid], golden["in/depth_gt"][valid])
    torch.testing.assert_close(torch.stack(fit), golden["moge/align_disparity_lstsq"], rtol=1e-5, atol=1e-6)


@pytest.mark.shared
def test_masked_resize_has_the_golden_values(golden: dict[str, Tensor]) -> None:
    mask = golden["in/valid_mask"]
    found = masked_nearest_indices(mask, (12, 12))
    assert torch.equal(found.rows, golden["moge/resized_index_i"])
    assert torch.equal(found.cols, golden["moge/resized_index_j"])
    assert torch.equal(found.valid, golden["moge/resized_mask"])
    for name, key in (("points_affine", "pred"), ("points_gt", "gt")):
        values, _ = masked_nearest_resize(golden[f"in/{name}"], mask, (12, 12))
        assert torch.equal(values[found.valid], golden[f"moge/resized_{key}"][found.valid])


@pytest.mark.parametrize("trunc", [None, 5.0, 0.5, 0.05])
def test_scale_beats_every_ratio_and_a_fine_grid(trunc: float | None) -> None:
    for seed in range(8):
        x, y, w = draws(seed, 9), draws(seed + 50, 9), draws(seed + 90, 9).abs()
        fit = align_trunc(x, y, w, trunc)
        best = min(cost(float(a), x, y, w, trunc) for a in y / x)
        assert float(fit.loss) == pytest.approx(best, abs=1e-12)
        grid = np.linspace(-20, 20, 801)
        assert float(fit.loss) <= min(cost(a, x, y, w, trunc) for a in grid) + 1e-12
        assert float(fit.scale) == pytest.approx(float((y / x)[fit.sample]))


def test_truncation_changes_the_answer() -> None:
    x = torch.ones(5, dtype=torch.float64)
    y = torch.tensor([1.0, 1.0, 9.0, 9.1, 9.2], dtype=torch.float64)
    assert float(align_trunc(x, y).scale) == 9.0
    assert float(align_trunc(x, y, trunc=0.01).scale) == 1.0  # two agree exactly, the others cost the limit


def test_the_lower_median_is_taken() -> None:
    x, y = torch.ones(4), torch.tensor([4.0, 1.0, 3.0, 2.0])
    assert float(align_trunc(x, y).scale) == 2.0


def test_batches_weights_and_bad_samples() -> None:
    x, y, w = draws(0, 2, 3, 7), draws(1, 2, 3, 7), draws(2, 2, 3, 7).abs()
    fit = align_trunc(x, y, w, 0.4)
    for i in range(2):
        for j in range(3):
            one = align_trunc(x[i, j], y[i, j], w[i, j], 0.4)
            assert float(one.scale) == float(fit.scale[i, j])
    x[0, 0, 3] = torch.nan
    y[0, 0, 4] = torch.inf
    keep = torch.tensor([0, 1, 2, 5, 6])
    left = align_trunc(x[0, 0, keep], y[0, 0, keep], w[0, 0, keep], 0.4)
    assert float(align_trunc(x, y, w, 0.4).scale[0, 0]) == float(left.scale)
    assert bool(torch.isnan(align_trunc(torch.zeros(3), torch.ones(3)).scale))
    assert bool(torch.isnan(align_trunc(torch.ones(3), torch.ones(3), torch.zeros(3), 1.0).scale))
    assert bool(
        torch.isnan(align_points_scale_z_shift(*(torch.ones(2, 4, 3),) * 2, torch.zeros(2, 4))[0]).all()
    )
    with pytest.raises(InputError, match="shapes"):
        align_trunc(torch.ones(3), torch.ones(4))
    with pytest.raises(InputError, match="positive"):
        align_trunc(torch.ones(3), torch.ones(3), trunc=0.0)


def test_affine_against_all_pairs() -> None:
    for trunc in (None, 0.5):
        for seed in range(6):
            x, y, w = draws(seed, 7), draws(seed + 30, 7), draws(seed + 60, 7).abs()
            a, b = align_depth_affine(x, y, w, trunc)
            costs = []
            for i in range(7):
                for j in range(7):
                    if i != j:
                        s = float((y[i] - y[j]) / (x[i] - x[j]))
                        costs.append(cost(1.0, s * x + y[i] - s * x[i], y, w, trunc))
            assert cost(1.0, a * x + b, y, w, trunc) == pytest.approx(min(costs), abs=1e-10)


@pytest.mark.parametrize("solver", [align_points_scale_z_shift, align_points_scale_xyz_shift])
def test_points_are_recovered_among_outliers_and_follow_units(solver) -> None:  # type: ignore[no-untyped-def]
    p = draws(3, 2, 40, 3) + torch.tensor([0.0, 0.0, 4.0], dtype=torch.float64)
    t = torch.tensor([0.0, 0.0, 0.7], dtype=torch.float64)
    if solver is align_points_scale_xyz_shift:
        t = torch.tensor([0.2, -0.3, 0.7], dtype=torch.float64)
    q = 1.7 * p + t
    q[:, :12] += 5 * draws(4, 2, 12, 3)
    w = 1 / q[..., 2].abs().clamp_min(0.5)
    scale, shift = solver(p, q, w, 0.1)
    torch.testing.assert_close(scale, torch.full_like(scale, 1.7))
    torch.testing.assert_close(shift, t.expand(2, 3))
    # Another unit of the points: the scale takes it up.
    scale, shift = solver(10 * p, q, w, 0.1)
    torch.testing.assert_close(scale, torch.full_like(scale, 0.17))
    torch.testing.assert_close(shift, t.expand(2, 3))
    # The order of the points does not matter.
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    again, _ = solver(p[:, order], q[:, order], w[:, order], 0.1)
    torch.testing.assert_close(again, torch.full_like(again, 1.7))


@pytest.mark.parametrize("values", [1, 100, 700, 1 << 20])
def test_the_search_over_anchors_does_not_depend_on_its_chunks(
    values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, q, w = draws(11, 2, 3, 11, 3), draws(12, 2, 3, 11, 3), draws(13, 2, 3, 11).clamp_min(0)
    w[1, 2] = 0
    monkeypatch.setattr(affine_alignment, "_CHUNK_VALUES", values)
    scale, shift = align_points_scale_xyz_shift(p, q, w, 0.8)
    assert bool(torch.isnan(scale[1, 2])) and bool(torch.isnan(shift[1, 2]).all())
    for i in range(2):
        for j in range(3):
            keep = w[i, j] > 0
            if not bool(keep.any()):
                continue
            one, t = align_points_scale_xyz_shift(p[i, j, keep], q[i, j, keep], w[i, j, keep], 0.8)
            assert float(one) == pytest.approx(float(scale[i, j]), rel=1e-9)
            torch.testing.assert_close(t, shift[i, j], rtol=1e-9, atol=1e-9)


def test_gradients_reach_the_samples_that_fix_the_line() -> None:
    p = (draws(5, 13, 3) + 3).requires_grad_()
    q = 2 * p.detach() + torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) + 0.1 * draws(6, 13, 3)
    scale, shift = align_points_scale_z_shift(p, q, torch.ones(13, dtype=torch.float64))
    (scale + shift.sum()).backward()
    assert p.grad is not None and bool(torch.isfinite(p.grad).all())
    step = 1e-6 * p.grad / p.grad.norm()
    moved = sum(float(v.sum()) for v in align_points_scale_z_shift((p + step).detach(), q))
    assert moved - float((scale + shift.sum()).detach()) == pytest.approx(
        1e-6 * float(p.grad.norm()), rel=1e-3
    )


def test_shifts_alone_are_medians() -> None:
    p, q = draws(7, 5, 3), draws(8, 5, 3)
    change = (q - p).numpy()
    np.testing.assert_allclose(align_points_xyz_shift(p, q).numpy(), np.median(change, axis=0))
    np.testing.assert_allclose(align_points_z_shift(p, q).numpy(), [0, 0, np.median(change[:, 2])])


def test_disparity_against_numpy() -> None:
    depth, target = 1 + draws(9, 30).abs(), 1 + draws(10, 30).abs()
    a, b = align_disparity_least_squares(depth, target)
    A = np.stack([1 / depth.numpy(), np.ones(30)], 1)
    expected = np.linalg.lstsq(A, 1 / target.numpy(), rcond=None)[0]
    np.testing.assert_allclose([float(a), float(b)], expected, rtol=1e-9)
    depth[3] = -1.0  # not a depth: left out
    target[4] = 0.0
    keep = [i for i in range(30) if i not in (3, 4)]
    again = align_disparity_least_squares(depth, target)
    torch.testing.assert_close(again, align_disparity_least_squares(depth[keep], target[keep]))


def test_masked_resize_by_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    for (height, width), (h, w) in (((9, 14), (3, 5)), ((20, 7), (4, 7)), ((6, 6), (6, 6))):
        mask = torch.rand(2, height, width, generator=generator) < 0.3
        values = torch.rand(2, height, width, generator=generator)
        small, valid = masked_nearest_resize(values, mask, (h, w))
        for b in range(2):
            for i in range(h):
                for j in range(w):
                    cy, cx = (i + 0.5) * height / h, (j + 0.5) * width / w
                    y0, x0 = round(cy - height / h / 2), round(cx - width / w / 2)
                    window = [
                        (round((y + 0.5 - cy) ** 2 + (x + 0.5 - cx) ** 2, 4), float(values[b, y, x]))
                        for y in range(y0, y0 + -(-height // h))
                        for x in range(x0, x0 + -(-width // w))
                        if 0 <= y < height and 0 <= x < width and mask[b, y, x]
                    ]
                    assert bool(valid[b, i, j]) == bool(window)
                    if window:
                        least = min(window)[0]
                        assert float(small[b, i, j]) in [v for d, v in window if d == least]
    with pytest.raises(InputError, match="fit"):
        masked_nearest_resize(torch.ones(4, 5), torch.ones(5, 4, dtype=torch.bool), (2, 2))


def test_masked_resize_finds_what_plain_nearest_misses() -> None:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[0, 0] = True
    _, valid = masked_nearest_resize(torch.ones(16, 16), mask, (4, 4))
    plain = torch.nn.functional.interpolate(mask[None, None].float(), size=(4, 4), mode="nearest-exact")
    assert bool(valid[0, 0]) and float(plain.sum()) == 0
