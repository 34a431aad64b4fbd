"""Sparse attention across views against masked dense attention, and the choice by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nn.work_count import WorkCount
from relief3d.core.errors import InputError
from relief3d.models.multiview.attention_choice import DESCRIPTIONS, AttentionSettings, attention_by_name
from relief3d.nn.attention import attend_fully
from relief3d.nn.sparse_attention import SparseAttention, SparseConfig, WindowedAttention, tiles
from relief3d.nn.token_merging import MergeConfig, MergedAttention

GRID, SPECIALS, VIEWS = (5, 6), 2, 3
SIZE = SPECIALS + GRID[0] * GRID[1]


def random_qkv(batch: int = 2, heads: int = 3, width: int = 8, size: int = SIZE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, heads, VIEWS * size, width)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]


def dense(q: Tensor, k: Tensor, v: Tensor, config: SparseConfig, specials: int) -> Tensor:
    """The same with a mask of all pairs, one head at a time."""
    size = specials + GRID[0] * GRID[1]
    shape = tiles(GRID, config.block)
    members = [
        (view * size + specials + index[there]).tolist()
        for view in range(VIEWS)
        for index, there in zip(shape.index, shape.there, strict=True)
    ]
    count = math.ceil(config.keep * len(members))
    special = [view * size + s for view in range(VIEWS) for s in range(specials)]
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            mask = torch.zeros(q.shape[2], q.shape[2], dtype=torch.bool)
            mask[special], mask[:, special] = True, True
            means = [torch.stack([x[b, h, m].mean(0) for m in members]) for x in (q, k)]
            scores = means[0] @ means[1].T / math.sqrt(q.shape[-1])
            for i, row in enumerate(scores):
                share = row.softmax(0)
                order = sorted(range(len(members)), key=lambda j: (j != i, -float(row[j])))
                total = 0.0
                for j in order[:count]:
                    if config.mass is not None and total >= config.mass:
                        break
                    total += float(share[j])
                    for t in members[i]:
                        mask[t, members[j]] = True
            weight = (q[b, h] @ k[b, h].T / math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf)
            out[b, h] = weight.softmax(-1) @ v[b, h]
    return out


@pytest.mark.parametrize("grid", [(5, 6), (16, 16), (37, 28), (1, 100), (3, 2)])
@pytest.mark.parametrize("block", [1, 9, 64, 128])
def test_tiles_cover_every_patch_once(grid: tuple[int, int], block: int) -> None:
    found = tiles(grid, block)
    assert sorted(found.index[found.there].tolist()) == list(range(grid[0] * grid[1]))
    assert found.index.shape[1] <= block
    if grid[0] * grid[1] > 2 * block and block >= 64 and min(grid) > 1:
        assert found.there.float().mean() > 0.85
        rows = found.index // grid[1]
        assert int((rows.max(1).values - rows.min(1).values).max()) < 16, "tiles, not stripes"


@pytest.mark.parametrize("specials", [0, 2, 5])
@pytest.mark.parametrize("block", [4, 7, 30])
def test_all_blocks_are_exact_attention(block: int, specials: int) -> None:
    q, k, v = random_qkv(size=specials + 30)
    config = SparseConfig(keep=0.9999, block=block, budget=4000)  # below 1, so that the gathers run
    attend = SparseAttention(specials + 30, GRID, specials, config)
    assert torch.allclose(attend(q, k, v), attend_fully(q, k, v), atol=1e-12)


@pytest.mark.parametrize("config", [
    SparseConfig(keep=0.3, block=8, budget=2000),
    SparseConfig(keep=0.05, block=4, budget=1 << 20),
    SparseConfig(keep=1.0, mass=0.4, block=6, budget=5000),
    SparseConfig(keep=0.5, mass=0.3, block=9),
])  # fmt: skip
@pytest.mark.parametrize("specials", [0, 2])
def test_some_blocks_are_masked_attention(config: SparseConfig, specials: int) -> None:
    q, k, v = random_qkv(size=specials + 30)
    got = SparseAttention(specials + 30, GRID, specials, config)(q, k, v)
    assert torch.allclose(got, dense(q, k, v, config, specials), atol=1e-12)
    assert not torch.allclose(got, attend_fully(q, k, v), atol=1e-3)


def test_where_attention_is_concentrated_little_is_lost() -> None:
    """Every block has a direction of its own, and queries look for one of them."""
    q, k, v = random_qkv(1, 1, 48)
    shape = tiles(GRID, 9)
    blocks = VIEWS * len(shape.index)
    generator = torch.Generator().manual_seed(3)
    axes = torch.linalg.qr(torch.randn(48, 48, generator=generator, dtype=torch.float64)).Q[:blocks]
    wanted = torch.randperm(blocks, generator=generator)
    for i in range(blocks):
        view, tile = divmod(i, len(shape.index))
        members = view * SIZE + SPECIALS + shape.index[tile][shape.there[tile]]
        k[0, 0, members] = 0.1 * k[0, 0, members] + 30 * axes[i]
        q[0, 0, members] = 0.1 * q[0, 0, members] + 5 * axes[wanted[i]]
    got = SparseAttention(SIZE, GRID, SPECIALS, SparseConfig(keep=2 / blocks, block=9))(q, k, v)
    assert torch.allclose(got, attend_fully(q, k, v), atol=1e-6)


def test_special_tokens_see_and_are_seen_everywhere() -> None:
    q, k, v = random_qkv(1)
    attend = SparseAttention(SIZE, GRID, SPECIALS, SparseConfig(keep=0.01, block=4))
    before = attend(q, k, v)
    other = v.clone()
    other[:, :, 2 * SIZE + 1] += 1.0
    assert ((attend(q, k, other) - before).abs().amax((0, 1, 3)) > 1e-6).all()
    other = v.clone()
    other[:, :, 2 * SIZE + SPECIALS] += 1.0
    changed = (attend(q, k, other) - before).abs().amax((0, 1, 3)) > 1e-9
    special = torch.arange(VIEWS * SIZE) % SIZE < SPECIALS
    assert changed[special].all() and not changed[~special].all()
    exact = attend_fully(q, k, v)[:, :, special]
    assert torch.allclose(before[:, :, special], exact, atol=1e-12)


def test_bfloat16_and_gradients() -> None:
    q, k, v = random_qkv()
    attend = SparseAttention(SIZE, GRID, SPECIALS, SparseConfig(keep=0.9999, block=8))
    small = attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert small.dtype == torch.bfloat16 and (small - attend_fully(q, k, v)).abs().max() < 0.05
    inputs = [x.requires_grad_() for x in (q, k, v)]
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = torch.autograd.grad((attend_fully(*inputs) * weight).sum(), inputs)
    for block in (7, 8, 30):
        attend = SparseAttention(SIZE, GRID, SPECIALS, SparseConfig(keep=0.9999, block=block))
        got = torch.autograd.grad((attend(*inputs) * weight).sum(), inputs)
        for a, b in zip(got, exact, strict=True):
            assert torch.allclose(a, b, atol=1e-10)


def test_work_follows_the_share() -> None:
    size = 5 + 256
    q, k, v = (x.float() for x in random_qkv(1, 2, 16, size))
    with WorkCount() as exact:
        attend_fully(q, k, v)
    with WorkCount() as sparse:
        SparseAttention(size, (16, 16), 5, SparseConfig(keep=0.1, block=64, budget=1 << 14))(q, k, v)
    assert sparse.products < 0.4 * exact.products
    assert sparse.largest <= 2 * q.numel()


def test_windows_cost_the_same_per_view() -> None:
    q, k, v = (x.float() for x in random_qkv(1, 2, 16, 32))
    costs = []
    for repeats in (4, 8):
        with WorkCount() as counted:
            WindowedAttention(32, 1)(*(x.repeat(1, 1, repeats, 1) for x in (q, k, v)))
        costs.append(counted.products)
    assert costs[1] < 2.2 * costs[0]


@pytest.mark.parametrize("window", [0, 1, 2])
def test_windows_are_masked_attention(window: int) -> None:
    generator = torch.Generator().manual_seed(0)
    views, size = 6, 4
    q, k, v = (torch.randn(2, 3, views * size, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    view = torch.arange(views * size) // size
    mask = ((view[:, None] - view).abs() <= window) | (view == 0)
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.allclose(WindowedAttention(size, window)(q, k, v), exact, atol=1e-12)
    assert torch.allclose(WindowedAttention(size, views)(q, k, v), attend_fully(q, k, v), atol=1e-12)


def test_attention_by_name() -> None:
    layout = {"tokens_per_view": SIZE, "grid": GRID, "specials": SPECIALS}
    q, k, v = random_qkv()
    assert attention_by_name("exact", **layout) is attend_fully  # type: ignore[arg-type]
    settings = AttentionSettings(MergeConfig(0.0), SparseConfig(keep=1.0), window=VIEWS)
    for name in DESCRIPTIONS:
        same = attention_by_name(name, **layout, settings=settings)(q, k, v)  # type: ignore[arg-type]
        assert torch.allclose(same, attend_fully(q, k, v), atol=1e-12), name
    merged = attention_by_name("merged", **layout)  # type: ignore[arg-type]
    assert isinstance(merged, MergedAttention) and merged.config.ratio == 0.9
    with pytest.raises(InputError, match=r"no attention called 'fast'.*choose one of exact, merged"):
        attention_by_name("fast", **layout)  # type: ignore[arg-type]


def test_bad_settings_are_refused() -> None:
    for bad in ({"keep": 0.0}, {"keep": 1.5}, {"mass": 0.0}, {"block": 0}, {"budget": 0}):
        with pytest.raises(InputError):
            SparseConfig(**bad)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        WindowedAttention(SIZE, -1)
    with pytest.raises(InputError, match="does not have 31 tokens"):
        SparseAttention(31, GRID, SPECIALS)
    with pytest.raises(InputError, match="whole number of views"):
        SparseAttention(SIZE, GRID, SPECIALS)(*(x[:, :, :-1] for x in random_qkv()))
