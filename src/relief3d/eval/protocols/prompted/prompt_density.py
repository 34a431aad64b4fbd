"""Error by number of prompt points on Hypersim (MetricAnything Tab 15, left)."""

from __future__ import annotations

import math

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.prompted.completion_rules import FrameTwin, PromptColumn, PromptedDepth
from relief3d.eval.protocols.prompted.readers_hypersim import LAYOUT, open_hypersim
from relief3d.eval.published.metric_prompted import POINTS, TABLE_15_LEFT

PROTOCOLS: tuple[Protocol, ...] = (
    PromptedDepth(
        "prompt_density",
        "Hypersim: AbsRel from 500 to 64000 random prompt points",
        "MetricAnything Tab 15 left; metric_depth 2.7 a, 2.9, 11",
        reader=open_hypersim,
        prompts=tuple(PromptColumn(f"absrel_{n}", f"{n} points", str(n)) for n in POINTS),
        depth_range=(1e-3, math.inf),
        twin=FrameTwin(families=("room",), mini_size=(240, 320), mini_clips=10),
        unit="",
        rows=TABLE_15_LEFT.rows,
        seconds=True,
        layout=LAYOUT,
        notes=(
            "Where a picture has fewer valid pixels than points are asked for, all of them are given.",
            "Times are shown where answers carry 'seconds' (a list) among their facts; the published ones include the "
            "preparation of the prompt.",
        ),
    ),
)
