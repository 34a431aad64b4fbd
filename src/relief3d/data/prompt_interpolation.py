"""Classical ways to spread a sparse prompt over its picture: baselines to beat, and candidates to start from.

All of them work in inverse depth, where planes are linear. Inputs are maps with 0 where nothing is known; the picture
guides those that use it. Names for tables stand in :data:`INTERPOLATORS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.optional import require
from relief3d.data.nearest_points import nearest_on_grid, prompt_points
from relief3d.data.prompt_alignment import MIN_DEPTH, GlobalOptions, align_global, inverse
from relief3d.data.triangle_grid import linear_on_grid

_FARTHEST = 60.0
"""Exponents stop here: numbers too small for their type would slow everything down."""


@dataclass(frozen=True)
class BilateralOptions:
    """Weights of the neighbours of a pixel.

    Attributes:
        neighbours: nearest prompt points that vote.
        colour: standard deviation of the colour difference, RGB in [0, 1] (root of the summed squares).
        space: standard deviation of the distance in units of the prompt's spacing, sqrt(H W / points).
    """

    neighbours: int = 16
    colour: float = 0.1
    space: float = 0.5


@dataclass(frozen=True)
class GuidedOptions:
    """A guided filter over the triangulated prompt.

    Attributes:
        radius: half side of the window in units of the prompt's spacing.
        ridge: added to the variances of colour; larger smooths more.
    """

    radius: float = 0.4
    ridge: float = 1e-2


BILATERAL = BilateralOptions()
GUIDED = GuidedOptions()


def known_pixels(depth: Tensor) -> Tensor:
    """Where a prompt holds depth: finite and above 1e-4.

    Raises:
        InputError: no such pixel in some picture (the last two dimensions).
    """
    known = torch.isfinite(depth) & (depth > MIN_DEPTH)
    if not bool(known.flatten(-2).any(-1).all()):
        raise InputError("the prompt holds no points")
    return known


def spread_nearest(depth: Tensor) -> Tensor:
    """The depth of the nearest known pixel; (B, H, W) or (H, W) metres."""
    if depth.ndim == 2:
        return spread_nearest(depth[None])[0]
    points = prompt_points(known_pixels(depth))
    place, _ = nearest_on_grid(points, (depth.shape[1], depth.shape[2]), 1)
    values = depth.flatten(1).gather(1, points.flat)
    return values.gather(1, place[0].flatten(1)).reshape(depth.shape)


def spread_linear(depth: Tensor) -> Tensor:
    """Linear in inverse depth on the Delaunay triangles of the points, the nearest point outside; (H, W) metres.

    Raises:
        InputError: the prompt is empty, or scipy is not installed.
    """
    require("scipy.spatial", extra="mesh", purpose="triangulating a sparse prompt")
    known = known_pixels(depth)
    near = spread_nearest(depth)
    rows, cols = torch.nonzero(known, as_tuple=True)
    xy = torch.stack([cols, rows], 1).double().cpu().numpy() + 0.5
    field = linear_on_grid(xy, (1 / depth[known].double()).cpu().numpy(), *depth.shape)
    if field is None:
        return near
    values = torch.from_numpy(field).to(depth.device)
    inside = torch.isfinite(values) & (values > 0)
    return torch.where(inside, (1 / torch.where(inside, values, 1.0)).to(depth.dtype), near)


def spread_bilateral(depth: Tensor, image: Tensor, options: BilateralOptions = BILATERAL) -> Tensor:
    """Mean inverse depth of the nearest points, weighted by distance and by likeness of colour.

    Args:
        depth: (B, H, W) or (H, W) metres.
        image: (B, 3, H, W) or (3, H, W), RGB in [0, 1] or uint8.
        options: weights.

    Returns:
        The shape of ``depth``, metres; known pixels keep theirs.

    Raises:
        InputError: the prompt is empty, or picture and prompt differ in size.
    """
    image = _picture(image, depth)
    if depth.ndim == 2:
        return spread_bilateral(depth[None], image[None], options)[0]
    known = known_pixels(depth)
    batch, height, width = depth.shape
    points = prompt_points(known)
    place, far = nearest_on_grid(points, (height, width), options.neighbours)
    offset = torch.arange(batch, device=depth.device)[:, None]
    at = (place + (offset * points.flat.shape[1])[:, :, None]).flatten(1)
    values = inverse(depth).flatten(1).gather(1, points.flat).reshape(-1)
    colours = image.flatten(2).gather(2, points.flat[:, None].expand(-1, 3, -1))
    spacing = torch.sqrt(height * width / points.count.float())
    spread = 1 / (2 * (options.space * spacing) ** 2)
    total, weights = torch.zeros_like(depth), torch.zeros_like(depth)
    for j in range(options.neighbours):
        squared = torch.zeros_like(depth)
        for channel in range(3):
            there = colours[:, channel].reshape(-1)[at[j]].reshape(depth.shape)
            squared += (image[:, channel] - there).square()
        cost = squared / (2 * options.colour**2) + far[j].square() * spread[:, None, None]
        # The nearest neighbour always keeps some weight, so that the sum never vanishes.
        weight = torch.exp(-cost.clamp_max_(_FARTHEST)) + (1e-6 if j == 0 else 0.0)
        weights += weight
        total += weight * values[at[j]].reshape(depth.shape)
    return torch.where(known, depth, weights / total)


def spread_guided(depth: Tensor, image: Tensor, options: GuidedOptions = GUIDED) -> Tensor:
    """The triangulated prompt as a locally linear function of the picture's colours (guided filter of He et al.).

    Args:
        depth: (H, W) metres.
        image: (3, H, W), RGB in [0, 1] or uint8.
        options: window and ridge.

    Returns:
        (H, W) metres, within the range of the prompt.

    Raises:
        InputError: as :func:`spread_linear`, or picture and prompt differ in size.
    """
    guide = _picture(image, depth).double()
    known = known_pixels(depth)
    height, width = depth.shape
    spacing = math.sqrt(height * width / int(known.sum()))
    radius = max(1, min(round(options.radius * spacing), min(height, width) // 2))
    p = 1 / spread_linear(depth).double()
    stacked = torch.cat([guide, p[None], guide * p, (guide[:, None] * guide[None]).flatten(0, 1)])
    mean = _box(stacked, radius)
    mean_i, mean_p, mean_ip, mean_ii = mean[:3], mean[3], mean[4:7], mean[7:].unflatten(0, (3, 3))
    covariance = (mean_ii - mean_i[:, None] * mean_i[None]).permute(2, 3, 0, 1)
    covariance = covariance + options.ridge * torch.eye(3, dtype=p.dtype, device=p.device)
    cross = (mean_ip - mean_i * mean_p).permute(1, 2, 0)
    a = torch.linalg.solve(covariance, cross[..., None])[..., 0].permute(2, 0, 1)
    b = mean_p - (a * mean_i).sum(0)
    smooth = _box(torch.cat([a, b[None]]), radius)
    q = (smooth[:3] * guide).sum(0) + smooth[3]
    given = 1 / depth[known].double()
    return (1 / q.clamp(float(given.min()), float(given.max()))).to(depth.dtype)


def spread_prior(depth: Tensor, prior: Tensor, options: GlobalOptions | None = None) -> Tensor:
    """A monocular prior (disparity, (H, W)) fitted to the prompt (H, W) by one affine map: metres.

    Raises:
        InputError: the prompt is empty or of another size.
    """
    fit = align_global(prior, inverse(depth), known_pixels(depth), options or GlobalOptions())
    return 1.0 / fit.disparity


Interpolator = Callable[[Tensor, Tensor], Tensor]
"""Prompt (H, W) metres and picture (3, H, W) to dense depth (H, W) metres."""

INTERPOLATORS: Mapping[str, Interpolator] = MappingProxyType(
    {
        "nearest": lambda depth, image: spread_nearest(depth),
        "linear in 1/z": lambda depth, image: spread_linear(depth),
        "bilateral 16-NN": spread_bilateral,
        "guided filter": spread_guided,
    }
)
"""The baselines of the tables."""


def _picture(image: Tensor, depth: Tensor) -> Tensor:
    if tuple(image.shape[-2:]) != tuple(depth.shape[-2:]) or image.ndim != depth.ndim + 1:
        raise InputError(
            f"a picture of shape {tuple(image.shape)} does not go with a prompt of shape {tuple(depth.shape)}",
            remedy="resize the picture to the prompt",
        )
    return image.to(depth.device, torch.float32) / (255.0 if image.dtype == torch.uint8 else 1.0)


def _box(maps: Tensor, radius: int) -> Tensor:
    """Means (C, H, W) over windows cut at the borders, by running sums."""
    size = 2 * radius + 1
    padded = F.pad(maps, (radius + 1, radius, radius + 1, radius))
    sums = padded.cumsum(-1)
    sums = sums[..., size:] - sums[..., :-size]
    sums = sums.cumsum(-2)
    sums = sums[..., size:, :] - sums[..., :-size, :]
    height, width = maps.shape[-2:]
    rows, cols = (
        (torch.arange(n, device=maps.device) + radius).clamp(max=n - 1)
        - (torch.arange(n, device=maps.device) - radius).clamp_min(0)
        + 1
        for n in (height, width)
    )
    return sums / (rows[:, None] * cols[None])
