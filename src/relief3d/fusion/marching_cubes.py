"""Marching cubes over sparse voxel blocks, with scikit-image doing the cubes.

Blocks are assembled into dense chunks that overlap by one layer; a cube is evaluated only when all its
eight corners were observed often enough, so no hole is ever filled. Vertices on the seams between
chunks are welded afterwards.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.optional import require
from relief3d.fusion.block_update import Volume, pack_blocks, unpack_blocks
from relief3d.fusion.protocols import empty_mesh

CHUNK_BLOCKS = 8


def extract_blocks(
    volume: Volume,
    keys: Tensor,
    slots: Tensor,
    resolution: int,
    voxel_size: float,
    min_weight: float,
) -> Mesh:
    """The zero level of a sparse volume.

    Args:
        volume: storage, voxels of a block ordered x, y, z with z fastest.
        keys: (N,) sorted packed block coordinates.
        slots: (N,) their storage rows.
        resolution: voxels along the edge of a block.
        voxel_size: world units; voxel ``i`` sits at ``i * voxel_size``.
        min_weight: smallest weight of a voxel that counts.

    Returns:
        The mesh, with vertex colours when the volume has them; empty when there is no surface.
    """
    if keys.numel() == 0:
        return empty_mesh()
    blocks = unpack_blocks(keys)
    # A seam cube belongs to the chunk of its lower corner, so chunks also start at the blocks below.
    chunks = torch.unique(torch.div(blocks, CHUNK_BLOCKS, rounding_mode="floor"), dim=0)
    vertices: list[np.ndarray] = []
    faces: list[np.ndarray] = []
    colors: list[np.ndarray] = []
    count = 0
    for chunk in chunks:
        part = _extract_chunk(volume, keys, slots, chunk, resolution, max(min_weight, 1e-9))
        if part is None:
            continue
        vertices.append(part[0])
        faces.append(part[1] + count)
        colors.append(part[2])
        count += part[0].shape[0]
    if not vertices:
        return empty_mesh()
    span = CHUNK_BLOCKS * resolution
    points, triangles, tint = _weld(
        np.concatenate(vertices), np.concatenate(faces), np.concatenate(colors), span
    )
    rgb = torch.from_numpy(tint).mul(255).round().clamp(0, 255).to(torch.uint8)
    return Mesh(
        torch.from_numpy((points * voxel_size).astype(np.float32)),
        torch.from_numpy(triangles),
        rgb=rgb if volume.color is not None else None,
    )


def _extract_chunk(
    volume: Volume, keys: Tensor, slots: Tensor, chunk: Tensor, resolution: int, min_weight: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Vertices in voxel units of the world grid (float64), faces, colours of one chunk; None if empty."""
    measure = require("skimage.measure", extra="mesh", purpose="mesh extraction")
    blocks = CHUNK_BLOCKS + 1
    axis = torch.arange(blocks, device=keys.device)
    local = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)
    wanted = pack_blocks(chunk * CHUNK_BLOCKS + local)
    place = torch.searchsorted(keys, wanted).clamp(max=keys.shape[0] - 1)
    known = keys[place] == wanted
    rows, cells = slots[place[known]], local[known]
    size = blocks * resolution

    def dense(values: Tensor, fill: float) -> Tensor:
        tail = values.shape[2:]
        cube = torch.full(
            (blocks, blocks, blocks, resolution, resolution, resolution, *tail), fill, device=values.device
        )
        cube[cells[:, 0], cells[:, 1], cells[:, 2]] = values[rows].view(
            -1, resolution, resolution, resolution, *tail
        )
        order = (0, 3, 1, 4, 2, 5) + ((6,) if tail else ())
        end = CHUNK_BLOCKS * resolution + 1
        return cube.permute(*order).reshape(size, size, size, *tail)[:end, :end, :end]

    weight = dense(volume.weight, 0.0)
    tsdf = dense(volume.tsdf, 1.0)
    good = (weight >= min_weight) & torch.isfinite(tsdf)
    if not bool(((tsdf < 0) & good).any()) or not bool(((tsdf >= 0) & good).any()):
        return None
    cube_good = good[:-1, :-1, :-1].clone()
    for i, j, k in ((0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)):
        cube_good &= good[i : i + size - resolution, j : j + size - resolution, k : k + size - resolution]
    # scikit-image reads its mask at the far corner of each cube.
    mask = torch.zeros_like(good)
    mask[1:, 1:, 1:] = cube_good
    if not bool(mask.any()):
        return None
    field = torch.where(good, tsdf, torch.ones_like(tsdf)).cpu().numpy()
    try:
        points, triangles, _, _ = measure.marching_cubes(
            field, 0.0, mask=mask.cpu().numpy(), gradient_direction="descent", allow_degenerate=False
        )
    except RuntimeError:  # scikit-image's way to say that no masked cube is crossed
        return None
    if volume.color is None:
        tint = np.zeros((points.shape[0], 3), dtype=np.float32)
    else:
        tint = _edge_colors(dense(volume.color, 0.0).cpu().numpy(), points)
    origin = (chunk * CHUNK_BLOCKS * resolution).cpu().numpy()
    return points.astype(np.float64) + origin, triangles.astype(np.int64), tint


def _edge_colors(grid: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Colours (N, 3) between the two voxels of the edge on which each vertex lies."""
    low, high = np.floor(points).astype(np.int64), np.ceil(points).astype(np.int64)
    share = (points - low).max(axis=1, keepdims=True)
    first = grid[low[:, 0], low[:, 1], low[:, 2]]
    second = grid[high[:, 0], high[:, 1], high[:, 2]]
    return (first + share * (second - first)).astype(np.float32)


def _weld(
    points: np.ndarray, faces: np.ndarray, colors: np.ndarray, span: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge vertices that coincide on chunk seams; drop unused vertices and collapsed faces."""
    spatial = require("scipy.spatial", extra="mesh", purpose="mesh extraction")
    graph = require("scipy.sparse.csgraph", extra="mesh", purpose="mesh extraction")
    sparse = require("scipy.sparse", extra="mesh", purpose="mesh extraction")
    seam = np.nonzero((np.abs(points / span - np.round(points / span)) * span < 1e-3).any(axis=1))[0]
    target = np.arange(points.shape[0])
    if seam.size:
        pairs = spatial.cKDTree(points[seam]).query_pairs(1e-4, output_type="ndarray")
        links = sparse.coo_matrix(
            (np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(seam.size, seam.size)
        )
        count, label = graph.connected_components(links, directed=False)
        first = np.full(count, points.shape[0])
        np.minimum.at(first, label, seam)
        target[seam] = first[label]
    faces = target[faces]
    whole = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    faces = faces[whole]
    used, faces = np.unique(faces, return_inverse=True)
    return points[used], faces.reshape(-1, 3).astype(np.int64), colors[used]
