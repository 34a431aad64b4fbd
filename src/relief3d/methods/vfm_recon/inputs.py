"""What alignment takes in: matches between keyframes and the depth of submaps, given when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.methods.vfm_recon.submaps import Submap


@dataclass(frozen=True)
class PairMatches:
    """Corresponding pixels of two keyframes.

    Attributes:
        xy_a: (N, 2) pixels of the first keyframe at the size of its camera, centres at +0.5.
        xy_b: (N, 2) of the second.
        score: (N,) in [0, 1], or None for 1.
    """

    xy_a: Tensor
    xy_b: Tensor
    score: Tensor | None = None

    def __post_init__(self) -> None:
        n = self.xy_a.shape[0]
        if self.xy_a.shape != (n, 2) or self.xy_b.shape != (n, 2):
            raise InputError(
                f"matches must be (N, 2) twice, got {tuple(self.xy_a.shape)} and {tuple(self.xy_b.shape)}"
            )
        if self.score is not None and self.score.shape != (n,):
            raise InputError(f"scores of {n} matches must be ({n},), got {tuple(self.score.shape)}")

    def __len__(self) -> int:
        return int(self.xy_a.shape[0])


@dataclass(frozen=True)
class SubmapDepth:
    """Depth of the frames of one submap, consistent among them up to one scale.

    Attributes:
        depth: (n, h, w) float z-depth of any scale, 0 or non-finite where unknown. Pixels cover the same field of
            view as the keyframe's camera; h x w may differ from its size.
        confidence: (n, h, w), larger is better, any range; or None.
        K: (n, 3, 3) intrinsics in pixels of the depth maps as the network estimates them, or None.
        world_from_cam: (n, 4, 4) poses in a frame and unit of the submap, or None.
    """

    depth: Tensor
    confidence: Tensor | None = None
    K: Tensor | None = None
    world_from_cam: Tensor | None = None

    def __post_init__(self) -> None:
        if self.depth.ndim != 3:
            raise InputError(f"depth of a submap must be (n, h, w), got {tuple(self.depth.shape)}")
        if self.confidence is not None and self.confidence.shape != self.depth.shape:
            raise InputError(
                f"confidence {tuple(self.confidence.shape)} must have the size of depth {tuple(self.depth.shape)}"
            )


DepthSource = Callable[[Submap], SubmapDepth]
"""Gives the depth of a submap: runs a network, or reads a store. Asked again for the same submap, it must answer the
same; :class:`relief3d.methods.vfm_recon.store.SubmapStore` makes any function so."""

MatchSource = Callable[[int, int], PairMatches | None] | Mapping[tuple[int, int], PairMatches]
"""Matches of keyframes (a, b), a < b; None or absent where there are none."""


def matches_of(source: MatchSource, a: int, b: int) -> PairMatches | None:
    """Matches of a pair from either kind of source; None when there are none."""
    found = source.get((a, b)) if isinstance(source, Mapping) else source(a, b)
    return found if found is not None and len(found) else None


def checked_depth(source: DepthSource, submap: Submap) -> SubmapDepth:
    """The depth of a submap with as many maps as it has frames.

    Raises:
        InputError: another number of maps.
    """
    found = source(submap)
    if found.depth.shape[0] != len(submap.frames):
        raise InputError(
            f"submap {submap.index} has {len(submap.frames)} frames but its depth has {found.depth.shape[0]} maps"
        )
    if found.depth.dtype != torch.float32:
        found = SubmapDepth(found.depth.float(), found.confidence, found.K, found.world_from_cam)
    return found
