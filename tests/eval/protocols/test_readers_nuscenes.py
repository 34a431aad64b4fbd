"""A tiny copy of nuScenes' layout: joins, transforms, lidar in the picture, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from relief3d.core.errors import InputError
from relief3d.data.readers import nuscenes_tables
from relief3d.eval.protocols.metric import readers_nuscenes as ns

SIZE = (24, 40)
K = [[30.0, 0.0, 19.5], [0.0, 30.0, 11.5], [0.0, 0.0, 1.0]]
FACING = [0.5, -0.5, 0.5, -0.5]  # (w, x, y, z): camera axes in the car's frame (z forward, x right, y down)
FORWARD = 3.0  # metres the car drives between lidar and camera


def mount(token: str, channel: str, rotation: list[float], at: list[float], K: list[Any]) -> dict[str, Any]:
    return {
        "token": token,
        "sensor_token": f"t-{channel}",
        "rotation": rotation,
        "translation": at,
        "camera_intrinsic": K,
    }


def rows_of(scenes: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    identity = [1.0, 0.0, 0.0, 0.0]
    tables: dict[str, list[dict[str, Any]]] = {
        "scene": [{"token": f"s-{n}", "name": n} for n in scenes],
        "sample": [{"token": f"k-{n}-{i}", "scene_token": f"s-{n}"} for n in scenes for i in range(2)],
        "sensor": [{"token": f"t-{c}", "channel": c} for c in ("CAM_FRONT", "CAM_BACK", "LIDAR_TOP")],
        "calibrated_sensor": [
            mount("m-cam", "CAM_FRONT", FACING, [1.5, 0.0, 1.5], K),
            mount("m-back", "CAM_BACK", FACING, [0.0, 0.0, 0.0], K),
            mount("m-lidar", "LIDAR_TOP", identity, [1.0, 0.0, 2.0], []),
        ],
        "sample_data": [],
        "ego_pose": [],
    }
    for n in scenes:
        for i in range(2):
            for channel, mounted, x, time in (
                ("LIDAR_TOP", "m-lidar", 0.0, 0),
                ("CAM_FRONT", "m-cam", FORWARD, 50),
                ("CAM_BACK", "m-back", 0.0, 50),
            ):
                token = f"d-{n}-{i}-{channel}"
                size = (0, 0) if channel == "LIDAR_TOP" else SIZE
                ending = "pcd.bin" if channel == "LIDAR_TOP" else "jpg"
                tables["ego_pose"].append(
                    {"token": f"e-{token}", "rotation": identity, "translation": [100.0 + x, 7.0, 0.0]}
                )
                row = {
                    "token": token, "sample_token": f"k-{n}-{i}", "ego_pose_token": f"e-{token}",
                    "calibrated_sensor_token": mounted, "filename": f"samples/{channel}/{n}_{i}.{ending}",
                    "timestamp": 1000 * i + time, "is_key_frame": True,
                    "height": size[0], "width": size[1],
                }  # fmt: skip
                tables["sample_data"].append(row)
                tables["sample_data"].append(row | {"token": token + "-sweep", "is_key_frame": False})
    return tables


def write(root: Path, tables: dict[str, list[dict[str, Any]]], points: np.ndarray) -> Path:
    (root / "v1.0-mini").mkdir(parents=True)
    for name, rows in tables.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows, indent=0))
    for row in tables["sample_data"]:
        path = root / row["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".bin":
            np.concatenate([points, np.zeros((len(points), 2))], 1).astype("<f4").tofile(path)
        else:
            Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(path)
    return root


POINTS = np.array(
    [
        [20.0, 0.0, -0.5],  # 21 m ahead of the rear axle at the lidar's instant, at the camera's height
        [30.0, 0.0, -0.5],  # behind the first point, in the same pixel
        [11.5, 2.0, 0.5],
        [1.0, 0.5, -1.5],  # on the car's bonnet
        [-9.0, 0.0, 0.0],  # behind the camera
    ]
)


def test_lidar_lands_where_the_drive_puts_it(tmp_path: Path) -> None:
    root = write(tmp_path, rows_of(("scene-0003", "scene-0001")), POINTS)
    frames = ns.open_front_frames(root)
    assert [f.name for f in frames] == [
        "scene-0003/scene-0003_0",
        "scene-0003/scene-0003_1",
    ]  # no training scene
    first = frames[0]
    assert first.group == "scene-0003"
    assert first.load_image().shape == (3, *SIZE)
    assert torch.allclose(first.need_K()[:2, 2], torch.tensor([20.0, 12.0], dtype=torch.float64))
    depth = first.load_depth()
    # z = lidar x + 1 (mounting) - 3 (drive) - 1.5 (camera mounting); nothing right or above for the first point.
    z = 20.0 + 1.0 - FORWARD - 1.5
    assert depth[12, 20] == pytest.approx(z)
    z = 11.5 + 1.0 - FORWARD - 1.5
    column, row = int(-2.0 / z * 30 + 20), int(-1.0 / z * 30 + 12)
    assert depth[row, column] == pytest.approx(z)
    assert int((depth > 0).sum()) == 2
    assert torch.equal(first.load_valid(), depth > 0)


def test_standing_car_is_another_answer(tmp_path: Path) -> None:
    opened = ns.open_nuscenes(write(tmp_path, rows_of(("scene-0003",)), POINTS))
    camera = opened.keyframes("CAM_FRONT")[0]
    lidar = opened.by_sample("LIDAR_TOP")[camera.sample]
    assert opened.frames.keys() == {"CAM_FRONT", "LIDAR_TOP"}
    depth = ns.lidar_depth(tmp_path, lidar, camera, ego_motion=False)
    assert depth[12, 20] == pytest.approx(19.5)
    moved = ns.camera_from_sensor(lidar, camera)
    assert torch.allclose(moved[:3, 3], torch.tensor([0.0, -0.5, 1.0 - 1.5 - FORWARD], dtype=torch.float64))


def test_points_on_the_car_can_stay(tmp_path: Path) -> None:
    points = np.array(
        [[1.8, 0.0, -0.5]]
    )  # 2.8 m ahead of the axle, 1.3 m ahead of the camera when the car stands
    opened = ns.open_nuscenes(write(tmp_path, rows_of(("scene-0003",)), points))
    camera, lidar = opened.keyframes("CAM_FRONT")[0], opened.keyframes("LIDAR_TOP")[0]
    kept = ns.lidar_depth(tmp_path, lidar, camera, ego_motion=False, keep_ego=True)
    assert kept[12, 20] == pytest.approx(1.3)
    assert float(ns.lidar_depth(tmp_path, lidar, camera, ego_motion=False).sum()) == 0


def test_sweeps_and_times(tmp_path: Path) -> None:
    root = write(tmp_path, rows_of(("scene-0003", "scene-0012")), POINTS)
    plain, all_ = ns.open_nuscenes(root), ns.open_nuscenes(root, sweeps=True)
    assert len(plain.frames["LIDAR_TOP"]) == 4 and len(all_.frames["LIDAR_TOP"]) == 8
    assert len(all_.keyframes("LIDAR_TOP")) == 4
    own = all_.by_scene("LIDAR_TOP")["scene-0012"]
    assert [f.time for f in own] == [0, 0, 1000, 1000]
    near = ns.nearest_in_time(own, 600)
    assert near is not None and near.time == 1000
    assert ns.nearest_in_time([], 0) is None


def test_reading_row_by_row_needs_no_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path, rows_of(("scene-0003",)), POINTS)
    whole = ns.open_nuscenes(root)
    monkeypatch.setattr(nuscenes_tables, "_CHUNK", 7)
    pieces = ns.open_nuscenes(root)
    assert [f.token for f in pieces.frames["CAM_FRONT"]] == [f.token for f in whole.frames["CAM_FRONT"]]


def test_validation_scenes() -> None:
    scenes = ns.validation_scenes()
    assert len(scenes) == 150
    assert {"scene-0003", "scene-0519", "scene-0916", "scene-1073"} <= scenes
    assert not {"scene-0001", "scene-0037", "scene-0628", "scene-0918", "scene-1074"} & scenes


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"v1\.0-trainval"):
        ns.open_nuscenes(tmp_path)
    root = write(tmp_path / "a", rows_of(("scene-0003",)), POINTS)
    table = root / "v1.0-mini" / "ego_pose.json"
    text = table.read_text()
    table.write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match="cut off or damaged after row"):
        ns.open_nuscenes(root)
    table.write_text("[]")
    with pytest.raises(InputError, match=r"no row in ego_pose\.json"):
        ns.open_nuscenes(root)
    table.write_text(text)
    with pytest.raises(InputError, match="none of the wanted scenes"):
        ns.open_nuscenes(root, scenes=frozenset({"scene-0999"}))
    (root / "samples" / "LIDAR_TOP" / "scene-0003_0.pcd.bin").write_bytes(b"\0" * 30)
    with pytest.raises(InputError, match="five float32"):
        ns.open_front_frames(root)[0].load_depth()
    (root / "v1.0-mini" / "sensor.json").unlink()
    with pytest.raises(InputError, match=r"sensor\.json"):
        ns.open_nuscenes(root)
