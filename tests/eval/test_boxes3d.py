"""Boxes in space against half-space intersection (Qhull), sampling and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.spatial import ConvexHull, HalfspaceIntersection

from relief3d.core.errors import InputError
from relief3d.eval.metrics.boxes3d import (
    OrientedBox,
    aabb_iou,
    bounds_of,
    obb_intersection,
    obb_iou,
    posed_box,
)
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import make_similarity

F64 = torch.float64


def random_boxes(count: int, seed: int, spread: float = 0.4) -> OrientedBox:
    g = torch.Generator().manual_seed(seed)
    return OrientedBox(
        torch.randn(count, 3, generator=g, dtype=F64) * spread,
        torch.rand(count, 3, generator=g, dtype=F64) + 0.1,
        matrix_from_axis_angle(torch.randn(count, 3, generator=g, dtype=F64) * 2),
    )


def box(centre: list[float], half: list[float], axes: torch.Tensor | None = None) -> OrientedBox:
    own = torch.eye(3, dtype=F64) if axes is None else axes
    return OrientedBox(torch.tensor([centre], dtype=F64), torch.tensor([half], dtype=F64), own[None])


def qhull_volume(a: OrientedBox, b: OrientedBox, i: int) -> float:
    """Volume of the intersection by a feasible interior point and Qhull."""
    normals, offsets = [], []
    for item in (a, b):
        for k in range(3):
            for sign in (1.0, -1.0):
                n = sign * item.axes[i, :, k]
                normals.append(n.numpy())
                offsets.append(float(n @ item.centre[i] + item.half[i, k]))
    A, o = np.array(normals), np.array(offsets)
    inside = linprog([0, 0, 0, -1], A_ub=np.c_[A, np.ones(12)], b_ub=o, bounds=[(None, None)] * 4)
    if inside.x[3] <= 1e-9:
        return 0.0
    return float(ConvexHull(HalfspaceIntersection(np.c_[A, -o], inside.x[:3]).intersections).volume)


def test_oriented_intersection_equals_qhull() -> None:
    a, b = random_boxes(60, 0), random_boxes(60, 1)
    expected = [qhull_volume(a, b, i) for i in range(60)]
    assert np.allclose(obb_intersection(a, b).numpy(), expected, atol=1e-9)
    assert sum(v == 0 for v in expected) > 3 and sum(v > 0.01 for v in expected) > 20


def test_oriented_iou_of_known_cases() -> None:
    unit = box([0, 0, 0], [0.5, 0.5, 0.5])
    assert float(obb_iou(unit, unit)) == pytest.approx(1, abs=1e-12)
    # Shared faces on three sides, and on one side.
    assert float(obb_intersection(unit, box([0.25, 0.25, 0.25], [0.25] * 3))) == pytest.approx(
        0.125, abs=1e-12
    )
    assert float(obb_intersection(unit, box([0.5, 0, 0], [0.5, 0.5, 0.5]))) == pytest.approx(0.5, abs=1e-12)
    assert float(obb_intersection(unit, box([1.0, 0, 0], [0.5, 0.5, 0.5]))) == pytest.approx(0, abs=1e-12)
    turned = matrix_from_axis_angle(torch.tensor([0.0, 0.0, math.pi / 4], dtype=F64))
    octagon = 2 * (math.sqrt(2) - 1)
    assert float(obb_intersection(unit, box([0, 0, 0], [0.5] * 3, turned))) == pytest.approx(
        octagon, abs=1e-12
    )
    assert float(obb_iou(unit, box([9, 0, 0], [0.5] * 3))) == 0.0


def test_oriented_equals_axis_aligned_without_rotation_and_is_invariant() -> None:
    a, b = random_boxes(40, 2, spread=0.7), random_boxes(40, 3, spread=0.7)
    plain = OrientedBox(a.centre, a.half, torch.eye(3, dtype=F64).expand(40, 3, 3))
    other = OrientedBox(b.centre, b.half, torch.eye(3, dtype=F64).expand(40, 3, 3))
    straight = aabb_iou((a.centre - a.half, a.centre + a.half), (b.centre - b.half, b.centre + b.half))
    assert torch.allclose(obb_iou(plain, other), straight, atol=1e-12)
    R = matrix_from_axis_angle(torch.tensor([0.4, -1.0, 2.0], dtype=F64))

    def moved(item: OrientedBox) -> OrientedBox:
        return OrientedBox(3 * item.centre @ R.T + 5, 3 * item.half, R @ item.axes)

    assert torch.allclose(obb_iou(moved(a), moved(b)), obb_iou(a, b), atol=1e-10)
    assert torch.allclose(obb_iou(a, b), obb_iou(b, a), atol=1e-12)


def test_axis_aligned_iou_by_hand() -> None:
    a = (torch.zeros(3), torch.ones(3))
    b = (torch.tensor([0.5, 0.0, 0.0]), torch.tensor([1.5, 1.0, 1.0]))
    assert float(aabb_iou(a, b)) == pytest.approx(1 / 3)
    assert float(aabb_iou(a, (torch.full((3,), 2.0), torch.full((3,), 3.0)))) == 0.0
    assert float(aabb_iou((torch.zeros(3), torch.zeros(3)), (torch.zeros(3), torch.zeros(3)))) == 0.0
    with pytest.raises(InputError, match="lower corner"):
        aabb_iou((torch.ones(3), torch.zeros(3)), b)


def test_posed_box_follows_pose_and_scale_per_axis() -> None:
    low, high = torch.tensor([-0.5, -0.2, -0.1], dtype=F64), torch.tensor([0.5, 0.4, 0.3], dtype=F64)
    R = matrix_from_axis_angle(torch.tensor([0.3, 0.7, -0.4], dtype=F64))
    pose = make_similarity(torch.tensor(2.0, dtype=F64), R, torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    stretch = pose.clone()
    stretch[:3, :3] = R @ torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    for transform in (pose, stretch):
        made = posed_box(low, high, transform)
        corners = torch.cartesian_prod(*torch.stack([low, high], 1))
        expected = corners @ transform[:3, :3].T + transform[:3, 3]
        distance = torch.cdist(made.corners, expected)
        assert float(distance.amin(1).max()) < 1e-12
    shear = pose.clone()
    shear[0, 1] += 1
    with pytest.raises(InputError, match="shears"):
        posed_box(low, high, shear)


def test_bounds_refuse_nothing_and_not_finite() -> None:
    with pytest.raises(InputError, match="needs"):
        bounds_of(torch.zeros(0, 3))
    with pytest.raises(InputError, match="finite"):
        bounds_of(torch.tensor([[0.0, float("nan"), 1.0]]))
