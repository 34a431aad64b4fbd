"""ETH3D completion: reads the raw pictures with laser depth; range 0.1 to 200 m."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relief3d.core.errors import InputError
from relief3d.eval.protocols.registry import find_protocol

SIZE = (24, 32)


def scene(root: Path) -> np.ndarray:
    base = root / "courtyard"
    for part in ("images/dslr_images", "dslr_calibration_jpg", "ground_truth_depth/dslr_images"):
        (base / part).mkdir(parents=True)
    Image.fromarray(np.full((*SIZE, 3), 50, np.uint8)).save(base / "images/dslr_images/DSC_0001.JPG")
    depth = np.random.default_rng(0).uniform(0.05, 250, SIZE).astype("<f4")
    depth[0, :4] = np.inf
    depth[1, :4] = (0.1, 0.09, 200.0, 201.0)
    depth.tofile(base / "ground_truth_depth/dslr_images/DSC_0001.JPG")
    (base / "dslr_calibration_jpg/cameras.txt").write_text(
        "0 THIN_PRISM_FISHEYE 32 24 30 30 16 12 0 0 0 0 0 0 0 0\n"
    )
    (base / "dslr_calibration_jpg/images.txt").write_text("1 1 0 0 0 0 0 0 0 dslr_images/DSC_0001.JPG\n\n")
    return depth


def test_samples_and_range(tmp_path: Path) -> None:
    depth = scene(tmp_path)
    samples = find_protocol("eth3d_completion").open(tmp_path)
    assert [s.name.split("/")[-1] for s in samples] == [
        "8x", "16x", "lidar", "extreme", "lidar_8", "lidar_16", "lidar_32"
    ]  # fmt: skip
    truth = samples[0].load_truth()
    low = float(np.float32(0.1)) >= 0.1
    assert truth.need("valid")[0, 1, :4].tolist() == [low, False, True, False]
    assert not bool(truth.need("valid")[0, 0, :4].any())
    prompt = samples[3].load_query().tensors["prompt"][0]
    assert int((prompt > 0).sum()) == 100
    np.testing.assert_array_equal(prompt[prompt > 0].numpy(), depth[(prompt > 0).numpy()])


def test_published_rows_and_errors(tmp_path: Path) -> None:
    rows = {r.method: r.values for r in find_protocol("eth3d_completion").published()}
    assert rows["Ours-Pretrain"] == {"8x": 1.46, "16x": 2.03, "lidar": 0.87, "extreme": 0.84}
    with pytest.raises(InputError, match="has no scene"):
        find_protocol("eth3d_completion").open(tmp_path)
