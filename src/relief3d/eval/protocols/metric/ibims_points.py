"""iBims-1: metric depth of point-map models on 100 indoor pictures (MetricAnything, tables 5 and 6)."""

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.metric.mono_depth_rules import TwinPlan
from relief3d.eval.protocols.metric.point_map_rules import variants
from relief3d.eval.protocols.metric.readers_ibims import LAYOUT, read_ibims

PROTOCOLS: tuple[Protocol, ...] = variants(
    data="ibims",
    title="iBims-1: metric depth of point-map models",
    layout=LAYOUT,
    frames=read_ibims,
    size=(480, 640),
    twin_plan=TwinPlan("room"),
)
