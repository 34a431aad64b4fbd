"""Random networks of the smallest size through the whole command: numbers mean nothing, every file is sound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from corpora.commands import photo, run
from relief3d import load_scene, reconstruct
from relief3d.core.errors import InputError
from relief3d.io.cameras_json import read_cameras_json
from relief3d.io.colmap import read_colmap_model
from relief3d.io.depth import read_depth
from relief3d.io.transforms_json import read_transforms_json


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(4):
        photo(folder / f"p{i}.png", i, (130, 90))
    return folder


@pytest.mark.parametrize("name", ["vggt", "pi3", "pi3x", "reliev3r"])
def test_random_networks_pass_the_whole_chain(name: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(
        "reconstruct", photos, "-o", out, "--model", name, "--model-size", "nano", "--untrained", "--side", "56",
        "--mesh-faces", "2000", "--voxel-size", "0.05", "-q",
    ) == 0  # fmt: skip
    info = json.loads((out / "scene.json").read_text())["info"]
    assert info["network"] == {"name": f"UNTRAINED {name} nano", "untrained": True}
    assert info["headline"].startswith("UNTRAINED") and "mean nothing" in info["headline"]
    assert info["warnings"][0].startswith("UNTRAINED") and not info["metric"]
    assert "<title>UNTRAINED" in (out / "report.html").read_text()
    colmap, nerf = read_colmap_model(out / "sparse" / "0"), read_transforms_json(out / "transforms.json")
    maps = read_cameras_json(out / "depth" / "cameras.json", require_images=False)
    assert len(colmap.views) == len(nerf.views) == len(maps.views) == info["registered"] == 4
    for view in (*colmap.views, *maps.views):
        assert (view.camera.width, view.camera.height) == (130, 90)
    for view in maps.views:
        depth = read_depth(out / "depth" / f"{view.name}.npz", scale=1.0, metric=False, size=(130, 90))
        assert bool(torch.isfinite(depth.values).all()) and bool((depth.values[depth.valid] > 0).all())
        assert (
            depth.confidence is not None
            and 0 <= float(depth.confidence.min()) <= float(depth.confidence.max()) <= 1
        )
    scene = load_scene(out)
    assert scene.points is not None and bool(torch.isfinite(scene.points.xyz).all())
    assert (out / "splats.ply").is_file()


def test_the_default_uses_no_network(photos: Path, tmp_path: Path) -> None:
    from relief3d.pipelines.reconstruct import ReconstructConfig

    assert not ReconstructConfig().multiview.active
    with pytest.raises(InputError, match="no option 'modell'"):
        reconstruct(photos, tmp_path / "out", modell="vggt")


def test_long_sequences_go_through_in_chunks(photos: Path, tmp_path: Path) -> None:
    scene = reconstruct(
        photos, tmp_path / "out", model="pi3", model_size="nano", untrained=True, side=56, chunk=2, overlap=1,
        loops=False, mesh=False, splats=False,
    )  # fmt: skip
    facts = scene.info["details"]["cameras"]
    assert facts["passes"] == 3 and facts["chunk"] == 2 and len(scene.posed) == 4
    assert any("overlapping chunks" in w for w in scene.info["warnings"])
