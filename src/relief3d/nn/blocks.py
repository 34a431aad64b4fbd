"""Transformer blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from relief3d.nn.attention import TOKENS_PER_PASS, Attend, Attention, KeyValueCache, attend_fully
from relief3d.nn.rope import RopeTable


class LayerScale(nn.Module):
    """Multiply by a learned factor per channel, ``gamma`` (Touvron et al. 2021)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return x * self.gamma


def _in_parts(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A layer that acts on every token of (..., C) alone; without gradients, many tokens go through in parts, which
    bounds what it holds inside.
    """
    if torch.is_grad_enabled() or x.numel() <= TOKENS_PER_PASS * x.shape[-1]:
        return layer(x)
    flat, out = x.flatten(0, -2), None
    for i in range(0, len(flat), TOKENS_PER_PASS):
        part = layer(flat[i : i + TOKENS_PER_PASS])
        out = part.new_empty(len(flat), part.shape[-1]) if out is None else out
        out[i : i + TOKENS_PER_PASS] = part
    assert out is not None
    return out.unflatten(0, x.shape[:-1])


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim if out is None else out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        return _in_parts(lambda part: self.fc2(nn.functional.gelu(self.fc1(part))), x)


class SwiGlu(nn.Module):
    """``w3(silu(w1 x) * w2 x)`` with biases (Shazeer 2020).

    Args:
        dim: channels.
        ratio: 3/2 of the hidden width over ``dim``, so that a ratio costs as much as in :class:`Mlp`; the width is
            rounded up to a multiple of 8.
    """

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        hidden = -(-int(dim * ratio * 2 / 3) // 8) * 8
        self.w1 = nn.Linear(dim, hidden)
        self.w2 = nn.Linear(dim, hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return _in_parts(lambda part: self.w3(nn.functional.silu(self.w1(part)) * self.w2(part)), x)


class Block(nn.Module):
    """Pre-norm block: ``x + ls1 * attention(norm1(x))``, then ``x + ls2 * mlp(norm2(x))``.

    Args:
        dim: channels.
        heads: of the attention.
        mlp_ratio: hidden width of the MLP over ``dim``.
        eps: of the block's layer norms.
        qk_norm: see :class:`Attention`.
        layer_scale: initial gamma; None for no scaling.
        key_bias: see :class:`Attention`.
        gated: :class:`SwiGlu` of that ratio instead of :class:`Mlp`.

    Attributes:
        recompute: forget activations in training and compute them again in the backward pass.
    """

    recompute = False

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        eps: float = 1e-5,
        qk_norm: bool = False,
        layer_scale: float | None = None,
        key_bias: bool = True,
        gated: bool = False,
    ) -> None:
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qk_norm=qk_norm, key_bias=key_bias)
        self.ls1 = scale()
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp: nn.Module = SwiGlu(dim, mlp_ratio) if gated else Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = scale()

    def forward(
        self,
        x: Tensor,
        rope: RopeTable | None = None,
        attend: Attend = attend_fully,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C); see :meth:`Attention.forward`."""
        if self.recompute and cache is None and torch.is_grad_enabled():
            out: Tensor = checkpoint(self._forward, x, rope, attend, cache, use_reentrant=False)
            return out
        return self._forward(x, rope, attend, cache)

    def modulated(
        self, x: Tensor, rope: RopeTable | None, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The same with normalised features scaled and shifted before attention and before the MLP (adaptive norms,
        Peebles and Xie 2023).

        Args:
            x: (B, T, C).
            rope: see :meth:`Attention.forward`.
            first: scale and shift (B, T, C) before attention.
            second: those before the MLP.
        """
        x = add_branch(x, self.attn(self.norm1(x) * first[0] + first[1], rope), self.ls1)
        return add_branch(x, self.mlp(self.norm2(x) * second[0] + second[1]), self.ls2)

    def _forward(
        self, x: Tensor, rope: RopeTable | None, attend: Attend, cache: KeyValueCache | None
    ) -> Tensor:
        x = add_branch(x, self.attn(self.norm1(x), rope, attend, cache), self.ls1)
        return add_branch(x, self.mlp(self.norm2(x)), self.ls2)


def add_branch(x: Tensor, branch: Tensor, scale: nn.Module) -> Tensor:
    """``x + scale(branch)`` in one operation; without gradients in the memory of the branch."""
    if not isinstance(scale, LayerScale):
        return x + scale(branch)
    if torch.is_grad_enabled() or x.dtype != branch.dtype or scale.gamma.dtype != x.dtype:
        return torch.addcmul(x, branch, scale.gamma)
    return torch.addcmul(x, branch, scale.gamma, out=branch)


def run_in_chunks(block: nn.Module, x: Tensor, rope: RopeTable | None, chunk: int | None) -> Tensor:
    """A block over (M, T, C) tokens that do not mix between rows, ``chunk`` rows at a time, which saves memory."""
    if chunk is None or chunk >= len(x):
        return block(x, rope)
    if torch.is_grad_enabled():
        return torch.cat([block(x[i : i + chunk], rope) for i in range(0, len(x), chunk)])
    out = None
    for i in range(0, len(x), chunk):
        part = block(x[i : i + chunk], rope)
        out = part.new_empty(len(x), *part.shape[1:]) if out is None else out
        out[i : i + chunk] = part
    assert out is not None
    return out
