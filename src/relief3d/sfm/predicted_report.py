"""Was the refinement of predicted cameras worth it? Held-out tracks decide, and the report says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Camera
from relief3d.geometry.rotations import rotation_angle
from relief3d.sfm.predicted_points import SCALE_PX, triangulate_tracks
from relief3d.sfm.predicted_tracks import Observations

SHARE_PX = 2.0
CLIP_PX = 50.0
MEDIAN_TOLERANCE = 1.02
MEDIAN_TOLERANCE_PX = 0.02
SHARE_TOLERANCE = 0.005
"""Held-out errors may be this much worse in one measure when the other improves."""

MIN_GAIN = 0.10
"""Relative fall of the held-out median below which, and
:data:`MIN_SHARE_GAIN` of the share below which, the prediction is kept: what is left is matching noise. (Reference
cameras of a photo set "gained" 8 % by fitting that noise better, at the cost of their accuracy.)"""

MIN_SHARE_GAIN = 0.02
GOOD_SHARE = 0.9
"""Share of held-out sightings below 2 px with which no other plan is tried."""

VIEW_TOLERANCE = 1.1
VIEW_TOLERANCE_PX = 0.25
VIEW_MIN_OBSERVATIONS = 10
MEANINGLESS_PX = 1000.0


@dataclass(frozen=True)
class HeldOut:
    """Reprojection errors of tracks that took no part in the adjustment, triangulated anew.

    Attributes:
        tracks, observations: how many.
        median_px: median error.
        mean_px: mean of the errors clipped at ``CLIP_PX``.
        share_2px: share of sightings below 2 px.
        inlier_share: share below the adjustment's last threshold.
    """

    tracks: int
    observations: int
    median_px: float
    mean_px: float
    share_2px: float
    inlier_share: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; an infinite median is None."""
        return {
            k: (round(v, 4) if v != float("inf") else None) if isinstance(v, float) else v
            for k, v in asdict(self).items()
        }


@dataclass(frozen=True)
class ViewChange:
    """What happened to one view, in the predicted frame.

    Attributes:
        name: of the view.
        state: ``refined``, ``fixed`` (given pose), ``kept`` (predicted camera stays: too few
            tracks, or its held-out error grew), ``unplaced`` (no predicted camera).
        rotation_deg, translation: pose change, degrees and scene units.
        observations: sightings in the adjustment.
        before_px, after_px: median held-out error, None with too few sightings.
        depth_ratio: factor applied to the depth map.
        relocated: its predicted pose was useless and it was placed from the other views' points.
    """

    name: str
    state: str
    rotation_deg: float = 0.0
    translation: float = 0.0
    observations: int = 0
    before_px: float | None = None
    after_px: float | None = None
    depth_ratio: float = 1.0
    relocated: bool = False


@dataclass(frozen=True)
class RefineReport:
    """Before and after of one refinement.

    Attributes:
        accepted: the returned cameras are the refined ones.
        reason: why, in one sentence.
        before, after: held-out errors of the predicted and of the refined cameras (``after`` also
            when they were not accepted; None when no adjustment came about).
        tracks: verified tracks used in the adjustment and held out together.
        views: one entry per view of the scene.
        lenses: of the adjusted lenses: ``views`` (indices), ``focal_before``, ``focal_after`` (pixels), ``focal_std``
            (relative, None where not estimated).
        parallax_px: how far a pure rotation misses the matches.
        attempts: the plans tried, with their outcome.
        seconds: wall time.
    """

    accepted: bool
    reason: str
    before: HeldOut | None = None
    after: HeldOut | None = None
    tracks: int = 0
    views: tuple[ViewChange, ...] = ()
    lenses: tuple[dict[str, Any], ...] = ()
    parallax_px: float | None = None
    attempts: tuple[str, ...] = ()
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        facts = asdict(self)
        facts["before"] = None if self.before is None else self.before.as_dict()
        facts["after"] = None if self.after is None else self.after.as_dict()
        return facts


@dataclass(frozen=True)
class Held:
    """Held-out errors in full: (M,) ``error`` of the sightings ``observations``."""

    observations: Observations
    error: Tensor = field(repr=False)

    def summary(self, inlier_px: float) -> HeldOut:
        """In numbers."""
        e = self.error
        if len(e) == 0:
            return HeldOut(0, 0, float("inf"), CLIP_PX, 0.0, 0.0)
        return HeldOut(
            self.observations.count,
            len(e),
            float(e.median()),
            float(e.clamp(max=CLIP_PX).mean()),
            float((e < SHARE_PX).double().mean()),
            float((e < inlier_px).double().mean()),
        )

    def view_median(self, view: int) -> float | None:
        """Median error in one view, None with fewer than ``VIEW_MIN_OBSERVATIONS``."""
        mine = self.error[self.observations.view == view]
        return float(mine.median()) if len(mine) >= VIEW_MIN_OBSERVATIONS else None


def measure(cameras: Sequence[Camera], held: Observations) -> Held:
    """Triangulate the held-out tracks with the cameras and measure them; depth plays no part."""
    return Held(held, triangulate_tracks(cameras, held, SCALE_PX).error)


def worse_views(before: Held, after: Held, views: Sequence[int]) -> list[int]:
    """Views whose held-out error grew."""
    found = []
    for v in views:
        old, new = before.view_median(v), after.view_median(v)
        if old is not None and new is not None and new > VIEW_TOLERANCE * old + VIEW_TOLERANCE_PX:
            found.append(v)
    return found


def _pixels(value: float) -> str:
    return f"{value:.2f} px" if value < MEANINGLESS_PX else f"more than {MEANINGLESS_PX:.0f} px"


def judge(before: HeldOut, after: HeldOut) -> tuple[bool, str]:
    """Are the held-out errors better? The verdict and a sentence.

    Nothing may get worse beyond the tolerance, and something must improve by more than matching noise: moving
    cameras without gain can only add noise to them.
    """
    change = (
        f"held-out tracks miss by {_pixels(before.median_px)} before and {_pixels(after.median_px)} after "
        f"(below 2 px: {100 * before.share_2px:.1f} % and {100 * after.share_2px:.1f} %)"
    )
    worse_median = after.median_px > MEDIAN_TOLERANCE * before.median_px + MEDIAN_TOLERANCE_PX
    if worse_median or after.share_2px < before.share_2px - SHARE_TOLERANCE:
        return False, f"the adjustment made things worse: {change}"
    falls = after.median_px < (1.0 - MIN_GAIN) * before.median_px
    if not falls and after.share_2px < before.share_2px + MIN_SHARE_GAIN:
        return False, f"there was nothing to gain: {change}"
    return True, f"improved: {change}"


def pose_change(before: Camera, after: Camera) -> tuple[float, float]:
    """Rotation in degrees and distance of the centres between two posed cameras."""
    a, b = before.world_from_cam, after.world_from_cam
    assert a is not None and b is not None
    angle = float(torch.rad2deg(rotation_angle(a[:3, :3], b[:3, :3])))
    return angle, float((a[:3, 3] - b[:3, 3]).norm())
