"""Rotary position embedding over the rows and columns of a patch grid (Su et al. 2021; CroCo v2, DUSt3R for 2-D).

The channels of a head split in two halves: the first is rotated by the row, the second by the column. Within a half of
width D the angles are ``position * base ** (-2 k / D)``, k < D / 2, repeated twice, in the rotate-half convention.
Angles are computed in float32 and cast to the tokens' type before sine and cosine are taken, as the released
checkpoints were trained.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class RopeTable(NamedTuple):
    """Cosine and sine (T, d) of the tokens of one view.

    ``parts`` says how many equal parts of the channels are rotated each for themselves: 2 (rows, then columns) here, 1
    in DINOv3, which pairs channel k with channel k + d / 2.
    """

    cos: Tensor
    sin: Tensor
    parts: int = 2


def grid_positions(rows: int, cols: int, specials: int = 0, device: torch.device | None = None) -> Tensor:
    """(specials + rows * cols, 2) int64 positions (y, x): special tokens at (0, 0), patches from (1, 1) row by row.

    Without special tokens patches start at (0, 0).
    """
    first = 1 if specials else 0
    y = torch.arange(rows, device=device)[:, None].expand(rows, cols)
    x = torch.arange(cols, device=device)[None].expand(rows, cols)
    grid = torch.stack([y, x], -1).reshape(-1, 2) + first
    return torch.cat([torch.zeros(specials, 2, dtype=grid.dtype, device=device), grid])


def rope_table(positions: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> RopeTable:
    """Tables of (T, 2) positions.

    Raises:
        ValueError: the head width is not a multiple of four.
    """
    if head_dim % 4:
        raise ValueError(f"2-D rotary embedding needs a head width divisible by 4, got {head_dim}")
    half = head_dim // 2
    frequency = 1.0 / base ** (torch.arange(0, half, 2, device=positions.device, dtype=torch.float32) / half)
    angles = positions.float()[..., None] * frequency
    angles = torch.cat([angles, angles], -1).flatten(-2).to(dtype)
    return RopeTable(angles.cos(), angles.sin())


def apply_rope(tokens: Tensor, table: RopeTable) -> Tensor:
    """Rotate (..., T, d) queries or keys; the tables may repeat over leading dimensions."""
    first, second = tokens.unflatten(-1, (table.parts, 2, -1)).unbind(-2)
    turned = torch.stack([-second, first], -2).flatten(-3)
    return tokens * table.cos + turned * table.sin


class Rope2D(nn.Module):
    """Makes and remembers the tables of patch grids.

    Args:
        head_dim: channels per head.
        base: of the geometric frequencies.
        keep: how many different grids to remember.
    """

    def __init__(self, head_dim: int, base: float = 100.0, keep: int = 4) -> None:
        super().__init__()
        self.head_dim, self.base, self.keep = head_dim, base, keep
        self._tables: dict[tuple[int, int, int, torch.device, torch.dtype], RopeTable] = {}

    def forward(
        self, rows: int, cols: int, specials: int, device: torch.device, dtype: torch.dtype
    ) -> RopeTable:
        """Tables of a grid whose special tokens are not rotated; a remembered pair when there is one."""
        key = (rows, cols, specials, device, dtype)
        table = self._tables.get(key)
        if table is None:
            while len(self._tables) >= self.keep:
                self._tables.pop(next(iter(self._tables)))
            # Tables made in inference mode could not be used in training afterwards.
            with torch.inference_mode(False):
                table = rope_table(
                    grid_positions(rows, cols, specials, device), self.head_dim, self.base, dtype
                )
            self._tables[key] = table
        return table
