"""Drawn triangles give what scipy's search gives."""

from __future__ import annotations

import numpy as np
import pytest

from relief3d.data.triangle_grid import linear_on_grid


@pytest.mark.parametrize(("count", "stride"), [(5, 1.0), (60, 1.0), (60, 2.0), (900, 2.0), (300, 3.0)])
@pytest.mark.parametrize("whole", [True, False])
def test_same_as_scipy(count: int, stride: float, whole: bool) -> None:
    from scipy.interpolate import LinearNDInterpolator

    rng = np.random.default_rng(count)
    xy = rng.uniform(0, (66, 48), (count, 2))
    xy = np.unique(np.floor(xy), axis=0) + 0.5 if whole else xy
    values = rng.uniform(0.1, 3, len(xy))
    height, width = int(48 / stride), int(66 / stride)
    found = linear_on_grid(xy, values, height, width, stride)
    assert found is not None and found.shape == (height, width)
    cells = (np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1) + 0.5) * stride
    # The same triangulation as the search's: in the same coordinates, since four points on a circle have two.
    wanted = LinearNDInterpolator(xy / stride - 0.5, values)(cells / stride - 0.5)
    both = np.isfinite(found) & np.isfinite(wanted)
    np.testing.assert_allclose(found[both], wanted[both], atol=1e-9)
    # Cells on the hull itself may fall to either side by rounding.
    assert (np.isfinite(found) ^ np.isfinite(wanted)).sum() <= 2 and both.sum() > 0.3 * both.size


def test_a_plane_is_exact_and_known_cells_keep_their_value() -> None:
    rng = np.random.default_rng(0)
    xy = np.concatenate([rng.integers(0, (40, 30), (80, 2)), [[0, 0], [39, 0], [0, 29], [39, 29]]]) + 0.5
    xy = np.unique(xy, axis=0)
    found = linear_on_grid(xy, 2 + 0.1 * xy[:, 0] - 0.03 * xy[:, 1], 30, 40)
    assert found is not None
    ys, xs = np.mgrid[:30, :40] + 0.5
    np.testing.assert_allclose(found, 2 + 0.1 * xs - 0.03 * ys, atol=1e-12)
    values = rng.uniform(1, 2, len(xy))
    kept = linear_on_grid(xy, values, 30, 40)
    assert kept is not None
    at = xy.astype(int)
    np.testing.assert_allclose(kept[at[:, 1], at[:, 0]], values, atol=1e-9)


def test_outside_is_unknown_and_a_line_makes_no_triangle() -> None:
    xy = np.array([[2.5, 2.5], [6.5, 2.5], [2.5, 6.5]])
    found = linear_on_grid(xy, np.ones(3), 10, 10)
    assert found is not None
    assert np.isfinite(found).sum() == 15 and np.isfinite(found[2, 2:7]).all() and np.isnan(found[5, 4])
    assert (
        linear_on_grid(np.array([[0.5, 0.5], [1.5, 1.5], [4.5, 4.5], [9.5, 9.5]]), np.ones(4), 10, 10) is None
    )
    assert linear_on_grid(xy[:2], np.ones(2), 10, 10) is None
