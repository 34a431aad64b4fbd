"""Loss of the lean prompted network, term by term against plain arithmetic."""

from __future__ import annotations

import math

import torch

from relief3d.losses.prompted import PromptedOptions, near_outline, prompted_loss, unlikelihood

B, H, W, P = 2, 8, 10, 4


def arguments(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "log_inverse": torch.randn(B, H, W, generator=g) * 0.1,
        "log_error": torch.randn(B, H, W, generator=g) * 0.3 - 1,
        "mixture": torch.randn(B, H, W, generator=g) * 0.1,
        "doubt": torch.randn(B, P, generator=g),
        "truth": torch.randn(B, H, W, generator=g) * 0.1,
        "valid": torch.rand(B, H, W, generator=g) < 0.93,
        "exact": torch.tensor([True, False]),
        "off": torch.tensor([[0.05, -0.2, 0.3, 9.0], [0.0, 0.0, 0.5, 9.0]]),
        "interpolated": torch.randn(B, H // 2, W // 2, generator=g) * 0.1,
        "unlikely": torch.rand(B, H, W, generator=g),
        "known": torch.tensor([[True, True, True, False], [True, True, True, False]]),
    }


def test_terms_by_hand() -> None:
    a = arguments()
    found = prompted_loss(**a, options=PromptedOptions(outlines=0.0))
    valid = a["valid"]
    exact = [
        abs(float(a["log_inverse"][0, y, x] - a["truth"][0, y, x])) for y, x in valid[0].nonzero().tolist()
    ]
    assert math.isclose(float(found.value[0]), sum(exact) / len(exact), rel_tol=1e-5)
    measured = sorted(abs(float(v)) for v in (a["log_inverse"] - a["truth"])[1][valid[1]])
    kept = measured[: len(measured) - math.ceil(0.2 * len(measured))]
    assert math.isclose(float(found.value[1]), sum(kept) / len(kept), rel_tol=1e-5)
    chosen = [abs(float(a["mixture"][0, y, x] - a["truth"][0, y, x])) for y, x in valid[0].nonzero().tolist()]
    assert math.isclose(float(found.mixture[0]), sum(chosen) / len(chosen), rel_tol=1e-5)
    unlikely = [float(a["unlikely"][0, y, x]) for y, x in valid[0].nonzero().tolist()]
    assert math.isclose(float(found.choice[0]), sum(unlikely) / len(unlikely), rel_tol=1e-5)
    likely = [
        abs(float(a["log_inverse"][1, y, x] - a["truth"][1, y, x]))
        * math.exp(-float(a["log_error"][1, y, x]))
        + float(a["log_error"][1, y, x])
        for y, x in valid[1].nonzero().tolist()
    ]
    assert math.isclose(float(found.error[1]), sum(likely) / len(likely), rel_tol=1e-5)
    wrong = [0.0, 1.0, 1.0]
    each = [
        -(w * math.log(s) + (1 - w) * math.log(1 - s))
        for w, s in zip(wrong, torch.sigmoid(a["doubt"][0, :3]).tolist(), strict=True)
    ]
    assert math.isclose(float(found.doubt[0]), sum(each) / 3, rel_tol=1e-5)
    assert float(found.edges[0]) > 0 and float(found.edges[1]) == 0
    for o in (PromptedOptions(balance=False, outlines=0.0), PromptedOptions(floor=0.03)):
        found = prompted_loss(**a, options=o)
        plain = prompted_loss(
            **{**a, "mixture": a["interpolated"].repeat_interleave(2, 1).repeat_interleave(2, 2)}, options=o
        ).mixture
        for b in range(B):
            share = 0.03 / (float(plain[b]) + 0.03) if o.balance else 1.0
            total = share * (
                o.value * found.value[b] + o.mixture * found.mixture[b] + o.edges * found.edges[b]
            )
            total = total + o.error * found.error[b] + o.doubt * found.doubt[b]
            total = total + o.choice * found.choice[b]
            assert math.isclose(float(found.total[b]), float(total), rel_tol=1e-5)


def test_unknown_truth_says_nothing() -> None:
    a = arguments()
    other = {**a, "truth": torch.where(a["valid"], a["truth"], torch.nan)}
    torch.testing.assert_close(prompted_loss(**a).total, prompted_loss(**other).total)
    none = {**other, "valid": torch.zeros_like(a["valid"]), "known": torch.zeros_like(a["known"])}
    none["log_inverse"] = none["log_inverse"].clone().requires_grad_()
    total = prompted_loss(**none).total
    total.sum().backward()
    assert float(total.detach().abs().sum()) == 0 and float(none["log_inverse"].grad.abs().sum()) == 0  # type: ignore[union-attr]


def test_the_likelihood_teaches_the_error_and_leaves_the_result_alone() -> None:
    a = arguments()
    a["log_inverse"].requires_grad_()
    a["log_error"].requires_grad_()
    prompted_loss(**a).error.sum().backward()
    assert a["log_inverse"].grad is None or float(a["log_inverse"].grad.abs().sum()) == 0
    assert float(a["log_error"].grad.abs().sum()) > 0  # type: ignore[union-attr]
    # The best log error is the log of the error itself.
    error = (a["log_inverse"] - a["truth"]).detach().abs()
    b = {**arguments(), "log_error": error.log().requires_grad_()}
    prompted_loss(**b).error.sum().backward()
    assert float(b["log_error"].grad.abs().max()) < 1e-6  # type: ignore[union-attr]


def test_unlikelihood_by_hand_and_whom_it_teaches() -> None:
    g = torch.Generator().manual_seed(3)
    values = (torch.randn(1, 3, 4, 4, generator=g) * 0.1).requires_grad_()
    logits = torch.randn(1, 3, 4, 4, generator=g).requires_grad_()
    truth = torch.randn(1, 4, 4, generator=g) * 0.1
    found = unlikelihood(values, logits.log_softmax(1), truth)
    weight, fixed = logits.softmax(1).detach(), values.detach()
    for y in range(4):
        for x in range(4):
            likely = sum(
                float(weight[0, k, y, x]) * math.exp(-abs(float(fixed[0, k, y, x] - truth[0, y, x])) / 0.03)
                for k in range(3)
            )
            assert math.isclose(float(found[0, y, x]), -math.log(likely), rel_tol=1e-4)
    found.sum().backward()
    assert values.grad is None and float(logits.grad.abs().sum()) > 0  # type: ignore[union-attr]
    # A truth that no candidate explains is given up, not chased.
    assert float(unlikelihood(values.detach(), logits.detach().log_softmax(1), truth + 9).max()) <= 20 + 1e-4


def test_outlines_count_more_where_truth_is_exact() -> None:
    truth = torch.zeros(1, 8, 12)
    truth[..., 6:] = 0.5
    valid = torch.ones(1, 8, 12, dtype=torch.bool)
    close = near_outline(truth, valid)
    assert close[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    # Unknown pixels make no outline.
    valid[..., 6:] = False
    assert float(near_outline(truth, valid).sum()) == 0
    a = {k: v[:1] for k, v in arguments().items()}
    a["truth"], a["valid"] = torch.zeros(1, H, W), torch.ones(1, H, W, dtype=torch.bool)
    a["truth"][..., 5:] = 0.5
    a["log_inverse"] = a["truth"] + torch.where(torch.arange(W) < 3, 0.2, 0.1)
    for exact, wanted in ((True, (0.2 * 3 + 0.1 * (3 + 4 * 5.0)) / (3 + 3 + 4 * 5)), (False, None)):
        found = prompted_loss(**{**a, "exact": torch.tensor([exact])}, options=PromptedOptions(outlines=4.0))
        if wanted is None:
            plain = prompted_loss(
                **{**a, "exact": torch.tensor([exact])}, options=PromptedOptions(outlines=0.0)
            )
            assert float(found.value) == float(plain.value)
        else:
            assert math.isclose(float(found.value), wanted, rel_tol=1e-5)
