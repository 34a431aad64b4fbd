"""The 3D data inside the page: quantised arrays, delta-coded byte planes, gzip, base64.

Layout: a JSON header describes each array (type, components, rows, byte range) and one binary block holds them
all. Every array is stored as *planes*: each component's column is delta-coded modulo 2^bits and split into
bytes, low byte first. That turns spatially ordered data into long runs, which gzip then packs well.
"""

from __future__ import annotations

import base64
import dataclasses
import gzip
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Scene
from relief3d.core.seeding import torch_generator
from relief3d.report.geometry3d import (
    Bounds,
    clip_mesh,
    decimate,
    estimate_up,
    focus_bounds,
    morton_order,
    quantise,
    scene_bounds,
    vertex_colours,
)

ArrayType = Literal["u8", "u16", "u32"]
_BYTES: dict[str, int] = {"u8": 1, "u16": 2, "u32": 4}
_NUMPY: dict[str, Any] = {"u8": np.uint8, "u16": np.dtype("<u2"), "u32": np.dtype("<u4")}


@dataclass(frozen=True)
class PayloadLimits:
    """Upper limits that keep the page light: triangles, fused points and structure-from-motion points."""

    max_faces: int = 300_000
    max_points: int = 200_000
    max_sparse: int = 50_000


@dataclass
class Payload:
    """Header (JSON types only) and binary block under construction."""

    header: dict[str, Any] = field(default_factory=dict)
    blocks: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, name: str, values: Tensor, dtype: ArrayType) -> None:
        """Append (N, C) non-negative integers that fit ``dtype``."""
        data = encode_planes(values, dtype)
        arrays = self.header.setdefault("arrays", {})
        arrays[name] = {
            "type": dtype,
            "rows": int(values.shape[0]),
            "columns": int(values.shape[1]),
            "offset": self.size,
            "bytes": len(data),
        }
        self.blocks.append(data)
        self.size += len(data)

    def binary(self) -> bytes:
        """The gzip-compressed block; the same input gives the same bytes (no time stamp inside)."""
        return gzip.compress(b"".join(self.blocks), compresslevel=6, mtime=0)

    def base64(self) -> str:
        """The compressed block as ASCII text."""
        return base64.b64encode(self.binary()).decode("ascii")


def encode_planes(values: Tensor, dtype: ArrayType) -> bytes:
    """(N, C) integers to delta-coded byte planes."""
    table = np.ascontiguousarray(values.cpu().numpy().astype(_NUMPY[dtype]).T)  # (C, N)
    delta = np.diff(table, axis=1, prepend=np.zeros((table.shape[0], 1), dtype=table.dtype))
    planes = delta.astype(_NUMPY[dtype]).view(np.uint8).reshape(table.shape[0], -1, _BYTES[dtype])
    return np.ascontiguousarray(planes.transpose(0, 2, 1)).tobytes()


def decode_planes(data: bytes, rows: int, columns: int, dtype: ArrayType) -> Tensor:
    """Inverse of :func:`encode_planes`; (rows, columns) int64."""
    planes = np.frombuffer(data, dtype=np.uint8).reshape(columns, _BYTES[dtype], rows)
    delta = np.ascontiguousarray(planes.transpose(0, 2, 1)).view(_NUMPY[dtype]).reshape(columns, rows)
    table = np.cumsum(delta, axis=1, dtype=_NUMPY[dtype])
    return torch.from_numpy(table.T.astype(np.int64))


def build_payload(scene: Scene, limits: PayloadLimits, seed: int = 0) -> Payload:
    """Everything the interactive view draws.

    Header keys: ``bounds`` (low, high), ``focus`` (centre and radius of what to look at first), ``up`` (3),
    ``metric``, ``ordered``, ``cameras`` (list with ``view`` index, ``name``, ``w``, ``h``, ``K`` = fx fy cx cy in
    pixels, ``pose`` = world_from_cam row-major 3x4), ``full`` (counts before reduction), ``arrays``.

    Args:
        scene: cameras, sparse points, points and mesh, each of which may be missing.
        limits: how much of each is kept.
        seed: for the random choice of points when there are too many.
    """
    scene = _on_cpu(scene)
    bounds, focus = scene_bounds(scene), focus_bounds(scene)
    payload = Payload()
    payload.header.update(
        focus={"centre": ((focus.low + focus.high) / 2).tolist(), "radius": focus.diagonal / 2},
        bounds={"low": bounds.low.tolist(), "high": bounds.high.tolist()},
        up=estimate_up(scene).tolist(),
        metric=scene.metric,
        ordered=scene.ordered,
        cameras=_cameras(scene),
        full={
            "faces": 0 if scene.mesh is None else int(scene.mesh.faces.shape[0]),
            "points": 0 if scene.points is None else int(scene.points.xyz.shape[0]),
            "sparse": 0 if scene.sparse is None else len(scene.sparse),
        },
    )
    _add_mesh(payload, scene, bounds, limits.max_faces)
    if scene.points is not None:
        cloud = scene.points
        _add_points(
            payload, "points", cloud.xyz, cloud.rgb, cloud.confidence, bounds, limits.max_points, seed
        )
    if scene.sparse is not None:
        sparse = scene.sparse
        _add_points(payload, "sparse", sparse.xyz, sparse.rgb, None, bounds, limits.max_sparse, seed)
    return payload


def _on_cpu(scene: Scene) -> Scene:
    """The scene with its geometry in main memory, detached from any graph."""

    def moved(part: Any) -> Any:
        if part is None:
            return None
        values = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
        return type(part)(**{k: v.detach().cpu() if isinstance(v, Tensor) else v for k, v in values.items()})

    return scene.replace(mesh=moved(scene.mesh), points=moved(scene.points), sparse=moved(scene.sparse))


def _cameras(scene: Scene) -> list[dict[str, Any]]:
    out = []
    for index in scene.posed:
        camera = scene.views[index].camera
        if camera.K is None or camera.world_from_cam is None:
            continue
        K = camera.K
        out.append(
            {
                "view": index,
                "name": scene.views[index].name,
                "w": camera.width,
                "h": camera.height,
                "K": [round(float(v), 4) for v in (K[0, 0], K[1, 1], K[0, 2], K[1, 2])],
                "pose": [round(float(v), 9) for v in camera.world_from_cam[:3].reshape(-1)],
            }
        )
    return out


def _add_mesh(payload: Payload, scene: Scene, bounds: Bounds, max_faces: int) -> None:
    if scene.mesh is None or scene.mesh.faces.shape[0] == 0:
        return
    mesh = decimate(clip_mesh(scene.mesh, bounds), max_faces)
    if mesh.faces.shape[0] == 0:
        return
    order = morton_order(mesh.vertices, bounds)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.shape[0])
    faces = rank[mesh.faces]
    faces = faces[torch.argsort(faces.min(dim=1).values, stable=True)]
    colours = vertex_colours(mesh)
    payload.add("mesh.position", quantise(mesh.vertices[order], bounds), "u16")
    payload.add("mesh.index", faces, "u32")
    if colours is not None:
        payload.add("mesh.colour", colours[order], "u8")


def _add_points(
    payload: Payload,
    name: str,
    xyz: Tensor,
    rgb: Tensor | None,
    confidence: Tensor | None,
    bounds: Bounds,
    limit: int,
    seed: int,
) -> None:
    keep = torch.nonzero(torch.isfinite(xyz).all(dim=-1) & bounds.contains(xyz)).squeeze(1)
    if keep.shape[0] > limit:
        keep = keep[torch.randperm(keep.shape[0], generator=torch_generator(seed))[:limit]]
    if keep.shape[0] == 0:
        return
    keep = keep[morton_order(xyz[keep], bounds)]
    payload.add(f"{name}.position", quantise(xyz[keep], bounds), "u16")
    if rgb is not None:
        payload.add(f"{name}.colour", rgb[keep], "u8")
    if confidence is not None:
        level = torch.nan_to_num(confidence[keep].to(torch.float32)).clamp(0, 1) * 255
        payload.add(f"{name}.confidence", level.round().long()[:, None], "u8")
