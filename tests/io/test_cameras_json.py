from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from relief3d.core.contract import Camera, Depth, Distortion, Scene, View
from relief3d.core.errors import InputError
from relief3d.io.cameras_json import read_cameras_json, write_cameras_json
from relief3d.io.depth import write_depth
from relief3d.io.images import write_image

W, H = 12, 8
POSE = [[0.0, -1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 2.0], [0.0, 0.0, 1.0, 3.0], [0.0, 0.0, 0.0, 1.0]]


def frame(image: str = "images/a.png", **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "image": image,
        "width": W,
        "height": H,
        "K": [[10.0, 0.0, 5.5], [0.0, 11.0, 3.5], [0.0, 0.0, 1.0]],
        "T_cam_to_world": POSE,
        "depth": "depth/a.png",
        "depth_to_metres": 0.002,
        "mask": "masks/a.png",
    }
    return values | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        write_image(tmp_path / f"images/{name}.png", torch.rand(3, H, W, generator=generator))
    depth = Depth.from_values(torch.linspace(0.5, 4.0, H * W).reshape(H, W))
    write_depth(tmp_path / "depth/a.png", depth, scale=0.002)
    mask = torch.zeros(H, W)
    mask[:4] = 1.0
    write_image(tmp_path / "masks/a.png", mask)
    write_image(tmp_path / "masks/b.png", mask.flip(0))
    return tmp_path


def save(folder: Path, frames: list[dict[str, Any]], **top: Any) -> Path:
    path = folder / "cameras.json"
    path.write_text(json.dumps({"units": "metres", "frames": frames} | top))
    return path


def test_reads_everything_lazily_with_centres_at_half(folder: Path) -> None:
    path = save(folder, [frame(), frame("images/b.png", K=None, T_cam_to_world=None, depth=None, mask=None)])
    scene = read_cameras_json(path)
    first, second = scene.views
    assert scene.metric and len(scene) == 2 and scene.posed == (0,)
    assert first.name == "images/a.png" and first.path == folder / "images/a.png"
    assert callable(first.image) and callable(first.depth) and callable(first.mask)
    assert first.camera.K is not None
    assert first.camera.K[0, 2] == 6.0 and first.camera.K[1, 2] == 4.0 and first.camera.K[0, 0] == 10.0
    assert first.load_image().shape == (3, H, W)
    depth, mask = first.load_depth(), first.load_mask()
    assert depth is not None and depth.metric and mask is not None
    assert torch.allclose(depth.values, torch.linspace(0.5, 4.0, H * W).reshape(H, W), atol=0.0011)
    assert mask[:4].all() and not mask[4:].any()
    assert second.camera.K is None and second.camera.world_from_cam is None
    assert second.load_depth() is None and second.load_mask() is None
    # Views cross process boundaries (worker pools), so their loaders must too.
    again = pickle.loads(pickle.dumps(first))
    assert torch.equal(again.load_image(), first.load_image())


def test_folder_instead_of_file_and_arbitrary_scale(folder: Path) -> None:
    save(folder, [frame(depth=None)], units="arbitrary scale")
    assert not read_cameras_json(folder).metric


def test_object_masks_are_united_and_listed(folder: Path) -> None:
    save(folder, [frame(mask=None, masks=["masks/a.png", "masks/b.png"])])
    scene = read_cameras_json(folder)
    mask = scene.views[0].load_mask()
    assert mask is not None and mask.all()
    assert scene.info["object_masks"] == {"images/a.png": ["masks/a.png", "masks/b.png"]}


def test_round_trip_keeps_cameras(folder: Path) -> None:
    K = torch.tensor([[10.0, 0, 6.25], [0, 12.0, 3.75], [0, 0, 1]], dtype=torch.float64)
    lens = Distortion("fisheye", (0.1, -0.02, 0.003, 0.0004))
    views = (
        View(
            "images/a.png", Camera(W, H, K, torch.tensor(POSE), lens), path=folder / "images/a.png", time=0.5
        ),
        View("synthetic", Camera(W, H)),
    )
    path = write_cameras_json(
        Scene(views, metric=True, ordered=True), folder, depth={"images/a.png": ("depth/a.png", 0.002)}
    )
    again = read_cameras_json(path)
    assert again.metric and again.ordered and [v.name for v in again.views] == ["images/a.png", "synthetic"]
    camera = again.views[0].camera
    assert camera.K is not None and torch.allclose(camera.K, K, atol=0, rtol=1e-15)
    assert camera.distortion == lens and again.views[0].time == 0.5
    assert again.views[0].load_depth() is not None and again.views[1].image is None
    with pytest.raises(InputError, match="outside"):
        write_cameras_json(Scene(views), folder / "elsewhere" / "cameras.json")


def test_rounded_rotations_become_exact(folder: Path) -> None:
    pose = copy.deepcopy(POSE)
    pose[0][1], pose[0][0] = -0.9998, 2e-4
    save(folder, [frame(T_cam_to_world=pose)])
    got = read_cameras_json(folder).views[0].camera.world_from_cam
    assert got is not None
    assert torch.allclose(got[:3, :3] @ got[:3, :3].T, torch.eye(3, dtype=torch.float64), atol=1e-14)


BAD_FRAMES: dict[str, tuple[dict[str, Any], str]] = {
    "missing picture": ({"image": "images/none.png"}, "does not exist"),
    "no name": ({"image": None}, "neither"),
    "absolute path": ({"image": "/etc/passwd"}, "outside"),
    "leaves the folder": ({"depth": "../depth/a.png"}, "outside"),
    "drive letter": ({"mask": "C:/a.png"}, "outside"),
    "missing depth": ({"depth": "depth/none.png"}, "does not exist"),
    "missing mask": ({"mask": "masks/none.png"}, "does not exist"),
    "wrong size": ({"width": 13}, "12x8"),
    "no size": ({"width": None}, "width"),
    "size as text": ({"width": "12"}, "numbers"),
    "fractional size": ({"width": 12.5}, "whole"),
    "negative size": ({"height": -8}, "positive"),
    "K too small": ({"K": [[1, 0], [0, 1]]}, "3x3"),
    "K ragged": ({"K": [[10, 0, 5], [0, 10], [0, 0, 1]]}, "3x3"),
    "K transposed": ({"K": [[10, 0, 0], [0, 10, 0], [5, 3, 1]]}, "intrinsic"),
    "K negative": ({"K": [[-10, 0, 5], [0, 10, 3], [0, 0, 1]]}, "focal"),
    "K text": ({"K": "unknown"}, "matrix"),
    "K huge": ({"K": [[10**400, 0, 5], [0, 10, 3], [0, 0, 1]]}, "finite"),
    "pose scaled": ({"T_cam_to_world": [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]}, "rigid"),
    "pose mirrored": (
        {"T_cam_to_world": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]},
        "mirrors",
    ),
    "pose transposed": (
        {"T_cam_to_world": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [5, 6, 7, 1]]},
        "0 0 0 1",
    ),
    "bad scale": ({"depth_to_metres": 0}, "positive"),
    "bad lens": ({"distortion": {"model": "brown", "params": [0, 0, 0, 0]}}, "distortion"),
    "short lens": ({"distortion": {"model": "opencv", "params": [0.1]}}, "coefficients"),
}


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_bad_frames_are_named(folder: Path, case: str) -> None:
    changes, words = BAD_FRAMES[case]
    path = save(folder, [frame("images/b.png", depth=None, mask=None), frame(**changes)])
    with pytest.raises(InputError, match=words) as caught:
        read_cameras_json(path)
    assert caught.value.path == path and "frame 1" in str(caught.value)


BAD_FILES = {
    "empty": b"",
    "garbage": b"\x00\xff\xfe\x80garbage",
    "cut": b'{"frames": [{"image": "images/a.png", "wid',
    "list": b"[]",
    "no frames": b"{}",
    "frames empty": b'{"frames": []}',
    "frames of text": b'{"frames": ["a"]}',
    "nan": b'{"frames": [{"image": "images/a.png", "width": NaN, "height": 8}]}',
    "deep": b"[" * 100_000,
    "long number": b'{"frames": ' + b"9" * 10_000 + b"}",
    "other axes": b'{"axes": "OpenGL: y up", "frames": [{"image": "images/a.png", "width": 12, "height": 8}]}',
    "twice": b'{"frames": [{"image": "images/a.png", "width": 12, "height": 8},'
    b' {"image": "images/a.png", "width": 12, "height": 8}]}',
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named(folder: Path, case: str) -> None:
    path = folder / "cameras.json"
    path.write_bytes(BAD_FILES[case])
    with pytest.raises(InputError) as caught:
        read_cameras_json(path)
    assert caught.value.path == path


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cameras\.json"):
        read_cameras_json(tmp_path)


def test_cameras_without_pictures(tmp_path: Path) -> None:
    save(tmp_path, [frame(depth=None, mask=None)])
    scene = read_cameras_json(tmp_path, require_images=False)
    assert scene.posed == (0,) and scene.views[0].image is None


def test_sizes_of_depth_and_masks_are_checked_on_loading(folder: Path) -> None:
    write_depth(folder / "depth/a.png", Depth.from_values(torch.ones(H, W + 1)))
    write_image(folder / "masks/a.png", torch.ones(H + 1, W))
    save(folder, [frame()])
    view = read_cameras_json(folder).views[0]
    with pytest.raises(InputError, match="depth map has 13x8"):
        view.load_depth()
    with pytest.raises(InputError, match="mask has 12x9"):
        view.load_mask()
