"""What a caller may choose about structure from motion, and the recipes behind each attempt."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from relief3d.core.errors import InputError

MapperKind = Literal["auto", "incremental", "global"]
PairKind = Literal["auto", "exhaustive", "sequential"]
FeatureKind = Literal["sift", "superpoint-lightglue", "aliked-lightglue", "disk-lightglue"]
Effort = Literal["single", "auto", "max"]


@dataclass(frozen=True)
class SfmConfig:
    """Options of :func:`relief3d.sfm.estimate_cameras`.

    Attributes:
        features: keypoints and matcher; everything but ``sift`` needs local weights.
        weights: folder or file with the weights of a learned matcher.
        device: where a learned matcher runs: auto, cpu, or an accelerator's name.
        max_image_size: longer pictures are shrunk for feature extraction only.
        max_features: keypoints per picture in the first attempt.
        mapper: ``auto`` starts with the incremental mapper and may try the global one.
        pairs: ``auto`` matches all pairs of small sets, neighbours and loops of ordered ones, and the most
            similar pictures of large unordered ones.
        overlap: in ordered sets each picture is matched with this many followers.
        refine_poses: bundle-adjust given poses instead of keeping them.
        effort: ``single`` runs one attempt, ``auto`` retries while the model is weak, ``max`` runs all attempts.
        time_budget: seconds after which no further attempt starts; also the limit of a retry's mapping. The first
            attempt takes the time it needs.
        max_focal_std: a model whose estimated focal length has a larger relative standard deviation is refused,
            since its depth would be wrong by as much. Sound sets lie below 0.01; three good views at 0.05.
        min_views: fewer registered views than this are refused.
        seed: of every random choice.
        threads: worker threads; results are reproducible bit for bit only with 1.
    """

    features: FeatureKind = "sift"
    weights: Path | None = None
    device: str = "cpu"
    max_image_size: int = 3200
    max_features: int = 8192
    mapper: MapperKind = "auto"
    pairs: PairKind = "auto"
    overlap: int = 10
    refine_poses: bool = False
    effort: Effort = "auto"
    time_budget: float = 600.0
    max_focal_std: float = 0.06
    min_views: int = 2
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.threads < 1 or self.max_features < 64 or self.max_image_size < 64 or self.overlap < 1:
            raise InputError(
                "structure-from-motion options are out of range",
                remedy="threads >= 1, overlap >= 1, max_features >= 64, max_image_size >= 64",
            )


@dataclass(frozen=True)
class FeatureRecipe:
    """How keypoints are found (SIFT names as in COLMAP)."""

    kind: FeatureKind = "sift"
    max_features: int = 8192
    max_image_size: int = 3200
    peak_threshold: float = 0.02 / 3.0
    affine_shape: bool = False
    domain_size_pooling: bool = False
    upright: bool = False


@dataclass(frozen=True)
class MatchRecipe:
    """How keypoints are matched and verified."""

    max_ratio: float = 0.8
    guided: bool = False
    max_error_px: float = 4.0
    min_inliers: int = 15


@dataclass(frozen=True)
class MapRecipe:
    """How verified matches become a model. Angles in degrees, errors in pixels."""

    kind: Literal["incremental", "global"] = "incremental"
    min_matches: int = 15
    init_min_inliers: int = 100
    init_min_angle: float = 16.0
    pose_min_inliers: int = 30
    pose_max_error: float = 12.0
    filter_min_angle: float = 1.5
    filter_max_error: float = 4.0
    angle_error: float = 2.0
    two_view_tracks: bool = False
    seed_offset: int = 0
    focal_factor: float | None = None
    camera_per_view: bool = False


@dataclass(frozen=True)
class Recipe:
    """One complete attempt."""

    name: str
    features: FeatureRecipe = field(default_factory=FeatureRecipe)
    matches: MatchRecipe = field(default_factory=MatchRecipe)
    mapping: MapRecipe = field(default_factory=MapRecipe)
