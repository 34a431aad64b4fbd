from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch.autograd import gradcheck

from relief3d.core.errors import InputError
from relief3d.geometry import alignment as al
from relief3d.geometry.rotations import rotation_angle, so3_exp

from .draws import F64, close, generator, normal, properties, rotations, seeds, uniform


def random_similarity(g: torch.Generator, n: int = 16) -> al.Similarity:
    return al.Similarity(uniform(g, 0.01, 20, n), rotations(g, n), 5 * normal(g, n, 3))


@properties
@given(seeds)
def test_umeyama_recovers_similarities(seed: int) -> None:
    g = generator(seed)
    truth, src = random_similarity(g), normal(g, 16, 9, 3) + 10 * normal(g, 16, 1, 3)
    found = al.umeyama(src, truth.apply(src), uniform(g, 0.1, 2, 16, 9))
    for a, b in zip(found, truth):
        assert close(a, b, 1e-10)


@properties
@given(seeds)
def test_umeyama_rigid_planar_and_three_points(seed: int) -> None:
    g = generator(seed)
    truth = random_similarity(g)._replace(scale=torch.ones(16, dtype=F64))
    src = normal(g, 16, 3, 3)  # three points are planar
    found = al.umeyama(src, truth.apply(src), with_scale=False)
    assert torch.equal(found.scale, torch.ones(16, dtype=F64))
    assert close(found.apply(src), truth.apply(src), 1e-10)
    assert close(torch.linalg.det(found.rotation), torch.ones(16, dtype=F64), 1e-12)


@properties
@given(seeds)
def test_umeyama_minimises_the_weighted_error(seed: int) -> None:
    g = generator(seed)
    src, dst, w = normal(g, 12, 3), normal(g, 12, 3), uniform(g, 0, 1, 12)
    fit = al.umeyama(src, dst, w)
    best = (w * (fit.apply(src) - dst).square().sum(-1)).sum()
    for _ in range(8):
        near = al.Similarity(
            fit.scale * (1 + 0.01 * normal(g, 1)[0]),
            so3_exp(0.01 * normal(g, 3)) @ fit.rotation,
            fit.translation + 0.01 * normal(g, 3),
        )
        assert (w * (near.apply(src) - dst).square().sum(-1)).sum() >= best - 1e-12


@properties
@given(seeds)
def test_umeyama_is_invariant_to_order_and_equivariant(seed: int) -> None:
    g = generator(seed)
    src, dst, w = normal(g, 12, 3), normal(g, 12, 3), uniform(g, 0, 1, 12)
    fit = al.umeyama(src, dst, w)
    order = torch.randperm(12, generator=g)
    for a, b in zip(al.umeyama(src[order], dst[order], 7 * w[order]), fit):
        assert close(a, b, 1e-10)
    move = random_similarity(g, 1)
    moved = al.umeyama(src, move.apply(dst[None])[0], w)
    assert close(moved.apply(src), move.apply(fit.apply(src)[None])[0], 1e-9)
    # A weight of two is the point twice; a weight of zero is no point, even when it is not a number.
    ones = torch.ones(12, dtype=F64)
    double = al.umeyama(torch.cat([src, src[:1]]), torch.cat([dst, dst[:1]]))
    ones[0] = 2
    assert close(al.umeyama(src, dst, ones).apply(src), double.apply(src), 1e-10)
    broken = torch.cat([dst, torch.full((1, 3), torch.nan, dtype=F64)])
    ignored = al.umeyama(torch.cat([src, src[:1]]), broken, torch.cat([w, torch.zeros(1, dtype=F64)]))
    assert close(ignored.apply(src), fit.apply(src), 1e-12)


def test_umeyama_never_mirrors() -> None:
    g = generator(0)
    src = normal(g, 20, 3)
    fit = al.umeyama(src, src * torch.tensor([-1.0, 1.0, 1.0], dtype=F64))
    assert torch.linalg.det(fit.rotation).item() == pytest.approx(1)
    assert 0 < fit.scale.item() < 1
    # Negative evidence for any scale still gives a proper rotation and a finite answer.
    assert torch.isfinite(al.umeyama(src, -src).scale)


def test_umeyama_degenerate_sets() -> None:
    g = generator(1)
    line = torch.arange(5, dtype=F64)[:, None] * torch.tensor([1.0, 2.0, 0.5], dtype=F64) + 3
    move = al.Similarity(torch.tensor(2.0, dtype=F64), rotations(g)[-1], normal(g, 3))
    fit = al.umeyama(line, move.apply(line))
    assert close(fit.apply(line), move.apply(line), 1e-10)
    point = torch.full((4, 3), 1e3 / 3, dtype=F64)
    fit = al.umeyama(point, point + 1)
    assert fit.scale.item() == 1
    assert close(fit.apply(point), point + 1, 1e-12)
    empty = al.umeyama(line, line, torch.zeros(5, dtype=F64))
    assert all(bool(torch.isfinite(x).all()) for x in empty)
    one = al.umeyama(line[:1], line[1:2])
    assert close(one.apply(line[:1]), line[1:2], 1e-12)
    with pytest.raises(InputError, match="shapes"):
        al.umeyama(line, line[:3])
    with pytest.raises(InputError):
        al.umeyama(line[:0], line[:0])


def test_umeyama_gradients() -> None:
    g = generator(2)
    src, dst = normal(g, 2, 6, 3).requires_grad_(), normal(g, 2, 6, 3).requires_grad_()
    assert gradcheck(al.umeyama, (src, dst, uniform(g, 0.5, 1, 2, 6).requires_grad_()))
    same = src.detach().clone().requires_grad_()  # identity alignment: equal sets
    assert gradcheck(lambda s, d: tuple(al.umeyama(s, d)), (same, src))
    flat = torch.zeros(4, 3, dtype=F64, requires_grad=True)
    grads = torch.autograd.grad(sum(x.sum() for x in al.umeyama(flat, flat + 1)), flat)
    assert bool(torch.isfinite(grads[0]).all())


@properties
@given(seeds)
def test_robust_umeyama_ignores_outliers(seed: int) -> None:
    g = generator(seed)
    truth = al.Similarity(*(x[0] for x in random_similarity(g, 1)))
    src = 3 * normal(g, 100, 3)
    dst = truth.apply(src)
    size = float(truth.scale)
    dst[:50] += size * (10 + uniform(g, 0, 20, 50, 1)) * normal(g, 50, 3).sign()
    dst[50] = torch.nan
    fit = al.robust_umeyama(src, dst, 0.01 * size, g, iterations=200)
    assert fit.inliers[51:].all() and not fit.inliers[:51].any()
    assert close(fit.scale, truth.scale, 1e-9) and close(fit.rotation, truth.rotation, 1e-9)
    assert close(fit.translation, truth.translation, 1e-9)


def test_robust_umeyama_is_seeded_and_counts_points() -> None:
    g = generator(0)
    src, dst = normal(g, 40, 3), normal(g, 40, 3)
    a = al.robust_umeyama(src, dst, 0.5, generator(7), iterations=50)
    b = al.robust_umeyama(src, dst, 0.5, generator(7), iterations=50)
    assert all(torch.equal(x, y) for x, y in zip(a, b))
    rigid = al.robust_umeyama(src, src + 1, 0.1, generator(7), with_scale=False)
    assert rigid.scale.item() == 1 and rotation_angle(rigid.rotation) < 1e-12 and rigid.inliers.all()
    with pytest.raises(InputError, match="at least 3"):
        al.robust_umeyama(src[:2], dst[:2], 0.1, generator(0))
    with pytest.raises(InputError, match="got 2"):
        al.robust_umeyama(src, dst, 0.1, generator(0), weights=(torch.arange(40) < 2).to(F64))


@properties
@given(seeds)
def test_weighted_median_minimises_and_matches_repetition(seed: int) -> None:
    g = generator(seed)
    n = 1 + seed % 12
    v = normal(g, 16, n)
    w = torch.randint(0, 4, (16, n), generator=g).to(F64)
    w[:, 0] += 1
    m = al.weighted_median(v, w)

    def cost(x: torch.Tensor) -> torch.Tensor:
        return (w * (v - x[:, None]).abs()).sum(-1)

    for candidate in v.unbind(-1):
        assert bool((cost(m) <= cost(candidate) + 1e-12).all())
    for row in range(16):
        repeated = v[row].repeat_interleave(w[row].long()).sort().values
        k = len(repeated)
        assert m[row].item() == pytest.approx(0.5 * (repeated[(k - 1) // 2] + repeated[k // 2]).item())
    assert close(al.weighted_median(v, 0.1 * w), m, 1e-12)


def test_weighted_median_edges() -> None:
    v = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, torch.nan, 3.0, torch.inf]])
    w = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0]])
    assert al.weighted_median(v, w).tolist() == [2.5, 2.0]
    assert bool(al.weighted_median(v, 0 * w).isnan().all())
    assert bool(al.weighted_median(v[:, :0]).isnan().all())
    # 0.1 + 0.2 is not 0.3 in floating point; the tie must survive.
    tie = al.weighted_median(
        torch.tensor([1.0, 2.0, 3.0], dtype=F64), torch.tensor([0.1, 0.2, 0.3], dtype=F64)
    )
    assert tie.item() == pytest.approx(2.5)


@properties
@given(seeds)
def test_scales_are_exact_minimisers(seed: int) -> None:
    g = generator(seed)
    p, t, w = uniform(g, 0.5, 4, 8, 25), uniform(g, 0.5, 4, 8, 25), uniform(g, 0, 1, 8, 25)
    s1, s2 = al.scale_l1(p, t, w), al.scale_least_squares(p, t, w)
    for factor in (0.97, 0.999, 1.001, 1.03):
        near1, near2 = (s1 * factor)[:, None], (s2 * factor)[:, None]
        l1 = (w * (s1[:, None] * p - t).abs()).sum(-1)
        l2 = (w * (s2[:, None] * p - t).square()).sum(-1)
        assert bool(((w * (near1 * p - t).abs()).sum(-1) >= l1 - 1e-12).all())
        assert bool(((w * (near2 * p - t).square()).sum(-1) >= l2 - 1e-12).all())


@properties
@given(seeds)
def test_scales_recover_truth_under_outliers(seed: int) -> None:
    g = generator(seed)
    s = uniform(g, 0.01, 50, 8)
    p = uniform(g, 0.5, 4, 8, 60)
    t = s[:, None] * p
    assert close(al.scale_least_squares(p, t), s, 1e-12)
    t[:, :20] *= uniform(g, 3, 9, 8, 20)
    t[:, 20] = torch.nan
    p[:, 21] = torch.inf
    assert close(al.scale_median(p, t), s, 1e-12)
    assert close(al.scale_l1(p, t), s, 1e-12)
    assert close(al.scale_robust(p, t), s, 1e-12)


def test_scales_without_samples_are_nan() -> None:
    zero = torch.zeros(3, 4)
    for f in (al.scale_median, al.scale_l1, al.scale_least_squares, al.scale_robust):
        assert bool(f(zero, zero + 1).isnan().all())
        assert bool(f(zero + 1, zero + 1, zero).isnan().all())
    scale, shift = al.scale_shift_least_squares(zero + 1, zero + 1, zero)
    assert bool(scale.isnan().all()) and bool(shift.isnan().all())
    scale, shift = al.scale_shift_robust(zero + 1, zero + 1, zero)
    assert bool(scale.isnan().all()) and bool(shift.isnan().all())


@properties
@given(seeds)
def test_scale_shift_recovery_and_optimality(seed: int) -> None:
    g = generator(seed)
    s, b = normal(g, 8), 3 * normal(g, 8)
    p, w = uniform(g, 0.5, 4, 8, 40), uniform(g, 0.1, 1, 8, 40)
    t = s[:, None] * p + b[:, None]
    for a, truth in zip(al.scale_shift_least_squares(p, t, w), (s, b)):
        assert close(a, truth, 1e-10)
    noisy = t + normal(g, 8, 40)
    fs, fb = al.scale_shift_least_squares(p, noisy, w)
    residual = w * (fs[:, None] * p + fb[:, None] - noisy)
    assert close(residual.sum(-1), torch.zeros(8, dtype=F64), 1e-10)  # normal equations
    assert close((residual * p).sum(-1), torch.zeros(8, dtype=F64), 1e-10)


@pytest.mark.parametrize("kernel", ["huber", "cauchy"])
@properties
@given(seeds)
def test_robust_scale_shift_ignores_outliers(kernel: al.RobustKernel, seed: int) -> None:
    g = generator(seed)
    s, b = uniform(g, 0.2, 3, 8), normal(g, 8)
    p = uniform(g, 0.5, 4, 8, 80)
    t = s[:, None] * p + b[:, None]
    t[:, :20] += uniform(g, 5, 30, 8, 20)
    t[:, 79] = torch.nan
    fs, fb = al.scale_shift_robust(p, t, kernel=kernel)
    tol = 1e-6 if kernel == "cauchy" else 1e-3
    assert close(fs, s, tol) and close(fb, b, tol)
    fs, fb = al.scale_shift_robust(p, t, kernel=kernel, delta=1e-3)
    assert close(fs, s, 2e-2) and close(fb, b, 5e-2)


def test_scale_shift_of_constant_predictions() -> None:
    p = torch.full((1, 5), 1 / 3, dtype=F64)
    t = torch.arange(5, dtype=F64)[None]
    scale, shift = al.scale_shift_least_squares(p, t)
    assert scale.item() == pytest.approx(6) and shift.item() == pytest.approx(0, abs=1e-12)
    scale, shift = al.scale_shift_least_squares(0 * p, t)
    assert scale.item() == 1 and shift.item() == pytest.approx(2)
    scale, shift = al.scale_shift_robust(p, t)
    assert bool(torch.isfinite(scale).all()) and bool(torch.isfinite(shift).all())


def test_robust_weights() -> None:
    r = torch.tensor([0.0, 0.5, 1.0, -2.0])
    assert al.robust_weights(r, 1.0, "huber").tolist() == [1.0, 1.0, 1.0, 0.5]
    assert al.robust_weights(r, 1.0, "cauchy").tolist() == pytest.approx([1.0, 0.8, 0.5, 0.2])
    with pytest.raises(InputError, match="kernel"):
        al.robust_weights(r, 1.0, "welsch")  # type: ignore[arg-type]


def test_scale_gradients() -> None:
    g = generator(0)
    p, t = uniform(g, 1, 2, 2, 7).requires_grad_(), uniform(g, 1, 2, 2, 7).requires_grad_()
    for f in (al.scale_median, al.scale_l1, al.scale_least_squares, al.scale_shift_least_squares):
        assert gradcheck(f, (p, t))
    constant = torch.ones(5, dtype=F64, requires_grad=True)
    scale, shift = al.scale_shift_least_squares(constant, t[0, :5].detach())
    (grad,) = torch.autograd.grad(scale + shift, constant)
    assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_are_kept_and_batches_equal_loops(dtype: torch.dtype) -> None:
    g = generator(9)
    src, dst = normal(g, 2, 3, 10, 3).to(dtype), normal(g, 2, 3, 10, 3).to(dtype)
    p, t = uniform(g, 1, 2, 2, 3, 11).to(dtype), uniform(g, 1, 2, 2, 3, 11).to(dtype)
    fit = al.umeyama(src, dst)
    assert all(x.dtype == dtype for x in fit)
    for i in range(2):
        for j in range(3):
            for a, b in zip(al.umeyama(src[i, j], dst[i, j]), fit):
                assert close(a, b[i, j], 1e-5)
            for f in (al.scale_median, al.scale_l1, al.scale_robust):
                assert f(p, t).dtype == dtype
                assert close(f(p[i, j], t[i, j]), f(p, t)[i, j], 1e-6)
            for a, b in zip(al.scale_shift_robust(p[i, j], t[i, j]), al.scale_shift_robust(p, t)):
                assert close(a, b[i, j], 1e-4)
