"""Whatever the user gives is opened as one scene, or refused with one sentence."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corpora.pictures import encode_picture, smooth_rgb
from corpora.videos import panning_frames, write_video
from relief3d.core.contract import Camera, Scene, SparsePoints, View
from relief3d.core.errors import InputError
from relief3d.io.attachments import attach_cameras, match_names
from relief3d.io.cameras_json import write_cameras_json
from relief3d.io.colmap import write_colmap_model
from relief3d.io.depth import write_depth
from relief3d.io.duplicates import (
    check_pictures,
    find_duplicate_images,
    require_several_views,
    without_duplicates,
)
from relief3d.io.folders import detect_input, open_input
from relief3d.io.transforms_json import write_transforms_json


def put(path: Path, width: int = 48, height: int = 32, seed: int = 0, orientation: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_picture("jpeg", smooth_rgb(width, height, seed), orientation))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i, name in enumerate(("img10.jpg", "img2.jpg", "img1.jpg")):
        put(tmp_path / "photos" / name, seed=i)
    return tmp_path / "photos"


def posed(photos: Path, size: tuple[int, int] = (48, 32)) -> Scene:
    """Cameras for the three photos, with two points."""
    views = []
    for i, name in enumerate(("img1.jpg", "img2.jpg", "img10.jpg")):
        pose = torch.eye(4, dtype=torch.float64)
        pose[0, 3] = i
        K = torch.tensor([[50.0, 0, size[0] / 2], [0, 50.0, size[1] / 2], [0, 0, 1]], dtype=torch.float64)
        views.append(View(name, Camera(*size, K=K, world_from_cam=pose), path=photos / name))
    sparse = SparsePoints(
        xyz=torch.tensor([[0.0, 0, 5], [1, 0, 5]], dtype=torch.float64),
        rgb=torch.zeros(2, 3, dtype=torch.uint8),
        error=torch.zeros(2, dtype=torch.float64),
        obs_point=torch.tensor([0, 0, 1, 1]),
        obs_view=torch.tensor([0, 1, 1, 2]),
        obs_xy=torch.tensor([[24.0, 16], [14, 16], [24, 16], [14, 16]], dtype=torch.float64),
    )
    return Scene(tuple(views), sparse=sparse)


def test_folder_of_pictures(photos: Path) -> None:
    scene = open_input(photos)
    assert [v.name for v in scene.views] == ["img1.jpg", "img2.jpg", "img10.jpg"]
    assert not scene.ordered and not scene.metric
    assert scene.info["input"] == {"kind": "images", "notes": [], "skipped": []}
    for view in scene.views:
        assert view.load_image().shape == (3, 32, 48)
        assert view.load_mask() is None and view.load_depth() is None
    assert open_input(photos, ordered=True).ordered
    assert [v.name for v in open_input(photos, max_frames=2).views] == ["img1.jpg", "img10.jpg"]
    assert torch.equal(pickle.loads(pickle.dumps(scene.views[0])).load_image(), scene.views[0].load_image())


def test_pictures_are_not_decoded_when_opened(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr("relief3d.io.view_files.read_image", fail)
    scene = open_input(photos)
    with pytest.raises(AssertionError):
        scene.views[0].load_image()


def test_mixed_sizes_and_orientations(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", 48, 32)
    put(tmp_path / "b.jpg", 48, 32, orientation=6)
    put(tmp_path / "c.jpg", 20, 60)
    scene = open_input(tmp_path)
    assert [(v.camera.width, v.camera.height) for v in scene.views] == [(48, 32), (32, 48), (20, 60)]
    assert [tuple(v.load_image().shape[1:]) for v in scene.views] == [(32, 48), (48, 32), (60, 20)]


def test_exif_focal_becomes_intrinsics(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 28
    exif[0x0112] = 6
    Image.fromarray(smooth_rgb(60, 40)).save(tmp_path / "a.jpg", exif=exif)
    camera = open_input(tmp_path).views[0].camera
    assert camera.K_source == "exif" and camera.K is not None
    assert (camera.width, camera.height) == (40, 60)
    assert camera.K[:2, 2].tolist() == [20, 30]


def test_glob_single_picture_and_recursion(photos: Path) -> None:
    put(photos / "sub" / "img1.jpg", seed=9)
    assert [v.name for v in open_input(photos / "img1*.jpg").views] == ["img1.jpg", "img10.jpg"]
    assert [v.name for v in open_input(photos / "img2.jpg").views] == ["img2.jpg"]
    names = [v.name for v in open_input(photos, recursive=True).views]
    assert names == ["img1.jpg", "img2.jpg", "img10.jpg", "sub/img1.jpg"]


def test_images_sub_folder(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    photos.rename(tmp_path / "project" / "images")
    assert len(open_input(tmp_path / "project")) == 3


def test_other_files_are_reported(photos: Path) -> None:
    (photos / "notes.txt").write_text("x")
    (photos / ".DS_Store").write_text("x")
    assert open_input(photos).info["input"]["skipped"] == ["notes.txt: not a picture"]


def test_bad_picture_stops_or_is_left_out(photos: Path) -> None:
    (photos / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"bad\.jpg"):
        open_input(photos)
    scene = open_input(photos, skip_bad=True)
    assert len(scene) == 3 and "bad.jpg was left out" in scene.info["input"]["notes"][0]


def test_wrong_suffix_is_noted(photos: Path) -> None:
    (photos / "x.jpg").write_bytes(encode_picture("png"))
    assert open_input(photos).info["input"]["notes"] == ["x.jpg: named .jpg but its content is png"]


def test_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", panning_frames(20))
    scene = open_input(path, max_frames=6)
    assert scene.ordered and 2 <= len(scene) <= 6 and scene.views[1].time > 0  # type: ignore[operator]
    assert detect_input(tmp_path) == ("video", path)
    stored = open_input(path, max_frames=6, frames_folder=tmp_path / "frames")
    assert all(v.path is not None and v.path.is_file() for v in stored.views)
    write_video(tmp_path / "second.mp4", panning_frames(3))
    with pytest.raises(InputError, match="2 videos"):
        open_input(tmp_path)


@pytest.mark.parametrize("kind", ["colmap", "cameras_json", "transforms_json"])
def test_camera_files(photos: Path, tmp_path: Path, kind: str) -> None:
    scene = posed(photos)
    if kind == "colmap":
        write_colmap_model(scene, tmp_path / "sparse" / "0")
        photos.rename(tmp_path / "images")
        target = tmp_path
    elif kind == "cameras_json":
        target = write_cameras_json(scene, photos / "cameras.json")
    else:
        target = write_transforms_json(scene, photos / "transforms.json")
    for path in (target, tmp_path if kind == "colmap" else photos):
        back = open_input(path)
        assert back.info["input"]["kind"] == kind
        assert back.posed == (0, 1, 2)
        assert back.views[2].camera.centre is not None
        assert back.views[2].camera.centre.tolist() == pytest.approx([2, 0, 0])
        assert back.views[0].load_image().shape == (3, 32, 48)


@pytest.mark.parametrize("size", [(48, 32), (96, 64)])
def test_cameras_given_beside_pictures(photos: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    write_colmap_model(posed(photos, size), tmp_path / "model")
    put(photos / "img3.jpg", seed=7)
    scene = open_input(photos, cameras=tmp_path / "model")
    assert [v.name for v in scene.views] == ["img1.jpg", "img2.jpg", "img3.jpg", "img10.jpg"]
    assert scene.posed == (0, 1, 3)
    K = scene.views[3].camera.K
    assert K is not None and float(K[0, 0]) == pytest.approx(50 * 48 / size[0])
    assert scene.views[3].camera.K_source == "given"
    assert scene.sparse is not None and scene.sparse.obs_view.tolist() == [0, 1, 1, 3]
    assert float(scene.sparse.obs_xy[0, 0]) == pytest.approx(24 * 48 / size[0])
    assert "1 of 4 pictures have no camera" in scene.info["input"]["notes"][0]


def test_cameras_that_do_not_fit(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="upright"):
        attach_cameras(open_input(photos), posed(photos, (32, 48)), "model")
    renamed = posed(photos)
    renamed = renamed.replace(views=tuple(v.replace(name=f"x{i}.jpg") for i, v in enumerate(renamed.views)))
    with pytest.raises(InputError, match="name of a picture"):
        attach_cameras(open_input(photos), renamed, "model")
    with pytest.raises(InputError, match="no cameras"):
        open_input(photos, cameras=photos)


def test_masks_and_depth_beside_pictures(photos: Path, tmp_path: Path) -> None:
    masks, depth = tmp_path / "masks", tmp_path / "depth"
    masks.mkdir()
    half = np.zeros((32, 48), np.uint8)
    half[:, 24:] = 255
    Image.fromarray(half).save(masks / "img1.jpg.png")
    Image.fromarray(half).save(masks / "img2.png")
    write_depth(depth / "img10.png", torch.full((32, 48), 2.0))
    write_depth(depth / "img2_depth.npz", torch.full((16, 24), 3.0))
    scene = open_input(photos, masks=masks, depth=depth)
    one, two, ten = scene.views
    for view in (one, two):
        mask = view.load_mask()
        assert mask is not None and torch.equal(mask, torch.from_numpy(half > 0))
    assert ten.mask is None and one.depth is None
    loaded = two.load_depth()
    assert loaded is not None and loaded.values.shape == (32, 48) and float(loaded.values.max()) == 3
    assert float(ten.load_depth().values.min()) == 2  # type: ignore[union-attr]
    assert scene.info["input"]["notes"] == [
        "1 of 3 pictures have no mask",
        "1 of 3 pictures have no depth map",
    ]


def test_attachments_that_do_not_fit(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, words in ((tmp_path / "nowhere", "no such folder"), (tmp_path / "empty", "holds no")):
        with pytest.raises(InputError, match=words):
            open_input(photos, masks=folder)
        with pytest.raises(InputError, match=words):
            open_input(photos, depth=folder)
    write_depth(tmp_path / "other" / "unrelated.png", torch.ones(32, 48))
    with pytest.raises(InputError, match="has the name of a picture"):
        open_input(photos, depth=tmp_path / "other")
    write_depth(tmp_path / "square" / "img1.png", torch.ones(32, 32))
    with pytest.raises(InputError, match="32 x 32 pixels, its picture 48 x 32"):
        open_input(photos, depth=tmp_path / "square").views[0].load_depth()


def test_names_are_matched_once() -> None:
    assert match_names(["a/1.jpg", "b/1.jpg"], ["a/1.png", "b/1.png"]) == {
        "a/1.jpg": "a/1.png",
        "b/1.jpg": "b/1.png",
    }
    assert match_names(["a/1.jpg"], ["1.png"]) == {"a/1.jpg": "1.png"}
    assert match_names(["c/1.jpg"], ["a/1.png", "b/1.png"]) == {}
    assert match_names(["1.jpg"], ["10.png"]) == {}


def test_transparency_becomes_the_mask(tmp_path: Path) -> None:
    alpha = np.zeros((32, 48), np.uint8)
    alpha[:10] = 255
    Image.fromarray(np.dstack([smooth_rgb(), alpha])).save(tmp_path / "a.png")
    mask = open_input(tmp_path).views[0].load_mask()
    assert mask is not None and torch.equal(mask, torch.from_numpy(alpha > 0))


def test_nothing_usable(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "hidden").mkdir()
    put(tmp_path / "hidden" / ".a.jpg")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    put(tmp_path / "nested" / "deep" / "a.jpg")
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "a.json").write_text('{"a": 1}')
    (tmp_path / "b.json").write_text("{")
    os.mkfifo(tmp_path / "pipe")
    cases = {
        "empty": "folder is empty",
        "hidden": "folder is empty",
        "texts": "no pictures.*a.txt",
        "nested": "sub-folder such as deep",
        "a.txt": "neither pictures, a video nor cameras",
        "a.json": "frames",
        "b.json": "JSON",
        "pipe": "pipe",
        "missing": "no such file",
        "missing*.jpg": "no pictures match",
        "nul\0": "not a usable",
    }
    for name, words in cases.items():
        with pytest.raises(InputError, match=words) as caught:
            open_input(tmp_path / name)
        assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    with pytest.raises(InputError, match="max_frames"):
        open_input(tmp_path / "nested" / "deep", max_frames=0)


def test_inconsistent_cameras_file(photos: Path) -> None:
    frame = {"image": "img1.jpg", "width": 10, "height": 32, "K": None, "T_cam_to_world": None}
    (photos / "cameras.json").write_text(json.dumps({"frames": [frame]}))
    with pytest.raises(InputError, match=r"cameras\.json"):
        open_input(photos)


def test_duplicates(photos: Path) -> None:
    scene = open_input(photos)
    assert find_duplicate_images(scene) == []
    require_several_views(scene)
    (photos / "img3.jpg").write_bytes((photos / "img1.jpg").read_bytes())
    scene = open_input(photos)
    assert find_duplicate_images(scene) == [("img1.jpg", "img3.jpg")]
    fewer, notes = without_duplicates(scene)
    assert [v.name for v in fewer.views] == ["img1.jpg", "img2.jpg", "img10.jpg"]
    assert "img3.jpg" in notes[0]


def test_too_few_or_identical_views(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only one picture"):
        require_several_views(open_input(photos / "img1.jpg"), source=str(photos))
    for name in ("img2.jpg", "img10.jpg"):
        (photos / name).write_bytes((photos / "img1.jpg").read_bytes())
    with pytest.raises(InputError, match="3 pictures are identical"):
        require_several_views(open_input(photos))
    clip = write_video(tmp_path / "still.mp4", panning_frames(6, speed=0))
    with pytest.raises(InputError, match=r"only one picture|identical"):
        require_several_views(open_input(clip))


def test_truncated_pictures_are_found_before_the_work(photos: Path) -> None:
    path = photos / "img2.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    scene = open_input(photos)
    ((name, error),) = check_pictures(scene)
    assert name == "img2.jpg" and "truncated" in str(error)


def test_shared_sets_open(shared_data: Path) -> None:
    for name in ("rendered_room8", "hololens_room", "middlebury_temple_ring16"):
        scene = open_input(shared_data / name)
        assert scene.info["input"]["kind"] == "cameras_json" and len(scene.posed) == len(scene)
    pictures = open_input(shared_data / "strecha_fountain_p11" / "images")
    assert len(pictures) == 11 and pictures.views[0].load_image().shape[0] == 3
