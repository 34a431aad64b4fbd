"""Segments of a picture by SAM (Kirillov et al. 2023) through transformers, prompted with a grid of points."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.contract import Scene
from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError
from relief3d.core.optional import require
from relief3d.labelling.base import Grouping, Labels, MaskLabel, Uses
from relief3d.labelling.labelers.weights import folder_digest, network_folder, weights_name

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class SamOptions:
    """Options of ``masks-sam``.

    Attributes:
        model: a name on the hub, or a folder.
        download: fetch the weights when they are not on this machine.
        grid: points per side.
        min_score: least quality that the network predicts for a segment.
        min_stability: least overlap of the segments cut at logits +1 and -1.
        max_overlap: of two segments with a larger intersection over union the better one is kept.
        min_area: least share of the picture.
        max_masks: at most this many per picture.
    """

    model: str = "facebook/sam-vit-base"
    download: bool = False
    grid: int = 16
    min_score: float = 0.86
    min_stability: float = 0.9
    max_overlap: float = 0.7
    min_area: float = 0.0005
    max_masks: int = 128


def select_masks(logits: Tensor, scores: Tensor, options: SamOptions) -> MaskLabel:
    """Stable, sufficiently large segments without near copies, best first.

    Args:
        logits: (M, H, W) of the candidates at the picture's size.
        scores: (M,) predicted quality.
        options: thresholds.
    """
    masks = logits > 0
    area = masks.flatten(1).sum(1)
    stability = (logits > 1).flatten(1).sum(1) / (logits > -1).flatten(1).sum(1).clamp_min(1)
    pixels = logits.shape[-1] * logits.shape[-2]
    good = (scores >= options.min_score) & (stability >= options.min_stability)
    good &= area >= max(1.0, options.min_area * pixels)
    order = [i for i in torch.argsort(scores, descending=True, stable=True).tolist() if bool(good[i])]
    kept: list[int] = []
    for i in order:
        if len(kept) >= options.max_masks:
            break
        rivals = masks[kept]
        both = (rivals & masks[i]).flatten(1).sum(1)
        either = (rivals | masks[i]).flatten(1).sum(1)
        if not bool((both > options.max_overlap * either).any()):
            kept.append(i)
    return MaskLabel(masks[kept], scores[kept].clamp(0, 1))


class SamMasks:
    """Segments with the quality that the network predicts for them as score."""

    name = "masks-sam"
    version = 1
    grouping = Grouping("view")
    uses: frozenset[Uses] = frozenset({"image"})

    def __init__(self, options: SamOptions, device: str = "cpu") -> None:
        self.options = replace(options, model=weights_name(options.model))
        self._model = options.model
        self._device = device
        self._network: Any = None

    def weights_digest(self) -> str:
        """Of the network's folder."""
        return folder_digest(network_folder(self._model, download=self.options.download))

    def label(self, scene: Scene, *, seed: int, work: Path) -> Labels:
        """Segments of every view; a view without any is not in the result."""
        found = {}
        for view in scene.views:
            masks = select_masks(*self._candidates(view.load_image()), self.options)
            if len(masks.scores):
                found[view.name] = masks
        return Labels(masks=found, facts={"segments": sum(len(m.scores) for m in found.values())})

    def _load(self) -> Any:
        if self._network is None:
            transformers = require("transformers", extra="hub", purpose="the labeler 'masks-sam'")
            folder = network_folder(self._model, download=self.options.download)
            try:
                network = transformers.SamModel.from_pretrained(
                    str(folder), local_files_only=True, use_safetensors=True
                )
            except (OSError, ValueError, RuntimeError, KeyError) as exc:
                raise InputError(f"is no SAM of transformers ({exc})", path=folder) from exc
            self._network = network.to(resolve_device(self._device)).eval()
        return self._network

    def _candidates(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (M, H, W) and predicted qualities (M,) of the best segment of every grid point."""
        network, device = self._load(), resolve_device(self._device)
        side = int(network.config.vision_config.image_size)
        height, width = image.shape[-2:]
        scale = side / max(height, width)
        inner = (max(1, round(height * scale)), max(1, round(width * scale)))
        small = F.interpolate(
            image[None].float(), inner, mode="bilinear", align_corners=False, antialias=True
        ).clamp(0, 1)
        mean, std = (torch.tensor(v)[:, None, None] for v in (_MEAN, _STD))
        pixels = F.pad((small - mean) / std, (0, side - inner[1], 0, side - inner[0]))
        steps = (torch.arange(self.options.grid) + 0.5) / self.options.grid
        ys, xs = torch.meshgrid(steps * inner[0], steps * inner[1], indexing="ij")
        points = torch.stack([xs, ys], dim=-1).reshape(1, -1, 1, 2)
        embeddings = network.get_image_embeddings(pixels.to(device))
        logits, scores = [], []
        for part in points.split(64, dim=1):
            out = network(image_embeddings=embeddings, input_points=part.to(device), multimask_output=True)
            quality = out.iou_scores[0].float().cpu()
            best = quality.argmax(1)
            rows = torch.arange(len(best))
            low = out.pred_masks[0].float().cpu()[rows, best]
            full = F.interpolate(low[:, None], (side, side), mode="bilinear", align_corners=False)
            full = full[..., : inner[0], : inner[1]]
            full = F.interpolate(full, (height, width), mode="bilinear", align_corners=False)[:, 0]
            logits.append(full)
            scores.append(quality[rows, best])
        return torch.cat(logits), torch.cat(scores)
