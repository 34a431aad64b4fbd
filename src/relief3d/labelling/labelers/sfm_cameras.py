"""Cameras and sparse points of a scene by structure from motion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from relief3d.core.contract import Scene
from relief3d.labelling.base import Grouping, Labels, Uses
from relief3d.sfm import SfmConfig, estimate_cameras
from relief3d.sfm.config import Effort, MapperKind, PairKind

_FACTS = (
    "registered",
    "total",
    "points",
    "track_length",
    "reprojection_px",
    "angle_deg",
    "explained",
    "unplaced",
)


@dataclass(frozen=True)
class SfmCameraOptions:
    """Options of ``sfm-cameras``; see :class:`relief3d.sfm.SfmConfig`."""

    max_features: int = 8192
    mapper: MapperKind = "auto"
    pairs: PairKind = "auto"
    effort: Effort = "auto"
    min_views: int = 3


class SfmCameras:
    """One item per scene: intrinsics, lens and pose of every view that can be placed, and the sparse points."""

    name = "sfm-cameras"
    version = 1
    grouping = Grouping("scene")
    uses: frozenset[Uses] = frozenset({"image", "camera", "mask", "order"})

    def __init__(self, options: SfmCameraOptions, device: str = "cpu") -> None:
        self.options = options

    def weights_digest(self) -> None:
        """No weights."""
        return

    def label(self, scene: Scene, *, seed: int, work: Path) -> Labels:
        """Cameras in the model's own unit (metres when the input's poses are); views not placed are left out.

        The facts hold the share of placed views, the reprojection error, and the share of verified matches that the
        cameras explain: the confidence one should have in the whole model.
        """
        config = SfmConfig(
            max_features=self.options.max_features,
            mapper=self.options.mapper,
            pairs=self.options.pairs,
            effort=self.options.effort,
            min_views=self.options.min_views,
            # A limit in seconds would make the result depend on the machine.
            time_budget=float("inf"),
            seed=seed % 2**31,
            threads=1,
        )
        result = estimate_cameras(scene, config, work)
        placed = {
            v.name: v.camera
            for v in result.scene.views
            if v.camera.K is not None and v.camera.world_from_cam is not None
        }
        facts = {key: result.report[key] for key in _FACTS if key in result.report}
        return Labels(
            cameras=placed, sparse=result.scene.sparse, facts={**facts, "metric": result.scene.metric}
        )
