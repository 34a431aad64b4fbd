"""NYU Depth v2: both public extractions, intrinsics, range, published rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer
from relief3d.eval.protocols.prompted.readers_nyu import open_nyu
from relief3d.eval.protocols.registry import find_protocol

DEPTH = np.full((480, 640), 2500, np.uint16)
DEPTH[:, :40] = 0
DEPTH[:, 600:] = 12000


def picture(path: Path, size: tuple[int, int] = (480, 640)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 120, np.uint8)).save(path)


def depth_map(path: Path) -> None:
    Image.fromarray(DEPTH).save(path)


def scenes(root: Path) -> Path:
    for scene, number in (("kitchen", "00045"), ("kitchen", "00046"), ("bathroom", "00507")):
        folder = root / "official_splits" / "test" / scene
        picture(folder / f"rgb_{number}.jpg")
        depth_map(folder / f"sync_depth_{number}.png")
    return root


def test_official_split_by_scene(tmp_path: Path) -> None:
    frames = open_nyu(scenes(tmp_path))
    assert [f.name for f in frames] == ["bathroom/00507", "kitchen/00045", "kitchen/00046"]
    assert [f.group for f in frames] == ["bathroom", "kitchen", "kitchen"]
    depth, K = frames[0].load_depth(), frames[0].need_K()
    assert float(depth[0, 100]) == pytest.approx(2.5) and float(depth[0, 0]) == 0
    assert torch.equal(frames[0].load_valid(), depth > 0)
    assert K[0, 2] == pytest.approx(326.08245) and K[1, 2] == pytest.approx(254.23617)
    assert frames[0].load_image().shape == (3, 480, 640)


def test_flat_extraction(tmp_path: Path) -> None:
    for number in ("00000", "00001"):
        picture(tmp_path / "nyu2_test" / f"{number}_colors.png")
        depth_map(tmp_path / "nyu2_test" / f"{number}_depth.png")
    assert [(f.name, f.group) for f in open_nyu(tmp_path)] == [("00000", "00000"), ("00001", "00001")]


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not look like the test set of NYU"):
        open_nyu(tmp_path)
    root = scenes(tmp_path)
    (root / "official_splits/test/kitchen/sync_depth_00046.png").unlink()
    with pytest.raises(InputError, match=r"sync_depth_00046\.png.*missing"):
        open_nyu(root)
    depth_map(root / "official_splits/test/kitchen/sync_depth_00046.png")
    picture(root / "official_splits/test/bathroom/rgb_00507.jpg", (100, 90))
    with pytest.raises(InputError, match="has 90 x 100 pixels"):
        open_nyu(root)[0].load_image()


def test_depth_beyond_ten_metres_does_not_count_but_prompts(tmp_path: Path) -> None:
    protocol = find_protocol("nyu_completion")
    sample = protocol.open(scenes(tmp_path))[2]
    assert sample.name == "bathroom/00507/lidar"
    query, truth = sample.load_query(), sample.load_truth()
    assert float(query.tensors["prompt"].max()) == pytest.approx(12.0)
    assert int(truth.need("valid").sum()) == 480 * 560
    guess = truth.need("depth").clone()
    guess[..., 600:] = 1.0  # wrong only where it does not count
    assert protocol.measure(query, truth, Answer({"depth": guess})).values["lidar"] == 0.0


def test_published_rows() -> None:
    rows = {r.method: r.values for r in find_protocol("nyu_completion").published()}
    assert len(rows) == 9
    assert rows["Ours-Pretrain"] == {"8x": 1.53, "16x": 1.86, "lidar": 1.70, "extreme": 2.08}
    assert rows["PromptDA"]["lidar"] == 17.59
