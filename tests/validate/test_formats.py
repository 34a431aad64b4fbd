"""Files we write, judged by foreign programs: the Khronos validator, pycolmap and a JSON schema."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.corpora.known_scene import (
    FISHEYE_LENSES,
    PERSPECTIVE_LENSES,
    RATIONAL_LENS,
    known_scene,
    textured_mesh,
)

from relief3d.core.contract import Mesh
from relief3d.io.colmap import write_colmap_model
from relief3d.io.glb import write_glb
from relief3d.io.transforms_json import write_transforms_json

pytestmark = pytest.mark.validate
HERE = Path(__file__).resolve().parent


def node_modules() -> Path:
    """The folder that ``make validate`` fills; skips with the reason when something is missing."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    text = os.environ.get("RELIEF3D_NODE_MODULES", "")
    if not text or not (Path(text) / "gltf-validator").is_dir():
        pytest.skip("npm package gltf-validator not found: run 'make validate' (RELIEF3D_NODE_MODULES)")
    return Path(text).resolve()


def validate(files: list[Path]) -> dict[str, dict[str, Any]]:
    command = ["node", str(HERE / "gltf_validate.cjs"), str(node_modules()), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["files"])


def meshes() -> dict[str, tuple[Mesh, dict[str, Any]]]:
    known = known_scene().mesh
    assert known is not None
    generator = torch.Generator().manual_seed(0)
    bare = Mesh(known.vertices, known.faces)
    triangle = Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]))
    many = torch.rand(70_000, 3, generator=generator)
    large = Mesh(
        many, torch.randint(0, 70_000, (140_000, 3), generator=generator), (many * 255).to(torch.uint8)
    )
    weak = torch.zeros_like(known.vertices)
    weak[3] = float("nan")
    return {
        "bare": (bare, {}),
        "coloured, normals": (known, {"up": "-y"}),
        "up y": (known, {"up": "y"}),
        "up z": (known, {"up": "z"}),
        "up -x": (known, {"up": "-x"}),
        "one triangle": (triangle, {}),
        "degenerate faces": (Mesh(torch.eye(3), torch.tensor([[0, 1, 2], [0, 0, 0], [1, 1, 2]])), {}),
        "flat": (Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])), {}),
        "huge numbers": (Mesh(torch.eye(3) * 3e38, torch.tensor([[0, 1, 2]])), {}),
        "weak normals": (Mesh(known.vertices, known.faces, normals=weak), {}),
        "70 000 vertices": (large, {}),
        "texture jpeg": (textured_mesh(), {"texture_format": "jpeg"}),
        "texture png": (textured_mesh(), {"texture_format": "png", "up": "z"}),
        "texture and normals": (
            Mesh(**{**vars(textured_mesh()), "normals": textured_mesh().vertices + 1.0}),
            {"texture_format": "png"},
        ),
        "name": (triangle, {"name": "Wohnküche 部屋 🛋"}),
    }


def test_khronos_validator_finds_no_error(tmp_path: Path) -> None:
    cases = meshes()
    files = [
        write_glb(tmp_path / f"{i}.glb", mesh, **options) for i, (mesh, options) in enumerate(cases.values())
    ]
    reports = validate(files)
    for (case, _), file in zip(cases.items(), files):
        report = reports[str(file)]
        worst = [m for m in report["messages"] if m["severity"] <= 1]
        assert report["numErrors"] == 0 and report["numWarnings"] == 0, f"{case}: {worst}"
    print(f"gltf-validator: {len(files)} files, 0 errors, 0 warnings")


def test_khronos_validator_would_find_one(tmp_path: Path) -> None:
    path = write_glb(tmp_path / "m.glb", textured_mesh())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert validate([path])[str(path)]["numErrors"] > 0


def test_pycolmap_opens_models_with_the_error_unchanged(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed (extra sfm)")
    scene = known_scene((*PERSPECTIVE_LENSES, RATIONAL_LENS, *FISHEYE_LENSES))
    generator = np.random.default_rng(5)
    sparse = scene.sparse
    assert sparse is not None
    for trial in range(20):
        noise = torch.from_numpy(generator.normal(0, 0.1 * trial, sparse.obs_xy.shape))
        noisy = type(sparse)(**{**vars(sparse), "obs_xy": sparse.obs_xy + noise})
        folder = write_colmap_model(
            scene.replace(sparse=noisy), tmp_path / f"{trial}/0", binary=trial % 2 == 0
        )
        model = pycolmap.Reconstruction(str(folder))
        model.update_point_3d_errors()
        assert model.num_reg_images() == len(scene)
        assert abs(model.compute_mean_reprojection_error() - float(noise.norm(dim=1).mean())) < 1e-6
    print("pycolmap: 20 of 20 models opened, reprojection error within 1e-6 px")


def test_transforms_follow_the_schema(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed (extra dev)")
    schema = json.loads((HERE / "transforms.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for index, lenses in enumerate((PERSPECTIVE_LENSES, FISHEYE_LENSES, (None,), PERSPECTIVE_LENSES[1:2])):
        path = write_transforms_json(
            known_scene(lenses),
            tmp_path / str(index) / "transforms.json",
            ply_file_path="points.ply",
            depth={"images/view_0.png": "depth/0.png"},
            masks={"images/view_0.png": "masks/0.png"},
        )
        document = json.loads(path.read_text())
        assert list(validator.iter_errors(document)) == []
        for damage in ("frames", "pose", "intrinsics", "type"):
            broken = copy.deepcopy(document)
            if damage == "frames":
                broken["frames"] = []
            elif damage == "pose":
                broken["frames"][0]["transform_matrix"].pop()
            elif damage == "intrinsics":
                (broken if "fl_y" in broken else broken["frames"][0]).pop("fl_y")
            else:
                broken["frames"][0]["file_path"] = 3
            assert list(validator.iter_errors(broken)), damage
