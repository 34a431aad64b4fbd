"""The k nearest prompt pixels of every cell of a grid, exactly, for a batch of pictures at once and on any device.

On the CPU scipy's KD-tree is the fastest, one tree per picture. It knows no GPU; there (and without scipy) squares of
cells share their candidates: for a square whose cells lie within r of its centre, and whose k-th nearest point lies d
from the centre, every one of the k nearest points of every cell lies within d + 2 r of the centre. Squares are divided
again and again, each handing its candidates to its parts, so that at the end a cell compares a handful of points.
Memory is bounded by working on groups of squares with about equally many candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.optional import available, require

SIDES = (32, 8, 1)
"""Cells along a square, coarse to fine; each divides the one before it."""
_BUDGET_CPU = 2**19
_BUDGET_OTHER = 2**24
"""Distances held at once."""


@dataclass(frozen=True)
class PromptPoints:
    """Marked pixels of B pictures as lists, padded to P.

    Attributes:
        flat: (B, P) int64 row-major pixels; 0 in the padding.
        xy: (B, P, 2) float32 positions (column, row), integer at pixels; infinite in the padding.
        count: (B,) int64.
    """

    flat: Tensor
    xy: Tensor
    count: Tensor


def prompt_points(mask: Tensor) -> PromptPoints:
    """Lists of the marked pixels of (B, H, W) bool.

    Raises:
        InputError: the mask is not (B, H, W).
    """
    if mask.ndim != 3:
        raise InputError(f"the mask must be (B, H, W), got {tuple(mask.shape)}")
    batch, _, width = mask.shape
    flat = mask.flatten(1)
    count = flat.sum(1)
    longest = max(int(count.max()), 1) if batch else 1
    which, pixel = flat.nonzero(as_tuple=True)
    place = torch.arange(len(which), device=mask.device) - (count.cumsum(0) - count)[which]
    index = torch.zeros(batch, longest, dtype=torch.long, device=mask.device)
    index[which, place] = pixel
    xy = torch.full((batch, longest, 2), torch.inf, device=mask.device)
    xy[which, place] = torch.stack([pixel % width, pixel // width], -1).float()
    return PromptPoints(index, xy, count)


def nearest_on_grid(
    points: PromptPoints,
    size: tuple[int, int],
    k: int,
    grid: tuple[int, int] | None = None,
    *,
    method: Literal["auto", "tree", "squares"] = "auto",
) -> tuple[Tensor, Tensor]:
    """The k nearest points of every cell of a grid laid over pictures.

    Args:
        points: of :func:`prompt_points`; every picture needs at least one.
        size: (H, W) of the pictures.
        k: neighbours; a picture with fewer points has infinite distances at the end of its lists.
        grid: (h, w) cells, evenly over the picture; one per pixel when None.
        method: ``"tree"`` scipy's KD-tree on the CPU, ``"squares"`` torch on the points' device; ``"auto"`` takes the
            tree for points on the CPU where scipy is installed.

    Returns:
        (k, B, h, w) int64 places in the lists (0 where there are too few points), and (k, B, h, w) float32 distances
        in pixels, ascending. Which of two equally distant points comes first is arbitrary but repeatable.

    Raises:
        InputError: a picture has no point, or ``k`` is not positive.
    """
    if k < 1:
        raise InputError(f"{k} neighbours were asked for")
    if bool((points.count < 1).any()):
        raise InputError("not enough known points: a prompt of the batch is empty")
    height, width = size
    rows, cols = size if grid is None else grid
    batch, device = len(points.count), points.xy.device
    if method == "tree" or (method == "auto" and device.type == "cpu" and available("scipy")):
        return _by_tree(points, size, k, (rows, cols))
    search = _Search(points, k, (rows, cols), (height / rows, width / cols))
    place = torch.zeros(k, batch * rows * cols, dtype=torch.int32, device=device)
    far = torch.full((k, batch * rows * cols), torch.inf, device=device)
    for cells, index, distance in search.run():
        place[: len(index), cells] = index
        far[: len(distance), cells] = distance
    return place.long().reshape(k, batch, rows, cols), far.reshape(k, batch, rows, cols)


def _by_tree(
    points: PromptPoints, size: tuple[int, int], k: int, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    tree = require("scipy.spatial", extra="mesh", purpose="finding nearest prompt points").cKDTree
    (height, width), (rows, cols) = size, grid
    v, u = (np.arange(n) + 0.5 for n in (rows, cols))
    y, x = np.meshgrid(v * (height / rows) - 0.5, u * (width / cols) - 0.5, indexing="ij")
    where = np.stack([x.ravel(), y.ravel()], -1)
    place = np.zeros((k, len(points.count), rows * cols), np.int64)
    far = np.full(place.shape, np.inf, np.float32)
    for b, count in enumerate(points.count.tolist()):
        found = min(k, count)
        xy = points.xy[b, :count].double().cpu().numpy()
        distance, index = tree(xy).query(where, k=[*range(1, found + 1)], workers=-1)
        place[:found, b], far[:found, b] = index.T, distance.T
    shape, device = (k, len(points.count), rows, cols), points.xy.device
    return (
        torch.from_numpy(place).reshape(shape).to(device),
        torch.from_numpy(far).reshape(shape).to(device),
    )


@dataclass(frozen=True)
class _Squares:
    """S squares: picture, first row and column (S,) int64 in cells, candidates (S, M) int32 places in the lists."""

    picture: Tensor
    row: Tensor
    col: Tensor
    candidates: Tensor


@dataclass(frozen=True)
class _Search:
    points: PromptPoints
    k: int
    grid: tuple[int, int]
    step: tuple[float, float]

    @property
    def budget(self) -> int:
        return _BUDGET_CPU if self.points.xy.device.type == "cpu" else _BUDGET_OTHER

    def run(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Cells (Q,), places (k, Q) and distances (k, Q), in no order."""
        device = self.points.xy.device
        batch, longest = self.points.flat.shape
        every = torch.arange(longest, device=device, dtype=torch.int32)
        zero = torch.zeros(1, dtype=torch.long, device=device)
        for b in range(batch):
            # One square over the whole picture; its candidates are all points.
            count = int(self.points.count[b])
            whole = _Squares(zero + b, zero, zero, every[None, :count])
            yield from self._divide(whole, 0, max(self.grid))

    def _divide(self, squares: _Squares, level: int, side: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        part = SIDES[level]
        count = squares.candidates.shape[1]
        each = (-(-side // part)) ** 2
        at_once = max(1, self.budget // (count * each))
        for group in torch.arange(len(squares.row), device=squares.row.device).split(at_once):
            small = self._parts(squares, group, side, part)
            # A picture's first division alone may exceed the budget.
            for some in torch.arange(len(small.row), device=group.device).split(max(1, self.budget // count)):
                chosen = _take(small, some)
                if part == 1:
                    yield self._finish(chosen)
                    continue
                for next_squares in self._narrowed(chosen, part):
                    yield from self._divide(next_squares, level + 1, part)

    def _parts(self, squares: _Squares, group: Tensor, side: int, part: int) -> _Squares:
        """The squares of the next size inside of some squares, as far as they lie in the grid."""
        offset = torch.arange(0, side, part, device=group.device)
        row = (squares.row[group][:, None, None] + offset[:, None]).expand(-1, -1, len(offset)).reshape(-1)
        col = (squares.col[group][:, None, None] + offset[None]).expand(-1, len(offset), -1).reshape(-1)
        parent = group.repeat_interleave(len(offset) ** 2)
        inside = ((row < self.grid[0]) & (col < self.grid[1])).nonzero()[:, 0]
        parent = parent[inside]
        return _Squares(squares.picture[parent], row[inside], col[inside], squares.candidates[parent])

    def _distances(self, squares: _Squares, part: int) -> Tensor:
        """Squared distances (S, M) from the centres to the candidates."""
        y = (squares.row + 0.5 * part) * self.step[0] - 0.5
        x = (squares.col + 0.5 * part) * self.step[1] - 0.5
        flat = squares.picture[:, None] * self.points.xy.shape[1] + squares.candidates
        px, py = (self.points.xy[..., i].reshape(-1)[flat] for i in (0, 1))
        dx, dy = px.sub_(x.float()[:, None]), py.sub_(y.float()[:, None])
        return dx.mul_(dx).add_(dy.mul_(dy))

    def _narrowed(self, squares: _Squares, part: int) -> Iterator[_Squares]:
        """The squares with the candidates that their cells may need, in groups of about equally many."""
        far = self._distances(squares, part).sqrt_()
        count = far.shape[1]
        last = far.kthvalue(min(self.k, count), dim=1).values
        radius = 0.5 * (part - 1) * float(torch.tensor(self.step).square().sum().sqrt())
        # A little more than needed, against rounding.
        need = (far <= (last * (1 + 1e-5) + 2 * radius + 1e-3)[:, None]).sum(1)
        order = need.argsort()
        pieces = max(1, min(8, len(order) // 64))
        for some in order.tensor_split(pieces):
            if not len(some):
                continue
            kept = int(need[some[-1]])
            nearest = far[some].topk(kept, dim=1, largest=False, sorted=False).indices
            chosen = _take(squares, some)
            yield _Squares(chosen.picture, chosen.row, chosen.col, chosen.candidates.gather(1, nearest))

    def _finish(self, cells: _Squares) -> tuple[Tensor, Tensor, Tensor]:
        k = min(self.k, cells.candidates.shape[1])
        squared, nearest = self._distances(cells, 1).topk(k, dim=1, largest=False, sorted=True)
        rows, cols = self.grid
        flat = (cells.picture * rows + cells.row) * cols + cells.col
        return flat, cells.candidates.gather(1, nearest).T, squared.sqrt_().T


def _take(squares: _Squares, some: Tensor) -> _Squares:
    return _Squares(squares.picture[some], squares.row[some], squares.col[some], squares.candidates[some])
