"""Plane sweep: box sums, warps, best-of-n, costs at the true depth."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relief3d.stereo.sweep import box_sum, cost_volume, inverse_depth_planes, mean_of_lowest
from relief3d.stereo.views import PreparedView, prepare_view
from stereo.analytic_scenes import ARC, Plane, make_scene


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 3, 5, 7, 9, 11]), st.integers(0, 4), st.integers(0, 4))
def test_box_sum_equals_unfold(window: int, extra_h: int, extra_w: int) -> None:
    values = torch.rand(
        2, window + extra_h, window + extra_w, generator=torch.Generator().manual_seed(window)
    )
    want = values.unfold(1, window, 1).unfold(2, window, 1).sum((-1, -2))
    torch.testing.assert_close(box_sum(values, window), want, atol=1e-4, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8))
def test_mean_of_lowest_equals_sort(count: int, keep: int) -> None:
    costs = torch.rand(count, 3, 4, generator=torch.Generator().manual_seed(count * 9 + keep))
    want = costs.sort(dim=0).values[: min(keep, count)].mean(0)
    torch.testing.assert_close(mean_of_lowest(list(costs), keep), want)


def _prepared(count: int = 5) -> tuple[list[PreparedView], torch.Tensor]:
    scene = make_scene([Plane((0.0, 0.0, 1.0), 3.0)], ARC[:count])
    views = [prepare_view(v, i, 128, "cpu") for i, v in enumerate(scene.views)]
    depth = scene.views[2].load_depth()
    assert depth is not None
    return views, depth.values


def test_cost_is_lowest_at_the_true_plane() -> None:
    views, depth = _prepared()
    planes = inverse_depth_planes(2.0, 6.0, 33)
    volume = cost_volume(views[2], [views[1], views[3]], planes)
    assert volume.shape == (96, 128, 33) and volume.is_contiguous()
    assert float(volume.min()) >= 0 and float(volume.max()) <= 1
    # The camera looks straight at the plane, so the true index is the same everywhere.
    truth = int((planes - 1 / float(depth.median())).abs().argmin())
    found = volume[10:-10, 10:-10].argmin(-1)
    assert float(((found - truth).abs() <= 1).float().mean()) > 0.99
    assert float(volume[10:-10, 10:-10, truth].mean()) < 0.05


def test_outside_the_neighbour_costs_one_and_block_size_does_not_matter() -> None:
    views, _ = _prepared()
    planes = inverse_depth_planes(0.5, 6.0, 20)
    one = cost_volume(views[0], [views[4]], planes, block=3)
    torch.testing.assert_close(one, cost_volume(views[0], [views[4]], planes, block=20))
    # At half a metre the left edge of the leftmost view is far outside the rightmost view.
    assert bool((one[:, 0, 0] == 1).all())


def test_masked_neighbour_pixels_cost_one() -> None:
    views, _ = _prepared()
    planes = inverse_depth_planes(2.0, 6.0, 9)
    blind = PreparedView(1, "m", views[1].camera, views[1].grey, torch.zeros(96, 128, dtype=torch.bool))
    assert bool((cost_volume(views[2], [blind], planes) == 1).all())


@pytest.mark.parametrize(("gain", "offset"), [(0.5, 0.0), (1.3, -0.1), (0.7, 0.25)])
def test_gain_and_offset_hardly_change_the_cost(gain: float, offset: float) -> None:
    views, _ = _prepared()
    planes = inverse_depth_planes(2.0, 6.0, 17)
    brighter = PreparedView(1, "b", views[1].camera, views[1].grey * gain + offset)
    a, b = cost_volume(views[2], [views[1]], planes), cost_volume(views[2], [brighter], planes)
    # Only the variance floor is not invariant.
    assert float((a - b).abs().mean()) < 0.02
