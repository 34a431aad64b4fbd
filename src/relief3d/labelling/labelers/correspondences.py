"""Matched keypoints, linked to tracks over all views of a scene."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from relief3d.core.contract import Scene
from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError
from relief3d.core.progress import SilentProgress
from relief3d.labelling.base import Grouping, Labels, Uses
from relief3d.labelling.labelers.lk_tracks import track_facts, verified_tracks
from relief3d.labelling.labelers.weights import folder_digest, weights_name
from relief3d.matching.registry import make_matcher
from relief3d.sfm import SfmConfig, colmap
from relief3d.sfm.attempts import Run, prepare
from relief3d.sfm.config import FeatureKind, FeatureRecipe, Recipe
from relief3d.sfm.consistency import read_verified
from relief3d.sfm.predicted_tracks import limit_tracks, link_pairs
from relief3d.sfm.work_files import view_fingerprint


@dataclass(frozen=True)
class CorrespondenceOptions:
    """Options of ``correspondences``.

    Attributes:
        features: ``sift``, or a learned matcher (LightGlue on SuperPoint, ALIKED or DISK).
        weights: folder of a learned matcher's weights.
        max_features: keypoints per picture.
        max_tracks: at most this many, longer ones first.
        max_epipolar_px: largest Sampson distance of a verified sighting.
    """

    features: FeatureKind = "sift"
    weights: Path | None = None
    max_features: int = 4096
    max_tracks: int = 8192
    max_epipolar_px: float = 2.0

    def __post_init__(self) -> None:
        if self.max_tracks < 1 or self.max_epipolar_px <= 0:
            raise InputError("correspondence options are out of range")


class Correspondences:
    """Keypoints matched between pairs of views, verified pair by pair, linked, and verified as tracks."""

    name = "correspondences"
    version = 1
    grouping = Grouping("scene")
    uses: frozenset[Uses] = frozenset({"image", "mask", "order"})

    def __init__(self, options: CorrespondenceOptions, device: str = "cpu") -> None:
        named = None if options.weights is None else Path(weights_name(str(options.weights)))
        self.options = replace(options, weights=named)
        self._weights = options.weights
        self._device = device

    def weights_digest(self) -> str | None:
        """Of the learned matcher's files; None for SIFT."""
        return None if self._weights is None else folder_digest(Path(self._weights))

    def label(self, scene: Scene, *, seed: int, work: Path) -> Labels:
        """Tracks over all views; confidence is the share of partners that agree under epipolar geometry."""
        if len(scene) < 2:
            raise InputError("correspondences need at least two pictures")
        options, pycolmap = self.options, colmap.load()
        matcher = None
        if options.features != "sift":
            matcher = make_matcher(options.features, self._weights, resolve_device(self._device))
        config = SfmConfig(
            features=options.features, max_features=options.max_features, seed=seed % 2**31, threads=1
        )
        # Given intrinsics would only help as far as they are right; labels must not inherit their errors.
        views = tuple(v.replace(camera=v.camera.replace(K=None, distortion=None)) for v in scene.views)
        run = Run(
            pycolmap,
            scene.replace(views=views),
            config,
            work,
            SilentProgress(),
            matcher,
            [view_fingerprint(v) for v in scene.views],
        )
        features = FeatureRecipe(options.features, options.max_features, config.max_image_size)
        _, database = prepare(run, Recipe("labels", features))
        pairs = read_verified(pycolmap, database, len(views))
        linked = limit_tracks(link_pairs(pairs), options.max_tracks, seed % 2**31)
        xy = torch.zeros(linked.count, len(views), 2)
        seen = torch.zeros(linked.count, len(views), dtype=torch.bool)
        xy[linked.track, linked.view] = linked.xy.to(torch.float32)
        seen[linked.track, linked.view] = True
        tracks = verified_tracks(
            xy, seen, None, max_return_px=1.0, max_epipolar_px=options.max_epipolar_px, seed=seed
        )
        facts = track_facts(tracks) | {"pairs": len(pairs), "sightings_before_verification": int(seen.sum())}
        return Labels(tracks=tracks, facts=facts)
