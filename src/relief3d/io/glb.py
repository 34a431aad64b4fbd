"""Meshes as binary glTF 2.0 (GLB) with vertex colours or a baked texture.

glTF is right-handed with +Y up and metres. Vertices are stored in the scene's own coordinates; a rotation
of the node turns the scene's up axis to +Y, so every viewer shows the mesh upright and nothing is lost.
Colours come from photographs that already contain the light, so materials are unlit
(KHR_materials_unlit). Vertex colours are linear in glTF; the sRGB bytes of the contract are converted.

Specification: https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html.
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.geometry.conventions import UpAxis, world_up_rotation
from relief3d.geometry.rotations import quat_wxyz_from_matrix
from relief3d.io.atomic import write_bytes
from relief3d.io.whole_file import read_whole

_JSON_CHUNK, _BIN_CHUNK = 0x4E4F534A, 0x004E4942
_FLOAT, _USHORT, _UINT = 5126, 5123, 5125
_ARRAY_BUFFER, _INDEX_BUFFER = 34962, 34963
_GENERATOR = "relief3d"


def write_glb(
    path: str | Path,
    mesh: Mesh,
    *,
    up: UpAxis = "-y",
    texture_format: Literal["jpeg", "png"] = "jpeg",
    quality: int = 92,
    name: str = "mesh",
) -> Path:
    """Write a mesh as GLB, atomically.

    Args:
        path: target file.
        mesh: with ``texture`` and ``uv``, or ``rgb``, or neither.
        up: the axis of the mesh's coordinates that points up; ``"-y"`` suits worlds that follow the
            OpenCV axes of an upright camera, ``"z"`` maps and floor plans.
        texture_format: how the texture is embedded; PNG is lossless and several times larger.
        quality: JPEG quality.
        name: name of the node.

    Raises:
        InputError: empty mesh, positions that are not finite, indices out of range, or above 4 GiB.
    """
    vertices, faces = _checked(mesh, path)
    textured = mesh.texture is not None and mesh.uv is not None
    builder = _Builder()
    attributes = {"POSITION": builder.accessor(vertices, "VEC3", _FLOAT, _ARRAY_BUFFER, bounds=True)}
    if mesh.normals is not None:
        normals = _unit_normals(mesh.normals.detach().cpu().numpy(), vertices, faces)
        attributes["NORMAL"] = builder.accessor(normals, "VEC3", _FLOAT, _ARRAY_BUFFER)
    if textured and mesh.uv is not None:
        uv = mesh.uv.detach().cpu().numpy().astype(np.float32)
        if uv.shape != (len(vertices), 2) or not np.isfinite(uv).all():
            raise InputError("uv must be finite and one pair per vertex", path=path)
        flipped = np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=1)
        attributes["TEXCOORD_0"] = builder.accessor(flipped, "VEC2", _FLOAT, _ARRAY_BUFFER)
    elif mesh.rgb is not None:
        colours = mesh.rgb.detach().cpu().numpy()
        if colours.shape != (len(vertices), 3) or colours.dtype != np.uint8:
            raise InputError("vertex colours must be (V, 3) uint8", path=path)
        linear = np.full((len(vertices), 4), 65535, dtype=np.uint16)
        linear[:, :3] = np.rint(_linear_from_srgb(colours / 255.0) * 65535.0)
        attributes["COLOR_0"] = builder.accessor(linear, "VEC4", _USHORT, _ARRAY_BUFFER, normalized=True)
    indices = builder.accessor(faces.astype(np.uint32).reshape(-1), "SCALAR", _UINT, _INDEX_BUFFER)
    material: dict[str, Any] = {
        "name": name,
        "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
        "doubleSided": True,
        "extensions": {"KHR_materials_unlit": {}},
    }
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": _GENERATOR, "extras": {"up": up}},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": name, **_node_rotation(up)}],
        "meshes": [
            {"name": name, "primitives": [{"attributes": attributes, "indices": indices, "material": 0}]}
        ],
        "materials": [material],
    }
    if textured and mesh.texture is not None:
        image = _encode(mesh.texture.detach().cpu().numpy(), texture_format, quality, path)
        document["images"] = [{"bufferView": builder.view(image), "mimeType": f"image/{texture_format}"}]
        document["samplers"] = [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}]
        document["textures"] = [{"source": 0, "sampler": 0}]
        material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}
    return write_bytes(path, builder.finish(document, path))


def read_glb(path: str | Path, *, keep_axes: bool = True) -> Mesh:
    """Read all triangles of a GLB as one mesh (through trimesh).

    Args:
        path: the file. Buffers and pictures outside the file are not opened.
        keep_axes: files of relief3d come back in the scene's own coordinates; False (and always for
            other files) gives the glTF world with +Y up.

    Returns:
        Mesh with node transforms applied. The texture is kept when the file has exactly one textured
        part; several parts are merged with vertex colours.

    Raises:
        InputError: naming the file, when it is not GLB, damaged, without triangles or not finite.
    """
    path = Path(path)
    data = read_whole(path)
    document = _header(data, path)
    import trimesh

    try:
        scene = trimesh.load_scene(io.BytesIO(data), file_type="glb", process=False)
        parts = _parts(scene, trimesh.Trimesh)
    except Exception as exc:  # trimesh raises many types on damaged files
        raise InputError(f"the GLB file is damaged ({type(exc).__name__})", path=path) from exc
    if not parts:
        raise InputError("the GLB file holds no triangles", path=path)
    asset = document.get("asset")
    asset = asset if isinstance(asset, dict) else {}
    generator = str(asset.get("generator", ""))
    # trimesh and Open3D store sRGB bytes where the specification wants linear values.
    linear = not any(word in generator.lower() for word in ("trimesh", "open3d"))
    mesh = _merge(parts, linear)
    extras = asset.get("extras")
    up = extras.get("up") if isinstance(extras, dict) else None
    if keep_axes and generator == _GENERATOR and up in ("x", "y", "z", "-x", "-y", "-z"):
        R = world_up_rotation(up, "y")[:3, :3].to(torch.float32)
        normals = None if mesh.normals is None else mesh.normals @ R
        mesh = Mesh(mesh.vertices @ R, mesh.faces, mesh.rgb, normals, mesh.uv, mesh.texture)
    if not bool(torch.isfinite(mesh.vertices).all()):
        raise InputError("the GLB file holds positions that are not finite", path=path)
    return mesh


class _Builder:
    """Collects the binary chunk with its views and accessors."""

    def __init__(self) -> None:
        self.blobs: list[bytes] = []
        self.size = 0
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def view(self, data: bytes, target: int | None = None) -> int:
        self.views.append({"buffer": 0, "byteOffset": self.size, "byteLength": len(data)})
        if target is not None:
            self.views[-1]["target"] = target
        padding = b"\0" * (-len(data) % 4)
        self.blobs += [data, padding]
        self.size += len(data) + len(padding)
        return len(self.views) - 1

    def accessor(
        self,
        array: NDArray[np.generic],
        kind: str,
        component: int,
        target: int,
        *,
        bounds: bool = False,
        normalized: bool = False,
    ) -> int:
        contiguous = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<")))
        entry: dict[str, Any] = {
            "bufferView": self.view(contiguous.tobytes(), target),
            "componentType": component,
            "count": len(array),
            "type": kind,
        }
        if normalized:
            entry["normalized"] = True
        if bounds:
            entry["min"], entry["max"] = array.min(axis=0).tolist(), array.max(axis=0).tolist()
        self.accessors.append(entry)
        return len(self.accessors) - 1

    def finish(self, document: dict[str, Any], path: str | Path) -> bytes:
        document |= {
            "accessors": self.accessors,
            "bufferViews": self.views,
            "buffers": [{"byteLength": self.size}],
        }
        text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode("utf-8")
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + self.size
        if total >= 2**32:
            raise InputError(
                "the mesh needs more than the 4 GiB of a GLB file", path=path, remedy="simplify it"
            )
        head = struct.pack("<4sII", b"glTF", 2, total) + struct.pack("<II", len(text), _JSON_CHUNK)
        return b"".join([head, text, struct.pack("<II", self.size, _BIN_CHUNK), *self.blobs])


def _checked(mesh: Mesh, path: str | Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    vertices = mesh.vertices.detach().cpu().numpy().astype(np.float32)
    faces = mesh.faces.detach().cpu().numpy()
    if len(vertices) == 0 or len(faces) == 0:
        raise InputError("an empty mesh cannot be written as GLB", path=path)
    if vertices.shape[1:] != (3,) or faces.shape[1:] != (3,):
        raise InputError("a mesh needs (V, 3) vertices and (F, 3) faces", path=path)
    if not np.isfinite(vertices).all():
        raise InputError("positions that are not finite cannot be written", path=path)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise InputError("mesh faces name vertices that do not exist", path=path)
    return vertices, faces.astype(np.int64)


def _unit_normals(
    normals: NDArray[np.floating[Any]], vertices: NDArray[np.float32], faces: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Unit normals; where one is zero or not finite, the area-weighted mean of its faces, or +z."""
    out = np.nan_to_num(normals.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    length = np.linalg.norm(out, axis=1)
    if (length < 1e-6).any():
        corners = vertices[faces].astype(np.float64)
        area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        computed = np.zeros_like(out)
        for k in range(3):
            np.add.at(computed, faces[:, k], area)
        weak = length < 1e-6
        out[weak] = computed[weak]
        tiny = np.linalg.norm(out, axis=1) < 1e-30
        out[tiny] = (0.0, 0.0, 1.0)
        length = np.linalg.norm(out, axis=1)
    return (out / length[:, None]).astype(np.float32)


def _node_rotation(up: UpAxis) -> dict[str, Any]:
    R = world_up_rotation(up, "y")[:3, :3]
    if torch.equal(R, torch.eye(3, dtype=R.dtype)):
        return {}
    w, x, y, z = quat_wxyz_from_matrix(R).tolist()
    return {"rotation": [x, y, z, w]}


def _linear_from_srgb(v: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def _srgb_from_linear(v: NDArray[np.float64]) -> NDArray[np.float64]:
    v = np.clip(v, 0.0, 1.0)
    return np.where(v <= 0.0031308, v * 12.92, 1.055 * v ** (1 / 2.4) - 0.055)


def _encode(texture: NDArray[np.generic], format: str, quality: int, path: str | Path) -> bytes:
    if texture.ndim != 3 or texture.shape[2] != 3 or texture.dtype != np.uint8 or 0 in texture.shape:
        raise InputError("a texture must be (H, W, 3) uint8", path=path)
    from PIL import Image

    image = Image.fromarray(texture)
    stream = io.BytesIO()
    options = {"quality": quality, "subsampling": 0} if format == "jpeg" else {"compress_level": 6}
    image.save(stream, format.upper(), **options)
    return stream.getvalue()


def _header(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON chunk, after checking magic, version and lengths."""
    if len(data) < 20 or data[:4] != b"glTF":
        raise InputError("not a GLB file (it does not start with 'glTF')", path=path)
    version, total, length, kind = struct.unpack_from("<IIII", data, 4)
    if version != 2 or kind != _JSON_CHUNK:
        raise InputError(f"GLB version {version} is not supported", path=path, remedy="export glTF 2.0")
    if total > len(data) or 20 + length > len(data):
        raise InputError(
            f"the GLB header declares {total} bytes but the file has {len(data)}",
            path=path,
            remedy="the file may be cut short",
        )
    try:
        document = json.loads(data[20 : 20 + length])
    except (ValueError, RecursionError) as exc:
        raise InputError("the JSON part of the GLB file is damaged", path=path) from exc
    if not isinstance(document, dict):
        raise InputError("the JSON part of the GLB file is damaged", path=path)
    _check_counts(document, len(data), path)
    return document


def _check_counts(document: dict[str, Any], size: int, path: Path) -> None:
    """Refuse accessors that ask for more than the file holds, before anything reserves memory for them."""
    accessors = document.get("accessors", [])
    for entry in accessors if isinstance(accessors, list) else []:
        count = entry.get("count", 0) if isinstance(entry, dict) else -1
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= size:
            raise InputError(f"the GLB file declares {count} values, more than it holds", path=path)


class _Part:
    """One triangle set with whatever colour it has."""

    def __init__(self, vertices: NDArray[Any], faces: NDArray[Any], normals: NDArray[Any] | None) -> None:
        self.vertices, self.faces, self.normals = vertices, faces, normals
        self.colours: NDArray[Any] | None = None
        self.uv: NDArray[Any] | None = None
        self.texture: NDArray[Any] | None = None


def _parts(scene: Any, triangles: Any) -> list[_Part]:
    parts = []
    for node in sorted(scene.graph.nodes_geometry):
        matrix, key = scene.graph[node]
        geometry = scene.geometry[key]
        if not isinstance(geometry, triangles) or len(geometry.faces) == 0:
            continue
        if geometry.faces.min() < 0 or geometry.faces.max() >= len(geometry.vertices):
            raise IndexError("face names a vertex that does not exist")
        R, t = np.asarray(matrix)[:3, :3], np.asarray(matrix)[:3, 3]
        has_normals = "vertex_normals" in geometry._cache.cache
        normals = np.asarray(geometry.vertex_normals) @ np.linalg.inv(R) if has_normals else None
        part = _Part(np.asarray(geometry.vertices) @ R.T + t, np.asarray(geometry.faces), normals)
        if np.linalg.det(R) < 0:
            part.faces = part.faces[:, ::-1]
        _read_colour(geometry.visual, part)
        parts.append(part)
    return parts


def _read_colour(visual: Any, part: _Part) -> None:
    attributes = getattr(visual, "vertex_attributes", None)
    stored = attributes["color"] if attributes is not None and "color" in attributes else None
    if stored is None and getattr(visual, "kind", None) == "vertex":
        stored = visual.vertex_colors
    if stored is not None and len(stored) == len(part.vertices):
        part.colours = _unit_range(np.asarray(stored))[:, :3]
    uv, material = getattr(visual, "uv", None), getattr(visual, "material", None)
    picture = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    if uv is not None and picture is not None and len(uv) == len(part.vertices):
        part.uv, part.texture = np.asarray(uv), np.asarray(picture.convert("RGB"))


def _unit_range(colours: NDArray[Any]) -> NDArray[np.float64]:
    top = {"u1": 255.0, "u2": 65535.0}.get(colours.dtype.str[1:], 1.0)
    return np.clip(np.nan_to_num(colours.astype(np.float64) / top), 0.0, 1.0)


def _merge(parts: list[_Part], linear: bool) -> Mesh:
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts])
    vertices = torch.from_numpy(np.concatenate([p.vertices for p in parts]).astype(np.float32))
    faces = torch.from_numpy(np.concatenate([p.faces + o for p, o in zip(parts, offsets)]).astype(np.int64))
    normals = None
    if all(p.normals is not None for p in parts):
        stacked = np.concatenate([p.normals for p in parts if p.normals is not None])
        lengths = np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-30)
        normals = torch.from_numpy((stacked / lengths).astype(np.float32))
    first = parts[0]
    if len(parts) == 1 and first.uv is not None and first.texture is not None:
        uv = torch.from_numpy(first.uv.astype(np.float32))
        return Mesh(vertices, faces, None, normals, uv, torch.from_numpy(first.texture.copy()))
    colours = [_vertex_colours(part, linear) for part in parts]
    rgb = None
    if any(c is not None for c in colours):
        filled = [
            np.full((len(p.vertices), 3), 255, np.uint8) if c is None else c for c, p in zip(colours, parts)
        ]
        rgb = torch.from_numpy(np.concatenate(filled))
    return Mesh(vertices, faces, rgb, normals)


def _vertex_colours(part: _Part, linear: bool) -> NDArray[np.uint8] | None:
    if part.colours is not None:
        values = _srgb_from_linear(part.colours) if linear else part.colours
        return np.rint(values * 255.0).astype(np.uint8)
    if part.uv is None or part.texture is None:
        return None
    height, width = part.texture.shape[:2]
    x = np.clip((part.uv[:, 0] * width).astype(np.int64), 0, width - 1)
    y = np.clip(((1.0 - part.uv[:, 1]) * height).astype(np.int64), 0, height - 1)
    return part.texture[y, x].astype(np.uint8)
