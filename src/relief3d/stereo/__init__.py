"""Level 4: dense depth from posed pictures without learned weights."""

from relief3d.stereo.config import StereoConfig
from relief3d.stereo.estimate import estimate_depths
from relief3d.stereo.neighbours import DepthRange, Neighbour
from relief3d.stereo.plan import StereoPlan, plan_stereo
from relief3d.stereo.result import StereoDepth, StereoReport, StereoResult

__all__ = [
    "DepthRange",
    "Neighbour",
    "StereoConfig",
    "StereoDepth",
    "StereoPlan",
    "StereoReport",
    "StereoResult",
    "estimate_depths",
    "plan_stereo",
]
