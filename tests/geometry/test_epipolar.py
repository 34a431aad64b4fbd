from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch.autograd import gradcheck

from relief3d.geometry import epipolar as ep
from relief3d.geometry.projection import normalize_pixels, project_world
from relief3d.geometry.rotations import rotation_angle
from relief3d.geometry.transforms import relative_pose

from .draws import F64, close, generator, intrinsics, normal, properties, seeds, stereo_rig, uniform


def two_views(seed: int, points: int = 20) -> tuple[torch.Tensor, ...]:
    world, K, T = stereo_rig(generator(seed), points=points)
    xy, _ = project_world(world, K, T)
    return K, T, xy


@properties
@given(seeds)
def test_epipolar_constraint(seed: int) -> None:
    K, T, xy = two_views(seed)
    F = ep.fundamental_from_poses(T[0], T[1], K[0], K[1])
    algebraic = (ep.homogeneous(xy[1]) * (ep.homogeneous(xy[0]) @ F.mT)).sum(-1) / F.norm()
    assert algebraic.abs().max() < 1e-7
    assert ep.sampson_distance(F, xy[0], xy[1]).max() < 1e-8
    assert ep.epipolar_distance(F, xy[0], xy[1]).max() < 1e-8
    E = ep.essential_from_poses(T[0], T[1])
    n = [normalize_pixels(xy[i], K[i]) for i in range(2)]
    assert ep.sampson_distance(E, n[0], n[1]).max() < 1e-12
    assert close(ep.essential_from_fundamental(F, K[0], K[1]), E, 1e-9)
    values = torch.linalg.svdvals(E)
    assert close(values[0], values[1], 1e-12) and values[2] < 1e-12


@properties
@given(seeds)
def test_distances_are_symmetric_and_scale_free(seed: int) -> None:
    K, T, xy = two_views(seed)
    noisy = xy + normal(generator(seed), *xy.shape)
    F = ep.fundamental_from_poses(T[0], T[1], K[0], K[1])
    back = ep.fundamental_from_poses(T[1], T[0], K[1], K[0])
    for distance in (ep.sampson_distance, ep.epipolar_distance):
        d = distance(F, noisy[0], noisy[1])
        assert close(distance(back, noisy[1], noisy[0]), d, 1e-9)
        assert close(distance(-13.7 * F, noisy[0], noisy[1]), d, 1e-9)
        assert close(distance(F, noisy[0], noisy[1], squared=True), d.square(), 1e-9)


@properties
@given(seeds)
def test_distances_are_in_pixels(seed: int) -> None:
    g = generator(seed)
    K, T, xy = two_views(seed)
    F = ep.fundamental_from_poses(T[0], T[1], K[0], K[1])
    lines = ep.epipolar_lines(F, xy[0])
    assert close(lines[:, :2].norm(dim=-1), torch.ones(20, dtype=F64), 1e-12)
    offset = uniform(g, -3, 3, 20)
    moved = xy[1] + offset[:, None] * lines[:, :2]  # across the line in view b only
    assert close((ep.homogeneous(moved) * lines).sum(-1).abs(), offset.abs(), 1e-8)
    other = ep.epipolar_lines(F.mT, moved)
    in_a = (ep.homogeneous(xy[0]) * other).sum(-1)
    expected = (0.5 * (offset.square() + in_a.square())).sqrt()
    assert close(ep.epipolar_distance(F, xy[0], moved), expected, 1e-8)
    # Sampson approximates the smallest total move of both points, so it is below each one-sided distance.
    sampson = ep.sampson_distance(F, xy[0], moved)
    assert bool((sampson <= torch.minimum(offset.abs(), in_a.abs()) + 1e-9).all())


@properties
@given(seeds)
def test_pose_from_essential_by_cheirality(seed: int) -> None:
    K, T, xy = two_views(seed)
    n = [normalize_pixels(xy[i], K[i]) for i in range(2)]
    truth = relative_pose(T[0], T[1])
    for factor in (1.0, -2.5):
        pose = ep.pose_from_essential(factor * ep.essential_from_poses(T[0], T[1]), n[0], n[1])
        assert rotation_angle(pose.b_from_a[:3, :3], truth[:3, :3]) < 1e-8
        assert close(pose.b_from_a[:3, 3], truth[:3, 3] / truth[:3, 3].norm(), 1e-8)
        assert pose.in_front == 20 and bool(pose.mask.all())
    weights = torch.zeros(20, dtype=F64)
    weights[:3] = 0.5
    voted = ep.pose_from_essential(ep.essential_from_poses(T[0], T[1]), n[0], n[1], weights)
    assert voted.in_front.item() == pytest.approx(1.5)


@properties
@given(seeds)
def test_decomposition_holds_the_truth_among_four_rotations(seed: int) -> None:
    _, T, _ = two_views(seed)
    E = ep.essential_from_poses(T[0], T[1])
    R, t = ep.decompose_essential(E)
    assert close(torch.linalg.det(R), torch.ones(4, dtype=F64), 1e-12)
    truth = relative_pose(T[0], T[1])
    wrong = [
        float(rotation_angle(R[i], truth[:3, :3]) + (t[i] - truth[:3, 3] / truth[:3, 3].norm()).norm())
        for i in range(4)
    ]
    assert min(wrong) < 1e-7
    assert sorted(wrong)[1] > 0.1


@properties
@given(seeds)
def test_eight_point_method(seed: int) -> None:
    K, T, xy = two_views(seed, points=30)
    F = ep.fundamental_from_poses(T[0], T[1], K[0], K[1])
    found = ep.fundamental_eight_point(xy[0], xy[1])
    F = F / F.norm()
    assert min((found - F).norm(), (found + F).norm()) < 1e-5
    assert torch.linalg.det(found / found.abs().max()).abs() < 1e-12
    broken = xy.clone()
    broken[1, :5] += 100
    weights = torch.ones(30, dtype=F64)
    weights[:5] = 0
    kept = ep.fundamental_eight_point(broken[0], broken[1], weights)
    assert ep.sampson_distance(kept, xy[0], xy[1]).max() < 1e-4
    minimal = ep.fundamental_eight_point(xy[0, :8], xy[1, :8])
    assert ep.sampson_distance(minimal, xy[0, :8], xy[1, :8]).max() < 1e-4


@properties
@given(seeds)
def test_inverse_intrinsics(seed: int) -> None:
    K = intrinsics(generator(seed))
    assert close(ep.inverse_intrinsics(K) @ K, torch.eye(3, dtype=F64).expand(16, 3, 3), 1e-12)


def test_gradients_also_on_the_constraint_and_at_the_epipole() -> None:
    K, T, xy = two_views(0, points=4)
    F = ep.fundamental_from_poses(T[0], T[1], K[0], K[1])
    F = (F / F.norm()).requires_grad_()
    noisy = (xy + normal(generator(1), *xy.shape)).requires_grad_()
    for distance in (ep.sampson_distance, ep.epipolar_distance):
        assert gradcheck(lambda x, d=distance: d(F.detach(), x[0], x[1]), noisy)
        exact = xy.clone().requires_grad_()
        grads = torch.autograd.grad(distance(F, exact[0], exact[1]).sum(), (F, exact))
        assert all(bool(torch.isfinite(v).all()) for v in grads)
        zero = torch.zeros(3, 3, dtype=F64)  # equal cameras: every point satisfies E = 0
        assert bool((distance(zero, xy[0], xy[1]) == 0).all())
    assert gradcheck(
        ep.fundamental_from_poses, [v.requires_grad_() for v in (T[0], T[1], K[0], K[1])], atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_equal_loops(dtype: torch.dtype) -> None:
    rigs = [two_views(i) for i in range(3)]
    K, T, xy = (torch.stack(part).to(dtype) for part in zip(*rigs))
    F = ep.fundamental_from_poses(T[:, 0], T[:, 1], K[:, 0], K[:, 1])
    noisy = xy + 1
    d = ep.sampson_distance(F, noisy[:, 0], noisy[:, 1])
    n = [normalize_pixels(xy[:, i], K[:, i]) for i in range(2)]
    E = ep.essential_from_poses(T[:, 0], T[:, 1])
    pose = ep.pose_from_essential(E, n[0], n[1])
    assert d.dtype == pose.b_from_a.dtype == dtype
    tol = 1e-3 if dtype == torch.float32 else 1e-9
    for i in range(3):
        assert close(ep.sampson_distance(F[i], noisy[i, 0], noisy[i, 1]), d[i], tol)
        single = ep.pose_from_essential(E[i], n[0][i], n[1][i])
        assert close(single.b_from_a, pose.b_from_a[i], tol)
        assert torch.equal(single.mask, pose.mask[i])
