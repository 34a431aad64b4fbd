"""T2: submaps of every length, and which pairs are matched."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from relief3d.core.errors import InputError
from relief3d.methods.vfm_recon.align import plan_scene
from relief3d.methods.vfm_recon.config import AlignConfig, PairConfig, SubmapConfig
from relief3d.methods.vfm_recon.overlap import home, triangle_window
from relief3d.methods.vfm_recon.priors import choose_pairs
from relief3d.methods.vfm_recon.submaps import plan_submaps, submap_ranges, submaps_of_frames

from .room import orbit


@pytest.mark.parametrize(("size", "overlap"), [(8, 4), (16, 4), (8, 1), (8, 7), (2, 1), (5, 3)])
def test_submaps_cover_all_frames(size: int, overlap: int) -> None:
    for count in range(1, 61):
        runs = submap_ranges(count, size, overlap)
        expected = 1 if count <= size else math.ceil((count - overlap) / (size - overlap))
        assert len(runs) == expected
        assert sorted({t for run in runs for t in run}) == list(range(count))
        for before, after in pairwise(runs):
            assert len(set(before) & set(after)) == overlap
            assert after.start == before.start + size - overlap
        assert all(len(run) <= size for run in runs)
        if count > size:
            assert len(runs[-1]) >= overlap + 1


def test_refuses_overlaps_that_leave_nothing() -> None:
    for size, overlap in ((4, 4), (4, 0)):
        with pytest.raises(InputError, match="overlap"):
            submap_ranges(10, size, overlap)
    with pytest.raises(InputError, match="no submaps"):
        submap_ranges(0, 8, 4)


def test_segments_are_independent_chains() -> None:
    submaps = plan_submaps([list(range(10)), list(range(20, 30))])
    assert [m.index for m in submaps] == list(range(len(submaps)))
    assert not any(set(m.frames) & set(range(10)) and set(m.frames) & set(range(20, 30)) for m in submaps)


def test_home_is_the_middle_and_the_earlier_of_equals() -> None:
    submaps = plan_submaps([range(16)])
    places = submaps_of_frames(submaps)
    assert places[5] == [(0, 5), (1, 1)]
    assert home(places[5], submaps) == (0, 5)
    assert home(places[7], submaps) == (1, 3)
    assert home([(0, 4), (1, 3)], submaps) == (0, 4)
    assert triangle_window(0, 8) == triangle_window(7, 8) < triangle_window(3, 8) == triangle_window(4, 8)


def test_pairs_reach_four_places_and_skip_equal_places() -> None:
    cameras = orbit(16)
    (submap,) = plan_submaps([range(8)])
    pairs = choose_pairs(submap, cameras, PairConfig())
    assert len(pairs) == 22
    assert all(0 < b - a <= 4 for a, b in pairs)
    assert len(choose_pairs(plan_submaps([range(16)], SubmapConfig(16, 4))[0], cameras, PairConfig())) == 40
    still = [cameras[0], cameras[0], cameras[2].replace(world_from_cam=None), cameras[3]]
    assert choose_pairs(plan_submaps([range(4)])[0], still, PairConfig()) == [(0, 3), (1, 3)]


def test_the_unit_of_the_poses_does_not_change_the_pairs() -> None:
    cameras = orbit(16)
    (submap,) = plan_submaps([range(16)], SubmapConfig(16, 4))
    chosen = []
    for factor in (1.0, 1000.0):
        scaled = []
        for c in cameras:
            assert c.world_from_cam is not None
            pose = c.world_from_cam.clone()
            pose[:3, 3] *= factor
            scaled.append(c.replace(world_from_cam=pose))
        chosen.append(choose_pairs(submap, scaled, PairConfig(most=20), "pose"))
    assert chosen[0] == chosen[1]


def test_plan_drops_repeated_poses_and_names_missing_intrinsics() -> None:
    cameras = orbit(12)
    cameras[5] = cameras[4]
    plan = plan_scene(cameras)
    assert plan.dropped == {5: 4}
    assert all(5 not in m.frames for m in plan.submaps)
    assert plan.pairs == sorted(set(plan.pairs))
    with pytest.raises(InputError, match="number 3"):
        plan_scene([c if k != 3 else c.replace(K=None) for k, c in enumerate(cameras)])
    with pytest.raises(InputError, match="beyond the 12 cameras"):
        plan_scene(cameras, AlignConfig(), [[10, 11, 12]])
    with pytest.raises(InputError, match="without keyframes"):
        plan_scene([])
