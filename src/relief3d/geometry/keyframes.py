"""Keyframe choice from poses: accept a frame when it has moved or turned enough (DeepVideoMVS rule)."""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.transforms import invert_rigid

KEYFRAME_DISTANCE = 0.1
TYPICAL_INDOOR_DEPTH = 2.0


def pose_distance(
    world_from_a: Tensor, world_from_b: Tensor, median_depth: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """How far two cameras are apart, in the mixed measure of DeepVideoMVS.

    Args:
        world_from_a: (*, 4, 4) camera pose.
        world_from_b: (*, 4, 4) camera pose.
        median_depth: median scene depth in the unit of the poses. When given, translations are scaled by
            2 / median_depth, so that thresholds meant for metres hold for poses of unknown scale.

    Returns:
        combined, translation and rotation measures, (*,) each. The rotation measure is
        sqrt(2 (1 - min(3, trace R) / 3)); 0.1 is about 7 degrees.
    """
    relative = invert_rigid(world_from_a) @ world_from_b
    trace = relative[..., :3, :3].diagonal(dim1=-2, dim2=-1).sum(-1)
    rotation = (2 * (1 - trace.clamp(max=3) / 3)).clamp_min(0).sqrt()
    translation = relative[..., :3, 3].norm(dim=-1)
    if median_depth is not None:
        translation = translation * (TYPICAL_INDOOR_DEPTH / median_depth)
    return (translation.square() + rotation.square()).sqrt(), translation, rotation


def neighbour_penalty(translation: Tensor, rotation: Tensor) -> Tensor:
    """Penalty of a view as a stereo neighbour (smaller is better) from the measures of :func:`pose_distance`; (*,)."""
    short = translation < 0.15
    return rotation.square() + (translation - 0.15).square() * torch.where(short, 5.0, 1.0).to(
        translation.dtype
    )


def select_keyframes(
    world_from_cam: Tensor,
    threshold: float = KEYFRAME_DISTANCE,
    median_depth: float | None = None,
    max_keyframes: int | None = None,
    max_lost: int = 30,
) -> list[list[int]]:
    """Indices of keyframes, in segments separated by long losses of tracking.

    A frame is accepted when its combined distance to the last accepted one reaches ``threshold``. The first
    frame with a pose is accepted; after more than ``max_lost`` successive frames without a pose a new segment
    starts.

    Args:
        world_from_cam: (F, 4, 4) poses in time order, NaN or infinite where tracking failed.
        threshold: combined distance.
        median_depth: see :func:`pose_distance`.
        max_keyframes: raise the threshold by factors of 1.15 until at most so many remain.
        max_lost: frames without a pose that may be bridged.

    Returns:
        A list of segments, each a list of frame indices; empty when no frame has a pose.

    Raises:
        InputError: for a threshold that is not positive or ``max_keyframes`` below 1.
    """
    if threshold <= 0 or (max_keyframes is not None and max_keyframes < 1):
        raise InputError("keyframe threshold must be positive and max_keyframes at least 1")
    valid = torch.isfinite(world_from_cam).flatten(1).all(1).tolist()
    while True:
        segments = _one_pass(world_from_cam, valid, threshold, median_depth, max_lost)
        count = sum(len(segment) for segment in segments)
        # Every segment keeps its first frame, so the threshold cannot push the count below their number.
        if max_keyframes is None or count <= max(max_keyframes, len(segments)):
            return segments
        threshold *= 1.15


def _one_pass(
    poses: Tensor, valid: list[bool], threshold: float, median_depth: float | None, max_lost: int
) -> list[list[int]]:
    segments: list[list[int]] = []
    lost = 0
    for index, known in enumerate(valid):
        if not known:
            lost += 1
            continue
        if not segments or lost > max_lost:
            segments.append([index])
        else:
            combined, _, _ = pose_distance(poses[segments[-1][-1]], poses[index], median_depth)
            if float(combined) >= threshold:
                segments[-1].append(index)
        lost = 0
    return segments
