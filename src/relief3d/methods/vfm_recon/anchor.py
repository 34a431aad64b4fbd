"""The unit of an aligned scene: parts without triangulation, and metres from metric depth (specification 2.8-2.9)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from relief3d.core.contract import Depth
from relief3d.methods.vfm_recon.alignment import SceneAlignment
from relief3d.methods.vfm_recon.inputs import DepthSource
from relief3d.methods.vfm_recon.loops import CoarseFrames

NORMALISED_DEPTH = 2.0
"""Median depth of a scene whose unit nothing tells: a typical room in metres, which the other defaults expect."""

ANCHORS = 32
"""Keyframes, evenly taken, whose metric depth is compared."""

MetricDepth = Callable[[int], Depth | None]


def log_ratio(metric: Depth, depth: Tensor) -> Tensor:
    """(N,) ln(metric / depth) at up to some thousand pixels where both are known; maps of any sizes."""
    height, width = metric.values.shape
    h, w = depth.shape
    rows = torch.arange(0, h, max(1, h // 48))
    columns = torch.arange(0, w, max(1, w // 64))
    r, c = torch.meshgrid(rows, columns, indexing="ij")
    here = depth[r, c]
    there = metric.values[(2 * r + 1) * height // (2 * h), (2 * c + 1) * width // (2 * w)]
    known = metric.valid[(2 * r + 1) * height // (2 * h), (2 * c + 1) * width // (2 * w)]
    both = (here > 0) & known & (there > 0)
    return (there[both].double() / here[both].double()).log()


def metric_factor(alignment: SceneAlignment, depths: DepthSource, metric_depth: MetricDepth) -> float | None:
    """Factor to metres: median over keyframes and pixels of metric / aligned depth; None without common pixels."""
    step = max(1, math.ceil(len(alignment.usable) / ANCHORS))
    found = []
    for aligned in alignment.depth_frames(depths, alignment.usable[::step]):
        metric = metric_depth(aligned.frame)
        if metric is not None:
            found.append(log_ratio(metric, aligned.depth.values()))
    values = torch.cat(found) if found else torch.zeros(0)
    return float(values.median().exp()) if values.numel() else None


def settle_units(
    alignment: SceneAlignment, coarse: CoarseFrames, metric_depth: MetricDepth | None
) -> SceneAlignment:
    """Give parts of the scene without any prior a scale, or say that they have none.

    With metric depth and metric poses such a part is anchored to it. A scene of which no part has a prior gets a median
    depth of 2 in every part (``normalised``), or stays in the unit of the depth source when nothing is posed or
    there is a single keyframe (``model``). Otherwise parts without prior get the median depth of the rest as a
    guess, and their keyframes are not used for the surface.
    """
    unscaled, component = alignment.solution.unscaled, alignment.solution.component
    if not bool(unscaled.any()):
        return alignment
    frames_of = {m.index: m.frames for m in alignment.submaps}
    everything = bool(unscaled.all())
    posed = [c for c in alignment.cameras if c.world_from_cam is not None]
    if everything and (len(posed) < 2 or len(alignment.cameras) < 2):
        said = (
            "nothing tells the scale: fewer than two keyframes have poses; depth keeps the unit of its source"
        )
        return replace(alignment, units="model", warnings=(*alignment.warnings, said))
    log_scale, warnings, left_out = alignment.log_scale.clone(), list(alignment.warnings), set[int]()
    medians = torch.tensor([f.log_median for f in alignment.facts]) + log_scale
    known = medians[~unscaled & torch.isfinite(medians)]
    target = float(known.median()) if known.numel() else math.log(NORMALISED_DEPTH)
    anchored = 0
    for part in torch.unique(component[unscaled]).tolist():
        members = component == part
        shift = None
        if metric_depth is not None and (alignment.units == "metric" or everything):
            shift = _anchored_shift(members, alignment, coarse, metric_depth)
        if shift is None:
            own = medians[members & torch.isfinite(medians)]
            shift = target - float(own.median()) if own.numel() else 0.0
            if not everything:
                left_out |= {t for m in torch.nonzero(members)[:, 0].tolist() for t in frames_of[m]}
        else:
            anchored += 1
        log_scale[members] += shift
    scaled = {t for m in alignment.submaps if not bool(unscaled[m.index]) for t in m.frames}
    usable = tuple(t for t in alignment.usable if t not in left_out or t in scaled)
    count, parts = int(unscaled.sum()), len(torch.unique(component[unscaled]))
    units = alignment.units
    if everything and anchored == parts:
        units = "metric"
        warnings.append("no scale could be triangulated; it comes from metric depth alone")
    elif everything:
        units = "normalised"
        warnings.append(
            f"no scale could be triangulated anywhere (too few matches, or the camera only turns): depth is normalised "
            f"to a median of {NORMALISED_DEPTH:g} and does not fit the translations of the poses"
        )
    elif anchored < parts:
        warnings.append(
            f"{count} submaps in {parts} separate parts have no triangulated scale; their keyframes are left out of "
            "the surface"
        )
    return replace(alignment, log_scale=log_scale, usable=usable, units=units, warnings=tuple(warnings))


def _anchored_shift(
    members: Tensor, alignment: SceneAlignment, coarse: CoarseFrames, metric_depth: MetricDepth
) -> float | None:
    """Change of log scale that brings a part's thinned depth to its metric depth; None without common pixels."""
    own = [t for t, c in sorted(coarse.frames.items()) if bool(members[c.submap])]
    found = []
    for t in own[:: max(1, len(own) // ANCHORS)]:
        metric, here = metric_depth(t), coarse.frames[t]
        if metric is not None:
            found.append(log_ratio(metric, here.depth * float(alignment.log_scale[here.submap].exp())))
    values = torch.cat(found) if found else torch.zeros(0)
    return float(values.median()) if values.numel() else None
