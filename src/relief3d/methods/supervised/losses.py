"""What the networks are trained with: the published losses, on whatever the network says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from relief3d.core.contract import Batch
from relief3d.core.errors import InputError
from relief3d.geometry.projection import depth_to_points, points_to_world
from relief3d.geometry.transforms import invert_rigid
from relief3d.losses import pi3, vggt
from relief3d.methods.supervised.config import LossConfig
from relief3d.models.multiview.pi3 import Pi3
from relief3d.models.multiview.pose_encoding import encode_cameras
from relief3d.models.multiview.reliev3r import Reliev3rNet, Reliev3rOutput
from relief3d.models.multiview.vggt import Vggt, VggtOutput
from relief3d.train.task import LossReport


def targets_of(batch: Batch) -> pi3.Pi3Targets:
    """Truth in the frame of the first view, divided by the mean norm of its points: the frame of both losses.

    Raises:
        InputError: the batch lacks depth, intrinsics or poses.
    """
    if batch.depth is None or batch.depth_valid is None or batch.K is None or batch.world_from_cam is None:
        raise InputError("supervised training needs depth, intrinsics and poses of every view")
    world = points_to_world(depth_to_points(batch.depth, batch.K), batch.world_from_cam)
    return pi3.pi3_targets(world, batch.world_from_cam, batch.depth_valid)


def forward(network: nn.Module, batch: Batch) -> Any:
    """What a network, possibly wrapped, says of a batch: all heads that are trained, all views at once.

    Raises:
        InputError: there is no supervised loss for this network.
    """
    plain = getattr(network, "module", network)
    if isinstance(plain, Vggt):
        heads = tuple(h for h in plain.config.heads if h != "tracks")
        return network(batch.images, heads=heads, chunk=None)
    if isinstance(plain, Reliev3rNet):
        return network(batch.images, batch.K, chunk=None)
    if isinstance(plain, Pi3):
        return network(batch.images, chunk=None)
    raise InputError(f"there is no supervised loss for {type(plain).__name__}")


def supervised_loss(
    network: nn.Module, batch: Batch, config: LossConfig, generator: torch.Generator | None
) -> LossReport:
    """Loss of a network, possibly wrapped, on a batch with truth.

    The forward pass runs in the precision of the caller; the loss always in float32, because angles and scales do not
    survive bfloat16.

    Args:
        network: a pi3, VGGT or Reliev3R network.
        batch: on the device.
        config: weights.
        generator: for losses that draw samples of very many pixels.

    Raises:
        InputError: another network.
    """
    out = forward(network, batch)
    with torch.autocast(batch.images.device.type, enabled=False):
        if isinstance(out, VggtOutput):
            return _vggt(out, batch, config, generator)
        local, poses, logits = out.local_points.float(), out.world_from_cam.float(), out.confidence.float()
        if isinstance(out, Reliev3rOutput):
            # This network's confidence is 2 sigmoid(logit).
            logits = (logits / 2).clamp(1e-6, 1 - 1e-6).logit()
        return _pi3(local, poses, logits, batch, config)


def _pi3(local: Tensor, poses: Tensor, logits: Tensor, batch: Batch, config: LossConfig) -> LossReport:
    targets = targets_of(batch)
    found = pi3.pi3_loss(local, poses, targets, with_normals=config.normals)
    total = found.total
    parts = {
        "points": found.points,
        "normals": found.normals,
        "rotation": found.rotation,
        "translation": found.translation,
    }
    if config.confidence > 0:
        with torch.no_grad():
            points, _ = pi3.normalised_prediction(local, poses, targets.valid)
        parts["confidence"] = pi3.confidence_loss(logits, points, targets, found.scale, ~targets.valid)
        total = total + config.confidence * parts["confidence"]
    return LossReport(total, parts)


def _vggt(out: VggtOutput, batch: Batch, config: LossConfig, generator: torch.Generator | None) -> LossReport:
    assert out.pose_encodings is not None
    assert out.depth is not None
    assert out.depth_confidence is not None
    assert batch.K is not None
    targets = targets_of(batch)
    size = (int(batch.images.shape[-2]), int(batch.images.shape[-1]))
    goal = encode_cameras(invert_rigid(targets.world_from_cam), batch.K, size)
    camera = vggt.camera_loss([e.float() for e in out.pose_encodings], goal, targets.valid)
    depth = vggt.depth_loss(
        out.depth.float(),
        out.depth_confidence.float(),
        targets.local_points[..., 2],
        targets.valid,
        generator=generator,
    )
    total = config.camera * camera.total + depth.total
    parts = {
        "camera_translation": camera.translation,
        "camera_rotation": camera.rotation,
        "camera_focal": camera.focal,
        "depth": depth.regression,
        "depth_confidence": depth.confidence,
        "depth_gradient": depth.gradient,
    }
    if out.points is not None and out.points_confidence is not None:
        world = points_to_world(targets.local_points, targets.world_from_cam)
        points = vggt.point_loss(
            out.points.float(), out.points_confidence.float(), world, targets.valid, generator=generator
        )
        total = total + points.total
        parts |= {
            "points": points.regression,
            "points_confidence": points.confidence,
            "points_normals": points.gradient,
        }
    return LossReport(total, parts)
