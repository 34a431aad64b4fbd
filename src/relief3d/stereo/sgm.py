"""Semi-global cost aggregation along eight directions.

Hirschmueller 2008, "Stereo processing by semiglobal matching and mutual information", eq. 13:
``L(p, d) = C(p, d) + min(L(q, d), L(q, d +- 1) + P1, min_k L(q, k) + P2) - min_k L(q, k)`` with ``q`` the
pixel before ``p`` on the path.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _step(cost: Tensor, before: Tensor, p1: float, p2: Tensor) -> Tensor:
    """One pixel further along paths: cost (N, D), before (P, N, D), p2 (P, N, 1) -> (P, N, D)."""
    lowest = before.amin(dim=-1, keepdim=True)
    out = torch.minimum(before, lowest + p2)
    raised = before + p1
    torch.minimum(out[..., 1:], raised[..., :-1], out=out[..., 1:])
    torch.minimum(out[..., :-1], raised[..., 1:], out=out[..., :-1])
    return out.sub_(lowest).add_(cost)


def _penalty(grey: Tensor, dy: int, dx: int, p1: float, p2: float, edge_scale: float) -> Tensor:
    """(H, W) second penalty towards the pixel ``(y - dy, x - dx)``, smaller across picture edges."""
    shifted = torch.roll(grey, (dy, dx), (0, 1))
    return (p2 / (1.0 + (grey - shifted).abs() / edge_scale)).clamp_min(p1)


def _sweep_rows(
    cost: Tensor, grey: Tensor, total: Tensor, forward: bool, diagonals: bool, setting: tuple
) -> None:
    """Adds paths that run over dim 0 of ``cost`` (N, M, D) to ``total``: straight, and both diagonals."""
    p1, p2, edge_scale = setting
    rows, columns, planes = cost.shape
    sign = 1 if forward else -1
    shifts = (0, 1, -1) if diagonals else (0,)
    penalties = torch.stack([_penalty(grey, sign, dx, p1, p2, edge_scale) for dx in shifts])[..., None]
    # Zeros stand for "before the picture": they leave the plain cost at the first pixel of a path.
    before = cost.new_zeros(len(shifts), columns + 2, planes)
    moved = cost.new_zeros(len(shifts), columns, planes)
    order = range(rows) if forward else range(rows - 1, -1, -1)
    for row in order:
        for k, dx in enumerate(shifts):
            moved[k] = before[k, 1 - dx : 1 - dx + columns]
        now = _step(cost[row], moved, p1, penalties[:, row])
        before[:, 1:-1] = now
        total[row] += now.sum(dim=0) if len(shifts) > 1 else now[0]


def aggregate(
    cost: Tensor,
    grey: Tensor,
    *,
    p1: float = 0.08,
    p2: float = 0.7,
    edge_scale: float = 12.0 / 255.0,
    paths: int = 8,
) -> Tensor:
    """Mean path cost over 4 or 8 directions.

    Args:
        cost: (H, W, D) float32.
        grey: (H, W) reference picture; ``p2`` is divided by ``1 + |difference| / edge_scale``.
        p1: penalty for a change of one plane.
        p2: penalty for a larger change.
        edge_scale: grey difference that halves ``p2``.
        paths: 4 (rows and columns) or 8 (and diagonals).

    Returns:
        (H, W, D) float32; one more volume is allocated, the paths themselves need only rows.
    """
    if paths not in (4, 8):
        raise ValueError("paths must be 4 or 8")
    total = torch.zeros_like(cost)
    setting = (p1, p2, edge_scale)
    for forward in (True, False):
        _sweep_rows(cost, grey, total, forward, paths == 8, setting)
        _sweep_rows(cost.transpose(0, 1), grey.T, total.transpose(0, 1), forward, False, setting)
    return total.div_(paths)
