"""Options of supervised training; every value is plain, so that they go to YAML and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from relief3d.core.errors import InputError
from relief3d.data.streams import StreamConfig
from relief3d.train.config import TrainConfig
from relief3d.train.recipe import Size

Family = Literal["tabletop", "room", "objects", "outdoor", "street"]
Network = Literal["pi3", "vggt", "reliev3r"]
PATCH = 14
NUMBERS = ("auc30", "rotation_deg", "direction_deg", "abs_rel")
"""What is measured of a network on every family; constants have numbers of their own, which never change."""


@dataclass(frozen=True)
class WorldShare:
    """Procedural worlds of one family.

    Attributes:
        family: see :mod:`relief3d.worlds`; ``tabletop`` is the fast, restricted one.
        weight: share of the samples, relative to the others'.
        count: number of worlds; endless when None.
        pool: cameras per world, among which a sample's views are chosen.
        texture_size: pixels per side of texture pictures, a power of two (not for ``tabletop``).
    """

    family: Family = "tabletop"
    weight: float = 1.0
    count: int | None = None
    pool: int = 6
    texture_size: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise InputError(
                f"the weight of a family must be positive, not {self.weight:g}", remedy="leave it out"
            )
        if self.pool < 2 or (self.count is not None and self.count < 1):
            raise InputError("a family needs a world (count) and two cameras in each (pool) at least")
        if self.texture_size < 16 or self.texture_size & (self.texture_size - 1):
            raise InputError(f"the texture size {self.texture_size} is not a power of two of at least 16")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the published losses.

    Attributes:
        camera: on VGGT's camera loss (released configuration: 5).
        normals: add pi3's normal loss, for truth that is good enough to have normals.
        confidence: on pi3's confidence loss. It is published as a third stage with everything else frozen; here it is
            learned along, and its gradient stops at the points.
    """

    camera: float = 5.0
    normals: bool = False
    confidence: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.camera < math.inf and 0 <= self.confidence < math.inf):
            raise InputError("weights of losses must not be negative", remedy="0 switches a loss off")


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out worlds. They are the same for every seed of training.

    Attributes:
        families: of worlds; those that training does not draw from hold out a whole family.
        scenes: per family.
        views: of each.
        seed: of the worlds; training never uses it.
        constants: training scenes that constant answers come from.
        chunk: scenes per forward pass.
    """

    families: tuple[Family, ...] = ("tabletop",)
    scenes: int = 16
    views: int = 4
    seed: int = 1_000_003
    constants: int = 64
    chunk: int = 8

    def __post_init__(self) -> None:
        if self.scenes < 1 or self.views < 2 or self.chunk < 1 or self.constants < 1:
            raise InputError("an evaluation needs a scene and two views at least")
        if len(set(self.families)) < len(self.families):
            raise InputError(f"a family is held out twice: {', '.join(self.families)}")

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of what an evaluation gives."""
        return tuple(f"{family}_{name}" for family in self.families for name in NUMBERS)


@dataclass(frozen=True)
class SupervisedConfig:
    """A run of supervised training.

    Attributes:
        network: architecture.
        size: of the network.
        points: give a VGGT its point head too.
        worlds: where samples come from.
        render_on: ``cpu``: samples are made on the CPU, by workers if there are any; ``device``: where the network is
            (then without workers).
        stream: what a micro-batch looks like.
        losses: see :class:`LossConfig`.
        evaluation: see :class:`EvaluationConfig`.
        train: of the loop.
    """

    network: Network = "pi3"
    size: Size = "nano"
    points: bool = False
    worlds: tuple[WorldShare, ...] = (WorldShare(),)
    render_on: Literal["cpu", "device"] = "cpu"
    stream: StreamConfig = field(default_factory=StreamConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if not self.worlds:
            raise InputError("training needs worlds")
        families = [share.family for share in self.worlds]
        if len(set(families)) < len(families):
            raise InputError(f"a family of worlds is named twice: {', '.join(families)}")
        if self.render_on == "device" and self.train.workers:
            raise InputError("worlds rendered on the device leave nothing to workers", remedy="workers = 0")
        if any(side < PATCH or side % PATCH for size in self.stream.sizes for side in size):
            raise InputError(f"picture sides must be multiples of {PATCH}, the patch", remedy="stream.sizes")
        best = self.train.checkpoint.best
        if best and best not in self.evaluation.numbers:
            raise InputError(
                f"there is no evaluation number '{best}' to keep the best checkpoint by",
                remedy=f"use one of {', '.join(self.evaluation.numbers)}",
            )
        if best and best.endswith("auc30") != self.train.checkpoint.higher:
            better = "larger" if best.endswith("auc30") else "smaller"
            raise InputError(
                f"a {better} '{best}' is better", remedy="train.checkpoint.higher says which is kept"
            )
