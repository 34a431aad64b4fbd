"""Level 4: cameras and sparse points from pictures (structure from motion through COLMAP)."""

from relief3d.sfm.config import SfmConfig
from relief3d.sfm.estimate import SfmResult, estimate_cameras

__all__ = ["SfmConfig", "SfmResult", "estimate_cameras"]
