"""pi3's training losses (official training branch; specification of the multi-view models, section 2.5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.geometry.alignment import weighted_median
from relief3d.geometry.transforms import invert_rigid
from relief3d.losses.angles import corner_normal_error

SCALE_SAMPLES = 4096
LEAST_DEPTH_SHARE = 0.1
TRANSLATION_WEIGHT = 100.0
CAMERA_WEIGHT = 0.1
HUBER_DELTA = 0.1
CONFIDENT_BELOW = 0.02
CONFIDENCE_WEIGHT = 0.05
EDGE_RATIO = 0.03


@dataclass(frozen=True)
class Pi3Targets:
    """Truth in the frame of the first view, divided by the mean norm of its valid points.

    Attributes:
        local_points: (B, N, H, W, 3) in each camera.
        world_from_cam: (B, N, 4, 4).
        valid: (B, N, H, W) bool.
        norm: (B,) lengths were divided by this.
    """

    local_points: Tensor
    world_from_cam: Tensor
    valid: Tensor
    norm: Tensor


def pi3_targets(world_points: Tensor, world_from_cam: Tensor, valid: Tensor) -> Pi3Targets:
    """Bring true points (B, N, H, W, 3) and poses (B, N, 4, 4) to the frame and scale of training.

    Coordinates that are not finite, as some data have where nothing is known, become 0.
    """
    world_points = torch.nan_to_num(world_points, 0.0, 0.0, 0.0)
    first = invert_rigid(world_from_cam[:, :1])
    poses = first @ world_from_cam
    points = _moved(first, world_points)
    count = valid.flatten(1).sum(1).clamp_min(1)
    norm = (points.norm(dim=-1) * valid).flatten(1).sum(1) / count
    norm = torch.where(norm > 0, norm, torch.ones_like(norm))
    points = points / norm[:, None, None, None, None]
    poses = torch.cat([poses[..., :3], _scaled_last(poses, 1 / norm)], -1)
    return Pi3Targets(_moved(invert_rigid(poses), points), poses, valid, norm)


def normalised_prediction(
    local_points: Tensor, world_from_cam: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Local points and poses divided by the mean norm of the valid local points; gradients flow through it."""
    count = valid.flatten(1).sum(1).clamp_min(1)
    length = torch.where(valid, local_points.norm(dim=-1), torch.zeros_like(local_points[..., 0]))
    norm = length.flatten(1).sum(1) / count
    norm = torch.where(norm > 0, norm, torch.ones_like(norm))
    poses = torch.cat([world_from_cam[..., :3], _scaled_last(world_from_cam, 1 / norm)], -1)
    return local_points / norm[:, None, None, None, None], poses


@dataclass(frozen=True)
class Pi3Loss:
    """Parts of the loss, () each, and the scale of every sequence.

    Attributes:
        points: weighted distance of the scaled local points.
        normals: angle between normals; 0 when not asked for.
        rotation: mean angle of relative rotations, radians.
        translation: Huber of relative translations.
        scale: (B,) that brings the prediction to the truth; carries no gradient.
    """

    points: Tensor
    normals: Tensor
    rotation: Tensor
    translation: Tensor
    scale: Tensor

    @property
    def camera(self) -> Tensor:
        """100 translation + rotation."""
        return TRANSLATION_WEIGHT * self.translation + self.rotation

    @property
    def total(self) -> Tensor:
        """Points + normals + 0.1 camera."""
        return self.points + self.normals + CAMERA_WEIGHT * self.camera


def pi3_loss(
    local_points: Tensor, world_from_cam: Tensor, targets: Pi3Targets, *, with_normals: bool = False
) -> Pi3Loss:
    """Loss of a prediction that is not yet normalised.

    Args:
        local_points: (B, N, H, W, 3).
        world_from_cam: (B, N, 4, 4).
        targets: see :func:`pi3_targets`.
        with_normals: for data whose depth is good enough to have normals.
    """
    valid = targets.valid
    points, poses = normalised_prediction(local_points, world_from_cam, valid)
    weight = point_weight(targets)
    scale = align_scale(points, targets.local_points, weight, valid)
    scaled = points * scale[:, None, None, None, None]
    distance = (scaled - targets.local_points)[valid].abs() * weight[valid][:, None]
    zero = 0.0 * scaled.sum()
    loss = distance.mean() if distance.numel() else zero
    normals = normal_loss(scaled, targets.local_points, valid) if with_normals else zero
    moved = torch.cat([poses[..., :3], _scaled_last(poses, scale)], -1)
    rotation, translation = camera_loss(moved, targets.world_from_cam)
    return Pi3Loss(loss, normals, rotation, translation, scale)


def point_weight(targets: Pi3Targets) -> Tensor:
    """(B, N, H, W): one over the depth, which is taken to be at least a tenth of the view's mean."""
    z = targets.local_points[..., 2]
    count = targets.valid.flatten(2).sum(2).clamp_min(1)
    mean = (z * targets.valid).flatten(2).sum(2) / count
    return 1 / (torch.maximum(z, LEAST_DEPTH_SHARE * mean[..., None, None]) + 1e-6)


@torch.no_grad()
def align_scale(points: Tensor, target: Tensor, weight: Tensor, valid: Tensor) -> Tensor:
    """(B,) exact minimiser of the weighted absolute difference over coordinates of 4,096 valid pixels per sequence.

    A negative minimiser is turned around, as the published code does. Sequences without valid pixels get 1.
    """
    out = []
    for p, g, w, v in zip(points, target, weight, valid):
        p, g, w = (x[v] for x in (p, g, w))
        if not len(p):
            out.append(points.new_ones(()))
            continue
        index = (torch.arange(SCALE_SAMPLES, device=p.device) * (len(p) / SCALE_SAMPLES)).long()
        p, g, w = p[index], g[index], w[index][:, None].expand(-1, 3)
        p, g = torch.where(p < 0, -p, p).flatten(), torch.where(p < 0, -g, g).flatten()
        ratio = g / p.clamp_min(1e-7)
        out.append(weighted_median(ratio, w.flatten() * p).abs())
    return torch.stack(out)


def camera_loss(poses: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation angle and Huber distance of the relative poses of all ordered pairs of (B, N, 4, 4) cameras."""
    views = poses.shape[1]
    if views < 2:
        zero = 0.0 * poses.sum()
        return zero, zero
    a, b = _relative(poses), _relative(target)
    other = ~torch.eye(views, dtype=torch.bool, device=poses.device)
    a, b = a[:, other], b[:, other]
    trace = (a[..., :3, :3] * b[..., :3, :3]).sum((-1, -2))
    angle = torch.arccos(((trace - 1) / 2).clamp(-1 + 1e-6, 1 - 1e-6))
    huber = torch.nn.functional.huber_loss(a[..., :3, 3], b[..., :3, 3], delta=HUBER_DELTA)
    return angle.mean(), huber


def normal_loss(points: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Smoothed angle between the normals of the four triangles around every 2x2 quad, away from depth edges."""
    # Pixels without truth take part in finding edges, as in the published code.
    usable = valid & ~depth_edges(target[..., 2])
    return corner_normal_error(points, target, usable).mean() / (4 * max(points.shape[2:4]))


def depth_edges(depth: Tensor, ratio: float = EDGE_RATIO) -> Tensor:
    """(..., H, W) bool: depth varies by more than ``ratio`` of itself among the pixels around."""
    flat = depth.flatten(0, -3)[:, None]
    highest, lowest = (s * torch.nn.functional.max_pool2d(s * flat, 3, 1, 1) for s in (1, -1))
    edge = torch.nan_to_num((highest - lowest) / flat) > ratio
    return edge[:, 0].unflatten(0, depth.shape[:-2])


def confidence_loss(
    logits: Tensor, points: Tensor, targets: Pi3Targets, scale: Tensor, sky: Tensor | None = None
) -> Tensor:
    """Third stage: is the weighted error of a pixel below 0.02? Sky should say no.

    Args:
        logits: (B, N, H, W).
        points: (B, N, H, W, 3) normalised prediction.
        targets: truth.
        scale: (B,).
        sky: (B, N, H, W) bool, or None.
    """
    valid = targets.valid
    error = (points * scale[:, None, None, None, None] - targets.local_points).abs().mean(-1)
    label = (error * point_weight(targets) < CONFIDENT_BELOW).to(logits.dtype)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    loss = bce(logits[valid], label[valid].detach()) if bool(valid.any()) else 0.0 * logits.sum()
    if sky is not None and bool((sky & ~valid).any()):
        away = logits[sky & ~valid]
        loss = loss + bce(away, torch.zeros_like(away))
    return CONFIDENCE_WEIGHT * loss


def _relative(poses: Tensor) -> Tensor:
    """(B, N, N, 4, 4): inverse of pose i times pose j."""
    return invert_rigid(poses)[:, :, None] @ poses[:, None]


def _moved(poses: Tensor, points: Tensor) -> Tensor:
    return points @ poses[..., None, :3, :3].mT + poses[..., None, None, :3, 3]


def _scaled_last(poses: Tensor, factor: Tensor) -> Tensor:
    """(..., 4, 1) last column with its translation times a factor per sequence."""
    scale = torch.cat([factor[:, None].expand(-1, 3), torch.ones_like(factor)[:, None]], 1)
    return poses[..., 3:] * scale[:, None, :, None]
