"""Neighbour ranking and depth ranges."""

from __future__ import annotations

import pytest
import torch

from relief3d.core.contract import Scene, SparsePoints
from relief3d.core.errors import InputError
from relief3d.stereo.config import StereoConfig
from relief3d.stereo.neighbours import DepthRange, angle_weight, depth_ranges, rank_neighbours, sample_points
from relief3d.stereo.views import PreparedView, prepare_view
from stereo.analytic_scenes import ARC, Plane, make_scene

WALL = [Plane((0.0, 0.0, 1.0), 3.0)]


def _views(scene: Scene) -> list[PreparedView]:
    return [prepare_view(v, i, 128, "cpu") for i, v in enumerate(scene.views)]


def _sparse(depths: torch.Tensor, view: int = 0) -> SparsePoints:
    """Points on the optical axis of a camera at the origin that looks along z."""
    n = len(depths)
    xyz = torch.zeros(n, 3, dtype=torch.float64)
    xyz[:, 2] = depths
    return SparsePoints(
        xyz,
        torch.zeros(n, 3, dtype=torch.uint8),
        torch.zeros(n, dtype=torch.float64),
        torch.arange(n),
        torch.full((n,), view),
        torch.zeros(n, 2, dtype=torch.float64),
    )


def test_angle_weight_peaks_at_the_preferred_angle() -> None:
    angles = torch.linspace(0.5, 40, 80)
    weight = angle_weight(angles, 10.0)
    assert abs(float(angles[weight.argmax()]) - 10) < 0.6
    assert float(angle_weight(torch.tensor(10.0), 10.0)) == 1.0
    assert float(angle_weight(torch.tensor(2.0), 10.0)) < float(angle_weight(torch.tensor(18.0), 10.0))


def test_range_from_sparse_points_is_widened() -> None:
    views = _views(make_scene(WALL, [(0.0, 0.0, 0.0), (0.3, 0.0, 0.0)]))
    depths = torch.linspace(2, 4, 201, dtype=torch.float64)
    got = depth_ranges(views, _sparse(depths), StereoConfig())
    assert got[0].source == "sparse"
    assert got[0].near == pytest.approx(2.02 * 0.75, rel=1e-6) and got[0].far == pytest.approx(
        3.98 * 1.4, rel=1e-6
    )
    assert got[1] == DepthRange(got[0].near, got[0].far, "scene")


def test_given_range_wins_and_is_checked() -> None:
    views = _views(make_scene(WALL, ARC[:2]))
    assert depth_ranges(views, None, StereoConfig(), {0: (1.0, 5.0)})[0] == DepthRange(1.0, 5.0, "given")
    with pytest.raises(InputError, match="00"):
        depth_ranges(views, None, StereoConfig(), {0: (5.0, 1.0)})


def test_range_from_poses_contains_the_scene() -> None:
    views = _views(make_scene(WALL, ARC))
    for got in depth_ranges(views, None, StereoConfig()):
        assert got.source == "poses" and got.near < 2.5 and got.far > 4


def test_prefers_ten_degrees_and_skips_blind_views() -> None:
    centres = [(0.0, 0.0, 0.0), (0.02, 0.0, 0.0), (0.53, 0.0, 0.0), (2.9, 0.0, 0.5)]
    scene = make_scene(WALL, centres)
    away = make_scene(WALL, [(0.4, 0.0, 0.0)], target=(0.0, 0.0, -3.0))
    scene = scene.replace(views=(*scene.views, away.views[0].replace(name="away")))
    views = _views(scene)
    samples = sample_points(views[0], DepthRange(2.5, 3.6, "given"), None)
    got = rank_neighbours(views, 0, samples, StereoConfig(min_neighbours=1))
    assert [n.index for n in got] == [2]
    assert got[0].angle == pytest.approx(10, abs=1.5)


def test_identical_cameras_are_not_neighbours() -> None:
    views = _views(make_scene(WALL, [(0.0, 0.0, 0.0)] * 3))
    samples = sample_points(views[0], DepthRange(2.0, 4.0, "given"), None)
    assert rank_neighbours(views, 0, samples, StereoConfig()) == []


def test_shared_tracks_decide_between_equal_views() -> None:
    views = _views(make_scene(WALL, [(0.0, 0.0, 0.0), (-0.5, 0.0, 0.0), (0.5, 0.0, 0.0)]))
    generator = torch.Generator().manual_seed(0)
    xyz = torch.rand(40, 3, generator=generator, dtype=torch.float64) - 0.5
    xyz[:, 0] = torch.cat([xyz[:20, 0], -xyz[:20, 0]])  # symmetric: both neighbours see the same share
    xyz[:, 2] = 3.0
    every = torch.arange(40)
    sparse = SparsePoints(
        xyz,
        torch.zeros(40, 3, dtype=torch.uint8),
        torch.zeros(40, dtype=torch.float64),
        torch.cat([every, every[:20]]),
        torch.cat([torch.zeros(40, dtype=torch.long), torch.full((20,), 2)]),
        torch.zeros(60, 2, dtype=torch.float64),
    )
    samples = sample_points(views[0], DepthRange(2.5, 3.6, "sparse"), sparse)
    assert samples.shared is not None and samples.shared.tolist() == [1.0, 0.0, 0.5]
    got = rank_neighbours(views, 0, samples, StereoConfig())
    assert [n.index for n in got] == [2, 1] and got[0].score > 2 * got[1].score
