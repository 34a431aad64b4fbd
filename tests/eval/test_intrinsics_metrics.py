"""Field-of-view error by hand, and average ranks against the published ones."""

from __future__ import annotations

import math

import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.eval.metrics.intrinsics import fov_degrees, fov_error, mean_ranks
from relief3d.eval.published.metric_tables_7_8 import TABLE_7, TABLE_8
from relief3d.geometry.projection import intrinsics


def test_by_hand() -> None:
    assert float(fov_degrees(torch.tensor(640.0), 640)) == pytest.approx(53.1301, abs=1e-4)
    assert float(fov_degrees(torch.tensor(1280.0), 640)) == pytest.approx(28.0725, abs=1e-4)
    error = fov_error(intrinsics(640, 480, 1, 2), intrinsics(1280, 960, 3, 4), 640, 480)
    assert float(error.horizontal) == pytest.approx(25.0576, abs=1e-4)
    assert float(error.vertical) == pytest.approx(25.0576, abs=1e-4)


def test_batches_and_symmetry() -> None:
    a = torch.stack([intrinsics(500, 510, 320, 240), intrinsics(700, 710, 320, 240)])
    b = intrinsics(600, 610, 300, 200)
    error = fov_error(a, b.expand(2, 3, 3), 640, 480)
    assert error.horizontal.shape == (2,)
    torch.testing.assert_close(error.horizontal, fov_error(b.expand(2, 3, 3), a, 640, 480).horizontal)
    expected = math.degrees(2 * math.atan(480 / 1420)) - math.degrees(2 * math.atan(480 / 1220))
    assert float(error.vertical[1]) == pytest.approx(abs(expected))
    assert float(fov_error(b, b, 640, 480).horizontal) == 0


def test_no_focal_length_is_an_error() -> None:
    with pytest.raises(InputError, match="predicted focal"):
        fov_error(intrinsics(float("nan"), 1, 0, 0), intrinsics(1, 1, 0, 0), 5, 5)
    with pytest.raises(InputError, match="true focal"):
        fov_error(intrinsics(1, 1, 0, 0), intrinsics(1, -1, 0, 0), 5, 5)


def test_ranks_are_the_published_ones() -> None:
    columns = ("eth3d.mean", "eth3d.median", "ibims.mean", "ibims.median")
    ranks = mean_ranks([row.values for row in TABLE_7.rows], dict.fromkeys(columns, "lower"))
    for row, rank in zip(TABLE_7.rows, ranks):
        assert rank == pytest.approx(row.values["rank"], abs=0.006), row.method
        for number in ("mean", "median"):
            both = (row.values[f"eth3d.{number}"] + row.values[f"ibims.{number}"]) / 2
            assert row.values[f"average.{number}"] == pytest.approx(both, abs=0.06), row.method


def test_ranks_of_boundaries_skip_missing_values() -> None:
    better = dict.fromkeys(("sintel.f1", "spring.f1", "ibims.f1"), "higher")
    ranks = mean_ranks([row.values for row in TABLE_8.rows], better)
    differing = {
        row.method: round(rank, 2)
        for row, rank in zip(TABLE_8.rows, ranks)
        if rank != pytest.approx(row.values["rank"], abs=0.006)
    }
    assert not differing
    assert mean_ranks([{"a": 1.0}, {"a": 1.0}, {}], {"a": "lower"})[:2] == [1.5, 1.5]
    assert math.isnan(mean_ranks([{"a": 1.0}, {}], {"a": "lower"})[1])
