"""DINOv3's transformer against formulas written out here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from relief3d.nn.attention import KeyUnbiasedLinear
from relief3d.nn.blocks import SwiGlu
from relief3d.nn.dinov3 import CoordinateRope, DinoV3, DinoV3Config
from relief3d.nn.rope import apply_rope

TINY = DinoV3Config(32, 3, 2, 4, rope_rescale=None, layer_scale=0.3)


def tiny(config: DinoV3Config = TINY) -> DinoV3:
    torch.manual_seed(0)
    net = DinoV3(config)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith(("bias", "gamma")):
                p.add_(0.2 * torch.randn_like(p))
    return net.eval()


def naive_rope(x: Tensor, row: int, col: int, rows: int, cols: int) -> Tensor:
    """One token's head (d,), channel by channel: channel k pairs with k + d / 2."""
    d = len(x)
    out = x.clone()
    for k in range(d // 2):
        axis, i = divmod(k, d // 4)
        centre = ((row + 0.5) / rows, (col + 0.5) / cols)[axis]
        angle = 2 * math.pi * (2 * centre - 1) / 100 ** (2 * i / (d / 2))
        a, b = float(x[k]), float(x[k + d // 2])
        out[k] = a * math.cos(angle) - b * math.sin(angle)
        out[k + d // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def naive(net: DinoV3, image: Tensor) -> Tensor:
    """(1 + P, C) of one picture, token by token and head by head."""
    c, patch = net.config, net.config.patch
    rows, cols = image.shape[-2] // patch, image.shape[-1] // patch
    weight = net.patch_embed.proj.weight.flatten(1)
    cells = [
        weight @ image[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch].flatten()
        + net.patch_embed.proj.bias
        for i in range(rows)
        for j in range(cols)
    ]
    x = torch.cat([net.cls_token[0], net.storage_tokens[0], torch.stack(cells)])
    for b in net.blocks:
        y = torch.nn.functional.layer_norm(x, (c.dim,), b.norm1.weight, b.norm1.bias, 1e-5)
        q, k, v = (y @ w.T for w in b.attn.qkv.weight.chunk(3))
        q, v = q + b.attn.qkv.bias[: c.dim], v + b.attn.qkv.bias[2 * c.dim :]
        heads = []
        for h in range(c.heads):
            at = slice(h * c.dim // c.heads, (h + 1) * c.dim // c.heads)
            turned = [
                torch.stack(
                    [
                        t[n, at] if n < 5 else naive_rope(t[n, at], *divmod(n - 5, cols), rows, cols)
                        for n in range(len(x))
                    ]
                )
                for t in (q, k)
            ]
            heads.append((turned[0] @ turned[1].T / math.sqrt(c.dim / c.heads)).softmax(-1) @ v[:, at])
        x = x + b.ls1.gamma * (torch.cat(heads, -1) @ b.attn.proj.weight.T + b.attn.proj.bias)
        y = torch.nn.functional.layer_norm(x, (c.dim,), b.norm2.weight, b.norm2.bias, 1e-5)
        m = b.mlp
        gate = y @ m.w1.weight.T + m.w1.bias
        y = gate * torch.sigmoid(gate) * (y @ m.w2.weight.T + m.w2.bias)
        x = x + b.ls2.gamma * (y @ m.w3.weight.T + m.w3.bias)
    x = torch.nn.functional.layer_norm(x, (c.dim,), net.norm.weight, net.norm.bias, 1e-5)
    return torch.cat([x[:1], x[5:]])


@torch.no_grad()
def test_the_transformer_is_what_is_written_here() -> None:
    net = tiny()
    images = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(1))
    found = net(images)
    assert found.shape == (2, 1 + 15, 32)
    for mine, image in zip(found, images):
        assert torch.allclose(mine, naive(net, image), atol=2e-5)


def test_names_and_shapes_of_the_published_backbone() -> None:
    with torch.device("meta"):
        state = DinoV3().state_dict()
    assert (
        sum(v.numel() for k, v in state.items() if "bias_mask" not in k and "periods" not in k) == 840_633_600
    )
    assert state["blocks.31.mlp.w1.weight"].shape == (5120, 1280) and state["rope_embed.periods"].shape == (
        16,
    )
    assert state["blocks.0.attn.qkv.bias_mask"].shape == (3840,)


def test_hidden_width_is_rounded_up_to_eights() -> None:
    assert SwiGlu(1280, 6.0).w1.out_features == 5120
    assert SwiGlu(44, 6.0).w1.out_features == 176 and SwiGlu(45, 6.0).w1.out_features == 184


@torch.no_grad()
def test_keys_have_no_bias_wherever_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny()
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    before = net(images)
    for module in net.modules():
        if isinstance(module, KeyUnbiasedLinear):
            assert module.bias_mask.view(3, 32).mean(1).tolist() == [1, 0, 1]
            module.bias[32:64] += 5
    assert torch.equal(net(images), before)
    # Very long sequences without positions are projected in parts, which must mask as well.
    attention, x = net.blocks[0].attn, torch.randn(1, 30, 32, generator=torch.Generator().manual_seed(2))
    whole = attention(x)
    monkeypatch.setattr("relief3d.nn.attention.TOKENS_PER_PASS", 7)
    assert torch.allclose(attention(x), whole, atol=1e-6)


def test_coordinates_are_rescaled_in_training_only() -> None:
    rope = CoordinateRope(16, 100.0, 2.0)
    assert torch.equal(rope.eval()(3, 3, 0).cos, rope(3, 3, 0).cos)
    still = torch.acos(rope(5, 5, 0).cos[1, 3])
    rope.train()
    torch.manual_seed(0)
    factors = []
    for _ in range(200):
        table = rope(5, 5, 2)
        assert torch.equal(table.cos[:2], torch.ones(2, 16)) and not table.sin[:2].any()
        # The longest period turns so little that its angle can be read off.
        factors.append(float(torch.acos(table.cos[3, 3]) / still))
    assert 0.5 <= min(factors) < 0.55 and 1.8 < max(factors) <= 2.0
    # Log-uniform: as often below 1 as above.
    assert abs(sum(f < 1 for f in factors) - 100) < 25
    assert CoordinateRope(16, 100.0, None).train()(3, 3, 0).cos.equal(rope.eval()(3, 3, 0).cos)


@pytest.mark.parametrize("how", ["stored", "autocast"])
@torch.no_grad()
def test_angles_stay_in_single_precision(how: str) -> None:
    net = tiny()
    exact = net.rope(24, 24)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    reference = net(images)
    if how == "stored":
        net = net.bfloat16()
        assert net.rope_embed.periods.dtype == torch.float32 and net.norm.weight.dtype == torch.bfloat16
        found = net(images.bfloat16())
    else:
        with torch.autocast("cpu", torch.bfloat16):
            found = net(images)
    assert torch.equal(net.rope(24, 24).sin, exact.sin) and exact.sin.dtype == torch.float32
    assert float((found.float() - reference).abs().mean()) < 0.02 * float(reference.abs().mean())
    assert net.double().rope_embed.periods.dtype == torch.float64


def test_all_parameters_take_part() -> None:
    net = tiny().train()
    net(torch.rand(1, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    with pytest.raises(ValueError, match="do not divide"):
        net(torch.rand(1, 3, 8, 9))
    with pytest.raises(ValueError, match="divisible by 4"):
        CoordinateRope(6, 100.0, None)


def test_rotation_keeps_lengths() -> None:
    x = torch.randn(2, 5 + 12, 16, generator=torch.Generator().manual_seed(0))
    y = apply_rope(x, CoordinateRope(16, 100.0, None)(3, 4, 5))
    assert torch.allclose(x.norm(dim=-1), y.norm(dim=-1), atol=1e-5) and torch.equal(x[:, :5], y[:, :5])
