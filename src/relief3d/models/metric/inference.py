"""From pictures of any size to metres with the pyramid networks (specification 3.7, 4.6, 5.6, 10.7)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from relief3d.core.device import Precision, autocast_dtype
from relief3d.core.errors import InputError
from relief3d.models.metric.interface import (
    Focal,
    MetricModel,
    MetricPrediction,
    PromptedModel,
    check_condition,
    check_pictures,
    complete_focal,
)
from relief3d.models.metric.networks import (
    DepthMap,
    DepthPro,
    PyramidConfig,
    PyramidNetwork,
    PyramidOutput,
    Teacher,
    focal_from_fov,
)

ScaleMode = Literal["tile", "tiles"]
ResizeMode = Literal["bilinear", "antialias"]


@dataclass(frozen=True)
class PyramidOptions:
    """How to run a pyramid network.

    Attributes:
        precision: ``auto`` is bfloat16 on accelerators that have it, else float32. Rotary angles, the last sum of the
            head, everything about focal lengths and metres stay in float32.
        chunk: tiles per pass of the transformer, None for all; only memory depends on it.
        rows: rows per pass of the head, None for all; only memory depends on it.
        pixels: of the picture that the network sees, relative to what it was trained on (the papers' 1x, 3x, 9x).
        scale_mode: "tile" makes the tiles larger, "tiles" takes more of them; sides are rounded to what is possible.
        resize_mode: how pictures are brought to that size. "bilinear" takes the four nearest pixels, as the published
            networks' ``infer`` does; "antialias" averages over what a new pixel covers and rounds to 8 bits, as Pillow
            does and the paper's evaluation did.
    """

    precision: Precision = "auto"
    chunk: int | None = None
    rows: int | None = None
    pixels: float = 1.0
    scale_mode: ScaleMode = "tile"
    resize_mode: ResizeMode = "bilinear"

    def low_memory(self) -> PyramidOptions:
        """The same in small steps; the results agree up to rounding."""
        return replace(self, chunk=5, rows=64)


def resolution(config: PyramidConfig, pixels: float = 1.0, mode: ScaleMode = "tile") -> tuple[int, int]:
    """Side of the picture and of a tile, in pixels, for about ``pixels`` times as many pixels as usual.

    Raises:
        InputError: ``pixels`` is not positive.
    """
    if not pixels > 0:
        raise InputError(f"the resolution must be a positive factor, not {pixels}")
    factor = pixels**0.5
    if mode == "tiles":
        return config.tile * (1 + 3 * max(1, round((4 * factor - 1) / 3))), config.tile
    unit = 8 * config.vit.patch
    tile = unit * max(1, round(config.tile * factor / unit))
    return 4 * tile, tile


def resize_pictures(images: Tensor, side: int, mode: ResizeMode = "bilinear") -> Tensor:
    """(B, 3, H, W) in [0, 1] to (B, 3, side, side) float32; the shape of the picture is not kept."""
    images = images.float()
    if mode == "bilinear":
        return nn.functional.interpolate(images, (side, side), mode="bilinear", align_corners=False)
    coarse = nn.functional.interpolate(
        (images * 255).round(), (side, side), mode="bilinear", align_corners=False, antialias=True
    )
    return coarse.round() / 255


def metric_depth(
    canonical: Tensor, focal: Tensor, size: tuple[int, int], limits: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Depth (B, H, W) in metres and canonical inverse depth (B, H, W) at the size of the pictures.

    Args:
        canonical: (B, s, s) canonical inverse depth.
        focal: (B,) fx in pixels of the pictures.
        size: (H, W) of the pictures.
        limits: smallest and largest inverse depth in 1/m.
    """
    at_size = nn.functional.interpolate(canonical[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    inverse = at_size * (size[1] / focal.to(at_size))[:, None, None]
    return inverse.clamp(*limits).reciprocal(), at_size


class _PyramidModel:
    """What the wrappers share."""

    name = ""
    limits = (1e-4, 1e4)

    def __init__(self, network: PyramidNetwork, options: PyramidOptions | None = None) -> None:
        self.network, self.options = network.eval(), options or PyramidOptions()
        self.side, self.tile = resolution(network.config, self.options.pixels, self.options.scale_mode)

    def _run(self, images: Tensor, condition: Tensor | None = None) -> PyramidOutput:
        o, device = self.options, images.device
        dtype = autocast_dtype(o.precision, device)
        pictures = resize_pictures(images, self.side, o.resize_mode)
        with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            out: PyramidOutput = self.network(pictures, condition, tile=self.tile, chunk=o.chunk, rows=o.rows)
        return out

    def _in_metres(self, out: PyramidOutput, focal: Focal, images: Tensor) -> MetricPrediction:
        height, width = images.shape[-2:]
        depth, canonical = metric_depth(out.canonical, focal.pixels, (int(height), int(width)), self.limits)
        return MetricPrediction(depth, focal.pixels, focal.sources, canonical)


class DepthProModel(_PyramidModel):
    """Depth Pro: predicts unknown focal lengths when it has the head for it."""

    name = "depth_pro"

    def __init__(self, network: DepthPro, options: PyramidOptions | None = None) -> None:
        super().__init__(network, options)
        self.predicts_focal = hasattr(network, "fov")

    @torch.no_grad()
    def predict(self, images: Tensor, focal: Focal | None = None) -> MetricPrediction:
        """See :class:`~relief3d.models.metric.interface.MetricModel`; depth is limited to [0.0001, 10000] m."""
        check_pictures(images)
        out = self._run(images)
        if out.fov_deg is not None:
            found = focal_from_fov(out.fov_deg, int(images.shape[-1]))
            # A field of view that no camera has says nothing: the focal length is then a guess like any other.
            sense = (out.fov_deg > 0) & (out.fov_deg < 180)
            predicted = Focal.given(torch.where(sense, found, torch.zeros_like(found)), "predicted")
            focal = predicted if focal is None else focal.or_else(predicted)
        return self._in_metres(out, complete_focal(focal, images), images)


class DepthMapModel(_PyramidModel):
    """Student-DepthMap: needs to be told the focal length."""

    name = "depth_map"
    predicts_focal = False
    limits = (1e-3, 1e3)

    def __init__(self, network: DepthMap, options: PyramidOptions | None = None) -> None:
        super().__init__(network, options)

    @torch.no_grad()
    def predict(self, images: Tensor, focal: Focal | None = None) -> MetricPrediction:
        """See :class:`~relief3d.models.metric.interface.MetricModel`; depth is limited to [0.001, 1000] m."""
        check_pictures(images)
        focal = complete_focal(focal, images)
        return self._in_metres(self._run(images), focal, images)


class TeacherModel(_PyramidModel):
    """The prompted teacher."""

    name = "teacher"

    def __init__(self, network: Teacher, options: PyramidOptions | None = None) -> None:
        super().__init__(network, options)

    @torch.no_grad()
    def predict(self, images: Tensor, condition: Tensor, focal: Focal | None = None) -> MetricPrediction:
        """See :class:`~relief3d.models.metric.interface.PromptedModel`; depth is limited to [0.0001, 10000] m."""
        check_pictures(images)
        check_condition(condition, len(images))
        focal = complete_focal(focal, images, warn=False)
        inside = canonical_condition(
            condition.to(images.device), focal.pixels, int(images.shape[-1]), self.side
        )
        return self._in_metres(self._run(images, inside), focal, images)


def canonical_condition(condition: Tensor, focal: Tensor, width: int, side: int) -> Tensor:
    """A condition in 1/m as the teacher takes it: (B, 3, side, side), inverse depths times ``fx / width``.

    Args:
        condition: (B, 3, h, w); made smaller with a low-pass, so that few points do not fall between pixels.
        focal: (B,) fx in pixels of pictures of that width; the width itself where it is unknown.
        width: of the pictures in pixels.
        side: of the network's pictures.
    """
    smaller = max(condition.shape[-2:]) > side
    x = nn.functional.interpolate(
        condition.float(), (side, side), mode="bilinear", align_corners=False, antialias=smaller
    )
    factor = (focal.to(x) / width)[:, None, None, None]
    return torch.cat([x[:, :2] * factor, x[:, 2:]], 1)


def wrap_metric(network: nn.Module, options: PyramidOptions | None = None) -> MetricModel | PromptedModel:
    """The common interface of a pyramid network.

    Raises:
        InputError: it is none.
    """
    if isinstance(network, DepthPro):
        return DepthProModel(network, options)
    if isinstance(network, DepthMap):
        return DepthMapModel(network, options)
    if isinstance(network, Teacher):
        return TeacherModel(network, options)
    raise InputError(f"{type(network).__name__} is no network for metric depth of this kind")
