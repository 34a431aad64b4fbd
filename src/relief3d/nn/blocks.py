"""Transformer blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relief3d.nn.attention import Attend, Attention, KeyValueCache, attend_fully
from relief3d.nn.rope import RopeTable


class LayerScale(nn.Module):
    """Multiply by a learned factor per channel, ``gamma`` (Touvron et al. 2021)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return x * self.gamma


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim if out is None else out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm block: ``x + ls1 * attention(norm1(x))``, then ``x + ls2 * mlp(norm2(x))``.

    Args:
        dim: channels.
        heads: of the attention.
        mlp_ratio: hidden width of the MLP over ``dim``.
        eps: of the block's layer norms.
        qk_norm: see :class:`Attention`.
        layer_scale: initial gamma; None for no scaling.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        eps: float = 1e-5,
        qk_norm: bool = False,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qk_norm=qk_norm)
        self.ls1 = scale()
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = scale()

    def forward(
        self,
        x: Tensor,
        rope: RopeTable | None = None,
        attend: Attend = attend_fully,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C); see :meth:`Attention.forward`."""
        x = x + self.ls1(self.attn(self.norm1(x), rope, attend, cache))
        return x + self.ls2(self.mlp(self.norm2(x)))
