"""Camera metrics against values worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relief3d.core.errors import InputError
from relief3d.eval.metrics.cameras import (
    ate,
    auc_percent,
    direction_angle_deg,
    evaluate_cameras,
    pair_errors,
    recall_percent,
    rotation_angle_deg,
    rpe,
)


def turn_y(degrees: float) -> torch.Tensor:
    a = math.radians(degrees)
    return torch.tensor(
        [[math.cos(a), 0.0, math.sin(a)], [0.0, 1.0, 0.0], [-math.sin(a), 0.0, math.cos(a)]],
        dtype=torch.float64,
    )


def pose(centre, degrees: float = 0.0) -> torch.Tensor:
    T = torch.eye(4, dtype=torch.float64)
    T[:3, :3] = turn_y(degrees)
    T[:3, 3] = torch.tensor(centre, dtype=torch.float64)
    return T


def moved(poses, scale: float, degrees: float, shift) -> list[torch.Tensor]:
    """Apply a similarity to a list of world_from_cam."""
    R, t = turn_y(degrees), torch.tensor(shift, dtype=torch.float64)
    out = []
    for T in poses:
        N = T.clone()
        N[:3, :3] = R @ T[:3, :3]
        N[:3, 3] = scale * (R @ T[:3, 3]) + t
        out.append(N)
    return out


WALK = [pose((0, 0, 0)), pose((1, 0, 0), 10), pose((2, 0.5, 0), 20), pose((3, 0, 1), -5)]


@pytest.mark.parametrize("angle", [0.0, 1e-6, 0.5, 90.0, 179.0, 180.0])
def test_rotation_angle_is_exact_at_both_ends(angle):
    got = float(rotation_angle_deg(turn_y(angle), torch.eye(3, dtype=torch.float64)))
    assert got == pytest.approx(angle, rel=1e-6, abs=1e-9)


def test_direction_angle_by_hand():
    x, y = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0, 2.0, 0]])
    assert float(direction_angle_deg(x, y)) == pytest.approx(90.0)
    assert float(direction_angle_deg(x, -3 * x)) == pytest.approx(180.0)
    assert float(direction_angle_deg(torch.zeros(1, 3), x)) == 180.0
    assert math.isnan(float(direction_angle_deg(x, torch.zeros(1, 3))))


def test_pair_errors_are_invariant_to_a_similarity_of_the_world():
    errors = pair_errors(moved(WALK, 3.7, 40.0, (5, -2, 1)), WALK)
    assert errors.pairs.shape == (6, 2)
    assert float(errors.worst.max()) < 1e-6


def test_pair_errors_by_hand():
    # Camera 1 turned by 2 degrees about its own axis and camera 1 moved sideways by tan(3 degrees).
    reference = [pose((0, 0, 0)), pose((1, 0, 0))]
    estimate = [pose((0, 0, 0)), pose((1, math.tan(math.radians(3.0)), 0), 2.0)]
    errors = pair_errors(estimate, reference)
    assert float(errors.rotation) == pytest.approx(2.0)
    assert float(errors.translation) == pytest.approx(3.0)
    assert float(errors.worst) == pytest.approx(3.0)


def test_signed_and_unsigned_translation_differ_for_a_reversed_motion():
    reference, estimate = [pose((0, 0, 0)), pose((1, 0, 0))], [pose((0, 0, 0)), pose((-1, 0, 0))]
    assert float(pair_errors(estimate, reference).translation) == pytest.approx(180.0)
    assert float(pair_errors(estimate, reference, translation="unsigned").translation) == pytest.approx(0.0)


def test_missing_views_fail_in_all_their_pairs():
    estimate = [WALK[0], None, WALK[2], WALK[3]]
    errors = pair_errors(estimate, WALK)
    failed = (errors.pairs == 1).any(1)
    assert int(failed.sum()) == 3
    assert bool((errors.worst[failed] == 180.0).all()) and float(errors.worst[~failed].max()) < 1e-6
    assert auc_percent(errors.worst, 5.0) == pytest.approx(50.0)


def test_views_without_reference_are_left_out():
    errors = pair_errors(WALK, [WALK[0], WALK[1], None, WALK[3]])
    assert errors.pairs.tolist() == [[0, 1], [0, 3], [1, 3]]


def test_pairs_without_baseline_count_with_their_rotation():
    reference = [pose((0, 0, 0)), pose((0, 0, 0), 30)]
    errors = pair_errors([pose((0, 0, 0)), pose((0.3, 0, 0), 31)], reference)
    assert math.isnan(float(errors.translation))
    assert float(errors.worst) == pytest.approx(1.0)


def test_recall_and_both_auc_conventions_by_hand():
    errors = torch.tensor([0.5, 1.5, 4.0, 180.0], dtype=torch.float64)
    assert recall_percent(errors, 2.0) == pytest.approx(50.0)
    # exact: (0.9 + 0.7 + 0.2 + 0) / 4; bins: recalls at 1..5 degrees are 1/4, 1/2, 1/2, 1/2, 3/4
    assert auc_percent(errors, 5.0) == pytest.approx(45.0)
    assert auc_percent(errors, 5.0, "degree_bins") == pytest.approx(50.0)
    assert math.isnan(auc_percent(torch.zeros(0), 5.0))
    with pytest.raises(InputError, match="whole"):
        auc_percent(errors, 2.5, "degree_bins")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.0, 180.0), min_size=1, max_size=30), st.sampled_from([3.0, 5.0, 15.0, 30.0]))
def test_exact_auc_is_the_integral_of_the_recall_curve(values, threshold):
    errors = torch.tensor(values, dtype=torch.float64)
    steps = 4000
    grid = (torch.arange(steps, dtype=torch.float64) + 0.5) * threshold / steps
    integral = 100.0 * float((errors[None] < grid[:, None]).to(torch.float64).mean())
    assert auc_percent(errors, threshold) == pytest.approx(integral, abs=0.05)


def test_ate_with_and_without_scale():
    similar = moved(WALK, 2.0, 25.0, (1, 2, 3))
    free = ate(similar, WALK)
    assert free is not None and free.rmse < 1e-9 and free.scale == pytest.approx(0.5)
    assert free.rotation_mean_deg < 1e-6
    assert free.path_length == pytest.approx(1 + math.sqrt(1.25) + math.sqrt(2.25))
    rigid = ate(similar, WALK, with_scale=False)
    assert rigid is not None and rigid.scale == 1.0 and rigid.rmse > 0.5
    stiff = ate(moved(WALK, 1.0, 25.0, (1, 2, 3)), WALK, with_scale=False)
    assert stiff is not None and stiff.rmse < 1e-9


def test_ate_by_hand():
    # A unit square lifted alternately by +-0.1: the best rigid alignment is the identity.
    square = [pose((1, 1, 0)), pose((1, -1, 0)), pose((-1, -1, 0)), pose((-1, 1, 0))]
    lifted = [
        pose((x, y, z)) for (x, y), z in zip([(1, 1), (1, -1), (-1, -1), (-1, 1)], [0.1, -0.1, 0.1, -0.1])
    ]
    errors = ate(lifted, square, with_scale=False)
    assert errors is not None
    assert errors.rmse == pytest.approx(0.1) and errors.mean == pytest.approx(0.1)
    assert errors.median == pytest.approx(0.1) and errors.max == pytest.approx(0.1) and errors.count == 4


def test_ate_needs_three_common_views():
    assert ate([WALK[0], WALK[1], None, None], WALK) is None


def test_rpe_by_hand():
    reference = [pose((0, 0, 0)), pose((1, 0, 0)), pose((2, 0, 0))]
    estimate = [pose((0, 0, 0)), pose((1, 0, 0)), pose((2, 0.3, 0), 4.0)]
    errors = rpe(estimate, reference)
    assert errors is not None and errors.count == 2
    assert errors.translation_mean == pytest.approx(0.15)
    assert errors.translation_rmse == pytest.approx(math.sqrt(0.09 / 2))
    assert errors.rotation_mean_deg == pytest.approx(2.0)
    assert errors.rotation_rmse_deg == pytest.approx(math.sqrt(8.0))
    double = rpe(moved(reference, 2.0, 0.0, (0, 0, 0)), reference, scale=0.5)
    assert double is not None and double.translation_rmse < 1e-12


def test_rpe_skips_gaps_and_longer_steps():
    assert rpe([WALK[0], None, WALK[2], None], WALK) is None
    two = rpe([WALK[0], None, WALK[2], None], WALK, delta=2)
    assert two is not None and two.count == 1 and two.translation_rmse < 1e-12
    with pytest.raises(InputError, match="step"):
        rpe(WALK, WALK, delta=0)


def test_evaluate_cameras_reports_percentages():
    report = evaluate_cameras([*moved(WALK[:3], 2.0, 10.0, (0, 1, 0)), None], WALK)
    assert (report.registered, report.total) == (3, 4)
    assert report.auc == {k: pytest.approx(50.0) for k in ("3", "5", "15", "30")}
    assert report.rra["5"] == pytest.approx(50.0) and report.rta["5"] == pytest.approx(50.0)
    assert report.ate_sim3 is not None and report.ate_sim3.rmse < 1e-9
    assert report.rpe is not None and report.rpe.translation_rmse < 1e-9


def test_evaluate_cameras_refuses_what_cannot_be_compared():
    with pytest.raises(InputError, match="3 estimated cameras but 4"):
        evaluate_cameras(WALK[:3], WALK)
    with pytest.raises(InputError, match="at least two"):
        evaluate_cameras(WALK, [WALK[0], None, None, None])
