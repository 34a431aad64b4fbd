"""Camera accuracy over sparse frames of sequences: RRA, RTA and AUC pooled over all pairs of all sequences.

One class serves every benchmark of this kind (specification multiview.md 6.2); a benchmark gives its reader, its
choice of frames, its thresholds, its twin and its published rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed
from relief3d.eval.aggregation import pooled
from relief3d.eval.metrics.camera_conventions import (
    PairAngles,
    accuracy_percent,
    auc_unit_bins,
    pair_baselines,
    pi3_pair_errors,
    worst_angles,
)
from relief3d.eval.protocols.base import (
    Answer,
    Budget,
    Column,
    Deviation,
    Measurement,
    Protocol,
    Query,
    Sample,
    Truth,
)
from relief3d.eval.protocols.metric.frames import load_rgb8
from relief3d.eval.published.table import PublishedRow
from relief3d.eval.twins.rendered import Clip, ClipPlan, clip_cache, query_scene
from relief3d.geometry.transforms import invert_rigid
from relief3d.worlds.config import Family
from relief3d.worlds.sequences import PathKind


@dataclass(frozen=True)
class CameraSequence:
    """Pictures of one sequence with true cameras; nothing is read before it is used.

    Attributes:
        name: unique within the protocol, usable as a relative path.
        frames: names of all frames in order.
        pictures: reads the frames of the given indices as (n, 3, H, W) uint8, all of one size.
        world_from_cam: reads the (n, 4, 4) float64 poses of the frames of the given indices.
        group: unit of the bootstrap; the name when empty.
        chosen: indices fixed by the data set itself, such as a precomputed index file; None leaves the choice to the
            protocol's chooser.
    """

    name: str
    frames: Sequence[str]
    pictures: Callable[[Sequence[int]], Tensor]
    world_from_cam: Callable[[Sequence[int]], Tensor]
    group: str = ""
    chosen: tuple[int, ...] | None = None


Reader = Callable[[Path], list[CameraSequence]]
Chooser = Callable[[CameraSequence], Sequence[int]]
"""Indices of the frames to show, ascending or in the order in which the model gets them."""


@dataclass(frozen=True)
class CameraTwin:
    """Procedural stand-in: clips of one kind of world.

    Attributes:
        family, path, moving: see :class:`ClipPlan`.
        clips: number of clips by budget.
        frames: pictures per clip by budget, before the chooser.
        size: (H, W) by budget.
    """

    family: Family = "room"
    path: PathKind | None = None
    moving: int = 0
    clips: Mapping[Budget, int] = field(default_factory=lambda: {"smoke": 2, "mini": 12})
    frames: Mapping[Budget, int] = field(default_factory=lambda: {"smoke": 12, "mini": 40})
    size: Mapping[Budget, tuple[int, int]] = field(
        default_factory=lambda: {"smoke": (48, 64), "mini": (120, 160)}
    )


def sparse_indices(count: int, divisor: int = 10, least: int = 2) -> list[int]:
    """About every tenth of ``count`` frames: max(least, count // divisor) evenly spread ones, unique (6.2).

    Raises:
        InputError: fewer than two frames.
    """
    if count < 2:
        raise InputError(f"camera accuracy needs at least two frames, got {count}")
    target = min(count, max(least, count // divisor))
    return sorted(set(np.linspace(0, count - 1, target).astype(int).tolist()))


def choose_sparse(sequence: CameraSequence) -> Sequence[int]:
    """:func:`sparse_indices` of a sequence: the rule of OmniGeo, OmniVideo and HOI4D."""
    return sparse_indices(len(sequence.frames))


def read_pictures(paths: Sequence[Path]) -> Tensor:
    """(N, 3, H, W) uint8 pictures of one size, pixels as stored.

    Raises:
        InputError: a file is missing or no picture, or the sizes differ.
    """
    out: list[Tensor] = []
    for path in paths:
        out.append(load_rgb8(path))
        if out[-1].shape != out[0].shape:
            raise InputError(
                f"has {out[-1].shape[2]}x{out[-1].shape[1]} pixels, {paths[0].name} of the same sequence "
                f"{out[0].shape[2]}x{out[0].shape[1]}",
                path=path,
            )
    return torch.stack(out)


class CameraProtocol(Protocol):
    """Relative camera poses of the chosen frames of every sequence, errors pooled over all pairs of all sequences.

    Args:
        name, title, source, layout, notes, version: see :class:`Protocol`.
        reader: root folder -> sequences; raises InputError naming what is missing.
        choose: which frames of a sequence the model sees.
        thresholds: whole degrees of the AUC, RRA and RTA columns.
        rows: published figures, keyed by our columns (``auc_5``, ``rra_5``, ``rta_5`` ..., percent).
        twin: the procedural stand-in.
        deviation: see :meth:`Protocol.deviation`.
        min_baseline: pairs whose true centres are closer than this (unit of the data set) are left out; None
            counts all pairs (the default of the papers; 0.7 is an option of their code).
    """

    task = "cameras"

    def __init__(
        self,
        name: str,
        title: str,
        source: str,
        reader: Reader,
        choose: Chooser = choose_sparse,
        thresholds: Sequence[int] = (5, 15, 30),
        rows: Sequence[PublishedRow] = (),
        twin: CameraTwin | None = None,
        layout: str = "",
        notes: Sequence[str] = (),
        version: int = 1,
        deviation: Deviation | None = None,
        min_baseline: float | None = None,
    ) -> None:
        self.name, self.title, self.source, self.layout = name, title, source, layout
        self.version, self.notes = version, (*_NOTES, *notes)
        self.thresholds, self.min_baseline = tuple(thresholds), min_baseline
        self._reader, self._choose, self._rows = reader, choose, tuple(rows)
        self._twin, self._deviation = twin or CameraTwin(), deviation
        self.columns = tuple(
            Column(f"{key}_{t}", f"{label}@{t}", "%", "higher")
            for key, label in (("auc", "AUC"), ("rra", "RRA"), ("rta", "RTA"))
            for t in self.thresholds
        )

    def open(self, data: Path) -> list[Sample]:
        """One sample per sequence; see :class:`Protocol`."""
        return self._samples(self._reader(data))

    def deviation(self, data: Path, samples: Sequence[Sample]) -> str | None:
        """As the benchmark says; see :class:`Protocol`."""
        return None if self._deviation is None else self._deviation(data, samples)

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Clips of procedural worlds through the same chooser."""
        return self._samples(clip_sequences(self._twin, budget, derive_seed(seed, self.name)))

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """Errors of all pairs; the answer needs ``world_from_cam`` (N, 4, 4), non-finite where a frame failed."""
        true = truth.need("world_from_cam")
        pred = answer.need("world_from_cam", true.shape)
        errors = pi3_pair_errors(invert_rigid(pred.double()), invert_rigid(true.double()))
        return self._measurement(query, truth, errors)

    def failure(self, query: Query, truth: Truth, reason: str) -> Measurement | None:
        """All pairs wrong by the largest possible angles."""
        views = truth.need("world_from_cam").shape[0]
        return self._measurement(query, truth, worst_angles(views))

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """Percentages over the pairs of all sequences, so that longer sequences weigh more."""
        rotation, translation = (
            torch.from_numpy(pooled(measurements, key)) for key in ("rotation", "translation")
        )
        if rotation.numel() == 0:
            return {column.key: float("nan") for column in self.columns}
        return self._numbers(PairAngles(rotation, translation))

    def published(self) -> Sequence[PublishedRow]:
        """Rows given by the benchmark."""
        return self._rows

    def _numbers(self, errors: PairAngles) -> dict[str, float]:
        out = {f"auc_{t}": auc_unit_bins(errors.worst, t) for t in self.thresholds}
        out |= {f"rra_{t}": accuracy_percent(errors.rotation, t) for t in self.thresholds}
        out |= {f"rta_{t}": accuracy_percent(errors.translation, t) for t in self.thresholds}
        return out

    def _measurement(self, query: Query, truth: Truth, errors: PairAngles) -> Measurement:
        if self.min_baseline is not None:
            far = pair_baselines(truth.need("world_from_cam")) >= self.min_baseline
            errors = PairAngles(errors.rotation[far], errors.translation[far])
        # Single precision halves the memory of large sets; the published code works in it too.
        arrays = {
            "rotation": errors.rotation.numpy().astype(np.float32),
            "translation": errors.translation.numpy().astype(np.float32),
        }
        values = self._numbers(errors) if errors.rotation.numel() else {}
        group = str(truth.facts.get("group", query.name))
        return Measurement(query.name, group, values, weight=float(errors.rotation.numel()), arrays=arrays)

    def _samples(self, sequences: Sequence[CameraSequence]) -> list[Sample]:
        return [self._sample(sequence) for sequence in sequences]

    def _sample(self, sequence: CameraSequence) -> Sample:
        chosen = sequence.chosen if sequence.chosen is not None else tuple(self._choose(sequence))
        if len(chosen) < 2 or len(set(chosen)) != len(chosen):
            raise InputError(f"sequence '{sequence.name}' does not give two different frames")
        if min(chosen) < 0 or max(chosen) >= len(sequence.frames):
            raise InputError(
                f"sequence '{sequence.name}' has {len(sequence.frames)} frames, frame {max(chosen)} was asked for"
            )
        names = [sequence.frames[i] for i in chosen]
        group = sequence.group or sequence.name

        def query() -> Query:
            # Chosen frames are spread or shuffled: a model must not take them for consecutive ones.
            scene = query_scene(sequence.pictures(chosen), names=names, ordered=False)
            return Query(sequence.name, "cameras", ("world_from_cam",), scene=scene)

        def truth() -> Truth:
            return Truth({"world_from_cam": sequence.world_from_cam(chosen).double()}, facts={"group": group})

        return Sample(sequence.name, group, query, truth)


def clip_sequences(twin: CameraTwin, budget: Budget, seed: int) -> list[CameraSequence]:
    """Procedural sequences, one clip each, rendered when a picture or pose is first used."""
    cache = clip_cache()
    out = []
    for index in range(twin.clips[budget]):
        plan = ClipPlan(
            seed=derive_seed(seed, index),
            frames=twin.frames[budget],
            size=twin.size[budget],
            family=twin.family,
            path=twin.path,
            moving=twin.moving,
        )
        names = tuple(f"{i:06d}.png" for i in range(plan.frames))
        out.append(_clip_sequence(f"clip{index:03d}", names, plan, cache))
    return out


def _clip_sequence(
    name: str, frames: Sequence[str], plan: ClipPlan, render: Callable[[ClipPlan], Clip]
) -> CameraSequence:
    return CameraSequence(
        name,
        frames,
        pictures=lambda chosen: render(plan).images[list(chosen)],
        world_from_cam=lambda chosen: render(plan).world_from_cam[list(chosen)],
    )


_NOTES = (
    "Relative poses T_j T_i^-1 of world-to-camera matrices, all pairs i < j, the sign of translations ignored.",
    "AUC is the mean of T cumulative one-degree bins (the last one closed), pooled over all pairs of all sequences; "
    "per-sequence numbers are for information.",
    "A pair whose true centres coincide counts 90 degrees of translation error in this convention.",
)
