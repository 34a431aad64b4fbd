"""The fisheye lens of Project Aria's cameras (FisheyeRadTanThinPrism, "Fisheye624"), and pictures made pinhole.

Source: https://facebookresearch.github.io/projectaria_tools/docs/tech_insights/camera_intrinsic_models. Six radial
terms do not fit the contract's four, so pictures are resampled to a pinhole camera at the same place instead.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Depth
from relief3d.core.errors import InputError
from relief3d.geometry.projection import pixel_rays
from relief3d.geometry.sampling import sample_image

_INTEGER_CENTRES = 0.5
"""The model's pixel centres lie at integers; ours at +0.5."""


@dataclass(frozen=True)
class AriaLens:
    """Parameters in pixels of a picture of ``size``, pixel centres at integers as in Aria's files.

    Attributes:
        size: width and height.
        focal: pixels.
        centre: (x, y) of the principal point.
        radial: k0..k5.
        tangential: p0, p1.
        prism: s0..s3.
        reach: pixels from the principal point within which the lens sees, or None.
        widest: angle from the axis in radians up to which the lens sees.
    """

    size: tuple[int, int]
    focal: float
    centre: tuple[float, float]
    radial: tuple[float, ...]
    tangential: tuple[float, float]
    prism: tuple[float, float, float, float]
    reach: float | None = None
    widest: float = 1.5

    def at(self, width: int) -> AriaLens:
        """The same lens for a picture of another width (scaled about the corner).

        Raises:
            InputError: the width is no multiple of the known one or the other way round.
        """
        scale = width / self.size[0]
        if scale <= 0 or not ((scale * 4).is_integer() or (4 / scale).is_integer()):
            raise InputError(f"no lens is known for pictures {width} pixels wide")
        cx, cy = ((c + 0.5) * scale - 0.5 for c in self.centre)
        size = (width, round(self.size[1] * scale))
        reach = None if self.reach is None else self.reach * scale
        return dataclasses.replace(self, size=size, focal=self.focal * scale, centre=(cx, cy), reach=reach)

    def project(self, rays: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (*, 2), centres at +0.5, of camera-frame rays (*, 3), and whether the lens sees them (*,)."""
        x, y, z = rays.unbind(-1)
        r = (x * x + y * y).sqrt()
        theta = torch.atan2(r, z)
        t2 = theta * theta
        grown = torch.zeros_like(t2)
        for k in reversed(self.radial):
            grown = t2 * (k + grown)
        safe = torch.where(r > 0, r, torch.ones_like(r))
        scale = torch.where(r > 0, theta * (1 + grown) / safe, torch.zeros_like(r))
        u, v = x * scale, y * scale
        r2 = u * u + v * v
        (p0, p1), (s0, s1, s2, s3) = self.tangential, self.prism
        dx = p0 * (2 * u * u + r2) + 2 * p1 * u * v + s0 * r2 + s1 * r2 * r2
        dy = p1 * (2 * v * v + r2) + 2 * p0 * u * v + s2 * r2 + s3 * r2 * r2
        xy = self.focal * torch.stack([u + dx, v + dy], -1)
        seen = theta <= self.widest
        if self.reach is not None:
            seen = seen & (xy.norm(dim=-1) <= self.reach)
        xy = xy + torch.tensor(self.centre, dtype=xy.dtype) + _INTEGER_CENTRES
        inside = (xy >= 0).all(-1) & (xy[..., 0] <= self.size[0]) & (xy[..., 1] <= self.size[1])
        return xy, seen & inside


def pinhole_pixels(lens: AriaLens, K: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where a pinhole camera's pixels (K (3, 3), (width, height)) lie in the fisheye picture: (H, W, 2), (H, W)."""
    return lens.project(pixel_rays(K.to(torch.float64), size[1], size[0]))


def pinhole_picture(image: Tensor, lens: AriaLens, K: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) of the pinhole camera from the fisheye picture (3, h, w); black where the lens sees nothing."""
    xy, seen = pinhole_pixels(lens, K, size)
    return sample_image(image, xy, padding="border") * seen.to(image.dtype)


def pinhole_depth(ray_length: Tensor, lens: AriaLens, K: Tensor, size: tuple[int, int]) -> Depth:
    """z-depth of the pinhole camera from distances along the fisheye's rays (h, w) in metres, 0 where unknown.

    Each pixel takes the distance of the nearest fisheye pixel, so that distances never mix across edges.
    """
    xy, seen = pinhole_pixels(lens, K, size)
    distance = sample_image(ray_length[None].double(), xy, mode="nearest")[0] * seen
    z = distance / pixel_rays(K.to(torch.float64), size[1], size[0]).norm(dim=-1)
    return Depth.from_values(z)
