"""Adapters for published learned features, with weights from this machine only.

Nothing here downloads anything. The networks are those of kornia (DISK, ALIKED and LightGlue, all Apache-2.0 or
MIT/BSD code) and transformers (SuperPoint with LightGlue). **Licence of SuperPoint:** its published weights are for
non-commercial research only; they are never shipped, and using them is the user's decision.

Layout of the weights folder:

* ``disk-lightglue`` and ``aliked-lightglue``: ``detector.safetensors`` and ``lightglue.safetensors``, state
  dictionaries of ``kornia.feature.DISK`` / ``ALIKED`` and of ``kornia.feature.LightGlue``.
* ``superpoint-lightglue``: what ``save_pretrained`` of ``transformers.LightGlueForKeypointMatching`` writes
  (``config.json`` and ``model.safetensors``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.core.optional import require
from relief3d.matching.base import Features

MAX_SIZE = 1024
"""Longer pictures are shrunk to this; the published networks were trained at about this size."""

DETECTOR_FILE = "detector.safetensors"
MATCHER_FILE = "lightglue.safetensors"
_STRIDE = 16


def shrink(image: Tensor, max_size: int = MAX_SIZE) -> tuple[Tensor, Tensor]:
    """(1, 3, h, w) picture with sides that are multiples of 16, at most ``max_size``, and (2,) scale back in x, y.

    Args:
        image: (3, H, W) float RGB in [0, 1].
        max_size: of the longer side, in pixels.
    """
    height, width = image.shape[-2:]
    factor = min(1.0, max_size / max(height, width))
    new = [max(_STRIDE, round(side * factor / _STRIDE) * _STRIDE) for side in (height, width)]
    small = nn.functional.interpolate(
        image[None].float(), size=new, mode="bilinear", align_corners=False, antialias=True
    )
    return small, torch.tensor([width / new[1], height / new[0]], dtype=torch.float32)


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill a network from a safetensors file.

    Raises:
        InputError: when the file is missing, broken, or belongs to another network.
    """
    if not path.is_file():
        raise InputError(
            "the weights are missing", path=path, remedy="see the folder layout in the documentation"
        )
    try:
        state = load_file(path)
    except Exception as exc:  # safetensors raises its own types, which differ between versions
        raise InputError(f"not a readable safetensors file ({exc})", path=path) from exc
    own = network.state_dict()
    buffers = {name for name, _ in network.named_buffers()}
    wrong = [k for k, v in state.items() if k not in own or own[k].shape != v.shape]
    missing = [k for k in own if k not in state and k not in buffers]
    if wrong or missing:
        raise InputError(
            f"the weights belong to another network ({len(missing)} tensors missing, {len(wrong)} do not fit)",
            path=path,
        )
    network.load_state_dict(state, strict=False)


class KorniaMatcher:
    """DISK or ALIKED keypoints matched by LightGlue (Lindenberger et al. 2023), through kornia."""

    def __init__(
        self,
        name: str,
        detector: nn.Module,
        matcher: nn.Module,
        *,
        max_features: int = 2048,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name = name
        self._detector = detector.to(device).eval()
        self._matcher = matcher.to(device).eval()
        self._max_features = max_features
        self._device = torch.device(device)

    @torch.no_grad()
    def extract(self, image: Tensor) -> Features:
        """Keypoints of an upright picture (3, H, W), float RGB in [0, 1]; see :class:`Matcher`."""
        small, scale = shrink(image)
        found = self._detector(small.to(self._device))[0]
        scores = getattr(found, "detection_scores", None)
        scores = found.keypoint_scores if scores is None else scores
        best = torch.argsort(scores, descending=True, stable=True)[: self._max_features]
        xy = (found.keypoints[best].float().cpu() + 0.5) * scale
        size = (int(image.shape[-1]), int(image.shape[-2]))
        return Features(xy, found.descriptors[best].float().cpu(), None, scores[best].float().cpu(), size)

    @torch.no_grad()
    def match(self, first: Features, second: Features) -> Tensor:
        """(M, 2) int64 indices of corresponding keypoints; see :class:`Matcher`."""
        if min(len(first), len(second)) == 0:
            return torch.zeros(0, 2, dtype=torch.int64)
        result = self._matcher({"image0": self._side(first), "image1": self._side(second)})
        return result["matches"][0].cpu().long().reshape(-1, 2)

    def _side(self, features: Features) -> dict[str, Tensor]:
        assert features.size is not None
        return {
            "keypoints": features.xy[None].to(self._device),
            "descriptors": features.descriptors[None].to(self._device),
            "image_size": torch.tensor([features.size], dtype=torch.float32, device=self._device),
        }


class SuperPointMatcher:
    """SuperPoint keypoints matched by LightGlue, through transformers. The weights are non-commercial."""

    name = "superpoint-lightglue"

    def __init__(self, network: Any, *, device: torch.device | str = "cpu") -> None:
        self._network = network.to(device).eval()
        self._device = torch.device(device)

    @torch.no_grad()
    def extract(self, image: Tensor) -> Features:
        """Keypoints of an upright picture (3, H, W), float RGB in [0, 1]; see :class:`Matcher`."""
        small, scale = shrink(image)
        grey = (
            (small * torch.tensor([0.299, 0.587, 0.114])[:, None, None])
            .sum(1, keepdim=True)
            .expand(-1, 3, -1, -1)
        )
        found = self._network.keypoint_detector(grey.to(self._device))
        keep = found.mask[0].bool()
        pixels = torch.tensor([small.shape[-1], small.shape[-2]], dtype=torch.float32)
        xy = (found.keypoints[0][keep].float().cpu() * pixels + 0.5) * scale
        size = (int(image.shape[-1]), int(image.shape[-2]))
        return Features(
            xy, found.descriptors[0][keep].float().cpu(), None, found.scores[0][keep].float().cpu(), size
        )

    @torch.no_grad()
    def match(self, first: Features, second: Features) -> Tensor:
        """(M, 2) int64 indices of corresponding keypoints; see :class:`Matcher`.

        The network normalises both pictures by one size. Positions are therefore mapped to a virtual square
        first, on which that normalisation equals the one for each picture's own size.
        """
        if min(len(first), len(second)) == 0:
            return torch.zeros(0, 2, dtype=torch.int64)
        count, side = max(len(first), len(second)), 1024
        xy = torch.zeros(1, 2, count, 2)
        values = torch.zeros(1, 2, count, first.descriptors.shape[1])
        mask = torch.zeros(1, 2, count, dtype=torch.int)
        for k, features in enumerate((first, second)):
            assert features.size is not None
            size = torch.tensor(features.size, dtype=torch.float32)
            xy[0, k, : len(features)] = (features.xy - size / 2) * (side / float(size.max())) + side / 2
            values[0, k, : len(features)] = features.descriptors
            mask[0, k, : len(features)] = 1
        moved = (t.to(self._device) for t in (xy, values))
        matches = self._network._match_image_pair(*moved, side, side, mask=mask.to(self._device))[0]
        partner = matches.reshape(2, -1)[0, : len(first)].cpu().long()
        rows = torch.nonzero((partner >= 0) & (partner < len(second)))[:, 0]
        return torch.stack([rows, partner[rows]], dim=1)


def make_kornia_matcher(name: str, folder: Path, device: torch.device | str = "cpu") -> KorniaMatcher:
    """``disk-lightglue`` or ``aliked-lightglue`` from a weights folder.

    Raises:
        MissingExtraError: when kornia is not installed.
        InputError: when a file is missing or does not fit.
    """
    feature = require("kornia.feature", extra="hub", purpose=f"the matcher '{name}'")
    detector = (
        feature.DISK() if name.startswith("disk") else feature.ALIKED("aliked-n16", max_num_keypoints=2048)
    )
    matcher = feature.LightGlue(features=None, input_dim=128)
    load_weights(detector, folder / DETECTOR_FILE)
    load_weights(matcher, folder / MATCHER_FILE)
    return KorniaMatcher(name, detector, matcher, device=device)


def make_superpoint_matcher(folder: Path, device: torch.device | str = "cpu") -> SuperPointMatcher:
    """``superpoint-lightglue`` from a folder written by ``save_pretrained``.

    Raises:
        MissingExtraError: when transformers is not installed.
        InputError: when the folder does not hold the network.
    """
    transformers = require("transformers", extra="hub", purpose="the matcher 'superpoint-lightglue'")
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(
                "the weights are missing", path=folder / name, remedy="see the documentation for the layout"
            )
    try:
        network = transformers.LightGlueForKeypointMatching.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as exc:
        raise InputError(f"the weights cannot be loaded ({exc})", path=folder) from exc
    return SuperPointMatcher(network, device=device)
