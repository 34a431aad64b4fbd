"""The 3D data of the page decodes to what went in, within the limits."""

from __future__ import annotations

import base64
import gzip

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relief3d.core.contract import Camera, Mesh, PointCloud, Scene, View
from relief3d.core.seeding import torch_generator
from relief3d.report.geometry3d import Bounds, decimate, estimate_up, robust_bounds, scene_bounds
from relief3d.report.payload import Payload, PayloadLimits, build_payload, decode_planes, encode_planes
from report.ball_room import make_scene, room_mesh


def decode(payload: Payload, name: str) -> torch.Tensor:
    entry = payload.header["arrays"][name]
    block = gzip.decompress(base64.b64decode(payload.base64(), validate=True))
    part = block[entry["offset"] : entry["offset"] + entry["bytes"]]
    return decode_planes(part, entry["rows"], entry["columns"], entry["type"])


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from([("u8", 8), ("u16", 16), ("u32", 32)]))
def test_planes_are_lossless(data: st.DataObject, kind: tuple[str, int]) -> None:
    rows, columns = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 4))
    numbers = st.integers(0, 2 ** kind[1] - 1)
    values = data.draw(st.lists(numbers, min_size=rows * columns, max_size=rows * columns))
    table = torch.tensor(values, dtype=torch.int64).reshape(rows, columns)
    assert torch.equal(decode_planes(encode_planes(table, kind[0]), rows, columns, kind[0]), table)


def test_mesh_and_points_come_back_within_the_quantum() -> None:
    scene = make_scene(views=3, lost=0, steps=10)
    payload = build_payload(scene, PayloadLimits())
    low = torch.tensor(payload.header["bounds"]["low"])
    size = torch.tensor(payload.header["bounds"]["high"]) - low
    xyz = low + decode(payload, "mesh.position") / 65535 * size
    faces = decode(payload, "mesh.index")
    assert scene.mesh is not None and faces.shape == scene.mesh.faces.shape
    # Order changes, so compare the multiset of triangle centres.
    want = scene.mesh.vertices[scene.mesh.faces].mean(dim=1).double()
    got = xyz[faces].mean(dim=1).double()
    distance = torch.cdist(want, got).min(dim=1).values
    assert distance.max() < 2 * float(size.max()) / 65535
    colours = decode(payload, "mesh.colour")
    nearest = torch.cdist(xyz.double(), scene.mesh.vertices.double()).argmin(dim=1)
    same = (colours == scene.mesh.rgb[nearest].long()).all(dim=1)
    assert same.float().mean() > 0.9  # vertices of touching walls coincide and may differ in colour
    assert scene.points is not None
    assert decode(payload, "points.position").shape[0] == scene.points.xyz.shape[0]
    assert int(decode(payload, "points.confidence").max()) <= 255


def test_limits_hold_and_full_counts_are_told() -> None:
    scene = make_scene(views=2, lost=0, steps=40)
    payload = build_payload(scene, PayloadLimits(max_faces=2000, max_points=500, max_sparse=50))
    arrays = payload.header["arrays"]
    assert 1000 < arrays["mesh.index"]["rows"] <= 2000
    assert arrays["points.position"]["rows"] == 500
    assert arrays["sparse.position"]["rows"] == 50
    assert scene.mesh is not None and payload.header["full"]["faces"] == scene.mesh.faces.shape[0]


def test_same_input_same_bytes() -> None:
    scene = make_scene(views=2, lost=0, steps=8)
    limits = PayloadLimits(max_points=100)
    assert build_payload(scene, limits).base64() == build_payload(scene, limits).base64()


def test_empty_scene_has_cameras_only() -> None:
    scene = make_scene(views=2, lost=1).replace(mesh=None, points=None, sparse=None)
    payload = build_payload(scene, PayloadLimits())
    assert "arrays" not in payload.header and not payload.blocks
    assert [c["view"] for c in payload.header["cameras"]] == [0, 1]


def test_decimation_keeps_shape_and_orientation() -> None:
    mesh = room_mesh(40)
    small = decimate(mesh, 3000)
    assert small.faces.shape[0] <= 3000 and int(small.faces.max()) < small.vertices.shape[0]

    def signed_volume(m: Mesh) -> float:
        a, b, c = m.vertices[m.faces].double().unbind(1)
        return float((a * torch.linalg.cross(b, c)).sum() / 6)

    assert signed_volume(small) == pytest.approx(signed_volume(mesh), rel=0.1)
    assert decimate(mesh, 10**9).faces is mesh.faces


def test_texture_becomes_vertex_colour() -> None:
    texture = torch.zeros(2, 2, 3, dtype=torch.uint8)
    texture[0, 1] = 200  # top right
    vertices, faces = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0]]), torch.tensor([[0, 1, 2]])
    uv = torch.tensor([[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]])
    out = decimate(Mesh(vertices, faces, uv=uv, texture=texture), 10)
    assert out.rgb is not None and out.rgb.tolist() == [[0, 0, 0], [0, 0, 0], [200, 200, 200]]


def test_outliers_and_nan_do_not_blow_up_the_bounds() -> None:
    gen = torch_generator(1)
    xyz = torch.randn(5000, 3, generator=gen)
    xyz[0], xyz[1, 2], xyz[2] = 1e7, torch.nan, -torch.inf
    bounds = robust_bounds(xyz)
    assert bounds.diagonal < 20
    view = View("a", Camera(4, 4))
    payload = build_payload(Scene((view,), points=PointCloud(xyz)), PayloadLimits())
    assert 4950 <= payload.header["arrays"]["points.position"]["rows"] < 5000


def test_scene_without_anything_has_finite_bounds() -> None:
    bounds = scene_bounds(Scene(()))
    assert isinstance(bounds, Bounds) and 0 < bounds.diagonal < 10


@pytest.mark.parametrize("turned", [0, 1])
def test_up_is_found_for_level_and_for_turned_cameras(turned: int) -> None:
    scene = make_scene(views=8, lost=0, width=16, height=12, steps=4)
    if turned:  # world turned so that up is +x
        turn = torch.eye(4, dtype=torch.float64)
        turn[:3, :3] = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
        views = [
            v.replace(camera=v.camera.replace(world_from_cam=turn @ v.camera.world_from_cam))
            for v in scene.views
        ]
        scene = scene.replace(views=tuple(views))
    want = torch.tensor([[0.0, 0, 1], [1, 0, 0]][turned], dtype=torch.float64)
    assert float(estimate_up(scene) @ want) > 0.999
    assert (
        float(estimate_up(scene.replace(info={"up": [0, -2, 0]})) @ torch.tensor([0, -1.0, 0]).double()) == 1
    )


def test_geometry_that_carries_gradients_is_accepted() -> None:
    mesh = room_mesh(4)
    live = Mesh(mesh.vertices.clone().requires_grad_(), mesh.faces, mesh.rgb)
    scene = Scene((View("a", Camera(4, 4)),), mesh=live)
    plain = scene.replace(mesh=mesh)
    assert build_payload(scene, PayloadLimits()).base64() == build_payload(plain, PayloadLimits()).base64()
