"""ETH3D: metric depth of point-map models on 2048 x 1365 pictures (MetricAnything, tables 5 and 6)."""

from pathlib import Path

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.metric.frames import FrameFile
from relief3d.eval.protocols.metric.mono_depth_rules import TwinPlan
from relief3d.eval.protocols.metric.point_map_rules import variants
from relief3d.eval.protocols.metric.readers_eth3d import LAYOUT, read_eth3d


def open_eth3d(root: Path) -> list[FrameFile]:
    """Undistorted pictures where the user has made depth for them, else the raw pictures with their focal lengths.

    Raises:
        InputError: see :func:`read_eth3d`.
    """
    made = any(root.glob("*/ground_truth_depth/dslr_images_undistorted"))
    return read_eth3d(root, undistorted=made, focal="calibration")


PROTOCOLS: tuple[Protocol, ...] = variants(
    data="eth3d",
    title="ETH3D: metric depth of point-map models",
    layout=LAYOUT,
    frames=open_eth3d,
    size=(1365, 2048),
    twin_plan=TwinPlan("outdoor", scale=2.0, tall=True),
    notes=(
        "the public depth belongs to the distorted pictures, which are used as pinhole pictures unless the scenes "
        "also have ground_truth_depth/dslr_images_undistorted",
    ),
)
