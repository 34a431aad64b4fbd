"""What is weak about an alignment, by name: submaps, keyframes, edges (specification 2.6, 2.9, 8.7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from relief3d.geometry.scale_graph import ScaleGraph, ScaleGraphResult

if TYPE_CHECKING:
    from relief3d.methods.vfm_recon.alignment import SceneAlignment

MOVED = 0.2
"""A solution that differs from its prior by more (in log) is reported."""

DISAGREE = 0.3
"""Priors of neighbours that differ from their edge by more contradict it."""

LEFT_OVER = 0.1
"""Of such edges, those that the solution still misses by more are the wrong ones; else a prior is."""

WIDE = 0.15
"""Robust deviation of log ratios beyond which the depth of a submap does not fit the triangulated points."""

LISTED = 6


def suspicious(graph: ScaleGraph, result: ScaleGraphResult) -> list[int]:
    """Edges that the solution does not follow although the priors of their ends, where both have one, would let it."""
    out = []
    for e, (i, j) in enumerate(graph.edges.tolist()):
        if not graph.weights[e] > 0:
            continue
        left = abs(float(result.edge_residuals[e]))
        if graph.prior_weights[i] > 0 and graph.prior_weights[j] > 0:
            against = abs(float(graph.priors[i] - graph.priors[j] + graph.ratios[e]))
            wrong = against > DISAGREE and left > LEFT_OVER
        else:
            wrong = left > DISAGREE
        if wrong:
            out.append(e)
    return out


def submap_flags(alignment: SceneAlignment) -> tuple[tuple[str, ...], ...]:
    """Words per submap; empty when all is well.

    ``no matches``, ``pure rotation``, ``no prior`` (too few samples), ``unscaled`` (nothing connects it to a scale),
    ``prior rejected`` (the solution differs from it by more than 0.2), ``wide spread`` (its depth does not fit the
    points), ``inconsistent frames``, ``relaxed parallax``, ``isolated`` (no edge).
    """
    joined = {k for e, w in zip(alignment.edges, alignment.edge_weights.tolist(), strict=True) if w > 0
              for k in (e.i, e.j)}  # fmt: skip
    out = []
    for submap, prior in zip(alignment.submaps, alignment.priors, strict=True):
        m, words, samples = submap.index, [], prior.samples
        if samples.matches == 0 and prior.count == 0:
            words.append("no matches")
        elif _only_turns(samples.parallax_deg[2], samples.matches, samples.kept):
            words.append("pure rotation")
        if float(alignment.prior_weights[m]) == 0:
            words.append("no prior")
        if bool(alignment.solution.unscaled[m]):
            words.append("unscaled")
        moved = float(alignment.solution.prior_residuals[m])
        if math.isfinite(moved) and abs(moved) > MOVED:
            words.append("prior rejected")
        if prior.count and prior.spread > WIDE:
            words.append("wide spread")
        if prior.inconsistent_places():
            words.append("inconsistent frames")
        if samples.relaxed and prior.count:
            words.append("relaxed parallax")
        if len(alignment.submaps) > 1 and m not in joined:
            words.append("isolated")
        out.append(tuple(words))
    return tuple(out)


def _only_turns(upper_parallax: float, matches: int, kept: int) -> bool:
    """Nearly all points have less than one degree of parallax although there are matches."""
    return matches >= 20 and kept < 10 and (math.isnan(upper_parallax) or upper_parallax < 1.0)


def alignment_warnings(alignment: SceneAlignment) -> tuple[str, ...]:
    """Sentences for the user that name the weak submaps, keyframes and edges."""
    out: list[str] = []
    reasons = {
        "no matches": "no matches, so their scale comes from neighbours alone",
        "pure rotation": "the camera only turns, which tells no scale; move it sideways there",
        "prior rejected": "triangulated scale contradicts the neighbours and was outvoted",
        "wide spread": "depth does not fit the triangulated points (moving things, wrong matches or poor depth)",
        "inconsistent frames": "some frames disagree with the rest of their submap",
        "isolated": "no usable overlap with any other submap",
    }
    for word, reason in reasons.items():
        where = [m for m, flags in zip(alignment.submaps, alignment.flags, strict=True) if word in flags]
        if where:
            out.append(f"weak alignment: {reason} ({_named([_span(alignment, m.frames) for m in where])})")
    few = [
        m
        for m, flags in zip(alignment.submaps, alignment.flags, strict=True)
        if "no prior" in flags and "no matches" not in flags and "pure rotation" not in flags
    ]
    if few:
        out.append(
            "weak alignment: too few triangulated points for a scale of their own "
            f"({_named([_span(alignment, m.frames) for m in few])})"
        )
    if alignment.suspicious_edges:
        spans = [
            f"between {_span(alignment, alignment.submaps[alignment.edges[e].i].frames)} and "
            f"{_span(alignment, alignment.submaps[alignment.edges[e].j].frames)}"
            for e in alignment.suspicious_edges
        ]
        out.append(f"suspicious ratio of depths {_named(spans)}")
    missing = [k for k, c in enumerate(alignment.cameras) if c.world_from_cam is None]
    if missing:
        names = _named([alignment.names[k] for k in missing])
        out.append(f"{len(missing)} keyframes without a pose are not fused ({names})")
    if alignment.dropped:
        names = _named([alignment.names[k] for k in alignment.dropped])
        out.append(
            f"{len(alignment.dropped)} keyframes repeat the pose of another one and were left out ({names})"
        )
    return tuple(out)


def _span(alignment: SceneAlignment, frames: Sequence[int]) -> str:
    return f"{alignment.names[frames[0]]} to {alignment.names[frames[-1]]}"


def _named(items: Sequence[str]) -> str:
    shown = ", ".join(items[:LISTED])
    return shown if len(items) <= LISTED else f"{shown} and {len(items) - LISTED} more"


def frame_scale_spread(alignment: SceneAlignment) -> tuple[list[float], list[float]]:
    """Per-frame log scales against their median before alignment, and what is left of them after it.

    Returns:
        Two lists over all (submap, frame) with samples: median ln(z / D) minus its median over the scene, and median
        ln(z / D) minus the submap's solved log scale.
    """
    medians = [p.frame_medians for p in alignment.priors]
    scales = alignment.solution.log_scale
    every = torch.cat(medians)
    middle = (
        every[torch.isfinite(every)].median() if bool(torch.isfinite(every).any()) else every.new_zeros(())
    )
    before = [float(v - middle) for m in medians for v in m if math.isfinite(v)]
    after = [float(v - x) for m, x in zip(medians, scales, strict=True) for v in m if math.isfinite(v)]
    return before, after
