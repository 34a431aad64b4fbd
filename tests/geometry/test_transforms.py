from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from torch.autograd import gradcheck

from relief3d.core.errors import InputError
from relief3d.geometry import transforms as tf
from relief3d.geometry.rotations import rotation_angle, skew

from .draws import F64, axis_angles, close, generator, normal, poses, properties, rotations, seeds, uniform

EYE4 = torch.eye(4, dtype=F64)


def twists(g: torch.Generator) -> torch.Tensor:
    return torch.cat([2 * normal(g, 16, 3), axis_angles(g)], dim=-1)


def similarity_tangents(g: torch.Generator) -> torch.Tensor:
    sigma = normal(g, 16, 1)
    sigma[:4, 0] = torch.tensor([0.0, 1e-12, 1e-5, -3.0])
    return torch.cat([twists(g), sigma], dim=-1)


@properties
@given(seeds)
def test_se3_log_inverts_exp(seed: int) -> None:
    xi = twists(generator(seed))
    assert close(tf.se3_log(tf.se3_exp(xi)), xi, 1e-8)


@properties
@given(seeds)
def test_sim3_log_inverts_exp(seed: int) -> None:
    xi = similarity_tangents(generator(seed))
    assert close(tf.sim3_log(tf.sim3_exp(xi)), xi, 1e-8)


@properties
@given(seeds)
def test_exponentials_agree_with_the_matrix_exponential(seed: int) -> None:
    xi = similarity_tangents(generator(seed))
    algebra = torch.zeros(16, 4, 4, dtype=F64)
    algebra[:, :3, :3] = skew(xi[:, 3:6])
    algebra[:, :3, 3] = xi[:, :3]
    assert close(tf.se3_exp(xi[:, :6]), torch.linalg.matrix_exp(algebra), 1e-11)
    algebra[:, :3, :3] += xi[:, 6, None, None] * torch.eye(3, dtype=F64)
    assert close(tf.sim3_exp(xi), torch.linalg.matrix_exp(algebra), 1e-11)


@properties
@given(seeds)
def test_large_scales_and_several_turns(seed: int) -> None:
    g = generator(seed)
    xi = similarity_tangents(g)
    xi[:, 6] = uniform(g, -20, 20, 16)
    back = tf.sim3_log(tf.sim3_exp(xi))
    assert bool(((back - xi).abs() <= 1e-8 * (1 + xi.abs())).all())
    turns = torch.cat([normal(g, 16, 3), 8 * normal(g, 16, 3)], dim=-1)
    algebra = torch.zeros(16, 4, 4, dtype=F64)
    algebra[:, :3, :3], algebra[:, :3, 3] = skew(turns[:, 3:]), turns[:, :3]
    assert close(tf.se3_exp(turns), torch.linalg.matrix_exp(algebra), 1e-11)
    level = torch.cat([turns, torch.zeros(16, 1, dtype=F64)], dim=-1)
    assert close(tf.sim3_exp(level), tf.se3_exp(turns), 1e-11)


@properties
@given(seeds)
def test_one_parameter_subgroups_compose(seed: int) -> None:
    g = generator(seed)
    xi, a, b = similarity_tangents(g) * 0.5, uniform(g, -1, 1, 16, 1), uniform(g, -1, 1, 16, 1)
    assert close(tf.sim3_exp(a * xi) @ tf.sim3_exp(b * xi), tf.sim3_exp((a + b) * xi), 1e-11)
    assert close(tf.se3_exp(-xi[:, :6]), tf.invert_rigid(tf.se3_exp(xi[:, :6])), 1e-11)


@properties
@given(seeds)
def test_inverses(seed: int) -> None:
    g = generator(seed)
    T = poses(g)
    assert close(tf.invert_rigid(T) @ T, EYE4.expand(16, 4, 4), 1e-12)
    S = tf.make_similarity(uniform(g, 0.01, 50, 16), rotations(g), normal(g, 16, 3))
    assert close(tf.invert_similarity(S) @ S, EYE4.expand(16, 4, 4), 1e-11)
    scale, R, t = tf.split_similarity(S)
    assert close(tf.make_similarity(scale, R, t), S, 1e-12)
    assert close(torch.linalg.det(R), torch.ones(16, dtype=F64), 1e-12)


@properties
@given(seeds)
def test_composition_acts_right_to_left(seed: int) -> None:
    g = generator(seed)
    a, b, c = poses(g), poses(g).flip(0), poses(g)
    x = normal(g, 16, 7, 3)
    step = tf.transform_points(a, tf.transform_points(b, tf.transform_points(c, x)))
    assert close(tf.transform_points(tf.compose(a, b, c), x), step, 1e-12)
    assert close(tf.compose(tf.compose(a, b), c), tf.compose(a, tf.compose(b, c)), 1e-12)
    difference = tf.transform_points(a, x) - tf.transform_points(a, torch.zeros_like(x))
    assert close(tf.transform_directions(a, x), difference, 1e-12)
    with pytest.raises(InputError):
        tf.compose()


@properties
@given(seeds)
def test_relative_pose_maps_between_cameras(seed: int) -> None:
    g = generator(seed)
    a, b, x = poses(g), poses(g).flip(0), normal(g, 16, 5, 3)
    in_b = tf.transform_points(tf.relative_pose(a, b), tf.transform_points(a, x))
    assert close(in_b, tf.transform_points(b, x), 1e-12)


@properties
@given(seeds)
def test_interpolation(seed: int) -> None:
    g = generator(seed)
    a, b, f = poses(g), poses(g).flip(0), uniform(g, 0, 1, 16)
    mid = tf.interpolate_rigid(a, b, f)
    assert close(tf.interpolate_rigid(a, b, torch.zeros(16, dtype=F64)), a, 1e-12)
    assert close(mid[:, :3, 3], torch.lerp(a[:, :3, 3], b[:, :3, 3], f[:, None]), 1e-12)
    turned = rotation_angle(a[:, :3, :3], mid[:, :3, :3])
    assert close(turned, f * rotation_angle(a[:, :3, :3], b[:, :3, :3]), 1e-9)


@properties
@given(seeds)
def test_look_at_puts_the_target_on_the_axis_and_up_upwards(seed: int) -> None:
    g = generator(seed)
    eye, target = 3 * normal(g, 16, 3), normal(g, 16, 3)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=F64)
    T = tf.look_at(eye, target, up)
    seen = tf.transform_points(tf.invert_rigid(T), target[:, None])[:, 0]
    assert close(seen[:, :2], torch.zeros(16, 2, dtype=F64), 1e-11)
    assert bool((seen[:, 2] > 0).all())
    assert close(torch.linalg.det(T[:, :3, :3]), torch.ones(16, dtype=F64), 1e-12)
    assert bool((T[:, :3, 1] @ up <= 1e-12).all())  # the camera's y axis points down
    assert close(T[:, :3, 0] @ up, torch.zeros(16, dtype=F64), 1e-12)  # level horizon


def test_look_at_survives_degenerate_directions() -> None:
    eye = torch.zeros(3, 3, dtype=F64)
    target = torch.tensor([[0.0, 0, 5], [0, 0, -5], [0, 0, 0]], dtype=F64)
    T = tf.look_at(eye, target, torch.tensor([0.0, 0.0, 1.0], dtype=F64))
    assert close(T[:, :3, :3] @ T[:, :3, :3].mT, torch.eye(3, dtype=F64).expand(3, 3, 3), 1e-12)
    assert close(T[:2, :3, 2], target[:2] / 5, 1e-12)


POINTS = {
    "zero": [0.0] * 7,
    "generic": [0.4, -1.0, 2.0, 0.5, -0.7, 0.3, 0.6],
    "pure scale": [0.4, -1.0, 2.0, 0.0, 0.0, 0.0, -1.2],
    "near pi": [0.4, -1.0, 2.0, 0.0, math.pi - 1e-2, 0.0, 0.1],
    "pi": [0.4, -1.0, 2.0, math.pi, 0.0, 0.0, 0.0],
}


@pytest.mark.parametrize("name", POINTS)
def test_gradients(name: str) -> None:
    xi = torch.tensor(POINTS[name], dtype=F64, requires_grad=True)
    assert gradcheck(tf.sim3_exp, xi)
    assert gradcheck(tf.se3_exp, xi[:6].detach().requires_grad_())
    if name != "pi":
        assert gradcheck(lambda v: tf.sim3_log(tf.sim3_exp(v)), xi, atol=1e-6)
        assert gradcheck(lambda v: tf.se3_log(tf.se3_exp(v)), xi[:6].detach().requires_grad_(), atol=1e-6)


def test_logarithms_have_finite_gradients_at_the_identity() -> None:
    T = EYE4.clone().requires_grad_()
    (grad,) = torch.autograd.grad(tf.se3_log(T).sum() + tf.sim3_log(T).sum(), T)
    assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_are_kept_and_batches_equal_loops(dtype: torch.dtype) -> None:
    xi = similarity_tangents(generator(3)).to(dtype).reshape(4, 4, 7)
    tol = 1e-5 if dtype == torch.float32 else 1e-13
    S = tf.sim3_exp(xi)
    for f, x in ((tf.sim3_exp, xi), (tf.sim3_log, S), (tf.invert_similarity, S), (tf.se3_exp, xi[..., :6])):
        batched = f(x)
        assert batched.dtype == dtype
        assert close(batched, torch.stack([torch.stack([f(v) for v in row]) for row in x]), tol)


def test_make_rigid_broadcasts() -> None:
    T = tf.make_rigid(torch.eye(3, dtype=F64), normal(generator(0), 5, 3))
    assert T.shape == (5, 4, 4)
    assert torch.equal(T[:, 3], EYE4[3].expand(5, 4))
