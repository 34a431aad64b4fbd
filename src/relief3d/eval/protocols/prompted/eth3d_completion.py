"""Depth completion and super-resolution on ETH3D (MetricAnything Tab 1)."""

from __future__ import annotations

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.metric.readers_eth3d import LAYOUT, read_eth3d
from relief3d.eval.protocols.prompted.completion_rules import (
    LIDAR_COLUMNS,
    TABLE_1_COLUMNS,
    FrameTwin,
    PromptedDepth,
)
from relief3d.eval.published.metric_prompted import TABLE_1

PROTOCOLS: tuple[Protocol, ...] = (
    PromptedDepth(
        "eth3d_completion",
        "ETH3D: depth from 8x, 16x, lidar and 100-point prompts",
        "MetricAnything Tab 1; metric_depth 2.7, 9.1, 10.1",
        reader=read_eth3d,
        prompts=(*TABLE_1_COLUMNS, *LIDAR_COLUMNS),
        depth_range=(0.1, 200.0),
        twin=FrameTwin(families=("room", "outdoor")),
        rows=TABLE_1.select({p.key: f"eth3d.{p.key}" for p in TABLE_1_COLUMNS}),
        layout=LAYOUT,
        notes=(
            "The raw (distorted) pictures at full size, to which the laser depth belongs; depth from 0.1 to 200 m. The "
            "paper does not state its picture size.",
        ),
    ),
)
