"""From the raw maps of a point-map network to metres: focal length, shift, scale, mask.

Source: MoGe-2's ``infer``; MetricAnything specification 6.3, 6.4, 10.7, 10.8.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.conventions import normalized_intrinsics
from relief3d.geometry.focal import (
    FocalShift,
    centred_intrinsics,
    focal_from_pixels,
    focal_to_pixels,
    recover_focal_shift,
)
from relief3d.geometry.projection import depth_to_points
from relief3d.models.metric.interface import (
    Focal,
    FocalSource,
    MetricPrediction,
    check_pictures,
    complete_focal,
)
from relief3d.models.metric.pointmap import LEVELS, PointMap, PointMapOutput, native_tokens

SURFACE = 0.5
"""Pixels whose probability is larger have a surface."""

SOLVER_TOLERANCE = 1e-3
"""Where the published solver stops."""


@dataclass(frozen=True)
class PointMapResult:
    """Points of B pictures of H x W pixels in the camera frame; in metres if the network has a head for the scale.

    Attributes:
        points: (B, H, W, 3); 0 where masked out.
        depth: (B, H, W) z-depth; 0 where masked out.
        mask: (B, H, W) bool, there is a surface in front of the camera.
        probability: (B, H, W) of a surface, or None.
        normals: (B, H, W, 3) unit, 0 where masked out, or None.
        focal: fx of every picture in pixels, and where it comes from.
        shift: (B,) that was added to z before the scale.
        scale: (B,) metres per unit of the network's points; 1 without the head.
    """

    points: Tensor
    depth: Tensor
    mask: Tensor
    probability: Tensor | None
    normals: Tensor | None
    focal: Focal
    shift: Tensor
    scale: Tensor

    @property
    def K(self) -> Tensor:
        """(B, 3, 3) pixels: square pixels, principal point in the middle."""
        height, width = (int(n) for n in self.depth.shape[-2:])
        return centred_intrinsics(self.focal.pixels, height, width)

    @property
    def intrinsics(self) -> Tensor:
        """(B, 3, 3) in units of width and height, as MoGe states them."""
        height, width = (int(n) for n in self.depth.shape[-2:])
        return normalized_intrinsics(self.K, width, height)


def focal_from_fov(fov_x: float | Tensor, images: Tensor) -> Focal:
    """Given horizontal fields of view in radians, a number or (B,), as focal lengths in pixels.

    Raises:
        InputError: not between 0 and pi.
    """
    angle = torch.as_tensor(fov_x, dtype=torch.float64).expand(len(images))
    if not bool(((angle > 0) & (angle < math.pi)).all()):
        raise InputError("the horizontal field of view must be between 0 and pi radians")
    return Focal.given((0.5 * images.shape[-1] / (0.5 * angle).tan()).float())


@dataclass(frozen=True)
class PointMapModel:
    """A network with its way of inference: the point-map kind of :class:`MetricModel`.

    Attributes:
        network: in evaluation mode, on its device.
        level: resolution from 0 to 9, over the range of tokens that the network was trained with.
        tokens: number of tokens instead; "native" takes one per 14 x 14 pixels of the picture.
        project: compute the points from the depth, so that they lie exactly on the rays of the focal length.
        masked: set what has no surface to 0; otherwise raw values are kept there, as MoGe evaluates.
        tolerance: of the solver, see :func:`recover_focal_shift`; None goes on to the minimum.
        autocast: type that the network computes in, such as float16 on a GPU; everything after it is float32.
    """

    network: PointMap
    level: float = float(LEVELS)
    tokens: int | Literal["native"] | None = None
    project: bool = True
    masked: bool = True
    tolerance: float | None = SOLVER_TOLERANCE
    autocast: torch.dtype | None = None

    @property
    def name(self) -> str:
        """Of the architecture."""
        return "pointmap"

    @property
    def predicts_focal(self) -> bool:
        """True: the solver finds it from the points."""
        return True

    def tokens_for(self, height: int, width: int) -> int:
        """Tokens that a picture of this size gets.

        Raises:
            InputError: a level outside 0 to 9, or no tokens.
        """
        if self.tokens == "native":
            return native_tokens(height, width)
        count = self.network.tokens_of_level(self.level) if self.tokens is None else self.tokens
        if count < 1:
            raise InputError(f"the number of tokens must be positive, not {count}")
        return count

    @torch.no_grad()
    def infer(self, images: Tensor, focal: Focal | None = None) -> PointMapResult:
        """Points, focal length and scale of pictures.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            focal: what is known; the rest is solved for. Where that fails (fewer than two pixels with a surface, or no
                positive solution), the focal length is guessed with a warning and the shift is 0.

        Raises:
            InputError: pictures or focal lengths that cannot be used.
        """
        check_pictures(images)
        height, width = int(images.shape[-2]), int(images.shape[-1])
        known = Focal.unknown(len(images)) if focal is None else focal
        if len(known.sources) != len(images):
            raise InputError(f"there are {len(images)} pictures, but {len(known.sources)} focal lengths")
        raw = self._raw(images.float())
        surface = torch.ones_like(raw.points[..., 0], dtype=torch.bool)
        if raw.mask is not None:
            surface = raw.mask > SURFACE
        solved = _solved(raw.points, surface, known, self.tolerance)
        found = focal_to_pixels(solved.focal, height, width)
        good = torch.isfinite(found) & (found > 0) & torch.isfinite(solved.shift) & (surface.sum((1, 2)) >= 2)
        source: FocalSource = "predicted"
        predicted = Focal(torch.where(good, found, torch.zeros_like(found)), (source,) * len(images))
        full = complete_focal(known.or_else(predicted), images)
        shift = torch.where(good, solved.shift, torch.zeros_like(solved.shift))
        return self._in_metres(raw, surface, full, shift)

    def predict(self, images: Tensor, focal: Focal | None = None) -> MetricPrediction:
        """Metric depth; see :class:`MetricModel` and :meth:`infer`.

        Raises:
            InputError: as :meth:`infer`; or the network has no head for the scale.
        """
        if self.network.scale_head is None:
            raise InputError("this point-map network has no metric scale", remedy="choose one that has")
        found = self.infer(images, focal)
        near = found.mask & (found.depth > 0)
        per_width = (found.focal.pixels / images.shape[-1])[:, None, None]
        canonical = torch.where(near, per_width / torch.where(near, found.depth, 1.0), 0.0)
        return MetricPrediction(
            depth=found.depth,
            focal=found.focal.pixels,
            focal_sources=found.focal.sources,
            canonical=canonical,
            confidence=found.probability,
            valid=found.mask,
            points=found.points,
            normals=found.normals,
        )

    def _raw(self, images: Tensor) -> PointMapOutput:
        kind = images.device.type
        wanted = self.autocast
        guard = torch.autocast(kind, dtype=wanted) if wanted is not None else contextlib.nullcontext()
        with guard:
            return self.network(images, self.tokens_for(int(images.shape[-2]), int(images.shape[-1])))

    def _in_metres(self, raw: PointMapOutput, surface: Tensor, focal: Focal, shift: Tensor) -> PointMapResult:
        height, width = (int(n) for n in raw.points.shape[1:3])
        points = torch.cat([raw.points[..., :2], raw.points[..., 2:] + shift[:, None, None, None]], -1)
        depth = points[..., 2]
        mask = surface & (depth > 0)
        if self.project:
            points = depth_to_points(depth, centred_intrinsics(focal.pixels, height, width))
        scale = torch.ones_like(shift) if raw.scale is None else raw.scale
        depth, points = depth * scale[:, None, None], points * scale[:, None, None, None]
        normals = raw.normals
        if self.masked:
            depth = torch.where(mask, depth, 0.0)
            points = torch.where(mask[..., None], points, 0.0)
            normals = None if normals is None else torch.where(mask[..., None], normals, 0.0)
        return PointMapResult(points, depth, mask, raw.mask, normals, focal, shift, scale)


def _solved(points: Tensor, surface: Tensor, known: Focal, tolerance: float | None) -> FocalShift:
    """Focal length relative to half the diagonal and shift, with the focal lengths that are known held."""
    height, width = (int(n) for n in points.shape[1:3])
    given = known.known.to(points.device)
    free = held = None
    if not bool(given.all()):
        free = recover_focal_shift(points, surface, tolerance=tolerance)
    if bool(given.any()):
        relative = focal_from_pixels(known.pixels.to(points.device), height, width)
        relative = torch.where(given, relative, torch.ones_like(relative))
        held = recover_focal_shift(points, surface, relative, tolerance=tolerance)
    if free is None or held is None:
        only = held if free is None else free
        assert only is not None
        return only
    return FocalShift(*(torch.where(given, a, b) for a, b in zip(held, free)))
