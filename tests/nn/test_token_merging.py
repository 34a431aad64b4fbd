"""Token merging against exact attention, brute force and its own promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nn.work_count import WorkCount
from relief3d.core.errors import InputError
from relief3d.nn.attention import attend_fully
from relief3d.nn.token_merging import MergeConfig, MergedAttention, chosen_patches, nearest

GRID, SPECIALS = (4, 6), 2
SIZE = SPECIALS + GRID[0] * GRID[1]


def random_qkv(views: int, batch: int = 2, heads: int = 3, width: int = 8, size: int = SIZE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, heads, views * size, width)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]


def doubles(views: int, config: MergeConfig) -> tuple[MergedAttention, list[Tensor]]:
    """Inputs in which every patch that may vanish is the double of one that receives."""
    attend, qkv = MergedAttention(SIZE, GRID, SPECIALS, config), random_qkv(views)
    targets, sources = attend._roles(views, torch.device("cpu"))
    pick = torch.randint(len(targets), (len(sources),), generator=torch.Generator().manual_seed(1))
    for x in qkv:
        x[:, :, sources] = x[:, :, targets[pick]]
    return attend, qkv


@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.95])
def test_merging_equal_tokens_changes_nothing(ratio: float) -> None:
    attend, (q, k, v) = doubles(4, MergeConfig(ratio, cell=2))
    exact = attend_fully(q, k, v)
    assert torch.allclose(attend(q, k, v), exact, atol=1e-12)
    merge = attend.plan(k)
    assert merge is not None and float(merge.size.max()) > 1
    # Without the bias the tokens that stand for many would count as one.
    few = torch.nn.functional.scaled_dot_product_attention(*(merge.average(x) for x in (q, k, v)))
    assert not torch.allclose(merge.copy_back(few), exact, atol=1e-3)


def test_nothing_is_merged_at_ratio_zero_or_in_one_view() -> None:
    q, k, v = random_qkv(3)
    assert torch.equal(MergedAttention(SIZE, GRID, SPECIALS, MergeConfig(0))(q, k, v), attend_fully(q, k, v))
    one = [x[:, :, :SIZE] for x in (q, k, v)]
    assert torch.equal(MergedAttention(SIZE, GRID, SPECIALS)(*one), attend_fully(*one))


def test_the_plan_is_what_brute_force_says() -> None:
    views, config = 4, MergeConfig(0.5, cell=3, seed=4)
    attend, (_, k, _) = MergedAttention(SIZE, GRID, SPECIALS, config), random_qkv(views)
    merge = attend.plan(k)
    assert merge is not None
    total = views * SIZE
    gone = int(0.5 * total)
    assert merge.size.shape == (2, total - gone) and (merge.size.sum(1) == total).all()
    picked = chosen_patches(views, GRID, 3, 4)
    assert picked.sum(1).tolist() == [4] * views, "2 x 2 cells"
    for b in range(2):
        flat = k[b].transpose(0, 1).flatten(1)
        receives = [t for t in range(SPECIALS, total) if t % SIZE >= SPECIALS]
        vanish = [t for t in receives if t >= SIZE and not picked[t // SIZE, t % SIZE - SPECIALS]]
        receives = [t for t in receives if t not in set(vanish)]
        cosine = torch.nn.functional.cosine_similarity(flat[vanish][:, None], flat[receives][None], dim=-1)
        best, into = cosine.max(1)
        worst_merged = best.sort(descending=True).values[gone - 1]
        slots = merge.slot[b]
        kept = [t for t in range(total) if not (t in vanish and best[vanish.index(t)] >= worst_merged)]
        assert slots[kept].tolist() == list(range(len(kept))), "those that stay keep their order"
        for i, t in enumerate(vanish):
            if best[i] >= worst_merged:
                assert slots[t] == slots[receives[int(into[i])]]


def test_special_tokens_stay_alone() -> None:
    views = 5
    k = random_qkv(views)[1]
    camera = k[:, :, SIZE : SIZE + 1].clone()
    k.view(2, 3, views, SIZE, 8)[:, :, 1:, SPECIALS:] = camera[
        :, :, None
    ]  # all patches look like a camera token
    merge = MergedAttention(SIZE, GRID, SPECIALS).plan(k)
    assert merge is not None
    special = torch.arange(views * SIZE).view(views, SIZE)[:, :SPECIALS].flatten()
    slots = merge.slot[:, special]
    assert (merge.size.gather(1, slots) == 1).all()
    assert all(len(set(row.tolist())) == len(special) for row in slots)


def test_averages_and_copies() -> None:
    attend, (q, k, v) = MergedAttention(SIZE, GRID, SPECIALS, MergeConfig(0.6, cell=2)), random_qkv(3)
    merge = attend.plan(k)
    assert merge is not None
    mean = merge.average(q)
    for b in range(2):
        for s in (0, 5, merge.size.shape[1] - 1):
            members = (merge.slot[b] == s).nonzero()[:, 0]
            assert len(members) == merge.size[b, s]
            assert torch.allclose(mean[b, :, s], q[b][:, members].mean(1))
    copied = merge.copy_back(mean)
    assert torch.equal(copied[1, :, 40], mean[1, :, int(merge.slot[1, 40])])
    # Every member of a batch is planned by itself.
    both, alone = attend(q, k, v), attend(q[1:], k[1:], v[1:])
    assert torch.allclose(both[1:], alone, atol=1e-12)


def test_the_choice_is_seeded_and_does_not_depend_on_later_views() -> None:
    a, b = chosen_patches(3, (5, 7), 3, 0), chosen_patches(9, (5, 7), 3, 0)
    assert torch.equal(a, b[:3]) and not torch.equal(a, chosen_patches(3, (5, 7), 3, 1))
    assert (a.sum(1) == 6).all(), "cells at the edge may be smaller, but each has one"
    assert len({tuple(row.tolist()) for row in b}) > 3, "views differ"
    q, k, v = random_qkv(4)
    first, second = (MergedAttention(SIZE, GRID, SPECIALS)(q, k, v) for _ in range(2))
    assert torch.equal(first, second)


def test_matching_does_not_depend_on_the_budget() -> None:
    _, k, _ = random_qkv(4)
    targets, sources = torch.arange(30), torch.arange(30, 100)
    whole, parts = nearest(k, targets, sources, 1 << 24), nearest(k, targets, sources, 100)
    assert torch.equal(whole[0], parts[0]) and torch.allclose(whole[1], parts[1])


def test_bfloat16_and_autocast() -> None:
    attend, (q, k, v) = doubles(4, MergeConfig(0.6, cell=2))
    exact = attend_fully(q, k, v)
    small = attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert small.dtype == torch.bfloat16 and (small - exact).abs().max() < 0.05
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (attend(q.bfloat16(), k.bfloat16(), v.bfloat16()) - exact).abs().max() < 0.05


def test_gradients_reach_all_tokens_also_after_inference() -> None:
    attend, qkv = MergedAttention(SIZE, GRID, SPECIALS), random_qkv(3)
    with torch.inference_mode():
        attend(*qkv)
    inputs = [x.requires_grad_() for x in qkv]
    attend(*inputs).square().sum().backward()
    assert all(x.grad is not None and bool((x.grad.abs().sum((1, 3)) > 0).all()) for x in inputs)


def test_gradients_of_values_are_those_of_exact_attention_for_equal_tokens() -> None:
    attend, (q, k, v) = doubles(4, MergeConfig(0.6, cell=2))
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    v.requires_grad_()
    (exact,) = torch.autograd.grad((attend_fully(q, k, v) * weight).sum(), v)
    (got,) = torch.autograd.grad((attend(q, k, v) * weight).sum(), v)
    assert torch.allclose(got.sum(2), exact.sum(2), atol=1e-10), "equal tokens share their gradient"


def test_no_square_matrix_and_little_arithmetic() -> None:
    views, grid, heads, width = 12, (12, 12), 4, 16
    size = 5 + 144
    q, k, v = (x.float() for x in random_qkv(views, 1, heads, width, size))
    attend = MergedAttention(size, grid, 5, MergeConfig(0.9, budget=1 << 14))
    with WorkCount() as merged:
        attend(q, k, v)
    with WorkCount() as exact:
        attend_fully(q, k, v)
    assert merged.largest <= heads * width * views * size
    assert exact.products == 2 * heads * width * (views * size) ** 2
    assert merged.products < 0.2 * exact.products
    merge = attend.plan(k)
    assert merge is not None and merge.size.shape[1] < 0.2 * views * size


def test_bad_settings_are_refused() -> None:
    for bad in ({"ratio": 1.0}, {"ratio": -0.1}, {"cell": 0}, {"budget": 0}):
        with pytest.raises(InputError):
            MergeConfig(**bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="does not have 30 tokens"):
        MergedAttention(30, GRID, SPECIALS)
    with pytest.raises(InputError, match="whole number of views"):
        MergedAttention(SIZE, GRID, SPECIALS)(*(x[:, :, :-1] for x in random_qkv(2)))
    assert MergeConfig(0.9).cell_side() == 4 and MergeConfig(0.75).cell_side() == 2
