"""Patches of MoGe's local loss: which pixels, which anchors, which scale, against plain loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from losses.test_moge import noise, scene
from relief3d.core.errors import InputError
from relief3d.losses import moge_local
from relief3d.losses.moge_local import PatchOptions, local_loss, relative_focal

F64 = torch.float64
OPTIONS = PatchOptions(4, 5, 6)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_focal_length_is_in_units_of_the_diagonal() -> None:
    """So that the ball's projection has the radius of the window: half the diagonal over the level."""
    K = torch.tensor([[50.0, 0, 30], [0, 50, 40], [0, 0, 1]]).double()
    assert float(relative_focal(K, 80, 60)) == pytest.approx(0.5)
    z, level = 4.0, 4
    ball = 0.5 / level / float(relative_focal(K, 80, 60)) * z
    assert 50 * ball / z == pytest.approx(0.5 / level * math.hypot(60, 80))


def _best_fit(p: Tensor, q: Tensor, w: Tensor, trunc: float) -> tuple[Tensor, Tensor]:
    """Scale and shift by trying every pair of an anchor and a coordinate."""
    best = (torch.inf, None, None)
    for k in range(len(p)):
        x, y = (p - p[k]).flatten(), (q - q[k]).flatten()
        for a in (y / x)[x != 0].unique():
            cost = float((w.repeat_interleave(3) * (a * x - y).abs()).clamp(max=trunc).sum())
            if cost < best[0] - 1e-13:
                best = (cost, a, q[k] - a * p[k])
    assert best[1] is not None and best[2] is not None
    return best[1], best[2]


def test_the_loss_is_that_of_plain_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small enough that the reduction takes every pixel, so only the anchors are shared with the code under test."""
    target, K, valid = scene(1, 13, 13, seed=4)
    K[0, :2, :2] *= 0.5
    points = 0.6 * target + noise(target, 0.04) + torch.tensor([0.1, -0.2, 0.3], dtype=F64)
    focal = relative_focal(K, 13, 13)
    options = PatchOptions(4, 7, 5)
    rows, cols = torch.tensor([6, 2, 6, 10, 0]), torch.tensor([6, 3, 9, 10, 12])
    valid[0, rows, cols] = True
    monkeypatch.setattr(moge_local, "_anchors", lambda *_: (rows, cols))
    assert (moge_local.LEAST_POINTS, moge_local.NEAREST_SHARE) == (32, 0.1)
    monkeypatch.setattr(moge_local, "LEAST_POINTS", 20)
    monkeypatch.setattr(moge_local, "NEAREST_SHARE", 0.95)  # so that it decides about many pixels
    radius = math.ceil(0.5 / 4 * math.hypot(13, 13))
    side = 2 * radius + 1
    depth = [1 / float(z) for z in target[0, ..., 2][valid[0]]]
    harmonic = len(depth) / sum(depth)
    total, kept = 0.0, 0
    for i, j in zip(rows.tolist(), cols.tolist()):
        ball = 0.5 / 4 / float(focal) * float(target[0, i, j, 2])
        window = itertools.product(
            range(max(0, i - radius), min(13, i + radius + 1)),
            range(max(0, j - radius), min(13, j + radius + 1)),
        )
        inside = [
            (y, x)
            for y, x in window
            if valid[0, y, x] and float((target[0, y, x] - target[0, i, j]).norm()) <= ball
        ]
        if len(inside) < 20:
            continue
        kept += 1
        p = torch.stack([points[0, y, x] for y, x in inside])
        q = torch.stack([target[0, y, x] for y, x in inside])
        a, t = _best_fit(p, q, torch.full((len(p),), 1 / (ball + 1e-7), dtype=F64), 1.0)
        weight = 1 / q[:, 2].clamp_min(0.95 * harmonic)
        total += float(((a * p + t - q).abs() * weight[:, None]).sum()) / (side * side * 3)
    assert 2 <= kept < 5
    found = local_loss(points, target, valid, focal, torch.tensor([1.6]).double(), options)
    assert float(found) == pytest.approx(total / 5, rel=1e-9)


def test_patches_with_another_scale_are_left_out() -> None:
    target, K, valid = scene(1)
    points = 0.5 * target + noise(target, 1e-4)
    focal = relative_focal(K, 24, 32)

    def loss(scale: float | None) -> float:
        given = None if scale is None else torch.tensor([scale]).double()
        return float(local_loss(points, target, valid, focal, given, OPTIONS, seeded()))

    assert loss(2.0) == loss(None) > 0
    assert loss(19.0) == loss(2.0) and loss(0.21) == loss(2.0)
    assert loss(21.0) == 0 and loss(0.19) == 0 and loss(0.0) == 0 and loss(-1.0) == 0


def test_each_patch_has_its_own_scale_and_shift() -> None:
    """Two surfaces at a step, each with its own scale and shift, cost next to nothing; a bent one does."""
    target, K, valid = scene(1)
    points = 0.5 * target
    points[:, :, 16:] = 0.8 * target[:, :, 16:] + torch.tensor([0.3, -0.1, 1.0], dtype=F64)
    focal = relative_focal(K, 24, 32)
    one = torch.tensor([1.5]).double()
    assert float(local_loss(points, target, valid, focal, one, OPTIONS, seeded())) < 1e-9
    bent = points.clone()
    bent[..., 2] += 0.2 * points[..., 0].square()
    assert float(local_loss(bent, target, valid, focal, one, OPTIONS, seeded())) > 1e-4


def test_anchors_favour_thin_structures() -> None:
    """Probability is one over the number of neighbours in the ball among 64 random ones of the window."""
    target, K, _ = scene(1, 20, 24)
    target = target[0].clone()
    target[:, 11, 2] = 1.5
    target[:, 11, :2] *= 0.4
    valid = torch.ones(20, 24, dtype=torch.bool)
    valid[:, 20:] = False
    ball = 0.5 / 4 / relative_focal(K, 20, 24)[0] * target[..., 2]
    radius = 4
    y, x = (i.flatten() for i in torch.meshgrid(torch.arange(20), torch.arange(20), indexing="ij"))
    window = ((y[:, None] - y).abs() <= radius) & ((x[:, None] - x).abs() <= radius)
    away = torch.cdist(target[y, x], target[y, x])
    count = (window & (away <= ball[y, x][:, None])).sum(1)
    rows, cols = moge_local._anchors(target, valid, ball, radius, 40_000, seeded(1))
    assert int(cols.max()) < 20
    share = float((cols == 11).float().mean())
    k = np.arange(65)
    each = [(binom.pmf(k, 64, c / 81) / np.maximum(k, 1)).sum() for c in count.tolist()]
    weight = torch.tensor(each).reshape(20, 20)
    expected = float(weight[:, 11].sum() / weight.sum())
    assert expected > 2 / 20
    assert share == pytest.approx(expected, rel=0.04)
    assert 0.3 < float((rows < 10).float().mean()) < 0.7


def test_a_generator_decides_alone() -> None:
    target, K, valid = scene(2)
    points = 0.6 * target + noise(target, 0.05)
    focal, one = relative_focal(K, 24, 32), torch.full((2,), 1.6, dtype=F64)
    first = local_loss(points, target, valid, focal, one, OPTIONS, seeded(5))
    assert torch.equal(first, local_loss(points, target, valid, focal, one, OPTIONS, seeded(5)))
    assert not torch.equal(first, local_loss(points, target, valid, focal, one, OPTIONS, seeded(6)))
    alone = local_loss(points[:1], target[:1], valid[:1], focal[:1], one[:1], OPTIONS, seeded(5))
    assert torch.equal(first[:1], alone)
    with pytest.raises(InputError, match="one focal length"):
        local_loss(points, target, valid, focal[:1], one, OPTIONS)


def test_gradients_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moge_local, "LEAST_POINTS", 12)
    target, K, valid = scene(1, 13, 13, seed=2)
    K[0, :2, :2] *= 0.5
    points = (0.6 * target + noise(target, 0.05)).requires_grad_()
    focal, one = relative_focal(K, 13, 13), torch.tensor([1.6]).double()
    options = PatchOptions(4, 4, 2)
    assert torch.autograd.gradcheck(
        lambda p: local_loss(p, target, valid, focal, one, options, seeded(1)), points, fast_mode=True
    )
    loss = local_loss(points, target, valid, focal, one, options, seeded(1))
    loss.sum().backward()
    assert points.grad is not None and float(points.grad.abs().sum()) > 0
