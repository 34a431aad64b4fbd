"""Depth completion and super-resolution on KITTI's improved depth (MetricAnything Tab 1)."""

from __future__ import annotations

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.prompted.completion_rules import (
    LIDAR_COLUMNS,
    TABLE_1_COLUMNS,
    FrameTwin,
    PromptedDepth,
)
from relief3d.eval.protocols.prompted.readers_kitti_selection import LAYOUT, open_kitti_selection
from relief3d.eval.published.metric_prompted import TABLE_1

DEPTH_RANGE = (1e-3, 80.0)
TWIN = FrameTwin(families=("street",), smoke_size=(96, 160), mini_size=(192, 384), known=0.4)

PROTOCOLS: tuple[Protocol, ...] = (
    PromptedDepth(
        "kitti_completion",
        "KITTI: depth from 8x, 16x, lidar and 100-point prompts",
        "MetricAnything Tab 1; metric_depth 2.7, 9.1, 10.1",
        reader=open_kitti_selection,
        prompts=(*TABLE_1_COLUMNS, *LIDAR_COLUMNS),
        depth_range=DEPTH_RANGE,
        twin=TWIN,
        rows=TABLE_1.select({p.key: f"kitti.{p.key}" for p in TABLE_1_COLUMNS}),
        layout=LAYOUT,
        notes=(
            "No Garg crop; depth up to 80 m (our choice, the paper states neither).",
            "Truth is the accumulated lidar of the official validation selection (1216 x 352), also as prompt.",
        ),
    ),
)
