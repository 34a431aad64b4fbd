"""Data scaling of a prompted model: 8x super-resolution on KITTI by share of the training data."""

from __future__ import annotations

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.prompted.completion_rules import TABLE_1_COLUMNS, PromptedDepth
from relief3d.eval.protocols.prompted.kitti_completion import DEPTH_RANGE, TWIN
from relief3d.eval.protocols.prompted.readers_kitti_selection import LAYOUT, open_kitti_selection
from relief3d.eval.published.metric_prompted import SCALING

PROTOCOLS: tuple[Protocol, ...] = (
    PromptedDepth(
        "kitti_scaling",
        "KITTI 8x super-resolution, one run per share of the training data",
        "MetricAnything, text on scaling; metric_depth 11, 19",
        reader=open_kitti_selection,
        prompts=TABLE_1_COLUMNS[:1],
        depth_range=DEPTH_RANGE,
        twin=TWIN,
        rows=SCALING.rows,
        layout=LAYOUT,
        notes=(
            "The same measurement as the 8x column of kitti_completion; every run names its share of the data.",
        ),
    ),
)
