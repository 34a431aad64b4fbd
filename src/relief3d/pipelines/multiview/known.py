"""What the user knows about the views, in the network's pixels, and the prediction brought into that frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Depth, Prediction, View
from relief3d.geometry.transforms import invert_rigid
from relief3d.models.multiview.interface import Known, MultiViewModel
from relief3d.models.multiview.known_geometry import align_to_known
from relief3d.pipelines.multiview.pictures import Framing
from relief3d.pipelines.multiview.predict import Predicted

MOST_PIXELS = 1 << 22
"""Pixels of depth that are compared; maps are thinned evenly to stay below."""


@dataclass(frozen=True)
class Given:
    """Which views come with what.

    Attributes:
        has_K: (N,) intrinsics that are trusted.
        has_pose: (N,) poses.
        has_depth: (N,) depth maps.
    """

    has_K: Tensor
    has_pose: Tensor
    has_depth: Tensor

    @property
    def any(self) -> bool:
        """Whether anything is known."""
        return bool(self.has_K.any() or self.has_pose.any() or self.has_depth.any())


def what_is_given(views: Sequence[View], needs_K: bool = False) -> Given:
    """Intrinsics count when they were given; with ``needs_K`` also those from EXIF or a guess."""

    def flags(values: list[bool]) -> Tensor:
        return torch.tensor(values, dtype=torch.bool)

    return Given(
        flags([v.camera.K is not None and (needs_K or v.camera.K_source == "given") for v in views]),
        flags([v.camera.world_from_cam is not None for v in views]),
        flags([v.depth is not None for v in views]),
    )


def network_inputs(
    model: MultiViewModel, views: Sequence[View], framing: Framing, given: Given, *, metric: bool
) -> Callable[[Sequence[int]], Known] | None:
    """The part of what is known that the network takes itself; None when that is nothing.

    Poses are relative to the first known one of a pass, since coordinates far from the origin (UTM) would lose their
    fine part in single precision.

    Returns:
        From numbers of views to what is known about them, (1, n, ...). Depth is read at every call and not kept, so
        that memory follows the views of one pass.
    """
    takes = model.takes
    K = "K" in takes and bool(given.has_K.any())
    pose = "world_from_cam" in takes and bool(given.has_pose.any())
    depth = "depth" in takes and bool(given.has_depth.any())
    if not (K or pose or depth):
        return None
    metres = metric or (depth and _depth_is_metric(views, given))

    def about(numbers: Sequence[int]) -> Known:
        known = known_geometry(views, framing, given, metric=metres, with_depth=depth, numbers=numbers)
        assert known.world_from_cam is not None and known.has_pose is not None
        return replace(
            known,
            K=known.K if K else None,
            has_K=known.has_K if K else None,
            world_from_cam=_near_first(known.world_from_cam, known.has_pose[0]).float() if pose else None,
            has_pose=known.has_pose if pose else None,
        )

    return about


def _depth_is_metric(views: Sequence[View], given: Given) -> bool:
    """Whether given depth says what a metre is, as in :func:`known_geometry`; one map is in memory at a time."""
    if bool(given.has_pose.any()):
        return False
    maps = (view.load_depth() for view, has in zip(views, given.has_depth.tolist()) if has)
    return any(found is not None and found.metric for found in maps)


def _near_first(poses: Tensor, has: Tensor) -> Tensor:
    """(1, N, 4, 4) float64 poses in the frame of the first known one; unknown ones stay as they are."""
    first = poses[:, int(has.int().argmax())][:, None]
    return torch.where(has[None, :, None, None], invert_rigid(first) @ poses, poses)


def known_geometry(
    views: Sequence[View],
    framing: Framing,
    given: Given,
    *,
    metric: bool,
    with_depth: bool = True,
    stride: int = 1,
    numbers: Sequence[int] | None = None,
) -> Known:
    """Everything known about some views (None: all), in the network's pixels; depth thinned by ``stride``."""
    asked = list(range(len(views))) if numbers is None else list(numbers)
    count = len(asked)
    K = torch.eye(3, dtype=torch.float32).repeat(count, 1, 1)
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    height, width = -(-framing.height // stride), -(-framing.width // stride)
    depth = torch.zeros(count, height, width) if with_depth and bool(given.has_depth.any()) else None
    unit = metric
    for row, i in enumerate(asked):
        view = views[i]
        if given.has_K[i] and view.camera.K is not None:
            K[row] = framing.intrinsics(i, view.camera.K).float()
        if given.has_pose[i] and view.camera.world_from_cam is not None:
            poses[row] = view.camera.world_from_cam
        if depth is not None and given.has_depth[i] and (found := view.load_depth()) is not None:
            depth[row] = framing.to_network(i, _at_picture_size(found, view))[::stride, ::stride]
            unit = unit or (found.metric and not bool(given.has_pose.any()))
    return Known(
        K=K[None],
        world_from_cam=poses[None],
        depth=None if depth is None else depth[None],
        has_K=given.has_K[asked][None],
        has_pose=given.has_pose[asked][None],
        metric=unit,
    )


def _at_picture_size(depth: Depth, view: View) -> Tensor:
    """Depth values at the picture's size, nearest pixel, 0 where unknown."""
    values = torch.where(depth.valid, depth.values, torch.zeros_like(depth.values))
    size = (view.camera.height, view.camera.width)
    if tuple(values.shape) == size:
        return values
    return torch.nn.functional.interpolate(values[None, None], size, mode="nearest-exact")[0, 0]


def in_known_frame(
    predicted: Predicted, views: Sequence[View], framing: Framing, given: Given, *, metric: bool
) -> tuple[Predicted, dict[str, Any], list[str]]:
    """The prediction in the frame and scale of what is known; see :func:`align_to_known`.

    Returns:
        The prediction with new poses, intrinsics and factors; facts for ``scene.json``; warnings.
    """
    count = len(views)
    stride = 1
    while count * (framing.height // stride) * (framing.width // stride) > MOST_PIXELS:
        stride += 1
    maps, trust = [], []
    for index in range(count):
        depth, confidence = predicted.store.read(index)
        maps.append(depth[::stride, ::stride] * float(predicted.factor[index]))
        trust.append(confidence[::stride, ::stride])
    before = Prediction(
        depth=torch.stack(maps)[None],
        depth_confidence=torch.stack(trust)[None],
        world_from_cam=predicted.world_from_cam[None],
        K=predicted.K[None],
        metric=predicted.metric,
    )
    known = known_geometry(views, framing, given, metric=metric, stride=stride)
    after, report = align_to_known(before, known)
    assert after.world_from_cam is not None and after.K is not None
    poses, K = after.world_from_cam[0].double(), after.K[0].double()
    for index, view in enumerate(views):
        # Exactly as given, not through the single precision of a network.
        if given.has_pose[index] and view.camera.world_from_cam is not None:
            poses[index] = view.camera.world_from_cam
        if given.has_K[index] and view.camera.K is not None:
            K[index] = framing.intrinsics(index, view.camera.K)
    found = report.sets[0]
    moved = replace(
        predicted, world_from_cam=poses, K=K, factor=predicted.factor * found.scale, metric=after.metric
    )
    return moved, report.as_dict()["sets"][0], list(report.warnings)
