"""Values that are linear on the Delaunay triangles of scattered points, at all cells of a grid.

scipy finds the triangle of every query by walking, after a LAPACK call per triangle; those tiny calls wake BLAS
threads, which took a hundred times longer than the work itself on a busy machine. Here the triangles are drawn: every
row that a triangle crosses gives one span of cells.
"""

from __future__ import annotations

import numpy as np

_EDGE = 1e-9
"""Cells this far outside a triangle still belong to it, so that none is lost between two of them."""


def linear_on_grid(
    xy: np.ndarray, values: np.ndarray, height: int, width: int, stride: float = 1.0
) -> np.ndarray | None:
    """Linear interpolation at cell centres.

    Args:
        xy: (P, 2) points in pixels, pixel centres at +0.5.
        values: (P,).
        height: rows of cells.
        width: columns of cells.
        stride: pixels per cell; the centre of cell c is at ``(c + 0.5) * stride``.

    Returns:
        (height, width) float64, NaN outside of all triangles; None where the points make no triangle.
    """
    from scipy.spatial import Delaunay, QhullError

    if len(xy) < 3:
        return None
    cells = np.asarray(xy, np.float64) / stride - 0.5
    try:
        corners = Delaunay(cells).simplices
    except QhullError:  # all points on one line
        return None
    owner = _owners(cells[corners], height, width)
    out = np.full(height * width, np.nan)
    inside = np.nonzero(owner >= 0)[0]
    triangle = corners[owner[inside]]
    a, b, c = (cells[triangle[:, k]] for k in range(3))
    p = np.stack([inside % width, inside // width], 1)
    area = _cross(b - a, c - a)
    second, third = _cross(p - a, c - a) / area, _cross(b - a, p - a) / area
    weight = np.clip(np.stack([1 - second - third, second, third], 1), 0, 1)
    out[inside] = (weight * values[triangle]).sum(1) / weight.sum(1)
    return out.reshape(height, width)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])


def _owners(triangles: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height * width,) number of a triangle that holds each cell, -1 for none; triangles (T, 3, 2) in cells."""
    owner = np.full(height * width, -1, np.int64)
    wide = np.abs(_cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])) > 1e-12
    y = triangles[..., 1]
    first = np.clip(np.ceil(y.min(1) - _EDGE), 0, height).astype(np.int64)
    last = np.clip(np.floor(y.max(1) + _EDGE), -1, height - 1).astype(np.int64)
    which, row = _ranges(first, np.where(wide, last, first - 1))
    low, high = np.full(len(which), np.inf), np.full(len(which), -np.inf)
    for k in range(3):
        start, end = triangles[which, k], triangles[which, (k + 1) % 3]
        rise = end[:, 1] - start[:, 1]
        flat = np.abs(rise) < 1e-12
        part = (row - start[:, 1]) / np.where(flat, 1.0, rise)
        crossed = ~flat & (part >= -_EDGE) & (part <= 1 + _EDGE)
        x = start[:, 0] + np.clip(part, 0, 1) * (end[:, 0] - start[:, 0])
        low, high = np.where(crossed, np.minimum(low, x), low), np.where(crossed, np.maximum(high, x), high)
    left = np.clip(np.ceil(np.minimum(low, width) - _EDGE), 0, width).astype(np.int64)
    right = np.clip(np.floor(np.maximum(high, -1) + _EDGE), -1, width - 1).astype(np.int64)
    span, column = _ranges(left, right)
    owner[row[span] * width + column] = which[span]
    return owner


def _ranges(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the range and value, for all integers of all ranges ``first .. last`` (inclusive, empty allowed)."""
    count = np.maximum(last - first + 1, 0)
    index = np.repeat(np.arange(len(first)), count)
    begin = np.cumsum(count) - count
    return index, np.arange(len(index)) - begin[index] + first[index]
