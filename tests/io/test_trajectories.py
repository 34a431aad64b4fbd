from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.corpora.known_scene import known_scene, rotation

from relief3d.core.contract import Camera, Scene, View
from relief3d.core.errors import InputError
from relief3d.io.trajectories import (
    Trajectory,
    read_kitti,
    read_tum,
    scene_trajectory,
    write_kitti,
    write_tum,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), degrees=st.floats(0, 180), reach=st.sampled_from([1e-3, 1.0, 1e4]))
def test_round_trips_are_exact(tmp_path: Path, seed: int, degrees: float, reach: float) -> None:
    generator = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (5, 1, 1))
    for pose in poses:
        pose[:3, :3] = rotation(tuple(generator.normal(size=3)), degrees)
        pose[:3, 3] = reach * generator.normal(size=3)
    times = torch.from_numpy(np.cumsum(generator.uniform(0.01, 1, 5)) + 1.7e9)
    path = Trajectory(torch.from_numpy(poses), times)
    tum = read_tum(write_tum(tmp_path / "t.txt", path))
    kitti = read_kitti(write_kitti(tmp_path / "k.txt", path))
    assert tum.times is not None and torch.equal(tum.times, times) and kitti.times is None
    for again in (tum, kitti):
        assert torch.equal(again.world_from_cam[:, :3, 3], path.world_from_cam[:, :3, 3])
        assert torch.allclose(again.world_from_cam, path.world_from_cam, atol=1e-12)


def test_scene_path() -> None:
    scene = known_scene()
    path = scene_trajectory(scene)
    assert (
        len(path) == len(scene) and path.times is not None and path.times.tolist() == [0.0, 0.25, 0.5, 0.75]
    )
    mixed = Scene((*scene.views[:2], View("lost", Camera(4, 4)), scene.views[2].replace(time=None)))
    assert len(scene_trajectory(mixed)) == 3 and scene_trajectory(mixed).times is None
    with pytest.raises(InputError, match="no view"):
        scene_trajectory(Scene((View("lost", Camera(4, 4)),)))


def test_reads_comments_commas_and_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_text("# hello\n\n0.5, 1, 2, 3, 0, 0, 0, 1\n1.0 4 5 6 0 0 0.70710678 0.70710678  # note\n")
    path = read_tum(file)
    assert path.world_from_cam[0, :3, 3].tolist() == [1, 2, 3]
    expected = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    assert torch.allclose(path.world_from_cam[1, :3, :3], expected, atol=1e-7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("# only a comment\n", "empty"),
        ("0 1 2 3 0 0 0\n", "line 1: 7 values"),
        ("0 1 2 3 0 0 0 one\n", "line 1: holds text"),
        ("0 1 2 3 0 0 0 1\n1 nan 2 3 0 0 0 1\n", "line 2.*finite"),
        ("0 1 2 3 0 0 0 0\n", "line 1.*quaternion"),
        ("0 1 2 3 0 0 0 2\n", "line 1.*quaternion"),
        ("1 1 2 3 0 0 0 1\n1 1 2 3 0 0 0 1\n", "line 2.*increase"),
    ],
)
def test_bad_tum_files_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "t.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_tum(path)
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("1 0 0 0 0 1 0 0 0 0 1\n", "line 1: 11 values"),
        ("1 0 0 0 0 1 0 0 0 0 1 inf\n", "finite"),
        ("1 0 0 0 0 1 0 0 0 0 1 0\n2 0 0 0 0 2 0 0 0 0 2 0\n", "line 2.*rigid"),
        ("1 0 0 0 0 1 0 0 0 0 -1 0\n", "mirrors"),
        ("0 0 0 0 0 0 0 0 0 0 0 0\n", "rigid"),
    ],
)
def test_bad_kitti_files_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "k.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_kitti(path)
    assert caught.value.path == path


def test_binary_garbage_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xff\x00\x80" * 50)
    for reader in (read_tum, read_kitti):
        with pytest.raises(InputError, match=r"x\.txt"):
            reader(path)
        with pytest.raises(InputError, match="absent"):
            reader(tmp_path / "absent")


def test_bad_paths_are_not_written(tmp_path: Path) -> None:
    eye = torch.eye(4, dtype=torch.float64)[None]
    for path in (Trajectory(eye[:0]), Trajectory(eye * float("nan")), Trajectory(eye[0])):
        for writer in (write_tum, write_kitti):
            with pytest.raises(InputError):
                writer(tmp_path / "t.txt", path)
    with pytest.raises(InputError, match="times"):
        write_tum(tmp_path / "t.txt", Trajectory(eye.repeat(2, 1, 1), torch.tensor([1.0, 1.0])))
    assert list(tmp_path.iterdir()) == []
