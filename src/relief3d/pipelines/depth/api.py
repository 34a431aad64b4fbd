"""Metric depth from Python: a network that is opened once and asked picture by picture.

model = relief3d.open_depth_model()                    # metric-student-mini; prompted=True: metric-teacher-mini
answer = model.predict("photo.jpg", K=(fx, fy, cx, cy))
answer.depth, answer.confidence, answer.K, answer.K_source, answer.points()
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Camera, KSource
from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError, RunError
from relief3d.data.metric_prompt import MetricPrompt, Unit
from relief3d.geometry.projection import depth_to_points
from relief3d.io.folders import open_input
from relief3d.models.metric.interface import Focal, GuessedFocalWarning
from relief3d.models.metric.opening import MetricEstimator, MetricRunOptions, find_metric, open_metric
from relief3d.models.packaged import PLAIN, PROMPTED
from relief3d.pipelines.depth.cameras import (
    GivenIntrinsics,
    checked_intrinsics,
    of_matrix,
    used_camera,
)

Picture = str | Path | Tensor | np.ndarray | Any
"""A file; (3, H, W) tensor in [0, 1]; (H, W, 3) or (H, W) uint8 array; or a Pillow image with 8 bits per
channel, taken as it is (Pillow's ``exif_transpose`` turns it, as reading a file does)."""


@dataclass(frozen=True)
class DepthAnswer:
    """Depth of one picture.

    Attributes:
        depth: (H, W) float32 z-depth in metres (in the unit of the prompt), 0 where unknown.
        confidence: (H, W) in [0, 1], or None.
        K: (3, 3) float64 pixels, centres at +0.5: what depth goes with.
        K_source: given, exif, estimated, or guess: then depth without a prompt is right only up to a factor.
        notes: what was odd about the prompt.
    """

    depth: Tensor
    confidence: Tensor | None
    K: Tensor
    K_source: KSource
    notes: tuple[str, ...] = ()

    def points(self) -> Tensor:
        """(N, 3) float32 points of the pixels with depth, in the camera frame."""
        every = depth_to_points(self.depth.double(), self.K)
        return every[self.depth > 0].float()


class DepthModel:
    """A network for metric depth; see :func:`open_depth_model`."""

    def __init__(self, estimator: MetricEstimator) -> None:
        self._estimator = estimator

    @property
    def name(self) -> str:
        """Of the weights."""
        return self._estimator.weights.label

    @property
    def needs_prompt(self) -> bool:
        """Whether it must be told sparse metric depth."""
        return self._estimator.weights.needs_prompt

    def predict(
        self,
        picture: Picture,
        *,
        prompt: MetricPrompt | Tensor | np.ndarray | None = None,
        prompt_unit: Unit | None = None,
        K: Sequence[float] | Tensor | np.ndarray | None = None,
    ) -> DepthAnswer:
        """Depth of one picture, at its size.

        Args:
            picture: see :data:`Picture`. A file's EXIF may hold its focal length.
            prompt: for a network that needs one: (H, W) sparse z-depth, 0 or NaN where unknown, or a checked prompt.
            prompt_unit: of a map's values; None: metres, and whole numbers or implausible values are refused.
            K: (fx, fy, cx, cy), or (3, 3), in pixels of this picture, centres at +0.5.

        Raises:
            InputError: a picture, prompt or K that cannot be used; a prompt is missing or not wanted.
            RunError: the network's answer is not finite.
        """
        image, camera = _opened(picture)
        if K is not None:
            camera = GivenIntrinsics(_matrix(K)).of(camera, "the picture")
        if (prompt is not None) != self.needs_prompt:
            raise InputError(
                f"{self.name} needs sparse metric depth"
                if self.needs_prompt
                else f"{self.name} takes no prompt",
                remedy="give a prompt" if self.needs_prompt else "leave it away, or open a prompted network",
            )
        checked = prompt if isinstance(prompt, MetricPrompt) else None
        if prompt is not None and not isinstance(prompt, MetricPrompt):
            checked = MetricPrompt.from_depth_map(
                torch.as_tensor(prompt), size=(camera.height, camera.width), unit=prompt_unit, K=camera.K
            )
        said = self._estimator.estimate(image, Focal.of_cameras([camera]), checked)
        if not bool(torch.isfinite(said.depth).all()):
            raise RunError(f"the depth of {self.name} is not finite", remedy="check the weights")
        used = used_camera(camera, said)
        assert used.K is not None
        if used.K_source == "guess":
            warnings.warn(
                "the focal length is guessed (as long as the picture is wide), so "
                + ("points are right across" if self.needs_prompt else "depth is right")
                + " only up to a factor; give K",
                GuessedFocalWarning,
                stacklevel=2,
            )
        sure = None if said.confidence is None else said.confidence[0].float().cpu()
        notes = () if checked is None else checked.notes
        return DepthAnswer(said.depth_map(0).values.float().cpu(), sure, used.K, used.K_source, notes)


def open_depth_model(
    name: str = "",
    *,
    prompted: bool = False,
    size: str | None = None,
    device: str = "auto",
    side: int | None = None,
    pixels: float | None = None,
    tokens: int | None = None,
) -> DepthModel:
    """Open a network for metric depth.

    Args:
        name: packaged or published network (``relief3d models list``), or file of weights; empty: the packaged one.
        prompted: without a name: the one that is told sparse metric depth.
        size: of own weights, where neither the file nor the ``model.json`` beside it says so.
        device: auto, cpu, or an accelerator's name.
        side: longer side in pixels at which a prompt-refiner works.
        pixels: that a pyramid network sees, relative to its own resolution.
        tokens: of a point-map network.

    Raises:
        InputError: no such network, or damaged weights.
        RunError: a download failed.
    """
    weights = find_metric(name or (PROMPTED if prompted else PLAIN), size=size)
    options = MetricRunOptions(side, pixels, tokens)
    return DepthModel(open_metric(weights, resolve_device(device), options))


def _opened(picture: Picture) -> tuple[Tensor, Camera]:
    """(3, H, W) in [0, 1], and what is known about its camera."""
    if isinstance(picture, str | Path):
        views = open_input(Path(picture)).views
        if len(views) != 1:
            raise InputError(
                f"holds {len(views)} pictures, one is asked for", path=picture, remedy="name one picture"
            )
        return views[0].load_image(), views[0].camera
    if isinstance(picture, Tensor):
        if picture.ndim != 3 or picture.shape[0] != 3 or not picture.is_floating_point():
            raise InputError(
                "a picture as tensor must be (3, H, W) with values in [0, 1], not "
                f"{tuple(picture.shape)} {picture.dtype}",
                remedy="give 8-bit pictures as (H, W, 3) arrays",
            )
        image = picture.float().cpu()
    else:
        mode = getattr(picture, "mode", "RGB")
        if mode == "F" or mode.startswith("I"):
            # Pillow would cut such values at 255: a white picture.
            raise InputError(
                f"a Pillow image of mode {mode} does not say which value is white",
                remedy="convert it to 8-bit RGB, or name its file",
            )
        values = np.asarray(picture.convert("RGB") if hasattr(picture, "convert") else picture)
        if (
            values.dtype != np.uint8
            or values.ndim not in (2, 3)
            or (values.ndim == 3 and values.shape[2] != 3)
        ):
            raise InputError(
                f"a picture as array must be (H, W, 3) or (H, W) uint8, not {values.shape} {values.dtype}",
                remedy="convert it to 8-bit RGB",
            )
        rgb = values if values.ndim == 3 else np.repeat(values[..., None], 3, -1)
        image = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1).float() / 255
    return image, Camera(int(image.shape[2]), int(image.shape[1]))


def _matrix(K: Sequence[float] | Tensor | np.ndarray) -> Tensor:
    try:
        values = torch.as_tensor(K, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as exc:
        raise InputError("K must be (fx, fy, cx, cy) or 3x3 numbers") from exc
    if values.shape == (3, 3):
        return checked_intrinsics(*of_matrix(values))
    if values.shape != (4,):
        raise InputError(f"K must be (fx, fy, cx, cy) or 3x3, not {tuple(values.shape)}")
    fx, fy, cx, cy = (float(v) for v in values)
    return checked_intrinsics(fx, fy, cx, cy)
