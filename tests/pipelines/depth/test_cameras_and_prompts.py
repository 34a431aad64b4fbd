"""Intrinsics and prompts that would give a silently wrong scale are refused or mentioned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from corpora.commands import photo
from corpora.depth_networks import sparse
from relief3d.core.contract import Camera, Distortion, PointCloud, View
from relief3d.core.errors import InputError
from relief3d.geometry.projection import depth_to_points, intrinsics
from relief3d.io.ply import write_ply
from relief3d.pipelines.depth.cameras import GivenIntrinsics, camera_notes, parse_intrinsics
from relief3d.pipelines.depth.prompts import find_prompts, read_prompt

SIZE = (48, 36)


def view(name: str, size: tuple[int, int] = SIZE, path: Path | None = None) -> View:
    return View(name, Camera(*size), path=path)


def given(text: str) -> GivenIntrinsics:
    found = parse_intrinsics(text)
    assert isinstance(found, GivenIntrinsics)
    return found


def test_numbers_in_pixels_hold_for_one_size_only() -> None:
    numbers = given("50,50,24,18")
    same = numbers.of_views([view("a"), view("b")])
    assert [float(v.camera.K[0, 0]) for v in same if v.camera.K is not None] == [50, 50]
    with pytest.raises(InputError, match="2 sizes, for example 48x36 and 96x72"):
        numbers.of_views([view("a"), view("b", (96, 72))])
    scaled = GivenIntrinsics(numbers.K, SIZE).of_views([view("a"), view("b", (96, 72))])
    assert [float(v.camera.K[0, 0]) for v in scaled if v.camera.K is not None] == [50, 100]


def test_the_file_of_the_published_programs(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"cam_in": [50, 51, 24, 18]}')
    assert given(str(tmp_path / "a.json")).K.tolist() == [[50, 0, 24], [0, 51, 18], [0, 0, 1]]
    (tmp_path / "b.json").write_text('{"cam_in": [50, 51, 24]}')
    with pytest.raises(InputError, match="cam_in"):
        given(str(tmp_path / "b.json"))


def test_a_matrix_that_is_no_K_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "k.json"
    turned, leaning = [[60, 0, 0], [0, 60, 0], [24, 18, 1]], [[60, 2, 24], [0, 60, 18], [0, 0, 1]]
    for K, says in ((turned, "transposed"), (leaning, "skew")):
        path.write_text(json.dumps({"K": K}))
        with pytest.raises(InputError, match="K must be") as caught:
            given(str(path))
        assert caught.value.path == path and says in str(caught.value.remedy)


@pytest.mark.parametrize("text", ["1.1,1.4,0.5,0.5", "2,2,24,18", "90000,90000,24,18"])
def test_fields_of_view_that_no_camera_has_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"field of view of \S+ degrees"):
        given(text).of_views([view("a")])


@pytest.mark.parametrize("focal", [5, 24, 5000])
def test_wide_and_long_lenses_are_taken(focal: float) -> None:
    assert given(f"{focal},{focal},24,18").of_views([view("a")])[0].camera.K is not None


def test_what_networks_do_not_know_is_mentioned() -> None:
    plain = Camera(*SIZE, K=intrinsics(50, 50, 26, 17))
    assert camera_notes(plain, square=True) == [] and camera_notes(Camera(*SIZE), square=True) == []
    small = plain.replace(K=intrinsics(25, 25, 12, 9))  # of the picture at half its size
    (note,) = camera_notes(small, square=True)
    assert "48x36" in note and "principal point (12, 9)" in note
    for cx, cy in ((36, 18), (24, 27)):
        assert len(camera_notes(plain.replace(K=intrinsics(50, 50, cx, cy)), square=True)) == 1
    oblong = plain.replace(K=intrinsics(50, 52, 24, 18))
    assert "fy 52" in camera_notes(oblong, square=True)[0] and camera_notes(oblong, square=False) == []
    bent = plain.replace(distortion=Distortion("opencv", (0.1, 0.0, 0.0, 0.0)))
    assert "distortion" in camera_notes(bent, square=True)[0]


def test_a_prompt_belongs_to_one_picture(tmp_path: Path) -> None:
    np.savez(tmp_path / "1.npz", depth=sparse(36, 48).numpy())
    assert find_prompts(tmp_path, [view("x/1.png")]) == [tmp_path / "1.npz"]
    with pytest.raises(InputError, match=r"two pictures, x/1\.png and y/1\.png"):
        find_prompts(tmp_path, [view("x/1.png"), view("y/1.png")])
    (tmp_path / "y").mkdir()
    np.savez(tmp_path / "y" / "1.npz", depth=sparse(36, 48).numpy())
    assert find_prompts(tmp_path, [view("x/1.png"), view("y/1.png")])[1] == tmp_path / "y" / "1.npz"


def test_a_picture_is_not_its_own_prompt(tmp_path: Path) -> None:
    picture = photo(tmp_path / "a.png", 1, SIZE)
    with pytest.raises(InputError, match="1 of 1 pictures have no prompt"):
        find_prompts(tmp_path, [view("a.png", path=picture)])
    np.save(tmp_path / "a.png.npy", sparse(36, 48).numpy())
    assert find_prompts(tmp_path, [view("a.png", path=picture)]) == [tmp_path / "a.png.npy"]


@pytest.mark.parametrize(
    ("factor", "says"), [(100.0, "median depth of the prompt is 2"), (None, "whole numbers")]
)
def test_units_that_may_be_wrong_are_mentioned(tmp_path: Path, factor: float | None, says: str) -> None:
    depth = sparse(36, 48)
    depth = depth * factor if factor is not None else (depth * 20).round()
    np.save(tmp_path / "p.npy", depth.numpy())
    camera = Camera(*SIZE)
    assert any(says in note for note in read_prompt(tmp_path / "p.npy", camera, None).notes)
    assert read_prompt(tmp_path / "p.npy", camera, 0.01).notes == ()


def test_a_cloud_and_a_bent_lens_are_mentioned(tmp_path: Path) -> None:
    K, depth = intrinsics(50, 50, 24, 18), sparse(36, 48)
    write_ply(tmp_path / "p.ply", PointCloud(depth_to_points(depth.double(), K)[depth > 0].float()))
    plain = Camera(*SIZE, K=K)
    assert read_prompt(tmp_path / "p.ply", plain, None).notes == ()
    bent = plain.replace(distortion=Distortion("opencv", (0.1, 0.0, 0.0, 0.0)))
    assert "without the distortion" in read_prompt(tmp_path / "p.ply", bent, None).notes[0]
