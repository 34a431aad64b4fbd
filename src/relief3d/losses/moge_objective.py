"""MoGe-2's whole objective: which terms a kind of label can teach, with the published weights.

Source: MoGe-2's training configuration; MetricAnything specification 7.8, 22.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.normals import depth_to_normals
from relief3d.geometry.projection import depth_to_points
from relief3d.losses.moge import (
    edge_loss,
    global_loss,
    mask_loss,
    metric_scale_loss,
    normal_loss,
    normal_map_loss,
)
from relief3d.losses.moge_local import LEVELS, PatchOptions, local_loss, relative_focal

Label = Literal["A", "B", "C", "none"]
"""Rendered (or a teacher's); dense real; lidar or sparse; a picture that teaches nothing."""

Term = Literal[
    "global", "patch_4", "patch_16", "patch_64", "edge", "normal", "normal_map", "metric_scale", "mask"
]
_BASE: Mapping[Term, float] = {"global": 1.0, "patch_4": 1.0, "metric_scale": 0.1, "mask": 0.1}
_DENSE: Mapping[Term, float] = {**_BASE, "patch_16": 1.0, "edge": 1.0, "normal_map": 0.1}
WEIGHTS: Mapping[Label, Mapping[Term, float]] = {
    "A": {**_DENSE, "patch_64": 1.0},
    "B": _DENSE,
    "C": _BASE,
    "none": {},
}
"""The published ones."""
LEAST_SHARE = 1e-3
"""A picture with a smaller share of valid pixels teaches nothing."""


@dataclass(frozen=True)
class MogeOptions:
    """Options of :func:`moge_loss`.

    Attributes:
        resolution: of the global alignment.
        levels: of the local patches; term ``patch_L`` needs the level L.
        beta: errors relative to depth below which they are squared.
        weights: of every term for every kind of label.
        least_share: see :data:`LEAST_SHARE`.
    """

    resolution: int = 48
    levels: tuple[PatchOptions, ...] = LEVELS
    beta: float = 0.0
    weights: Mapping[Label, Mapping[Term, float]] = field(default_factory=lambda: WEIGHTS)
    least_share: float = LEAST_SHARE


@dataclass(frozen=True)
class MogeTruth:
    """Truth of B pictures.

    Attributes:
        points: (B, H, W, 3) in the camera frame; anything outside of ``valid``.
        valid: (B, H, W) bool.
        K: (B, 3, 3) pixels.
        labels: kind of each picture.
        sky: (B, H, W) bool, known to have no surface; None for nowhere.
        normals: (B, H, W, 3) unit, camera frame; anything outside of ``normals_valid``. None: the term is left out.
        normals_valid: (B, H, W) bool.
        metric: (B,) bool, points are in metres; None for all.
    """

    points: Tensor
    valid: Tensor
    K: Tensor
    labels: Sequence[Label]
    sky: Tensor | None = None
    normals: Tensor | None = None
    normals_valid: Tensor | None = None
    metric: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.points):
            raise InputError(f"there are {len(self.points)} pictures, but {len(self.labels)} kinds of label")
        if (self.normals is None) != (self.normals_valid is None):
            raise InputError("true normals need a mask, and a mask of normals needs them")

    def __getitem__(self, index: slice) -> MogeTruth:
        """Some of the pictures."""

        def part(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[index]

        return MogeTruth(
            self.points[index], self.valid[index], self.K[index], tuple(self.labels)[index], part(self.sky),
            part(self.normals), part(self.normals_valid), part(self.metric),
        )  # fmt: skip


def moge_truth(
    depth: Tensor,
    valid: Tensor,
    K: Tensor,
    labels: Sequence[Label],
    *,
    sky: Tensor | None = None,
    metric: Tensor | None = None,
) -> MogeTruth:
    """Truth from depth maps, such as a teacher's: points on the rays of K, normals by differences.

    Args:
        depth: (B, H, W) z-depth.
        valid: (B, H, W) bool; what is not finite or not positive is left out besides.
        K: (B, 3, 3) pixels. Pictures without it cannot teach points; leave them out.
        labels: kind of each picture; "A" for a teacher's.
        sky: (B, H, W) bool, known to have no surface.
        metric: (B,) bool.
    """
    good = valid & torch.isfinite(depth) & (depth > 0)
    safe = torch.where(good, depth, 1.0)
    normals, normals_valid = depth_to_normals(safe, K, good)
    return MogeTruth(
        depth_to_points(safe, K),
        good,
        K,
        labels,
        None if sky is None else sky & ~good,
        normals,
        normals_valid,
        metric,
    )


@dataclass(frozen=True)
class MogeLoss:
    """Result of :func:`moge_loss`.

    Attributes:
        total: () weighted sum, mean over the pictures.
        terms: by name, (B,) before weighting; only terms that some picture has.
        scale: (B,) of the global alignment, without gradient.
    """

    total: Tensor
    terms: Mapping[Term, Tensor]
    scale: Tensor


def moge_loss(
    points: Tensor,
    truth: MogeTruth,
    *,
    normals: Tensor | None = None,
    mask: Tensor | None = None,
    scale: Tensor | None = None,
    options: MogeOptions | None = None,
    generator: torch.Generator | None = None,
) -> MogeLoss:
    """The objective of a batch. Terms of heads that a network lacks (None) are left out.

    Args:
        points: (B, H, W, 3) affine.
        truth: of the same size.
        normals: (B, H, W, 3) unit.
        mask: (B, H, W) probability of a surface.
        scale: (B,) predicted, positive.
        options: None for the published ones.
        generator: on the device of the points; chooses the anchors of patches.

    Raises:
        InputError: shapes do not fit, or a term has a weight but no level of patches.
    """
    o = options or MogeOptions()
    if points.shape != truth.points.shape:
        raise InputError(
            f"predicted {tuple(points.shape)} and true points {tuple(truth.points.shape)} differ"
        )
    enough = truth.valid.flatten(1).float().mean(1) >= o.least_share
    labels = [label if e or label == "none" else "none" for label, e in zip(truth.labels, enough.tolist())]
    weights = [o.weights[label] for label in labels]
    wanted: set[Term] = {term for w in weights for term, value in w.items() if value}
    valid = (
        truth.valid & torch.tensor([label != "none" for label in labels], device=points.device)[:, None, None]
    )
    fit = global_loss(points, truth.points, valid, resolution=o.resolution, beta=o.beta)
    terms: dict[Term, Tensor] = {"global": fit.loss} if "global" in wanted else {}
    terms |= _patch_terms(points, truth, valid, fit.scale, weights, o, generator)
    if "edge" in wanted:
        terms["edge"] = edge_loss(points, truth.points, valid)
    if "normal" in wanted:
        terms["normal"] = normal_loss(points, truth.points, valid)
    if "normal_map" in wanted and normals is not None and truth.normals is not None:
        assert truth.normals_valid is not None
        terms["normal_map"] = normal_map_loss(normals, truth.normals, truth.normals_valid)
    if "metric_scale" in wanted and scale is not None:
        terms["metric_scale"] = metric_scale_loss(scale, fit.scale, truth.metric)
    if "mask" in wanted and mask is not None:
        sky = torch.zeros_like(truth.valid) if truth.sky is None else truth.sky
        terms["mask"] = mask_loss(mask, truth.valid, sky)
    total = 0.0 * torch.where(truth.valid[..., None], points, 0.0).flatten(1).sum(1).float()
    for name, values in terms.items():
        factor = torch.tensor([w.get(name, 0.0) for w in weights], device=values.device, dtype=values.dtype)
        total = total + factor * values
    return MogeLoss(total.mean(), terms, fit.scale)


def _patch_terms(
    points: Tensor,
    truth: MogeTruth,
    valid: Tensor,
    scale: Tensor,
    weights: Sequence[Mapping[Term, float]],
    options: MogeOptions,
    generator: torch.Generator | None,
) -> dict[Term, Tensor]:
    """Losses of local patches, computed only for pictures that have the term."""
    focal = relative_focal(truth.K.to(points), *(int(n) for n in points.shape[1:3]))
    levels = {o.level: o for o in options.levels}
    names: tuple[tuple[int, Term], ...] = ((4, "patch_4"), (16, "patch_16"), (64, "patch_64"))
    out: dict[Term, Tensor] = {}
    for level, name in names:
        which = [i for i, w in enumerate(weights) if w.get(name, 0.0)]
        if not which:
            continue
        if level not in levels:
            raise InputError(f"'{name}' has a weight, but the options have no level {level}")
        one = replace(levels[level], beta=options.beta) if options.beta else levels[level]
        found = local_loss(
            points[which], truth.points[which], valid[which], focal[which], scale[which], one, generator
        )
        out[name] = torch.zeros(len(points), dtype=found.dtype, device=found.device).index_put(
            (torch.tensor(which, device=found.device),), found
        )
    return out
