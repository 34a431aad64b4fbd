"""The attention across views by name: exact, or one of the approximations that a user must ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from relief3d.core.errors import InputError
from relief3d.nn.attention import Attend, attend_fully
from relief3d.nn.sparse_attention import SparseAttention, SparseConfig, WindowedAttention
from relief3d.nn.token_merging import MergeConfig, MergedAttention

AttentionName = Literal["exact", "merged", "sparse", "windowed"]

DESCRIPTIONS: Mapping[AttentionName, str] = {
    "exact": "every token attends to every token",
    "merged": "alike tokens are averaged first: an approximation, faster for many views",
    "sparse": "only the best blocks of keys: an approximation, faster for many views",
    "windowed": "only neighbouring views and the first: an approximation for ordered video, linear in its length",
}


@dataclass(frozen=True)
class AttentionSettings:
    """Settings of the approximations; only those of the chosen one are read.

    Attributes:
        merge: of ``merged``.
        sparse: of ``sparse``.
        window: neighbours on each side, of ``windowed``.
    """

    merge: MergeConfig = field(default_factory=MergeConfig)
    sparse: SparseConfig = field(default_factory=SparseConfig)
    window: int = 8


def attention_by_name(
    name: AttentionName,
    *,
    tokens_per_view: int,
    grid: tuple[int, int],
    specials: int,
    settings: AttentionSettings | None = None,
) -> Attend:
    """The attention across views for pictures of one size.

    Args:
        name: which; only ``exact`` gives the network's own result.
        tokens_per_view: specials and patches.
        grid: rows and columns of patches.
        specials: tokens before the patches (camera and registers of VGGT, registers of pi3).
        settings: of the approximations.

    Raises:
        InputError: unknown name, or numbers of tokens that contradict each other.
    """
    settings = settings or AttentionSettings()
    if name == "exact":
        return attend_fully
    if name == "merged":
        return MergedAttention(tokens_per_view, grid, specials, settings.merge)
    if name == "sparse":
        return SparseAttention(tokens_per_view, grid, specials, settings.sparse)
    if name == "windowed":
        return WindowedAttention(tokens_per_view, settings.window)
    raise InputError(
        f"there is no attention called '{name}'", remedy=f"choose one of {', '.join(get_args(AttentionName))}"
    )
