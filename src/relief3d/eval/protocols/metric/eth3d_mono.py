"""ETH3D: metric depth of 454 high-resolution pictures against laser scans (MetricAnything, tables 3 and 4)."""

from functools import partial

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.metric.mono_depth_rules import MonoDepthProtocol, TwinPlan
from relief3d.eval.protocols.metric.readers_eth3d import LAYOUT, read_eth3d

PROTOCOLS: tuple[Protocol, ...] = (
    MonoDepthProtocol(
        name="eth3d_mono",
        title="ETH3D: metric depth of single pictures",
        layout=LAYOUT,
        data="eth3d",
        frames=partial(read_eth3d, undistorted=False, focal="exif"),
        limits=(0.1, 200.0),
        twin_plan=TwinPlan("outdoor", scale=5.0, tall=True),
        notes=(
            "raw (distorted) pictures with the focal length of their EXIF header, as Depth Pro evaluates",
        ),
    ),
)
