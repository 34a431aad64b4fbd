"""Attention across views that looks only where it is likely to pay: the best blocks of keys, or the nearest views.

Block-sparse attention follows the idea of "Faster VGGT with Block-Sparse Global Attention" (Wang et al. 2025,
arXiv 2509.07120): average queries and keys over blocks of patches, score pairs of blocks, and compute attention only
for the best ones, while special tokens attend and are attended everywhere. It is written with gathers, so it needs no
kernel of its own. Windowed attention is for ordered video: a view attends to its neighbours and to the first view.

Both are approximations: see ``benchmarks/efficient_attention.py`` for what they cost and what they save.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.nn.attention import attend_fully
from relief3d.nn.token_merging import check_layout, view_count


@dataclass(frozen=True)
class SparseConfig:
    """Which blocks are looked at.

    Attributes:
        keep: share of the key blocks that every block of queries looks at, 0 < keep <= 1; 1 is exact attention.
        mass: of these, only the best until this share of the softmax over the block scores is reached; None for
            all of them.
        block: most patches per block. Blocks are tiles of one view.
        budget: most gathered numbers in memory at a time, for keys and values each (at least for one block of
            queries of one head); None chooses by device.
    """

    keep: float = 0.25
    mass: float | None = None
    block: int = 128
    budget: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1 or (self.mass is not None and not 0 < self.mass <= 1):
            raise InputError("the shares of sparse attention must be in (0, 1]")
        if self.block < 1 or (self.budget is not None and self.budget < 1):
            raise InputError("block and budget of sparse attention must be positive")


CPU_BUDGET, BUDGET = 1 << 22, 1 << 26
"""Gathered numbers: on CPUs what the caches hold, elsewhere what keeps the device busy."""


@dataclass(frozen=True)
class _Blocks:
    """Tiles of a view's patches: (blocks, members) token numbers, and whether a member is there."""

    index: Tensor
    there: Tensor


class SparseAttention:
    """An :data:`~relief3d.nn.attention.Attend` over the best blocks of keys; memory is bounded by ``budget``.

    Args:
        tokens_per_view: specials and patches; T must be a multiple.
        grid: rows and columns of patches.
        specials: tokens before the patches of a view.
        config: which blocks are looked at.

    Raises:
        InputError: the numbers of tokens do not fit.
    """

    def __init__(
        self,
        tokens_per_view: int,
        grid: tuple[int, int],
        specials: int,
        config: SparseConfig | None = None,
    ) -> None:
        check_layout(tokens_per_view, grid, specials)
        self.tokens_per_view, self.specials = tokens_per_view, specials
        self.config = config or SparseConfig()
        self._tiles = tiles(grid, self.config.block)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, heads, T, d) queries, keys, values -> (B, heads, T, d)."""
        views = view_count(q.shape[2], self.tokens_per_view)
        blocks = self._blocks(views, q.device)
        count = min(len(blocks.index), math.ceil(self.config.keep * len(blocks.index)))
        if self.config.keep == 1 and self.config.mass is None:
            return attend_fully(q, k, v)
        batch, heads, tokens, width = q.shape
        flat = [x.reshape(batch * heads, tokens, width) for x in (q, k, v)]
        first = torch.arange(0, tokens, self.tokens_per_view, device=q.device)
        special = (first[:, None] + torch.arange(self.specials, device=q.device)).flatten()
        # Blocks of queries, over all heads, whose keys fit the budget.
        looked_at = count + math.ceil(len(special) / blocks.index.shape[1])
        budget = self.config.budget or (CPU_BUDGET if q.device.type == "cpu" else BUDGET)
        fit = max(1, budget // (looked_at * blocks.index.shape[1] * width))
        at_once = min(len(flat[0]), fit)
        parts = [
            self._attended([x[i : i + at_once] for x in flat], blocks, special, count, fit // at_once)
            for i in range(0, len(flat[0]), at_once)
        ]
        return torch.cat(parts).view(batch, heads, tokens, width)

    def _attended(
        self, flat: list[Tensor], blocks: _Blocks, special: Tensor, count: int, step: int
    ) -> Tensor:
        """(M, T, d) for some heads, ``step`` blocks of queries at a time."""
        q, k, v = flat
        out = torch.empty_like(q)
        if len(special):
            out[:, special] = attend_fully(q[:, None, special], k[:, None], v[:, None])[:, 0]
        pooled = _pooled(q, blocks), _pooled(k, blocks)
        all_blocks = _with_specials(blocks, special)
        # Whole blocks lie together, so that gathering is copying; special tokens are blocks at the end.
        packed = [x[:, all_blocks.index].flatten(0, 1) for x in (k, v)]
        for i in range(0, len(blocks.index), step):
            chosen, used = self._choose(pooled[0][:, i : i + step], pooled[1], i, count, all_blocks)
            asked = blocks.index[i : i + step]
            keys, values = (_gathered(x, chosen, len(all_blocks.index)) for x in packed)
            seen = (all_blocks.there[chosen] & used[..., None]).flatten(2)[:, :, None]
            found = nn.functional.scaled_dot_product_attention(q[:, asked], keys, values, attn_mask=seen)
            # Places without a patch repeat a patch of their block: they write the same result twice, and must not
            # count twice in gradients.
            if found.requires_grad:
                there = blocks.there[i : i + step, :, None]
                found = torch.where(there, found, found.detach())
            out[:, asked.flatten()] = found.flatten(1, 2).to(out.dtype)
        return out

    def _choose(self, q: Tensor, k: Tensor, start: int, count: int, blocks: _Blocks) -> tuple[Tensor, Tensor]:
        """(M, n, count + S) key blocks for every block of queries, and which of them are used.

        Args:
            q: (M, n, d) averaged queries.
            k: (M, blocks, d) averaged keys.
            start: number of the first of these blocks.
            count: how many to take.
            blocks: those of patches, and S more that are always taken.
        """
        score = q @ k.mT * q.shape[-1] ** -0.5
        own = torch.arange(start, start + q.shape[1], device=q.device)
        # A block always looks at itself.
        ranked = score.scatter(2, own[None, :, None].expand(len(q), -1, 1), torch.inf)
        chosen = ranked.topk(count, dim=-1).indices
        used = torch.ones_like(chosen, dtype=torch.bool)
        if self.config.mass is not None:
            share = score.softmax(-1).gather(2, chosen)
            used = share.cumsum(-1) - share < self.config.mass
        extra = torch.arange(k.shape[1], len(blocks.index), device=q.device).expand(*chosen.shape[:2], -1)
        return torch.cat([chosen, extra], 2), torch.cat([used, torch.ones_like(extra, dtype=torch.bool)], 2)

    def _blocks(self, views: int, device: torch.device) -> _Blocks:
        first = torch.arange(views, device=device)[:, None, None] * self.tokens_per_view + self.specials
        index = (first + self._tiles.index.to(device)).flatten(0, 1)
        return _Blocks(index, self._tiles.there.to(device).repeat(views, 1))


class WindowedAttention:
    """An :data:`~relief3d.nn.attention.Attend` for ordered video: cost and memory grow with the number of views.

    Args:
        tokens_per_view: T must be a multiple.
        window: neighbours on each side that a view attends to, besides itself and the first view.

    Raises:
        InputError: the window is negative.
    """

    def __init__(self, tokens_per_view: int, window: int = 8) -> None:
        if window < 0 or tokens_per_view < 1:
            raise InputError(f"the window of neighbouring views must not be negative, got {window}")
        self.tokens_per_view, self.window = tokens_per_view, window

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, heads, T, d) queries, keys, values -> (B, heads, T, d)."""
        size = self.tokens_per_view
        views = view_count(q.shape[2], size)
        parts = []
        for i in range(views):
            low, high = max(0, i - self.window), min(views, i + self.window + 1)
            near = slice(low * size, high * size)
            keys, values = k[:, :, near], v[:, :, near]
            if low > 0:
                keys = torch.cat([k[:, :, :size], keys], 2)
                values = torch.cat([v[:, :, :size], values], 2)
            parts.append(attend_fully(q[:, :, i * size : (i + 1) * size], keys, values))
        return torch.cat(parts, 2)


def tiles(grid: tuple[int, int], block: int) -> _Blocks:
    """The patches of a view in tiles of nearly equal size, at most ``block`` patches and nearly square.

    Places that a smaller tile does not fill repeat its last patch and are not ``there``.
    """
    rows, cols = grid
    side = max(1, math.isqrt(block))
    across = math.ceil(cols / min(cols, max(side, block // min(rows, side))))
    down = math.ceil(rows / max(1, block // math.ceil(cols / across)))
    number = torch.arange(rows * cols).view(rows, cols)
    found = [
        tile.flatten()
        for strip in torch.tensor_split(number, down, 0)
        for tile in torch.tensor_split(strip, across, 1)
    ]
    longest = max(len(t) for t in found)
    index = torch.stack([torch.cat([t, t[-1:].expand(longest - len(t))]) for t in found])
    there = torch.stack([torch.arange(longest) < len(t) for t in found])
    return _Blocks(index, there)


def _with_specials(blocks: _Blocks, special: Tensor) -> _Blocks:
    """The special tokens in further blocks of the same length."""
    length = blocks.index.shape[1]
    missing = -len(special) % length
    index = torch.cat([special, special[-1:].expand(missing)]).view(-1, length)
    there = torch.arange(len(special) + missing, device=special.device).view(-1, length) < len(special)
    return _Blocks(torch.cat([blocks.index, index]), torch.cat([blocks.there, there]))


def _gathered(packed: Tensor, chosen: Tensor, blocks: int) -> Tensor:
    """(M * blocks, members, d) and (M, n, count) -> (M, n, count * members, d)."""
    groups, n = chosen.shape[:2]
    index = chosen + torch.arange(groups, device=chosen.device)[:, None, None] * blocks
    return packed.index_select(0, index.flatten()).view(groups, n, -1, packed.shape[-1])


def _pooled(x: Tensor, blocks: _Blocks) -> Tensor:
    """(M, T, d) -> (M, blocks, d) means over the members, in float32."""
    kind = torch.promote_types(x.dtype, torch.float32)
    weight = blocks.there.to(kind)
    weight = weight / weight.sum(1, keepdim=True)
    total = x.new_zeros(len(x), len(weight), x.shape[2], dtype=kind)
    for i, member in enumerate(blocks.index.unbind(1)):
        total = total + x[:, member].to(kind) * weight[:, i, None]
    return total
