"""A tiny copy of ScanNet++'s DSLR layout, with true depth rendered from the scan."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from corpora.video_layouts import byte
from relief3d.core.contract import Camera, Mesh, Scene, View
from relief3d.core.errors import InputError
from relief3d.eval.protocols.views.nview_rules import choose_contiguous
from relief3d.eval.protocols.views.scannetpp import PROTOCOLS, RENDERED, SCAN, SPLIT
from relief3d.geometry.projection import intrinsics
from relief3d.io.colmap import write_colmap_model
from relief3d.io.ply import write_ply

(PROTOCOL,) = PROTOCOLS
WIDTH, HEIGHT = 12, 8
PLANE_Z = 3.0


def pose(index: int) -> torch.Tensor:
    out = torch.eye(4, dtype=torch.float64)
    out[:3, 3] = torch.tensor([0.1 * index, 0.0, 0.2 * index])
    return out


def write_scene(data, name: str, frames: int = 10, scan: bool = True):
    folder = data / name
    (folder / "dslr" / "nerfstudio").mkdir(parents=True)
    (folder / "dslr" / "resized_undistorted_images").mkdir()
    names = [f"DSC{i:05d}.JPG" for i in range(1, frames + 1)]
    for i, file in enumerate(names, start=1):
        Image.new("RGB", (WIDTH, HEIGHT), (20 * i, 0, 0)).save(
            folder / "dslr" / "resized_undistorted_images" / file
        )
    entries = [{"file_path": n, "transform_matrix": np.eye(4).tolist(), "is_bad": False} for n in names]
    entries.insert(3, {"file_path": "DSC99999.JPG", "transform_matrix": np.eye(4).tolist(), "is_bad": True})
    camera = {
        "fl_x": 10.0,
        "fl_y": 11.0,
        "cx": 6.2,
        "cy": 4.1,
        "w": WIDTH,
        "h": HEIGHT,
        "camera_model": "PINHOLE",
    }
    (folder / "dslr" / "nerfstudio" / "transforms_undistorted.json").write_text(
        json.dumps(camera | {"frames": entries, "test_frames": []})
    )
    # COLMAP's intrinsics are those of the distorted originals: not the ones to use.
    original = Camera(WIDTH, HEIGHT, intrinsics(7.0, 7.0, 6.0, 4.0))
    views = [View(n, original.replace(world_from_cam=pose(i))) for i, n in enumerate(names, start=1)]
    write_colmap_model(Scene(tuple(views)), folder / "dslr" / "colmap", binary=False)
    if scan:
        (folder / "scans").mkdir()
        corners = torch.tensor([[-9.0, -9, PLANE_Z], [9, -9, PLANE_Z], [9, 9, PLANE_Z], [-9, 9, PLANE_Z]])
        write_ply(folder / SCAN, Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]])))
    return folder


def test_frames_cameras_and_rendered_depth(tmp_path):
    write_scene(tmp_path / "data", "0a1b")
    (sample,) = PROTOCOL.open(tmp_path)
    query, truth = sample.load_query(), sample.load_truth().tensors
    start = choose_contiguous(8)("0a1b", 10)[0]
    numbers = [start + 1 + i for i in range(8)]
    assert [v.name for v in query.scene.views] == [
        f"DSC{i:05d}.JPG" for i in numbers
    ]  # the bad frame is left out
    expected = intrinsics(10.0, 11.0, 6.2, 4.1)
    for view, i, world_from_cam, depth in zip(
        query.scene.views, numbers, truth["world_from_cam"], truth["depth"]
    ):
        assert torch.allclose(view.camera.K, expected)
        assert abs(byte(view, 2, 2) - 20 * i) < 5
        assert torch.allclose(world_from_cam, pose(i), atol=1e-9)
        assert torch.allclose(depth, torch.full_like(depth, PLANE_Z - 0.2 * i), atol=1e-5)
    on_plane = truth["world_points"][..., 2]
    assert torch.allclose(on_plane, torch.full_like(on_plane, PLANE_Z), atol=1e-5)


def test_depth_files_replace_rendering(tmp_path):
    folder = write_scene(tmp_path, "0a1b", frames=8, scan=False)
    (folder / RENDERED).mkdir()
    for i in range(1, 9):
        values = np.full((HEIGHT, WIDTH), 1000 + i, dtype=np.uint16)
        values[0] = 0
        Image.fromarray(values).save(folder / RENDERED / f"DSC{i:05d}.png")
    depth = PROTOCOL.open(tmp_path)[0].load_truth().tensors["depth"]
    assert float(depth[2, 4, 4]) == pytest.approx(1.003) and not depth[:, 0].any()


def test_the_split_chooses_scenes(tmp_path):
    for name in ("0a1b", "2c3d", "4e5f"):
        write_scene(tmp_path / "data", name, frames=8)
    assert [s.name for s in PROTOCOL.open(tmp_path)] == ["0a1b", "2c3d", "4e5f"]
    (tmp_path / "splits").mkdir()
    (tmp_path / SPLIT).write_text("4e5f\n0a1b\n")
    assert [s.name for s in PROTOCOL.open(tmp_path)] == ["4e5f", "0a1b"]
    (tmp_path / SPLIT).write_text("4e5f\nffff\n")
    with pytest.raises(InputError, match=r"1 of 2 validation scenes are missing \(the first is ffff\)"):
        PROTOCOL.open(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match=r"does not look like ScanNet\+\+"):
        PROTOCOL.open(tmp_path)
    folder = write_scene(tmp_path, "0a1b", frames=8, scan=False)
    (sample,) = PROTOCOL.open(tmp_path)
    with pytest.raises(InputError, match="laser scan is missing"):
        sample.load_truth()
    (folder / "dslr" / "resized_undistorted_images" / "DSC00003.JPG").unlink()
    with pytest.raises(InputError, match="missing"):
        sample.load_query()
    file = folder / "dslr" / "nerfstudio" / "transforms_undistorted.json"
    file.write_text(file.read_text().replace("DSC00004", "DSC00044"))
    with pytest.raises(InputError, match=r"no picture DSC00044\.JPG"):
        PROTOCOL.open(tmp_path)[0].load_truth()
    file.write_text(file.read_text().replace('"fl_x": 10.0', '"fl_x": 0.0'))
    with pytest.raises(InputError, match="'fl_x'"):
        PROTOCOL.open(tmp_path)


def test_published_rows_and_columns():
    rows = {r.method: r.values for r in PROTOCOL.published()}
    assert rows["AnyCam"] == {
        "pm_rel": 0.438,
        "pm_tau": 0.448,
        "ate": 0.084,
        "auc_30": 15.376,
        "d_rel": 0.286,
        "d_tau": 0.095,
    }
    assert len(rows) == 4 and "scale_rel" in {c.key for c in PROTOCOL.columns}
