"""MoGe-2's losses: reference values, invariances, gradients, degenerate pictures, published weights."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch
from tests.corpora.golden import golden
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.losses import moge, moge_local
from relief3d.losses.moge_local import LEVELS, PatchOptions
from relief3d.losses.moge_objective import WEIGHTS, MogeOptions, MogeTruth, moge_loss, moge_truth

F64 = torch.float64


@pytest.fixture(scope="module")
def values(shared_data: Path) -> dict[str, Tensor]:
    return golden(shared_data, "metric_functions")


def _same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-7)


@pytest.mark.shared
def test_reference_values(values: dict[str, Tensor]) -> None:
    g = {k.removeprefix("moge/"): v for k, v in values.items()}
    points, target = g["in/points_affine"][None], g["in/points_gt_masked_inf"][None]
    valid = torch.isfinite(target).all(-1)
    fit = moge.global_loss(points, target, valid, resolution=12)
    _same(fit.loss, g["loss_global"])
    _same(fit.scale, g["loss_global_scale"])
    sparse = moge.global_loss(points, target, valid, resolution=12, beta=0.1, sparsity_aware=True)
    _same(sparse.loss, g["loss_global_beta0.1_sparsity"])
    _same(moge.edge_loss(points, target, valid), g["loss_edge"])
    _same(moge.normal_loss(points, target, valid), g["loss_normal"])
    normals = g["in/normal_gt"][None]
    known = torch.isfinite(normals).all(-1)
    _same(moge.normal_map_loss(g["in/normal_pred"][None], normals, known), g["loss_normal_map"])
    masks = (g["in/mask_prob"][None], g["in/valid_mask"][None], g["in/mask_neg"][None])
    _same(moge.mask_loss(*masks), g["loss_mask_bce"])
    _same(moge.mask_square_loss(*masks), g["loss_mask_l2"])
    scales = moge.metric_scale_loss(torch.tensor([1.3, 2.0]), torch.tensor([1.9, -1.0]))
    _same(scales, g["loss_metric_scale"])


def scene(batch: int = 1, height: int = 24, width: int = 32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Points (B, H, W, 3) of waves with a step, K and validity with a tenth missing, in double precision."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    phase = 6 * torch.rand(batch, 2, 1, 1, generator=g, dtype=F64)
    z = 3 + 0.4 * (x / 5 + phase[:, 0]).sin() + 0.3 * (y / 4 + phase[:, 1]).cos() + 2.0 * (x > width / 2)
    K = torch.tensor([[30.0, 0, width / 2], [0, 30, height / 2], [0, 0, 1]], dtype=F64).repeat(batch, 1, 1)
    points = torch.stack([(x - width / 2) / 30 * z, (y - height / 2) / 30 * z, z], -1)
    return points, K, torch.rand(batch, height, width, generator=g) > 0.1


def noise(like: Tensor, size: float, seed: int = 9) -> Tensor:
    return size * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_scale_and_shift_of_the_prediction_do_not_matter() -> None:
    target, _, valid = scene(2)
    points = (target - torch.tensor([0, 0, 0.7], dtype=F64)) / 1.8
    fit = moge.global_loss(points, target, valid, resolution=10)
    torch.testing.assert_close(fit.scale, torch.full((2,), 1.8, dtype=F64))
    torch.testing.assert_close(fit.shift, torch.tensor([0, 0, 0.7], dtype=F64).repeat(2, 1))
    assert float(fit.loss.max()) < 1e-12
    least = 0.5 * math.radians(0.1) ** 2 / math.radians(3)
    shares = (valid[:, 1:] & valid[:, :-1]).double().mean((1, 2)) + (
        valid[:, :, 1:] & valid[:, :, :-1]
    ).double().mean((1, 2))
    torch.testing.assert_close(moge.edge_loss(points, target, valid), shares * least / 64, rtol=1e-6, atol=0)
    # A fifth of gross outliers moves the scale by next to nothing, because the alignment is truncated.
    gross = torch.rand(valid.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    wild = torch.where(gross[..., None], noise(points, 5.0), points)
    again = moge.global_loss(wild, target, valid, resolution=10)
    torch.testing.assert_close(again.scale, fit.scale)
    assert float(again.loss.min()) > 0.1
    turned = points.clone()
    turned[..., 2] *= -1
    assert float(moge.edge_loss(turned, target, valid).min()) > float(
        100 * moge.edge_loss(points, target, valid).max()
    )


def test_the_global_loss_is_what_it_says() -> None:
    """Plain loops; the mean is over all pixels, valid or not, and weights end at ten times their mean."""
    target, _, valid = scene(1, 9, 11)
    target[0, 3, 4] = torch.tensor([1e-4, 2e-4, 1e-3])
    valid[0, 3, 4] = True
    points = (target + noise(target, 0.1)) / 2
    fit = moge.global_loss(points, target, valid, resolution=11)
    weights = [1 / float(target[0, i, j, 2]) for i, j in valid[0].nonzero().tolist()]
    limit = 10 * sum(weights) / len(weights)
    total = 0.0
    for (i, j), w in zip(valid[0].nonzero().tolist(), weights):
        p = fit.scale[0] * points[0, i, j] + fit.shift[0]
        total += float((p - target[0, i, j]).abs().sum()) * min(w, limit)
    assert max(weights) > limit
    assert float(fit.loss) == pytest.approx(total / (9 * 11 * 3), rel=1e-9)


def test_gradients_are_those_of_finite_differences() -> None:
    target, _, valid = scene(1, 6, 7)
    points = (0.6 * target + noise(target, 0.05)).requires_grad_()
    check = functools.partial(torch.autograd.gradcheck, fast_mode=True)
    assert check(lambda p: moge.global_loss(p, target, valid, resolution=6).loss, points)
    assert check(lambda p: moge.global_loss(p, target, valid, resolution=6, beta=0.2).loss, points)
    assert check(lambda p: moge.edge_loss(p, target, valid), points)
    assert check(lambda p: moge.normal_loss(p, target, valid), points)
    assert check(lambda n: moge.normal_map_loss(n, target, valid), points)
    probability = (
        (0.1 + 0.8 * torch.rand(1, 6, 7, generator=torch.Generator().manual_seed(0)))
        .double()
        .requires_grad_()
    )
    assert check(lambda m: moge.mask_loss(m, valid, ~valid), probability)
    scale = torch.tensor([0.7, 2.0], dtype=F64, requires_grad=True)
    assert check(lambda s: moge.metric_scale_loss(s, torch.tensor([1.3, 0.9]).double()), scale)


@pytest.mark.parametrize("kind", ["nothing", "one pixel", "sky"])
def test_degenerate_pictures_give_a_finite_loss_and_gradient(kind: str) -> None:
    target, K, valid = scene(2, 12, 16)
    valid = torch.zeros_like(valid)
    if kind == "one pixel":
        valid[:, 5, 6] = True
    target[~valid] = torch.nan
    points = (0.5 * torch.nan_to_num(target, nan=1.0)).requires_grad_()
    broken = torch.where(valid[..., None], points, torch.inf)
    normals = torch.nn.functional.normalize(torch.ones_like(target), dim=-1).requires_grad_()
    mask = torch.full((2, 12, 16), 0.3, dtype=F64, requires_grad=True)
    scale = torch.ones(2, dtype=F64, requires_grad=True)
    truth = MogeTruth(target, valid, K, ("A", "B"), ~valid, target, valid)
    options = MogeOptions(12, tuple(PatchOptions(x.level, 4, 3) for x in LEVELS), least_share=0.0)
    for one in (points, broken):
        loss = moge_loss(
            one, truth, normals=normals, mask=mask, scale=scale, options=options,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        loss.total.backward()
        for name, value in loss.terms.items():
            assert bool(torch.isfinite(value).all()), name
            if kind != "one pixel" and name != "mask":
                assert not bool(value.any()), name
        for leaf in (points, normals, mask, scale):
            assert leaf.grad is not None and bool(torch.isfinite(leaf.grad).all())
    # With the published least share such pictures teach nothing at all, not even the mask.
    big = [torch.zeros(1, 40, 50, 3), torch.zeros(1, 40, 50, dtype=torch.bool)]
    big[1][0, 7, 7] = kind == "one pixel"
    none = moge_loss(
        big[0] + 1, MogeTruth(big[0] + 2, big[1], K[:1], ("A",), ~big[1]), mask=torch.full((1, 40, 50), 0.5)
    )
    assert float(none.total) == 0.0


def test_weights_are_the_published_ones() -> None:
    a = {
        "global": 1, "patch_4": 1, "patch_16": 1, "patch_64": 1, "edge": 1, "normal_map": 0.1, "metric_scale": 0.1,
        "mask": 0.1,
    }  # fmt: skip
    assert WEIGHTS["A"] == a
    assert WEIGHTS["B"] == {k: v for k, v in a.items() if k != "patch_64"}
    assert WEIGHTS["C"] == {"global": 1, "patch_4": 1, "metric_scale": 0.1, "mask": 0.1}
    assert [(x.level, x.resolution, x.patches, x.trunc) for x in LEVELS] == [
        (4, 24, 16, 1.0), (16, 12, 256, 1.0), (64, 6, 4096, 1.0),
    ]  # fmt: skip
    assert MogeOptions().resolution == 48


def test_every_label_takes_its_own_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moge_local, "LEAST_POINTS", 8)
    target, K, valid = scene(4, 44, 60)
    K[:, :2, :2] *= 2
    target[..., :2] /= 2
    metric = torch.tensor([True, False, True, True])
    truth = moge_truth(target[..., 2], valid, K, ("A", "B", "C", "none"), sky=~valid, metric=metric)
    torch.testing.assert_close(truth.points, torch.where(valid[..., None], target, truth.points))
    points = 0.6 * target + noise(target, 0.03)
    normals = torch.nn.functional.normalize(truth.normals + noise(target, 0.2), dim=-1)  # type: ignore[operator]
    mask = torch.full(valid.shape, 0.8, dtype=F64)
    scale = torch.tensor([1.2, 1.2, 1.2, 1.2], dtype=F64)
    options = MogeOptions(7, tuple(PatchOptions(x.level, 4, 4) for x in LEVELS))

    def run(points: Tensor, truth: MogeTruth, n: slice = slice(None)) -> tuple[Tensor, dict[str, Tensor]]:
        out = moge_loss(
            points[n], truth[n], normals=normals[n], mask=mask[n], scale=scale[n], options=options,
            generator=torch.Generator().manual_seed(3),
        )  # fmt: skip
        return out.total, {str(k): v for k, v in out.terms.items()}

    total, terms = run(points, truth)
    assert set(terms) == set(WEIGHTS["A"])
    expected = sum(
        WEIGHTS[label].get(name, 0.0) * float(value[i])  # type: ignore[call-overload]
        for i, label in enumerate(truth.labels)
        for name, value in terms.items()
    )
    assert float(total) == pytest.approx(expected / 4, rel=1e-9)
    # Only metric truth teaches the scale, and only labels with the term give it a value.
    assert [float(v) > 0 for v in terms["metric_scale"]][:3] == [True, False, True]
    assert bool((terms["patch_4"][:3] > 0).all()) and float(terms["patch_4"][3]) == 0.0
    assert bool((terms["patch_16"] > 0)[:2].all()) and float(terms["patch_16"][2]) == 0.0
    assert set(run(points, truth, slice(2, 3))[1]) == {"global", "patch_4", "metric_scale", "mask"}
    assert run(points, truth)[0] == total
    with pytest.raises(InputError, match="kinds of label"):
        MogeTruth(target, valid, K, ("A",))
    with pytest.raises(InputError, match="no level 16"):
        moge_loss(points, truth, options=MogeOptions(16, (PatchOptions(4, 6, 2),)))
    with pytest.raises(InputError, match="differ"):
        moge_loss(points[:2], truth)
    with pytest.raises(InputError, match="mask"):
        moge.edge_loss(points, target, valid[:, :-1])
    with pytest.raises(InputError, match="boolean"):
        moge.edge_loss(points, target, valid.float())


def test_heads_that_are_missing_take_no_part() -> None:
    target, K, valid = scene(1)
    truth = MogeTruth(target, valid, K, ("A",))
    options = MogeOptions(16, tuple(PatchOptions(x.level, 4, 2) for x in LEVELS))
    loss = moge_loss(0.6 * target, truth, options=options, generator=torch.Generator().manual_seed(0))
    assert set(loss.terms) == {"global", "patch_4", "patch_16", "patch_64", "edge"}
    assert float(loss.scale) == pytest.approx(1 / 0.6)


def test_half_precision_predictions_are_computed_in_full() -> None:
    target, _, valid = scene(1)
    points = (0.6 * target + noise(target, 0.05)).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = moge.global_loss(points, target.float(), valid, resolution=12).loss
        assert moge.edge_loss(points.bfloat16(), target, valid).dtype == torch.float32
    assert inside.dtype == torch.float32
    assert torch.equal(inside, moge.global_loss(points, target.float(), valid, resolution=12).loss)
