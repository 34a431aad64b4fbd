"""Corrections of single predictions after the global solve: a factor per frame, or a smooth one over the picture."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Order = Literal[0, 1, 2]
PRIOR_DEVIATION = 0.02
"""Standard deviation of every coefficient, in log depth: a prediction's own error within its submap."""

LEAST_DEVIATION = 0.005
"""Nothing is known better than this about the log ratio of a frame, however many samples there are."""

LEAST_SAMPLES: dict[Order, int] = {0: 10, 1: 30, 2: 60}
HUBER = 1.345
ROUNDS = 5


def basis(u: Tensor, v: Tensor, order: Order) -> Tensor:
    """(N, C) polynomial terms of positions (N,) in [-1, 1]: 1, then u v, then u^2, uv, v^2 with mean about 0."""
    terms = [torch.ones_like(u)]
    if order >= 1:
        terms += [u, v]
    if order >= 2:
        terms += [u * u - 1 / 3, u * v, v * v - 1 / 3]
    return torch.stack(terms, -1)


def fit_correction(u: Tensor, v: Tensor, residual: Tensor, weight: Tensor, order: Order) -> Tensor:
    """Coefficients that samples of one prediction ask for, held back by their prior.

    Args:
        u: (N,) horizontal position, -1 at the left and 1 at the right border of the picture.
        v: (N,) vertical position.
        residual: (N,) ln(z / D) - x, what is left of the log ratio after the solve.
        weight: (N,) positive confidence.
        order: of the polynomial; lowered where there are too few samples.

    Returns:
        (C,) float64 for the order that was asked for; all 0 with fewer than ten samples.
    """
    out = torch.zeros({0: 1, 1: 3, 2: 6}[order], dtype=torch.float64)
    orders: tuple[Order, ...] = (0, 1, 2)
    allowed = [k for k in orders[: order + 1] if len(residual) >= LEAST_SAMPLES[k]]
    if not allowed:
        return out
    A, r = basis(u.double(), v.double(), allowed[-1]), residual.double()
    w = weight.double() / weight.double().mean()
    c = torch.zeros(A.shape[1], dtype=torch.float64)
    c[0] = r.median()
    for _ in range(ROUNDS):
        left = r - A @ c
        sigma = (1.4826 * left.abs().median()).clamp_min(LEAST_DEVIATION)
        robust = w * (HUBER * sigma / left.abs().clamp_min(1e-12)).clamp(max=1.0)
        # No coefficient is known better than the floor: errors of neighbouring samples are alike.
        information = 1 / (sigma.square() + robust.sum() * LEAST_DEVIATION**2)
        H = (A * robust[:, None]).mT @ A * information + torch.eye(len(c)).double() / PRIOR_DEVIATION**2
        c = torch.linalg.solve(H, (A * robust[:, None]).mT @ r * information)
    out[: len(c)] = c
    return out


def correction_map(coefficients: Tensor, height: int, width: int) -> Tensor:
    """(H, W) float32 log factor of a prediction from its coefficients; (1,) for a constant, (3,) or (6,) else."""
    orders: dict[int, Order] = {1: 0, 3: 1, 6: 2}
    order = orders[len(coefficients)]
    u = (torch.arange(width) + 0.5) / width * 2 - 1
    v = (torch.arange(height) + 0.5) / height * 2 - 1
    grid_v, grid_u = torch.meshgrid(v, u, indexing="ij")
    return (basis(grid_u, grid_v, order) @ coefficients.float()).reshape(height, width)
