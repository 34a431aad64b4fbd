"""Error by number of prompt points: Hypersim's two layouts, numbers of points, times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer
from relief3d.eval.protocols.prompted import readers_hypersim as hypersim
from relief3d.eval.protocols.registry import find_protocol


def pictures(root: Path, size: tuple[int, int] = (48, 64)) -> None:
    rng = np.random.default_rng(0)
    for scene, name in (
        ("ai_001_010", "cam_00_fr0000"),
        ("ai_001_010", "cam_00_fr0002"),
        ("ai_002_001", "cam_01_fr0000"),
    ):
        folder = root / "test" / scene
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / f"rgb_{name}.png")
        Image.fromarray(rng.integers(500, 60000, size).astype(np.uint16)).save(
            folder / f"depth_plane_{name}.png"
        )


def test_pictures_made_for_training(tmp_path: Path) -> None:
    pictures(tmp_path)
    frames = hypersim.open_hypersim(tmp_path)
    assert [f.name for f in frames] == [
        "ai_001_010/cam_00_fr0000", "ai_001_010/cam_00_fr0002", "ai_002_001/cam_01_fr0000"
    ]  # fmt: skip
    assert [f.group for f in frames] == ["ai_001_010", "ai_001_010", "ai_002_001"]
    assert frames[0].need_K()[0, 0] == 886.81 and frames[0].need_K()[0, 2] == 512
    assert float(frames[0].load_depth().min()) >= 0.5 and float(frames[0].load_depth().max()) <= 60
    (tmp_path / "test/ai_002_001/depth_plane_cam_01_fr0000.png").unlink()
    with pytest.raises(InputError, match="depth map is missing"):
        hypersim.open_hypersim(tmp_path)


SPLIT = """scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name
ai_001_010,cam_00,0,True,,test
ai_001_010,cam_00,1,False,excluded,test
ai_003_001,cam_00,0,True,,train
"""


def test_raw_release(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / hypersim.SPLIT).write_text(SPLIT)
    images = tmp_path / "ai_001_010" / "images"
    with pytest.raises(InputError, match=r"frame\.0000\.tonemap\.jpg"):
        hypersim.open_hypersim(tmp_path)
    for part in ("scene_cam_00_final_preview", "scene_cam_00_geometry_hdf5"):
        (images / part).mkdir(parents=True)
    Image.fromarray(np.zeros((768, 1024, 3), np.uint8)).save(
        images / "scene_cam_00_final_preview" / "frame.0000.tonemap.jpg"
    )
    length = np.full((768, 1024), 4.0, np.float32)
    length[0, 0] = np.nan
    with h5py.File(images / "scene_cam_00_geometry_hdf5" / "frame.0000.depth_meters.hdf5", "w") as file:
        file["dataset"] = length
    frames = hypersim.open_hypersim(tmp_path)
    assert [f.name for f in frames] == ["ai_001_010/cam_00_fr0000"]
    depth = frames[0].load_depth()
    # The length of the ray is turned into z: 4 m at a pixel's direction.
    x, y = (700 + 0.5 - 512) / 886.81, (100 + 0.5 - 384) / 886.81
    assert float(depth[100, 700]) == pytest.approx(4 / np.sqrt(1 + x * x + y * y), rel=1e-5)
    assert float(depth[0, 0]) == 0


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not look like Hypersim"):
        hypersim.open_hypersim(tmp_path)
    (tmp_path / hypersim.SPLIT).write_text(SPLIT.replace(",test", ",val"))
    with pytest.raises(InputError, match="no public test picture"):
        hypersim.open_hypersim(tmp_path)
    with pytest.raises(InputError, match="1024 x 768"):
        hypersim.plane_depth(torch.ones(4, 4))


def test_numbers_of_points_and_times(tmp_path: Path) -> None:
    pictures(tmp_path, (40, 50))
    protocol = find_protocol("prompt_density")
    samples = protocol.open(tmp_path)
    assert len(samples) == 3 * 8
    counts = [int((s.load_query().tensors["prompt"] > 0).sum()) for s in samples[:8]]
    assert counts == [500, 1000, 2000, 2000, 2000, 2000, 2000, 2000]  # never more than there are pixels
    query, truth = samples[1].load_query(), samples[1].load_truth()
    answer = Answer({"depth": 1.1 * truth.need("depth")}, facts={"seconds": [0.25, 0.24, 0.9]})
    summary = protocol.summarise([protocol.measure(query, truth, answer)])
    assert summary["absrel_1000"] == pytest.approx(0.1, rel=1e-5)  # a ratio, not percent
    assert summary["ms_1000"] == pytest.approx(250)
    assert np.isnan(summary["absrel_500"])


def test_published_row() -> None:
    (row,) = find_protocol("prompt_density").published()
    assert row.values["absrel_500"] == 0.043 and row.values["absrel_64000"] == 0.031
    assert row.values["ms_500"] == 224 and row.values["ms_64000"] == 308
