from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.corpora.known_scene import FISHEYE_LENSES, RATIONAL_LENS, known_scene

from relief3d.core.contract import Camera, Depth, Scene, View
from relief3d.core.errors import InputError
from relief3d.io.depth import write_depth
from relief3d.io.images import write_image
from relief3d.io.transforms_json import read_transforms_json, write_transforms_json

W, H = 16, 12
EYE = [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        write_image(tmp_path / f"images/{name}.png", torch.rand(3, H, W, generator=generator))
    write_depth(tmp_path / "depth/a.png", Depth.from_values(torch.full((H, W), 2.5)), scale=1e-3)
    mask = torch.zeros(H, W)
    mask[:, :5] = 1
    write_image(tmp_path / "masks/a.png", mask)
    return tmp_path


def save(folder: Path, frames: list[dict[str, Any]], **top: Any) -> Path:
    path = folder / "transforms.json"
    path.write_text(
        json.dumps({"fl_x": 20.0, "w": W, "h": H, "camera_model": "OPENCV"} | top | {"frames": frames})
    )
    return path


def frame(name: str = "a", **changes: Any) -> dict[str, Any]:
    return {"file_path": f"./images/{name}.png", "transform_matrix": EYE} | changes


def test_reads_shared_intrinsics_pictures_depth_and_masks(folder: Path) -> None:
    path = save(
        folder, [frame(depth_file_path="depth/a.png", mask_path="masks/a.png"), frame("b")], k1=0.1, p2=0.01
    )
    scene = read_transforms_json(path)
    first, second = scene.views
    assert [v.name for v in scene.views] == ["images/a.png", "images/b.png"] and not scene.metric
    assert first.camera.K is not None and first.camera.K.tolist() == [[20, 0, 8], [0, 20, 6], [0, 0, 1]]
    assert first.camera.distortion is not None and first.camera.distortion.params == (0.1, 0.0, 0.0, 0.01)
    assert callable(first.image) and first.load_image().shape == (3, H, W)
    depth, mask = first.load_depth(), first.load_mask()
    assert depth is not None and torch.allclose(depth.values, torch.tensor(2.5)) and not depth.metric
    assert mask is not None and mask[:, :5].all() and not mask[:, 5:].any()
    assert second.load_depth() is None and second.load_mask() is None
    # OpenGL looks along -z with y up: our camera's z axis is the file's -z.
    assert first.camera.world_from_cam is not None
    assert first.camera.world_from_cam.diagonal().tolist() == [1, -1, -1, 1]
    assert torch.equal(pickle.loads(pickle.dumps(first)).load_image(), first.load_image())


def test_frames_may_have_their_own_intrinsics(folder: Path) -> None:
    scene = read_transforms_json(save(folder, [frame(), frame("b", fl_x=30.0, fl_y=31.0, cx=1.0, cy=2.0)]))
    assert scene.views[1].camera.K is not None
    assert scene.views[1].camera.K.tolist() == [[30, 0, 1], [0, 31, 2], [0, 0, 1]]


def test_blender_files(folder: Path) -> None:
    path = folder / "transforms.json"
    frames = [{"file_path": "./images/a", "transform_matrix": EYE}]
    path.write_text(json.dumps({"camera_angle_x": math.pi / 2, "frames": frames}))
    view = read_transforms_json(folder).views[0]
    assert view.path == folder / "images/a.png" and view.camera.K is not None
    assert torch.allclose(view.camera.K[0], torch.tensor([8.0, 0, 8], dtype=torch.float64))


def test_depth_unit(folder: Path) -> None:
    path = save(folder, [frame(depth_file_path="depth/a.png")], depth_unit_scale_factor=1e-4)
    depth = read_transforms_json(path).views[0].load_depth()
    assert depth is not None and torch.allclose(depth.values, torch.tensor(0.25))


def test_cameras_without_intrinsics_or_pose(folder: Path) -> None:
    path = folder / "transforms.json"
    path.write_text(json.dumps({"frames": [{"file_path": "images/a.png"}]}))
    camera = read_transforms_json(path).views[0].camera
    assert camera.K is None and camera.world_from_cam is None and (camera.width, camera.height) == (W, H)


def test_round_trip_keeps_everything(folder: Path) -> None:
    scene = known_scene((None,))
    camera = scene.views[0].camera.replace(width=W, height=H)
    views = (
        View("first", camera, path=folder / "images/a.png", time=1.5),
        View("images/b.png", camera, path=folder / "images/b.png"),
        View("lost", Camera(W, H)),
    )
    path = write_transforms_json(
        Scene(views, metric=True, ordered=True),
        folder,
        depth={"first": "depth/a.png"},
        masks={"first": "masks/a.png"},
    )
    again = read_transforms_json(path)
    assert [v.name for v in again.views] == ["first", "images/b.png"] and again.metric and again.ordered
    assert again.views[0].time == 1.5 and again.views[0].path == folder / "images/a.png"
    depth = again.views[0].load_depth()
    assert depth is not None and depth.metric and again.views[0].load_mask() is not None
    assert again.views[0].camera.K is not None and camera.K is not None
    assert torch.equal(again.views[0].camera.K, camera.K)
    document = json.loads(path.read_text())
    assert "fl_x" in document and "fl_x" not in document["frames"][0]


def test_lenses_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rational"):
        write_transforms_json(known_scene((RATIONAL_LENS,)), tmp_path)
    with pytest.raises(InputError, match="fisheye and perspective"):
        write_transforms_json(known_scene((None, FISHEYE_LENSES[0])), tmp_path)
    with pytest.raises(InputError, match="no view"):
        write_transforms_json(Scene((View("a", Camera(W, H)),)), tmp_path)
    assert list(tmp_path.iterdir()) == []


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "missing picture": ({"file_path": "images/none.png"}, {}, "does not exist"),
    "no file_path": ({"file_path": None}, {}, "file_path"),
    "missing depth": ({"depth_file_path": "depth/none.png"}, {}, "does not exist"),
    "missing mask": ({"mask_path": "masks/none.png"}, {}, "does not exist"),
    "wrong size": ({}, {"w": W + 1}, "16x12"),
    "model": ({}, {"camera_model": "EQUIRECTANGULAR"}, "EQUIRECTANGULAR"),
    "k4": ({}, {"k4": 0.1}, "k4"),
    "fisheye tangential": ({}, {"camera_model": "OPENCV_FISHEYE", "p1": 0.1}, "tangential"),
    "focal text": ({}, {"fl_x": "20"}, "numbers"),
    "focal negative": ({}, {"fl_x": -20}, "focal"),
    "matrix short": ({"transform_matrix": [[1, 0, 0]]}, {}, "4x4"),
    "matrix scaled": (
        {"transform_matrix": [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]},
        {},
        "rigid",
    ),
    "matrix text": ({"transform_matrix": "identity"}, {}, "matrix"),
    "bad unit": ({"depth_file_path": "depth/a.png"}, {"depth_unit_scale_factor": 0}, "positive"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_frames_are_named(folder: Path, case: str) -> None:
    changes, top, words = BAD[case]
    path = save(folder, [frame(**changes)], **top)
    with pytest.raises(InputError, match=words) as caught:
        read_transforms_json(path)
    assert caught.value.path == path and "frame 0" in str(caught.value)


TOP_DAMAGE: dict[str, dict[str, Any]] = {
    "applied_transform": {"applied_transform": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0]]},
    "applied_scale": {"applied_scale": -1},
    "ply_file_path": {"ply_file_path": "none.ply"},
    "frames": {"frames": []},
}


@pytest.mark.parametrize("case", TOP_DAMAGE)
def test_bad_tops_are_named(folder: Path, case: str) -> None:
    path = folder / "transforms.json"
    path.write_text(json.dumps({"fl_x": 20.0, "frames": [frame()]} | TOP_DAMAGE[case]))
    with pytest.raises(InputError, match=case) as caught:
        read_transforms_json(path)
    assert caught.value.path == path


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xfe", b"[1]", b"{}", b'{"frames": 3}', b'{"frames": [{"file', b"{" * 99999]
)
def test_bad_files_are_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "transforms.json"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_transforms_json(path)
    assert caught.value.path == path


def test_the_same_picture_twice(folder: Path) -> None:
    path = save(folder, [frame(), frame()])
    with pytest.raises(InputError, match="two views") as caught:
        read_transforms_json(path)
    assert caught.value.path == path
