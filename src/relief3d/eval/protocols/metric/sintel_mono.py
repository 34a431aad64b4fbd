"""MPI Sintel: metric depth of 1064 rendered film frames (MetricAnything, tables 3 and 4)."""

from functools import partial

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.metric.mono_depth_rules import MonoDepthProtocol, TwinPlan
from relief3d.eval.protocols.metric.readers_sintel import LAYOUT, read_sintel

PROTOCOLS: tuple[Protocol, ...] = (
    MonoDepthProtocol(
        name="sintel_mono",
        title="MPI Sintel: metric depth of single pictures",
        layout=LAYOUT,
        data="sintel",
        frames=partial(read_sintel, render="final"),
        limits=(0.01, 80.0),
        twin_plan=TwinPlan("street", scale=3.0, wide=True),
        notes=("final pass of the training set (our choice: the papers do not name the pass)",),
    ),
)
