from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.corpora.known_scene import FISHEYE_LENSES, PERSPECTIVE_LENSES, known_scene

from relief3d.core.contract import Camera, View
from relief3d.core.errors import InputError
from relief3d.io.json_file import to_jsonable, write_json
from relief3d.io.scene_json import read_scene_json, write_scene_json


def test_round_trip(tmp_path: Path) -> None:
    scene = known_scene((*PERSPECTIVE_LENSES, *FISHEYE_LENSES))
    scene = scene.replace(views=(*scene.views, View("lost.jpg", Camera(64, 48, K_source="guess"))))
    info = {"seed": 0, "seconds": {"cameras": 1.5}, "best": float("nan"), "peak": float("inf")}
    path = write_scene_json(tmp_path, scene, files={"mesh": "mesh.glb"}, info=info)
    summary = read_scene_json(tmp_path)
    assert path == tmp_path / "scene.json" and summary.scene.metric and summary.scene.ordered
    assert summary.files == {"mesh": "mesh.glb"}
    assert summary.counts["views"] == 7 and summary.counts["registered"] == 6
    assert summary.counts["points"] == 100 and summary.counts["triangles"] == 100
    assert summary.scene.info == {"seed": 0, "seconds": {"cameras": 1.5}, "best": None, "peak": None}
    for before, after in zip(scene.views, summary.scene.views):
        assert after.name == before.name and after.camera.K_source == before.camera.K_source
        assert after.camera.distortion == before.camera.distortion
        assert (after.camera.K is None) == (before.camera.K is None)
        if before.camera.K is not None and before.camera.world_from_cam is not None:
            assert after.camera.K is not None and torch.equal(after.camera.K, before.camera.K)
            assert after.camera.world_from_cam is not None
            assert torch.allclose(after.camera.world_from_cam, before.camera.world_from_cam, atol=1e-12)
    low, high = summary.document["bounds"]
    assert scene.mesh is not None and low == scene.mesh.vertices.amin(0).tolist() and low < high


def test_any_json_parser_reads_it(tmp_path: Path) -> None:
    path = write_scene_json(tmp_path, known_scene(), info={"x": [float("nan"), float("-inf"), 1.0]})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    document = json.loads(path.read_text(), parse_constant=refuse)
    assert document["info"]["x"] == [None, None, 1.0]


@dataclass
class Settings:
    folder: Path
    level: int


def test_json_forms() -> None:
    value = {
        "a": np.float32(0.5),
        "b": np.arange(3),
        "c": torch.eye(2),
        3: Settings(Path("x") / "y", 2),
        "d": {"z", "a"},
        "e": (True, None, "s"),
        "f": np.float64("nan"),
    }
    assert to_jsonable(value) == {
        "a": 0.5, "b": [0, 1, 2], "c": [[1, 0], [0, 1]], "3": {"folder": "x/y", "level": 2}, "d": ["a", "z"],
        "e": [True, None, "s"], "f": None,
    }  # fmt: skip
    with pytest.raises(TypeError):
        to_jsonable(object())


def test_matrix_rows_stay_on_one_line(tmp_path: Path) -> None:
    path = write_json(tmp_path / "x.json", {"K": torch.eye(2), "empty": [], "none": {}})
    assert (
        path.read_text()
        == '{\n  "K": [\n    [1.0, 0.0],\n    [0.0, 1.0]\n  ],\n  "empty": [],\n  "none": {}\n}\n'
    )


def damaged(change: dict[str, Any], view: dict[str, Any] | None = None) -> bytes:
    document: dict[str, Any] = {
        "format": "relief3d-scene", "version": 1, "views": [{"name": "a", "width": 4, "height": 3}],
        "files": {}, "counts": {}, "info": {},
    }  # fmt: skip
    document |= change
    if view is not None:
        document["views"][0] |= view
    return json.dumps(document).encode()


BAD = {
    "empty": b"",
    "garbage": b"\x00\x01\x02",
    "cut": damaged({})[:60],
    "other file": b'{"frames": []}',
    "future": damaged({"version": 99}),
    "no version": damaged({"version": None}),
    "views missing": damaged({"views": None}),
    "files list": damaged({"files": []}),
    "files numbers": damaged({"files": {"mesh": 3}}),
    "info missing": damaged({"info": None}),
    "no size": damaged({}, {"width": None}),
    "bad K": damaged({}, {"K": [[0, 0, 0], [0, 0, 0], [0, 0, 0]]}),
    "bad pose": damaged({}, {"world_from_cam": [[2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}),
    "bad lens": damaged({}, {"distortion": {"model": "opencv", "params": [1]}}),
    "bad source": damaged({}, {"K_source": "magic"}),
    "name twice": damaged({"views": [{"name": "a", "width": 4, "height": 3}] * 2}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(tmp_path: Path, case: str) -> None:
    path = tmp_path / "scene.json"
    path.write_bytes(BAD[case])
    with pytest.raises(InputError) as caught:
        read_scene_json(path)
    assert caught.value.path == path
