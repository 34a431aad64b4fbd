"""ScanNet: metric depth of several views (MetricAnything, table 9)."""

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.metric.multiview_depth import MultiViewDepthProtocol, windows
from relief3d.eval.protocols.metric.readers_scannet import LAYOUT, open_scans

PROTOCOLS: tuple[Protocol, ...] = (
    MultiViewDepthProtocol(
        name="scannet_multiview",
        title="ScanNet: metric depth of several views",
        layout=LAYOUT,
        data="scannet",
        scenes=open_scans,
        choose=windows(2),
        size=None,
        family="room",
        frames=24,
        notes=(
            "2 windows of 8 frames, 10 frames apart, per test scan with the fourth frame as key view (our choice); the "
            "benchmark's own list is a pickle, which is not read: write it to samples.txt to use it",
            "colour shown at 640 x 480 (Lanczos), the size of the depth",
        ),
    ),
)
