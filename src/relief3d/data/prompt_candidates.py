"""What sparse metric points say about every pixel, before anything is learned.

A prompt becomes a list of points in log inverse depth, relative to their median, so that whatever follows does not
depend on the unit. For every cell of a coarser grid its nearest points are listed; for every point, the points around
it, a robust plane through them in inverse depth (planes in space are planes there), and how far the point lies from
it: a wrong measurement stands out from its neighbours. Triangles between the points give a map that is linear in
inverse depth, once from all points and once from those that fit their neighbours.

Small-model study: interpolation must be linear in inverse depth; the true nearest points and the triangulated value
belong among the candidates; whether a point can be trusted must be told.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.triangle_grid import linear_on_grid

POINT_FEATURES = 6
MAP_FEATURES = 4
_CAUCHY = 0.1
"""Relative inverse depth at which a neighbour counts half in a plane."""
_STEPS = 3
_RIDGE = 0.05
"""Pull of a plane's slope to zero, in neighbour spacings."""
_OUTLYING = 3.0
"""Robust standard deviations from its neighbours beyond which a point is left out of the second triangulation."""
_MIN_OUTLYING = 0.08
"""Relative inverse depth below which a point is never left out."""


@dataclass(frozen=True)
class PromptCandidates:
    """Points of a batch of prompts, padded to P, with neighbours on a grid of h x w cells.

    Attributes:
        xy: (B, P, 2) positions in pixels of the full picture, centres at +0.5.
        value: (B, P) log inverse depth less ``middle``.
        count: (B,) int64 true number of points; the rest is padding.
        middle: (B,) log of the median inverse depth, in 1/unit of the prompt.
        slope: (B, P, 2) of the robust plane through a point's neighbours: change of log inverse depth per pixel.
        features: (B, P, POINT_FEATURES) see :func:`point_features`.
        around: (B, P, M) int64 nearest other points of every point.
        nearest: (B, K, h, w) int64 nearest points of every cell.
        maps: (B, MAP_FEATURES, h, w) triangulated from all points, triangulated from those that fit, value of the
            nearest point (log inverse depth less ``middle``), and distance to the nearest point over ``spacing``.
        spacing: (B,) typical distance of neighbouring points in pixels, sqrt(H W / count).
        noise: (B,) median difference of a point to what its neighbours say; small where the prompt is clean.
        stride: pixels per cell.
    """

    xy: Tensor
    value: Tensor
    count: Tensor
    middle: Tensor
    slope: Tensor
    features: Tensor
    around: Tensor
    nearest: Tensor
    maps: Tensor
    spacing: Tensor
    noise: Tensor
    stride: int

    def to(self, device: torch.device | str) -> PromptCandidates:
        """On a device."""
        return PromptCandidates(**{n: getattr(self, n).to(device) for n in _TENSORS}, stride=self.stride)

    def __getitem__(self, rows: slice) -> PromptCandidates:
        """Some prompts of the batch."""
        return PromptCandidates(**{n: getattr(self, n)[rows] for n in _TENSORS}, stride=self.stride)

    @staticmethod
    def stack(items: list[PromptCandidates], multiple: int = 1) -> PromptCandidates:
        """One batch of several; grids must agree.

        Args:
            items: their batches are joined in order.
            multiple: pad points to a multiple of this, so that training meets few different shapes (libraries keep
                a plan in memory for every shape they have seen).

        Raises:
            InputError: none given, or grids differ.
        """
        if not items or len({(i.maps.shape[1:], i.nearest.shape[1:], i.stride) for i in items}) != 1:
            raise InputError("only prompts on one grid go into a batch")
        longest = -(-max(i.value.shape[1] for i in items) // multiple) * multiple

        def padded(name: str) -> Tensor:
            parts = [getattr(i, name) for i in items]
            if name in _PER_POINT:
                parts = [_pad(p, longest) for p in parts]
            return torch.cat(parts)

        return PromptCandidates(**{n: padded(n) for n in _TENSORS}, stride=items[0].stride)


_TENSORS = tuple(f.name for f in fields(PromptCandidates) if f.name != "stride")
_PER_POINT = frozenset({"xy", "value", "slope", "features", "around"})


def _pad(value: Tensor, length: int) -> Tensor:
    missing = length - value.shape[1]
    return torch.cat([value, value.new_zeros(len(value), missing, *value.shape[2:])], 1) if missing else value


def prompt_candidates(
    depth: Tensor, *, stride: int = 2, nearest: int = 8, around: int = 8, limit: int | None = None
) -> PromptCandidates:
    """Candidates of one prompt (on the CPU: KD-tree and triangulation of scipy).

    Args:
        depth: (H, W) sparse z-depth, 0 where unknown; H and W multiples of ``stride``.
        stride: pixels per cell of the grid on which neighbours are listed.
        nearest: K points per cell; where there are fewer, the last one repeats.
        around: M other points per point.
        limit: keep at most so many points, spread evenly over the list; None keeps all.

    Returns:
        B = 1.

    Raises:
        InputError: no known point, negative or non-finite depth, or a size that the stride does not divide.
    """
    from scipy.spatial import cKDTree

    height, width = depth.shape
    if height % stride or width % stride:
        raise InputError(f"a picture of {width}x{height} does not divide into cells of {stride} pixels")
    if not bool(torch.isfinite(depth).all()) or bool((depth < 0).any()):
        raise InputError("a prompt holds negative or non-finite depths", remedy="mark unknown pixels with 0")
    rows, cols = torch.nonzero(depth > 0, as_tuple=True)
    if not len(rows):
        raise InputError("the prompt holds no points")
    if limit is not None and len(rows) > limit:
        keep = torch.linspace(0, len(rows) - 1, limit).round().long()
        rows, cols = rows[keep], cols[keep]
    xy = torch.stack([cols, rows], 1).double().numpy() + 0.5
    log_inverse = -depth[rows, cols].double().log().numpy()
    middle = float(np.median(log_inverse))
    value = log_inverse - middle
    tree = cKDTree(xy)
    points = len(xy)
    spacing = float(np.sqrt(height * width / points))
    others = min(around, points - 1)
    if others:
        far, beside = tree.query(xy, k=[*range(1, others + 2)])
        far, beside = _without_self(far, beside)
    else:
        far, beside = np.zeros((points, 1)), np.zeros((points, 1), np.int64)
    slope, expected, spread = _planes(xy, value, beside, far)
    features = point_features(value, expected, spread, far[:, 0], spacing)
    fits = _fits(value, expected, spread)
    h, w = height // stride, width // stride
    cells = np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1).reshape(-1, 2) * stride + stride / 2
    distance, near = tree.query(cells, k=[*range(1, min(nearest, points) + 1)])
    near = _repeated(near, nearest)
    nearest_value = value[near[:, 0]]
    trusted = nearest_value
    if fits.any():
        trusted = value[fits][cKDTree(xy[fits]).query(cells)[1]]
        trusted = _triangulated(xy[fits], value[fits], (h, w), stride, trusted)
    maps = np.stack(
        [
            _triangulated(xy, value, (h, w), stride, nearest_value),
            trusted,
            nearest_value,
            distance[:, 0] / spacing,
        ]
    )

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).float()[None]

    return PromptCandidates(
        tensor(xy),
        tensor(value),
        torch.tensor([points]),
        torch.tensor([middle], dtype=torch.float32),
        tensor(slope),
        tensor(features),
        torch.from_numpy(np.concatenate([beside, np.repeat(beside[:, -1:], around - beside.shape[1], 1)], 1))[
            None
        ].long(),
        torch.from_numpy(near.T.reshape(nearest, h, w).copy())[None].long(),
        tensor(maps.reshape(MAP_FEATURES, h, w)),
        torch.tensor([spacing], dtype=torch.float32),
        torch.tensor([float(np.median(np.abs(value - expected)))], dtype=torch.float32),
        stride,
    )


def _repeated(index: np.ndarray, columns: int) -> np.ndarray:
    """(N, k) with the last column repeated up to a number of columns."""
    return np.concatenate([index, np.repeat(index[:, -1:], columns - index.shape[1], 1)], 1)


def _without_self(far: np.ndarray, beside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop every point from its own list; where it is missing (equal positions), drop the last."""
    own = beside == np.arange(len(beside))[:, None]
    own[~own.any(1), -1] = True
    keep = ~own
    # A point appears at most once in its own list.
    shape = (len(beside), beside.shape[1] - 1)
    return far[keep].reshape(shape), beside[keep].reshape(shape)


def _planes(
    xy: np.ndarray, value: np.ndarray, beside: np.ndarray, far: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Robust planes through the neighbours of every point, the point itself left out.

    Returns:
        (P, 2) slope per pixel in log inverse depth, (P,) what the plane says at the point, (P,) mean absolute residual.
    """
    scale = np.maximum(far.mean(1), 1e-6)
    step = (xy[beside] - xy[:, None]) / scale[:, None, None]
    around = value[beside]
    centre = np.median(around, 1)
    # Inverse depth relative to the neighbours' median: linear on planes, and about a log for small differences.
    y = np.exp(np.clip(around - centre[:, None], -3, 3)) - 1
    X = np.concatenate([np.ones((*y.shape, 1)), step], 2)
    near = 1 / (1 + (step**2).sum(2))
    weight = near.copy()
    fit = np.zeros((len(xy), 3))
    ridge = np.diag([1e-9, _RIDGE, _RIDGE])
    for _ in range(_STEPS):
        A = np.einsum("pmi,pmj,pm->pij", X, X, weight) + ridge
        b = np.einsum("pmi,pm,pm->pi", X, y, weight)
        fit = np.linalg.solve(A, b[..., None])[..., 0]
        residual = np.abs(y - np.einsum("pmi,pi->pm", X, fit))
        weight = near / (1 + (residual / _CAUCHY) ** 2)
    level = np.clip(1 + fit[:, 0], 0.05, 20)
    slope = fit[:, 1:] / level[:, None] / scale[:, None]
    spread = (residual * weight).sum(1) / np.maximum(weight.sum(1), 1e-12)
    return slope, centre + np.log(level), spread / level


def point_features(
    value: np.ndarray, expected: np.ndarray, spread: np.ndarray, far: np.ndarray, spacing: float
) -> np.ndarray:
    """What is known of the points alone.

    Args:
        value: (P,) log inverse depth.
        expected: (P,) what neighbours say.
        spread: (P,) how much neighbours disagree with their own plane.
        far: (P,) distance to the nearest other point in pixels.
        spacing: typical distance.

    Returns:
        (P, POINT_FEATURES): signed difference to the neighbours (clipped), its size, the neighbours' spread, the
        ratio of the two, distance over spacing, value.
    """
    off = value - expected
    ratio = np.abs(off) / (spread + 0.02)
    return np.stack(
        [
            np.clip(off, -1, 1),
            np.minimum(np.abs(off), 2),
            np.minimum(spread, 1),
            np.log1p(np.minimum(ratio, 50)),
            np.minimum(far / spacing, 4),
            np.clip(value, -3, 3),
        ],
        1,
    )


def _fits(value: np.ndarray, expected: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """(P,) bool: points that agree with their neighbours, or whose neighbours do not agree among themselves."""
    off = np.abs(value - expected)
    usual = 1.4826 * np.median(off)
    return off <= np.maximum(np.maximum(_OUTLYING * usual, _MIN_OUTLYING), 2 * spread)


def _triangulated(
    xy: np.ndarray, value: np.ndarray, shape: tuple[int, int], stride: int, nearest: np.ndarray
) -> np.ndarray:
    """(h * w,) linear in inverse depth inside the triangles, elsewhere the nearest point's value; log inverse depth."""
    inside = linear_on_grid(xy, np.exp(value), *shape, stride)
    if inside is None:
        return nearest
    inside = inside.reshape(-1)
    known = np.isfinite(inside) & (inside > 0)
    return np.where(known, np.log(np.where(known, inside, 1.0)), nearest)
