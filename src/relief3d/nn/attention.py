"""Multi-head attention, written once for all models.

The inner product itself is a function (:data:`Attend`), so that a model can swap in token merging, sparse or cached
attention without another copy of the projections.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from relief3d.nn.rope import RopeTable, apply_rope

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(B, heads, T, d) queries, keys, values -> (B, heads, T, d)."""

TOKENS_PER_PASS = 8192
"""Without gradients, longer sequences are projected in parts of about so many tokens; only memory depends on it."""


def attend_fully(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of every query to every key, scale d ** -0.5, without storing the weights."""
    return nn.functional.scaled_dot_product_attention(q, k, v)


class KeyValueCache:
    """Keys and values of past tokens for streaming: append the new ones, get all of them.

    Args:
        limit: most tokens to keep; the oldest are dropped, the first ``pinned`` never.
        pinned: tokens that always stay (such as those of the first view).
    """

    def __init__(self, limit: int | None = None, pinned: int = 0) -> None:
        self.limit, self.pinned = limit, pinned
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.k is None else self.k.shape[-2]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, heads, T, d) and return everything kept."""
        if self.k is not None and self.v is not None:
            k, v = torch.cat([self.k, k], -2), torch.cat([self.v, v], -2)
        # The first keys are views of a projection that also holds queries, which need not stay alive.
        k, v = (x if x.untyped_storage().nbytes() == x.nbytes else x.contiguous().clone() for x in (k, v))
        self.k, self.v = self._within(k), self._within(v)
        return k, v

    def _within(self, x: Tensor) -> Tensor:
        if self.limit is None or x.shape[-2] <= self.limit:
            return x
        recent = self.limit - self.pinned
        return torch.cat([x[..., : self.pinned, :], x[..., x.shape[-2] - recent :, :]], -2)


class KeyUnbiasedLinear(nn.Linear):
    """Projection to queries, keys and values whose bias is multiplied by a stored mask: 1, but 0 for keys.

    The mask is part of the state (``bias_mask``), as in the code of DINOv3, where a fresh one holds no numbers.
    """

    bias_mask: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3 * dim)
        mask = torch.ones(3 * dim)
        mask[dim : 2 * dim] = 0
        self.register_buffer("bias_mask", mask)

    def used_bias(self) -> Tensor:
        """(3 * dim,) what is added."""
        return self.bias * self.bias_mask.to(self.bias.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., 3 * dim)."""
        return nn.functional.linear(x, self.weight, self.used_bias())


class Attention(nn.Module):
    """Self-attention with one projection to queries, keys and values (rows of ``qkv`` in that order, head-major).

    Args:
        dim: channels, a multiple of ``heads``.
        heads: number of heads.
        qk_norm: layer norm over the channels of a head on queries and keys, shared by the heads, eps 1e-5.
        qkv_bias: bias of the input projection.
        key_bias: whether keys get theirs; if not, the projection is a :class:`KeyUnbiasedLinear`.
    """

    def __init__(
        self, dim: int, heads: int, *, qk_norm: bool = False, qkv_bias: bool = True, key_bias: bool = True
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{dim} channels do not divide into {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias) if key_bias else KeyUnbiasedLinear(dim)
        self.q_norm: nn.Module = nn.LayerNorm(dim // heads, eps=1e-5) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = nn.LayerNorm(dim // heads, eps=1e-5) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        rope: RopeTable | None = None,
        attend: Attend = attend_fully,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Mix (B, T, C) tokens.

        Args:
            x: tokens; with ``rope`` of T' rows, T must be a multiple of T' (views after views share the tables).
            rope: tables of one view.
            attend: the inner product.
            cache: past keys and values, to which this call's are added.
        """
        if attend is attend_fully and cache is None and not torch.is_grad_enabled():
            parts = _whole_views(x.shape[1], x.shape[0], rope)
            if len(parts) > 1:
                return self._in_parts(x, rope, parts)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self._ready(q, self.q_norm, rope, v.dtype), self._ready(k, self.k_norm, rope, v.dtype)
        if cache is not None:
            k, v = cache.append(k, v)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))

    @staticmethod
    def _ready(x: Tensor, norm: nn.Module, rope: RopeTable | None, dtype: torch.dtype) -> Tensor:
        """Normed and rotated queries or keys; norms may have promoted them under autocast."""
        x = norm(x)
        return (x if rope is None else _rotated(x, rope)).to(dtype)

    def _in_parts(self, x: Tensor, rope: RopeTable | None, parts: list[slice]) -> Tensor:
        """The same with keys and values of all tokens in memory, but queries and products of one part only."""
        heads, dim = self.heads, x.shape[-1]
        qkv = self.qkv
        weight, bias = qkv.weight, qkv.used_bias() if isinstance(qkv, KeyUnbiasedLinear) else qkv.bias

        def project(at: slice, rows: slice) -> Tensor:
            y = nn.functional.linear(x[:, at], weight[rows], None if bias is None else bias[rows])
            return y.unflatten(-1, (-1, heads, dim // heads)).permute(2, 0, 3, 1, 4)

        keys, values = None, None
        for at in parts:
            k, v = project(at, slice(dim, None)).unbind(0)
            if keys is None or values is None:
                size = (*v.shape[:2], x.shape[1], v.shape[-1])
                keys, values = v.new_empty(size), v.new_empty(size)
            keys[:, :, at], values[:, :, at] = self._ready(k, self.k_norm, rope, v.dtype), v
        assert keys is not None and values is not None
        out = None
        for at in parts:
            q = self._ready(project(at, slice(0, dim))[0], self.q_norm, rope, values.dtype)
            y = self.proj(attend_fully(q, keys, values).transpose(1, 2).flatten(2))
            out = y.new_empty(x.shape) if out is None else out
            out[:, at] = y
        assert out is not None
        return out


def _whole_views(tokens: int, batch: int, rope: RopeTable | None) -> list[slice]:
    """Slices of whole views (rows of the rotary tables) with about TOKENS_PER_PASS tokens each."""
    unit = 1 if rope is None else rope.cos.shape[0]
    step = max(1, TOKENS_PER_PASS // (unit * batch)) * unit
    return [slice(i, min(i + step, tokens)) for i in range(0, tokens, step)]


def _rotated(x: Tensor, rope: RopeTable) -> Tensor:
    """Apply the tables of one view to (B, heads, views * T', d)."""
    rows = rope.cos.shape[0]
    if x.shape[-2] == rows:
        return apply_rope(x, rope)
    return apply_rope(x.unflatten(-2, (-1, rows)), rope).flatten(-3, -2)


class CrossAttention(nn.Module):
    """Attention of queries to another set of tokens, with separate projections (``q_proj``, ``k_proj``, ``v_proj``).

    Args:
        dim: channels.
        heads: number of heads.
        qk_norm: as in :class:`Attention`.
    """

    def __init__(self, dim: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{dim} channels do not divide into {heads} heads")
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.q_norm: nn.Module = nn.LayerNorm(dim // heads, eps=1e-5) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = nn.LayerNorm(dim // heads, eps=1e-5) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        rope: RopeTable | None = None,
        context_rope: RopeTable | None = None,
        attend: Attend = attend_fully,
    ) -> Tensor:
        """Mix (B, K, C) context into (B, T, C) queries."""
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.q_proj, x), (self.k_proj, context), (self.v_proj, context))
        )
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q = _rotated(q, rope)
        if context_rope is not None:
            k = _rotated(k, context_rope)
        return self.proj(attend(q.to(v.dtype), k.to(v.dtype), v).transpose(1, 2).flatten(2))
