from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from torch.autograd import gradcheck

from relief3d.core.errors import InputError
from relief3d.geometry import triangulation as tr
from relief3d.geometry.distortion import unproject_rays
from relief3d.geometry.projection import intrinsics, normalize_pixels, project_world
from relief3d.geometry.transforms import invert_rigid, make_rigid, transform_directions

from .draws import F64, close, generator, normal, properties, seeds, stereo_rig, uniform

EYE = torch.eye(4, dtype=F64)
K0 = intrinsics(525, 525, 320, 240)


def sideways(baseline: float) -> torch.Tensor:
    T = EYE.clone()
    T[0, 3] = -baseline
    return T


@properties
@given(seeds)
def test_dlt_is_exact_without_noise(seed: int) -> None:
    g = generator(seed)
    world, K, T = stereo_rig(g, views=2 + seed % 4)
    xy, z = project_world(world, K, T)
    assert bool((z > 0).all())
    assert close(tr.triangulate_dlt(tr.projection_matrix(K, T), xy), world, 1e-8)


@properties
@given(seeds)
def test_dlt_ignores_views_of_weight_zero(seed: int) -> None:
    g = generator(seed)
    world, K, T = stereo_rig(g, views=4)
    xy, _ = project_world(world, K, T)
    weights = torch.ones(4, len(world), dtype=F64)
    lost = torch.randint(0, 4, (len(world),), generator=g)
    weights[lost, torch.arange(len(world))] = 0
    xy[lost, torch.arange(len(world))] = torch.nan
    assert close(tr.triangulate_dlt(tr.projection_matrix(K, T), xy, weights), world, 1e-8)
    assert bool(tr.triangulate_dlt(tr.projection_matrix(K, T), xy).isnan().all())


@properties
@given(seeds)
def test_midpoint_is_exact_and_agrees_with_dlt(seed: int) -> None:
    g = generator(seed)
    world, K, T = stereo_rig(g)
    xy, _ = project_world(world, K, T)
    world_from_cam = invert_rigid(T)
    rays = transform_directions(world_from_cam, unproject_rays(xy, K, None)[0])
    centres = world_from_cam[:, :3, 3]
    found, ahead = tr.triangulate_midpoint(centres[0], rays[0] * 3, centres[1], rays[1])
    assert bool(ahead.all())
    assert close(found, world, 1e-8)
    noisy = xy + 0.5 * normal(g, *xy.shape)
    rays = transform_directions(world_from_cam, unproject_rays(noisy, K, None)[0])
    mid, _ = tr.triangulate_midpoint(centres[0], rays[0], centres[1], rays[1])
    dlt = tr.triangulate_dlt(tr.projection_matrix(K, T), noisy)
    error = tr.reprojection_error(mid, K[0], T[0], noisy[0]), tr.reprojection_error(dlt, K[0], T[0], noisy[0])
    assert max(e.max() for e in error) < 5
    assert (mid - dlt).norm(dim=-1).median() < 0.1


def test_midpoint_of_parallel_and_backward_rays() -> None:
    a, b = torch.zeros(3, dtype=F64), torch.tensor([1.0, 0, 0], dtype=F64)
    rays_a = torch.tensor([[0.0, 0, 1], [0.5, 0, 1]], dtype=F64)
    rays_b = torch.tensor([[0.0, 0, 2], [0.7, 0, 1]], dtype=F64)  # parallel; diverging, so behind
    points, valid = tr.triangulate_midpoint(a, rays_a, b, rays_b)
    assert valid.tolist() == [False, False]
    assert points[0].tolist() == [0.5, 0, 0]
    assert points[1, 2].item() == pytest.approx(-5)


def test_points_at_infinity_and_equal_views_stay_finite() -> None:
    P = tr.projection_matrix(K0, torch.stack([EYE, sideways(1.0)]))
    same = torch.tensor([[[320.0, 240.0]], [[320.0, 240.0]]], dtype=F64)
    far = tr.triangulate_dlt(P, same)
    assert bool(torch.isfinite(far).all()) and far.norm() > 1e6
    twice = tr.triangulate_dlt(P[:1].expand(2, 3, 4), same)
    assert bool(torch.isfinite(twice).all())
    with pytest.raises(InputError, match="two or more"):
        tr.triangulate_dlt(P[:1], same[:1])


def test_gradients() -> None:
    g = generator(0)
    world, K, T = stereo_rig(g, views=3, points=4)
    xy = (project_world(world, K, T)[0] + normal(g, 3, 4, 2)).requires_grad_()
    P = tr.projection_matrix(K, T).requires_grad_()
    assert gradcheck(tr.triangulate_dlt, (P, xy), eps=1e-5, atol=1e-5)
    two = xy[:2].detach().requires_grad_()
    assert gradcheck(lambda x: tr.triangulate_dlt(P[:2].detach(), x), (two,), eps=1e-5, atol=1e-5)
    args = [normal(g, 3).requires_grad_(), normal(g, 4, 3).requires_grad_()]
    args += [normal(g, 3).requires_grad_(), normal(g, 4, 3).requires_grad_()]
    assert gradcheck(lambda *a: tr.triangulate_midpoint(*a)[0], args, atol=1e-4)
    exact = project_world(world, K, T)[0].requires_grad_()
    (grad,) = torch.autograd.grad(tr.triangulate_dlt(P.detach(), exact).sum(), exact)
    assert bool(torch.isfinite(grad).all())


def gate(
    points: torch.Tensor, baseline: float, width: float = 640, shift: float = 0.0, relax_below: int = 0
) -> tr.GateResult:
    T = sideways(baseline)
    xy_a, _ = project_world(points, K0, EYE)
    xy_b, _ = project_world(points, K0, T)
    gates = tr.TriangulationGates(relax_below=relax_below)
    return tr.two_view_gates(points, xy_a, xy_b + shift, K0, K0, EYE, T, width, gates)


def test_default_thresholds_are_those_of_the_specification() -> None:
    gates = tr.TriangulationGates()
    assert (gates.max_reprojection, gates.reference_width) == (2.0, 640.0)
    assert (gates.min_parallax_deg, gates.relaxed_parallax_deg, gates.relax_below) == (2.0, 1.0, 50)
    assert (gates.min_depth_baselines, gates.max_depth_baselines) == (1e-3, 50.0)


def test_parallax_gate() -> None:
    # A point midway between two centres b apart is seen under 2 atan(b / 2z).
    for degrees, kept in ((2.05, True), (1.95, False), (1.05, False)):
        z = 0.5 / math.tan(math.radians(degrees) / 2)
        point = torch.tensor([[0.5, 0.0, z]], dtype=F64)
        result = tr.two_view_gates(
            point,
            project_world(point, K0, EYE)[0],
            project_world(point, K0, sideways(1.0))[0],
            K0,
            K0,
            EYE,
            sideways(1.0),
            640,
            tr.TriangulationGates(relax_below=0, max_depth_baselines=1e3),
        )
        assert math.degrees(result.parallax.item()) == pytest.approx(degrees, abs=1e-9)
        assert result.keep.item() is kept and result.other_gates.item() is True


def test_parallax_gate_is_relaxed_when_few_points_survive() -> None:
    z = 0.5 / math.tan(math.radians(1.5) / 2)
    points = torch.tensor([[0.5, 0.0, 3.0]] * 49 + [[0.5, 0.0, z]] * 5, dtype=F64)
    few = gate(points, 1.0, relax_below=50)
    assert bool(few.relaxed) and bool(few.keep.all())
    many = gate(torch.cat([points, points[:1]]), 1.0, relax_below=50)
    assert not bool(many.relaxed) and many.keep.sum() == 50
    # The count runs over all pairs of the call.
    kept, relaxed = tr.gate_parallax(
        torch.ones(2, 25, dtype=torch.bool), torch.full((2, 25), 1.0), tr.TriangulationGates()
    )
    assert not bool(relaxed) and bool(kept.all())


def test_reprojection_gate_scales_with_the_picture() -> None:
    points = torch.tensor([[0.5, 0.0, 4.0]], dtype=F64)
    off = math.sqrt(0.5)
    assert gate(points, 1.0, shift=1.9 * off).keep.item() is True
    assert gate(points, 1.0, shift=2.1 * off).keep.item() is False
    assert gate(points, 1.0, width=1280, shift=3.9 * off).keep.item() is True
    assert gate(points, 1.0, width=320, shift=1.1 * off).keep.item() is False


def test_depth_gates() -> None:
    points = torch.tensor([[0.5, 0, 3.0], [0.5, 0, -3.0], [0.5, 0, 5e-4], [0.5, 0, 28.0]], dtype=F64)
    assert gate(points, 1.0).keep.tolist() == [True, False, False, True]
    far = torch.tensor([[0.05, 0, 5.1], [0.05, 0, 2.5]], dtype=F64)
    assert gate(far, 0.1).keep.tolist() == [False, True]
    one_behind = torch.tensor([[0.0, 0.0, 1.0]], dtype=F64)
    T = make_rigid(torch.eye(3, dtype=F64), torch.tensor([0.0, 0.0, -2.0], dtype=F64))
    xy = project_world(one_behind, K0, EYE)[0]
    assert tr.two_view_gates(one_behind, xy, xy, K0, K0, EYE, T, 640).keep.item() is False
    assert tr.reprojection_error(one_behind, K0, T, xy).item() == math.inf
    nothing = torch.full((1, 3), torch.nan, dtype=F64)
    assert tr.two_view_gates(nothing, xy, xy, K0, K0, EYE, T, 640).keep.item() is False


def test_mask_and_confidence() -> None:
    points = torch.tensor([[0.5, 0, 3.0]] * 3, dtype=F64)
    xy_a, xy_b = project_world(points, K0, EYE)[0], project_world(points, K0, sideways(1.0))[0]
    mask = torch.tensor([True, False, True])
    result = tr.two_view_gates(points, xy_a, xy_b, K0, K0, EYE, sideways(1.0), 640, mask=mask)
    assert torch.equal(result.keep, mask)
    q = tr.sample_confidence(torch.tensor([math.pi / 6]), torch.tensor([0.5]))
    assert q.item() == pytest.approx(0.25)


def test_noise_on_small_parallax_biases_depth_and_the_gate_removes_it() -> None:
    """The reason for the 2 degree gate: 0.7 px of noise, focal length 525, baseline 0.15."""
    g = generator(0)
    z = uniform(g, 1.0, 8.0, 4000)
    world = torch.stack([uniform(g, -0.4, 0.4, 4000) * z, uniform(g, -0.3, 0.3, 4000) * z, z], dim=-1)
    T = torch.stack([EYE, sideways(0.15)])
    K = K0.expand(2, 3, 3)
    xy = project_world(world, K, T)[0] + 0.7 * normal(g, 2, 4000, 2)
    found = tr.triangulate_dlt(tr.projection_matrix(K, T), xy)
    result = tr.two_view_gates(found, xy[0], xy[1], K0, K0, *T, 640)
    error = ((result.z_a - z) / z)[result.keep]
    spread = 1.4826 * (error - error.median()).abs().median()
    assert result.keep.float().mean() > 0.3
    assert error.median().abs() < 0.01 and spread < 0.03
    low = (result.parallax < math.radians(1.5)) & result.other_gates
    rejected = ((result.z_a - z) / z)[low]
    assert 1.4826 * (rejected - rejected.median()).abs().median() > 2 * spread


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_are_kept_and_batches_equal_loops(dtype: torch.dtype) -> None:
    rigs = [stereo_rig(generator(i)) for i in range(3)]
    world, K, T = (torch.stack(part).to(dtype) for part in zip(*rigs))
    xy, _ = project_world(world[:, None], K, T)
    P = tr.projection_matrix(K, T)
    found = tr.triangulate_dlt(P, xy)
    assert found.dtype == dtype
    assert close(found, world, 1e-3 if dtype == torch.float32 else 1e-8)
    one = torch.stack([tr.triangulate_dlt(P[i], xy[i]) for i in range(3)])
    assert close(found, one, 1e-5)
    args = (found, xy[:, 0], xy[:, 1], K[:, 0], K[:, 1], T[:, 0], T[:, 1], 640)
    gates = tr.two_view_gates(*args)
    for i in range(3):
        single = tr.two_view_gates(*(a[i] if isinstance(a, torch.Tensor) else a for a in args))
        assert torch.equal(single.other_gates, gates.other_gates[i])
        assert close(single.parallax, gates.parallax[i], 1e-5)


@properties
@given(seeds)
def test_two_views_at_once_agree_with_singular_values(seed: int) -> None:
    """Noisy pixels of three pairs: every kept point is the null vector that the general function finds."""
    g = generator(seed)
    points = uniform(g, -1.0, 1.0, 40, 3) + torch.tensor([0.0, 0.0, 4.0], dtype=F64)
    poses = torch.stack([sideways(b) for b in (0.2, 0.5, 1.0)])
    xy_a, _ = project_world(points, K0, EYE)
    xy_a = (xy_a + 0.5 * normal(g, 40, 2)).expand(3, -1, -1)
    xy_b = project_world(points.expand(3, -1, -1), K0.expand(3, 3, 3), poses)[0] + 0.5 * normal(g, 3, 40, 2)
    got = tr.triangulate_two_views(normalize_pixels(xy_a, K0), normalize_pixels(xy_b, K0), poses)
    for k in range(3):
        length = poses[k, :3, 3].norm()
        unit = poses[k].clone()
        unit[:3, 3] /= length
        P = torch.stack([tr.projection_matrix(K0, EYE), tr.projection_matrix(K0, unit)])
        expected = tr.triangulate_dlt(P, torch.stack([xy_a[k], xy_b[k]])) * length
        keep = tr.two_view_gates(expected, xy_a[k], xy_b[k], K0, K0, EYE, poses[k], 640.0).keep
        assert keep.any()
        close(got[k][keep], expected[keep], 1e-8)


def test_two_views_at_once_are_exact_without_noise() -> None:
    points = torch.tensor([[0.3, -0.2, 2.0], [-0.5, 0.4, 7.0]], dtype=F64)
    pose = sideways(0.4)
    xy_a, xy_b = project_world(points, K0, EYE)[0], project_world(points, K0, pose)[0]
    got = tr.triangulate_two_views(normalize_pixels(xy_a, K0), normalize_pixels(xy_b, K0), pose)
    close(got, points, 1e-9)
