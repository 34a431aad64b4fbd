from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.corpora.known_scene import known_scene

from relief3d.core.contract import Mesh, PointCloud
from relief3d.core.errors import InputError
from relief3d.io.ply import PlyFormat, read_ply, write_ply

FORMATS: tuple[PlyFormat, ...] = ("ascii", "binary_little_endian", "binary_big_endian")


def open3d_reader() -> Any:
    """Open3D as a foreign reader; its wheel needs libusb loaded first on a bare system."""
    libusb = pytest.importorskip("libusb_package", reason="libusb-package is not installed (extra mesh)")
    ctypes.CDLL(str(libusb.get_library_path()), mode=ctypes.RTLD_GLOBAL)
    return pytest.importorskip("open3d", reason="open3d is not installed (extra mesh)")


def cloud() -> PointCloud:
    points = known_scene().points
    assert points is not None
    return points


def mesh() -> Mesh:
    surface = known_scene().mesh
    assert surface is not None
    return surface


@pytest.mark.parametrize("encoding", FORMATS)
@pytest.mark.parametrize(
    "fields", ["xyz", "rgb", "normals", "confidence", "rgb normals", "rgb normals confidence"]
)
def test_points_return_exactly(tmp_path: Path, encoding: PlyFormat, fields: str) -> None:
    full = cloud()
    points = PointCloud(
        full.xyz,
        full.rgb if "rgb" in fields else None,
        full.normals if "normals" in fields else None,
        full.confidence if "confidence" in fields else None,
    )
    again = read_ply(write_ply(tmp_path / "points.ply", points, format=encoding))
    assert isinstance(again, PointCloud)
    for name in ("xyz", "rgb", "normals", "confidence"):
        expected, got = getattr(points, name), getattr(again, name)
        assert (expected is None) == (got is None), name
        if expected is not None:
            assert got.dtype == expected.dtype and torch.equal(got, expected), name


@pytest.mark.parametrize("encoding", FORMATS)
@pytest.mark.parametrize("coloured", [False, True])
def test_meshes_return_exactly(tmp_path: Path, encoding: PlyFormat, coloured: bool) -> None:
    full = mesh()
    surface = full if coloured else Mesh(full.vertices, full.faces)
    again = read_ply(write_ply(tmp_path / "mesh.ply", surface, format=encoding, comments=("made by a test",)))
    assert isinstance(again, Mesh)
    assert torch.equal(again.vertices, surface.vertices) and torch.equal(again.faces, surface.faces)
    if coloured and again.rgb is not None and again.normals is not None and full.normals is not None:
        assert (
            full.rgb is not None
            and torch.equal(again.rgb, full.rgb)
            and torch.equal(again.normals, full.normals)
        )
    else:
        assert not coloured and again.rgb is None


@pytest.mark.parametrize("encoding", FORMATS)
def test_two_foreign_readers_agree(tmp_path: Path, encoding: PlyFormat) -> None:
    trimesh = pytest.importorskip("trimesh")
    o3d = open3d_reader()
    points, surface = cloud(), mesh()
    assert points.rgb is not None and points.normals is not None
    path = write_ply(tmp_path / "points.ply", points, format=encoding)
    theirs = trimesh.load(path, process=False)
    assert np.array_equal(np.asarray(theirs.vertices, np.float32), points.xyz.numpy())
    assert np.array_equal(np.asarray(theirs.colors)[:, :3], points.rgb.numpy())
    other = o3d.io.read_point_cloud(str(path))
    assert np.array_equal(np.asarray(other.points, np.float32), points.xyz.numpy())
    assert np.allclose(np.asarray(other.colors) * 255, points.rgb.numpy())
    assert np.allclose(np.asarray(other.normals), points.normals.numpy())

    path = write_ply(tmp_path / "mesh.ply", surface, format=encoding)
    theirs = trimesh.load(path, process=False)
    assert np.array_equal(np.asarray(theirs.faces), surface.faces.numpy())
    other = o3d.io.read_triangle_mesh(str(path))
    assert np.array_equal(np.asarray(other.vertices, np.float32), surface.vertices.numpy())
    assert np.array_equal(np.asarray(other.triangles), surface.faces.numpy())


def test_reads_what_others_write(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    o3d = open3d_reader()
    surface = mesh()
    assert surface.rgb is not None
    theirs = trimesh.Trimesh(
        surface.vertices.numpy(), surface.faces.numpy(), vertex_colors=surface.rgb.numpy(), process=False
    )
    for encoding in ("ascii", "binary_little_endian"):
        path = tmp_path / f"{encoding}.ply"
        path.write_bytes(theirs.export(file_type="ply", encoding=encoding.split("_")[0]))
        again = read_ply(path)
        assert isinstance(again, Mesh) and torch.equal(again.faces, surface.faces)
        assert again.rgb is not None and torch.equal(again.rgb, surface.rgb)
    other = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(surface.vertices.numpy().astype(np.float64)))
    other.colors = o3d.utility.Vector3dVector(surface.rgb.numpy() / 255.0)
    o3d.io.write_point_cloud(str(tmp_path / "o3d.ply"), other)
    points = read_ply(tmp_path / "o3d.ply")
    assert isinstance(points, PointCloud) and torch.equal(points.xyz, surface.vertices)
    assert points.rgb is not None and torch.equal(points.rgb, surface.rgb)


def ascii_file(folder: Path, header: str, body: str) -> Path:
    path = folder / "hand.ply"
    path.write_text(f"ply\nformat ascii 1.0\n{header}\nend_header\n{body}\n")
    return path


XYZ = "property float x\nproperty float y\nproperty float z"


def test_polygons_become_fans_and_unknown_properties_are_skipped(tmp_path: Path) -> None:
    path = ascii_file(
        tmp_path,
        f"comment hello\nelement vertex 5\n{XYZ}\nproperty double score\n"
        "element face 3\nproperty uchar material\nproperty list uchar int vertex_index",
        "0 0 0 1\n1 0 0 2\n1 1 0 3\n0 1 0 4\n0 2 0 5\n7 4 0 1 2 3\n7 3 2 4 3\n7 2 0 1",
    )
    again = read_ply(path)
    assert isinstance(again, Mesh)
    assert sorted(map(tuple, again.faces.tolist())) == [(0, 1, 2), (0, 2, 3), (2, 4, 3)]


def test_mixed_polygons_in_binary(tmp_path: Path) -> None:
    head = f"ply\nformat binary_big_endian 1.0\nelement vertex 4\n{XYZ}\nelement face 2\n"
    head += "property list uchar int vertex_indices\nend_header\n"
    xyz = np.arange(12, dtype=">f4").tobytes()
    body = b"\x03" + np.array([0, 1, 2], ">i4").tobytes() + b"\x04" + np.array([0, 1, 2, 3], ">i4").tobytes()
    path = tmp_path / "mixed.ply"
    path.write_bytes(head.encode() + xyz + body)
    again = read_ply(path)
    assert isinstance(again, Mesh) and again.faces.shape == (3, 3)
    for cut in range(1, len(body)):
        path.write_bytes(head.encode() + xyz + body[:-cut])
        with pytest.raises(InputError, match=r"mixed\.ply"):
            read_ply(path)


def test_colours_of_other_types(tmp_path: Path) -> None:
    names = "\n".join(f"property {{}} {c}" for c in ("red", "green", "blue"))
    for kind, row, expected in (
        ("float", "0 0.5 1", [0, 128, 255]),
        ("ushort", "0 32896 65535", [0, 128, 255]),
    ):
        header = f"element vertex 1\n{XYZ}\n" + names.format(kind, kind, kind)
        again = read_ply(ascii_file(tmp_path, header, "1 2 3 " + row))
        assert isinstance(again, PointCloud) and again.rgb is not None
        assert again.rgb.tolist() == [expected]


BAD: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "empty"),
    "garbage": (bytes(range(256)) * 4, "not a PLY"),
    "other format": (b"OFF\n3 1 0\n", "not a PLY"),
    "endless header": (b"ply\n" + b"comment x\n" * 20_000, "does not end"),
    "no format": (b"ply\nelement vertex 1\nproperty float x\nend_header\n1\n", "format"),
    "unknown format": (b"ply\nformat binary_middle_endian 1.0\nelement vertex 0\nend_header\n", "format"),
    "unknown type": (
        b"ply\nformat ascii 1.0\nelement vertex 1\nproperty quad x\nend_header\n1\n",
        "property",
    ),
    "property first": (b"ply\nformat ascii 1.0\nproperty float x\nend_header\n1\n", "line"),
    "negative count": (b"ply\nformat ascii 1.0\nelement vertex -1\nend_header\n", "line"),
    "huge binary count": (
        f"ply\nformat binary_little_endian 1.0\nelement vertex 999999999999\n{XYZ}\nend_header\n".encode(),
        "more than",
    ),
    "huge ascii count": (
        f"ply\nformat ascii 1.0\nelement vertex 999999999999\n{XYZ}\nend_header\n1 2 3\n".encode(),
        "more than",
    ),
    "huge list": (
        b"ply\nformat binary_little_endian 1.0\nelement face 1\nproperty list uint double vertex_indices\n"
        b"end_header\n\xff\xff\xff\xff",
        "more than",
    ),
    "no vertices": (b"ply\nformat ascii 1.0\nelement edge 1\nproperty int a\nend_header\n1\n", "vertex"),
    "no positions": (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty int a\nend_header\n1\n", "x, y, z"),
    "nan": (f"ply\nformat ascii 1.0\nelement vertex 1\n{XYZ}\nend_header\n1 nan 3\n".encode(), "finite"),
    "words": (f"ply\nformat ascii 1.0\nelement vertex 1\n{XYZ}\nend_header\n1 two 3\n".encode(), "row"),
    "short row": (f"ply\nformat ascii 1.0\nelement vertex 1\n{XYZ}\nend_header\n1 2\n".encode(), "row"),
    "long number": (
        f"ply\nformat ascii 1.0\nelement vertex 1\n{XYZ}\nend_header\n1 2 {'3' * 5000}\n".encode(),
        "row",
    ),
    "face out of range": (
        f"ply\nformat ascii 1.0\nelement vertex 1\n{XYZ}\nelement face 1\n"
        "property list uchar int vertex_indices\nend_header\n1 2 3\n3 0 1 2\n".encode(),
        "do not exist",
    ),
    "negative face": (
        f"ply\nformat ascii 1.0\nelement vertex 3\n{XYZ}\nelement face 1\n"
        "property list uchar int vertex_indices\nend_header\n1 2 3\n1 2 3\n1 2 3\n3 0 1 -2\n".encode(),
        "do not exist",
    ),
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(tmp_path: Path, case: str) -> None:
    data, words = BAD[case]
    path = tmp_path / "bad.ply"
    path.write_bytes(data)
    with pytest.raises(InputError, match=words) as caught:
        read_ply(path)
    assert caught.value.path == path


@pytest.mark.parametrize("encoding", FORMATS)
def test_every_cut_is_noticed(tmp_path: Path, encoding: PlyFormat) -> None:
    full = mesh()
    data = write_ply(
        tmp_path / "full.ply", Mesh(full.vertices[:20], full.faces[:20] % 20), format=encoding
    ).read_bytes()
    path = tmp_path / "cut.ply"
    for length in range(1, len(data) - 7, 7):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"cut\.ply"):
            read_ply(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 400), value=st.integers(0, 255), binary=st.booleans())
def test_any_changed_byte_is_read_or_refused(tmp_path: Path, position: int, value: int, binary: bool) -> None:
    full = cloud()
    points = PointCloud(full.xyz[:9], full.rgb[:9] if full.rgb is not None else None)
    path = write_ply(tmp_path / "fuzz.ply", points, format=FORMATS[binary])
    data = bytearray(path.read_bytes())
    data[position % len(data)] = value
    path.write_bytes(bytes(data))
    try:
        read_ply(path)
    except InputError as exc:
        assert exc.path == path


def test_bad_geometry_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "out.ply"
    xyz = torch.zeros(3, 3)
    bad: list[PointCloud | Mesh] = [
        PointCloud(torch.full((2, 3), float("nan"))),
        PointCloud(xyz, rgb=torch.zeros(2, 3, dtype=torch.uint8)),
        Mesh(xyz, torch.tensor([[0, 1, 3]])),
        Mesh(xyz, torch.tensor([[0, 1, -1]])),
    ]
    for geometry in bad:
        with pytest.raises(InputError):
            write_ply(path, geometry)
    assert list(tmp_path.iterdir()) == []


def test_no_points_at_all(tmp_path: Path) -> None:
    again = read_ply(write_ply(tmp_path / "empty.ply", PointCloud(torch.zeros(0, 3))))
    assert isinstance(again, PointCloud) and len(again.xyz) == 0
