"""One way to ask any network for metric depth: pictures, focal lengths and prompts in, :class:`MetricPrediction` out.

Pictures are RGB in [0, 1] of any size; networks normalise and resize inside, and answer at the size of the pictures.
Only the horizontal focal length matters to a network that is told one (the pictures are stretched to a square), so
pixels need not be square. Source: MetricAnything specification 1.5, 10, 16, 17.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, KSource
from relief3d.core.errors import InputError
from relief3d.geometry.focal import centred_intrinsics

FocalSource = Literal["given", "exif", "predicted", "guessed"]
"""Given by the user or a calibration; from the picture's EXIF; predicted by a network; assumed equal to the width."""

_SOURCES: dict[KSource, FocalSource] = {
    "given": "given",
    "exif": "exif",
    "estimated": "predicted",
    "guess": "guessed",
}


_BEYOND = 0.2
"""How far values may lie outside of [0, 1], as resizing with a sharp filter leaves them."""


class GuessedFocalWarning(UserWarning):
    """The focal length is a guess, so depth is right only up to one unknown factor."""


@dataclass(frozen=True)
class Focal:
    """Horizontal focal lengths of B pictures.

    Attributes:
        pixels: (B,) float32, fx in pixels of the pictures as they are given; 0 where unknown.
        sources: where each comes from; that of an unknown one does not matter.
    """

    pixels: Tensor
    sources: tuple[FocalSource, ...]

    def __post_init__(self) -> None:
        pixels = torch.as_tensor(self.pixels, dtype=torch.float32)
        if pixels.ndim != 1 or len(pixels) != len(self.sources):
            raise InputError(
                f"focal lengths {tuple(pixels.shape)} and {len(self.sources)} sources must be one per picture"
            )
        if not bool((torch.isfinite(pixels) & (pixels >= 0)).all()):
            raise InputError(
                "focal lengths must be finite and positive pixels", remedy="0 stands for unknown"
            )
        object.__setattr__(self, "pixels", pixels)

    @property
    def known(self) -> Tensor:
        """(B,) bool, on the CPU."""
        return self.pixels.cpu() > 0

    @staticmethod
    def given(pixels: float | Sequence[float] | Tensor, source: FocalSource = "given") -> Focal:
        """The same source for all: a number (one picture) or (B,) pixels."""
        values = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1)
        sources: tuple[FocalSource, ...] = tuple(source for _ in range(len(values)))
        return Focal(values, sources)

    @staticmethod
    def unknown(count: int) -> Focal:
        """Nothing is known about ``count`` pictures."""
        return Focal.given([0.0] * count, "guessed")

    @staticmethod
    def of_cameras(cameras: Sequence[Camera]) -> Focal:
        """Horizontal focal length of K where a camera has one, with its source; unknown elsewhere."""
        pixels = [0.0 if camera.K is None else float(camera.K[0, 0]) for camera in cameras]
        return Focal(torch.tensor(pixels), tuple(_SOURCES[camera.K_source] for camera in cameras))

    def or_else(self, other: Focal) -> Focal:
        """This one where it is known, the other elsewhere (for example a network's estimate)."""
        known = self.known
        pixels = torch.where(known.to(self.pixels.device), self.pixels, other.pixels.to(self.pixels.device))
        sources = tuple(a if k else b for k, a, b in zip(known.tolist(), self.sources, other.sources))
        return Focal(pixels, sources)


@dataclass(frozen=True)
class MetricPrediction:
    """What a network says about B pictures of H x W pixels.

    Attributes:
        depth: (B, H, W) float32 z-depth in metres; 0 where the network says that there is no surface.
        focal: (B,) float32, fx in pixels: what depth was computed with.
        focal_sources: where each focal length comes from.
        canonical: (B, H, W) canonical inverse depth ``fx / (W * depth)`` (0 where there is no surface), which does not
            depend on the focal length for networks that need one.
        confidence: (B, H, W) in [0, 1], or None.
        valid: (B, H, W) bool, pixels with a surface; None when all have one.
        points: (B, H, W, 3) metres in the camera frame, for networks that predict them.
        normals: (B, H, W, 3) unit, camera frame, facing the camera, or None.
    """

    depth: Tensor
    focal: Tensor
    focal_sources: tuple[FocalSource, ...]
    canonical: Tensor
    confidence: Tensor | None = None
    valid: Tensor | None = None
    points: Tensor | None = None
    normals: Tensor | None = None

    @property
    def K(self) -> Tensor:
        """(B, 3, 3) pixels: square pixels, principal point in the middle."""
        height, width = self.depth.shape[-2:]
        return centred_intrinsics(self.focal, int(height), int(width))

    def depth_map(self, index: int) -> Depth:
        """One picture's depth as a record of the data contract."""
        confidence = None if self.confidence is None else self.confidence[index]
        values = self.depth[index]
        if self.valid is not None:
            values = torch.where(self.valid[index], values, torch.zeros_like(values))
        return Depth.from_values(values, metric=True, confidence=confidence)


class MetricModel(Protocol):
    """A network that needs pictures only.

    Attributes:
        name: of the architecture.
        predicts_focal: whether it finds unknown focal lengths itself; otherwise they are guessed, with a warning.
    """

    name: str
    predicts_focal: bool

    def predict(self, images: Tensor, focal: Focal | None = None) -> MetricPrediction:
        """Depth of pictures.

        Args:
            images: (B, 3, H, W) RGB in [0, 1], floating-point.
            focal: what is known about their focal lengths.

        Raises:
            InputError: pictures or focal lengths that cannot be used.
        """
        ...


class PromptedModel(Protocol):
    """A network that is told metric depth at some pixels, in the form of a dense condition.

    Attributes:
        name: of the architecture.
    """

    name: str

    def predict(self, images: Tensor, condition: Tensor, focal: Focal | None = None) -> MetricPrediction:
        """Depth of pictures.

        Args:
            images: (B, 3, H, W) RGB in [0, 1], floating-point.
            condition: (B, 3, h, w) float32 of any size over the same field of view: inverse depth in 1/m aligned
                pixel by pixel (PDSA), inverse depth in 1/m aligned as a whole (GMDR), 1 at prompt pixels and 0
                elsewhere. All zero where a picture has no prompt.
            focal: what is known about their focal lengths; unknown ones count as the width, without a warning, because
                the scale comes from the prompt.

        Raises:
            InputError: pictures, conditions or focal lengths that cannot be used.
        """
        ...


def check_pictures(images: Tensor) -> None:
    """Refuse what no network can take.

    Raises:
        InputError: not (B, 3, H, W), empty, not floating-point, with values that are not finite, or far from [0, 1].
    """
    if not images.is_floating_point():
        raise InputError(
            f"pictures must be floating-point in [0, 1], not {images.dtype}",
            remedy="divide 8-bit values by 255",
        )
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise InputError(
            f"pictures must be (B, 3, H, W) and not empty, got {tuple(images.shape)}",
            remedy="repeat grey pictures over three channels",
        )
    if not bool(torch.isfinite(images).all()):
        raise InputError("pictures hold values that are not finite")
    low, high = (float(v) for v in images.aminmax())
    if low < -_BEYOND or high > 1 + _BEYOND:
        raise InputError(
            f"pictures must be in [0, 1], but reach from {low:.3g} to {high:.3g}",
            remedy="divide 8-bit values by 255, and do not normalise: the network does",
        )


def check_condition(condition: Tensor, count: int) -> None:
    """Refuse conditions that would give a silent wrong scale.

    Raises:
        InputError: not (count, 3, h, w), not floating-point, not finite, negative inverse depth, or a mask outside
            [0, 1].
    """
    if condition.ndim != 4 or condition.shape[:2] != (count, 3) or 0 in condition.shape:
        raise InputError(f"conditions must be ({count}, 3, h, w), got {tuple(condition.shape)}")
    if not condition.is_floating_point() or not bool(torch.isfinite(condition).all()):
        raise InputError("conditions must be finite floating-point values")
    if bool((condition < 0).any()) or bool((condition[:, 2] > 1).any()):
        raise InputError(
            "conditions must be inverse depths of 0 or more, and a mask in [0, 1]",
            remedy="the order is PDSA, GMDR, mask",
        )


def complete_focal(focal: Focal | None, images: Tensor, *, warn: bool = True) -> Focal:
    """Every focal length known: what is not is taken as the width of the picture (a field of view of 53.13 degrees).

    Args:
        focal: what is known; None for nothing.
        images: (B, 3, H, W).
        warn: emit a :class:`GuessedFocalWarning` when something is a guess.

    Returns:
        On the device of the pictures.

    Raises:
        InputError: not as many focal lengths as pictures.
    """
    count, width = len(images), int(images.shape[-1])
    known = Focal.unknown(count) if focal is None else focal
    if len(known.sources) != count:
        raise InputError(f"there are {count} pictures, but {len(known.sources)} focal lengths")
    full = known.or_else(Focal.given([float(width)] * count, "guessed"))
    guesses = full.sources.count("guessed")
    if warn and guesses:
        warnings.warn(
            f"the focal length of {guesses} of {count} pictures is guessed (as long as the picture is wide), so their "
            "depth is right only up to a factor; give intrinsics or pictures with EXIF",
            GuessedFocalWarning,
            stacklevel=3,
        )
    return Focal(full.pixels.to(images.device), full.sources)
