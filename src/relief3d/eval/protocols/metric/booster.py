"""Booster: metric depth of 228 indoor pictures with glass and mirrors (MetricAnything, tables 3 and 4)."""

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.metric.mono_depth_rules import MonoDepthProtocol, TwinPlan
from relief3d.eval.protocols.metric.readers_booster import LAYOUT, open_booster

PROTOCOLS: tuple[Protocol, ...] = (
    MonoDepthProtocol(
        name="booster",
        title="Booster: metric depth of single pictures",
        layout=LAYOUT,
        data="booster",
        frames=open_booster,
        limits=(0.001, 10.0),
        twin_plan=TwinPlan("room", scale=2.5, tall=True),
        notes=(
            "left pictures of the balanced pairs; depth = fx * baseline / (disparity + 1e-6), pixels of mask_00 only",
            "all pictures of a scene (several lights) share one true depth and all count",
        ),
    ),
)
