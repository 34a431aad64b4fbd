"""DIODE: metric depth of point-map models on 771 pictures indoors and outdoors (MetricAnything, tables 5 and 6)."""

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.metric.mono_depth_rules import TwinPlan
from relief3d.eval.protocols.metric.point_map_rules import variants
from relief3d.eval.protocols.metric.readers_diode import LAYOUT, open_diode

PROTOCOLS: tuple[Protocol, ...] = variants(
    data="diode",
    title="DIODE: metric depth of point-map models",
    layout=LAYOUT,
    frames=open_diode,
    size=(768, 1024),
    twin_plan=TwinPlan("outdoor"),
    notes=(
        "validation pictures indoors and outdoors together; intrinsics of the authors' development kit; depth files "
        "are taken as z-depth",
    ),
)
