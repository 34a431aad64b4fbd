"""The public layout of TUM RGB-D on tiny copies."""

import numpy as np
import pytest
import torch

from corpora.scans import write_tum
from relief3d.core.errors import InputError
from relief3d.eval.protocols.surfaces.readers_tum import (
    SEQUENCES,
    find_sequences,
    nearest_times,
    sequence_frames,
    sequence_scene,
    sequence_views,
    tum_camera,
)
from relief3d.eval.protocols.surfaces.surface_rules import sensor_depth


@pytest.mark.parametrize(
    ("sequence", "fx", "fy", "cx", "cy", "k1"),
    [
        ("freiburg1_desk", 517.3, 516.5, 319.1, 255.8, 0.2624),
        ("freiburg2_desk", 520.9, 521.0, 325.6, 250.2, 0.2312),
        ("freiburg3_cabinet", 535.4, 539.2, 320.6, 248.1, None),
        ("other", 525.0, 525.0, 320.0, 240.0, None),
    ],
)
def test_lenses_as_published_with_pixel_centres_at_a_half(sequence, fx, fy, cx, cy, k1):
    camera = tum_camera(sequence)
    assert (camera.width, camera.height) == (640, 480)
    want = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)
    assert torch.allclose(camera.K, want, atol=1e-9)
    assert (camera.distortion is None) == (k1 is None)
    if k1 is not None:
        assert camera.distortion.params[0] == k1 and len(camera.distortion.params) == 5


def test_thirteen_sequences():
    assert len(SEQUENCES) == 13 == len(set(SEQUENCES))
    assert [sum(s.startswith(f"freiburg{k}_") for s in SEQUENCES) for k in (1, 2, 3)] == [4, 3, 6]


@pytest.mark.parametrize(
    ("gaps", "count"),
    [({"rgb": 0.02, "pose": -0.02}, 3), ({"rgb": 0.021}, 0), ({"pose": 0.021}, 0), ({"rgb": -0.019}, 3)],
)
def test_frames_need_a_picture_and_a_pose_within_twenty_milliseconds(tmp_path, gaps, count):
    folder = write_tum(tmp_path, "freiburg3_cabinet", [100.0, 101.0, 102.0], gaps)
    if count:
        assert len(sequence_frames(folder)) == count
    else:
        with pytest.raises(InputError, match=r"0\.02 s"):
            sequence_frames(folder)


def test_nearest_times_by_brute_force():
    rng = np.random.default_rng(0)
    query, times = np.sort(rng.random(50)), np.sort(rng.random(30))
    for limit in (0.005, 0.02, 1.0):
        got = nearest_times(query, times, limit)
        gap = np.abs(query[:, None] - times[None])
        want = np.where(gap.min(1) <= limit, gap.argmin(1), -1)
        assert np.array_equal(got, want)
    assert nearest_times(np.array([3.0]), np.array([2.99]), 0.02).tolist() == [0]


def test_each_depth_frame_takes_the_nearest_pose(tmp_path):
    folder = write_tum(tmp_path, "freiburg3_cabinet", [100.0, 100.03, 100.06])
    (folder / "groundtruth.txt").write_text(
        "99.99 1 0 0 0 0 0 1\n100.004 2 0 0 0 0 0 1\n100.028 3 0 0 0 0 0 1\n100.09 4 0 0 0 0 0 1\n"
    )
    frames = sequence_frames(folder)
    assert [float(f.world_from_cam[0, 3]) for f in frames] == [2.0, 3.0]


def test_pictures_and_depth_are_undistorted_alike(tmp_path):
    folder = write_tum(tmp_path, "freiburg1_desk", [100.0, 101.0])
    scene, views = sequence_scene("freiburg1_desk", folder), sequence_views("freiburg1_desk", folder)
    assert len(scene) == len(views) == 2 and scene.metric
    assert scene.views[1].time == pytest.approx(1.0)
    for view, other in zip(scene.views, views):
        assert view.camera.distortion is None and torch.equal(view.camera.K, other.camera.K)
        assert view.depth is None
    depth = sensor_depth(views[0])
    assert float(depth[240, 320]) == pytest.approx(2.0)
    assert set(depth.unique().tolist()) <= {0.0, 2.0}, "no depth is mixed across edges"
    straight = sensor_depth(sequence_views("freiburg3_cabinet", folder)[0])
    assert bool((straight == 2.0).all()) and not torch.equal(depth, straight)
    assert tuple(scene.views[0].load_image().shape) == (3, 480, 640)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="none of the 13"):
        find_sequences(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        find_sequences(tmp_path / "x")
    folder = write_tum(tmp_path, "freiburg2_dishes", [1.0])
    assert find_sequences(tmp_path) == [("freiburg2_dishes", folder)]
    (folder / "depth.txt").write_text("1.0\n")
    with pytest.raises(InputError, match="line 1"):
        sequence_frames(folder)
    (folder / "depth.txt").write_text("# nothing\n")
    with pytest.raises(InputError, match="no files"):
        sequence_frames(folder)
    (folder / "groundtruth.txt").unlink()
    with pytest.raises(InputError, match="groundtruth"):
        sequence_frames(folder)
