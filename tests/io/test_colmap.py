from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.corpora.known_scene import FISHEYE_LENSES, PERSPECTIVE_LENSES, RATIONAL_LENS, known_scene

from relief3d.core.contract import Camera, Distortion, Scene, View
from relief3d.core.errors import InputError
from relief3d.io.colmap import find_colmap_model, read_colmap_model, write_colmap_model
from relief3d.io.colmap_model import (
    CAMERA_MODELS,
    READABLE,
    ColmapCamera,
    camera_from_colmap,
    camera_to_colmap,
)
from relief3d.io.images import write_image

LENSES = (*PERSPECTIVE_LENSES, RATIONAL_LENS, *FISHEYE_LENSES)
K = torch.tensor([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]], dtype=torch.float64)


def same_model(a: Scene, b: Scene) -> None:
    assert [v.name for v in a.views] == [v.name for v in b.views]
    for left, right in zip(a.views, b.views):
        assert left.camera.K is not None and right.camera.K is not None
        assert left.camera.world_from_cam is not None and right.camera.world_from_cam is not None
        assert torch.equal(left.camera.K, right.camera.K)
        assert torch.allclose(left.camera.world_from_cam, right.camera.world_from_cam, atol=1e-12)
        assert (left.camera.width, left.camera.height) == (right.camera.width, right.camera.height)
    assert a.sparse is not None and b.sparse is not None
    assert torch.equal(a.sparse.xyz, b.sparse.xyz) and torch.equal(a.sparse.rgb, b.sparse.rgb)
    rows = [
        sorted(zip(s.obs_point.tolist(), s.obs_view.tolist(), map(tuple, s.obs_xy.tolist())))
        for s in (a.sparse, b.sparse)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("binary", [True, False])
def test_round_trip(tmp_path: Path, binary: bool) -> None:
    scene = known_scene(LENSES)
    write_colmap_model(scene, tmp_path / "sparse/0", binary=binary)
    again = read_colmap_model(tmp_path)
    same_model(scene, again)
    lenses = [v.camera.distortion for v in again.views]
    padded = Distortion("opencv", (*(LENSES[2].params if LENSES[2] else ()), 0.0, 0.0, 0.0))
    assert lenses == [None, LENSES[1], padded, None, *LENSES[4:]]


def test_text_lines_and_names(tmp_path: Path) -> None:
    scene = known_scene()
    sparse = scene.sparse
    assert sparse is not None
    # One view without any observation: its second line is empty, and still there.
    keep = sparse.obs_view != 1
    fewer = dataclasses.replace(
        sparse, obs_point=sparse.obs_point[keep], obs_view=sparse.obs_view[keep], obs_xy=sparse.obs_xy[keep]
    )
    write_colmap_model(scene.replace(sparse=fewer), tmp_path / "m", binary=False)
    lines = (tmp_path / "m/images.txt").read_text().splitlines()
    assert len(lines) % 2 == 0 and len(lines) == 4 + 2 * len(scene)
    assert sum(line.startswith("#") for line in lines) == 4 and "" in lines
    same_model(scene.replace(sparse=fewer), read_colmap_model(tmp_path / "m"))
    odd = scene.replace(views=(scene.views[0].replace(name="with space.png"), *scene.views[1:]))
    with pytest.raises(InputError, match="white space"):
        write_colmap_model(odd, tmp_path / "odd", binary=False)
    write_colmap_model(odd, tmp_path / "odd", binary=True)
    assert read_colmap_model(tmp_path / "odd").views[0].name == "with space.png"


def test_pycolmap_opens_it_with_the_same_error(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed (extra sfm)")
    scene = known_scene(LENSES)
    sparse = scene.sparse
    assert sparse is not None
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.7, sparse.obs_xy.shape))
    noisy = dataclasses.replace(sparse, obs_xy=sparse.obs_xy + noise)
    for binary in (True, False):
        folder = write_colmap_model(scene.replace(sparse=noisy), tmp_path / str(binary), binary=binary)
        model = pycolmap.Reconstruction(str(folder))
        model.update_point_3d_errors()
        assert model.num_reg_images() == len(scene) and model.num_points3D() == len(sparse)
        expected = float(noise.norm(dim=1).mean())
        assert abs(model.compute_mean_reprojection_error() - expected) < 1e-6


def test_views_without_pose_are_left_out_and_cameras_are_shared(tmp_path: Path) -> None:
    scene = known_scene((None, None, None))
    first = scene.views[0].camera
    assert first.K is not None
    shared = scene.views[2].camera.replace(K=first.K)
    lost = View("lost.png", Camera(640, 480))
    views = (scene.views[0], lost, scene.views[1], scene.views[2].replace(camera=shared))
    sparse = scene.sparse
    assert sparse is not None
    moved = dataclasses.replace(sparse, obs_view=sparse.obs_view)  # view 1 is the lost one now
    write_colmap_model(scene.replace(views=views, sparse=moved), tmp_path / "m", binary=False)
    again = read_colmap_model(tmp_path / "m")
    assert [v.name for v in again.views] == [views[0].name, views[2].name, views[3].name]
    assert len([r for r in (tmp_path / "m/cameras.txt").read_text().splitlines() if r[0] != "#"]) == 2
    assert again.sparse is not None and len(again.sparse) == len(sparse)
    assert len(again.sparse.obs_point) == 2 * len(sparse)
    with pytest.raises(InputError, match="no view"):
        write_colmap_model(Scene((lost,)), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_older_model_leaves_nothing_behind(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed (extra sfm)")
    big, small = known_scene(LENSES), known_scene((None, None))
    folder = write_colmap_model(big, tmp_path / "m")
    pycolmap.Reconstruction(str(folder)).write_binary(str(folder))
    assert (folder / "rigs.bin").exists() and (folder / "frames.bin").exists()
    same_model(big, read_colmap_model(folder))
    write_colmap_model(small, folder, binary=False)
    assert sorted(p.name for p in folder.iterdir()) == ["cameras.txt", "images.txt", "points3D.txt"]
    assert pycolmap.Reconstruction(str(folder)).num_reg_images() == 2
    with pytest.raises(InputError, match="exists"):
        write_colmap_model(small, folder, overwrite=False)
    (folder / "precious.jpg").write_bytes(b"photo")
    with pytest.raises(InputError, match=r"precious\.jpg"):
        write_colmap_model(big, folder)
    assert (folder / "precious.jpg").exists()


def test_model_without_points(tmp_path: Path) -> None:
    scene = known_scene().replace(sparse=None)
    for binary in (True, False):
        write_colmap_model(scene, tmp_path / "m", binary=binary)
        assert read_colmap_model(tmp_path / "m").sparse is None


@pytest.mark.parametrize("model", list(CAMERA_MODELS))
def test_lens_models_match_pycolmap_or_are_refused(model: str) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed (extra sfm)")
    from tests.corpora.known_scene import project

    count = CAMERA_MODELS[model][1]
    one_focal = (
        model in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
        or "SIMPLE" in model
        or model == "RADIAL_FISHEYE"
    )
    base = (500.0, 310.0, 250.0) if one_focal else (500.0, 520.0, 310.0, 250.0)
    lens = (0.05, -0.02, 0.003, -0.002, 0.01, 0.02, -0.01, 0.004, 0.0, 0.0, 0.0, 0.0)
    params = (*base, *lens)[:count]
    theirs = pycolmap.Camera(model=model, width=640, height=480, params=list(params))
    assert theirs.model.name == model and int(theirs.model) == CAMERA_MODELS[model][0]
    ours = ColmapCamera(model, 640, 480, params)
    if model not in READABLE:
        with pytest.raises(InputError, match=model):
            camera_from_colmap(ours, Path("m"), "camera 1")
        return
    camera = camera_from_colmap(ours, Path("m"), "camera 1")
    again = camera_from_colmap(camera_to_colmap(camera), Path("m"), "camera 1")
    xyz = np.random.default_rng(1).uniform([-1, -1, 3], [1, 1, 5], (50, 3))
    expected = np.array([theirs.img_from_cam(p) for p in xyz])
    for ours_now in (camera, again):
        assert ours_now.K is not None
        got = project(xyz, ours_now.K.numpy(), np.eye(4), ours_now.distortion)
        assert np.abs(got - expected).max() < 1e-8


def test_skew_and_missing_intrinsics_are_refused() -> None:
    skewed = K.clone()
    skewed[0, 1] = 0.5
    with pytest.raises(InputError, match="skew"):
        camera_to_colmap(Camera(640, 480, skewed))
    with pytest.raises(InputError, match="intrinsics"):
        camera_to_colmap(Camera(640, 480))


def test_pictures_load_on_demand_and_sizes_are_checked(tmp_path: Path) -> None:
    scene = known_scene((None, None))
    for view in scene.views:
        write_image(tmp_path / "pics" / view.name, torch.rand(3, view.camera.height, view.camera.width))
    write_colmap_model(scene, tmp_path / "m")
    again = read_colmap_model(tmp_path / "m", tmp_path / "pics")
    assert all(callable(v.image) and v.path is not None for v in again.views)
    assert again.views[1].load_image().shape == (3, 520, 300)
    assert read_colmap_model(tmp_path / "m").views[0].image is None
    name = scene.views[1].name
    write_image(tmp_path / "pics" / name, torch.rand(3, 300, 520))
    with pytest.raises(InputError, match="EXIF") as caught:
        read_colmap_model(tmp_path / "m", tmp_path / "pics")
    assert caught.value.path == tmp_path / "pics" / name
    (tmp_path / "pics" / name).unlink()
    with pytest.raises(InputError, match="does not exist"):
        read_colmap_model(tmp_path / "m", tmp_path / "pics")
    escape = scene.replace(views=(scene.views[0].replace(name="../secret.png"), scene.views[1]))
    write_colmap_model(escape, tmp_path / "escape")
    with pytest.raises(InputError, match="outside"):
        read_colmap_model(tmp_path / "escape", tmp_path / "pics")


def test_no_model_here(tmp_path: Path) -> None:
    assert find_colmap_model(tmp_path) is None
    for missing in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="no COLMAP model"):
            read_colmap_model(missing)


def edit(path: Path, change: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


TEXT_DAMAGE: dict[str, tuple[str, Callable[[str], str]]] = {
    "unknown model": ("cameras.txt", lambda t: t.replace("PINHOLE", "PANORAMA")),
    "too few parameters": ("cameras.txt", lambda t: t.rstrip().rsplit(" ", 1)[0] + "\n"),
    "parameter nan": ("cameras.txt", lambda t: t.rstrip().rsplit(" ", 1)[0] + " nan\n"),
    "negative focal": ("cameras.txt", lambda t: t.replace("PINHOLE 640 480 410.3", "PINHOLE 640 480 -410.3")),
    "zero size": ("cameras.txt", lambda t: t.replace("PINHOLE 640 480", "PINHOLE 0 480")),
    "no cameras": ("cameras.txt", lambda t: "# nothing\n"),
    "camera twice": ("cameras.txt", lambda t: t + t),
    "words for numbers": ("images.txt", lambda t: t.replace(" 1 images", " one images")),
    "no images": ("images.txt", lambda t: "# nothing\n"),
    "last line gone": ("images.txt", lambda t: "\n".join(t.rstrip("\n").split("\n")[:-1])),
    "not triples": ("images.txt", lambda t: t.rstrip("\n") + " 3.5\n"),
    "quaternion zero": ("images.txt", lambda t: zero_quaternion(t)),  # noqa: PLW0108 (defined below)
    "image twice": ("images.txt", lambda t: t + t),
    "point short": ("points3D.txt", lambda t: t + "5000 1 2\n"),
    "track odd": ("points3D.txt", lambda t: t.rstrip("\n") + " 1\n"),
    "colour": ("points3D.txt", lambda t: t + "5000 1 2 3 300 0 0 0.1\n"),
    "point inf": ("points3D.txt", lambda t: t + "5000 1 inf 3 30 0 0 0.1\n"),
    "track of nowhere": ("points3D.txt", lambda t: t + "5000 1 2 3 3 0 0 0.1 77 0\n"),
    "track out of range": ("points3D.txt", lambda t: t + "5000 1 2 3 3 0 0 0.1 1 100000\n"),
    "track of another point": ("points3D.txt", lambda t: t + "5000 1 2 3 3 0 0 0.1 1 0\n"),
    "garbage": ("points3D.txt", lambda t: "\x01\x02 hello\n" * 5),
}


def zero_quaternion(text: str) -> str:
    lines = text.split("\n")
    words = lines[4].split(" ")
    lines[4] = " ".join([words[0], "0", "0", "0", "0", *words[5:]])
    return "\n".join(lines)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("case", TEXT_DAMAGE)
def test_damaged_text_is_named(tmp_path: Path, case: str) -> None:
    folder = write_colmap_model(known_scene((None, None), count=12), tmp_path / "m", binary=False)
    name, change = TEXT_DAMAGE[case]
    edit(folder / name, lambda data: change(data.decode()).encode())
    with pytest.raises(InputError) as caught:
        read_colmap_model(folder)
    assert caught.value.path in (folder / name, folder)


def huge_count(data: bytes) -> bytes:
    return struct.pack("<Q", 2**60) + data[8:]


BINARY_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "zero bytes": lambda d: b"",
    "garbage": lambda d: bytes(range(255, -1, -1)) * 4,
    "huge count": huge_count,
    "one more": lambda d: struct.pack("<Q", struct.unpack("<Q", d[:8])[0] + 1) + d[8:],
    "one less": lambda d: struct.pack("<Q", struct.unpack("<Q", d[:8])[0] - 1) + d[8:],
    "bytes appended": lambda d: d + b"\0" * 7,
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
@pytest.mark.parametrize("case", BINARY_DAMAGE)
def test_damaged_binary_is_named(tmp_path: Path, name: str, case: str) -> None:
    folder = write_colmap_model(known_scene((None, None), count=12), tmp_path / "m")
    path = edit(folder / name, BINARY_DAMAGE[case])
    with pytest.raises(InputError) as caught:
        read_colmap_model(folder)
    assert caught.value.path in (path, folder)


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_every_cut_of_binary_is_noticed(tmp_path: Path, name: str) -> None:
    folder = write_colmap_model(known_scene((None, None), count=12), tmp_path / "m")
    data = (folder / name).read_bytes()
    for length in range(0, len(data), 5):
        (folder / name).write_bytes(data[:length])
        with pytest.raises(InputError):
            read_colmap_model(folder)


def test_special_binary_damage(tmp_path: Path) -> None:
    folder = write_colmap_model(known_scene((None, None), count=12), tmp_path / "m")
    whole = (folder / "images.bin").read_bytes()
    cases: dict[str, Any] = {
        "nan pose": whole[:12] + struct.pack("<d", float("nan")) + whole[20:],
        "name without end": whole[:72] + b"x" * (len(whole) - 72),
        "name not utf-8": whole[:72] + b"\xff" + whole[73:],
        "unknown camera": whole[:68] + struct.pack("<I", 99) + whole[72:],
    }
    for case, data in cases.items():
        (folder / "images.bin").write_bytes(data)
        with pytest.raises(InputError):
            read_colmap_model(folder)
            pytest.fail(case)
    (folder / "images.bin").write_bytes(whole)
    cameras = (folder / "cameras.bin").read_bytes()
    (folder / "cameras.bin").write_bytes(cameras[:12] + struct.pack("<i", 55) + cameras[16:])
    with pytest.raises(InputError, match="55"):
        read_colmap_model(folder)


def test_absurd_track_length(tmp_path: Path) -> None:
    folder = write_colmap_model(known_scene((None, None), count=12), tmp_path / "m")
    data = (folder / "points3D.bin").read_bytes()
    at = 8 + 8 + 24 + 3 + 8  # the first point's track length
    (folder / "points3D.bin").write_bytes(data[:at] + struct.pack("<Q", 2**64 - 1) + data[at + 8 :])
    with pytest.raises(InputError, match="record") as caught:
        read_colmap_model(folder)
    assert caught.value.path == folder / "points3D.bin"
