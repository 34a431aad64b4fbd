"""The estimate of time and memory follows the settings."""

from __future__ import annotations

import pytest

from relief3d.stereo import StereoConfig, plan_stereo


def test_time_is_linear_in_views_and_grows_with_quality() -> None:
    ten, twenty = (plan_stereo(StereoConfig(), (1024, 683), n) for n in (10, 20))
    assert twenty.seconds == pytest.approx(2 * ten.seconds)
    names = ("fast", "default", "fine")
    times = [plan_stereo(StereoConfig.profile(n), (1024, 683), 10).seconds for n in names]
    assert times[0] < times[1] < times[2]


def test_working_memory_does_not_depend_on_the_number_of_views() -> None:
    few, many = (plan_stereo(StereoConfig(), (1024, 683), n) for n in (20, 500))
    assert few.work_bytes == many.work_bytes and many.kept_bytes == 25 * few.kept_bytes
    assert few.peak_bytes == few.work_bytes + few.kept_bytes


def test_reports_the_resolution_and_planes_that_are_used() -> None:
    plan = plan_stereo(StereoConfig(), (1024, 683), 3)
    assert (plan.width, plan.height, plan.planes, plan.neighbours) == (512, 342, 128, 2)
    small = plan_stereo(StereoConfig(), (200, 300), 30)
    assert (small.width, small.height, small.planes, small.neighbours) == (200, 300, 96, 8)


def test_the_study_case_is_in_the_right_order() -> None:
    plan = plan_stereo(StereoConfig.profile("default", max_width=384), (384, 256), 9)
    assert 1.0 < plan.seconds / 9 < 4.0 and plan.work_bytes < 300e6
