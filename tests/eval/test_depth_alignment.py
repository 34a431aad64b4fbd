"""Depth alignments against golden values, automatic differentiation, linear programming and brute force."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.optimize import linprog

from relief3d.core.errors import InputError
from relief3d.eval.metrics.depth_alignment import (
    ScaleShift,
    _NearbySum,
    aligned_depth_errors,
    fit_alignment,
    scale_shift_adam,
    scale_shift_lstsq,
)
from relief3d.eval.metrics.depth_errors import depth_errors
from relief3d.eval.metrics.least_absolute import fit_line

ALL = ("metric", "median", "lstsq_scale", "scale", "scale_shift", "lstsq", "lad")
NAMES = ("abs_rel", "sq_rel", "rmse", "log_rmse", "delta1", "delta2", "delta3")


def noisy(count: int, seed: int = 0, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    g = torch.rand(count, generator=generator, dtype=torch.float64) * 5 + 0.5
    p = (g * 0.8 + 0.2) * (1 + noise * torch.randn(count, generator=generator, dtype=torch.float64))
    return p, g


@pytest.mark.shared
@pytest.mark.parametrize("method", ["metric", "median", "scale", "scale_shift", "lstsq"])
def test_golden_values(shared_data, method):
    golden = load_file(shared_data.parent / "golden" / "multiview_losses_metrics.safetensors")
    p, g = golden["depth_metrics.inputs.pred"], golden["depth_metrics.inputs.gt"]
    got = aligned_depth_errors(p, g, (g > 0) & (g < 70), method, post_clip_max=70)
    assert got.pixels == int(golden[f"depth_metrics.outputs.{method}.valid_pixels"])
    for name in NAMES:
        expected = float(golden[f"depth_metrics.outputs.{method}.{name}"])
        # The issue allows 1e-5 (1e-4 for scale_shift).
        assert getattr(got, name) == pytest.approx(expected, rel=3e-6, abs=1e-7), name


def adam_by_autograd(p, g, lr):
    s = torch.tensor([float(g.median() / p.median())], dtype=torch.float64, requires_grad=True)
    t = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser, before = torch.optim.Adam([s, t], lr=lr), None
    for _ in range(1000):
        optimiser.zero_grad()
        loss = (s * p + t - g).abs().sum()
        loss.backward()
        optimiser.step()
        if before is not None and abs(before - float(loss.detach())) < 1e-6:
            break
        before = float(loss.detach())
    return float(s.detach()), float(t.detach())


@pytest.mark.parametrize("lr", [1e-4, 1e-3])
def test_adam_takes_the_steps_of_the_optimiser(lr):
    p, g = noisy(2000, seed=3)
    s, t = adam_by_autograd(p, g, lr)
    fit = scale_shift_adam(p, g, lr)
    assert fit.scale == pytest.approx(s, abs=1e-12) and fit.shift == pytest.approx(t, abs=1e-12)


def test_adam_stops_short_of_the_optimum_and_depends_on_the_unit():
    p, g = noisy(2000, seed=4)
    g = g + 3
    short, best = scale_shift_adam(p, g), fit_line(p, g)
    assert abs(short.shift) < 0.2 and best[1] > 1
    thousand = scale_shift_adam(p * 1000, g * 1000)
    assert abs(thousand.shift) < 0.2  # a fifth of a millimetre now
    lad = fit_line(p * 1000, g * 1000)
    assert lad[1] == pytest.approx(1000 * best[1], rel=1e-5)


def test_sums_of_nearby_pixels_equal_plain_sums_along_any_walk():
    p, g = noisy(3000, seed=5)
    nearby, generator = _NearbySum(p, g, [0.02, 0.004, 0.0008]), torch.Generator().manual_seed(0)
    s, t = 1.1, 0.0
    for step in range(300):
        move = torch.randn(2, generator=generator) * (1e-4 if step % 50 else 0.03)
        s, t = s + float(move[0]) + 1e-4, t + float(move[1]) - 1e-4
        residual = s * p + t - g
        expected = (residual.abs().sum(), residual.sign() @ p, residual.sign().sum())
        assert nearby(s, t) == pytest.approx([float(x) for x in expected], rel=1e-10, abs=1e-8)


def lad_by_linear_program(p, g):
    n = len(p)
    rows = np.block([[p[:, None], np.ones((n, 1)), -np.eye(n)], [-p[:, None], -np.ones((n, 1)), -np.eye(n)]])
    cost = np.r_[0, 0, np.ones(n)]
    free = [(None, None)] * 2 + [(0, None)] * n
    return linprog(cost, A_ub=rows, b_ub=np.r_[g, -g], bounds=free).fun


@pytest.mark.parametrize("seed", range(12))
def test_lad_is_the_optimum_of_the_linear_program(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 50))
    p = rng.uniform(0.5, 5, n)
    g = 1.7 * p - 0.3 + rng.laplace(size=n) * 0.3 * (seed % 3)
    if seed % 4 == 1:  # ties
        p, g = np.round(p), np.round(g)
    if seed % 4 == 2:
        p = p - 2  # predictions of both signs
    if seed % 4 == 3:
        g = 8 - p + 0.1 * rng.normal(size=n)  # falling
    scale, shift = fit_line(torch.from_numpy(p), torch.from_numpy(g))
    ours = float(np.abs(scale * p + shift - g).sum())
    assert ours == pytest.approx(lad_by_linear_program(p, g), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_lad_of_many_pixels_starts_from_a_subset_and_is_still_the_optimum(noise):
    p, g = noisy(700_000, seed=6, noise=noise)
    slope, offset = fit_line(p, g)

    def loss(scale: float, shift: float) -> float:
        return float((scale * p + shift - g).abs().mean())

    best = loss(slope, offset)
    for ds, dt in [(1e-4, 0), (-1e-4, 0), (0, 2e-4), (0, -2e-4), (1e-4, -3e-4), (-1e-4, 3e-4)]:
        assert loss(slope + ds, offset + dt) > best
    if noise == 0:
        assert slope == pytest.approx(1.25, abs=1e-7) and best < 1e-7


def test_least_squares_is_that_of_numpy():
    p, g = noisy(500, seed=7)
    rows = np.stack([p.numpy(), np.ones(500)], 1)
    s, t = np.linalg.lstsq(rows, g.numpy(), rcond=None)[0]
    fit = scale_shift_lstsq(p, g)
    assert fit.scale == pytest.approx(s, rel=1e-10) and fit.shift == pytest.approx(t, rel=1e-8)
    only = np.linalg.lstsq(rows[:, :1], g.numpy(), rcond=None)[0][0]
    assert fit_alignment(p, g, "lstsq_scale").scale == pytest.approx(only, rel=1e-10)


def test_the_median_of_an_even_count_is_the_lower_one():
    p, g = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([1.0, 4.0, 8.0, 9.0])
    assert fit_alignment(p, g, "median") == ScaleShift(2.0)  # 4 / 2; numpy would say 6 / 2.5


def test_reweighted_scale_by_hand():
    p, g = noisy(101, seed=8)
    s = float(g.mean() / p.mean())
    for _ in range(10):
        w = [1 / (abs(s * float(a) - float(b)) + 1e-8) for a, b in zip(p, g)]
        top = math.fsum(x * float(a) * float(b) for x, a, b in zip(w, p, g))
        s = top / math.fsum(x * float(a) ** 2 for x, a in zip(w, p))
    assert fit_alignment(p, g, "scale").scale == pytest.approx(s, rel=1e-6)
    assert fit_alignment(p * 1e6, g, "scale").scale == 1e-3  # never below


@pytest.mark.parametrize("method", ALL)
def test_a_perfect_prediction_scores_perfectly(method):
    g = noisy(600, seed=9)[1].reshape(1, 20, 30).float()
    got = aligned_depth_errors(g, g, g > 0, method)
    assert got.abs_rel < 1e-6 and got.rmse < 1e-5 and got.delta1 == pytest.approx(1) and got.log_rmse < 1e-5


@pytest.mark.parametrize("method", ["median", "lstsq_scale", "scale", "lstsq", "lad"])
def test_scale_does_not_matter_after_alignment(method):
    p, g = (x.float().reshape(2, 10, 20) for x in noisy(400, seed=10))
    mask = g > 1
    once, twice = (aligned_depth_errors(k * p, g, mask, method) for k in (1.0, 4.0))
    assert once.abs_rel == pytest.approx(twice.abs_rel, rel=1e-4)


def test_errors_by_brute_force_with_clip_and_raised_prediction():
    p = torch.tensor([[[-1.0, 2.0, 90.0, 3.0]]])
    g = torch.tensor([[[1.0, 2.5, 60.0, 7.0]]])
    mask = torch.tensor([[[True, True, True, False]]])
    got = aligned_depth_errors(p, g, mask, "metric", post_clip_max=70)
    clipped, truth = [-1.0, 2.0, 70.0], [1.0, 2.5, 60.0]
    assert got.abs_rel == pytest.approx(np.mean([abs(a - b) / b for a, b in zip(clipped, truth)]))
    assert got.rmse == pytest.approx(math.sqrt(np.mean([(a - b) ** 2 for a, b in zip(clipped, truth)])))
    raised = [1e-5, 2.0, 70.0]
    assert got.log_rmse == pytest.approx(
        math.sqrt(np.mean([(math.log(a) - math.log(b)) ** 2 for a, b in zip(raised, truth)]))
    )
    assert got.delta1 == pytest.approx(
        1 / 3
    )  # 2.5 / 2 is not below 1.25, 70 / 60 is, the raised pixel is far off
    plain = aligned_depth_errors(p, g, mask, "metric")
    assert plain.abs_rel > got.abs_rel


def test_agrees_with_the_plain_errors_where_nothing_is_clamped():
    p, g = (x.reshape(4, 10, 10) for x in noisy(400, seed=11))
    mask = g > 1
    got = aligned_depth_errors(p, g, mask, "metric")
    plain = depth_errors(p.reshape(40, 10), g.reshape(40, 10), mask.reshape(40, 10))
    assert got.abs_rel == pytest.approx(float(plain.abs_rel))
    assert got.delta2 == pytest.approx(float(plain.delta2))
    assert got.rmse == pytest.approx(float(plain.rmse)) and got.log_rmse == pytest.approx(
        float(plain.rmse_log)
    )


@pytest.mark.parametrize("method", ["median", "scale", "lstsq", "lad"])
def test_an_alignment_per_frame_forgives_a_drift_that_one_per_video_shows(method):
    g = noisy(600, seed=12)[1].reshape(3, 10, 20)
    p = g * torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64)[:, None, None]
    mask = g > 1
    mask[2, :, 10:] = False
    video = aligned_depth_errors(p, g, mask, method)
    frame = aligned_depth_errors(p, g, mask, method, scope="frame")
    assert frame.abs_rel < 1e-6 < 0.05 < video.abs_rel
    assert len(video.fits) == 1 and len(frame.fits) == 3 and video.pixels == frame.pixels
    mask[1] = False
    assert len(aligned_depth_errors(p, g, mask, method, scope="frame").fits) == 2


def test_unusable_input_is_refused():
    g = torch.ones(1, 4, 4)
    for method in ALL:
        for scope in ("video", "frame"):
            with pytest.raises(InputError, match="no valid pixels"):
                aligned_depth_errors(g, g, g > 2, method, scope=scope)
    with pytest.raises(InputError, match="not numbers"):
        aligned_depth_errors(g * float("nan"), g, g > 0, "scale")
    with pytest.raises(InputError, match="must all be"):
        aligned_depth_errors(g, g[0], g > 0, "scale")
    with pytest.raises(InputError, match="unknown depth alignment"):
        fit_alignment(g.flatten(), g.flatten(), "affine")
    for method in ("median", "scale", "scale_shift"):
        with pytest.raises(InputError, match="is 0"):
            fit_alignment(torch.zeros(16), g.flatten(), method)
    flat = fit_alignment(torch.full((16,), 3.0), torch.arange(1.0, 17), "lad")
    assert flat == ScaleShift(1.0, 5.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_mask_over_unknown_truth_is_refused(bad):
    g = torch.full((1, 2, 3), 2.0)
    g[0, 1, 1] = bad
    with pytest.raises(InputError, match="true depth is not a positive number"):
        aligned_depth_errors(torch.ones(1, 2, 3), g, torch.ones(1, 2, 3, dtype=torch.bool), "lad")
