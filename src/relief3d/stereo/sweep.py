"""Plane sweep: matching costs of fronto-parallel planes in one reference view.

For a plane at inverse depth ``rho`` a reference pixel ``p`` lies in the neighbour at
``K_j (R K_i^-1 p + rho t)`` (Collins 1996, "A space-sweep approach to true multi-image matching"),
which is linear in ``rho`` before the division; costs are zero-mean normalised cross-correlations over a
square window of the warped picture, hence indifferent to gain and offset between exposures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.stereo.views import PreparedView, relative_pose


def inverse_depth_planes(near: float, far: float, count: int, device: torch.device | str = "cpu") -> Tensor:
    """(D,) float32 inverse depths from ``1 / near`` down to ``1 / far``, evenly spaced."""
    return torch.linspace(1.0 / near, 1.0 / far, count, dtype=torch.float64).to(device, torch.float32)


def box_sum(values: Tensor, window: int) -> Tensor:
    """Sums over ``window`` x ``window`` squares.

    Args:
        values: (*, H + window - 1, W + window - 1).
        window: side of the square.

    Returns:
        (*, H, W); powers of two are doubled so that a side of 7 costs four additions.
    """
    return _run_sum(_run_sum(values, window, -2), window, -1)


def _run_sum(values: Tensor, window: int, dim: int) -> Tensor:
    """Sums over ``window`` consecutive entries: 7 = 1 + 2 + 4, each power the double of the one before."""
    size = values.shape[dim] - window + 1
    parts: list[Tensor] = []
    power, length, start, rest = values, 1, 0, window
    while rest:
        if rest & 1:
            parts.append(power.narrow(dim, start, size))
            start += length
        rest >>= 1
        if rest:
            pairs = power.shape[dim] - length
            power = power.narrow(dim, 0, pairs) + power.narrow(dim, length, pairs)
            length *= 2
    if len(parts) == 1:
        return parts[0]
    total = parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    return total


class _Reference:
    """What does not change between planes and neighbours: window statistics of the reference picture."""

    def __init__(self, grey: Tensor, window: int, floor: float) -> None:
        half = window // 2
        self.window, self.floor = window, floor
        self.count = 1.0 / (window * window)
        self.grey = F.pad(grey[None, None], (half,) * 4, mode="replicate")[0, 0]
        self.mean = box_sum(self.grey, window) * self.count
        variance = (box_sum(self.grey**2, window) * self.count - self.mean**2).clamp_min_(0.0)
        self.inv_std = torch.rsqrt(variance + floor)


@dataclass(frozen=True)
class _Field:
    """How reference pixels move through one neighbour: grid position ``(base + rho * step)``, homogeneous.

    Attributes:
        base: (3, H + 2 half, W + 2 half) float32; the frame around the picture repeats its border pixels,
            so the warped picture comes out padded by replication.
        step: three numbers.
        corners: (3, 4) float64 ``base`` at the corners of the picture, to decide on the host what can
            happen to a whole plane.
    """

    base: Tensor
    step: tuple[float, float, float]
    corners: Tensor

    def extremes(self, rho: Tensor) -> tuple[float, float]:
        """Least depth ratio and largest |grid coordinate| over the picture and the planes ``rho``.

        Both are reached at corners: a plane maps to the neighbour by a homography, which keeps the
        picture convex where the depth is positive.
        """
        moved = self.corners[:, None] + rho.double().cpu()[None, :, None] * torch.tensor(
            self.step, dtype=torch.float64
        ).view(3, 1, 1)
        depth = float(moved[2].min())
        return depth, float((moved[:2] / moved[2:]).abs().max())


def _warp_field(reference: PreparedView, neighbour: PreparedView, half: int, device: torch.device) -> _Field:
    T = relative_pose(reference, neighbour)
    W, H = neighbour.camera.width, neighbour.camera.height
    to_grid = torch.tensor([[2.0 / W, 0, -1.0], [0, 2.0 / H, -1.0], [0, 0, 1.0]], dtype=torch.float64)
    M = to_grid @ neighbour.K @ T[:3, :3] @ torch.linalg.inv(reference.K)
    step = (to_grid @ neighbour.K @ T[:3, 3]).tolist()
    h, w = reference.grey.shape
    ys = torch.arange(-half, h + half, dtype=torch.float64).clamp(0, h - 1) + 0.5
    xs = torch.arange(-half, w + half, dtype=torch.float64).clamp(0, w - 1) + 0.5
    base = (
        M[:, 0, None, None] * xs[None, None] + M[:, 1, None, None] * ys[None, :, None] + M[:, 2, None, None]
    )
    corners = base[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    return _Field(base.to(device, torch.float32), (step[0], step[1], step[2]), corners)


def _block_cost(ref: _Reference, field: _Field, rho: Tensor, ends: Tensor, neighbour: PreparedView) -> Tensor:
    """(B, H, W) costs in [0, 1] of the planes ``rho`` (B,) against one neighbour; 1 where it sees nothing.

    ``ends`` holds the first and last of ``rho`` on the host, so that nothing waits for the device.
    """
    half, base, step = ref.window // 2, field.base, field.step
    planes = rho[:, None, None]
    depth = base[2] + planes * step[2]
    nearest, reach = field.extremes(ends)
    inverse = depth.reciprocal()
    B, H, W = depth.shape
    # Coordinates lie in two contiguous planes; the sampler reads them as they are, without interleaving.
    x, y = both = torch.empty(2, B, H, W, device=depth.device)
    torch.mul(base[0] + planes * step[0], inverse, out=x)
    torch.mul(base[1] + planes * step[1], inverse, out=y)
    grid = both.view(2, B * H, W).permute(1, 2, 0)[None]
    warped = F.grid_sample(
        neighbour.grey[None, None],
        grid,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    ).view(B, H, W)
    total = box_sum(warped, ref.window).mul_(ref.count)
    cross = box_sum(warped * ref.grey, ref.window).mul_(ref.count)
    square = box_sum(warped.square_(), ref.window).mul_(ref.count)
    cross.addcmul_(total, ref.mean, value=-1.0).mul_(ref.inv_std)
    square.addcmul_(total, total, value=-1.0).clamp_min_(0.0).add_(ref.floor).rsqrt_()
    cost = cross.mul_(square).neg_().add_(1.0).clamp_(0.0, 1.0)
    inner = (slice(None), slice(half, H - half), slice(half, W - half))
    if neighbour.mask is not None:
        seen = F.grid_sample(
            neighbour.mask[None, None].float(),
            torch.stack([x[inner], y[inner]], dim=-1).view(1, -1, W - 2 * half, 2),
            mode="nearest",
            padding_mode="zeros",
            align_corners=False,
        ).view(cost.shape)
        cost.masked_fill_(seen < 0.5, 1.0)
    if nearest <= 1e-6:
        cost.masked_fill_(depth[inner] <= 1e-6, 1.0)
        reach = torch.inf
    if reach > 1.0:
        cost.masked_fill_(torch.maximum(x[inner].abs_(), y[inner].abs_()) > 1.0, 1.0)
    return cost


def mean_of_lowest(costs: Iterable[Tensor], count: int) -> Tensor:
    """Mean over the ``count`` lowest of equally shaped tensors, by insertion into a running sorted list."""
    lowest: list[Tensor] = []
    for cost in costs:
        carried = cost
        for i, kept in enumerate(lowest):
            lowest[i], carried = torch.minimum(kept, carried), torch.maximum(kept, carried)
        if len(lowest) < count:
            lowest.append(carried)
    total = lowest[0].clone() if len(lowest) == 1 else lowest[0] + lowest[1]
    for kept in lowest[2:]:
        total += kept
    return total.div_(len(lowest))


def cost_volume(
    reference: PreparedView,
    neighbours: Sequence[PreparedView],
    planes: Tensor,
    *,
    window: int = 7,
    variance_floor: float = 2.0 / 255.0**2,
    best: int = 0,
    block: int = 2,
) -> Tensor:
    """Matching costs of one reference view.

    Args:
        reference: the view whose depth is wanted; its grey picture is (H, W).
        neighbours: source views, at least one.
        planes: (D,) inverse depths.
        window: odd ZNCC window side.
        variance_floor: added to the window variances (grey levels squared, greys in [0, 1]).
        best: costs averaged per plane; 0 takes half of the neighbours, rounded up.
        block: planes handled at a time; working memory is about ``10 * block * H * W`` floats plus
            ``neighbours`` warp fields, beside the (H, W, D) result.

    Returns:
        (H, W, D) float32 contiguous, in [0, 1]; 1 where no neighbour sees the pixel at that depth.
    """
    device = reference.grey.device
    keep = best if best else (len(neighbours) + 1) // 2
    ref = _Reference(reference.grey, window, variance_floor)
    fields = [_warp_field(reference, n, window // 2, device) for n in neighbours]
    H, W = reference.grey.shape
    volume = torch.empty(H, W, len(planes), device=device)
    on_host = planes.cpu()
    for first in range(0, len(planes), block):
        rho, ends = planes[first : first + block], on_host[first : first + block][[0, -1]]
        costs = (_block_cost(ref, f, rho, ends, n) for f, n in zip(fields, neighbours, strict=True))
        volume[:, :, first : first + len(rho)] = mean_of_lowest(costs, keep).permute(1, 2, 0)
    return volume
