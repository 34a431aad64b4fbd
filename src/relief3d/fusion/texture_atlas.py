"""Charts of a mesh and their places in a texture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.optional import require


@dataclass(frozen=True)
class Atlas:
    """Where every corner of every face lies in the texture.

    Attributes:
        vertex: (W,) int64 mesh vertex of each texture vertex.
        faces: (F, 3) int64 into the texture vertices.
        xy: (W, 2) float64 texels, x right, y down, texel centres at +0.5.
        chart: (W,) int64 chart of each texture vertex.
        width: texels.
        height: texels.
        scale: texels per input unit.
    """

    vertex: Tensor
    faces: Tensor
    xy: Tensor
    chart: Tensor
    width: int
    height: int
    scale: float


def face_charts(labels: Tensor, adjacency: Tensor) -> Tensor:
    """(F,) int64 chart of each face: connected faces of one label; faces with label -1 stand alone."""
    graph = require("scipy.sparse.csgraph", extra="mesh", purpose="texture baking")
    sparse = require("scipy.sparse", extra="mesh", purpose="texture baking")
    one, two = adjacency[:, 0], adjacency[:, 1]
    joined = (labels[one] == labels[two]) & (labels[one] >= 0)
    pairs = adjacency[joined].numpy()
    count = labels.shape[0]
    links = sparse.coo_matrix(
        (np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count)
    )
    return torch.from_numpy(graph.connected_components(links, directed=False)[1].astype(np.int64))


def pack_shelves(width: np.ndarray, height: np.ndarray, limit: int) -> tuple[np.ndarray, int]:
    """Lower-left corners (N, 2) of rectangles in rows of at most ``limit`` width, and the height used.

    Tallest first, so that the rectangles of a row have similar heights.
    """
    place = np.zeros((len(width), 2), dtype=np.int64)
    x = y = row = 0
    for i in np.argsort(-height, kind="stable"):
        if x + width[i] > limit:
            x, y, row = 0, y + row, 0
        place[i] = x, y
        x += int(width[i])
        row = max(row, int(height[i]))
    return place, y + row


def build_atlas(
    faces: Tensor,
    corners: Tensor,
    charts: Tensor,
    *,
    max_size: int = 4096,
    padding: int = 2,
    max_scale: float = 1.0,
) -> Atlas:
    """Pack charts, given a flat position of every face corner within its chart.

    The scale is the largest, up to ``max_scale``, at which all charts fit a square of ``max_size`` texels.

    Args:
        faces: (F, 3) mesh vertices.
        corners: (F, 3, 2) positions; corners of one vertex in one chart must agree.
        charts: (F,) chart of each face, numbered from 0.
        max_size: largest width and height in texels.
        padding: texels kept free around every chart.
        max_scale: texels per unit of ``corners``.

    Raises:
        InputError: when there are so many charts that they do not fit at any scale.
    """
    count = int(charts.max()) + 1
    low = torch.full((count, 2), torch.inf, dtype=torch.float64)
    high = torch.full((count, 2), -torch.inf, dtype=torch.float64)
    owner = charts[:, None].expand(-1, 3).reshape(-1, 1).expand(-1, 2)
    flat = corners.double().reshape(-1, 2)
    low.scatter_reduce_(0, owner, flat, "amin")
    high.scatter_reduce_(0, owner, flat, "amax")
    size = (high - low).numpy()
    scale = max_scale
    for _ in range(60):
        boxes = np.ceil(size * scale).astype(np.int64) + 1 + 2 * padding
        area = float((boxes[:, 0] * boxes[:, 1]).sum())
        side = max(int(boxes[:, 0].max()), min(max_size, _round_up(1.08 * area**0.5)))
        if side <= max_size:
            place, used = pack_shelves(boxes[:, 0], boxes[:, 1], side)
            if used <= max_size:
                break
        scale *= 0.93
    else:
        raise InputError(
            f"{count} texture charts do not fit {max_size} x {max_size} texels",
            remedy="simplify the mesh or allow a larger texture",
        )
    keys = charts[:, None] * (int(faces.max()) + 1) + faces
    unique, inverse = torch.unique(keys, return_inverse=True)
    position = torch.zeros(unique.shape[0], 2, dtype=torch.float64)
    position[inverse.reshape(-1)] = flat
    chart = torch.div(unique, int(faces.max()) + 1, rounding_mode="floor")
    offset = torch.from_numpy(place).double() + padding + 0.5
    xy = (position - low[chart]) * scale + offset[chart]
    vertex = unique - chart * (int(faces.max()) + 1)
    return Atlas(vertex, inverse.view(-1, 3), xy, chart, side, max(4, _round_up(float(used), 4)), scale)


def _round_up(value: float, step: int = 64) -> int:
    return -(-int(np.ceil(value)) // step) * step


def dilate(texture: Tensor, covered: Tensor, texels: int) -> Tensor:
    """Texture (3, H, W) whose uncovered texels next to charts carry the mean of their covered neighbours."""
    covered = covered.to(texture.dtype)[None]
    texture = texture * covered
    for _ in range(texels):
        total = torch.nn.functional.avg_pool2d(texture[None], 3, 1, 1, count_include_pad=True)[0]
        share = torch.nn.functional.avg_pool2d(covered[None], 3, 1, 1, count_include_pad=True)[0]
        fresh = (covered == 0) & (share > 0)
        texture = torch.where(fresh, total / share.clamp_min(1e-9), texture)
        covered = torch.maximum(covered, fresh.to(texture.dtype))
    return texture
