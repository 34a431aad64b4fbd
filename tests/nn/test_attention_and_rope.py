"""Attention, rotary embedding and blocks against independent few-liners."""

from __future__ import annotations

import math

import pytest
import torch

from relief3d.nn.attention import Attention, CrossAttention, KeyValueCache
from relief3d.nn.blocks import Block
from relief3d.nn.rope import Rope2D, apply_rope, grid_positions, rope_table
from relief3d.nn.vit import VisionTransformer, VitConfig


def plain_attention(net: Attention, x: torch.Tensor) -> torch.Tensor:
    """One head and one query at a time."""
    heads, dim = net.heads, x.shape[-1]
    d = dim // heads
    qkv = x @ net.qkv.weight.T + net.qkv.bias
    q, k, v = qkv[..., :dim], qkv[..., dim : 2 * dim], qkv[..., 2 * dim :]
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            for t in range(x.shape[1]):
                qt = net.q_norm(q[b, t, part])
                scores = torch.stack([qt @ net.k_norm(k[b, s, part]) for s in range(x.shape[1])]) / math.sqrt(
                    d
                )
                out[b, t, part] = scores.softmax(0) @ v[b, :, part]
    return net.proj(out)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_against_a_loop(qk_norm: bool) -> None:
    torch.manual_seed(0)
    net = Attention(12, 3, qk_norm=qk_norm).double()
    if qk_norm:
        torch.nn.init.normal_(net.q_norm.weight)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    assert torch.allclose(net(x), plain_attention(net, x), atol=1e-12)


def test_rope_turns_pairs_by_the_position() -> None:
    positions = torch.tensor([[0, 0], [2, 3]])
    table = rope_table(positions, 8, 100.0, torch.float64)
    x = torch.randn(2, 8, dtype=torch.float64)
    y = apply_rope(x, table)
    assert torch.equal(y[0], x[0]), "special tokens are not rotated"
    for half, position in ((0, 2.0), (4, 3.0)):  # rows first, then columns
        for k in range(2):
            angle = position * 100.0 ** (-2 * k / 4)
            a, b = x[1, half + k], x[1, half + 2 + k]
            assert torch.allclose(y[1, half + k], a * math.cos(angle) - b * math.sin(angle), atol=1e-6)
            assert torch.allclose(y[1, half + 2 + k], b * math.cos(angle) + a * math.sin(angle), atol=1e-6)


def test_rope_makes_products_depend_on_differences_only() -> None:
    q, k = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)

    def product(p: tuple[int, int], r: tuple[int, int]) -> float:
        table = rope_table(torch.tensor([p, r]), 8, 100.0, torch.float64)
        turned = apply_rope(torch.stack([q, k]), table)
        return float(turned[0] @ turned[1])

    assert product((1, 2), (4, 7)) == pytest.approx(product((11, 5), (14, 10)), abs=1e-6)


def test_grids_start_at_one_behind_special_tokens() -> None:
    assert grid_positions(1, 2, 1).tolist() == [[0, 0], [1, 1], [1, 2]]
    assert grid_positions(2, 1).tolist() == [[0, 0], [1, 0]]


def test_tables_are_remembered_and_bounded() -> None:
    rope = Rope2D(8, keep=2)
    first = rope(2, 3, 1, torch.device("cpu"), torch.float32)
    assert rope(2, 3, 1, torch.device("cpu"), torch.float32).cos is first.cos
    for rows in (3, 4, 5):
        rope(rows, 3, 1, torch.device("cpu"), torch.float32)
    assert len(rope._tables) == 2
    with pytest.raises(ValueError, match="divisible by 4"):
        rope_table(grid_positions(1, 1), 6, 100.0, torch.float32)


def test_views_share_the_tables() -> None:
    torch.manual_seed(0)
    net = Attention(16, 2).double()
    table = rope_table(grid_positions(2, 2), 8, 100.0, torch.float64)
    x = torch.randn(1, 8, 16, dtype=torch.float64)
    twice = rope_table(grid_positions(2, 2).repeat(2, 1), 8, 100.0, torch.float64)
    assert torch.allclose(net(x, table), net(x, twice), atol=1e-12)


def test_streaming_with_a_cache_equals_causal_attention() -> None:
    torch.manual_seed(0)
    net = Attention(8, 2).double()
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    cache = KeyValueCache()
    streamed = torch.cat([net(x[:, i : i + 2], cache=cache) for i in (0, 2, 4)], 1)
    for i in (0, 2, 4):
        whole = net(x[:, : i + 2])[:, i : i + 2]
        assert torch.allclose(streamed[:, i : i + 2], whole, atol=1e-12)
    assert len(cache) == 6


def test_a_limited_cache_drops_the_oldest_but_the_pinned() -> None:
    cache = KeyValueCache(limit=4, pinned=1)
    for i in range(6):
        value = torch.full((1, 1, 1, 1), float(i))
        cache.append(value, value)
    assert cache.k is not None and cache.k.flatten().tolist() == [0, 3, 4, 5]


def test_cross_attention_of_a_set_to_itself_is_attention() -> None:
    torch.manual_seed(0)
    own, cross = Attention(8, 2).double(), CrossAttention(8, 2).double()
    for i, layer in enumerate((cross.q_proj, cross.k_proj, cross.v_proj)):
        layer.weight.data = own.qkv.weight.data[8 * i : 8 * i + 8]
        layer.bias.data = own.qkv.bias.data[8 * i : 8 * i + 8]
    cross.proj.load_state_dict(own.proj.state_dict())
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    assert torch.allclose(cross(x, x), own(x), atol=1e-12)


def test_blocks_scale_what_they_add() -> None:
    block = Block(8, 2, layer_scale=0.0)
    x = torch.randn(1, 3, 8)
    assert torch.equal(block(x), x)
    assert {n for n, _ in Block(8, 2).named_parameters() if "ls" in n} == set()


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        Attention(10, 3)


def test_vit_sizes_and_positions() -> None:
    torch.manual_seed(0)
    net = VisionTransformer(VitConfig(16, 1, 2, patch=4, img_size=12, registers=2)).eval()
    torch.nn.init.normal_(net.pos_embed)
    assert net.position_embedding(3, 3) is net.pos_embed
    assert net.position_embedding(2, 5).shape == (1, 11, 16)
    assert torch.equal(net.position_embedding(2, 5)[:, 0], net.pos_embed[:, 0])
    assert net(torch.rand(2, 3, 8, 20)).shape == (2, 10, 16)
    with pytest.raises(ValueError, match="do not divide into patches"):
        net(torch.rand(1, 3, 9, 20))


def test_tables_remembered_from_inference_serve_training() -> None:
    rope, device = Rope2D(16), torch.device("cpu")
    with torch.inference_mode():
        rope(2, 3, 1, device, torch.float32)
    tokens = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    apply_rope(tokens, rope(2, 3, 1, device, torch.float32)).square().sum().backward()
    assert tokens.grad is not None and torch.allclose(tokens.grad, 2 * tokens, atol=1e-5)


@pytest.mark.parametrize("tokens", [7, 20])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("rope", [False, True])
def test_long_sequences_in_parts_say_the_same(
    monkeypatch: pytest.MonkeyPatch, tokens: int, qk_norm: bool, rope: bool
) -> None:
    torch.manual_seed(0)
    block = Block(16, 2, qk_norm=qk_norm, layer_scale=0.5).eval().double()
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.3)
    table = Rope2D(8)(2, 2, 1, torch.device("cpu"), torch.float64) if rope else None
    x = torch.randn(3, 40, 16, dtype=torch.float64).transpose(0, 1).contiguous().transpose(0, 1)
    whole = block(x, table).detach()
    for module in ("relief3d.nn.attention", "relief3d.nn.blocks"):
        monkeypatch.setattr(f"{module}.TOKENS_PER_PASS", tokens)
    calls: list[int] = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda *a, **k: calls.append(a[0].numel()) or linear(*a, **k)
    )
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(block(x, table), whole, rtol=1e-12, atol=1e-12)
    assert len(calls) > 8, "the sequence really went through in parts"


def test_a_cache_holds_no_more_than_its_tokens() -> None:
    net = Attention(16, 2)
    cache = KeyValueCache()
    with torch.no_grad():
        net(torch.randn(1, 5, 16), cache=cache)
    assert cache.k is not None and cache.v is not None
    assert cache.k.untyped_storage().nbytes() == cache.v.untyped_storage().nbytes() == 5 * 16 * 4


def test_recomputed_activations_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    block = Block(16, 2, layer_scale=0.5).double()
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    gradients = []
    for recompute in (False, True):
        block.recompute = recompute
        block.zero_grad()
        block(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in block.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(block.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
