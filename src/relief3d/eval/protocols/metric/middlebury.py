"""Middlebury 2014: metric depth of 15 high-resolution indoor pictures (MetricAnything, tables 3 and 4)."""

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.metric.mono_depth_rules import MonoDepthProtocol, TwinPlan
from relief3d.eval.protocols.metric.readers_middlebury import LAYOUT, open_middlebury

PROTOCOLS: tuple[Protocol, ...] = (
    MonoDepthProtocol(
        name="middlebury",
        title="Middlebury 2014: metric depth of single pictures",
        layout=LAYOUT,
        data="middlebury",
        frames=open_middlebury,
        limits=(0.001, 10.0),
        twin_plan=TwinPlan("room", scale=3.0),
        notes=(
            "depth = fx * baseline / (disparity + doffs); pixels of unknown (infinite) disparity do not "
            "count, occluded ones do",
        ),
    ),
)
