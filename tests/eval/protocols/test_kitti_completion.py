"""KITTI depth completion: the public selection, intrinsics, range; the scaling row is the same measurement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer
from relief3d.eval.protocols.prompted.readers_kitti_selection import open_kitti_selection
from relief3d.eval.protocols.registry import find_protocol

NAMES = ("2011_09_26_drive_0002_sync", "2011_09_26_drive_0005_sync")
SIZE = (32, 96)


def depth_values() -> np.ndarray:
    rng = np.random.default_rng(0)
    depth = rng.uniform(3, 60, SIZE)
    depth[rng.random(SIZE) < 0.5] = 0
    depth[0, 0], depth[0, 1] = 80.0, 82.0
    return np.round(depth * 256).astype(np.uint16)


def selection(root: Path) -> Path:
    folder = root / "depth_selection" / "val_selection_cropped"
    for part in ("image", "groundtruth_depth", "intrinsics"):
        (folder / part).mkdir(parents=True)
    for name in NAMES:
        Image.fromarray(np.full((*SIZE, 3), 77, np.uint8)).save(
            folder / "image" / f"{name}_image_0000000005_image_02.png"
        )
        Image.fromarray(depth_values()).save(
            folder / "groundtruth_depth" / f"{name}_groundtruth_depth_0000000005_image_02.png"
        )
        (folder / "intrinsics" / f"{name}_image_0000000005_image_02.txt").write_text(
            "700 0 47.5 0 710 15.5 0 0 1 "
        )
    return root


def test_reader(tmp_path: Path) -> None:
    frames = open_kitti_selection(selection(tmp_path))
    assert [f.group for f in frames] == list(NAMES)
    assert frames[0].name == f"{NAMES[0]}/0000000005_image_02"
    np.testing.assert_allclose(frames[0].load_depth().numpy(), depth_values() / 256, rtol=1e-6)
    assert frames[0].need_K().tolist() == [[700, 0, 48], [0, 710, 16], [0, 0, 1]]
    assert torch.equal(frames[0].load_valid(), frames[0].load_depth() > 0)
    # The folder of the selection itself may be given too.
    assert len(open_kitti_selection(tmp_path / "depth_selection")) == 2
    assert len(open_kitti_selection(tmp_path / "depth_selection" / "val_selection_cropped")) == 2


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not look like the validation selection"):
        open_kitti_selection(tmp_path)
    folder = selection(tmp_path) / "depth_selection" / "val_selection_cropped"
    numbers = folder / "intrinsics" / f"{NAMES[0]}_image_0000000005_image_02.txt"
    numbers.write_text("1 2 3")
    with pytest.raises(InputError, match="holds 3 numbers"):
        open_kitti_selection(tmp_path)
    numbers.write_text("a b c")
    with pytest.raises(InputError, match="numbers only"):
        open_kitti_selection(tmp_path)
    (folder / "groundtruth_depth" / f"{NAMES[0]}_groundtruth_depth_0000000005_image_02.png").unlink()
    with pytest.raises(InputError, match="depth map is missing"):
        open_kitti_selection(tmp_path)


def test_eighty_metres_count_and_more_does_not(tmp_path: Path) -> None:
    truth = find_protocol("kitti_completion").open(selection(tmp_path))[0].load_truth()
    assert truth.need("valid")[0, 0, :2].tolist() == [True, False]


def test_super_resolution_prompt_lies_on_the_grid_where_truth_is_known(tmp_path: Path) -> None:
    sample = find_protocol("kitti_completion").open(selection(tmp_path))[0]
    assert sample.name.endswith("/8x")
    prompt = sample.load_query().tensors["prompt"][0]
    rows, cols = torch.nonzero(prompt, as_tuple=True)
    assert set((rows % 8).tolist()) == {0} and set((cols % 8).tolist()) == {0}
    known = torch.from_numpy(depth_values() > 0)
    assert bool(known[rows, cols].all()) and len(rows) == int(known[::8, ::8].sum())


def test_scaling_measures_the_8x_column(tmp_path: Path) -> None:
    root = selection(tmp_path)
    whole, scaling = find_protocol("kitti_completion"), find_protocol("kitti_scaling")
    first, same = whole.open(root)[0], scaling.open(root)[0]
    assert first.name == same.name and len(scaling.open(root)) == 2
    guess = Answer({"depth": torch.full((1, *SIZE), 20.0)})
    a = whole.measure(first.load_query(), first.load_truth(), guess)
    b = scaling.measure(same.load_query(), same.load_truth(), guess)
    assert a.values["8x"] == b.values["8x"] > 0
    assert [r.values["8x"] for r in scaling.published()] == [5.22, 4.25, 3.98, 3.02, 2.63, 2.34]


def test_published_rows() -> None:
    rows = {r.method: r.values for r in find_protocol("kitti_completion").published()}
    assert rows["DepthLab"] == {"8x": 17.17, "16x": 22.90, "lidar": 37.17, "extreme": 40.29}
    assert find_protocol("kitti_completion").columns[2].label == "LiDAR-64"
