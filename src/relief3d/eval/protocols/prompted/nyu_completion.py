"""Depth completion and super-resolution on NYU Depth v2 (MetricAnything Tab 1)."""

from __future__ import annotations

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.prompted.completion_rules import (
    LIDAR_COLUMNS,
    TABLE_1_COLUMNS,
    FrameTwin,
    PromptedDepth,
)
from relief3d.eval.protocols.prompted.readers_nyu import LAYOUT, open_nyu
from relief3d.eval.published.metric_prompted import TABLE_1

PROTOCOLS: tuple[Protocol, ...] = (
    PromptedDepth(
        "nyu_completion",
        "NYU Depth v2: depth from 8x, 16x, lidar and 100-point prompts",
        "MetricAnything Tab 1; metric_depth 2.7, 9.1, 10.1",
        reader=open_nyu,
        prompts=(*TABLE_1_COLUMNS, *LIDAR_COLUMNS),
        depth_range=(1e-3, 10.0),
        twin=FrameTwin(families=("room",)),
        rows=TABLE_1.select({p.key: f"nyu.{p.key}" for p in TABLE_1_COLUMNS}),
        layout=LAYOUT,
        notes=("No Eigen crop; depth up to 10 m (our choice, the paper states neither).",),
    ),
)
