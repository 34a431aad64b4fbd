"""Monocular depth by networks that transformers knows: Depth Pro, Depth Anything (V2), and others of that interface.

Pictures are prepared here, from the numbers in the network's ``preprocessor_config.json``, because the library's own
processors need torchvision. Sizes and normalisation are the library's; its resampling differs in the last digits.

Licences are those of the weights: Depth Pro's are for research, Depth Anything V2's small ones are Apache-2.0, its
larger ones CC BY-NC 4.0. Nothing is downloaded unless asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Scene, View
from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError
from relief3d.core.optional import require
from relief3d.geometry.projection import intrinsics_from_fov
from relief3d.io.json_file import read_json_object
from relief3d.labelling.base import DepthKind, DepthLabel, Grouping, Labels, Uses
from relief3d.labelling.labelers.weights import folder_digest, network_folder, weights_name

ALIASES = {
    "depth-pro": "apple/DepthPro-hf",
    "depth-anything-v2-small": "depth-anything/Depth-Anything-V2-Small-hf",
    "depth-anything-v2-metric-indoor-small": "depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf",
    "depth-anything-v2-metric-outdoor-small": "depth-anything/Depth-Anything-V2-Metric-Outdoor-Small-hf",
}
_INVERSE_RANGE = (1e-4, 1e4)


@dataclass(frozen=True)
class TransformersDepthOptions:
    """Options of ``transformers-depth``.

    Attributes:
        model: an alias (depth-pro, depth-anything-v2-small, ...), a name on the hub, or a folder.
        download: fetch the weights when they are not on this machine.
        consistency: also predict the mirrored picture; the agreement of both becomes the confidence.
    """

    model: str = "depth-pro"
    download: bool = False
    consistency: bool = True


class TransformersDepth:
    """Depth per view; metres, or affine-invariant inverse depth, as the network's configuration says.

    Confidence is ``exp(-|log d - log d'| / 0.1)`` with d' the prediction for the mirrored picture (inverse depth: after
    both are divided by their median); without ``consistency`` it is absent. It measures stability, not truth.
    """

    name = "transformers-depth"
    version = 1
    grouping = Grouping("view")
    uses: frozenset[Uses] = frozenset({"image"})

    def __init__(self, options: TransformersDepthOptions, device: str = "cpu") -> None:
        self.options = replace(options, model=weights_name(options.model))
        self._model = options.model
        self._device = device
        self._network: Any = None
        self._recipe: dict[str, Any] = {}

    def _folder(self) -> Path:
        model = ALIASES.get(self._model, self._model)
        return network_folder(model, download=self.options.download)

    def weights_digest(self) -> str:
        """Of the network's folder."""
        return folder_digest(self._folder())

    def label(self, scene: Scene, *, seed: int, work: Path) -> Labels:
        """Depth, and the intrinsics where the network estimates a field of view."""
        network = self._load()
        depth: dict[str, DepthLabel] = {}
        cameras: dict[str, Camera] = {}
        for view in scene.views:
            image = view.load_image()
            values, kind, fov = self._predict(network, image)
            confidence = None
            if self.options.consistency:
                mirrored, _, _ = self._predict(network, image.flip(-1))
                confidence = _agreement(values, mirrored.flip(-1), kind)
            found = Depth.from_values(values, metric=kind == "metric", confidence=confidence)
            depth[view.name] = DepthLabel(found, kind)
            if fov is not None:
                cameras[view.name] = _camera(view, fov)
        return Labels(depth=depth, cameras=cameras)

    def _load(self) -> Any:
        if self._network is None:
            transformers = require("transformers", extra="hub", purpose="the labeler 'transformers-depth'")
            folder = self._folder()
            try:
                network = transformers.AutoModelForDepthEstimation.from_pretrained(
                    str(folder), local_files_only=True, use_safetensors=True
                )
            except (OSError, ValueError, RuntimeError, KeyError) as exc:
                raise InputError(f"is no depth network of transformers ({exc})", path=folder) from exc
            self._network = network.to(resolve_device(self._device)).eval()
            settings = folder / "preprocessor_config.json"
            self._recipe = read_json_object(settings) if settings.is_file() else {}
        return self._network

    def _predict(self, network: Any, image: Tensor) -> tuple[Tensor, DepthKind, float | None]:
        """(H, W) values, what they are, and the horizontal field of view in radians or None."""
        height, width = image.shape[-2:]
        pixels = prepare_image(image, network.config, self._recipe)
        out = network(pixel_values=pixels.to(resolve_device(self._device)))
        raw = out.predicted_depth.float().cpu()
        raw = F.interpolate(raw[:, None], (height, width), mode="bilinear", align_corners=False)[0, 0]
        if network.config.model_type == "depth_pro":
            fov = getattr(out, "field_of_view", None)
            angle = None if fov is None else float(torch.deg2rad(fov.float().cpu().reshape(-1)[0]))
            # The network gives inverse depth for a focal length of one picture width (Bochkovskii et al. 2024).
            if angle is not None:
                raw = raw * (2.0 * torch.tan(torch.tensor(0.5 * angle)))
            return 1.0 / raw.clamp(*_INVERSE_RANGE), "metric" if angle is not None else "scale", angle
        if getattr(network.config, "depth_estimation_type", "relative") == "metric":
            return raw, "metric", None
        return raw, "affine-inverse", None


def _agreement(values: Tensor, other: Tensor, kind: DepthKind) -> Tensor:
    a, b = values.clamp_min(1e-6), other.clamp_min(1e-6)
    if kind != "metric":
        a, b = a / a.median(), b / b.median()
    return torch.exp(-(a.log() - b.log()).abs() / 0.1)


def _camera(view: View, fov: float) -> Camera:
    width, height = view.camera.width, view.camera.height
    return Camera(width, height, intrinsics_from_fov(width, height, fov), K_source="estimated")


def prepare_image(image: Tensor, config: Any, recipe: dict[str, Any]) -> Tensor:
    """(1, 3, h, w) as the network wants it.

    Args:
        image: (3, H, W) RGB in [0, 1].
        config: of the network; says its type.
        recipe: content of ``preprocessor_config.json``; what is missing has the library's default.
    """
    if config.model_type == "depth_pro":
        size, multiple, keep, centre = {"height": 1536, "width": 1536}, 1, False, 0.5
    else:
        size, multiple, keep, centre = {"height": 384, "width": 384}, 1, False, 0.5
    size = recipe.get("size") or size
    multiple = int(recipe.get("ensure_multiple_of") or multiple)
    keep = bool(recipe.get("keep_aspect_ratio", keep))
    mean = torch.tensor(recipe.get("image_mean") or [centre] * 3)[:, None, None]
    std = torch.tensor(recipe.get("image_std") or [0.5] * 3)[:, None, None]
    wanted = _network_size(image.shape[-2:], size, multiple, keep)
    resized = F.interpolate(
        image[None].float(), wanted, mode="bicubic", align_corners=False, antialias=True
    ).clamp(0, 1)
    return (resized - mean) / std


def _network_size(shape: tuple[int, ...], size: dict[str, int], multiple: int, keep: bool) -> tuple[int, int]:
    """(height, width); with ``keep`` the side that needs the smaller change sets the scale (MiDaS's rule)."""
    height, width = shape
    scale_y, scale_x = size["height"] / height, size["width"] / width
    if keep:
        scale_x = scale_y = scale_x if abs(1 - scale_x) < abs(1 - scale_y) else scale_y
    rounded = [
        max(multiple, round(side * s / multiple) * multiple)
        for side, s in ((height, scale_y), (width, scale_x))
    ]
    return rounded[0], rounded[1]
