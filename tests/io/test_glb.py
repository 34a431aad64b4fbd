from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.corpora.known_scene import known_scene, textured_mesh

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.io.glb import read_glb, write_glb


def coloured() -> Mesh:
    mesh = known_scene().mesh
    assert mesh is not None
    return mesh


def document(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    return dict(json.loads(data[20 : 20 + length]))


@pytest.mark.parametrize("up", ["-y", "y", "z", "-z", "x", "-x"])
def test_coloured_mesh_returns(tmp_path: Path, up: Any) -> None:
    mesh = coloured()
    again = read_glb(write_glb(tmp_path / "m.glb", mesh, up=up))
    assert torch.allclose(again.vertices, mesh.vertices, atol=2e-6) and torch.equal(again.faces, mesh.faces)
    assert again.rgb is not None and mesh.rgb is not None and torch.equal(again.rgb, mesh.rgb)
    assert again.normals is not None and mesh.normals is not None
    assert torch.allclose(again.normals, mesh.normals, atol=1e-5)


def test_every_byte_value_survives_the_linear_colours(tmp_path: Path) -> None:
    rgb = torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, 3)
    mesh = Mesh(
        torch.rand(256, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([[0, 1, 2]]), rgb
    )
    again = read_glb(write_glb(tmp_path / "m.glb", mesh))
    assert again.rgb is not None and torch.equal(again.rgb, rgb)


def test_texture_returns(tmp_path: Path) -> None:
    mesh = textured_mesh()
    again = read_glb(write_glb(tmp_path / "m.glb", mesh, texture_format="png"))
    assert again.texture is not None and mesh.texture is not None and torch.equal(again.texture, mesh.texture)
    assert again.uv is not None and mesh.uv is not None and torch.allclose(again.uv, mesh.uv, atol=1e-6)
    lossy = read_glb(write_glb(tmp_path / "j.glb", mesh, texture_format="jpeg", quality=95))
    assert lossy.texture is not None and lossy.texture.shape == mesh.texture.shape


def test_uv_origin_is_bottom_left_here_and_top_left_in_gltf(tmp_path: Path) -> None:
    texture = torch.zeros(2, 2, 3, dtype=torch.uint8)
    texture[0] = 255  # upper row white
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    uv = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    path = write_glb(
        tmp_path / "m.glb",
        Mesh(vertices, torch.tensor([[0, 1, 2]]), uv=uv, texture=texture),
        texture_format="png",
    )
    doc = document(path)
    accessor = doc["accessors"][doc["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"]]
    view = doc["bufferViews"][accessor["bufferView"]]
    data = path.read_bytes()
    begin = 20 + struct.unpack_from("<I", data, 12)[0] + 8 + view["byteOffset"]
    stored = np.frombuffer(data, "<f4", 6, begin).reshape(3, 2)
    assert stored.tolist() == [[0, 1], [1, 1], [0, 0]]


def test_file_is_self_contained_and_aligned(tmp_path: Path) -> None:
    path = write_glb(tmp_path / "m.glb", textured_mesh())
    data, doc = path.read_bytes(), document(path)
    assert struct.unpack_from("<4sII", data) == (b"glTF", 2, len(data)) and len(data) % 4 == 0
    assert all(view["byteOffset"] % 4 == 0 for view in doc["bufferViews"])
    assert "uri" not in json.dumps(doc) and doc["extensionsUsed"] == ["KHR_materials_unlit"]


def test_bare_mesh_and_weak_normals(tmp_path: Path) -> None:
    mesh = coloured()
    bare = read_glb(write_glb(tmp_path / "bare.glb", Mesh(mesh.vertices, mesh.faces)))
    assert torch.allclose(bare.vertices, mesh.vertices, atol=2e-6)
    weak = torch.zeros_like(mesh.vertices)
    weak[1] = float("nan")
    again = read_glb(write_glb(tmp_path / "weak.glb", Mesh(mesh.vertices, mesh.faces, normals=weak)))
    assert again.normals is not None
    assert torch.allclose(again.normals.norm(dim=1), torch.ones(len(weak)), atol=1e-5)


def test_reads_what_trimesh_writes(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    mesh = coloured()
    assert mesh.rgb is not None
    part = trimesh.Trimesh(
        mesh.vertices.numpy(), mesh.faces.numpy(), vertex_colors=mesh.rgb.numpy(), process=False
    )
    scene = trimesh.Scene()
    move = np.eye(4)
    move[:3, 3] = (10, 0, 0)
    scene.add_geometry(part)
    scene.add_geometry(part.copy(), transform=move)
    path = tmp_path / "two.glb"
    path.write_bytes(scene.export(file_type="glb"))
    again = read_glb(path)
    count = len(mesh.vertices)
    assert len(again.vertices) == 2 * count and len(again.faces) == 2 * len(mesh.faces)
    shift = again.vertices[count:] - again.vertices[:count]
    assert torch.allclose(shift.abs(), torch.tensor([10.0, 0, 0]).expand(count, 3), atol=1e-5)
    assert again.rgb is not None and torch.equal(again.rgb[:count], mesh.rgb)


def broken(case: str, data: bytes) -> bytes:
    (length,) = struct.unpack_from("<I", data, 12)
    text, rest = data[20 : 20 + length], data[20 + length :]
    doc = json.loads(text)
    if case == "empty":
        return b""
    if case == "garbage":
        return bytes(range(256)) * 8
    if case == "text":
        return b"solid cube\n facet normal 0 0 1\n endsolid and more text"
    if case == "half":
        return data[: len(data) // 2]
    if case == "version 1":
        return data[:4] + struct.pack("<I", 1) + data[8:]
    if case == "json damaged":
        return data[:20] + b"\xff" * length + rest
    if case == "no meshes":
        doc |= {"meshes": [], "nodes": [], "scenes": [{"nodes": []}]}
    elif case == "huge count":
        doc["accessors"][0]["count"] = 10**12
    elif case == "count as text":
        doc["accessors"][0]["count"] = "many"
    elif case == "missing accessor":
        doc["meshes"][0]["primitives"][0]["attributes"]["POSITION"] = 99
    elif case == "indices out of range":
        at = doc["bufferViews"][doc["accessors"][-1]["bufferView"]]["byteOffset"] + 8
        rest = rest[:at] + struct.pack("<I", 2**31) + rest[at + 4 :]
    elif case == "positions nan":
        rest = rest[:8] + struct.pack("<f", float("nan")) + rest[12:]
    text = json.dumps(doc).encode()
    text += b" " * (-len(text) % 4)
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest


CASES = (
    "empty", "garbage", "text", "half", "version 1", "json damaged", "no meshes", "huge count", "count as text",
    "missing accessor", "indices out of range", "positions nan",
)  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", CASES)
def test_bad_files_are_named(tmp_path: Path, case: str) -> None:
    path = write_glb(tmp_path / "m.glb", coloured())
    path.write_bytes(broken(case, path.read_bytes()))
    with pytest.raises(InputError) as caught:
        read_glb(path)
    assert caught.value.path == path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 1500), value=st.integers(0, 255))
def test_any_changed_byte_is_read_or_refused(tmp_path: Path, position: int, value: int) -> None:
    path = write_glb(tmp_path / "fuzz.glb", Mesh(torch.eye(3), torch.tensor([[0, 1, 2]])))
    data = bytearray(path.read_bytes())
    data[position % len(data)] = value
    path.write_bytes(bytes(data))
    try:
        read_glb(path)
    except InputError as exc:
        assert exc.path == path


def test_bad_meshes_are_not_written(tmp_path: Path) -> None:
    v, f = torch.rand(3, 3), torch.tensor([[0, 1, 2]])
    bad = [
        Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)),
        Mesh(v, torch.zeros(0, 3, dtype=torch.int64)),
        Mesh(v * float("nan"), f),
        Mesh(v, f + 1),
        Mesh(v, f, rgb=torch.zeros(2, 3, dtype=torch.uint8)),
        Mesh(v, f, rgb=torch.zeros(3, 3)),
        Mesh(v, f, uv=torch.full((3, 2), float("inf")), texture=torch.zeros(2, 2, 3, dtype=torch.uint8)),
        Mesh(v, f, uv=torch.zeros(3, 2), texture=torch.zeros(0, 2, 3, dtype=torch.uint8)),
    ]
    for mesh in bad:
        with pytest.raises(InputError):
            write_glb(tmp_path / "m.glb", mesh)
    assert list(tmp_path.iterdir()) == []
