"""Files of real data sets that are damaged or nonsense: one clear sentence that names the file, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from relief3d.core.errors import InputError
from relief3d.eval.protocols.downstream import libero, vsi_bench
from relief3d.eval.protocols.metric import readers_eth3d, readers_sintel, readers_spring, readers_sunrgbd
from relief3d.eval.protocols.metric.readers_booster import open_booster
from relief3d.eval.protocols.metric.readers_ibims import read_ibims
from relief3d.eval.protocols.prompted import readers_hypersim, readers_kitti_selection

SHAPE = (4, 6)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(path)


def test_booster_mask_of_another_size(tmp_path: Path) -> None:
    scene = tmp_path / "balanced" / "Bathroom"
    picture(scene / "camera_00" / "im0.png")
    np.save(scene / "disp_00.npy", np.ones(SHAPE, np.float32))
    Image.fromarray(np.full((3, 3), 255, np.uint8)).save(scene / "mask_00.png")
    (scene / "calib_00-02.xml").write_text(
        "<opencv_storage><mtxL><data>200 0 3 0 200 2 0 0 1</data></mtxL><baselineLR>80</baselineLR>"
        "</opencv_storage>"
    )
    (frame,) = open_booster(tmp_path)
    with pytest.raises(InputError, match=r"mask_00\.png.*\(3, 3\)"):
        frame.load_valid()


def ibims(root: Path, **other: Any) -> Path:
    from scipy.io import savemat

    ones = np.ones(SHAPE)
    data = {
        "rgb": np.zeros((*SHAPE, 3), np.uint8), "depth": ones, "mask_invalid": ones, "mask_transp": ones,
        "calib": np.array([[5.0, 0, 0], [0, 5, 0], [3, 2, 1]]), **other,
    }  # fmt: skip
    path = root / "ibims1_core_mat" / "office_01.mat"
    path.parent.mkdir(exist_ok=True)
    savemat(path, {"data": data}, do_compression=True)
    return path


@pytest.mark.parametrize(
    "other",
    [
        {"depth": np.ones((3, 6))},
        {"rgb": np.zeros(SHAPE, np.uint8)},
        {"depth": "far"},
        {"mask_transp": np.ones((2, 2))},
        {"calib": np.full((3, 3), np.nan)},
        {"calib": np.ones((2, 2))},
        {"calib": -np.eye(3)},
    ],
)
def test_ibims_mat_with_nonsense(tmp_path: Path, other: dict[str, Any]) -> None:
    ibims(tmp_path, **other)
    with pytest.raises(InputError, match=r"office_01\.mat"):
        read_ibims(tmp_path)[0].load_depth()


def test_ibims_mat_damaged_anywhere(tmp_path: Path) -> None:
    path = ibims(tmp_path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    bad = [whole[:length] for length in (0, 50, 130, len(whole) // 2)]
    for _ in range(12):
        flipped = bytearray(whole)
        for at in rng.integers(130, len(whole), 12):
            flipped[at] ^= int(rng.integers(1, 255))
        bad.append(bytes(flipped))
    for data in bad:
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"office_01\.mat"):
            read_ibims(tmp_path)[0].load_depth()


def test_spring_arrays(tmp_path: Path) -> None:
    sequence = tmp_path / "train" / "0001"
    picture(sequence / "frame_left" / "frame_left_0001.png")
    table = sequence / "cam_data" / "intrinsics.txt"
    table.parent.mkdir()
    table.write_text("100 100 3 2\n")
    array = sequence / "disp1_left" / "disp1_left_0001.npy"
    array.parent.mkdir()
    (frame,) = readers_spring.read_spring(tmp_path)
    for data in (b"", b"garbage"):
        array.write_bytes(data)
        with pytest.raises(InputError, match="disp1_left_0001"):
            frame.load_depth()
    for values in (np.array(["a"]), np.full((8, 12), "a"), np.zeros((0, 12)), np.zeros((8, 12, 3))):
        np.save(array, values)
        with pytest.raises(InputError, match=r"disp1_left_0001.*numbers"):
            frame.load_depth()
    for line in ("nan 100 3 2", "0 100 3 2", "100 -1 3 2"):
        table.write_text(line)
        with pytest.raises(InputError, match=r"intrinsics\.txt.*no usable intrinsics"):
            readers_spring.read_spring(tmp_path)


def test_intrinsics_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "cameras.txt"
    path.write_text("0 PINHOLE 6 4 nan 5 3 2\n")
    with pytest.raises(InputError, match=r"cameras\.txt.*no usable intrinsics"):
        readers_eth3d._cameras(path)
    path.write_text("0 PINHOLE -6 -4 5 5 3 2\n")
    with pytest.raises(InputError, match=r"cameras\.txt.*-6 x -4"):
        readers_eth3d._cameras(path)
    path.write_bytes(np.float32(readers_sintel.TAG).tobytes() + np.full(21, np.nan).tobytes())
    with pytest.raises(InputError, match=r"cameras\.txt.*no usable intrinsics"):
        readers_sintel.read_cam(path)
    for read in (readers_sunrgbd._intrinsics, readers_kitti_selection._intrinsics):
        for text in ("nan 0 1 0 5 1 0 0 1", "5 0 1 0 -5 1 0 0 1", "5 0 inf 0 5 1 0 0 1"):
            path.write_text(text)
            with pytest.raises(InputError, match=r"cameras\.txt.*no usable intrinsics"):
                read(path)


@pytest.mark.parametrize("head", ["scene_name,camera_name,frame_id,", ""])
def test_hypersim_split_table(tmp_path: Path, head: str) -> None:
    values = "ai_001_001,cam_00,first," if head else ""
    (tmp_path / readers_hypersim.SPLIT).write_text(
        f"{head}included_in_public_release,split_partition_name\n{values}True,test\n"
    )
    with pytest.raises(InputError, match=rf"{readers_hypersim.SPLIT}.*lacks"):
        readers_hypersim.open_hypersim(tmp_path)


@pytest.mark.parametrize("options", [5, "A. x", {"A": 1}, True, 2.5])
def test_vsi_options_that_are_no_list(tmp_path: Path, options: Any) -> None:
    row = {
        "id": 1, "dataset": "d", "scene_name": "s", "question_type": "object_rel_distance", "question": "q",
        "options": options, "ground_truth": "A",
    }  # fmt: skip
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"test\.jsonl.*'options' must be a list"):
        vsi_bench.read_questions(tmp_path)


@pytest.mark.parametrize("truth", ["1e999", "0", "-2", "many"])
def test_vsi_numbers_that_cannot_be_true(tmp_path: Path, truth: str) -> None:
    row = {"question_type": "object_counting", "question": "q", "ground_truth": truth}
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"test\.jsonl.*positive number"):
        vsi_bench.read_questions(tmp_path)


def test_libero_records_stay_in_their_folder(tmp_path: Path) -> None:
    path, folder = tmp_path / "episodes.json", tmp_path / "a" / "b"
    for task, episode in (("../../../outside", 0), ("..\\outside", 0), ("open", -1)):
        row = {"suite": "libero_goal", "task": task, "episode": episode, "success": True}
        path.write_text(json.dumps({"episodes": [row]}))
        with pytest.raises(InputError, match=r"episodes\.json.*no task of LIBERO"):
            libero.split_records(path, folder)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["episodes.json"]
