"""Known geometry, checked against the prediction that it belongs to, with every unknown spelt out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relief3d.core.contract import Prediction
from relief3d.core.errors import InputError

if TYPE_CHECKING:
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


def check_shapes(
    views: tuple[int, int],
    values: Mapping[str, tuple[Tensor | None, tuple[int, ...]]],
    flags: Mapping[str, Tensor | None],
) -> None:
    """Refuse known geometry of other sets, views or pixels than the pictures'.

    Args:
        views: (B, N) of the pictures.
        values: by name, a tensor and the axes that it must have after (B, N); absent ones are None.
        flags: by name, (B, N) flags.

    Raises:
        InputError: another shape, or values that are not floating-point.
    """
    expected = {**values, **{k: (v, ()) for k, v in flags.items()}}
    for name, (value, axes) in expected.items():
        if value is None:
            continue
        if tuple(value.shape) != (*views, *axes):
            raise InputError(
                f"given {name} of shape {tuple(value.shape)} does not fit a prediction of {views[0]} sets of "
                f"{views[1]} views",
                remedy=f"give {(*views, *axes)}, with flags for what is unknown",
            )
        if name in values and not value.is_floating_point():
            raise InputError(
                f"given {name} must be floating-point, not {value.dtype}", remedy="convert it with .float()"
            )


def known_depth(depth: Tensor) -> Tensor:
    """Depth with 0 wherever it is not a positive finite number."""
    return torch.where(torch.isfinite(depth) & (depth > 0), depth, torch.zeros_like(depth))


def finite_matrices(values: Tensor) -> Tensor:
    """(B, N) bool: which of (B, N, k, k) have finite entries only."""
    return torch.isfinite(values).flatten(2).all(2)


def check_known(prediction: Prediction, known: Known) -> Given:
    """What is known, with flags; matrices that are not finite count as unknown.

    Raises:
        InputError: shapes that do not fit the prediction, poses that are not rigid, focal lengths that are not
            positive, or a prediction with nothing in it.
    """
    shape = _shape(prediction)
    count = (shape[0], shape[1])
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
        check_shapes(count, {"depth": (depth, tuple(depth.shape[2:]))}, {})
        depth = known_depth(depth).detach()
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
    views = (eye.shape[0], eye.shape[1])
    check_shapes(views, {name: (values, tuple(eye.shape[2:]))}, {f"flags of {name}": has})
    values = values.detach().cpu().double()
    flags = finite_matrices(values)
    if has is not None:
        flags = flags & has.cpu().bool()
    return torch.where(flags[..., None, None], values, eye), flags
