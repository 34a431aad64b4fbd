"""Agreement between depth maps of different views, and confidence from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.stereo.views import PreparedView, relative_pose

SEE_THROUGH = 3.0
"""A neighbour contradicts a point when it sees something this many tolerances behind it."""


@dataclass(frozen=True)
class Agreement:
    """What the neighbours say about one view's depth.

    Attributes:
        count: (H, W) int16 neighbours that agree.
        strict: (H, W) int16 neighbours that agree within 1 px and 1 %.
        inverse_depth: (H, W) float32 mean over the view and its agreeing neighbours, 0 where unknown.
        seen: (H, W) int16 neighbours whose picture contains the point.
        against: (H, W) int16 neighbours that look through the point: they see something well behind it.
    """

    count: Tensor
    strict: Tensor
    inverse_depth: Tensor
    seen: Tensor
    against: Tensor


def homogeneous_pixels(height: int, width: int, device: torch.device | str) -> Tensor:
    """(3, H, W) float32 pixel centres (x + 0.5, y + 0.5, 1)."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32) + 0.5,
        torch.arange(width, device=device, dtype=torch.float32) + 0.5,
        indexing="ij",
    )
    return torch.stack([x, y, torch.ones_like(x)])


def read_inverse_depth(inverse: Tensor, x: Tensor, y: Tensor, smooth: float = 0.03) -> Tensor:
    """Inverse depth at positions: bilinear, but nearest where the four pixels around lie on an edge.

    Args:
        inverse: (H, W), 0 where unknown.
        x: (N,) horizontal pixel positions, centres at +0.5.
        y: (N,) vertical pixel positions.
        smooth: relative spread of the four values up to which they are one surface.

    Returns:
        (N,), 0 outside the picture or where unknown.
    """
    H, W = inverse.shape
    inside = (x >= 0) & (y >= 0) & (x < W) & (y < H)
    u, v = (x - 0.5).clamp(0, W - 1), (y - 0.5).clamp(0, H - 1)
    x0, y0 = u.floor().clamp(0, max(W - 2, 0)), v.floor().clamp(0, max(H - 2, 0))
    a, b = u - x0, v - y0
    corner = (y0 * W + x0).long()
    flat = inverse.reshape(-1)
    right, down = (1 if W > 1 else 0), (W if H > 1 else 0)
    v00, v01 = flat[corner], flat[corner + right]
    v10, v11 = flat[corner + down], flat[corner + right + down]
    low = torch.minimum(torch.minimum(v00, v01), torch.minimum(v10, v11))
    high = torch.maximum(torch.maximum(v00, v01), torch.maximum(v10, v11))
    mixed = (v00 * (1 - a) + v01 * a) * (1 - b) + (v10 * (1 - a) + v11 * a) * b
    nearest = torch.where(b < 0.5, torch.where(a < 0.5, v00, v01), torch.where(a < 0.5, v10, v11))
    one_surface = (low > 0) & (high <= low * (1 + smooth))
    value = torch.where(one_surface, mixed, nearest)
    return torch.where(inside, value, torch.zeros_like(value))


def _loop(
    reference: PreparedView, neighbour: PreparedView, inverse_i: Tensor, inverse_j: Tensor, pixels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Carries N pixels (3, N) with depth into the neighbour and back.

    Returns pixel distance (N,), relative depth difference (N,), the carried-back inverse depth (N,),
    whether the neighbour's picture contains the point (N,) and the neighbour's depth relative to the
    point's (N,), 0 where unknown; distance is infinite where there is no depth.
    """
    T = relative_pose(reference, neighbour)
    forth = neighbour.K @ T[:3, :3] @ torch.linalg.inv(reference.K)
    back = torch.linalg.inv(forth)
    shift = neighbour.K @ T[:3, 3]
    A, t, B = (m.to(inverse_i.device, torch.float32) for m in (forth, shift, back))
    there = A @ pixels + t[:, None] * inverse_i
    ratio = there[2]  # depth in the neighbour times the inverse depth in the reference
    safe = ratio.clamp_min(1e-6)
    x, y = there[0] / safe, there[1] / safe
    H, W = inverse_j.shape
    seen = (ratio > 1e-6) & (x >= 0) & (y >= 0) & (x < W) & (y < H)
    found = read_inverse_depth(inverse_j, x, y)
    known = seen & (found > 0)
    depth_j = 1.0 / found.clamp_min(1e-12)
    returned = B @ (torch.stack([x, y, torch.ones_like(x)]) * depth_j - t[:, None])
    z = returned[2].clamp_min(1e-12)
    distance = torch.hypot(returned[0] / z - pixels[0], returned[1] / z - pixels[1])
    carried = 1.0 / z
    relative = (carried / inverse_i - 1.0).abs()
    far = torch.full_like(distance, torch.inf)
    good = known & (returned[2] > 0)
    behind = torch.where(known, depth_j / (safe / inverse_i), torch.zeros_like(depth_j))
    return torch.where(good, distance, far), torch.where(good, relative, far), carried, seen, behind


def check_view(
    reference: PreparedView,
    inverse: Tensor,
    neighbours: Sequence[tuple[PreparedView, Tensor]],
    *,
    pixels: float,
    relative: float,
) -> Agreement:
    """Counts the neighbours whose depth map confirms the reference's.

    Args:
        reference: the view.
        inverse: (H, W) its inverse depth, 0 where unknown.
        neighbours: views with their inverse depth maps.
        pixels: largest distance after the loop into the neighbour and back.
        relative: largest relative difference of inverse depth after the loop.

    Source: the check of Schoenberger et al. 2016 ("Pixelwise view selection for unstructured multi-view
    stereo", section 4.6) and Yao et al. 2018 (MVSNet, section 4.2).
    """
    H, W = inverse.shape
    device = inverse.device
    where = (inverse > 0).reshape(-1).nonzero()[:, 0]
    rho = inverse.reshape(-1)[where]
    points = homogeneous_pixels(H, W, device).reshape(3, -1)[:, where]
    count = torch.zeros(len(where), dtype=torch.int16, device=device)
    strict, seen_by, against = count.clone(), count.clone(), count.clone()
    total = rho.clone()
    for view, inverse_j in neighbours:
        distance, difference, carried, seen, behind = _loop(reference, view, rho, inverse_j, points)
        agrees = (distance < pixels) & (difference < relative)
        count += agrees
        strict += (distance < 1.0) & (difference < 0.01)
        seen_by += seen
        against += behind > 1 + SEE_THROUGH * relative
        total += torch.where(agrees, carried, torch.zeros_like(carried))
    mean = total / (count + 1)

    def spread(values: Tensor) -> Tensor:
        out = torch.zeros(H * W, dtype=values.dtype, device=device)
        out[where] = values
        return out.view(H, W)

    return Agreement(spread(count), spread(strict), spread(mean), spread(seen_by), spread(against))


def confidence(count: Tensor, zncc: Tensor, neighbours: int) -> Tensor:
    """(H, W) in [0, 1]: mostly how many neighbours agree, the correlation as a tie-breaker.

    Args:
        count: (H, W) agreeing neighbours.
        zncc: (H, W) correlation in [0, 1].
        neighbours: how many could agree; six agreeing are as good as certain.
    """
    most = float(max(1, min(neighbours, 6)))
    return (0.8 * (count.float() / most).clamp_max(1.0) + 0.2 * zncc).clamp(0.0, 1.0)
