"""Output folders, complete and not, as the viewer reads them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.viewer.loading import load_output, world_points
from relief3d.viewer.picking import pickable_points, point_on_ray
from report.ball_room import BALL, HALF, RADIUS, room_mesh


@pytest.fixture
def copy(output: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(output, tmp_path / "OUT"))


def test_complete_folder(output: Path) -> None:
    loaded = load_output(output)
    assert loaded.missing == () and loaded.scene.metric
    assert len(loaded.scene.posed) == 3 and len(loaded.depths) == 3
    assert (
        loaded.scene.sparse is not None and loaded.scene.mesh is not None and loaded.scene.points is not None
    )
    assert loaded.scene.points.confidence is not None
    assert loaded.scene.views[0].load_image().shape == (3, 72, 96)


def test_depth_becomes_points_on_the_surface(output: Path) -> None:
    loaded = load_output(output)
    found = loaded.depths["photo_002.jpg"]
    xyz, index = world_points(found.load(), found.camera)
    assert xyz.shape == (int(found.load().valid.sum()), 3) and index.shape[0] == xyz.shape[0]
    to_wall = (HALF - xyz.abs()).abs().min(dim=1).values
    to_ball = ((xyz - BALL).norm(dim=1) - RADIUS).abs()
    assert float(torch.minimum(to_wall, to_ball).max()) < 1e-3


def test_depth_without_its_cameras_file_uses_the_view_cameras(copy: Path) -> None:
    want = load_output(copy).depths["photo_001.jpg"].camera
    (copy / "depth" / "cameras.json").unlink()
    got = load_output(copy).depths["photo_001.jpg"].camera
    assert got.K is not None and want.K is not None and torch.allclose(got.K, want.K, atol=1e-6)


@pytest.mark.parametrize(
    ("gone", "told"),
    [("mesh.ply", "mesh"), ("points.ply", "points.ply"), ("depth", "depth/"), ("scene.json", "scene.json"),
     ("transforms.json", "transforms.json"), ("sparse", "sparse/0")],
)  # fmt: skip
def test_missing_parts_are_named_and_the_rest_is_shown(copy: Path, gone: str, told: str) -> None:
    target = copy / gone
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    loaded = load_output(copy)
    assert any(told in m for m in loaded.missing)
    assert len(loaded.scene.posed) == 3


def test_folder_without_cameras_is_refused(copy: Path) -> None:
    (copy / "transforms.json").unlink()
    shutil.rmtree(copy / "sparse")
    with pytest.raises(InputError, match="neither transforms"):
        load_output(copy)


def test_missing_folder_and_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_output(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="this is a file"):
        load_output(tmp_path / "file")


def test_damaged_mesh_is_an_input_error(copy: Path) -> None:
    data = (copy / "mesh.ply").read_bytes()
    (copy / "mesh.ply").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"mesh\.ply"):
        load_output(copy)


def test_ray_hits_the_nearest_surface(output: Path) -> None:
    xyz = pickable_points(load_output(output).scene)
    # From +x towards the ball's centre: the ball hides the wall behind it.
    origin = BALL + torch.tensor([2.0, 0, 0], dtype=torch.float64)
    hit = point_on_ray(
        room_mesh(80).vertices.double(), origin, torch.tensor([-3.0, 0, 0], dtype=torch.float64)
    )
    assert hit is not None and float((hit - BALL).norm()) == pytest.approx(RADIUS, abs=0.02)
    assert float(hit[0]) > float(BALL[0]) + 0.9 * RADIUS
    assert point_on_ray(xyz, torch.tensor([0.0, 0, 50]).double(), torch.tensor([0.0, 0, 1]).double()) is None
    assert point_on_ray(torch.zeros(0, 3).double(), origin, origin) is None
