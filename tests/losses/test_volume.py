"""Losses of the volumetric network by hand (T9)."""

from __future__ import annotations

import math

import pytest
import torch

from relief3d.losses.volume import log_transformed, occupancy_truth, volume_loss

NAN = float("nan")


def test_the_transform_is_odd_and_logarithmic() -> None:
    x = torch.tensor([-1.0, -0.25, 0.0, 0.5, 1.0])
    wanted = [-math.log(2), -math.log(1.25), 0.0, math.log(1.5), math.log(2)]
    torch.testing.assert_close(log_transformed(x), torch.tensor(wanted))
    torch.testing.assert_close(log_transformed(-x), -log_transformed(x))


def test_occupied_is_the_band_and_one_voxel_more() -> None:
    line = torch.tensor([NAN, NAN, 0.4, 1.0, 1.0, NAN, -1.0, -0.9985])
    found = occupancy_truth(line[:, None, None].expand(8, 3, 3).clone())[:, 1, 1]
    # The first NaN has no occupied neighbour, the second one has; 0.9985 is still within the band.
    wanted = torch.tensor([NAN, 1, 1, 1, 0, NAN, 1, 1])
    torch.testing.assert_close(found, wanted, equal_nan=True)
    alone = torch.full((5, 5, 5), 1.0)
    alone[2, 2, 2] = 0.0
    assert float(occupancy_truth(alone).sum()) == 27  # all 26 neighbours


def test_loss_by_hand() -> None:
    occ_logit = torch.tensor([[0.5, -1.0, 2.0, 3.0, 0.0, 7.0]])
    sdf_logit = torch.tensor([[0.2, 0.7, -0.4, 1.0, -2.0, 0.1]])
    occupancy = torch.tensor([[1.0, 0.0, 1.0, NAN, 1.0, 1.0]])
    tsdf = torch.tensor([[0.5, 1.0, NAN, NAN, -0.5, 0.0]])
    valid = torch.tensor([[True, True, True, True, True, False]])
    seen = torch.tensor([[True, True, True, True, False, True]])
    found = volume_loss(occ_logit, sdf_logit, occupancy, tsdf, valid, seen)

    def entropy(x: float, y: float) -> float:
        p = 1 / (1 + math.exp(-x))
        return -(y * math.log(p) + (1 - y) * math.log(1 - p))

    # Points 3 (unknown) and 5 (not seen by enough views) do not count; of the rest only point 0 has a distance, is
    # occupied, and is seen in the point branch.
    wanted = (entropy(0.5, 1) + entropy(-1, 0) + entropy(2, 1) + entropy(0, 1)) / 4
    assert float(found.occupancy) == pytest.approx(wanted, rel=1e-5)
    assert float(found.distance) == pytest.approx(abs(math.log1p(math.tanh(0.2)) - math.log(1.5)), rel=1e-5)
    assert float(found.total) == pytest.approx(float(found.occupancy) + float(found.distance))
    assert (int(found.points), int(found.surface_points)) == (4, 1)


@pytest.mark.parametrize("empty", ["nothing valid", "no surface", "no point at all"])
def test_empty_sets_give_zero_and_gradients(empty: str) -> None:
    n = 0 if empty == "no point at all" else 4
    logits = [torch.randn(2, n, requires_grad=True) for _ in range(2)]
    valid = torch.full((2, n), empty == "no surface")
    tsdf = torch.full((2, n), NAN)
    found = volume_loss(*logits, torch.zeros(2, n), tsdf, valid, valid)
    assert float(found.distance) == 0 and (float(found.occupancy) > 0) == (empty == "no surface")
    found.total.backward()
    assert all(x.grad is not None and bool(torch.isfinite(x.grad).all()) for x in logits)


def test_no_gradient_is_nan() -> None:
    logits = [torch.randn(1, 50, requires_grad=True) for _ in range(2)]
    tsdf = torch.linspace(-1, 1, 50)[None].clone()
    tsdf[:, ::3] = NAN
    occupancy = torch.where(torch.isnan(tsdf), NAN, (tsdf.abs() < 0.9).float())
    every = torch.ones(1, 50, dtype=torch.bool)
    volume_loss(*logits, occupancy, tsdf, every, every).total.backward()
    for x in logits:
        assert x.grad is not None and bool(torch.isfinite(x.grad).all())
        assert not bool(x.grad[:, ::3].any()) and bool(x.grad[:, 1::3].any())
