"""MoGe's published layout: the list, the logarithmic depth, the intrinsics, and which layout a benchmark takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from relief3d.core.errors import InputError
from relief3d.eval.protocols.metric.ibims_points import PROTOCOLS
from relief3d.eval.protocols.metric.readers_moge import open_moge, read_log_depth


def write_depth(path: Path, code: np.ndarray, texts: dict[str, str]) -> None:
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    Image.fromarray(code).save(path, pnginfo=info)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    code = np.array([[0, 1, 65534, 65535], [32768, 100, 200, 300], [5, 6, 7, 8]], np.uint16)
    for name in ("office/0001", "office/0000", "0002"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        Image.fromarray(np.full((3, 4, 3), 77, np.uint8)).save(folder / "image.jpg", format="PNG")
        write_depth(folder / "depth.png", code, {"near": "0.5", "far": "8.0"})
        (folder / "meta.json").write_text(
            json.dumps({"intrinsics": [[1.25, 0, 0.5], [0, 1.5, 0.4], [0, 0, 1]]})
        )
    (tmp_path / ".index.txt").write_text("office/0001\noffice/0000\n0002\n")
    return tmp_path


def test_layout(root: Path) -> None:
    frames = open_moge(root)
    assert [(f.name, f.group) for f in frames] == [
        ("office/0001", "office"),
        ("office/0000", "office"),
        ("0002", "0002"),
    ]
    frame = frames[0]
    assert frame.need_K().tolist() == [[5.0, 0, 2.0], [0, 4.5, pytest.approx(1.2)], [0, 0, 1]]
    depth = frame.load_depth().numpy()
    assert (
        depth[0, 0] == depth[0, 3] == 0
        and depth[0, 1] == pytest.approx(0.5)
        and depth[0, 2] == pytest.approx(8.0)
    )
    assert depth[1, 0] == pytest.approx(2.0, rel=1e-4)  # halfway in the logarithm
    assert int(frame.load_valid().sum()) == 10
    sample = PROTOCOLS[0].open(root)[0]
    assert sample.name == "office/0001" and sample.load_truth().need("depth").shape == (1, 480, 640)


def test_unit_and_damage(root: Path) -> None:
    path = root / "0002" / "depth.png"
    write_depth(path, np.full((3, 4), 65534, np.uint16), {"near": "0.5", "far": "8.0", "unit": "0.5"})
    assert float(read_log_depth(path).max()) == pytest.approx(4.0)
    write_depth(path, np.full((3, 4), 65534, np.uint16), {"near": "0.5"})
    with pytest.raises(InputError, match="'near' and 'far'"):
        read_log_depth(path)
    (root / "0002" / "meta.json").write_text("{}")
    with pytest.raises(InputError, match="'intrinsics' is missing"):
        open_moge(root)
    (root / ".index.txt").write_text("../0002\n")
    with pytest.raises(InputError, match="not below"):
        open_moge(root)
    (root / ".index.txt").write_text("0003\n")
    with pytest.raises(InputError, match=r"image\.jpg"):
        open_moge(root)
    (root / ".index.txt").write_text("\n")
    with pytest.raises(InputError, match="lists no pictures"):
        open_moge(root)
