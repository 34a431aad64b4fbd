"""From a folder of photos to every output, measured against the exact truth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from corpora.e2e_support import CONFIG, VIEWS, Small
from relief3d import load_scene
from relief3d.core.errors import InputError
from relief3d.core.progress import SilentProgress
from relief3d.eval.reference import compare, format_comparison
from relief3d.io.cameras_json import read_cameras_json
from relief3d.io.colmap import read_colmap_model
from relief3d.io.transforms_json import read_transforms_json
from relief3d.pipelines.reconstruct import ReconstructConfig, reconstruct
from relief3d.pipelines.reconstruct import depth as depth_stage


def test_all_outputs_are_there(small: Small) -> None:
    names = {p.name for p in small.out.iterdir()}
    assert {
        "sparse", "transforms.json", "depth", "points.ply", "splats.ply", "mesh.glb", "mesh.ply", "scene.json",
        "report.html",
    } <= names  # fmt: skip
    assert not (small.out / ".relief3d" / "work").exists()
    assert not list(small.out.rglob(".relief3d-*"))


def test_quality_against_the_exact_truth(small: Small) -> None:
    numbers = compare(small.out, small.truth, mesh=small.truth.parent / "mesh.ply", samples=50_000)
    print(format_comparison(numbers))
    assert numbers["cameras"]["registered"] == VIEWS
    assert numbers["cameras"]["auc"]["5"] > 80
    assert numbers["depth"]["mean"]["abs_rel"] < 0.03
    assert numbers["depth"]["mean"]["kept_of_seen_2"] > 0.4
    assert numbers["mesh"]["scores"]["2%"]["fscore"] > 0.6


def test_exports_describe_the_same_cameras_at_the_original_size(small: Small) -> None:
    colmap = {v.name: v.camera for v in read_colmap_model(small.out / "sparse" / "0").views}
    nerf = {v.name: v.camera for v in read_transforms_json(small.out / "transforms.json").views}
    assert set(colmap) == set(nerf) and len(colmap) == VIEWS
    for name, camera in colmap.items():
        assert (camera.width, camera.height) == (320, 240)
        other = nerf[name]
        assert camera.K is not None and other.K is not None
        assert camera.world_from_cam is not None and other.world_from_cam is not None
        assert torch.allclose(camera.K, other.K, atol=1e-6)
        assert torch.allclose(camera.world_from_cam, other.world_from_cam, atol=1e-6)


def test_turned_photos_come_with_upright_copies(small: Small) -> None:
    written = sorted(p.name for p in (small.out / "images").iterdir())
    assert len(written) == VIEWS
    scene = read_transforms_json(small.out / "transforms.json")
    assert all(v.load_image().shape == (3, 240, 320) for v in scene.views)


def test_depth_folder_is_a_scene_of_its_own(small: Small) -> None:
    maps = read_cameras_json(small.out / "depth" / "cameras.json", require_images=False)
    depth = maps.views[0].load_depth()
    assert depth is not None and depth.confidence is not None
    assert depth.values.shape == (maps.views[0].camera.height, maps.views[0].camera.width)
    assert 0 < float(depth.confidence[depth.valid].mean()) <= 1


def test_scene_json_tells_what_was_done(small: Small) -> None:
    document = json.loads((small.out / "scene.json").read_text())
    info = document["info"]
    assert info["registered"] == VIEWS and info["seed"] == 0 and info["seconds"] > 0
    assert set(info["stages"]) == {"cameras", "depth", "mesh"}
    assert info["versions"]["torch"]
    assert info["peak_memory_bytes"] > 1e8


def test_load_scene_returns_everything(small: Small) -> None:
    scene = load_scene(small.out)
    assert len(scene.posed) == VIEWS
    assert scene.sparse is not None and scene.points is not None and scene.mesh is not None
    assert len(scene.mesh.faces) == scene.info["mesh"]["faces"]


def test_a_second_run_has_nothing_to_do(small: Small) -> None:
    before = {p: p.stat().st_mtime_ns for p in small.out.rglob("*") if p.is_file()}
    again = reconstruct(small.photos, small.out, config=CONFIG)
    assert {p: p.stat().st_mtime_ns for p in small.out.rglob("*") if p.is_file()} == before
    assert again.info["registered"] == VIEWS


def test_other_options_need_overwrite(small: Small) -> None:
    with pytest.raises(InputError, match="overwrite"):
        reconstruct(small.photos, small.out, quality="default")


def test_interrupted_runs_continue_where_they_stopped(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    real = depth_stage.solve_depth

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(depth_stage, "solve_depth", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(small.photos, out, config=CONFIG)
    cameras = (out / "sparse" / "0" / "images.bin").stat().st_mtime_ns
    assert not (out / "scene.json").exists()
    monkeypatch.setattr(depth_stage, "solve_depth", real)
    reconstruct(small.photos, out, config=CONFIG)
    assert (out / "sparse" / "0" / "images.bin").stat().st_mtime_ns == cameras, (
        "cameras were not solved again"
    )
    # Several solver threads add up in another order each time, so results agree closely, not to the bit.
    again = load_scene(out)
    for first, second in zip(small.scene.views, again.views):
        assert first.camera.world_from_cam is not None and second.camera.world_from_cam is not None
        assert torch.allclose(first.camera.world_from_cam, second.camera.world_from_cam, atol=1e-3)
    assert again.mesh is not None and small.scene.mesh is not None
    assert len(again.mesh.faces) == pytest.approx(len(small.scene.mesh.faces), rel=0.02)


def test_known_cameras_and_depth_give_metres(small: Small, capture: Path, tmp_path: Path) -> None:
    folder = tmp_path / "posed"
    shutil.copytree(small.photos, folder)
    scene = reconstruct(
        folder,
        tmp_path / "out",
        config=ReconstructConfig(
            cameras=small.truth, depth=None, quality="fast", depth_width=192, splats=False
        ),
    )
    assert scene.metric
    numbers = compare(tmp_path / "out", small.truth, samples=20_000)
    assert numbers["alignment"]["kind"] == "none"
    assert numbers["depth"]["mean"]["abs_rel"] < 0.02


def test_given_depth_makes_own_cameras_metric(small: Small, capture: Path, tmp_path: Path) -> None:
    depth = tmp_path / "depth"
    depth.mkdir()
    for path in small.truth.parent.glob("*.npz"):
        shutil.copy(path, depth / path.name)
    scene = reconstruct(
        small.photos,
        tmp_path / "out",
        config=ReconstructConfig(depth=depth, depth_width=192, splats=False),
        progress=SilentProgress(),
    )
    assert scene.metric
    truth = read_cameras_json(small.truth, require_images=False)
    span = (truth.views[0].camera.world_from_cam[:3, 3] - truth.views[-1].camera.world_from_cam[:3, 3]).norm()  # type: ignore[index]
    mine = {v.name: v.camera.world_from_cam for v in scene.views}
    found = (mine["room_000.jpg"][:3, 3] - mine[f"room_{VIEWS - 1:03d}.jpg"][:3, 3]).norm()  # type: ignore[index]
    assert abs(float(found / span) - 1) < 0.02
