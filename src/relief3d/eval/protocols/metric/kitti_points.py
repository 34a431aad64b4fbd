"""KITTI: metric depth of point-map models on 750 x 375 street pictures (MetricAnything, tables 5 and 6)."""

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.metric.mono_depth_rules import TwinPlan
from relief3d.eval.protocols.metric.point_map_rules import variants
from relief3d.eval.protocols.prompted.readers_kitti_selection import LAYOUT, open_kitti_selection

PROTOCOLS: tuple[Protocol, ...] = variants(
    data="kitti",
    title="KITTI: metric depth of point-map models",
    layout=LAYOUT,
    frames=open_kitti_selection,
    size=(375, 750),
    twin_plan=TwinPlan("street", wide=True, lidar=True),
    notes=(
        "exact list and truth: MoGe's published evaluation set; otherwise the 1000 pictures of KITTI's validation "
        "selection, already cropped to 1216 x 352, which are comparable in kind, not exactly",
    ),
)
