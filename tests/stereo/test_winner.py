"""Index to depth and the position between planes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relief3d.stereo.sweep import inverse_depth_planes
from relief3d.stereo.winner import parabola_offset, pick_winner, planes_at


def test_planes_are_even_in_inverse_depth() -> None:
    planes = inverse_depth_planes(0.5, 8.0, 32)
    torch.testing.assert_close(1 / planes[[0, -1]], torch.tensor([0.5, 8.0]))
    steps = planes.diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-3, atol=1e-6)


def test_index_interpolates_the_actual_list() -> None:
    planes = torch.tensor([2.0, 1.5, 0.4, 0.1])  # uneven on purpose
    index = torch.tensor([0.0, 0.5, 1.0, 1.25, 2.0, 3.0])
    torch.testing.assert_close(planes_at(index, planes), torch.tensor([2.0, 1.75, 1.5, 1.225, 0.4, 0.1]))


@settings(max_examples=50, deadline=None)
@given(st.floats(-0.5, 0.5), st.floats(0.1, 5))
def test_parabola_finds_its_minimum(shift: float, curvature: float) -> None:
    x = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    left, centre, right = (curvature * (x - shift) ** 2).unbind()
    assert abs(float(parabola_offset(left, centre, right)) - shift) < 1e-4


def test_flat_costs_stay_at_the_centre() -> None:
    same = torch.full((3,), 0.3)
    assert bool((parabola_offset(same, same, same) == 0).all())


def test_end_planes_are_rejected() -> None:
    planes = inverse_depth_planes(1.0, 4.0, 8)
    cost = torch.ones(1, 3, 8)
    cost[0, 0, 0] = cost[0, 1, 7] = cost[0, 2, 3] = 0.2
    winner = pick_winner(cost, cost, planes)
    assert winner.inverse_depth[0, :2].tolist() == [0.0, 0.0]
    torch.testing.assert_close(winner.inverse_depth[0, 2], planes[3])
    torch.testing.assert_close(winner.zncc[0, 2], torch.tensor(0.8))
    torch.testing.assert_close(torch.tensor(winner.spacing), planes[0] - planes[1])


def test_no_information_gives_no_depth() -> None:
    cost = torch.ones(2, 2, 8)
    assert float(pick_winner(cost, cost, inverse_depth_planes(1.0, 4.0, 8)).inverse_depth.sum()) == 0
