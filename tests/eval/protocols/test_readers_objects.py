"""Tiny copies of the object folder layout: frames, axes, intrinsics, errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.eval.protocols.objects.readers_objects import (
    find_objects,
    pose_from_sam3d,
    read_intrinsics,
    read_object_mesh,
    read_pose,
)
from relief3d.geometry.rotations import matrix_from_quat_wxyz
from relief3d.io.glb import write_glb
from relief3d.io.images import write_image
from relief3d.io.ply import write_ply

MESH = Mesh(
    torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]]),
    torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]),
)
IDENTITY = {"cam_from_object": torch.eye(4).tolist()}


def write_object(folder: Path, *, pose: dict | None = None, image: bool = True, glb: bool = True) -> None:
    folder.mkdir(parents=True)
    mask = torch.zeros(3, 6, 8)
    mask[:, 2:4, 3:6] = 1
    write_image(folder / "mask.png", mask)
    if image:
        write_image(folder / "image.png", torch.full((3, 6, 8), 0.5))
    if glb:
        write_glb(folder / "mesh.glb", MESH, up="z")
    else:
        write_ply(folder / "mesh.ply", MESH)
    if pose is not None:
        (folder / "pose.json").write_text(json.dumps(pose))


def test_objects_of_one_picture_share_a_group(tmp_path: Path) -> None:
    for name in ("room/cup", "room/box"):
        write_object(tmp_path / name, pose=IDENTITY, image=False)
    write_image(tmp_path / "room" / "image.jpg", torch.full((3, 6, 8), 0.5))
    (tmp_path / "room" / "camera.json").write_text(
        json.dumps({"K": [[9, 0, 3.5], [0, 9, 2.5], [0, 0, 1]], "pixel_centre": 0})
    )
    write_object(tmp_path / "alone", pose=IDENTITY)
    found = find_objects(tmp_path, posed=True)
    assert [(f.name, f.group) for f in found] == [
        ("alone", "alone"),
        ("room/box", "room"),
        ("room/cup", "room"),
    ]
    assert found[0].load_K() is None
    # Centres at integers become centres at +0.5.
    K = found[1].load_K()
    assert K is not None and torch.allclose(
        K, torch.tensor([[9.0, 0, 4], [0, 9, 3], [0, 0, 1]], dtype=torch.float64)
    )
    assert found[1].load_image().dtype == torch.uint8 and int(found[1].load_mask().sum()) == 6
    assert found[1].load_points() is None


def test_glb_meshes_are_turned_from_y_up_to_the_z_up_object(tmp_path: Path) -> None:
    write_glb(tmp_path / "z.glb", MESH, up="z")
    assert torch.allclose(read_object_mesh(tmp_path / "z.glb").vertices, MESH.vertices, atol=1e-6)
    # A file of another program: the coordinates are y-up as they stand. (a, b, c) -> (a, -c, b).
    import trimesh

    other = trimesh.Trimesh(np.array([[1.0, 2, 3], [0, 0, 0], [1, 0, 0]]), [[0, 1, 2]], process=False)
    other.export(tmp_path / "other.glb")
    assert torch.allclose(read_object_mesh(tmp_path / "other.glb").vertices[0], torch.tensor([1.0, -3, 2]))
    write_ply(tmp_path / "as_is.ply", MESH)
    assert torch.allclose(read_object_mesh(tmp_path / "as_is.ply").vertices, MESH.vertices)


def test_sam3d_pose_means_row_vectors_in_pytorch3d_axes(tmp_path: Path) -> None:
    q = torch.tensor([0.8, 0.1, -0.5, 0.3], dtype=torch.float64)
    t, s = (
        torch.tensor([0.2, -0.4, 3.0], dtype=torch.float64),
        torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64),
    )
    points = torch.rand(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = (points * s) @ matrix_from_quat_wxyz(q) + t
    expected = expected * torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    pose = pose_from_sam3d(q, t, s)
    assert torch.allclose(points @ pose[:3, :3].T + pose[:3, 3], expected, atol=1e-12)
    path = tmp_path / "pose.json"
    path.write_text(json.dumps({"rotation": q.tolist(), "translation": t.tolist(), "scale": s.tolist()}))
    assert torch.allclose(read_pose(path), pose)
    path.write_text(json.dumps({"rotation": q.tolist(), "translation": t.tolist(), "scale": 2.0}))
    assert torch.allclose(read_pose(path)[:3, :3].norm(dim=0), torch.full((3,), 2.0, dtype=torch.float64))
    path.write_text(json.dumps({"cam_from_object": pose[:3].tolist()}))
    assert torch.allclose(read_pose(path), pose)


@pytest.mark.parametrize(
    ("pose", "message"),
    [
        ({"rotation": [1, 0, 0, 0], "scale": 1}, "needs cam_from_object"),
        ({"rotation": [1, 0, 0, 0], "translation": [0, 0, 1], "scale": 0}, "positive"),
        ({"rotation": [0, 0, 0, 0], "translation": [0, 0, 1], "scale": 1}, "length zero"),
        ({"cam_from_object": [[1, 2]]}, "matrix"),
    ],
)
def test_broken_poses_name_their_file(tmp_path: Path, pose: dict, message: str) -> None:
    (tmp_path / "pose.json").write_text(json.dumps(pose))
    with pytest.raises(InputError, match=message):
        read_pose(tmp_path / "pose.json")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        find_objects(tmp_path / "nowhere", posed=False)
    with pytest.raises(InputError, match=r"holds no object[^\n]*$"):
        find_objects(tmp_path, posed=False)
    write_object(tmp_path / "a", pose=None)
    assert len(find_objects(tmp_path, posed=False)) == 1
    with pytest.raises(InputError, match=r"lacks pose\.json"):
        find_objects(tmp_path, posed=True)
    (tmp_path / "a" / "mesh.glb").unlink()
    with pytest.raises(InputError, match=r"lacks mesh\.glb"):
        find_objects(tmp_path, posed=False)
    (tmp_path / "camera.json").write_text("{}")
    with pytest.raises(InputError, match="'K' is missing"):
        read_intrinsics(tmp_path / "camera.json")


def test_masks_and_point_maps_must_fit(tmp_path: Path) -> None:
    write_object(tmp_path / "a")
    one = find_objects(tmp_path, posed=False)[0]
    write_image(tmp_path / "a" / "mask.png", torch.zeros(3, 6, 8))
    with pytest.raises(InputError, match="empty"):
        one.load_mask()
    write_image(tmp_path / "a" / "mask.png", torch.ones(3, 5, 8))
    with pytest.raises(InputError, match="pixels"):
        one.load_mask()
    np.save(tmp_path / "a" / "points.npy", np.zeros((6, 8), np.float32))
    with pytest.raises(InputError, match=r"\(H, W, 3\)"):
        find_objects(tmp_path, posed=False)[0].load_points()
