"""Distances of camera paths: ATE and RPE after one similarity per sequence, as evo (specification multiview.md 6.3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed
from relief3d.eval.aggregation import mean
from relief3d.eval.metrics.camera_conventions import ate_sim3_rmse, rpe_sim3
from relief3d.eval.protocols.base import Answer, Budget, Column, Measurement, Protocol, Query, Sample, Truth
from relief3d.eval.protocols.views.camera_rules import CameraSequence, CameraTwin, Reader, clip_sequences
from relief3d.eval.published.table import PublishedRow
from relief3d.eval.twins.rendered import query_scene

_COLUMNS = (
    Column("ate", "ATE", "m"),
    Column("rpe_translation", "RPE translation", "m"),
    Column("rpe_rotation", "RPE rotation", "deg"),
)
_NOTES = (
    "Camera centres are aligned with Umeyama's similarity (rotation, translation, scale); ATE is the root mean squared "
    "distance. RPE compares all pairs of consecutive frames after the same alignment, root mean squared.",
    "Every sequence counts the same, however long.",
)


class TrajectoryProtocol(Protocol):
    """Poses of all frames of every sequence; ATE and RPE per sequence, averaged over sequences.

    Args:
        name, title, source, layout, notes, version: see :class:`Protocol`.
        reader: root folder -> sequences; raises InputError naming what is missing.
        rows: published figures, keyed by our columns.
        twin: the procedural stand-in.
    """

    task = "cameras"
    columns = _COLUMNS

    def __init__(
        self,
        name: str,
        title: str,
        source: str,
        reader: Reader,
        rows: Sequence[PublishedRow] = (),
        twin: CameraTwin | None = None,
        layout: str = "",
        notes: Sequence[str] = (),
        version: int = 1,
    ) -> None:
        self.name, self.title, self.source, self.layout = name, title, source, layout
        self.version, self.notes = version, (*_NOTES, *notes)
        self._reader, self._rows, self._twin = reader, tuple(rows), twin or CameraTwin()

    def open(self, data: Path) -> list[Sample]:
        """One sample per sequence; see :class:`Protocol`."""
        return [_sample(sequence) for sequence in self._reader(data)]

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Clips of procedural worlds, all frames."""
        return [_sample(s) for s in clip_sequences(self._twin, budget, derive_seed(seed, self.name))]

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """ATE and RPE of one sequence; the answer needs finite ``world_from_cam`` (N, 4, 4)."""
        true = truth.need("world_from_cam")
        pred = answer.need("world_from_cam", true.shape).double()
        relative = rpe_sim3(pred, true)
        values = {
            "ate": ate_sim3_rmse(pred, true),
            "rpe_translation": relative.translation_rmse,
            "rpe_rotation": relative.rotation_rmse_deg,
        }
        return Measurement(query.name, str(truth.facts.get("group", query.name)), values)

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """Plain means over sequences."""
        return {column.key: mean(measurements, column.key) for column in self.columns}

    def published(self) -> Sequence[PublishedRow]:
        """Rows given by the benchmark."""
        return self._rows


def _sample(sequence: CameraSequence) -> Sample:
    count = len(sequence.frames)
    if count < 3:
        raise InputError(
            f"sequence '{sequence.name}' has {count} frames, aligning a path needs at least three"
        )
    chosen = tuple(range(count))
    group = sequence.group or sequence.name

    def query() -> Query:
        scene = query_scene(sequence.pictures(chosen), names=list(sequence.frames))
        return Query(sequence.name, "cameras", ("world_from_cam",), scene=scene)

    def truth() -> Truth:
        return Truth({"world_from_cam": sequence.world_from_cam(chosen).double()}, facts={"group": group})

    return Sample(sequence.name, group, query, truth)
