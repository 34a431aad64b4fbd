"""Matches between keyframes: SIFT once per keyframe, kept in the work folder, paired when they are asked for."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from relief3d.matching.base import Features
from relief3d.methods.vfm_recon.inputs import PairMatches
from relief3d.pipelines.mesh.pictures import KeyframeViews, Recent
from relief3d.sfm import colmap
from relief3d.sfm.config import FeatureRecipe
from relief3d.sfm.database import extract_sift

KEYPOINTS = 4096
RATIO = 0.8
FEW_PAIRS = 256
"""Pairs in memory; each is asked for two or three times in a row."""


class SiftMatches:
    """Matches of keyframe pairs (a, b) by mutual nearest descriptors with a ratio test.

    Args:
        views: the keyframes.
        folder: for the features of every keyframe, so that a run that goes on need not find them again.
    """

    def __init__(self, views: KeyframeViews, folder: Path) -> None:
        self._views, self._folder = views, folder
        self._pycolmap = colmap.load()
        self._features = Recent(32)
        self._pairs = Recent(FEW_PAIRS)

    def __call__(self, a: int, b: int) -> PairMatches | None:
        """None when nothing matches."""
        return self._pairs.get((a, b), lambda: self._match(a, b))

    def features(self, k: int) -> Features:
        """Keypoints of a keyframe in pixels of its small picture, inside its mask."""
        return self._features.get(k, lambda: self._load(k))

    def _load(self, k: int) -> Features:
        path = self._folder / f"{k}.safetensors"
        if path.is_file():
            stored = load_file(str(path))
            return Features(stored["xy"], stored["descriptors"])
        recipe = FeatureRecipe(max_features=KEYPOINTS)
        with colmap.quiet(self._pycolmap):
            found = extract_sift(self._pycolmap, self._views.picture(k), self._views.mask(k), recipe)
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({"xy": found.xy.contiguous(), "descriptors": found.descriptors.contiguous()}, str(partial))
        partial.replace(path)
        return Features(found.xy, found.descriptors)

    def _match(self, a: int, b: int) -> PairMatches | None:
        first, second = self.features(a), self.features(b)
        pairs = match_descriptors(first.descriptors, second.descriptors, RATIO)
        if not len(pairs):
            return None
        return PairMatches(first.xy[pairs[:, 0]].double(), second.xy[pairs[:, 1]].double())


def match_descriptors(first: Tensor, second: Tensor, ratio: float = RATIO) -> Tensor:
    """(M, 2) int64 of mutual nearest descriptors whose runner-up is clearly farther (Lowe 2004, 7.1).

    Args:
        first: (N, D), any number type.
        second: (K, D).
        ratio: of the distances to the nearest and the second nearest, at most, both ways.
    """
    if len(first) < 2 or len(second) < 2:
        return torch.zeros(0, 2, dtype=torch.int64)
    a, b = first.float(), second.float()
    squared = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    two, index = squared.topk(2, dim=1, largest=False)
    back, home = squared.topk(2, dim=0, largest=False)
    here = torch.arange(len(a))
    j = index[:, 0]
    good = home[0, j] == here
    good &= two[:, 0].clamp_min(0) < ratio**2 * two[:, 1]
    good &= back[0, j].clamp_min(0) < ratio**2 * back[1, j]
    return torch.stack([here[good], j[good]], 1)
