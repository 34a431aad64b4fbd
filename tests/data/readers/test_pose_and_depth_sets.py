"""Readers of sets with dense depth: a known plane, written in each set's own convention, comes back as that plane."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.readers import tiny_world as tw
from relief3d.core.errors import InputError
from relief3d.data.readers.registry import open_dataset

X0 = tw.landmark(tw.camera(0))


def test_tartanair(tmp_path: Path) -> None:
    folder, f = tmp_path / "office" / "Hard" / "P001", tw.W / 2
    K = np.array([[f, 0, tw.W / 2], [0, f, tw.H / 2], [0, 0, 1]])  # corners of the picture at 0 and W
    lines = []
    for i in range(2):
        T = tw.camera(i)
        # The body axes (forward, right, down) in the world are the camera's z, x, y axes.
        body = np.stack([T[:3, 2], T[:3, 0], T[:3, 1]], axis=1)
        w, x, y, z = tw.quat_wxyz(body)
        lines.append(" ".join(map(repr, map(float, [*T[:3, 3], x, y, z, w]))))
        tw.save(tw.marked_picture(K, T, 0.5, X0), folder / "image_left" / f"{i:06d}_left.png")
        depth = tw.plane_z(K, T, 0.5).astype(np.float32)
        depth[0, :3] = 10000.0  # sky
        (folder / "depth_left").mkdir(exist_ok=True)
        np.save(folder / "depth_left" / f"{i:06d}_left_depth.npy", depth)
    tw.save_text("\n".join(lines), folder / "pose_left.txt")
    assert open_dataset("tartanair", tmp_path, split="hard").names == ("office/Hard/P001",)
    scene = open_dataset("tartanair", tmp_path)[0]
    assert scene.metric and scene.ordered and len(scene) == 2
    for view in scene.views:
        tw.check_plane(view, 1e-4)
        tw.check_landmark(view, X0)
        assert not view.load_depth().valid[0, :3].any()
    with pytest.raises(InputError, match="easy"):
        open_dataset("tartanair", tmp_path, split="easy")


def test_tartanair_v2_depth_is_a_float_in_four_bytes(tmp_path: Path) -> None:
    folder, T, side = tmp_path / "house" / "Data_easy" / "P000", tw.camera(1), 32
    K = np.array([[side / 2, 0, side / 2], [0, side / 2, side / 2], [0, 0, 1]])
    body = np.stack([T[:3, 2], T[:3, 0], T[:3, 1]], axis=1)
    w, x, y, z = tw.quat_wxyz(body)
    tw.save_text(" ".join(map(repr, map(float, [*T[:3, 3], x, y, z, w]))), folder / "pose_lcam_front.txt")
    tw.save(Image.new("RGB", (side, side)), folder / "image_lcam_front" / "000000_lcam_front.png")
    depth = tw.plane_z(K, T, 0.5, side, side).astype("<f4")
    b, g, r, a = np.moveaxis(depth[..., None].view(np.uint8), -1, 0)  # OpenCV's channel order is B, G, R, A
    tw.save(
        Image.fromarray(np.stack([r, g, b, a], -1)),
        folder / "depth_lcam_front" / "000000_lcam_front_depth.png",
    )
    tw.check_plane(open_dataset("tartanair", tmp_path)[0].views[0], 1e-4)


def test_blendedmvs(tmp_path: Path) -> None:
    folder, K = tmp_path / "5a3ca9cb270f0e3f14d0eddb", tw.K_of()
    for i in range(2):
        T = tw.camera(i)
        E = np.linalg.inv(T)
        rows = lambda M: "\n".join(" ".join(f"{v:.9f}" for v in row) for row in M)  # noqa: E731
        text = f"extrinsic\n{rows(E)}\n\nintrinsic\n{rows(K)}\n\n1.0 0.1 128 9.0\n"
        tw.save_text(text, folder / "cams" / f"{i:08d}_cam.txt")
        tw.save(tw.marked_picture(K, T, 0.5, X0), folder / "blended_images" / f"{i:08d}.jpg")
        tw.save(Image.new("RGB", (tw.W, tw.H)), folder / "blended_images" / f"{i:08d}_masked.jpg")
        depth = tw.plane_z(K, T, 0.5)
        depth[5, 5] = 0.0
        tw.save_pfm(depth, folder / "rendered_depth_maps" / f"{i:08d}.pfm")
    tw.save_text("", folder / "cams" / "pair.txt")
    tw.save_text(folder.name + "\n", tmp_path / "training_list.txt")
    scene = open_dataset("blendedmvs", tmp_path, split="train")[0]
    assert [v.name for v in scene.views] == ["00000000.jpg", "00000001.jpg"] and not scene.metric
    for view in scene.views:
        tw.check_plane(view, 1e-4)
        tw.check_landmark(view, X0)
        assert not bool(view.load_depth().valid[5, 5])
    (folder / "cams" / "00000001_cam.txt").write_text("extrinsic 1 2")
    with pytest.raises(InputError, match=r"00000001_cam\.txt.*download"):
        open_dataset("blendedmvs", tmp_path)[0]
    with pytest.raises(InputError, match="validation_list"):
        open_dataset("blendedmvs", tmp_path, split="val")


def test_mvs_synth_turns_its_left_handed_world(tmp_path: Path) -> None:
    exr = pytest.importorskip("OpenEXR")
    folder, K = tmp_path / "GTAV_540" / "0003", tw.K_of(cx=tw.W / 2, cy=tw.H / 2)
    mirror = np.diag([1.0, -1.0, 1.0, 1.0])  # our world from the stored one: y turned over
    for i in range(2):
        T = tw.camera(i)
        stored = np.linalg.inv(T) @ mirror  # camera from stored world, determinant -1
        assert np.linalg.det(stored[:3, :3]) < 0
        pose = {"extrinsic": stored.tolist(), "f_x": K[0, 0], "f_y": K[1, 1], "c_x": K[0, 2], "c_y": K[1, 2]}
        tw.save_json(pose, folder / "poses" / f"{i:04d}.json")
        tw.save(tw.marked_picture(K, T, 0.5, X0), folder / "images" / f"{i:04d}.png")
        depth = tw.plane_z(K, T, 0.5).astype(np.float32)
        depth[0, 0] = np.inf
        (folder / "depths").mkdir(exist_ok=True)
        with exr.File({"type": exr.scanlineimage}, {"Y": depth}) as file:
            file.write(str(folder / "depths" / f"{i:04d}.exr"))
    for view in open_dataset("mvs_synth", tmp_path)[0].views:
        tw.check_plane(view, 1e-4)
        tw.check_landmark(view, X0)
        assert not bool(view.load_depth().valid[0, 0])


def test_omniworld_game(tmp_path: Path) -> None:
    folder, frames, K = tmp_path / "b04f88d1f85a", [4, 5, 9], tw.K_of()
    K[1, 1] = K[0, 0]
    far, near, unit = 1000.0, 1.0, 0.004
    quats, trans = [], []
    for n, i in enumerate(frames):
        T = tw.camera(n)
        E = np.linalg.inv(T)
        quats.append(tw.quat_wxyz(E[:3, :3]).tolist())
        trans.append(E[:3, 3].tolist())
        tw.save(tw.marked_picture(K, T, 0.5, X0), folder / "color" / f"{i:06d}.png")
        z = tw.plane_z(K, T, 0.5)
        # The release: z = d / (far - d (far - near)) / unit, solved for d.
        share = z * unit * far / (1 + z * unit * (far - near))
        code = share * 65535
        code[0, 0], code[0, 1] = 65535, 0  # sky, nothing
        tw.save16(code, folder / "depth" / f"{i:06d}.png")
    tw.save_json({"split": [frames]}, folder / "split_info.json")
    camera = {"focals": [K[0, 0]] * 3, "cx": K[0, 2], "cy": K[1, 2], "quats": quats, "trans": trans}
    tw.save_json(camera, folder / "camera" / "split_0.json")
    tw.save_text("24.0\n", folder / "fps.txt")
    data = open_dataset("omniworld_game", tmp_path)
    assert data.names == ("b04f88d1f85a/split_0",)
    scene = data[0]
    assert scene.views[2].time == pytest.approx(9 / 24) and not scene.metric
    for view in scene.views:
        tw.check_landmark(view, X0)
        depth = view.load_depth()
        assert not depth.valid[0, :2].any() and not depth.metric
        tw.check_plane(view, 5e-3)  # 16 bits are coarse here: about 0.5 mm in z, more in the far corner
    (folder / "color" / "000009.png").unlink()
    with pytest.raises(InputError, match=r"000009\.png.*complete"):
        data[0]


def test_bedlam2(tmp_path: Path) -> None:
    exr = pytest.importorskip("OpenEXR")
    root, seq = tmp_path / "20240806_1", "seq_000002"
    focal, sensor = 20.0, (36.0, 27.0)
    K = np.array(
        [[focal * tw.W / sensor[0], 0, tw.W / 2], [0, focal * tw.H / sensor[1], tw.H / 2], [0, 0, 1]]
    )
    yaw, pitch, roll, at = 25.0, -12.0, 9.0, np.array([130.0, -40.0, 95.0])
    a, b, c = np.radians([yaw, pitch, roll])
    # Unreal, left-handed, x forward, y right, z up. First roll, then lift, then turn.
    forward, right, up = np.eye(3)
    right, up = right * np.cos(c) - up * np.sin(c), up * np.cos(c) + right * np.sin(c)

    def lift(v):  # x towards z
        return np.array([v[0] * np.cos(b) - v[2] * np.sin(b), v[1], v[0] * np.sin(b) + v[2] * np.cos(b)])

    def turn(v):  # x towards y
        return np.array([v[0] * np.cos(a) - v[1] * np.sin(a), v[0] * np.sin(a) + v[1] * np.cos(a), v[2]])

    forward, right, up = (turn(lift(v)) for v in (forward, right, up))
    normal, offset = np.array([1.0, 0.2, -0.15]), 600.0  # in Unreal's world, centimetres
    directions = tw.rays(K, 0.5)
    world = directions[..., :1] * right - directions[..., 1:2] * up + directions[..., 2:] * forward
    z = (offset - normal @ at) / (world @ normal)
    keys = {"curPos/x": at[0], "curPos/y": at[1], "curPos/z": at[2], "curRot/yaw": yaw, "curRot/pitch": pitch}
    keys |= {"curRot/roll": roll, "FinalImage/focalLength": focal}
    keys |= {"FinalImage/sensorWidth": sensor[0], "FinalImage/sensorHeight": sensor[1]}
    meta = {f"unreal/camera/{k}": str(v) for k, v in keys.items()}
    ground = root / "groundtruth" / root.name / "ground_truth" / "meta_exr_depth" / seq
    tw.save_json(meta, ground / f"{seq}_0000_meta.json")
    tw.save(Image.new("RGB", (tw.W, tw.H)), root / "png" / root.name / "png" / seq / f"{seq}_0000.png")
    maps = root / "depth" / root.name / "exr_depth" / seq
    maps.mkdir(parents=True)
    with exr.File({"type": exr.scanlineimage}, {"Depth": z.astype(np.float32)}) as file:
        file.write(str(maps / f"{seq}_0000.exr"))
    scene = open_dataset("bedlam2", tmp_path)[0]
    # Ours is (y, -z, x) in metres.
    ours = np.array([normal[1], -normal[2], normal[0]]) * 100.0
    scale = np.linalg.norm(ours)
    tw.check_plane(scene.views[0], 1e-4, ours / scale, offset / scale)
    assert scene.metric
    with pytest.raises(InputError, match="test_sequences"):
        open_dataset("bedlam2", tmp_path, split="test")


def test_moge(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    folder, K = tmp_path / "room" / "a", tw.K_of()
    tw.save(Image.new("RGB", (tw.W, tw.H)), folder / "image.jpg")
    shares = K / np.array([[tw.W], [tw.H], [1.0]])
    tw.save_json({"intrinsics": shares.tolist()}, folder / "meta.json")
    z = tw.plane_z(K, np.eye(4), 0.5)
    near, far = 0.5, 60.0
    code = 1 + 65533 * np.log(z / near) / np.log(far / near)
    code[0, 0], code[0, 1] = 0, 65535
    texts = PngInfo()
    texts.add_text("near", str(near))
    texts.add_text("far", str(far))
    Image.fromarray(np.round(code).astype(np.uint16)).save(folder / "depth.png", pnginfo=texts)
    tw.save_text("room/a\n", tmp_path / ".index.txt")
    view = open_dataset("moge", tmp_path, metric=True)[0].views[0]
    tw.check_plane(view.replace(camera=view.camera.replace(world_from_cam=np.eye(4))), 1e-3)
    assert not view.load_depth().valid[0, :2].any() and view.load_depth().metric
    tw.save_text("../x\n", tmp_path / ".train.txt")
    with pytest.raises(InputError, match="not below"):
        open_dataset("moge", tmp_path, split="train")
