"""Protocols that compare a mesh of a posed video with a scan: one class per rule, used by several benchmarks."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Mesh, View
from relief3d.core.errors import InputError
from relief3d.eval.aggregation import mean
from relief3d.eval.metrics.mesh import evaluate_meshes
from relief3d.eval.metrics.mesh_atlas import atlas_scores
from relief3d.eval.metrics.mesh_transformerfusion import (
    MISSING,
    OcclusionGrid,
    transformerfusion_scores,
)
from relief3d.eval.metrics.surface_protocols import SurfaceScores, has_surface, seen_surface
from relief3d.eval.protocols.base import Answer, Budget, Column, Measurement, Protocol, Query, Sample, Truth
from relief3d.eval.published.table import PublishedRow

CM, PERCENT = 100.0, 100.0
MESH_COLUMNS = (
    Column("acc", "Acc", "cm"),
    Column("comp", "Comp", "cm"),
    Column("chamfer", "Chamfer", "cm"),
    Column("prec", "Prec", "%", "higher"),
    Column("recall", "Recall", "%", "higher"),
    Column("f1", "F1", "%", "higher"),
)


@dataclass(frozen=True)
class SurfaceTruth(Truth):
    """What is known about a scanned place.

    Attributes:
        mesh: the scan as a mesh (:attr:`Truth.mesh`).
        reference: (R, 3) points of the scan that protocols with vertices compare with.
        views: frames with a valid pose; cameras at the size of the sensor depth, which is loaded when asked for.
        occlusion: where the scan has seen nothing; None where nobody knows.
    """

    reference: Tensor = field(default_factory=lambda: torch.zeros(0, 3))
    views: tuple[View, ...] = ()
    occlusion: OcclusionGrid | None = None

    def need_mesh(self) -> Mesh:
        """The scan's mesh.

        Raises:
            InputError: there is none.
        """
        if self.mesh is None:
            raise InputError("the truth of this scene has no mesh")
        return self.mesh

    def cameras(self) -> list[Camera]:
        """Of all views."""
        return [v.camera for v in self.views]


def sensor_depth(view: View) -> Tensor:
    """(H, W) float32 z-depth of a view, 0 where unknown.

    Raises:
        InputError: the view has none, or of another size than its camera.
    """
    depth = view.load_depth()
    if depth is None:
        raise InputError(f"view '{view.name}' has no sensor depth")
    if tuple(depth.values.shape) != (view.camera.height, view.camera.width):
        raise InputError(
            f"the depth map of view '{view.name}' has size {tuple(depth.values.shape)}, its camera "
            f"({view.camera.height}, {view.camera.width})",
            remedy="export depth and intrinsics of one size",
        )
    return depth.values


def answered_mesh(answer: Answer) -> Mesh:
    """The mesh of an answer, possibly empty.

    Raises:
        InputError: the answer holds none at all.
    """
    if answer.mesh is None:
        raise InputError(
            "the answer holds no mesh", remedy="give <scene>.ply in the frame of the given poses, in metres"
        )
    return answer.mesh


def surface_truth(truth: Truth) -> SurfaceTruth:
    """The truth as these protocols make it.

    Raises:
        TypeError: it comes from another protocol.
    """
    if not isinstance(truth, SurfaceTruth):
        raise TypeError("surface protocols need a SurfaceTruth")
    return truth


@dataclass(frozen=True)
class Benchmark:
    """Data of a protocol: everything but the rule.

    Attributes:
        name, title, source, layout, notes: of the protocol.
        open: reads the public layout.
        twin: makes the procedural twin.
        rows: published rows, keyed by the protocol's columns.
        floors: columns in which even the twin's truth is not perfect, with the worst value it may have, because the
            rule itself compares samples with vertices or with a triangulation.
    """

    name: str
    title: str
    source: str
    layout: str
    notes: tuple[str, ...]
    open: Callable[[Path], list[Sample]]
    twin: Callable[[Budget, int], list[Sample]]
    rows: tuple[PublishedRow, ...] = ()
    floors: Mapping[str, float] = field(default_factory=dict)


class SurfaceProtocol(Protocol):
    """A posed video in, a mesh out: reading, twin and means over scenes; the rule is :meth:`values`."""

    task = "surface"
    columns: Sequence[Column] = MESH_COLUMNS

    def __init__(self, benchmark: Benchmark) -> None:
        self.name, self.title, self.source = benchmark.name, benchmark.title, benchmark.source
        self.layout, self.notes = benchmark.layout, benchmark.notes
        self.floors = benchmark.floors
        self._benchmark = benchmark

    def open(self, data: Path) -> list[Sample]:
        return self._benchmark.open(data)

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        return self._benchmark.twin(budget, seed)

    def published(self) -> Sequence[PublishedRow]:
        return self._benchmark.rows

    @abc.abstractmethod
    def values(self, query: Query, truth: SurfaceTruth, answer: Answer) -> dict[str, float]:
        """Numbers of one scene in the units of the columns."""

    @abc.abstractmethod
    def worst(self) -> dict[str, float]:
        """Numbers of a scene without a usable mesh."""

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        return Measurement(query.name, query.name, self.values(query, surface_truth(truth), answer))

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        # One sample is one scene: F1 per scene, then the plain mean over scenes.
        return {c.key: mean(measurements, c.key) for c in self.columns}

    def failure(self, query: Query, truth: Truth, reason: str) -> Measurement | None:
        return Measurement(query.name, query.name, self.worst())


def mesh_values(scores: SurfaceScores) -> dict[str, float]:
    """Scores in centimetres and percent under the columns of Table 1."""
    return {
        "acc": scores.accuracy * CM,
        "comp": scores.completeness * CM,
        "chamfer": scores.chamfer * CM,
        "prec": scores.precision * PERCENT,
        "recall": scores.recall * PERCENT,
        "f1": scores.fscore * PERCENT,
    }


class TransformerFusionProtocol(SurfaceProtocol):
    """Specification 8.1: all reference vertices, 200k samples, occlusion mask, clamp at 1 m, F at 5 cm.

    Args:
        benchmark: the data.
        seed: of the sampling.
    """

    def __init__(self, benchmark: Benchmark, seed: int = 0) -> None:
        super().__init__(benchmark)
        self._seed = seed

    def values(self, query: Query, truth: SurfaceTruth, answer: Answer) -> dict[str, float]:
        mesh = answered_mesh(answer)
        scores = transformerfusion_scores(mesh, truth.reference, truth.occlusion, seed=self._seed)
        return mesh_values(scores)

    def worst(self) -> dict[str, float]:
        return mesh_values(MISSING)


class AtlasProtocol(SurfaceProtocol):
    """Specification 8.2: trimmed by rendering and fusing again, thinned vertices, no clamp, strictly below 5 cm."""

    def values(self, query: Query, truth: SurfaceTruth, answer: Answer) -> dict[str, float]:
        scores = atlas_scores(answered_mesh(answer), truth.reference, truth.cameras())
        return self.worst() if scores is None else mesh_values(scores)

    def worst(self) -> dict[str, float]:
        # Distances of nothing do not exist, so such a scene is missing from their means.
        return {"prec": 0.0, "recall": 0.0, "f1": 0.0}


PLAIN_THRESHOLDS = (0.02, 0.05, 0.10)
PLAIN_COLUMNS = (
    *MESH_COLUMNS[:3],
    Column("nc", "NC", "%", "higher"),
    *(
        Column(f"{key}{round(100 * t)}", f"{label}@{round(100 * t)}cm", "%", "higher")
        for t in PLAIN_THRESHOLDS
        for key, label in (("prec", "Prec"), ("recall", "Recall"), ("f1_", "F1"))
    ),
    Column("f1_5_seen", "F1@5cm, unseen triangles culled", "%", "higher"),
)


class PlainProtocol(SurfaceProtocol):
    """Specification 8.3: 200k area samples on both meshes, no clamp, F at 2, 5 and 10 cm, normal consistency.

    Args:
        benchmark: the data.
        voxel_size: metres; triangles farther than three voxels behind every sensor depth were not seen.
        seed: of the sampling.
    """

    columns = PLAIN_COLUMNS

    def __init__(self, benchmark: Benchmark, voxel_size: float = 0.04, seed: int = 0) -> None:
        super().__init__(benchmark)
        self._slack = 3 * voxel_size
        self._seed = seed

    def values(self, query: Query, truth: SurfaceTruth, answer: Answer) -> dict[str, float]:
        mesh, reference = answered_mesh(answer), truth.need_mesh()
        if not has_surface(mesh):
            return self.worst()
        got = evaluate_meshes(mesh, reference, PLAIN_THRESHOLDS, relative=False, seed=self._seed)
        assert got.normal_consistency is not None
        out = {
            "acc": got.accuracy * CM,
            "comp": got.completeness * CM,
            "chamfer": got.chamfer_l1 * CM,
            "nc": got.normal_consistency * PERCENT,
        }
        for threshold, score in zip(PLAIN_THRESHOLDS, got.scores, strict=True):
            cm = round(100 * threshold)
            out[f"prec{cm}"] = score.precision * PERCENT
            out[f"recall{cm}"] = score.recall * PERCENT
            out[f"f1_{cm}"] = score.fscore * PERCENT
        seen = seen_surface(mesh, ((v.camera, sensor_depth(v)) for v in truth.views), self._slack)
        out["f1_5_seen"] = 0.0
        if has_surface(seen):
            culled = evaluate_meshes(seen, reference, (0.05,), relative=False, seed=self._seed)
            out["f1_5_seen"] = culled.scores[0].fscore * PERCENT
        return out

    def worst(self) -> dict[str, float]:
        return {c.key: 0.0 for c in self.columns if c.better == "higher"}
