"""Facts about a reconstructed model: how many views and points, how well they fit, how weak it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

WEAK_ANGLE_DEG = 2.0
WEAK_POINTS_PER_VIEW = 40
WEAK_REPROJECTION_PX = 1.5
MAX_DISTORTION_AT_CORNER = 0.5
FIELD_OF_VIEW_RANGE_DEG = (8.0, 150.0)


@dataclass(frozen=True)
class ModelStats:
    """One model in numbers.

    Attributes:
        registered, total: views with a pose, all views.
        points: triangulated points.
        observations: their sightings.
        track_length: mean sightings per point.
        reprojection_px: mean reprojection error.
        points_per_view: median over registered views.
        fewest_points: of a registered view.
        angle_deg: median over points of the largest angle between two of its rays.
        bad_lens: estimated intrinsics no real lens has.
    """

    registered: int
    total: int
    points: int
    observations: int
    track_length: float
    reprojection_px: float
    points_per_view: float
    fewest_points: int
    angle_deg: float
    bad_lens: bool

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}

    def weaknesses(self) -> list[str]:
        """What is suspicious, in words; empty for a sound model."""
        found = []
        if self.registered < self.total:
            found.append(f"only {self.registered} of {self.total} pictures could be placed")
        if self.points_per_view < WEAK_POINTS_PER_VIEW:
            found.append(f"only {self.points_per_view:.0f} points per picture")
        if self.angle_deg < WEAK_ANGLE_DEG:
            found.append(f"the rays to a point differ by only {self.angle_deg:.1f} degrees")
        if self.reprojection_px > WEAK_REPROJECTION_PX:
            found.append(f"points miss their pixels by {self.reprojection_px:.1f} px")
        if self.bad_lens:
            found.append("the estimated lens is not a real one")
        return found


def model_stats(model: Any, total: int, fixed_cameras: frozenset[int] = frozenset()) -> ModelStats:
    """Measure a COLMAP model.

    Args:
        model: COLMAP reconstruction.
        total: number of views given.
        fixed_cameras: COLMAP ids of cameras with given intrinsics (not judged).
    """
    registered = sorted(model.reg_image_ids())
    per_view = [model.image(i).num_points3D for i in registered] or [0]
    used = {model.image(i).camera_id for i in registered} - set(fixed_cameras)
    model.update_point_3d_errors()
    return ModelStats(
        registered=len(registered),
        total=total,
        points=model.num_points3D(),
        observations=int(model.compute_num_observations()),
        track_length=float(model.compute_mean_track_length()),
        reprojection_px=float(model.compute_mean_reprojection_error()),
        points_per_view=float(np.median(per_view)),
        fewest_points=int(min(per_view)),
        angle_deg=float(median_angle_deg(model)),
        bad_lens=any(is_bad_lens(model.camera(c)) for c in used),
    )


def is_bad_lens(camera: Any) -> bool:
    """True when an estimated lens has an absurd field of view or a distortion of half the image at the corner."""
    focal = float(camera.mean_focal_length())
    longer = max(camera.width, camera.height)
    field = 2.0 * np.degrees(np.arctan(longer / (2.0 * focal))) if focal > 0 else 180.0
    low, high = FIELD_OF_VIEW_RANGE_DEG
    if not low <= field <= high:
        return True
    if camera.model_name != "SIMPLE_RADIAL":
        return False
    radius2 = ((camera.width / 2.0) ** 2 + (camera.height / 2.0) ** 2) / focal**2
    return abs(float(camera.params[3])) * radius2 > MAX_DISTORTION_AT_CORNER


def median_angle_deg(model: Any, limit: int = 2000) -> float:
    """Median over points of the largest triangulation angle, in degrees; at most ``limit`` points are used."""
    ids = sorted(model.point3D_ids())
    if not ids:
        return 0.0
    ids = ids[:: max(1, len(ids) // limit)]
    centres = {i: np.asarray(model.image(i).projection_center()) for i in model.reg_image_ids()}
    angles = []
    for pid in ids:
        point = model.point3D(pid)
        rays = np.stack([point.xyz - centres[e.image_id] for e in point.track.elements])
        rays /= np.linalg.norm(rays, axis=1, keepdims=True) + 1e-12
        angles.append(np.degrees(np.arccos(np.clip((rays @ rays.T).min(), -1.0, 1.0))))
    return float(np.median(angles))
