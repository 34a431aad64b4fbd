"""Losses of teacher and student: the specification's worked numbers, which term acts where, and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.losses.depth_derivatives import ssi_derivative_error, ssi_mae
from relief3d.losses.metric_depth import (
    LABEL_RANGE,
    DepthTarget,
    StudentOptions,
    TeacherOptions,
    canonical_inverse_depth,
    depth_from_canonical,
    dlog,
    limited,
    student_loss,
    teacher_loss,
)

SIZE = (12, 14)


def sample(seed: int = 0, size: tuple[int, int] = SIZE, **facts) -> tuple[Tensor, DepthTarget]:
    """A prediction (canonical) and a truth, 1 to 9 m, with some holes."""
    g = torch.Generator().manual_seed(seed)
    depth = 1 + 8 * torch.rand(size, generator=g, dtype=torch.float64)
    valid = torch.rand(size, generator=g) < 0.9
    fx = facts.setdefault("fx_over_width", 0.5 + 0.1 * seed)
    found = fx / depth * (1 + 0.3 * torch.randn(size, generator=g, dtype=torch.float64)).clamp_min(0.2)
    return found, DepthTarget(depth, valid, **facts)


def test_canonical_inverse_depth_has_the_worked_numbers() -> None:
    # fx = 1000 px, w = 2000, D = 10 m
    canonical = canonical_inverse_depth(torch.tensor(10.0), 1000 / 2000)
    assert float(canonical) == pytest.approx(0.05)
    assert float(canonical * 2000 / 1000) == pytest.approx(0.1)
    assert float(depth_from_canonical(canonical, 1000 / 2000)) == pytest.approx(10.0)
    assert depth_from_canonical(torch.tensor([0.0, 1e9]), 1.0).tolist() == pytest.approx([1e4, 1e-4])


def test_distance_balanced_depth_has_the_worked_numbers() -> None:
    assert float(dlog(torch.tensor(10.0))) == pytest.approx(0.615689, abs=1e-6)
    assert float(dlog(torch.tensor(10.0)) - dlog(torch.tensor(11.0))) == pytest.approx(0.015908, abs=1e-6)
    ends = torch.tensor([1.0, 400.0, 1 / 400])
    assert dlog(ends).tolist() == pytest.approx([1.0, 0.0, 2.0], abs=1e-6)
    beyond = torch.tensor([4000.0, 1e-5])
    assert dlog(beyond, mode="clamp").tolist() == pytest.approx([0.0, 2.0], abs=1e-6)
    assert float(dlog(beyond)[0]) == pytest.approx(-math.log(10) / math.log(400), abs=1e-6)
    x = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    dlog(x).backward()
    assert float(x.grad) == pytest.approx(-1 / (7 * math.log(400)))


def test_limits_are_the_specified_ones() -> None:
    assert LABEL_RANGE == (1e-3, 400.0)  # of pseudo labels (7.7)
    depth = torch.full(SIZE, 1e4, dtype=torch.float64)
    target = DepthTarget(depth, depth > 0)
    for inverse, metres in ((1e-4, 1e4), (0.0, 1e4), (1e-3, 1e3)):
        found = torch.full(SIZE, inverse, dtype=torch.float64)
        loss = student_loss(found[None], [target], StudentOptions(mode="pure"))
        assert float(loss.absolute) == pytest.approx(math.log(1e4 / metres) / math.log(400))


def test_teacher_on_real_data_drops_a_fifth_and_has_no_gradient_term() -> None:
    found, target = sample()
    loss = teacher_loss(found[None], [target])
    v = target.usable()
    error = (found - 0.5 / target.depth)[v].abs().sort().values
    kept = len(error) - math.ceil(0.2 * len(error))
    assert float(loss.total) == pytest.approx(15 * float(error[:kept].mean()))
    assert float(loss.gradient) == 0 and loss.counted == 1


def test_teacher_on_rendered_data_keeps_all_and_adds_the_gradient_term() -> None:
    found, target = sample(synthetic=True)
    loss = teacher_loss(found[None, None], [target])
    v, truth = target.usable(), 0.5 / target.depth
    gradient = ssi_derivative_error(found[None], truth[None], v[None])
    assert float(loss.absolute) == pytest.approx(float((found - truth)[v].abs().mean()))
    assert float(loss.gradient) == pytest.approx(float(gradient))
    assert float(loss.total) == pytest.approx(15 * float(loss.absolute) + 5 * float(gradient))


@pytest.mark.parametrize("synthetic", [True, False])
def test_teacher_without_metres_is_blind_to_scale(synthetic: bool) -> None:
    found, target = sample(synthetic=synthetic, metric=False)
    loss = teacher_loss(found[None], [target])
    expected = ssi_mae(
        found[None], 0.5 / target.depth[None], target.usable()[None], trim=0.0 if synthetic else 0.2
    )
    assert float(loss.absolute) == pytest.approx(float(expected))
    again = teacher_loss(3 * found[None] + 0.2, [target])
    assert float(again.total) == pytest.approx(float(loss.total))
    metric = DepthTarget(target.depth, target.valid, 0.5, synthetic)
    assert float(teacher_loss(3 * found[None] + 0.2, [metric]).total) > 2 * float(loss.absolute)


def test_samples_of_any_size_are_averaged_not_their_pixels() -> None:
    pairs = [
        sample(0), sample(1, (20, 9)), sample(2, synthetic=True), sample(3, synthetic=True, metric=False),
        sample(4, metric=False), sample(5),
    ]  # fmt: skip
    found, targets = [p[0] for p in pairs], [p[1] for p in pairs]
    for loss in (teacher_loss, student_loss):
        each = [float(loss([f], [t]).total) for f, t in pairs]
        together = loss(found, targets)
        assert together.counted == 6
        assert float(together.total) == pytest.approx(sum(each) / 6)
    alone = [float(teacher_loss([f], [t]).gradient) for f, t in pairs[2:4]]
    assert float(teacher_loss(found, targets).gradient) == pytest.approx(sum(alone) / 2)


def test_prediction_is_resized_to_the_truth() -> None:
    found, target = sample(1, (24, 28))
    small = found[::2, ::2]
    large = torch.nn.functional.interpolate(small[None, None], (24, 28), mode="bilinear", align_corners=False)
    assert float(teacher_loss(small[None], [target]).total) == pytest.approx(
        float(teacher_loss(large, [target]).total)
    )


def test_too_few_pixels_do_not_count_but_keep_the_graph() -> None:
    found, target = sample()
    v = torch.zeros_like(target.valid).reshape(-1)
    v[:63] = True
    few = DepthTarget(target.depth, v.reshape(SIZE).clone(), 0.5)
    found = found.clone().requires_grad_()
    loss = student_loss(found[None], [few])
    assert float(loss.total.detach()) == 0 and loss.counted == 0
    loss.total.backward()
    assert found.grad is not None and not bool(found.grad.any())
    v[63] = True
    assert student_loss(found[None], [DepthTarget(target.depth, v.reshape(SIZE), 0.5)]).counted == 1
    beside = teacher_loss([found, sample(1)[0]], [few, sample(1)[1]])
    assert float(beside.total.detach()) == pytest.approx(float(teacher_loss(*([x] for x in sample(1))).total))


def test_truth_counts_inside_its_range_and_where_finite() -> None:
    depth = torch.tensor([[math.nan, math.inf, 0.0, -1.0, 0.5, 1.0, 5.0, 6.0]])
    target = DepthTarget(depth, torch.ones_like(depth, dtype=torch.bool), depth_range=(1.0, 5.0))
    assert target.usable().tolist() == [[False] * 5 + [True, True, False]]
    found, target = sample()
    dirty = DepthTarget(torch.where(target.valid, target.depth, math.nan), target.valid, 0.5)
    found = found.clone().requires_grad_()
    for loss in (teacher_loss, student_loss):
        one, two = loss(found[None], [dirty]).total, loss(found[None], [target]).total
        assert float(one.detach()) == float(two.detach())
        (grad,) = torch.autograd.grad(one, found)
        assert bool(torch.isfinite(grad).all())


def test_student_is_the_mean_logarithmic_error_over_ln_400() -> None:
    found, target = sample()
    loss = student_loss(found[None], [target])
    v = target.usable()
    error = (torch.log(found / 0.5) + torch.log(target.depth))[v].abs().mean() / math.log(400)
    assert float(loss.absolute) == pytest.approx(float(error))
    a, b = dlog(0.5 / found)[None], dlog(target.depth)[None]
    gradient = ssi_derivative_error(a, b, v[None])
    assert float(loss.total) == pytest.approx(10 * float(error) + 2 * float(gradient))


def test_rival_objectives_use_their_own_space_in_both_terms() -> None:
    found, target = sample()
    v, d = target.usable(), target.depth
    guess = 0.5 / found
    for space, a, b in (
        ("depth", guess, d), ("inverse_depth", 1 / guess, 1 / d), ("log_depth", guess.log(), d.log()),
    ):  # fmt: skip
        loss = student_loss(found[None], [target], StudentOptions(space=space))
        assert float(loss.absolute) == pytest.approx(float((a - b)[v].abs().mean()))
        assert float(loss.gradient) == pytest.approx(float(ssi_derivative_error(a[None], b[None], v[None])))


def test_constant_only_rescales_unless_it_clamps() -> None:
    found, target = sample()
    pure = {
        c: student_loss(found[None], [target], StudentOptions(constant=c, mode="pure")) for c in (4.0, 400.0)
    }
    ratio = math.log(400) / math.log(4)
    assert float(pure[4.0].absolute) == pytest.approx(ratio * float(pure[400.0].absolute))
    assert float(pure[4.0].gradient) == pytest.approx(float(pure[400.0].gradient))
    # Truth reaches 9 m: a range of 4 m changes the loss beyond its factor.
    clamped = student_loss(found[None], [target], StudentOptions(constant=4.0))
    assert float(clamped.absolute) < 0.9 * float(pure[4.0].absolute)
    far = DepthTarget(torch.full(SIZE, 1000.0), torch.ones(SIZE, dtype=torch.bool))
    assert float(student_loss(torch.full((1, *SIZE), 1 / 800), [far]).absolute) == 0
    pure_far = student_loss(torch.full((1, *SIZE), 1 / 800), [far], StudentOptions(mode="pure"))
    assert float(pure_far.absolute) == pytest.approx(math.log(1000 / 800) / math.log(400), rel=1e-4)


def test_a_prediction_of_nothing_still_learns() -> None:
    _, target = sample()
    found = torch.zeros(SIZE, dtype=torch.float64, requires_grad=True)
    student_loss(found[None], [target], StudentOptions(gradient=0)).total.backward()
    v = target.usable()
    # slope of 1 + ln(u) / ln C at u = 1/C, times w/fx, over the pixels; the prediction is too far everywhere
    expected = -10 * 400 / math.log(400) / 0.5 / int(v.sum())
    assert found.grad is not None
    torch.testing.assert_close(found.grad[v], torch.full((int(v.sum()),), expected, dtype=torch.float64))
    x = torch.tensor([-1.0, 0.0, 0.5, 3.0], requires_grad=True)
    y = limited(x, 0.1, 2.0)
    assert y.tolist() == pytest.approx([0.1, 0.1, 0.5, 2.0])
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0] * 4


def test_width_and_focal_length_only_enter_through_their_ratio() -> None:
    found, target = sample()
    twice = DepthTarget(target.depth, target.valid, 2 * target.fx_over_width)
    assert float(student_loss(2 * found[None], [twice]).total) == pytest.approx(
        float(student_loss(found[None], [target]).total)
    )
    assert float(teacher_loss(2 * found[None], [twice]).total) == pytest.approx(
        2 * float(teacher_loss(found[None], [target]).total)
    )


def test_low_precision_is_lifted_to_float32() -> None:
    found, target = sample(synthetic=True)
    half = found[None].to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        under = [loss(half, [target]).total for loss in (teacher_loss, student_loss)]
    plain = [loss(half.float(), [target]).total for loss in (teacher_loss, student_loss)]
    exact = [loss(half.double(), [target]).total for loss in (teacher_loss, student_loss)]
    for a, b, c in zip(under, plain, exact, strict=True):
        assert a.dtype == torch.float32
        assert float(a) == float(b) == pytest.approx(float(c), rel=1e-5)


@pytest.mark.parametrize("space", ["balanced", "depth", "log_depth", "inverse_depth"])
def test_student_gradients_are_those_of_finite_differences(space) -> None:
    found, target = sample(2, (9, 10))
    found.requires_grad_()
    options = StudentOptions(space=space)
    assert torch.autograd.gradcheck(lambda x: student_loss(x[None], [target], options).total, (found,))


@pytest.mark.parametrize("synthetic", [True, False])
def test_teacher_gradients_are_those_of_finite_differences(synthetic: bool) -> None:
    found, target = sample(2, (9, 10), synthetic=synthetic)
    found.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: teacher_loss(x[None], [target]).total, (found,))


def test_what_does_not_fit_is_refused() -> None:
    found, target = sample()
    with pytest.raises(InputError):
        teacher_loss(torch.stack([found, found]), [target])
    with pytest.raises(InputError):
        DepthTarget(target.depth, target.valid[1:])
    with pytest.raises(InputError):
        DepthTarget(target.depth, target.valid, 0.0)
    for wrong in ({"constant": 1.0}, {"space": "sqrt"}, {"mode": "soft"}):
        with pytest.raises(InputError):
            StudentOptions(**wrong)
    with pytest.raises(InputError):
        teacher_loss(found[None], [target], TeacherOptions(trim=1.0))
