"""Readers of videos, camera paths, objects and the generic layout; the registry and lazy behaviour of all."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from data.readers import tiny_world as tw
from relief3d.core.contract import Camera, Depth, Distortion, Scene, SparseDepth, SparsePoints, View
from relief3d.core.errors import InputError
from relief3d.data.batching import batch_from_scene
from relief3d.data.readers.generic import write_generic
from relief3d.data.readers.registry import cards_markdown, dataset_cards, dataset_names, open_dataset

X0 = tw.landmark(tw.camera(0))


def test_dl3dv(tmp_path: Path) -> None:
    folder, K = tmp_path / "1K" / "5c3af581028068a3", tw.K_of()
    frames = []
    for i in range(2):
        T = tw.camera(i)
        T[:3, 1:3] *= -1  # x right, y up, z back
        frames.append({"file_path": f"images/frame_{i + 1:05d}.png", "transform_matrix": T.tolist()})
        tw.save(tw.marked_picture(K, tw.camera(i), 0.5, X0), folder / "images_4" / f"frame_{i + 1:05d}.png")
        (folder / "depth").mkdir(exist_ok=True)
        np.save(
            folder / "depth" / f"frame_{i + 1:05d}.npy", tw.plane_z(K, tw.camera(i), 0.5).astype(np.float32)
        )
    full = {
        "w": 4 * tw.W,
        "h": 4 * tw.H,
        "fl_x": 4 * K[0, 0],
        "fl_y": 4 * K[1, 1],
        "cx": 4 * K[0, 2],
        "cy": 4 * K[1, 2],
    }
    full |= {"camera_model": "OPENCV", "k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0}
    tw.save_json(full | {"frames": frames[::-1]}, folder / "transforms.json")
    assert open_dataset("dl3dv", tmp_path).names == ("1K/5c3af581028068a3",)
    scene = open_dataset("dl3dv", tmp_path, split="1K")[0]
    assert [v.name for v in scene.views] == ["frame_00001.png", "frame_00002.png"] and not scene.metric
    for view in scene.views:
        tw.check_plane(view, 1e-4)
        tw.check_landmark(view, X0)
    tw.save_json(full | {"k1": 0.05, "frames": frames}, folder / "transforms.json")
    assert open_dataset("dl3dv", tmp_path)[0].views[0].camera.distortion.params[0] == 0.05
    (folder / "images_4" / "frame_00002.png").unlink()
    with pytest.raises(InputError, match=r"frame_00002\.png.*download"):
        open_dataset("dl3dv", tmp_path)[0]


def test_realestate10k(tmp_path: Path) -> None:
    K, lines = tw.K_of(), ["https://www.youtube.com/watch?v=0"]
    for i in range(3):
        T = tw.camera(i)
        E = np.linalg.inv(T)[:3]
        shares = [K[0, 0] / tw.W, K[1, 1] / tw.H, K[0, 2] / tw.W, K[1, 2] / tw.H]
        stamp = 5000000 + 33000 * i
        lines.append(" ".join(map(str, [stamp, *shares, 0, 0, *E.ravel()])))
        if i != 1:  # that frame is gone
            tw.save(tw.marked_picture(K, T, 0.5, X0), tmp_path / "frames" / "test" / "0a3b" / f"{stamp}.png")
    tw.save_text("\n".join(lines), tmp_path / "test" / "0a3b.txt")
    scene = open_dataset("realestate10k", tmp_path, split="test")[0]
    assert [v.name for v in scene.views] == ["0000", "0002"] and scene.views[1].time == pytest.approx(0.066)
    for view in scene.views:
        tw.check_landmark(view, X0)
    with pytest.raises(InputError, match="camera files"):
        open_dataset("realestate10k", tmp_path, split="train")


def write_video(path: Path, count: int, rate: int = 30) -> None:
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(count):
            pixels = np.full((48, 64, 3), 20 * i + 20, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)


def turn_xyz(a: float, b: float, c: float) -> np.ndarray:
    """About the fixed axes x, then y, then z."""
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return z @ y @ x


def test_droid(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    folder = tmp_path / "AUTOLab" / "success" / "2023-07-07" / "Fri_Jul__7_09:42:23_2023"
    outer, wrist = (
        [0.2, -0.5, 0.4, -1.8, 0.2, -2.5],
        np.array([[0.4, 0.0, 0.3, 3.0, 0.1, 0.1 * i] for i in range(5)]),
    )
    meta = {"uuid": "AUTOLab+0d4edc4b", "ext1_cam_serial": "22008760", "ext1_cam_extrinsics": outer}
    meta |= {"wrist_cam_serial": "18026681", "wrist_cam_extrinsics": [0.0] * 6, "ext2_cam_serial": "24400334"}
    tw.save_json(meta, folder / "metadata_AUTOLab+0d4edc4b.json")
    write_video(folder / "recordings" / "MP4" / "22008760.mp4", 5)
    write_video(folder / "recordings" / "MP4" / "18026681.mp4", 5)
    with h5py.File(folder / "trajectory.h5", "w") as file:
        file["observation/camera_extrinsics/18026681_left"] = wrist
    data = open_dataset("droid", tmp_path, split="success", stride=2)
    assert len(data) == 1 and data.names[0].startswith("AUTOLab/success/")
    views = {v.name: v for v in data[0].views}
    assert list(views) == [f"{c}/frame_{i:06d}" for c in ("ext1", "wrist") for i in (0, 2, 4)]
    T = views["ext1/frame_000004"].camera.world_from_cam.numpy()
    assert np.allclose(T[:3, :3], turn_xyz(*outer[3:])) and np.allclose(T[:3, 3], outer[:3])
    T = views["wrist/frame_000004"].camera.world_from_cam.numpy()
    assert np.allclose(T[:3, :3], turn_xyz(*wrist[4, 3:])) and np.allclose(T[:3, 3], wrist[4, :3])
    view = views["ext1/frame_000002"]
    assert view.time == pytest.approx(2 / 30, abs=1e-3) and view.camera.K is None
    image = view.load_image()
    assert image.shape == (3, 48, 64) and abs(float(image.mean()) - 60 / 255) < 0.03
    with pytest.raises(InputError, match="metadata"):
        open_dataset("droid", tmp_path, split="failure")


def test_egocentric10k(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", 4)
    worker = tmp_path / "set" / "factory_001" / "workers" / "worker_002"
    given = {
        "model": "fisheye",
        "image_width": 32,
        "image_height": 24,
        "fx": 10.0,
        "fy": 10.0,
        "cx": 15.0,
        "cy": 11.0,
    }
    tw.save_json(given | {"k1": 0.39, "k2": 0.18, "k3": -0.27, "k4": 0.08}, worker / "intrinsics.json")
    with tarfile.open(worker / "factory001_worker002_part00.tar", "w") as tar:
        for name, data in (
            ("../../f_00001.mp4", (tmp_path / "clip.mp4").read_bytes()),
            ("f_00001.json", b"{}"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    data = open_dataset("egocentric10k", tmp_path / "set", stride=3, cache=tmp_path / "cache")
    assert data.names == ("factory_001/worker_002/f_00001",)
    assert not (tmp_path / "cache").exists()  # nothing is copied when opened
    scene = data[0]
    camera = scene.views[1].camera
    assert len(scene) == 2 and camera.distortion == Distortion("fisheye", (0.39, 0.18, -0.27, 0.08))
    # 64 x 48 pictures are twice the calibration's: (c + 0.5) * 2.
    assert camera.K.tolist() == [[20.0, 0.0, 31.0], [0.0, 20.0, 23.0], [0.0, 0.0, 1.0]]
    assert abs(float(scene.views[1].load_image().mean()) - 80 / 255) < 0.03
    assert [p.relative_to(tmp_path / "cache").as_posix() for p in (tmp_path / "cache").rglob("*.mp4")] == [
        "factory_001/worker_002/f_00001.mp4"
    ]
    with pytest.raises(InputError, match="cache"):
        open_dataset("egocentric10k", tmp_path / "set")[0]
    (worker / "factory001_worker002_part00.tar").write_bytes(b"x" * 2000)
    with pytest.raises(InputError, match="damaged tar"):
        open_dataset("egocentric10k", tmp_path / "set")


def test_glb_objects(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    box = trimesh.creation.box(extents=(1.0, 2.0, 0.5))
    box.apply_translation([3.0, 1.0, -2.0])
    file = tmp_path / "glbs" / "000-001" / "8476c4170df24cf5bbe6967222d1a42d.glb"
    file.parent.mkdir(parents=True)
    file.write_bytes(box.export(file_type="glb"))
    scene = open_dataset("glb_objects", tmp_path, views=4, size=(40, 32))[0]
    assert np.allclose(scene.mesh.vertices.numpy().min(0), [2.5, 0.0, -2.25]) and len(scene) == 4
    low, high = np.array([2.5, 0.0, -2.25]), np.array([3.5, 2.0, -1.75])
    corners = np.array([[x, y, z] for x in (2.5, 3.5) for y in (0.0, 2.0) for z in (-2.25, -1.75)])
    for view in scene.views:
        # The bounding sphere takes 90 % of the smaller half, whichever way the object is seen.
        x = (np.c_[corners, np.ones(8)] @ np.linalg.inv(view.camera.world_from_cam.numpy()).T)[:, :3]
        radius = np.linalg.norm(corners[0] - corners[-1]) / 2
        away = np.linalg.norm(x.mean(0))
        assert np.tan(np.arcsin(radius / away)) * view.camera.K[0, 0] == pytest.approx(0.9 * 16, rel=0.04)
        depth, mask = view.load_depth(), view.load_mask()
        assert torch.equal(depth.valid, mask) and 0.05 < float(mask.float().mean()) < 0.9
        assert not mask[0].any() and not mask[-1].any() and not mask[:, 0].any() and not mask[:, -1].any()
        T, z = view.camera.world_from_cam.numpy(), depth.values.numpy()
        X = (tw.rays(view.camera.K.numpy(), 0.5, 40, 32) * z[..., None] @ T[:3, :3].T + T[:3, 3])[
            mask.numpy()
        ]
        # Every point lies on the surface of the box.
        inside = np.minimum(X - low, high - X)
        assert np.allclose(inside.min(-1), 0, atol=1e-4)
        assert view.load_image().shape == (3, 32, 40)
    poses = [
        open_dataset("glb_objects", tmp_path, views=1, seed=i)[0].views[0].camera.world_from_cam
        for i in (0, 1, 0)
    ]
    assert torch.equal(poses[0], poses[2]) and not torch.allclose(poses[0], poses[1])
    file.write_bytes(b"glTF")
    with pytest.raises(InputError, match="GLB"):
        open_dataset("glb_objects", tmp_path)[0]


def made_scene(metric: bool = True) -> Scene:
    """Three views: all there is, a distorted one without pose, and cameras alone."""
    rng = np.random.default_rng(0)
    K, T = tw.K_of(), tw.camera(1)
    image = torch.from_numpy(rng.integers(0, 256, (3, tw.H, tw.W)).astype(np.float32) / 255)
    z = torch.from_numpy(tw.plane_z(K, T, 0.5)).float()
    z[3, 4] = 0
    depth = Depth.from_values(
        z, metric=metric, confidence=torch.rand(tw.H, tw.W, generator=torch.Generator().manual_seed(1))
    )
    sparse = SparseDepth(torch.tensor([[3.25, 7.5]]), torch.tensor([4.5]), torch.tensor([0.1]), metric)
    mask = torch.ones(tw.H, tw.W, dtype=torch.bool)
    mask[:5] = False
    views = (
        View("left/a b.jpg", Camera(tw.W, tw.H, K, T), image, depth, sparse, mask, 1.5),
        View(
            "c",
            Camera(tw.W, tw.H, K, None, Distortion("opencv", (0.1, 0.0, 0.0, 0.0)), "guess"),
            lambda: image,
        ),
        View("d", Camera(20, 10)),
    )
    points = SparsePoints(
        torch.rand(2, 3, dtype=torch.float64), torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8),
        torch.tensor([0.5, 0.25], dtype=torch.float64), torch.tensor([0, 1]), torch.tensor([0, 1]),
        torch.rand(2, 2, dtype=torch.float64),
    )  # fmt: skip
    return Scene(views, metric, True, points, info={"maker": "test"})


@pytest.mark.parametrize("metric", [True, False])
def test_generic_round_trip(tmp_path: Path, metric: bool) -> None:
    scene = made_scene(metric)
    write_generic(scene, tmp_path / "rooms" / "one")
    with pytest.raises(InputError, match="exists"):
        write_generic(scene, tmp_path / "rooms" / "one")
    write_generic(scene, tmp_path / "rooms" / "one", overwrite=True)
    data = open_dataset("generic", tmp_path / "rooms")
    assert data.names == ("one",)
    back = pickle.loads(pickle.dumps(data))[0]
    assert back.metric == metric and back.ordered and back.info["maker"] == "test"
    assert [v.name for v in back.views] == ["left/a b.jpg", "c", "d"]
    full, first = back.views[0], scene.views[0]
    assert torch.allclose(full.load_image(), first.load_image(), atol=1e-6)
    assert torch.equal(full.load_depth().values, first.load_depth().values)
    assert torch.equal(full.load_depth().confidence, first.load_depth().confidence)
    assert full.load_depth().metric == metric and full.sparse_depth.metric == metric
    assert torch.equal(full.load_mask(), first.load_mask()) and full.time == 1.5
    assert torch.allclose(full.camera.K, first.camera.K) and torch.allclose(
        full.camera.world_from_cam, first.camera.world_from_cam
    )
    assert torch.equal(full.sparse_depth.xy, first.sparse_depth.xy) and torch.equal(
        full.sparse_depth.sigma, first.sparse_depth.sigma
    )
    tw.check_plane(full, 1e-4)
    assert back.views[1].camera == scene.views[1].camera.replace(K=back.views[1].camera.K)
    assert back.views[1].load_depth() is None and back.views[2].image is None
    assert torch.equal(back.sparse.obs_xy, scene.sparse.obs_xy) and torch.equal(
        back.sparse.rgb, scene.sparse.rgb
    )
    batch = batch_from_scene(back, [0], (tw.W, tw.H))
    assert float(batch.sparse_depth[0, 0, 7, 3]) == 4.5


def test_generic_by_hand(tmp_path: Path) -> None:
    """The documented layout, written without the writer: 16-bit depth in millimetres, pixel centres at integers."""
    folder, T, K = tmp_path / "s", tw.camera(2), tw.K_of()
    tw.save(tw.marked_picture(K, T, 0.0, tw.landmark(T)), folder / "images" / "x.png")
    tw.save16(tw.plane_z(K, T, 0.0) * 1000, folder / "depth" / "x.png")
    frame = {
        "image": "images/x.png",
        "width": tw.W,
        "height": tw.H,
        "K": K.tolist(),
        "T_cam_to_world": T.tolist(),
    }
    frame |= {"depth": "depth/x.png", "depth_to_metres": 0.001}
    tw.save_json({"units": "metres", "frames": [frame]}, folder / "cameras.json")
    tw.save_json({"unit": "metre"}, folder / "meta.json")
    view = open_dataset("generic", folder)[0].views[0]
    tw.check_plane(view, 2e-3)
    tw.check_landmark(view, tw.landmark(T))
    tw.save_json({"unit": "furlong"}, folder / "meta.json")
    with pytest.raises(InputError, match="furlong"):
        open_dataset("generic", folder)[0]


def test_write_generic_leaves_nothing_half_written(tmp_path: Path) -> None:
    scene = made_scene()
    bad = scene.views[0].replace(name="bad", mask=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(InputError, match="mask of 'bad'"):
        write_generic(scene.replace(views=(*scene.views, bad)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_names_options_and_folders_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'tartanair'"):
        open_dataset("tartan-air", tmp_path)
    with pytest.raises(InputError, match="did you mean 'stride'"):
        open_dataset("scannet", tmp_path, strid=2)
    for name in dataset_names():
        with pytest.raises(InputError) as caught:
            open_dataset(name, tmp_path)
        assert caught.value.remedy or name == "moge", name
        with pytest.raises(InputError, match=r"split|folder|file"):
            open_dataset(name, tmp_path, split="no such split")


def test_cards_say_what_they_must() -> None:
    cards = dataset_cards()
    assert {c.name for c in cards} == set(dataset_names()) and len(cards) == 19
    for card in cards:
        assert (
            card.title and card.licence and card.layout and card.conventions and card.gives and card.sources
        )
        assert card.name == "generic" or all(s.startswith("http") for s in card.sources)


def test_every_data_set_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert cards_markdown() in text, "docs/datasets.md is behind the cards: paste cards_markdown() into it"


def test_readers_import_without_optional_packages() -> None:
    code = (
        "import sys\n"
        "for name in 'PIL trimesh scipy skimage av OpenEXR h5py'.split(): sys.modules[name] = None\n"
        "from relief3d.data.readers.registry import dataset_cards\n"
        "print(len(dataset_cards()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "19"
