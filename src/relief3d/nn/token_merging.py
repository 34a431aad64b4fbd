"""Attention across views on fewer tokens: alike tokens are averaged before, and the results copied back after.

The idea is that of token merging (Bolya et al., ToMe, ICLR 2023) as used across views by FastVGGT (Shen et al. 2025,
arXiv 2509.02560); the code is our own and differs in what is averaged and how:

- every token of the first view and one random patch per cell of the others may receive others (destinations);
- special tokens (camera, registers) neither receive nor vanish;
- the other patches look for the destination with the most similar key, and the most similar ones are merged, so that
  patches unlike any destination stay as they are;
- keys and values are averaged, and a key of n tokens gets the bias log n in the softmax, so that merging equal tokens
  changes nothing; queries are averaged too, and each merged token takes the result of the token it went into.

This is an approximation: see ``benchmarks/efficient_attention.py`` for what it costs and what it saves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.nn.attention import attend_fully


@dataclass(frozen=True)
class MergeConfig:
    """What is merged.

    Attributes:
        ratio: share of all tokens that vanish, 0 <= ratio < 1; 0 is exact attention. With few views less is
            possible, because the first view stays whole.
        cell: side in patches of the cells that keep one destination each; None takes the smallest that allows
            the ratio.
        seed: of the choice within the cells.
        budget: most similarities in memory at a time.
    """

    ratio: float = 0.9
    cell: int | None = None
    seed: int = 0
    budget: int = 1 << 24

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise InputError(f"the merge ratio must be in [0, 1), got {self.ratio}")
        if (self.cell is not None and self.cell < 1) or self.budget < 1:
            raise InputError("cell and budget of token merging must be positive")

    def cell_side(self) -> int:
        """Patches per side of a cell."""
        return math.ceil((1 - self.ratio) ** -0.5) if self.cell is None else self.cell


@dataclass(frozen=True)
class Merge:
    """Which tokens become one.

    Attributes:
        slot: (B, T) int64, the place of every token among the remaining ones.
        size: (B, T') number of tokens in every place.
    """

    slot: Tensor
    size: Tensor

    def average(self, x: Tensor) -> Tensor:
        """(B, heads, T, d) -> (B, heads, T', d), summed in float32, in the type of ``x``."""
        batch, heads, tokens, width = x.shape
        places = self.size.shape[1]
        rows = x.transpose(1, 2).reshape(batch * tokens, heads * width)
        offset = torch.arange(batch, device=x.device)[:, None] * places
        index = (self.slot + offset).flatten()
        kind = torch.promote_types(x.dtype, torch.float32)
        total = torch.zeros(batch * places, heads * width, dtype=kind, device=x.device)
        if x.device.type == "cpu":
            total.index_add_(0, index, rows.to(kind))
        else:
            # The accumulating write sorts by place there, so that the order of the sums is always the same.
            total.index_put_((index,), rows.to(kind), accumulate=True)
        total /= self.size.flatten()[:, None]
        return total.to(x.dtype).view(batch, places, heads, width).transpose(1, 2)

    def copy_back(self, x: Tensor) -> Tensor:
        """(B, heads, T', d) -> (B, heads, T, d)."""
        batch, heads, places, width = x.shape
        rows = x.transpose(1, 2).reshape(batch, places, heads * width)
        index = self.slot[..., None].expand(-1, -1, heads * width)
        return rows.gather(1, index).unflatten(2, (heads, width)).transpose(1, 2)


class MergedAttention:
    """An :data:`~relief3d.nn.attention.Attend` that merges tokens; memory grows with T, never with T * T.

    Args:
        tokens_per_view: specials and patches; T must be a multiple.
        grid: rows and columns of patches.
        specials: tokens before the patches of a view.
        config: what is merged.

    Raises:
        InputError: the numbers of tokens do not fit.
    """

    def __init__(
        self,
        tokens_per_view: int,
        grid: tuple[int, int],
        specials: int,
        config: MergeConfig | None = None,
    ) -> None:
        check_layout(tokens_per_view, grid, specials)
        self.tokens_per_view, self.grid, self.specials = tokens_per_view, grid, specials
        self.config = config or MergeConfig()
        self._sides: tuple[int, Tensor, Tensor] | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, heads, T, d) queries, keys, values -> (B, heads, T, d)."""
        merge = self.plan(k)
        if merge is None:
            return attend_fully(q, k, v)
        bias = merge.size.log().to(q.dtype)[:, None, None]
        few = nn.functional.scaled_dot_product_attention(
            merge.average(q), merge.average(k), merge.average(v), attn_mask=bias
        )
        return merge.copy_back(few)

    @torch.no_grad()
    def plan(self, k: Tensor) -> Merge | None:
        """Which tokens become one, for (B, heads, T, d) keys; None when none do.

        Raises:
            InputError: T is not a whole number of views.
        """
        tokens = k.shape[2]
        views = view_count(tokens, self.tokens_per_view)
        targets, sources = self._roles(views, k.device)
        gone = min(int(self.config.ratio * tokens), len(sources))
        if gone == 0:
            return None
        best, score = nearest(k, targets, sources, self.config.budget)
        # Of equal scores the earlier token goes first, whatever the device.
        order = score.argsort(dim=1, descending=True, stable=True)[:, :gone]
        vanish = sources[order]
        into = targets[best.gather(1, order)]
        stays = torch.ones(k.shape[0], tokens, dtype=torch.bool, device=k.device).scatter_(1, vanish, False)
        slot = stays.cumsum(1) - 1
        slot.scatter_(1, vanish, slot.gather(1, into))
        size = torch.zeros(k.shape[0], tokens - gone, device=k.device)
        size.scatter_add_(1, slot, torch.ones(slot.shape, device=k.device))
        return Merge(slot, size)

    def _roles(self, views: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Token numbers of destinations and of those that may vanish."""
        if self._sides is None or self._sides[0] != views or self._sides[1].device != device:
            # What is remembered must serve training as well.
            with torch.inference_mode(False):
                receives = torch.zeros(views, self.tokens_per_view, dtype=torch.bool)
                receives[:, self.specials :] = chosen_patches(
                    views, self.grid, self.config.cell_side(), self.config.seed
                )
                receives[0, self.specials :] = True
                vanishes = ~receives
                vanishes[:, : self.specials] = False
                targets, sources = (x.flatten().nonzero()[:, 0].to(device) for x in (receives, vanishes))
                self._sides = (views, targets, sources)
        return self._sides[1], self._sides[2]


def chosen_patches(views: int, grid: tuple[int, int], cell: int, seed: int) -> Tensor:
    """(views, rows * cols) bool: one random patch per cell; a view's choice does not depend on how many follow."""
    rows, cols = grid
    down, across = math.ceil(rows / cell), math.ceil(cols / cell)
    generator = torch_generator(derive_seed(seed, "cells", rows, cols, cell))
    draw = torch.rand(views, 2, down, across, generator=generator)
    first_row, first_col = torch.arange(down) * cell, torch.arange(across) * cell
    # Cells at the lower and right edge may be smaller.
    tall, wide = (rows - first_row).clamp(max=cell), (cols - first_col).clamp(max=cell)
    row = first_row[:, None] + (draw[:, 0] * tall[:, None]).long()
    col = first_col + (draw[:, 1] * wide).long()
    chosen = torch.zeros(views, rows * cols, dtype=torch.bool)
    return chosen.scatter_(1, (row * cols + col).flatten(1), True)


def nearest(k: Tensor, targets: Tensor, sources: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """For every source the target with the most similar key.

    Args:
        k: (B, heads, T, d); the similarity is the cosine over the channels of all heads.
        targets: (D,) token numbers.
        sources: (S,) token numbers.
        budget: most similarities in memory at a time.

    Returns:
        (B, S) index into ``targets`` and (B, S) cosine.
    """
    batch, device = k.shape[0], k.device
    wide = torch.promote_types(k.dtype, torch.float32)
    # Half precision resolves cosines near 1 better than bfloat16; CPUs multiply both slowly.
    small = k.dtype in (torch.bfloat16, torch.float16) and device.type != "cpu"
    kind = torch.float16 if small else wide

    def unit(index: Tensor) -> Tensor:
        rows = k[:, :, index].transpose(1, 2).flatten(2).to(wide)
        return nn.functional.normalize(rows, dim=-1).to(kind)

    step = max(1, budget // (batch * len(targets)))
    best = torch.empty(batch, len(sources), dtype=torch.int64, device=device)
    score = torch.empty(batch, len(sources), dtype=torch.float32, device=device)
    with torch.autocast(device.type, enabled=False):
        ends = unit(targets).mT
        for i in range(0, len(sources), step):
            found = (unit(sources[i : i + step]) @ ends).max(-1)
            best[:, i : i + step], score[:, i : i + step] = found.indices, found.values.float()
    return best, score


def check_layout(tokens_per_view: int, grid: tuple[int, int], specials: int) -> None:
    """Refuse numbers of tokens that contradict each other.

    Raises:
        InputError: ``specials`` and the grid do not make ``tokens_per_view``.
    """
    if min(grid) < 1 or specials < 0 or tokens_per_view != specials + grid[0] * grid[1]:
        raise InputError(
            f"a view of {specials} special tokens and {grid[0]} x {grid[1]} patches"
            f" does not have {tokens_per_view} tokens"
        )


def view_count(tokens: int, tokens_per_view: int) -> int:
    """How many views ``tokens`` are.

    Raises:
        InputError: not a whole number.
    """
    if tokens == 0 or tokens % tokens_per_view:
        raise InputError(
            f"{tokens} tokens are not a whole number of views of {tokens_per_view}",
            remedy="choose the attention for the size of these pictures",
        )
    return tokens // tokens_per_view
