"""SUN RGB-D: metric depth of 5050 indoor test pictures (MetricAnything, tables 3 and 4)."""

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.metric.mono_depth_rules import MonoDepthProtocol, TwinPlan
from relief3d.eval.protocols.metric.readers_sunrgbd import LAYOUT, open_sunrgbd

PROTOCOLS: tuple[Protocol, ...] = (
    MonoDepthProtocol(
        name="sunrgbd",
        title="SUN RGB-D: metric depth of single pictures",
        layout=LAYOUT,
        data="sunrgbd",
        frames=open_sunrgbd,
        limits=(0.001, 10.0),
        twin_plan=TwinPlan("room", scale=2.5),
        notes=(
            "official test split; the sensors' own depth (folder 'depth', not the filled 'depth_bfx'), decoded and "
            "capped at 8 m as the data set's reader does (our choice: the papers do not say which)",
        ),
    ),
)
