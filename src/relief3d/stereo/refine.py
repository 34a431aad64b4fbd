"""Slanted-plane refinement of a depth map (the "fine" profile).

Every pixel holds a small plane: inverse depth and its two derivatives along the picture, which describe a
plane in space exactly, so a hypothesis moves to another pixel by one multiply-add. Planes spread from pixel
to pixel and are tried with random changes, as in PatchMatch stereo (Bleyer, Rhemann, Rother 2011), here with
all pixels at once and several neighbours; the window follows the plane, so slanted surfaces match without
the stairs of a plane sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.stereo.filters import fit_inverse_depth
from relief3d.stereo.sweep import mean_of_lowest
from relief3d.stereo.views import PreparedView, relative_pose
from relief3d.stereo.winner import Winner

OFFSETS = tuple((dy, dx) for dy in (-4, -2, 0, 2, 4) for dx in (-4, -2, 0, 2, 4))
"""Window: 9 x 9 pixels, every second one."""

MOVES = tuple((dy * d, dx * d) for d in (1, 5) for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)))
"""Where hypotheses come from."""

GREY_SCALE = 16.0 / 255.0
SPACE_SCALE = 4.0
STAY = 0.004
"""Cost per plane of distance from the swept depth, up to ``STAY_LIMIT`` planes."""
STAY_LIMIT = 6.0


@dataclass(frozen=True)
class _Source:
    """A neighbour with its warp: grid position of pixel (x, y) is ``M (x, y, 1) + rho * step``."""

    view: PreparedView
    M: list[list[float]]
    step: list[float]


class _Window:
    """Bilateral weights and grey values around every reference pixel, each (25, H, W)."""

    def __init__(self, grey: Tensor) -> None:
        H, W = grey.shape
        padded = F.pad(grey[None, None], (4,) * 4, mode="replicate")[0, 0]
        self.grey = torch.stack([padded[4 + dy : 4 + dy + H, 4 + dx : 4 + dx + W] for dy, dx in OFFSETS])
        reach = torch.tensor([dy * dy + dx * dx for dy, dx in OFFSETS], device=grey.device).sqrt()
        weight = torch.exp(-(self.grey - grey).abs() / GREY_SCALE - reach[:, None, None] / SPACE_SCALE)
        self.weight = weight / weight.sum(0)
        self.mean = (self.weight * self.grey).sum(0)
        self.variance = ((self.weight * self.grey**2).sum(0) - self.mean**2).clamp_min(0)


def _source(reference: PreparedView, neighbour: PreparedView) -> _Source:
    T = relative_pose(reference, neighbour)
    W, H = neighbour.camera.width, neighbour.camera.height
    to_grid = torch.tensor([[2.0 / W, 0, -1.0], [0, 2.0 / H, -1.0], [0, 0, 1.0]], dtype=torch.float64)
    M = to_grid @ neighbour.K @ T[:3, :3] @ torch.linalg.inv(reference.K)
    return _Source(neighbour, M.tolist(), (to_grid @ neighbour.K @ T[:3, 3]).tolist())


def _cost_in(window: _Window, plane: Tensor, source: _Source, floor: float) -> Tensor:
    """(H, W) cost in [0, 1] of the planes (3, H, W) in one neighbour."""
    rho, along_x, along_y = plane
    H, W = rho.shape
    x = torch.arange(W, device=rho.device) + 0.5
    y = (torch.arange(H, device=rho.device) + 0.5)[:, None]
    centre, right, down = [], [], []
    for row, step in zip(source.M, source.step, strict=True):
        centre.append(row[0] * x + row[1] * y + row[2] + rho * step)
        right.append(row[0] + along_x * step)
        down.append(row[1] + along_y * step)
    both = torch.empty(2, H, W, device=rho.device)
    image = source.view.grey[None, None]
    total, cross, square = (torch.zeros_like(rho) for _ in range(3))
    for k, (dy, dx) in enumerate(OFFSETS):
        inverse = (centre[2] + dx * right[2] + dy * down[2]).clamp_min_(1e-6).reciprocal_()
        for axis in (0, 1):
            torch.mul(centre[axis] + dx * right[axis] + dy * down[axis], inverse, out=both[axis])
        value = F.grid_sample(image, both.permute(1, 2, 0)[None], padding_mode="border", align_corners=False)[
            0, 0
        ]
        weighted = window.weight[k] * value
        total += weighted
        cross.addcmul_(weighted, window.grey[k])
        square.addcmul_(weighted, value)
    variance = (square - total * total).clamp_min_(0)
    zncc = (cross - total * window.mean) * torch.rsqrt((variance + floor) * (window.variance + floor))
    cost = (1 - zncc).clamp_(0, 1)
    z = centre[2].clamp_min(1e-6)
    u, v = centre[0] / z, centre[1] / z
    outside = (torch.maximum(u.abs(), v.abs()) > 1) | (centre[2] <= 1e-6)
    if source.view.mask is not None:
        seen = F.grid_sample(
            source.view.mask[None, None].float(),
            torch.stack([u, v], -1)[None],
            mode="nearest",
            align_corners=False,
        )[0, 0]
        outside |= seen < 0.5
    return cost.masked_fill_(outside, 1.0)


def _moved(plane: Tensor, dy: int, dx: int) -> Tensor:
    """The plane of the pixel at (y + dy, x + dx), continued to (y, x); zeros outside and where unknown."""
    H, W = plane.shape[1:]
    out = torch.zeros_like(plane)
    y0, y1, x0, x1 = max(0, -dy), min(H, H - dy), max(0, -dx), min(W, W - dx)
    if y0 >= y1 or x0 >= x1:
        return out
    part = plane[:, y0 + dy : y1 + dy, x0 + dx : x1 + dx]
    known = part[0] > 0
    out[0, y0:y1, x0:x1] = torch.where(
        known, part[0] - dx * part[1] - dy * part[2], torch.zeros_like(part[0])
    )
    out[1:, y0:y1, x0:x1] = part[1:] * known
    return out


def refine_slanted(
    reference: PreparedView,
    neighbours: Sequence[PreparedView],
    start: Winner,
    *,
    iterations: int = 2,
    best: int = 2,
    variance_floor: float = 2.0 / 255.0**2,
    limits: tuple[float, float],
    generator: torch.Generator,
) -> Winner:
    """Refine swept depth with slanted windows.

    Args:
        reference: the view.
        neighbours: source views; each costs time.
        start: swept depth, 0 where unknown (such pixels may receive a neighbour's plane).
        iterations: passes over eight moves and three random changes.
        best: costs averaged per hypothesis.
        variance_floor: as in the sweep.
        limits: (least, largest) inverse depth.
        generator: for the random changes, on the CPU, so that devices agree.

    Returns:
        Refined inverse depth and correlations; the spacing is unchanged.
    """
    window = _Window(reference.grey)
    sources = [_source(reference, n) for n in neighbours]
    low, high = limits
    swept, spacing = start.inverse_depth, start.spacing
    gradient_x, gradient_y, _, _ = fit_inverse_depth(swept, spacing)
    plane = torch.stack([swept, gradient_x, gradient_y])

    def evaluate(trial: Tensor) -> Tensor:
        cost = mean_of_lowest(
            (_cost_in(window, trial, s, variance_floor) for s in sources), min(best, len(sources))
        )
        leave = ((trial[0] - swept).abs() / spacing).clamp_max_(STAY_LIMIT)
        cost += STAY * torch.where(swept > 0, leave, torch.full_like(leave, STAY_LIMIT))
        return torch.where((trial[0] > low) & (trial[0] < high), cost, torch.full_like(cost, 2.0))

    cost = evaluate(plane)

    def offer(trial: Tensor) -> None:
        price = evaluate(trial)
        better = price < cost
        cost[better] = price[better]
        plane[:, better] = trial[:, better]

    def noise() -> Tensor:
        return (torch.rand(swept.shape, generator=generator) * 2 - 1).to(swept.device)

    for iteration in range(iterations):
        for dy, dx in MOVES:
            offer(_moved(plane, dy, dx))
        for size in (0.5, 0.2, 0.08):
            reach = spacing * size / (1 + iteration)
            change = torch.stack([noise() * reach, noise() * reach / 4, noise() * reach / 4])
            offer(torch.where(plane[:1] > 0, plane + change, plane))
    inverse = torch.where(cost < 1.0, plane[0], torch.zeros_like(cost))
    if reference.mask is not None:
        inverse = inverse * reference.mask
    return Winner(inverse, (1 - cost).clamp(0, 1), spacing)
