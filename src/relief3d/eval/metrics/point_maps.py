"""Errors of metric point maps and depth as MoGe measures them (MetricAnything, tables 5 and 6).

Depth is compared as it is. Points are first moved by the translation of least weighted L1 distance, found on 64 x 64
points of a masked nearest resize, so that an error of the camera centre does not count. Spec: 9.3.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.affine_alignment import align_points_xyz_shift
from relief3d.geometry.masked_resize import masked_nearest_resize

ALIGN_RESOLUTION = 64
DROP_MAX_DEPTH = 1000.0
DROP_QUANTILE = 0.01

PointAlignment = Literal["none", "translation"]


@dataclass(frozen=True)
class PointMapErrors:
    """Plain ratios of one picture.

    Attributes:
        rel_depth: mean |p - d| / (d + 1e-6) of the depth.
        delta1_depth: share with max(p/d, d/p) < 1.25.
        rel_point: mean ||p - d|| / (||d|| + 1e-6) of the points, aligned.
        delta1_point: share with ||p - d|| < 0.25 min(||p||, ||d||), aligned.
        pixels: number of pixels compared.
    """

    rel_depth: float
    delta1_depth: float
    rel_point: float
    delta1_point: float
    pixels: int

    def as_dict(self) -> dict[str, float]:
        """By name."""
        return {key: float(value) for key, value in asdict(self).items()}


def rel_depth(predicted: Tensor, truth: Tensor, eps: float = 1e-6) -> float:
    """Mean |p - d| / (d + eps) over samples of any one shape."""
    p, d = _pair(predicted, truth)
    return float(((p - d).abs() / (d + eps)).mean())


def delta1_depth(predicted: Tensor, truth: Tensor) -> float:
    """Share of samples with max(p/d, d/p) < 1.25; a prediction that is not positive never counts."""
    p, d = _pair(predicted, truth)
    safe = torch.where(p > 0, p, torch.ones_like(p))
    return float(((p > 0) & (torch.maximum(safe / d, d / safe) < 1.25)).double().mean())


def rel_point(predicted: Tensor, truth: Tensor, eps: float = 1e-6) -> float:
    """Mean ||p - d|| / (||d|| + eps) over points (*, 3)."""
    p, d = _pair(predicted, truth)
    return float(((p - d).norm(dim=-1) / (d.norm(dim=-1) + eps)).mean())


def delta1_point(predicted: Tensor, truth: Tensor) -> float:
    """Share of points (*, 3) with ||p - d|| < 0.25 min(||p||, ||d||)."""
    p, d = _pair(predicted, truth)
    near = (p - d).norm(dim=-1) < 0.25 * torch.minimum(p.norm(dim=-1), d.norm(dim=-1))
    return float(near.double().mean())


def drop_far_depth(
    depth: Tensor, mask: Tensor, factor: float = DROP_MAX_DEPTH, quantile: float = DROP_QUANTILE
) -> Tensor:
    """The mask (H, W) without pixels deeper than ``factor`` times the 1 % quantile of the picture's true depth.

    Raises:
        InputError: "no valid pixels".
    """
    values = depth[mask].double()
    if values.numel() == 0:
        raise InputError("no valid pixels", remedy="check the depth map and its mask")
    # numpy's linear quantile; torch.quantile refuses more than 16 million values.
    ordered = values.sort().values
    where = quantile * (ordered.numel() - 1)
    low = int(where)
    high = min(low + 1, ordered.numel() - 1)
    limit = factor * (ordered[low] + (ordered[high] - ordered[low]) * (where - low))
    return mask & (depth.double() <= limit)


def align_metric_points(
    predicted: Tensor, truth: Tensor, mask: Tensor, resolution: int = ALIGN_RESOLUTION
) -> Tensor:
    """Translation (3,) that brings predicted metric points nearest to the truth.

    Minimises ``sum ||p + t - d||_1 / ||d||`` over ``resolution`` squared points of the masked nearest resize.

    Args:
        predicted: (H, W, 3) camera frame, metres.
        truth: (H, W, 3).
        mask: (H, W) bool.
        resolution: of the reduced map.

    Raises:
        InputError: "no valid pixels".
    """
    if not bool(mask.any()):
        raise InputError("no valid pixels", remedy="check the depth map and its mask")
    small, valid = masked_nearest_resize(
        torch.cat([predicted, truth], dim=-1), mask, (resolution, resolution)
    )
    p, d = small[valid][:, :3], small[valid][:, 3:]
    weights = 1 / d.norm(dim=-1).clamp_min(1e-12)
    return align_points_xyz_shift(p, d, weights)


def point_map_errors(
    points: Tensor,
    depth: Tensor,
    true_points: Tensor,
    mask: Tensor,
    alignment: PointAlignment = "translation",
) -> PointMapErrors:
    """All four errors of one picture.

    Args:
        points: (H, W, 3) predicted points, camera frame, metres.
        depth: (H, W) predicted metric depth.
        true_points: (H, W, 3); the true depth is its z.
        mask: (H, W) bool, pixels to compare (:func:`drop_far_depth` applied by the caller).
        alignment: "translation" as in the tables, or "none".

    Raises:
        InputError: shapes differ, "no valid pixels", or the prediction is not finite inside the mask.
    """
    if points.shape != true_points.shape or depth.shape != mask.shape or mask.shape != points.shape[:-1]:
        raise InputError(
            f"points {tuple(points.shape)}, depth {tuple(depth.shape)}, truth {tuple(true_points.shape)} and mask "
            f"{tuple(mask.shape)} do not fit together",
            remedy="resize the prediction to the size of the truth first",
        )
    p, d = points[mask].double(), true_points[mask].double()
    z = depth[mask].double()
    if d.shape[0] == 0:
        raise InputError("no valid pixels", remedy="check the depth range, the unit and the mask")
    if not bool(torch.isfinite(p).all() and torch.isfinite(z).all()):
        raise InputError(
            "the prediction holds values that are not finite where the truth is known",
            remedy="write the raw point map without a mask applied",
        )
    if alignment == "translation":
        p = p + align_metric_points(points.double(), true_points.double(), mask)
    return PointMapErrors(
        rel_depth(z, d[:, 2]), delta1_depth(z, d[:, 2]), rel_point(p, d), delta1_point(p, d), d.shape[0]
    )


def _pair(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if predicted.shape != truth.shape:
        raise InputError(
            f"prediction {tuple(predicted.shape)} and truth {tuple(truth.shape)} must have one shape"
        )
    if truth.numel() == 0:
        raise InputError("no valid pixels", remedy="check the depth range, the unit and the mask")
    return predicted.double(), truth.double()
