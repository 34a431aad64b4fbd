"""Known geometry, checked against the prediction that it belongs to, with every unknown spelt out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Prediction
from relief3d.core.errors import InputError
from relief3d.models.multiview.interface import Known


@dataclass(frozen=True)
class Given:
    """Known geometry with its flags spelt out; flags, K and poses are on the CPU, depth is where it was.

    Attributes:
        K: (B, N, 3, 3) float64, the identity where unknown.
        has_K: (B, N) bool.
        poses: (B, N, 4, 4) float64 world_from_cam, the identity where unknown.
        has_pose: (B, N) bool.
        depth: (B, N, H, W) z-depth, 0 where unknown, or None.
        has_depth: (B, N) bool, views with any known depth.
        metric: the given lengths are metres.
    """

    K: Tensor
    has_K: Tensor
    poses: Tensor
    has_pose: Tensor
    depth: Tensor | None
    has_depth: Tensor
    metric: bool


def check_known(prediction: Prediction, known: Known) -> Given:
    """What is known, with flags; matrices that are not finite count as unknown.

    Raises:
        InputError: shapes that do not fit the prediction, poses that are not rigid, focal lengths that are not
            positive, or a prediction with nothing in it.
    """
    shape = _shape(prediction)
    count = shape[:2]
    eye3, eye4 = (torch.eye(n, dtype=torch.float64).expand(*count, n, n) for n in (3, 4))
    K, has_K = _matrices(known.K, known.has_K, eye3, "K")
    poses, has_pose = _matrices(known.world_from_cam, known.has_pose, eye4, "world_from_cam")
    if bool((has_K & ((K[..., 0, 0] <= 0) | (K[..., 1, 1] <= 0))).any()):
        raise InputError(
            "given intrinsics must have positive focal lengths",
            remedy="mark views without in Known.has_K",
        )
    R = poses[..., :3, :3]
    off = (R @ R.mT - eye3).abs().amax((-1, -2))
    if bool((has_pose & ((off > 1e-3) | (torch.linalg.det(R) < 0))).any()):
        raise InputError("a given pose is not a rigid transform", remedy="give rotations with determinant +1")
    depth, has_depth = known.depth, torch.zeros(count, dtype=torch.bool)
    if depth is not None:
        if len(shape) == 4 and tuple(depth.shape) != shape:
            raise InputError(f"given depth {tuple(depth.shape)} must have the prediction's shape {shape}")
        depth = torch.where(torch.isfinite(depth) & (depth > 0), depth, torch.zeros_like(depth)).detach()
        has_depth = (depth > 0).flatten(2).any(2).cpu()
    return Given(K, has_K, poses, has_pose, depth, has_depth, known.metric)


def _shape(prediction: Prediction) -> tuple[int, ...]:
    """(B, N, H, W), or (B, N) of a prediction without maps."""
    for value, axes in (
        (prediction.depth, 4),
        (prediction.cam_points, 4),
        (prediction.world_points, 4),
        (prediction.world_from_cam, 2),
        (prediction.K, 2),
    ):
        if value is not None:
            return tuple(value.shape[:axes])
    raise InputError("an empty prediction cannot be aligned")


def _matrices(values: Tensor | None, has: Tensor | None, eye: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Given matrices on the CPU in float64, the identity where unknown, and (B, N) flags."""
    if values is None:
        return eye, torch.zeros(eye.shape[:2], dtype=torch.bool)
    if values.shape != eye.shape or (has is not None and has.shape != eye.shape[:2]):
        raise InputError(
            f"given {name} of shape {tuple(values.shape)} does not fit a prediction of {eye.shape[0]} sets "
            f"of {eye.shape[1]} views"
        )
    values = values.detach().cpu().double()
    flags = torch.isfinite(values).all(-1).all(-1)
    if has is not None:
        flags = flags & has.cpu().bool()
    return torch.where(flags[..., None, None], values, eye), flags
