"""Points of a scene seen from its keyframes: triangulated from matches, or known from structure from motion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from relief3d.core.contract import Camera, Scene, SparseDepth
from relief3d.methods.vfm_recon.config import AlignConfig
from relief3d.methods.vfm_recon.inputs import MatchSource
from relief3d.methods.vfm_recon.priors import choose_pairs, collect_samples
from relief3d.methods.vfm_recon.submaps import Submap
from relief3d.pipelines.mesh.matching import SiftMatches
from relief3d.pipelines.mesh.pictures import KeyframeViews

PROBES = 4
"""Places of a recording at which its depth is measured before keyframes are chosen."""
ENOUGH = 30


def known_points(scene: Scene, views: KeyframeViews) -> dict[int, SparseDepth]:
    """Depth of the scene's own sparse points in the keyframes that observe them, in the unit of the poses."""
    sparse, out = scene.sparse, {}
    if sparse is None:
        return {}
    for k, index in enumerate(views.frames):
        camera = views.cameras[k]
        pose = camera.cam_from_world
        assert pose is not None and camera.K is not None
        number = sparse.obs_point[sparse.obs_view == index].unique()
        local = sparse.xyz[number].double() @ pose[:3, :3].T + pose[:3, 3]
        # Projected anew, because observations lie in the distorted picture.
        xy = (local @ camera.K.T)[:, :2] / local[:, 2:]
        good = (local[:, 2] > 0) & (xy >= 0).all(1) & (xy[:, 0] < camera.width) & (xy[:, 1] < camera.height)
        if bool(good.any()):
            out[k] = SparseDepth(xy[good].float(), local[good, 2].float(), metric=scene.metric)
    return out


class SubmapPoints:
    """Known depth at pixels of the keyframes of a submap, triangulated once and remembered for the last submap."""

    def __init__(
        self,
        cameras: Sequence[Camera],
        matches: MatchSource,
        config: AlignConfig,
        sparse: Mapping[int, SparseDepth],
    ) -> None:
        self._cameras, self._matches, self._config, self._sparse = cameras, matches, config, sparse
        self._last: tuple[Submap, dict[int, SparseDepth]] | None = None

    def __call__(self, submap: Submap) -> Mapping[int, SparseDepth]:
        """By keyframe; keyframes without points are absent."""
        if self._last is None or self._last[0] != submap:
            self._last = (submap, self._find(submap))
        return self._last[1]

    def _find(self, submap: Submap) -> dict[int, SparseDepth]:
        config = self._config
        pairs = choose_pairs(submap, self._cameras, config.pairs, config.units)
        samples = collect_samples(
            submap, pairs, self._cameras, self._matches, config.priors, sparse=self._sparse
        )
        out = {}
        for place, frame in enumerate(submap.frames):
            here = samples.place == place
            if bool(here.any()):
                metric = config.units == "metric"
                out[frame] = SparseDepth(samples.xy[here].float(), samples.z[here].float(), metric=metric)
        return out


def measured_depth(scene: Scene, width: int, work: Path) -> float | None:
    """Median depth of a scene in the unit of its poses, from its sparse points or from a few triangulated pairs.

    None when too little can be triangulated.
    """
    posed = scene.posed
    if scene.sparse is not None and len(scene.sparse):
        views = KeyframeViews(scene, posed[:: max(1, len(posed) // 50)], width)
        points = known_points(scene, views)
        if points:
            return float(torch.cat([p.z for p in points.values()]).median())
    gap = max(1, round(len(posed) / 60))
    starts = [round(i * max(0, len(posed) - 1 - 2 * gap) / max(1, PROBES - 1)) for i in range(PROBES)]
    chosen = sorted({posed[min(s + j * gap, len(posed) - 1)] for s in starts for j in range(3)})
    views = KeyframeViews(scene, chosen, width)
    config = AlignConfig(units="pose")
    points_of = SubmapPoints(views.cameras, SiftMatches(views, work / "probe"), config, {})
    found = points_of(Submap(0, tuple(range(len(views)))))
    depths = [p.z for p in found.values()]
    if sum(len(z) for z in depths) < ENOUGH:
        return None
    return float(torch.cat(depths).median())
