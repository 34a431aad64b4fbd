"""nuScenes: metric depth of front-camera pictures against lidar (MetricAnything, tables 3 and 4)."""

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.metric.mono_depth_rules import MonoDepthProtocol, TwinPlan
from relief3d.eval.protocols.metric.readers_nuscenes import LAYOUT, open_front_frames

PROTOCOLS: tuple[Protocol, ...] = (
    MonoDepthProtocol(
        name="nuscenes_mono",
        title="nuScenes: metric depth of single pictures",
        layout=LAYOUT,
        data="nuscenes",
        frames=open_front_frames,
        limits=(0.001, 80.0),
        twin_plan=TwinPlan("street", scale=2.5, lidar=True),
        notes=(
            "all CAM_FRONT keyframes of the official validation scenes; which 881 the papers took is not public",
            "truth: one LIDAR_TOP sweep moved with the car's motion to the instant of the picture, nearest point per "
            "pixel, points on the car removed, no occlusion filter",
        ),
    ),
)
