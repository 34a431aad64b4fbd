"""VGGT's training losses as released (specification of the multi-view models, section 3), which SelfEvo uses too.

Targets are in the frame of the first view and divided by the mean norm of the valid points; predictions are not
normalised, so a network has to find that scale itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LIMIT = 100.0
"""Depths, encodings and errors beyond this are cut off; NaN and infinity become 0."""
LEAST_PIXELS = 100
MANY = 1000
SAMPLED = 1_000_000
HUGE = 100_000_000


@dataclass(frozen=True)
class CameraLoss:
    """Parts of the camera loss, () each; ``total`` weights them 1, 1 and 0.5."""

    translation: Tensor
    rotation: Tensor
    focal: Tensor

    @property
    def total(self) -> Tensor:
        """The loss."""
        return self.translation + self.rotation + 0.5 * self.focal


def camera_loss(
    encodings: Sequence[Tensor], target: Tensor, valid: Tensor, *, decay: float = 0.6, squared: bool = False
) -> CameraLoss:
    """Distance of pose encodings (translation, quaternion, fields of view) to the true ones, over all rounds.

    Args:
        encodings: (B, S, 9) after every round of the camera head.
        target: (B, S, 9).
        valid: (B, S, H, W) bool, usable pixels; a sequence counts when its first view has more than 100.
        decay: the last round has weight 1, each earlier one this times the next.
        squared: Euclidean norms of the parts instead of mean absolute differences.

    Returns:
        Zero parts, with gradient, when no sequence counts.
    """
    used = valid[:, 0].flatten(1).sum(1) > LEAST_PIXELS
    parts = [_camera_round(e[used], target[used], squared) for e in encodings]
    if not bool(used.any()):
        zero = 0.0 * torch.stack([_sanitised(e).sum() for e in encodings]).sum()
        return CameraLoss(zero, zero, zero)
    weights = [decay ** (len(parts) - 1 - i) for i in range(len(parts))]
    sums = [sum(w * p[k] for w, p in zip(weights, parts)) / len(parts) for k in range(3)]
    return CameraLoss(*(torch.as_tensor(s) for s in sums))


def _camera_round(found: Tensor, target: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    difference = found - target
    if squared:
        t, q, f = (difference[..., a:b].norm(dim=-1) for a, b in ((0, 3), (3, 7), (7, 9)))
    else:
        t, q, f = (difference[..., a:b].abs() for a, b in ((0, 3), (3, 7), (7, 9)))
    return (
        _sanitised(t).clamp(max=LIMIT).mean(),
        _sanitised(q).mean(),
        _sanitised(f).mean(),
    )


@dataclass(frozen=True)
class DenseLoss:
    """Parts of a depth or point loss, () each; ``total`` is their sum."""

    confidence: Tensor
    regression: Tensor
    gradient: Tensor

    @property
    def total(self) -> Tensor:
        """The loss."""
        return self.confidence + self.regression + self.gradient


def depth_loss(
    depth: Tensor,
    confidence: Tensor,
    target: Tensor,
    valid: Tensor,
    *,
    gamma: float = 1.0,
    alpha: float = 0.2,
    keep: float = 0.98,
    generator: torch.Generator | None = None,
) -> DenseLoss:
    """Depth error weighted by confidence, plain, and of the gradients on four scales.

    Args:
        depth: (B, S, H, W) predicted.
        confidence: (B, S, H, W), above 1.
        target: (B, S, H, W).
        valid: (B, S, H, W) bool.
        gamma: weight of the error times confidence.
        alpha: weight of the logarithm that keeps confidence from vanishing.
        keep: share of the errors that counts; the largest are taken for mistakes of the labels.
        generator: draws the sample of very many pixels.
    """
    target = _sanitised(target)
    return _dense_loss(
        depth[..., None], confidence, target[..., None], valid, (gamma, alpha, keep), generator, _slopes
    )


def point_loss(
    points: Tensor,
    confidence: Tensor,
    target: Tensor,
    valid: Tensor,
    *,
    gamma: float = 1.0,
    alpha: float = 0.2,
    keep: float = 0.98,
    generator: torch.Generator | None = None,
) -> DenseLoss:
    """The same for point maps (B, S, H, W, 3); the gradient part compares normals on three scales."""
    return _dense_loss(
        points, confidence, _sanitised(target), valid, (gamma, alpha, keep), generator, _normals_loss
    )


def _dense_loss(
    found: Tensor,
    confidence: Tensor,
    target: Tensor,
    valid: Tensor,
    settings: tuple[float, float, float],
    generator: torch.Generator | None,
    gradient: object,
) -> DenseLoss:
    gamma, alpha, keep = settings
    if int(valid.sum()) < LEAST_PIXELS:
        zero = 0.0 * (_sanitised(found).sum() + _sanitised(confidence).sum())
        return DenseLoss(zero, zero, zero)
    error = _sanitised((found[valid] - target[valid]).norm(dim=-1))
    c = confidence[valid]
    weighted = gamma * error * c - alpha * c.log()
    assert callable(gradient)
    slope = gradient(found.flatten(0, 1), target.flatten(0, 1), valid.flatten(0, 1))
    return DenseLoss(
        _mean_of_smaller(weighted, keep, generator), _mean_of_smaller(error, keep, generator), slope
    )


def _mean_of_smaller(values: Tensor, keep: float, generator: torch.Generator | None) -> Tensor:
    """Mean without the largest values: nearest-rank quantile, at most LIMIT; few values are all kept."""
    if values.numel() <= MANY:
        return values.mean()
    if values.numel() > HUGE:
        index = torch.randint(values.numel(), (SAMPLED,), generator=generator, device=values.device)
        values = values[index]
    values = values.clamp(max=LIMIT)
    rank = round(keep * (values.numel() - 1)) + 1
    threshold = values.detach().kthvalue(rank).values.clamp(max=LIMIT)
    chosen = values[values < threshold]
    return chosen.mean() if chosen.numel() > MANY else values.mean()


def _slopes(found: Tensor, target: Tensor, valid: Tensor, scales: int = 4) -> Tensor:
    """Difference of horizontal and vertical gradients of (M, H, W, 1) maps, averaged over scales."""
    total = found.new_zeros(())
    for scale in range(scales):
        step = 2**scale
        d = (found - target)[:, ::step, ::step, 0]
        mask = valid[:, ::step, ::step].to(d.dtype)
        count = mask.sum()
        if not bool(count > 0):
            continue
        d = torch.where(mask > 0, d, torch.zeros_like(d))
        across = ((d[:, :, 1:] - d[:, :, :-1]).abs() * (mask[:, :, 1:] * mask[:, :, :-1])).clamp(max=LIMIT)
        down = ((d[:, 1:] - d[:, :-1]).abs() * (mask[:, 1:] * mask[:, :-1])).clamp(max=LIMIT)
        total = total + (across.sum() + down.sum()) / count
    return total / scales


def _normals_loss(found: Tensor, target: Tensor, valid: Tensor, scales: int = 3) -> Tensor:
    """One minus the cosine between normals of (M, H, W, 3) point maps, averaged over scales."""
    total = found.new_zeros(())
    for scale in range(scales):
        step = 2**scale
        a, mask = _four_normals(found[:, ::step, ::step], valid[:, ::step, ::step])
        b, _ = _four_normals(target[:, ::step, ::step], valid[:, ::step, ::step])
        if int(mask.sum()) < 10:
            continue
        cosine = (a[mask] * b[mask]).sum(-1).clamp(-1 + 1e-8, 1 - 1e-8)
        total = total + (1 - cosine).mean()
    return total / scales


def _four_normals(points: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """(4, M, H, W, 3) unit normals from the four pairs of neighbours, and where all three pixels are valid."""
    padded = torch.nn.functional.pad(points, (0, 0, 1, 1, 1, 1))
    known = torch.nn.functional.pad(valid, (1, 1, 1, 1))
    centre = padded[:, 1:-1, 1:-1]
    sides = {
        "up": (slice(None, -2), slice(1, -1)),
        "left": (slice(1, -1), slice(None, -2)),
        "down": (slice(2, None), slice(1, -1)),
        "right": (slice(1, -1), slice(2, None)),
    }
    arms = {name: padded[:, y, x] - centre for name, (y, x) in sides.items()}
    there = {name: known[:, y, x] for name, (y, x) in sides.items()}
    pairs = (("up", "left"), ("left", "down"), ("down", "right"), ("right", "up"))
    normals = torch.stack([torch.linalg.cross(arms[a], arms[b]) for a, b in pairs])
    masks = torch.stack([there[a] & there[b] & valid for a, b in pairs])
    return torch.nn.functional.normalize(normals, dim=-1, eps=1e-8), masks


def _sanitised(x: Tensor) -> Tensor:
    """NaN and infinity to 0, the rest to [-LIMIT, LIMIT]."""
    return torch.where(torch.isfinite(x), x, torch.zeros_like(x)).clamp(-LIMIT, LIMIT)
