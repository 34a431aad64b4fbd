"""Overlap of boxes in space: axis-aligned, and oriented by exact clipping of the convex polytope.

Specification objects.md 6.2: the published 3D IoU is that of the axis-aligned boxes of the posed point sets; oriented
boxes are this project's additional figure.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.errors import InputError

_FACE_CORNERS = 4
_CAPACITY = 10
"""A quadrilateral cut by six planes has at most ten corners."""
_ON_PLANE = 1e-12


@dataclass(frozen=True)
class OrientedBox:
    """Boxes of any orientation; leading dimensions ``*`` of all fields agree.

    Attributes:
        centre: (*, 3).
        half: (*, 3) half sizes along the axes, not negative.
        axes: (*, 3, 3) rotation or reflection whose columns are the box's axes.
    """

    centre: Tensor
    half: Tensor
    axes: Tensor

    @property
    def volume(self) -> Tensor:
        """(*,) cubic unit of the sizes."""
        return 8 * self.half.prod(-1)

    @property
    def corners(self) -> Tensor:
        """(*, 8, 3)."""
        signs = torch.cartesian_prod(*([torch.tensor([-1.0, 1.0], dtype=self.half.dtype)] * 3))
        return self.centre[..., None, :] + (signs * self.half[..., None, :]) @ self.axes.mT


def bounds_of(points: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper corner (*, 3) of the axis-aligned boxes of (*, N, 3) points.

    Raises:
        InputError: no points, or points that are not finite.
    """
    if points.shape[-2] == 0 or points.shape[-1] != 3:
        raise InputError(f"a box needs (N, 3) points, got {tuple(points.shape)}")
    if not bool(torch.isfinite(points).all()):
        raise InputError("the points of a box must be finite")
    return points.amin(-2), points.amax(-2)


def aabb_iou(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """Intersection over union of axis-aligned boxes.

    Args:
        a: lower and upper corners (*, 3).
        b: the same; leading dimensions broadcast.

    Returns:
        (*,) float64 in [0, 1]; 0 where the union has no volume.

    Raises:
        InputError: a lower corner above its upper one.
    """
    (a_low, a_high), (b_low, b_high) = ((low.double(), high.double()) for low, high in (a, b))
    if bool((a_low > a_high).any() or (b_low > b_high).any()):
        raise InputError("a box has its lower corner above its upper one")
    overlap = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp_min(0).prod(-1)
    union = (a_high - a_low).prod(-1) + (b_high - b_low).prod(-1) - overlap
    return torch.where(union > 0, overlap / torch.where(union > 0, union, torch.ones_like(union)), 0.0)


def posed_box(low: Tensor, high: Tensor, transform: Tensor) -> OrientedBox:
    """The oriented box that a pose makes of an axis-aligned one.

    Args:
        low: (*, 3) in the object's frame.
        high: (*, 3).
        transform: (*, 4, 4) with orthogonal columns (rotation or reflection times a scale per axis).

    Raises:
        InputError: the columns are not orthogonal or vanish.
    """
    linear, centre = transform[..., :3, :3].double(), 0.5 * (low + high).double()
    scale = linear.norm(dim=-2)
    if not bool((scale > 0).all()):
        raise InputError("a pose has no extent along one of its axes")
    axes = linear / scale[..., None, :]
    gram = axes.mT @ axes
    if not torch.allclose(gram, torch.eye(3, dtype=gram.dtype).expand_as(gram), atol=1e-4):
        raise InputError("a pose shears its object", remedy="give a rotation times a scale per object axis")
    moved = (linear @ centre[..., None])[..., 0] + transform[..., :3, 3].double()
    return OrientedBox(moved, 0.5 * (high - low).double() * scale, axes)


def obb_intersection(a: OrientedBox, b: OrientedBox) -> Tensor:
    """Volume common to pairs of oriented boxes, exact up to rounding.

    The surface of the intersection is made of the faces of each box cut by the other; its volume follows from the
    divergence theorem. Faces that both boxes share are counted once.

    Args:
        a: P boxes, fields (P, 3), (P, 3), (P, 3, 3).
        b: P boxes.

    Returns:
        (P,) float64.
    """
    # Around the mean of both centres and with a common size of one: the tolerance is relative.
    origin = 0.5 * (a.centre + b.centre).double()
    size = torch.maximum(a.half.amax(-1), b.half.amax(-1)).double().clamp_min(torch.finfo(torch.float64).tiny)
    first, second = _shifted(a, origin, size), _shifted(b, origin, size)
    volume = _cut_faces(first, second, keep_shared=True) + _cut_faces(second, first, keep_shared=False)
    return volume.clamp_min(0) * size**3


def obb_iou(a: OrientedBox, b: OrientedBox) -> Tensor:
    """Intersection over union of pairs of oriented boxes.

    Args:
        a: boxes with leading dimensions ``*``.
        b: the same.

    Returns:
        (*,) float64 in [0, 1]; 0 where the union has no volume.
    """
    lead = a.half.shape[:-1]
    overlap = obb_intersection(_flat(a), _flat(b)).reshape(lead)
    union = a.volume.double() + b.volume.double() - overlap
    ratio = overlap / torch.where(union > 0, union, torch.ones_like(union))
    return torch.where(union > 0, ratio, 0.0).clamp(0, 1)


def _flat(box: OrientedBox) -> OrientedBox:
    return OrientedBox(
        box.centre.reshape(-1, 3).double(),
        box.half.reshape(-1, 3).double(),
        box.axes.reshape(-1, 3, 3).double(),
    )


def _shifted(box: OrientedBox, origin: Tensor, size: Tensor) -> OrientedBox:
    return OrientedBox(
        (box.centre.double() - origin) / size[:, None], box.half.double() / size[:, None], box.axes.double()
    )


def _planes(box: OrientedBox) -> tuple[Tensor, Tensor]:
    """Outward unit normals (P, 6, 3) and offsets (P, 6): inside is ``normal . x <= offset``."""
    normals = torch.cat([box.axes.mT, -box.axes.mT], 1)
    return normals, (normals * box.centre[:, None]).sum(-1) + box.half.repeat(1, 2)


def _cut_faces(box: OrientedBox, other: OrientedBox, keep_shared: bool) -> Tensor:
    """Share of the divergence integral that comes from the faces of ``box`` inside ``other``; (P,)."""
    count = box.half.shape[0]
    normals, offsets = _planes(box)
    cut_normals, cut_offsets = _planes(other)
    signs = torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    faces = torch.zeros(count, 6, _CAPACITY, 3, dtype=torch.float64)
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        sides = signs[:, :1] * (box.half[:, None, u, None] * box.axes[:, None, :, u]) + signs[:, 1:] * (
            box.half[:, None, v, None] * box.axes[:, None, :, v]
        )
        arm = (box.half[:, axis, None] * box.axes[:, :, axis])[:, None]
        faces[:, axis, :_FACE_CORNERS] = box.centre[:, None] + arm + sides
        faces[:, axis + 3, :_FACE_CORNERS] = box.centre[:, None] - arm + sides
    corners = faces.flatten(0, 1)
    used = torch.full((count * 6,), _FACE_CORNERS)
    dropped = torch.zeros(count * 6, dtype=torch.bool)
    for k in range(6):
        normal = cut_normals[:, k].repeat_interleave(6, 0)
        offset = cut_offsets[:, k].repeat_interleave(6)
        if not keep_shared:
            same_way = (normal * normals.flatten(0, 1)).sum(-1) > 1 - 1e-12
            dropped |= same_way & ((offset - offsets.flatten()).abs() < _ON_PLANE)
        corners, used = _clip(corners, used, normal, offset)
    area = _signed_area(corners, used, normals.flatten(0, 1)).abs()
    area = torch.where(dropped, 0.0, area)
    return (area * offsets.flatten()).reshape(count, 6).sum(1) / 3


def _clip(corners: Tensor, used: Tensor, normal: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Cut polygons (B, C, 3), of which the first ``used`` (B,) corners count, by half spaces.

    One pass of Sutherland and Hodgman.
    """
    batch, capacity, _ = corners.shape
    index = torch.arange(capacity)
    following = torch.where(index + 1 < used[:, None], index + 1, 0)
    ahead = corners.gather(1, following[..., None].expand(-1, -1, 3))
    distance = (corners * normal[:, None]).sum(-1) - offset[:, None]
    distance_ahead = distance.gather(1, following)
    real = index < used[:, None]
    inside, inside_ahead = distance <= _ON_PLANE, distance_ahead <= _ON_PLANE
    crossing = real & (inside != inside_ahead)
    part = distance / torch.where(crossing, distance - distance_ahead, 1.0)
    cut = corners + part[..., None].clamp(0, 1) * (ahead - corners)
    # Each corner gives itself when inside, then the crossing of its edge; empty places are moved to the end.
    slots = torch.stack([corners, cut], 2).reshape(batch, 2 * capacity, 3)
    keep = torch.stack([real & inside, crossing], 2).reshape(batch, 2 * capacity)
    order = torch.argsort((~keep).to(torch.int8), dim=1, stable=True)[:, :capacity]
    return slots.gather(1, order[..., None].expand(-1, -1, 3)), keep.sum(1).clamp_max(capacity)


def _signed_area(corners: Tensor, used: Tensor, normal: Tensor) -> Tensor:
    """Areas (B,) of planar polygons along their normals (B, 3)."""
    real = (torch.arange(corners.shape[1]) < used[:, None])[..., None]
    # Empty places repeat the first corner and add nothing.
    points = torch.where(real, corners, corners[:, :1]) - corners[:, :1]
    cross = torch.linalg.cross(points, points.roll(-1, 1))
    return torch.where(used > 2, 0.5 * (cross.sum(1) * normal).sum(-1), 0.0)
