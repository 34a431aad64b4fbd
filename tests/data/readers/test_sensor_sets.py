"""Readers of rooms and roads: sensor depth, lidar and radar in the pixels where independent formulae put them."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.readers import tiny_world as tw
from relief3d.core.errors import InputError
from relief3d.data.batching import batch_from_scene
from relief3d.data.readers.registry import open_dataset

X0 = tw.landmark(tw.camera(0))


def rows(M: np.ndarray) -> str:
    return "\n".join(" ".join(f"{v:.9f}" for v in row) for row in M)


def test_scannet(tmp_path: Path) -> None:
    folder = tmp_path / "scans" / "scene0011_00"
    K = tw.K_of(60.0, 35.2, 26.1)  # of colour pictures 72 x 54, pixel centres at integers
    depth_K = tw.K_of(41.0, 23.4, 17.3)  # of depth maps 48 x 36
    for name, M in (("color", K), ("depth", depth_K)):
        full = np.eye(4)
        full[:3, :3] = M
        tw.save_text(rows(full), folder / "intrinsic" / f"intrinsic_{name}.txt")
    for i in range(3):
        T = tw.camera(i)
        tw.save(tw.marked_picture(K, T, 0.0, X0, 72, 54), folder / "color" / f"{i}.jpg")
        depth = tw.plane_z(depth_K, T, 0.0)
        depth[0, 0] = 0
        tw.save16(depth * 1000, folder / "depth" / f"{i}.png")
        tw.save_text(rows(T) if i != 1 else rows(np.full((4, 4), -np.inf)), folder / "pose" / f"{i}.txt")
    tw.save_text("scene0011_00\n", tmp_path / "scannetv2_val.txt")
    scene = open_dataset("scannet", tmp_path, split="val")[0]
    assert [v.name for v in scene.views] == ["0.jpg", "2.jpg"]  # the lost frame is left out
    for view in scene.views:
        tw.check_landmark(view, X0)
        # The map is coarser than the picture: nearest pixels are off by up to 0.6 pixels of it.
        tw.check_plane(view, 0.06, share=0.8)
        error = mean_plane_offset(view)
        assert abs(error) < 0.003  # a shift of half a pixel would leave a mean offset
    assert len(open_dataset("scannet", tmp_path, stride=3)[0]) == 1
    (folder / "pose" / "2.txt").write_text("1 2 3")
    with pytest.raises(InputError, match=r"2\.txt: holds 3 numbers"):
        open_dataset("scannet", tmp_path)[0]
    with pytest.raises(InputError, match="SensReader"):
        open_dataset("scannet", tmp_path / "scans" / "scene0011_00" / "color")


def mean_plane_offset(view) -> float:
    depth, camera = view.load_depth(), view.camera
    z, known = depth.values.numpy().astype(np.float64), depth.valid.numpy()
    T = camera.world_from_cam.numpy()
    X = tw.rays(camera.K.numpy(), 0.5, camera.width, camera.height) * z[..., None] @ T[:3, :3].T + T[:3, 3]
    return float((X @ tw.NORMAL - tw.OFFSET)[known].mean())


def test_scannetpp(tmp_path: Path) -> None:
    folder, K = tmp_path / "data" / "0a5c013435", tw.K_of()
    images, frames = [], []
    for i in range(2):
        T, name = tw.camera(i), f"DSC0000{i}.JPG"
        E = np.linalg.inv(T)
        q = tw.quat_wxyz(E[:3, :3])
        images.append(f"{i + 1} {' '.join(map(repr, map(float, [*q, *E[:3, 3]])))} 1 {name}\n")
        frames.append({"file_path": name, "is_bad": False})
        tw.save(tw.marked_picture(K, T, 0.5, X0), folder / "dslr" / "resized_undistorted_images" / name)
        tw.save16(tw.plane_z(K, T, 0.5) * 1000, folder / "dslr" / "undistorted_depths" / f"DSC0000{i}.png")
    tw.save_text(
        f"1 PINHOLE {tw.W} {tw.H} {K[0, 0]} {K[1, 1]} {K[0, 2]} {K[1, 2]}\n",
        folder / "dslr/colmap/cameras.txt",
    )
    tw.save_text("\n".join(images) + "\n", folder / "dslr/colmap/images.txt")
    tw.save_text("", folder / "dslr/colmap/points3D.txt")
    (folder / "dslr/colmap/points3D.txt").write_text("# no points\n")
    values = {"w": tw.W, "h": tw.H, "fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
    frames.append({"file_path": "DSC00009.JPG", "is_bad": True})
    tw.save_json(values | {"frames": frames}, folder / "dslr/nerfstudio/transforms_undistorted.json")
    mask = np.full((tw.H, tw.W), 255, np.uint8)
    mask[:4] = 0
    tw.save(Image.fromarray(mask), folder / "dslr/resized_undistorted_masks/DSC00000.png")
    scene = open_dataset("scannetpp", tmp_path)[0]
    assert len(scene) == 2 and scene.metric
    for view in scene.views:
        tw.check_plane(view, 2e-3)
        tw.check_landmark(view, X0)
    usable = scene.views[0].load_mask()
    assert not usable[:4].any() and usable[4:].all()
    tw.save_text("missing_scene\n", tmp_path / "splits" / "nvs_sem_val.txt")
    with pytest.raises(InputError, match="missing_scene"):
        open_dataset("scannetpp", tmp_path, split="nvs_sem_val")


def axis_angle(R: np.ndarray) -> np.ndarray:
    angle = np.arccos((np.trace(R) - 1) / 2)
    v = np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]])
    return v / np.linalg.norm(v) * angle


def test_arkitscenes(tmp_path: Path) -> None:
    folder, K = tmp_path / "Training" / "47333462", tw.K_of()
    lines = []
    for i in range(3):
        T, time = tw.camera(i), 100.0 + 0.1 * i
        E = np.linalg.inv(T)
        lines.append(" ".join(map(repr, map(float, [time, *axis_angle(E[:3, :3]), *E[:3, 3]]))))
        stem = f"47333462_{time:.3f}"
        tw.save(tw.marked_picture(K, T, 0.0, X0), folder / "lowres_wide" / f"{stem}.png")
        # One intrinsics file is off by a millisecond, as in the release.
        late = stem if i else f"47333462_{time + 0.001:.3f}"
        text = f"{tw.W} {tw.H} {K[0, 0]} {K[1, 1]} {K[0, 2]} {K[1, 2]}"
        tw.save_text(text, folder / "lowres_wide_intrinsics" / f"{late}.pincam")
        tw.save16(tw.plane_z(K, T, 0.0) * 1000, folder / "lowres_depth" / f"{stem}.png")
    sure = np.full((tw.H, tw.W), 2, np.uint8)
    sure[:, :8] = 1
    tw.save(Image.fromarray(sure), folder / "confidence" / "47333462_100.000.png")
    # A frame halfway between two poses, and one far outside of the recording.
    for time in (100.05, 130.0):
        stem = f"47333462_{time:.3f}"
        tw.save(Image.new("RGB", (tw.W, tw.H)), folder / "lowres_wide" / f"{stem}.png")
        tw.save_text(text, folder / "lowres_wide_intrinsics" / f"{stem}.pincam")
    tw.save_text("\n".join(lines), folder / "lowres_wide.traj")
    scene = open_dataset("arkitscenes", tmp_path, split="Training", longest_gap=0.15)[0]
    views = {v.name: v for v in scene.views}
    assert len(views) == 5 and scene.views[1].time == pytest.approx(0.05)
    for i in range(3):
        view = views[f"47333462_{100.0 + 0.1 * i:.3f}.png"]
        tw.check_plane(view, 2e-3)
        tw.check_landmark(view, X0)
    halfway = views["47333462_100.050.png"].camera.world_from_cam.numpy()
    assert np.allclose(halfway[:3, 3], 0.5 * (tw.camera(0) + tw.camera(1))[:3, 3], atol=1e-6)
    assert views["47333462_130.000.png"].camera.world_from_cam is None
    trust = views["47333462_100.000.png"].load_depth().confidence
    assert set(np.unique(trust[:, :8])) == {0.5} and set(np.unique(trust[:, 8:])) == {1.0}


def rigid(R: np.ndarray, t: list[float]) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, t
    return T


def kitti_copy(root: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """A drive of two frames; returns K (centres at integers) and world_from_cam of camera 2."""
    K = tw.K_of(40.0, 23.3, 17.1)
    velo_from_imu = rigid(tw.turned(0.01, -0.02, 0.015), [-0.8, 0.3, -0.8])
    axes = np.array(
        [[0, -1, 0], [0, 0, -1], [1, 0, 0.0]]
    )  # x right, y down, z forward from x forward, y left, z up
    cam0_from_velo = rigid(axes @ tw.turned(0.01, 0.02, -0.01), [-0.01, -0.06, -0.3])
    rectify = tw.turned(0.008, -0.01, 0.006)
    shift = np.array([0.06, -0.002, 0.003])  # camera 2 against camera 0
    P = np.hstack([K, (K @ shift)[:, None]])
    date, name = root / "2011_09_26", "2011_09_26_drive_0001_sync"
    line = lambda M: " ".join(f"{v:.9e}" for v in np.ravel(M))  # noqa: E731
    calib = f"calib_time: 09-Jan-2012 13:57:47\nR_rect_00: {line(rectify)}\nP_rect_02: {line(P)}\n"
    tw.save_text(calib, date / "calib_cam_to_cam.txt")
    for file, T in (("velo_to_cam", cam0_from_velo), ("imu_to_velo", velo_from_imu)):
        tw.save_text(f"R: {line(T[:3, :3])}\nT: {line(T[:3, 3])}\n", date / f"calib_{file}.txt")
    cam_from_velo = rigid(np.eye(3), shift) @ rigid(rectify, [0, 0, 0]) @ cam0_from_velo
    cam_from_imu = cam_from_velo @ velo_from_imu
    lat0, lon0 = 49.0, 8.4

    def mercator(la: float, lo: float) -> np.ndarray:
        north = np.log(np.tan(np.pi / 4 + np.radians(la) / 2))
        return 6378137.0 * np.cos(np.radians(lat0)) * np.array([np.radians(lo), north])

    poses, drive = [], date / name
    for i in range(2):
        lat, lon, alt, yaw = lat0 + 2e-6 * i, lon0 + 4e-6 * i, 110.0 + 0.1 * i, 0.3 + 0.1 * i
        at = np.append(mercator(lat, lon) - mercator(lat0, lon0), alt - 110.0)
        c, d = np.cos(yaw), np.sin(yaw)
        world_from_imu = rigid(np.array([[c, -d, 0], [d, c, 0], [0, 0, 1]]), at)
        T = world_from_imu @ np.linalg.inv(cam_from_imu)
        poses.append(T)
        stem = f"{i:010d}"
        tw.save(Image.new("RGB", (tw.W, tw.H)), drive / "image_02" / "data" / f"{stem}.png")
        tw.save_text(
            f"{lat!r} {lon!r} {alt!r} 0.0 0.0 {yaw!r} 1 2 3", drive / "oxts" / "data" / f"{stem}.txt"
        )
        cam = np.array([[0.6, -0.4, 6.0], [-1.2, 0.9, 9.0], [0.0, 0.0, -5.0], [40.0, 0.0, 5.0]])
        velo = (np.linalg.inv(cam_from_velo) @ np.c_[cam, np.ones(4)].T)[:3].T
        sweep = drive / "velodyne_points" / "data" / f"{stem}.bin"
        sweep.parent.mkdir(parents=True, exist_ok=True)
        sweep.write_bytes(b"".join(struct.pack("<4f", *p, 0.5) for p in velo))
    return K, poses


def test_kitti(tmp_path: Path) -> None:
    K, poses = kitti_copy(tmp_path)
    # A plane ahead of the first camera, given in the world.
    normal = poses[0][:3, :3] @ tw.NORMAL
    offset = tw.OFFSET + normal @ poses[0][:3, 3]
    truth = (
        tmp_path
        / "data_depth_annotated"
        / "val"
        / "2011_09_26_drive_0001_sync"
        / "proj_depth"
        / "groundtruth"
    )
    for i, T in enumerate(poses):
        z = tw.plane_z(K, T, 0.0, normal=normal, offset=offset)
        z[::2] = 0
        tw.save16(z * 256, truth / "image_02" / f"{i:010d}.png")
    data = open_dataset("kitti", tmp_path, split="val")
    assert data.names == ("2011_09_26_drive_0001_sync",)
    scene = data[0]
    for view, T in zip(scene.views, poses):
        assert np.allclose(
            view.camera.world_from_cam.numpy(), T, atol=1e-4
        )  # the radius makes six digits matter
        tw.check_plane(view, 5e-3, normal, offset, share=0.45)
        assert "not loaded" in repr(view.sparse_depth)
        u = K @ np.array([[0.6, -0.4, 6.0], [-1.2, 0.9, 9.0]]).T
        expected = (u[:2] / u[2]).T + 0.5  # pixel centres at +0.5
        assert np.allclose(view.sparse_depth.xy.numpy(), expected, atol=1e-3)
        assert np.allclose(view.sparse_depth.z.numpy(), [6.0, 9.0], atol=1e-4) and view.sparse_depth.metric
    batch = batch_from_scene(scene, [0, 1], (tw.W, tw.H))
    assert int((batch.sparse_depth > 0).sum()) == 4
    again = pickle.loads(pickle.dumps(data))[0].views[0]  # as worker processes get it
    assert len(pickle.loads(pickle.dumps(again)).sparse_depth.z) == 2
    with pytest.raises(InputError, match="train"):
        open_dataset("kitti", tmp_path, split="train")


FACING = [
    0.5,
    -0.5,
    0.5,
    -0.5,
]  # (w, x, y, z): x right, y down, z forward in a car with x forward, y left, z up


def nuscenes_copy(root: Path, K: np.ndarray) -> np.ndarray:
    """Two keyframes of one scene: the car drives 3 m between lidar and camera. Returns the true points (world)."""
    truth = np.array([[115.0, 7.5, 1.0], [120.0, 5.0, 2.0]])
    tables: dict[str, list[dict[str, object]]] = {n: [] for n in ("sample_data", "ego_pose", "sample")}
    tables["scene"] = [{"token": "s", "name": "scene-0103"}, {"token": "t", "name": "scene-0001"}]
    channels = {
        "CAM_FRONT": (FACING, [1.5, 0.0, 1.5], K.tolist()),
        "LIDAR_TOP": ([np.sqrt(0.5), 0, 0, np.sqrt(0.5)], [1.0, 0.0, 2.0], []),
    }
    channels["RADAR_FRONT"] = ([1.0, 0, 0, 0], [3.0, 0.0, 0.5], [])
    tables["sensor"] = [{"token": f"t-{c}", "channel": c} for c in channels]
    tables["calibrated_sensor"] = [
        {"token": f"m-{c}", "sensor_token": f"t-{c}", "rotation": q, "translation": t, "camera_intrinsic": k}
        for c, (q, t, k) in channels.items()
    ]
    for i, scene in ((0, "s"), (1, "s"), (2, "t")):
        tables["sample"].append({"token": f"k{i}", "scene_token": scene})
        for c, x, delay in (("CAM_FRONT", 103.0, 50), ("LIDAR_TOP", 100.0, 0), ("RADAR_FRONT", 101.0, 20)):
            ending = {"C": "png", "L": "pcd.bin", "R": "pcd"}[c[0]]
            name = f"samples/{c}/{i}.{ending}"
            tables["ego_pose"].append(
                {"token": f"e{i}{c}", "rotation": [1.0, 0, 0, 0], "translation": [x, 7.0, 0.0]}
            )
            row = {
                "token": f"d{i}{c}",
                "sample_token": f"k{i}",
                "ego_pose_token": f"e{i}{c}",
                "is_key_frame": True,
            }
            row |= {
                "calibrated_sensor_token": f"m-{c}",
                "timestamp": 10**6 * (1 + i) + delay * 1000,
                "filename": name,
            }
            row |= {"width": tw.W if c[0] == "C" else 0, "height": tw.H if c[0] == "C" else 0}
            tables["sample_data"].append(row)
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            car = truth - [x, 7.0, 0.0]
            if c == "CAM_FRONT":
                tw.save(Image.new("RGB", (tw.W, tw.H)), path)
            elif c == "LIDAR_TOP":
                rel = car - [1.0, 0.0, 2.0]
                points = np.c_[
                    rel[:, 1], -rel[:, 0], rel[:, 2]
                ]  # the sensor is turned by +90 degrees about z
                points = np.r_[points, [[0.0, 0.5, -1.0]]]  # the car's own roof
                path.write_bytes(b"".join(struct.pack("<5f", *p, 1.0, 3.0) for p in points))
            else:
                rel = car - [3.0, 0.0, 0.5]
                head = "VERSION 0.7\nFIELDS x y z dyn_prop ambig_state invalid_state\nSIZE 4 4 4 1 1 1\n"
                head += "TYPE F F F I I I\nCOUNT 1 1 1 1 1 1\nWIDTH 2\nHEIGHT 1\nPOINTS 2\nDATA binary\n"
                states = [(1, 3, 0), (1, 3, 5)]  # the second is invalid
                path.write_bytes(
                    head.encode() + b"".join(struct.pack("<3f3b", *p, *s) for p, s in zip(rel, states))
                )
    for name, values in tables.items():
        tw.save_json(values, root / "v1.0-mini" / f"{name}.json")
    return truth


def test_nuscenes(tmp_path: Path) -> None:
    K = tw.K_of(40.0, 23.3, 17.1)
    truth = nuscenes_copy(tmp_path, K)
    data = open_dataset("nuscenes", tmp_path)
    assert data.names == ("scene-0001", "scene-0103")
    assert open_dataset("nuscenes", tmp_path, split="val").names == ("scene-0103",)
    scene = data.scene("scene-0103")
    assert len(scene) == 2 and scene.views[1].time == pytest.approx(1.0)
    # By hand: the camera at (103 + 1.5, 7, 1.5) looks along +x; right is -y, down is -z.
    d = truth - [104.5, 7.0, 1.5]
    cam = np.c_[-d[:, 1], -d[:, 2], d[:, 0]]
    u = cam @ K.T
    expected = u[:, :2] / u[:, 2:] + 0.5
    sparse = scene.views[0].sparse_depth
    assert np.allclose(sparse.xy.numpy(), expected, atol=1e-3) and np.allclose(
        sparse.z.numpy(), cam[:, 2], atol=1e-4
    )
    T = scene.views[0].camera.world_from_cam.numpy()
    assert np.allclose(T[:3, 3], [104.5, 7.0, 1.5]) and np.allclose(T[:3, 2], [1, 0, 0], atol=1e-9)
    radar = (
        open_dataset("nuscenes", tmp_path, sensors=("RADAR_FRONT",)).scene("scene-0103").views[0].sparse_depth
    )
    assert np.allclose(radar.xy.numpy(), expected[:1], atol=1e-3)  # invalid returns are dropped
    every = open_dataset("nuscenes", tmp_path, sensors=("RADAR_FRONT",), radar_filtered=False)
    assert len(every.scene("scene-0103").views[0].sparse_depth.z) == 2
    (tmp_path / "samples/LIDAR_TOP/0.pcd.bin").write_bytes(b"1234567")
    with pytest.raises(InputError, match=r"0\.pcd\.bin.*copy it again"):
        _ = open_dataset("nuscenes", tmp_path).scene("scene-0103").views[0].sparse_depth.z
    with pytest.raises(InputError, match="CAM_FRONT_LEFT"):
        open_dataset("nuscenes", tmp_path, cameras=("CAM_TOP",))
