from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from torch.autograd import gradcheck, gradgradcheck

from relief3d.core.errors import InputError
from relief3d.geometry import rotations as rot

from .draws import F64, axis_angles, close, generator, normal, properties, rotations, seeds, uniform

EYE = torch.eye(3, dtype=F64)
HALF_TURNS = [torch.diag(torch.tensor(d, dtype=F64)) for d in ([1, -1, -1], [-1, 1, -1], [-1, -1, 1])]


def is_rotation(m: torch.Tensor, tol: float = 1e-12) -> bool:
    eye = torch.eye(3, dtype=m.dtype)
    return close(m @ m.mT, eye.expand_as(m), tol) and close(
        torch.linalg.det(m), torch.ones(m.shape[:-2]), tol
    )


@properties
@given(seeds)
def test_log_inverts_exp(seed: int) -> None:
    w = axis_angles(generator(seed))
    # 1e-7 below pi the rotation matrix itself determines the axis only to about 1e-9.
    assert close(rot.so3_log(rot.so3_exp(w)), w, 1e-8)


@properties
@given(seeds)
def test_exp_gives_rotations_also_beyond_a_turn(seed: int) -> None:
    w = 10 * normal(generator(seed), 32, 3)
    R = rot.so3_exp(w)
    assert is_rotation(R)
    assert close(rot.so3_exp(rot.so3_log(R)), R, 1e-9)
    assert bool((rot.so3_log(R).norm(dim=-1) <= math.pi + 1e-12).all())


@properties
@given(seeds)
def test_exp_agrees_with_matrix_exponential(seed: int) -> None:
    w = axis_angles(generator(seed))
    assert close(rot.so3_exp(w), torch.linalg.matrix_exp(rot.skew(w)), 1e-12)


@pytest.mark.parametrize("R", HALF_TURNS, ids=["x", "y", "z"])
def test_log_of_exact_half_turns(R: torch.Tensor) -> None:
    w = rot.so3_log(R)
    assert w.norm().item() == pytest.approx(math.pi, abs=1e-15)
    assert close(rot.so3_exp(w), R, 1e-14)
    assert w.max() > 0  # the documented sign


@properties
@given(seeds)
def test_quaternion_round_trips(seed: int) -> None:
    g = generator(seed)
    R = rotations(g)
    q = rot.quat_wxyz_from_matrix(R)
    assert close(rot.matrix_from_quat_wxyz(q), R, 1e-13)
    assert close(q.norm(dim=-1), torch.ones(16, dtype=F64), 1e-14)
    assert bool((q[:, 0] >= 0).all())
    assert close(rot.matrix_from_quat_wxyz(3.7 * q), R, 1e-13)
    assert close(rot.matrix_from_quat_wxyz(-q), R, 1e-13)
    assert torch.equal(rot.quat_wxyz_from_xyzw(rot.quat_xyzw_from_wxyz(q)), q)
    assert torch.equal(rot.quat_xyzw_from_wxyz(q)[:, 3], q[:, 0])


@properties
@given(seeds)
def test_quaternion_product_is_rotation_product(seed: int) -> None:
    g = generator(seed)
    a, b = rotations(g), rotations(g).flip(0)
    qa, qb = rot.quat_wxyz_from_matrix(a), rot.quat_wxyz_from_matrix(b)
    assert close(rot.matrix_from_quat_wxyz(rot.multiply_quat(qa, qb)), a @ b, 1e-13)
    assert close(rot.matrix_from_quat_wxyz(rot.conjugate_quat(qa)), a.mT, 1e-13)


@properties
@given(seeds)
def test_quaternion_of_axis_angle(seed: int) -> None:
    w = axis_angles(generator(seed))
    q = rot.quat_wxyz_from_axis_angle(w)
    assert close(rot.matrix_from_quat_wxyz(q), rot.so3_exp(w), 1e-13)
    assert close(rot.axis_angle_from_quat_wxyz(q), w, 1e-12)


@properties
@given(seeds)
def test_angle_is_exact_for_all_sizes(seed: int) -> None:
    g = generator(seed)
    w = axis_angles(g)
    base = rotations(g).flip(0)
    assert close(rot.rotation_angle(rot.so3_exp(w)), w.norm(dim=-1), 1e-12)
    assert close(rot.rotation_angle(base, base @ rot.so3_exp(w)), w.norm(dim=-1), 1e-12)
    # Relative accuracy of tiny angles, where acos of the trace would give 0.
    tiny = rot.so3_exp(torch.tensor([[3e-12, 0, 4e-12]], dtype=F64))
    assert rot.rotation_angle(tiny).item() == pytest.approx(5e-12, rel=1e-9)


@properties
@given(seeds)
def test_6d_round_trip_and_scale_invariance(seed: int) -> None:
    g = generator(seed)
    R = rotations(g)
    d6 = rot.rot6d_from_matrix(R)
    assert close(rot.matrix_from_rot6d(d6), R, 1e-13)
    scaled = torch.cat([d6[:, :3] * 1e-5, d6[:, 3:] * 1e5 + 7 * d6[:, :3]], dim=-1)
    assert close(rot.matrix_from_rot6d(scaled), R, 1e-9)
    assert is_rotation(rot.matrix_from_rot6d(normal(g, 64, 6)))


def test_6d_degenerate_inputs_still_give_rotations() -> None:
    x = torch.tensor(
        [[0.0] * 6, [1, 0, 0, 0, 0, 0], [1, 2, 3, 2, 4, 6], [0, 0, 0, 0, 1, 0], [1e-200, 0, 0, 0, 1e200, 0]],
        dtype=F64,
        requires_grad=True,
    )
    R = rot.matrix_from_rot6d(x)
    assert is_rotation(R.detach())
    (grad,) = torch.autograd.grad((R * normal(generator(0), 5, 3, 3)).sum(), x)
    assert bool(torch.isfinite(grad[:4]).all())


@properties
@given(seeds)
def test_9d_is_the_nearest_rotation(seed: int) -> None:
    g = generator(seed)
    m = normal(g, 16, 3, 3)
    R = rot.matrix_from_svd9d(m)
    assert is_rotation(R)
    assert torch.equal(rot.matrix_from_svd9d(m.flatten(-2)), R)
    distance = (R - m).norm(dim=(-2, -1))
    for other in (R @ rot.so3_exp(1e-3 * normal(g, 16, 3)), rotations(g)):
        assert bool(((other - m).norm(dim=(-2, -1)) >= distance - 1e-12).all())
    assert close(rot.matrix_from_svd9d(2.5 * R), R, 1e-13)


def test_9d_degenerate_and_bad_inputs() -> None:
    m = torch.stack([torch.zeros(3, 3, dtype=F64), -EYE, torch.diag(torch.tensor([1.0, 0, 0], dtype=F64))])
    m.requires_grad_()
    R = rot.matrix_from_svd9d(m)
    assert is_rotation(R.detach())
    (grad,) = torch.autograd.grad(R.square().sum() + R[..., 0, 1].sum(), m)
    assert bool(torch.isfinite(grad).all())
    mixed = rot.matrix_from_svd9d(torch.stack([EYE, torch.full((3, 3), torch.nan, dtype=F64)]))
    assert close(mixed[0], EYE) and bool(mixed[1].isnan().all())
    with pytest.raises(InputError, match="expected"):
        rot.matrix_from_svd9d(torch.zeros(2, 2))


@properties
@given(seeds)
def test_slerp_end_points_and_constant_speed(seed: int) -> None:
    g = generator(seed)
    a, b = rotations(g), rotations(g).flip(0)
    f = uniform(g, 0, 1, 16)
    assert close(rot.slerp(a, b, torch.zeros(16, dtype=F64)), a, 1e-13)
    assert close(rot.slerp(a, b, torch.ones(16, dtype=F64)), b, 1e-7)
    assert close(rot.rotation_angle(a, rot.slerp(a, b, f)), f * rot.rotation_angle(a, b), 1e-9)


@properties
@given(seeds)
def test_skew(seed: int) -> None:
    g = generator(seed)
    u, v = normal(g, 8, 3), normal(g, 8, 3)
    assert close((rot.skew(u) @ v[..., None])[..., 0], torch.linalg.cross(u, v), 1e-14)
    assert torch.equal(rot.unskew(rot.skew(u)), u)


ZERO = [[0.0, 0.0, 0.0]]
GENERIC = [[0.3, -0.8, 0.5], [2.0, 1.0, -1.5]]
NEAR_PI = [[0.0, math.pi - 1e-3, 0.0], [math.pi, 0.0, 0.0]]
AT_SERIES_LIMIT = [[1.0, 0.0, 0.0], [0.6, 0.8, 1e-9]]


@pytest.mark.parametrize(
    "w", [ZERO, GENERIC, NEAR_PI, AT_SERIES_LIMIT], ids=["zero", "generic", "pi", "limit"]
)
def test_gradients_of_exp_and_of_the_round_trip(w: list[list[float]]) -> None:
    x = torch.tensor(w, dtype=F64, requires_grad=True)
    assert gradcheck(rot.so3_exp, x)
    assert gradcheck(rot.quat_wxyz_from_axis_angle, x)
    if w is not NEAR_PI:
        assert gradcheck(lambda v: rot.so3_log(rot.so3_exp(v)), x, atol=1e-6)
        assert gradgradcheck(rot.so3_exp, x)


@pytest.mark.parametrize("R", [EYE, *HALF_TURNS, rot.so3_exp(torch.tensor(GENERIC[0], dtype=F64))])
def test_gradients_with_respect_to_the_matrix(R: torch.Tensor) -> None:
    x = R.clone().requires_grad_()
    # q and -q are one rotation and the chosen sign jumps at a half turn, so check the products q_i q_j.
    assert gradcheck(lambda m: torch.outer(*[rot.quat_wxyz_from_matrix(m)] * 2), x)
    assert gradcheck(rot.matrix_from_svd9d, x)
    assert gradcheck(lambda m: rot.matrix_from_rot6d(rot.rot6d_from_matrix(m)), x)
    (grad,) = torch.autograd.grad(rot.so3_log(x).sum() + rot.rotation_angle(x), x)
    assert bool(torch.isfinite(grad).all())


def test_gradient_of_9d_at_generic_and_mirrored_matrices() -> None:
    m = normal(generator(4), 6, 3, 3)
    m[3:] *= -torch.sign(torch.linalg.det(m[3:]))[:, None, None]  # determinant -1: the mirrored branch
    assert gradcheck(rot.matrix_from_svd9d, m.requires_grad_())


def test_zero_quaternion_is_the_identity_with_finite_gradient() -> None:
    q = torch.zeros(4, dtype=F64, requires_grad=True)
    R = rot.matrix_from_quat_wxyz(q)
    assert torch.equal(R.detach(), EYE)
    w = rot.axis_angle_from_quat_wxyz(q)
    assert torch.equal(w.detach(), torch.zeros(3, dtype=F64))
    (grad,) = torch.autograd.grad(R.sum() + w.sum(), q)
    assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_are_kept_and_batches_equal_loops(dtype: torch.dtype) -> None:
    w = axis_angles(generator(1), 12).to(dtype).reshape(3, 4, 3)
    tol = 1e-6 if dtype == torch.float32 else 1e-14
    R = rot.so3_exp(w)
    for f, x in (
        (rot.so3_exp, w),
        (rot.so3_log, R),
        (rot.quat_wxyz_from_matrix, R),
        (rot.rot6d_from_matrix, R),
        (rot.matrix_from_svd9d, R + 0.1),
        (rot.rotation_angle, R),
    ):
        batched = f(x)
        assert batched.dtype == dtype
        looped = torch.stack([torch.stack([f(x[i, j]) for j in range(4)]) for i in range(3)])
        assert close(batched, looped, tol)
    # Leave out the last two angles: single precision cannot tell pi - 1e-7 from pi, nor the sign of its axis.
    keep = w.flatten(0, 1)[:8]
    assert close(rot.so3_log(rot.so3_exp(keep)), keep, 2e-6 if dtype == torch.float32 else 1e-12)
