"""The agreement test keeps true depth and drops constructed outliers."""

from __future__ import annotations

import torch

from relief3d.stereo.consistency import check_view, confidence, read_inverse_depth
from relief3d.stereo.views import prepare_view
from stereo.analytic_scenes import ARC, Plane, Sphere, make_scene

SURFACES = [Plane((0.0, 0.0, 1.0), 4.0), Sphere((0.0, 0.0, 3.0), 0.6)]


def _exact() -> tuple[list, list]:
    scene = make_scene(SURFACES, ARC)
    views = [prepare_view(v, i, 128, "cpu") for i, v in enumerate(scene.views)]
    inverse = [1 / v.load_depth().values for v in scene.views]  # type: ignore[union-attr]
    return views, inverse


def test_exact_depth_agrees_where_it_is_seen() -> None:
    views, inverse = _exact()
    others = [(views[i], inverse[i]) for i in (0, 1, 3, 4)]
    got = check_view(views[2], inverse[2], others, pixels=1.0, relative=0.01)
    inner = got.count[16:-16, 24:-24]
    assert float((inner >= 2).float().mean()) > 0.97
    error = (got.inverse_depth / inverse[2] - 1).abs()[got.count >= 2]
    assert float(error.mean()) < 5e-4 and float(error.max()) < 0.01
    assert int(got.seen.max()) == 4


def test_outliers_are_dropped() -> None:
    views, inverse = _exact()
    wrong = torch.zeros(96, 128, dtype=torch.bool)
    wrong[20:70:7, 30:100:9] = True
    spoiled = torch.where(wrong, inverse[2] * 1.08, inverse[2])
    others = [(views[i], inverse[i]) for i in (0, 1, 3, 4)]
    got = check_view(views[2], spoiled, others, pixels=2.0, relative=0.02)
    assert int((got.count[wrong] >= 2).sum()) == 0
    assert float((got.count[~wrong][::5] >= 2).float().mean()) > 0.8


def test_three_percent_fails_one_percent_passes() -> None:
    views, inverse = _exact()
    others = [(views[i], inverse[i]) for i in (1, 3)]
    for factor, passes in ((1.03, False), (1.01, True)):
        got = check_view(views[2], inverse[2] * factor, others, pixels=5.0, relative=0.02)
        share = float((got.count[20:-20, 30:-30] >= 2).float().mean())
        assert (share > 0.75) if passes else (share < 0.05), share


def test_unknown_depth_never_agrees() -> None:
    views, inverse = _exact()
    nothing = torch.zeros_like(inverse[0])
    got = check_view(views[2], inverse[2], [(views[1], nothing)], pixels=2.0, relative=0.02)
    assert int(got.count.sum()) == 0 and int(got.seen.sum()) > 0
    empty = check_view(views[2], nothing, [(views[1], inverse[1])], pixels=2.0, relative=0.02)
    assert int(empty.count.sum()) == 0 and bool(torch.isfinite(empty.inverse_depth).all())


def test_reading_does_not_mix_across_an_edge() -> None:
    inverse = torch.full((4, 4), 0.5)
    inverse[:, 2:] = 0.25
    x, y = torch.tensor([1.9, 2.1, 1.0, 9.0]), torch.tensor([2.0, 2.0, 2.0, 2.0])
    assert read_inverse_depth(inverse, x, y).tolist() == [0.5, 0.25, 0.5, 0.0]


def test_reading_is_linear_on_a_smooth_surface() -> None:
    row = torch.linspace(0.5, 0.505, 6)
    inverse = row.expand(4, 6)
    x = torch.tensor([1.0, 2.25, 3.7])
    want = torch.tensor([0.5 + 0.001 * (float(v) - 0.5) for v in x])
    torch.testing.assert_close(read_inverse_depth(inverse, x, torch.full((3,), 2.0)), want)


def test_confidence_orders_by_agreement_then_correlation() -> None:
    count, zncc = torch.tensor([[0, 2, 2, 6, 8]]), torch.tensor([[1.0, 0.5, 0.9, 0.2, 1.0]])
    score = confidence(count, zncc, 8)[0]
    assert bool((score.diff() > 0).all()) and float(score.max()) <= 1.0 and float(score.min()) >= 0.0


def test_neighbours_that_look_through_a_point_speak_against_it() -> None:
    views, inverse = _exact()
    floating = inverse[2].clone()
    floating[20:30, 20:40] *= 1.5  # in front of the wall: the others see the wall behind it
    behind = inverse[2].clone()
    behind[20:30, 20:40] *= 0.7  # behind the wall: hidden, which is no contradiction
    others = [(views[i], inverse[i]) for i in (1, 3)]
    front = check_view(views[2], floating, others, pixels=2.0, relative=0.02)
    back = check_view(views[2], behind, others, pixels=2.0, relative=0.02)
    assert float((front.against[22:28, 24:36] >= 1).float().mean()) > 0.9
    assert int(back.against[22:28, 24:36].sum()) == 0
    assert float((front.against[50:90, 5:30] >= 1).float().mean()) < 0.05
