"""Radar prompts on a tiny copy of nuScenes: the .pcd files, the drive of the car, ranges, averaging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from relief3d.core.errors import InputError
from relief3d.data.readers.nuscenes_sensors import read_radar
from relief3d.eval.protocols.base import Answer, Truth
from relief3d.eval.protocols.metric.readers_nuscenes import open_nuscenes
from relief3d.eval.protocols.prompted.nuscenes_radar import NuScenesRadar
from relief3d.eval.protocols.prompted.readers_radar import (
    RadarOptions,
    radar_points,
    radar_prompt,
    within_reach,
)
from relief3d.eval.protocols.registry import find_protocol
from relief3d.pipelines.evaluate.baselines import best_constant, prompt_nearest

SIZE = (24, 40)
FACING = [0.5, -0.5, 0.5, -0.5]
IDENTITY = [1.0, 0.0, 0.0, 0.0]
DTYPE = np.dtype(
    [
        ("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("dyn_prop", "i1"), ("id", "<i2"), ("rcs", "<f4"), ("vx", "<f4"),
        ("vy", "<f4"), ("vx_comp", "<f4"), ("vy_comp", "<f4"), ("is_quality_valid", "i1"), ("ambig_state", "i1"),
        ("x_rms", "i1"), ("y_rms", "i1"), ("invalid_state", "i1"), ("pdh0", "i1"), ("vx_rms", "i1"), ("vy_rms", "i1"),
    ]
)  # fmt: skip


def write_pcd(
    path: Path, points: list[tuple[float, float, float]], invalid: int | None = None, **columns: list[int]
) -> None:
    rows = np.zeros(len(points), DTYPE)
    for i, p in enumerate(points):
        rows["x"][i], rows["y"][i], rows["z"][i] = p
    rows["ambig_state"], rows["id"] = 3, np.arange(len(points)) * 300
    if invalid is not None:
        rows["invalid_state"][invalid] = 4
    for name, values in columns.items():
        rows[name] = values
    kinds = {"f": "F", "i": "I"}
    header = "\n".join(
        [
            "# .PCD v0.7 - Point Cloud Data file format",
            "VERSION 0.7",
            "FIELDS " + " ".join(DTYPE.names or ()),
            "SIZE " + " ".join(str(DTYPE[n].itemsize) for n in DTYPE.names or ()),
            "TYPE " + " ".join(kinds[DTYPE[n].kind] for n in DTYPE.names or ()),
            "COUNT " + " ".join("1" for _ in DTYPE.names or ()),
            f"WIDTH {len(points)}",
            "HEIGHT 1",
            "VIEWPOINT 0 0 0 1 0 0 0",
            f"POINTS {len(points)}",
            "DATA binary",
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.encode() + b"\n" + rows.tobytes())


def test_pcd_reader(tmp_path: Path) -> None:
    write_pcd(tmp_path / "a.pcd", [(1.5, -2.0, 0.25), (30.0, 4.0, 0.0)], invalid=1)
    fields = read_radar(tmp_path / "a.pcd")
    assert fields["x"].tolist() == [1.5, 30.0] and fields["id"].tolist() == [0, 300]
    assert fields["invalid_state"].tolist() == [0, 4]
    assert radar_points(tmp_path / "a.pcd").tolist() == [[1.5, -2.0, 0.25], [30.0, 4.0, 0.0]]
    assert radar_points(tmp_path / "a.pcd", filtered=True).tolist() == [[1.5, -2.0, 0.25]]
    # The public development kit keeps dynamic properties 0 to 6 and unambiguous (3) returns.
    points = [(float(i), 0.0, 0.0) for i in range(6)]
    write_pcd(tmp_path / "b.pcd", points, dyn_prop=[0, 6, 7, 0, 0, 0], ambig_state=[3, 3, 3, 4, 2, 3])
    assert radar_points(tmp_path / "b.pcd", filtered=True)[:, 0].tolist() == [0, 1, 5]
    write_pcd(tmp_path / "none.pcd", [])
    assert radar_points(tmp_path / "none.pcd").shape == (0, 3)


def test_pcd_errors(tmp_path: Path) -> None:
    write_pcd(tmp_path / "a.pcd", [(1.0, 2.0, 3.0)] * 4)
    data = (tmp_path / "a.pcd").read_bytes()
    for text, change in (
        ("truncated", data[:-5]),
        ("no DATA line", data.split(b"DATA")[0]),
        ("only binary", data.replace(b"DATA binary", b"DATA ascii")),
        ("damaged header", data.replace(b"SIZE 4", b"SIZE x")),
        ("damaged header", data.replace(b"SIZE 4 ", b"SIZE ")),
        ("no fields x, y, z", data.replace(b"FIELDS x y z", b"FIELDS p q r")),
    ):
        (tmp_path / "b.pcd").write_bytes(change)
        with pytest.raises(InputError, match=text):
            read_radar(tmp_path / "b.pcd")


# Radar recordings at 0, 40 and 90 (microseconds); the picture is taken at 50, when the car has driven 3 m.
DRIVE = {
    "RADAR_FRONT-0": 0.0,
    "RADAR_FRONT-40": 2.0,
    "RADAR_FRONT-90": 6.0,
    "LIDAR_TOP-45": 2.5,
    "CAM_FRONT-50": 3.0,
}
MOUNTS = {"RADAR_FRONT": [3.0, 0.0, 0.5], "LIDAR_TOP": [1.0, 0.0, 2.0], "CAM_FRONT": [1.5, 0.0, 1.5]}


def nuscenes(root: Path, scene: str = "scene-0003") -> Path:
    K = [[30.0, 0.0, 19.5], [0.0, 30.0, 11.5], [0.0, 0.0, 1.0]]
    tables: dict[str, list[dict[str, Any]]] = {
        "scene": [{"token": "s", "name": scene}],
        "sample": [{"token": "k", "scene_token": "s"}],
        "sensor": [{"token": f"t-{c}", "channel": c} for c in MOUNTS],
        "calibrated_sensor": [
            {
                "token": f"m-{c}", "sensor_token": f"t-{c}", "translation": at,
                "rotation": FACING if c == "CAM_FRONT" else IDENTITY, "camera_intrinsic": K if c == "CAM_FRONT" else [],
            }
            for c, at in MOUNTS.items()
        ],
        "sample_data": [],
        "ego_pose": [],
    }  # fmt: skip
    for name, x in DRIVE.items():
        channel, time = name.split("-")
        ending = {"R": "pcd", "L": "pcd.bin", "C": "jpg"}[name[0]]
        key = name != "RADAR_FRONT-0" and name != "RADAR_FRONT-90"
        folder = "samples" if key else "sweeps"
        tables["ego_pose"].append({"token": f"e-{name}", "rotation": IDENTITY, "translation": [x, 0.0, 0.0]})
        tables["sample_data"].append(
            {
                "token": name, "sample_token": "k", "ego_pose_token": f"e-{name}", "is_key_frame": key,
                "calibrated_sensor_token": f"m-{channel}", "filename": f"{folder}/{channel}/{name}.{ending}",
                "timestamp": int(time), "height": SIZE[0], "width": SIZE[1],
            }
        )  # fmt: skip
    (root / "v1.0-mini").mkdir(parents=True)
    for name, rows in tables.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
    write_pcd(root / "sweeps/RADAR_FRONT/RADAR_FRONT-0.pcd", [(50.0, 0.0, 0.0)])
    write_pcd(
        root / "samples/RADAR_FRONT/RADAR_FRONT-40.pcd",
        [(20.0, 0.0, 0.0), (100.0, 3.0, 0.0), (9.0, 1.0, 0.0)],
    )
    write_pcd(root / "sweeps/RADAR_FRONT/RADAR_FRONT-90.pcd", [(30.0, 0.0, 0.0)])
    lidar = np.zeros((4, 5), "<f4")
    lidar[:, 0], lidar[:, 1], lidar[:, 2] = (21, 62, 79, 120), (0, 3, -6, 9), (0.0, 0.0, 0.0, 0.0)
    (root / "samples/LIDAR_TOP").mkdir(parents=True)
    lidar.tofile(root / "samples/LIDAR_TOP/LIDAR_TOP-45.pcd.bin")
    (root / "samples/CAM_FRONT").mkdir(parents=True)
    Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(root / "samples/CAM_FRONT/CAM_FRONT-50.jpg")
    return root


# In front of the camera: radar x + 3 (mounting) + 2 (drive then) - 3 (drive now) - 1.5 (camera).
AT_40 = 3.0 + 2.0 - 3.0 - 1.5


def test_radar_of_the_nearest_recording_moves_with_the_car(tmp_path: Path) -> None:
    tables = open_nuscenes(nuscenes(tmp_path), ("CAM_FRONT", "RADAR_FRONT"), sweeps=True)
    camera, radars = tables.keyframes("CAM_FRONT")[0], tables.by_scene("RADAR_FRONT")["scene-0003"]
    prompt = radar_prompt(tmp_path, radars, camera)
    near, side = 20.0 + AT_40, 9.0 + AT_40
    assert sorted(prompt[prompt > 0].tolist()) == pytest.approx([side, near])  # 100 m is beyond the reach
    row = int(1.0 / near * 30 + 12)  # one metre below the camera
    assert float(prompt[row, 20]) == pytest.approx(near)
    assert float(prompt[int(1.0 / side * 30 + 12), int(-1.0 / side * 30 + 20)]) == pytest.approx(side)
    standing = radar_prompt(tmp_path, radars, camera, RadarOptions(ego_motion=False))
    assert float(standing.max()) == pytest.approx(20.0 + 1.5)


def test_joined_sweeps_end_with_the_nearest(tmp_path: Path) -> None:
    tables = open_nuscenes(nuscenes(tmp_path), ("CAM_FRONT", "RADAR_FRONT"), sweeps=True)
    camera, radars = tables.keyframes("CAM_FRONT")[0], tables.by_scene("RADAR_FRONT")["scene-0003"]
    joined = radar_prompt(tmp_path, radars, camera, RadarOptions(sweeps=5))
    # 50 m of the recording at 0 falls in as well; 30 m of the one after the picture does not.
    assert sorted(joined[joined > 0].tolist()) == pytest.approx([9 + AT_40, 20 + AT_40, 50 + AT_40 - 2.0])


def test_columns_reach_from_the_ground_to_two_and_a_half_metres(tmp_path: Path) -> None:
    tables = open_nuscenes(nuscenes(tmp_path), ("CAM_FRONT", "RADAR_FRONT"), sweeps=True)
    camera, radars = tables.keyframes("CAM_FRONT")[0], tables.by_scene("RADAR_FRONT")["scene-0003"]
    prompt = radar_prompt(tmp_path, radars, camera, RadarOptions(column=True))
    z = 20.0 + AT_40
    rows = torch.nonzero(prompt[:, 20])[:, 0]
    assert int(rows.min()) == int(np.floor(12 - 1.0 / z * 30)) and int(rows.max()) == int(
        np.floor(12 + 1.5 / z * 30)
    )
    assert bool((prompt[rows, 20] - z).abs().max() < 1e-4)


def test_samples_of_the_validation_scenes(tmp_path: Path) -> None:
    protocol = find_protocol("nuscenes_radar")
    samples = protocol.open(nuscenes(tmp_path / "val"))
    assert [(s.name, s.group) for s in samples] == [("scene-0003/CAM_FRONT-50", "scene-0003")]
    depth = samples[0].load_truth().need("depth")[0]
    shift = 1.0 + 2.5 - 3.0 - 1.5
    assert sorted(depth[depth > 0].tolist()) == pytest.approx(
        [21 + shift, 62 + shift, 79 + shift, 120 + shift]
    )
    query = samples[0].load_query()
    assert set(query.tensors) == {"prompt"} and query.scene is not None
    assert torch.equal(query.scene.views[0].camera.K[:2, 2], torch.tensor([20.0, 12.0]).double())  # type: ignore[index]
    with pytest.raises(InputError, match="none of the wanted scenes"):
        protocol.open(nuscenes(tmp_path / "train", "scene-0001"))


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("sample", "scene_token", ["s"]), ("sample_data", "sample_token", {}), ("ego_pose", "token", []),
        ("sample_data", "calibrated_sensor_token", [1]), ("sample_data", "height", -1), ("scene", "name", [2]),
        ("calibrated_sensor", "camera_intrinsic", [[-1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]),
    ],
)  # fmt: skip
def test_damaged_tables_are_named(tmp_path: Path, table: str, key: str, value: Any) -> None:
    root = nuscenes(tmp_path)
    (path,) = root.glob(f"v1.0-*/{table}.json")
    path.write_text(json.dumps([{**row, key: value} for row in json.loads(path.read_text())]))
    with pytest.raises(InputError, match=r"\.json|keyframes"):
        find_protocol("nuscenes_radar").open(root)


def truth_of(values: list[float]) -> Truth:
    depth = torch.zeros(1, 1, 8)
    depth[0, 0, : len(values)] = torch.tensor(values)
    return Truth({"depth": depth, "valid": depth > 0}, facts={"group": "g"})


def test_ranges_are_closed_above_and_pictures_are_averaged() -> None:
    protocol = NuScenesRadar()
    query = protocol.twin("smoke")[0].load_query()
    guess = Answer({"depth": torch.full((1, 1, 8), 50.0)})
    first = protocol.measure(query, truth_of([50.0, 40.0, 70.0, 80.0, 85.0]), guess)
    assert first.values["mae_50"] == pytest.approx(1e3 * np.mean([0, 10]))
    assert first.values["mae_70"] == pytest.approx(1e3 * np.mean([0, 10, 20]))
    assert first.values["mae_80"] == pytest.approx(1e3 * np.mean([0, 10, 20, 30]))
    assert first.values["rmse_80"] == pytest.approx(1e3 * np.sqrt(np.mean([0, 100, 400, 900])))
    second = protocol.measure(query, truth_of([60.0]), guess)
    assert "mae_50" not in second.values
    summary = protocol.summarise([first, second])
    assert summary["mae_50"] == first.values["mae_50"]
    assert summary["rmse_80"] == pytest.approx(
        (first.values["rmse_80"] + 10e3) / 2
    )  # not the root of pooled squares
    with pytest.raises(InputError, match="no valid pixels"):
        protocol.measure(query, truth_of([90.0]), guess)


def test_twin_prompts_are_few_and_better_than_a_constant() -> None:
    protocol = find_protocol("nuscenes_radar")
    constant, nearest = [], []
    for sample in protocol.twin("smoke"):
        query, truth = sample.load_query(), sample.load_truth()
        points = int((query.tensors["prompt"] > 0).sum())
        assert 5 <= points <= 100 and float(query.tensors["prompt"].max()) < 80
        constant.append(protocol.measure(query, truth, best_constant(query, truth)))
        nearest.append(protocol.measure(query, truth, prompt_nearest(query)))
    assert protocol.summarise(nearest)["mae_80"] < 0.8 * protocol.summarise(constant)["mae_80"]


def test_twin_has_truth_in_every_range() -> None:
    samples = find_protocol("nuscenes_radar").twin("smoke")
    depth = torch.cat([s.load_truth().tensors["depth"].flatten() for s in samples])
    for low, high in ((0, 50), (50, 70), (70, 80)):
        assert bool(((depth > low) & (depth <= high)).any()), low


def test_returns_at_the_reach_do_not_count() -> None:
    kept = within_reach(torch.tensor([[0.0, 79.99, 80.0, 80.01]]))
    assert torch.equal(kept, torch.tensor([[0.0, 79.99, 0.0, 0.0]]))


def test_published_rows() -> None:
    rows = {r.method: r.values for r in find_protocol("nuscenes_radar").published()}
    assert len(rows) == 12 and rows["R4Dyn"] == {"rmse_80": 6434.0}
    assert rows["Ours finetune"]["mae_50"] == 651.4 and rows["Ours finetune"]["rmse_80"] == 3057.5
