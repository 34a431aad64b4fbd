"""Corners and their motion between two pictures: pyramidal Lucas-Kanade, for all points at once.

After Lucas and Kanade 1981, Shi and Tomasi 1994 (which points can be tracked) and Bouguet 2000 (the pyramid). Plain
torch on any device. Pixel centres are at +0.5, so a position on the next coarser level is exactly half of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.geometry.projection import inside_image
from relief3d.geometry.sampling import sample_image

_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class LkOptions:
    """How points are followed.

    Attributes:
        window: side of the patch, odd, pixels.
        levels: pyramid levels; motions up to about ``window / 2 * 2 ** (levels - 1)`` are found,
            where the picture has structure of that size.
        iterations: Gauss-Newton steps per level.
        min_eigen: least eigenvalue of the mean gradient tensor, in (grey value per pixel) squared.
        max_residual: largest mean absolute grey difference of the two patches after their means are taken off.
    """

    window: int = 11
    levels: int = 4
    iterations: int = 12
    min_eigen: float = 2e-5
    max_residual: float = 0.06


def grey(image: Tensor) -> Tensor:
    """Luma of (3, H, W) RGB in [0, 1] -> (H, W)."""
    weights = torch.tensor(_GREY, dtype=image.dtype, device=image.device)
    return (image * weights[:, None, None]).sum(0)


def _smooth(x: Tensor) -> Tensor:
    """Binomial filter (1, 2, 1) / 4 both ways; (1, 1, H, W)."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    x = F.conv2d(F.pad(x, (1, 1, 0, 0), mode="replicate"), line.view(1, 1, 1, 3))
    return F.conv2d(F.pad(x, (0, 0, 1, 1), mode="replicate"), line.view(1, 1, 3, 1))


def pyramid(image: Tensor, levels: int) -> list[Tensor]:
    """Levels of 3 channels: grey and its derivatives by x and y per pixel of that level, finest first.

    Args:
        image: (H, W) grey.
        levels: at most this many; levels below 16 pixels are left out.

    Returns:
        (3, H / 2^k, W / 2^k) each; an odd last row or column is dropped on the way down.
    """
    out = []
    x = _smooth(image[None, None])
    for _ in range(levels):
        wide = F.pad(x, (1, 1, 1, 1), mode="replicate")
        dx = 0.5 * (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2])
        dy = 0.5 * (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1])
        out.append(torch.cat([x, dx, dy], dim=1)[0])
        if min(x.shape[-2:]) < 32:
            break
        x = F.avg_pool2d(_smooth(x), 2)
    return out


def find_corners(
    image: Tensor, count: int, *, distance: int = 6, border: int = 6, options: LkOptions | None = None
) -> Tensor:
    """Pixels whose neighbourhood fixes a motion in both directions (Shi and Tomasi), best first.

    Args:
        image: (H, W) grey.
        count: at most this many.
        distance: corners are maxima among the pixels up to this far in x and y.
        border: pixels to stay away from the picture's border.
        options: window and least eigenvalue.

    Returns:
        (T, 2) pixel centres.
    """
    options = options or LkOptions()
    base = pyramid(image, 1)[0]
    gx, gy = base[1], base[2]
    side = options.window

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x[None, None], side, stride=1, padding=side // 2, count_include_pad=True)[0, 0]

    smaller = _smaller_eigenvalue(mean(gx * gx), mean(gx * gy), mean(gy * gy))
    reach = 2 * distance + 1
    peak = F.max_pool2d(smaller[None, None], reach, stride=1, padding=distance)[0, 0]
    keep = (smaller >= peak) & (smaller > options.min_eigen)
    height, width = image.shape
    inner = torch.zeros_like(keep)
    inner[border : height - border, border : width - border] = True
    rows, columns = torch.nonzero(keep & inner, as_tuple=True)
    best = torch.argsort(smaller[rows, columns], descending=True, stable=True)[:count]
    return torch.stack([columns[best], rows[best]], dim=1).to(image.dtype) + 0.5


def _smaller_eigenvalue(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Of symmetric 2x2 matrices ((a, b), (b, c))."""
    return 0.5 * (a + c) - (0.25 * (a - c).square() + b.square()).sqrt()


def follow(
    first: list[Tensor], second: list[Tensor], xy: Tensor, options: LkOptions | None = None
) -> tuple[Tensor, Tensor]:
    """Where points of one picture are in the next.

    Args:
        first: pyramid of a picture.
        second: pyramid of another one of that size.
        xy: (T, 2) pixels in the first.
        options: see :class:`LkOptions`.

    Returns:
        Positions (T, 2) in the second, and (T,) bool: well-conditioned, inside, and alike.
    """
    options = options or LkOptions()
    half = options.window // 2
    steps = torch.arange(-half, half + 1, dtype=xy.dtype, device=xy.device)
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).reshape(-1, 2)
    motion = torch.zeros_like(xy)
    fixed = torch.ones(len(xy), dtype=torch.bool, device=xy.device)
    residual = xy.new_zeros(len(xy))
    for level in range(len(first) - 1, -1, -1):
        here = xy / 2**level
        motion = motion * 2 if level < len(first) - 1 else motion
        patch = sample_image(first[level], (here[:, None] + offsets).reshape(-1, 2), padding="border")
        value, gx, gy = patch.reshape(3, len(xy), -1)
        a, b, c = (gx * gx).mean(1), (gx * gy).mean(1), (gy * gy).mean(1)
        smaller = _smaller_eigenvalue(a, b, c)
        determinant = (a * c - b * b).clamp_min(1e-12)
        usable = smaller > options.min_eigen
        value = value - value.mean(1, keepdim=True)
        for _ in range(options.iterations):
            there = (here + motion)[:, None] + offsets
            other = sample_image(second[level][:1], there.reshape(-1, 2), padding="border")
            other = other.reshape(len(xy), -1)
            difference = value - (other - other.mean(1, keepdim=True))
            ex, ey = (difference * gx).mean(1), (difference * gy).mean(1)
            step = torch.stack([c * ex - b * ey, a * ey - b * ex], dim=1) / determinant[:, None]
            # A step of more than half the window leaves the range in which the gradients mean anything.
            step = step.clamp(-half, half) * usable[:, None]
            motion = motion + step
        residual = difference.abs().mean(1)
        if level == 0:
            fixed &= usable
    height, width = first[0].shape[-2:]
    found = xy + motion
    good = fixed & (residual <= options.max_residual) & torch.isfinite(found).all(1)
    return found, good & inside_image(found, width, height)


def follow_there_and_back(
    first: list[Tensor], second: list[Tensor], xy: Tensor, max_error: float, options: LkOptions | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`follow`, then back again: what does not return to its start is lost (Kalal et al. 2010).

    Returns:
        Positions (T, 2), (T,) bool, and the distance (T,) in pixels between start and return.
    """
    there, good = follow(first, second, xy, options)
    back, good_back = follow(second, first, torch.where(good[:, None], there, xy), options)
    error = (back - xy).norm(dim=1)
    return there, good & good_back & (error <= max_error), error
