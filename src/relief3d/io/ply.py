"""PLY point clouds and meshes: ASCII, binary little and big endian, read and written by our own code.

The header is parsed strictly and the element counts are compared with the file size before any memory
is reserved, so that a hostile header cannot ask for more than the file can hold.

Format: G. Turk, "The PLY Polygon File Format", Stanford University, 1994.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from relief3d.core.contract import Mesh, PointCloud
from relief3d.core.errors import InputError
from relief3d.io.atomic import atomic_path
from relief3d.io.ply_body import read_ascii_body, read_binary_body
from relief3d.io.ply_header import MAX_HEADER_BYTES, PlyColumns, PlyFormat, PlyLists, parse_ply_header
from relief3d.io.whole_file import read_whole

MAX_POLYGON = 1024
"""Faces with more corners are refused; photogrammetry meshes have three or four."""

_NAMES = {"u1": "uchar", "i4": "int", "f4": "float", "f8": "double"}


def read_ply(path: str | Path) -> PointCloud | Mesh:
    """Read a PLY file: a :class:`Mesh` when it has faces, otherwise a :class:`PointCloud`.

    Understands ``x y z``, ``red green blue`` (8 or 16 bit or float in [0, 1]), ``nx ny nz``,
    ``confidence`` (or ``quality``) and faces as ``vertex_indices`` (or ``vertex_index``); polygons are
    split into triangle fans. Other properties are skipped.

    Raises:
        InputError: naming the file, when it is not PLY, truncated, or holds non-finite positions or
            face indices outside the vertices.
    """
    path = Path(path)
    data = read_ply_elements(path)
    vertex = data.get("vertex")
    if vertex is None:
        raise InputError("the PLY file has no 'vertex' element", path=path)
    xyz = _stack(path, vertex, ("x", "y", "z"))
    if xyz is None:
        raise InputError("the PLY vertices have no x, y, z", path=path)
    if not np.isfinite(xyz).all():
        raise InputError("the PLY file holds positions that are not finite", path=path)
    rgb = _colour(path, vertex)
    normals = _stack(path, vertex, ("nx", "ny", "nz"))
    tensor_xyz = torch.from_numpy(xyz.astype(np.float32))
    tensor_rgb = None if rgb is None else torch.from_numpy(rgb)
    tensor_normals = None if normals is None else torch.from_numpy(normals.astype(np.float32))
    face = data.get("face")
    indices = None if face is None else face.get("vertex_indices", face.get("vertex_index"))
    if isinstance(indices, PlyLists) and len(indices.starts) > 1:
        faces = _triangles(path, indices, len(xyz))
        return Mesh(tensor_xyz, torch.from_numpy(faces), tensor_rgb, tensor_normals)
    confidence = vertex.get("confidence", vertex.get("quality"))
    tensor_confidence = (
        torch.from_numpy(confidence.astype(np.float32)) if isinstance(confidence, np.ndarray) else None
    )
    return PointCloud(tensor_xyz, tensor_rgb, tensor_normals, tensor_confidence)


def write_ply(
    path: str | Path,
    geometry: PointCloud | Mesh,
    *,
    format: PlyFormat = "binary_little_endian",
    comments: tuple[str, ...] = (),
) -> Path:
    """Write points or a mesh, atomically.

    Args:
        path: target file.
        geometry: texture and uv of a mesh are not part of PLY and are left out (use GLB).
        format: ``binary_little_endian`` is read by every program; ASCII keeps all float32 digits.
        comments: one-line remarks for the header.

    Raises:
        InputError: when arrays disagree in length or hold non-finite positions.
    """
    is_mesh = isinstance(geometry, Mesh)
    xyz = geometry.vertices if isinstance(geometry, Mesh) else geometry.xyz
    confidence = None if isinstance(geometry, Mesh) else geometry.confidence
    columns: list[tuple[str, NDArray[np.generic]]] = []
    _append(columns, path, ("x", "y", "z"), xyz, np.float32, len(xyz))
    if not np.isfinite(np.stack([c for _, c in columns])).all():
        raise InputError("positions that are not finite cannot be written", path=path)
    if geometry.normals is not None:
        _append(columns, path, ("nx", "ny", "nz"), geometry.normals, np.float32, len(xyz))
    if geometry.rgb is not None:
        _append(columns, path, ("red", "green", "blue"), geometry.rgb, np.uint8, len(xyz))
    if confidence is not None:
        _append(columns, path, ("confidence",), confidence[:, None], np.float32, len(xyz))
    faces = (
        geometry.faces.detach().cpu().numpy() if isinstance(geometry, Mesh) else np.zeros((0, 3), np.int64)
    )
    if (
        faces.ndim != 2
        or faces.shape[1] != 3
        or (len(faces) and (faces.min() < 0 or faces.max() >= len(xyz)))
    ):
        raise InputError("mesh faces must be (F, 3) indices of its vertices", path=path)
    return write_ply_columns(path, columns, faces if is_mesh else None, format=format, comments=comments)


def write_ply_columns(
    path: str | Path,
    columns: list[tuple[str, NDArray[np.generic]]],
    faces: NDArray[np.int64] | None = None,
    *,
    format: PlyFormat = "binary_little_endian",
    comments: tuple[str, ...] = (),
) -> Path:
    """Write named vertex columns of equal length and optional (F, 3) faces, atomically.

    Args:
        path: target file.
        columns: (property name, (N,) array of uint8, int32, float32 or float64) in file order.
        faces: (F, 3) vertex indices or None for no face element.
        format: PLY encoding.
        comments: one-line remarks for the header.
    """
    path = Path(path)
    order = ">" if format == "binary_big_endian" else "<"
    count = len(columns[0][1])
    codes = [column.dtype.str[1:] for _, column in columns]
    header = ["ply", f"format {format} 1.0"]
    header += [f"comment {' '.join(c.split())}" for c in comments]
    header += [f"element vertex {count}"]
    header += [f"property {_NAMES[code]} {name}" for (name, _), code in zip(columns, codes)]
    if faces is not None:
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    rows = np.empty(count, dtype=[(name, order + code) for (name, _), code in zip(columns, codes)])
    for name, column in columns:
        rows[name] = column
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(("\n".join([*header, "end_header"]) + "\n").encode("ascii", "replace"))
        if format == "ascii":
            file.writelines(_ascii_rows(columns))
            if faces is not None:
                file.writelines(f"3 {a} {b} {c}\n".encode() for a, b, c in faces.tolist())
        else:
            file.write(rows.tobytes())
            if faces is not None:
                packed = np.empty(len(faces), dtype=[("n", "u1"), ("v", order + "i4", (3,))])
                packed["n"], packed["v"] = 3, faces
                file.write(packed.tobytes())
    return path


def read_ply_elements(path: str | Path) -> dict[str, PlyColumns]:
    """Read all elements of a PLY file as named columns.

    Returns:
        ``{element: {property: (N,) array in native byte order, or PlyLists}}``.

    Raises:
        InputError: naming the file, when the header is malformed or the data does not fit it.
    """
    path = Path(path)
    data = read_whole(path)
    header = parse_ply_header(data[:MAX_HEADER_BYTES], path)
    if header.format == "ascii":
        return read_ascii_body(path, header, data)
    return read_binary_body(path, header, data)


def _append(
    columns: list[tuple[str, NDArray[np.generic]]],
    path: str | Path,
    names: tuple[str, ...],
    values: torch.Tensor,
    dtype: type[np.generic],
    count: int,
) -> None:
    if tuple(values.shape) != (count, len(names)):
        raise InputError(f"{names} must be ({count}, {len(names)}), got {tuple(values.shape)}", path=path)
    array = values.detach().cpu().numpy().astype(dtype)
    columns += [(name, array[:, i]) for i, name in enumerate(names)]


def _ascii_rows(columns: list[tuple[str, NDArray[np.generic]]]) -> list[bytes]:
    # repr of a float32 is the shortest text that reads back as the same number.
    texts = [
        [np.format_float_positional(v, trim="-") if abs(v) < 1e16 else repr(float(v)) for v in column]
        if column.dtype.kind == "f"
        else [str(v) for v in column.tolist()]
        for _, column in columns
    ]
    return [(" ".join(row) + "\n").encode("ascii") for row in zip(*texts)]


def _stack(path: Path, vertex: PlyColumns, names: tuple[str, ...]) -> NDArray[np.generic] | None:
    found = [vertex[name] for name in names if name in vertex]
    if len(found) != len(names):
        return None
    if any(isinstance(column, PlyLists) for column in found):
        raise InputError(f"the PLY properties {names} are lists", path=path)
    return np.stack([column for column in found if not isinstance(column, PlyLists)], axis=1)


def _colour(path: Path, vertex: PlyColumns) -> NDArray[np.uint8] | None:
    rgb = _stack(path, vertex, ("red", "green", "blue"))
    if rgb is None:
        rgb = _stack(path, vertex, ("diffuse_red", "diffuse_green", "diffuse_blue"))
    if rgb is None or rgb.dtype == np.uint8:
        return rgb  # type: ignore[return-value]
    if rgb.dtype.kind == "f":
        scaled = np.nan_to_num(rgb.astype(np.float64), nan=0.0) * 255.0
        return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    divisor = 257.0 if rgb.dtype == np.uint16 else 1.0
    return np.clip(np.rint(rgb.astype(np.float64) / divisor), 0, 255).astype(np.uint8)


def _triangles(path: Path, lists: PlyLists, vertices: int) -> NDArray[np.int64]:
    values = lists.values.astype(np.int64)
    if len(values) and (values.min() < 0 or values.max() >= vertices):
        raise InputError("the PLY file has faces that name vertices which do not exist", path=path)
    lengths = np.diff(lists.starts)
    if (lengths == 3).all():
        return values.reshape(-1, 3)
    if (lengths > MAX_POLYGON).any():
        raise InputError(f"the PLY file has faces with more than {MAX_POLYGON} corners", path=path)
    fans = []
    for corners in np.unique(lengths[lengths >= 3]):
        rows = np.flatnonzero(lengths == corners)
        polygon = values[lists.starts[rows][:, None] + np.arange(corners)]
        for k in range(1, int(corners) - 1):
            fans.append(np.stack([polygon[:, 0], polygon[:, k], polygon[:, k + 1]], axis=1))
    return np.concatenate(fans) if fans else np.zeros((0, 3), np.int64)
