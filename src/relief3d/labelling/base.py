"""What a labeler is, and what it returns: labels in the data contract, with confidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Scene, SparsePoints
from relief3d.core.errors import InputError

DepthKind = Literal["metric", "scale", "affine-inverse"]
"""What a depth label is worth: metres; z-depth up to one unknown factor per picture; or inverse depth up to an unknown
factor and offset per picture, which is no depth until it is fitted to something."""

Uses = Literal["image", "camera", "depth", "mask", "order"]
"""What of a view a labeler's result depends on; ``order``: whether consecutive views follow each other in time."""


@dataclass(frozen=True)
class Grouping:
    """Which views make one work item.

    Attributes:
        kind: ``view``: every view alone; ``window``: ``size`` consecutive views, the next item ``step`` views on;
            ``scene``: all views.
        size, step: of windows, in views. The last window is moved back so that it is full.
    """

    kind: Literal["view", "window", "scene"] = "view"
    size: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        if self.kind == "window" and (self.size < 2 or not 1 <= self.step <= self.size):
            raise InputError(
                f"windows of {self.size} views every {self.step} views cannot be formed",
                remedy="take at least 2 views and a step between 1 and the size",
            )

    def groups(self, count: int) -> list[tuple[int, ...]]:
        """View indices of each item of a scene with ``count`` views."""
        if count == 0:
            return []
        if self.kind == "view":
            return [(i,) for i in range(count)]
        if self.kind == "scene" or count <= self.size:
            return [tuple(range(count))]
        starts = list(range(0, count - self.size, self.step)) + [count - self.size]
        return [tuple(range(s, s + self.size)) for s in starts]


@dataclass(frozen=True)
class DepthLabel:
    """A depth map with its meaning; ``depth.metric`` is true exactly for the kind ``metric``."""

    depth: Depth
    kind: DepthKind = "metric"

    def __post_init__(self) -> None:
        if self.depth.metric != (self.kind == "metric"):
            raise InputError(f"a depth label of kind '{self.kind}' contradicts its 'metric' flag")


@dataclass(frozen=True)
class TrackLabel:
    """Points followed through the views of an item.

    Attributes:
        xy: (T, N, 2) float32 pixels of each view, centres at +0.5; meaningless where not visible.
        visible: (T, N) bool.
        confidence: (T, N) float32 in [0, 1], 0 where not visible.
    """

    xy: Tensor
    visible: Tensor
    confidence: Tensor

    def __post_init__(self) -> None:
        if self.xy.ndim != 3 or self.xy.shape[-1] != 2 or self.visible.dtype != torch.bool:
            raise InputError("tracks need positions (T, N, 2) and boolean visibility (T, N)")
        if self.visible.shape != self.xy.shape[:2] or self.confidence.shape != self.xy.shape[:2]:
            raise InputError("visibility and confidence of tracks must be (T, N)")
        if not bool(torch.isfinite(self.xy[self.visible]).all()):
            raise InputError("a visible track position is not finite")

    def __len__(self) -> int:
        return int(self.xy.shape[0])


@dataclass(frozen=True)
class MaskLabel:
    """Segments of one picture: ``masks`` (M, H, W) bool, ``scores`` (M,) in [0, 1], best first."""

    masks: Tensor
    scores: Tensor

    def __post_init__(self) -> None:
        if (
            self.masks.ndim != 3
            or self.masks.dtype != torch.bool
            or self.scores.shape != self.masks.shape[:1]
        ):
            raise InputError("segments need masks (M, H, W) bool and scores (M,)")


@dataclass(frozen=True)
class Labels:
    """Everything a labeler found out about one item; absent kinds are empty.

    Attributes:
        depth: by view name.
        cameras: by view name; only what was labelled (K, pose, or both).
        tracks: over the item's views in their order.
        masks: by view name.
        sparse: triangulated points; views numbered as in the item.
        facts: JSON-ready numbers about the labelling, the same at every repetition.
    """

    depth: Mapping[str, DepthLabel] = field(default_factory=dict)
    cameras: Mapping[str, Camera] = field(default_factory=dict)
    tracks: TrackLabel | None = None
    masks: Mapping[str, MaskLabel] = field(default_factory=dict)
    sparse: SparsePoints | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class Labeler(Protocol):
    """Computes labels of a few views. An instance lives in one worker; weights are loaded at the first item.

    Attributes:
        name: how it is asked for.
        version: raised whenever the same input would give another result; part of every item's identity.
        grouping: which views make an item.
        uses: what of a view the result depends on; only that enters the item's identity.
        options: a frozen dataclass; part of every item's identity.
    """

    name: str
    version: int
    grouping: Grouping
    uses: frozenset[Uses]
    options: Any

    def weights_digest(self) -> str | None:
        """SHA-256 of the weights' files, or None for a labeler without weights."""
        ...

    def label(self, scene: Scene, *, seed: int, work: Path) -> Labels:
        """Label the views of ``scene``, which holds exactly the item's views.

        Args:
            scene: the item's views, in order.
            seed: of everything random; the same for all items of one scene, so derive from it by view name.
            work: scratch folder, removed afterwards.

        Raises:
            InputError: the input can never be labelled; the item is not tried again.
        """
        ...


@dataclass(frozen=True)
class LabelerSpec:
    """How to build a labeler anywhere: plain values that cross process boundaries."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
