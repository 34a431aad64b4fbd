"""Submaps: overlapping runs of keyframes that get their depth together (VFM-Recon; specification 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from relief3d.core.errors import InputError
from relief3d.methods.vfm_recon.config import SubmapConfig

SubmapKind = Literal["chain", "loop"]


@dataclass(frozen=True)
class Submap:
    """Keyframes that one pass of the depth network sees.

    Attributes:
        index: node of the scale graph.
        frames: keyframe numbers in the order in which the network sees them.
        kind: ``chain`` for runs of the sequence, ``loop`` for both ends of a loop.
    """

    index: int
    frames: tuple[int, ...]
    kind: SubmapKind = "chain"

    def position(self, frame: int) -> int:
        """Place of a keyframe in the submap."""
        return self.frames.index(frame)


def submap_ranges(count: int, size: int, overlap: int) -> list[range]:
    """Runs of at most ``size`` frames that share ``overlap`` with the next; the last has at least overlap + 1.

    ``M = 1`` if ``count <= size``, else ``ceil((count - overlap) / (size - overlap))``. Unlike the chunks of a long
    sequence, the last run is not moved back, so that all neighbours share equally many frames.

    Raises:
        InputError: no frames, or an overlap that is not in [1, size).
    """
    SubmapConfig(size, overlap)
    if count < 1:
        raise InputError("a scene without keyframes has no submaps")
    step = size - overlap
    number = 1 if count <= size else -(-(count - overlap) // step)
    return [range(m * step, min(m * step + size, count)) for m in range(number)]


def plan_submaps(segments: Sequence[Sequence[int]], config: SubmapConfig | None = None) -> list[Submap]:
    """Submaps of every segment; segments are independent chains.

    Args:
        segments: keyframe numbers in time order, one list per uninterrupted segment.
        config: see :class:`SubmapConfig`.
    """
    config = config or SubmapConfig()
    out: list[Submap] = []
    for segment in segments:
        for run in submap_ranges(len(segment), config.size, config.overlap):
            out.append(Submap(len(out), tuple(segment[k] for k in run)))
    return out


def submaps_of_frames(submaps: Sequence[Submap]) -> dict[int, list[tuple[int, int]]]:
    """For every keyframe its submaps, as (submap index, place in it), in the order of the submaps."""
    out: dict[int, list[tuple[int, int]]] = {}
    for submap in submaps:
        for place, frame in enumerate(submap.frames):
            out.setdefault(frame, []).append((submap.index, place))
    return out
