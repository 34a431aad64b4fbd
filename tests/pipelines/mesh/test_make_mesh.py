"""The whole of ``make_mesh`` on depth whose submaps have different scales, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from corpora.walk import COUNT, SCALES, Walk, wall_distance, write_walk
from relief3d.core.contract import Mesh, Scene, View
from relief3d.core.errors import InputError
from relief3d.io.cameras_json import read_cameras_json, write_cameras_json
from relief3d.io.depth import read_depth
from relief3d.io.glb import read_glb
from relief3d.io.ply import read_ply
from relief3d.pipelines.mesh import run as mesh_run
from relief3d.pipelines.mesh.config import MeshConfig
from relief3d.pipelines.mesh.run import make_mesh


def config(walk: Walk, **changes: object) -> MeshConfig:
    plain = MeshConfig(
        depth_files=walk.maps, submap=4, overlap=2, texture="vertex", mesh_faces=0, voxel_size=0.05, width=160
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    return write_walk(tmp_path_factory.mktemp("walk"))


@pytest.fixture(scope="module")
def made(walk: Walk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    make_mesh(walk.folder, out, config(walk))
    return out


def true_share(walk: Walk, out: Path) -> float:
    """Share of all pixels whose refined depth is within 2 % of the truth."""
    shares = []
    for k, truth in enumerate(walk.depths):
        found = read_depth(out / "depth_refined" / f"{k:03d}.png.npz", scale=1.0).values
        shares.append(float(((found / truth - 1).abs() < 0.02).float().mean()))
    return sum(shares) / len(shares)


def test_scales_are_found_and_the_surface_is_the_truth(walk: Walk, made: Path, tmp_path: Path) -> None:
    scale = json.loads((made / "scale.json").read_text())
    found = torch.tensor([m["log_s"] for m in scale["submaps"]])
    truth = -torch.tensor(SCALES[: len(found)]).log()
    assert len(found) == 4 and scale["units"] == "metric"
    assert float((found - truth).abs().max()) < 0.02
    aligned = read_ply(made / "mesh.ply")
    assert isinstance(aligned, Mesh)
    assert float((wall_distance(aligned) < 0.05).float().mean()) > 0.95

    assert true_share(walk, made) > 0.9

    plain = make_mesh(walk.folder, tmp_path / "plain", config(walk, align=False))
    assert float((wall_distance(plain.mesh) < 0.05).float().mean()) < 0.8
    assert true_share(walk, tmp_path / "plain") < 0.3


def test_outputs(walk: Walk, made: Path) -> None:
    assert len(list((made / "depth_refined").glob("*.npz"))) == COUNT
    assert read_glb(made / "mesh.glb").rgb is not None
    report = json.loads((made / "report.json").read_text())
    assert report["keyframes"] == COUNT and report["submaps"] == 4 and report["units"] == "metric"
    assert report["depth_source"] == "files" and report["mesh"]["faces"] > 100
    assert sum(report["keyframe_spacing"]["counts"]) == COUNT - 1
    page = (made / "report.html").read_text()
    for part in ("Scale graph", "Weak spots", "Aligned against refined depth"):
        assert part in page
    assert json.loads((made / "keyframes.json").read_text())["frames"][3]["name"] == "003.png"
    assert not (made / ".relief3d" / "work").exists()


def test_an_interrupted_run_goes_on(
    walk: Walk, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mesh_run, "fuse_aligned", stop)
        with pytest.raises(KeyboardInterrupt):
            make_mesh(walk.folder, tmp_path / "out", config(walk))
    assert (tmp_path / "out" / "scale.json").is_file() and not (tmp_path / "out" / "mesh.ply").exists()
    # Depth is not asked for again, nor are keypoints found again.
    monkeypatch.setattr("relief3d.pipelines.mesh.depth_sources.FileSource.__call__", stop)
    monkeypatch.setattr("relief3d.pipelines.mesh.matching.extract_sift", stop)
    make_mesh(walk.folder, tmp_path / "out", config(walk))
    assert (tmp_path / "out" / "mesh.ply").read_bytes() == (made / "mesh.ply").read_bytes()


def test_another_result_is_not_overwritten(walk: Walk, made: Path, tmp_path: Path) -> None:
    before = (made / "mesh.ply").stat().st_mtime_ns
    make_mesh(walk.folder, made, config(walk))  # complete: nothing to do
    assert (made / "mesh.ply").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="other options"):
        make_mesh(walk.folder, made, config(walk, voxel_size=0.1))
    assert (made / "mesh.ply").stat().st_mtime_ns == before


def test_wrong_convention_is_named_and_nothing_is_left(walk: Walk, tmp_path: Path) -> None:
    scene = read_cameras_json(walk.folder / "cameras.json")
    from relief3d.geometry.conventions import convert_world_from_cam

    def turned(view: View) -> View:
        pose = convert_world_from_cam(view.camera.world_from_cam, "opencv", "opengl")
        return view.replace(camera=view.camera.replace(world_from_cam=pose))

    wrong = Scene(tuple(turned(v) for v in scene.views), metric=True, ordered=True)
    write_cameras_json(wrong, walk.folder / "wrong.json")
    with pytest.raises(InputError, match="OpenGL"):
        make_mesh(walk.folder / "wrong.json", tmp_path / "out", config(walk))
    assert not (tmp_path / "out").exists()


def test_one_picture(walk: Walk, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only one picture"):
        make_mesh(walk.folder / "000.png", tmp_path / "out", MeshConfig())
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written(walk: Walk, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        make_mesh(walk.folder, tmp_path / "file", config(walk))
    with pytest.raises(InputError):
        make_mesh(walk.folder, tmp_path / "file" / "out", config(walk))


def test_missing_depth_map(walk: Walk, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "000.npz").write_bytes((walk.maps / "0" / "000.npz").read_bytes())
    with pytest.raises(InputError, match="9 of 10 keyframes have no depth map"):
        make_mesh(walk.folder, tmp_path / "out", config(walk, depth_files=flat))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quality": "refine"}, "--weights"),
        ({"depth": "model", "depth_files": None}, "--model"),
        ({"depth": "stereo"}, "--depth-files"),
        ({"poses": "ignore", "metres_per_unit": 1.0}, "--poses ignore"),
    ],
)
def test_options_that_contradict(walk: Walk, tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as error:
        make_mesh(walk.folder, tmp_path / "out", config(walk, **changes))
    assert words in str(error.value) and not (tmp_path / "out").exists()


def test_sensor_depth_is_asked_for_without_any(walk: Walk, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sensor depth"):
        make_mesh(walk.folder, tmp_path / "out", MeshConfig(depth="sensor"))
