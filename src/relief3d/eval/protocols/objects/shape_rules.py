"""Rules shared by the single-object benchmarks: what a model sees and how shapes are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.aggregation import mean
from relief3d.eval.metrics.perceptual import PerceptualEncoder, perceptual_similarity
from relief3d.eval.metrics.shapes import (
    PUBLISHED,
    ShapeMetrics,
    ShapeSampling,
    compare_shapes,
    is_degenerate,
    worst_shape,
)
from relief3d.eval.protocols.base import (
    Answer,
    Budget,
    Column,
    Measurement,
    Protocol,
    Query,
    Sample,
    Truth,
)
from relief3d.eval.protocols.objects.readers_objects import LAYOUT, ObjectFiles, find_objects
from relief3d.eval.published.table import PublishedRow
from relief3d.eval.twins.objects import ObjectPicture, ObjectPlan, object_cache
from relief3d.eval.twins.rendered import query_scene
from relief3d.geometry.projection import depth_to_points

SAMPLING: Mapping[Budget, ShapeSampling] = {
    "smoke": ShapeSampling(points=2000, icp_points=200, refine_points=0, icp_iterations=10, emd_points=128),
    "mini": ShapeSampling(points=100_000, icp_points=1000, refine_points=10_000, emd_points=1024),
}
UNRELATED = 0.0
"""Similarity to the picture that an empty prediction counts."""
SIZES: Mapping[Budget, tuple[int, int]] = {"smoke": (48, 64), "mini": (240, 320)}

SHAPE_COLUMNS = (
    Column("f1_001", "F1@0.01", better="higher"),
    Column("viou", "vIoU", better="higher"),
    Column("chamfer", "CD (L1)"),
    Column("emd", "EMD"),
    Column("ulip", "ULIP", better="higher"),
    Column("uni3d", "Uni3D", better="higher"),
    Column("f1_005", "F1@0.05", better="higher"),
    Column("viou_solid", "vIoU, solid", better="higher"),
    Column("chamfer_l2", "CD (L2)"),
    Column("degenerate", "empty", "%"),
)
NOT_COMPARABLE = "Rows of the procedural twin are not comparable with the paper's rows."


def object_query(
    name: str,
    image: Tensor,
    mask: Tensor,
    *,
    wants: tuple[str, ...],
    K: Tensor | None = None,
    points: Tensor | None = None,
) -> Query:
    """What a model sees: one picture, the mask of the object, and where given intrinsics and a point map.

    Args:
        name: of the sample.
        image: (3, H, W) uint8.
        mask: (H, W) bool; becomes the tensor ``mask`` (1, H, W).
        wants: names of the answer.
        K: (3, 3) or None.
        points: (H, W, 3) OpenCV camera, NaN where unknown, or None; becomes the tensor ``cam_points``.

    Raises:
        InputError: the point map has another size than the picture.
    """
    tensors = {"mask": mask[None]}
    if points is not None:
        if points.shape[:2] != image.shape[1:]:
            raise InputError(
                f"the point map of '{name}' has size {tuple(points.shape[:2])}, "
                f"its picture {tuple(image.shape[1:])}"
            )
        tensors["cam_points"] = points[None]
    scene = query_scene(image[None], K=None if K is None else K[None], metric=points is not None)
    return Query(name, "object", wants, scene, tensors)


def picture_points(picture: ObjectPicture) -> Tensor:
    """(H, W, 3) point map of a twin's picture, NaN where nothing is seen."""
    points = depth_to_points(picture.depth.double(), picture.K).float()
    return torch.where(picture.depth[..., None] > 0, points, torch.nan)


def twin_plans(budget: Budget, seed: int, *, smoke: int, mini: int, objects: int = 1) -> list[ObjectPlan]:
    """Plans of a twin's pictures, worlds ``seed * 1000`` onwards."""
    count = smoke if budget == "smoke" else mini
    return [ObjectPlan(seed * 1000 + i, SIZES[budget], objects) for i in range(count)]


class ShapeProtocol(Protocol):
    """Shape of single objects against artist meshes.

    Attributes:
        encoders: perceptual encoders by column name ("ulip", "uni3d"); none are shipped.
    """

    task = "object"
    columns = SHAPE_COLUMNS
    layout = LAYOUT
    notes = (
        "Both meshes are normalised to [-1, 1] (box centre, longest half side 1), then the prediction is moved by ICP "
        "from the 24 rotations of the cube group (rotation and translation, no scale); the start with the smallest "
        "symmetric mean distance wins, the unmoved prediction is a candidate too.",
        "Identical meshes are sampled at identical points, so a perfect prediction scores 1; different meshes need the "
        "paper's million points for F1@0.01 to be free of sampling noise (the twin takes 2000 and 100,000).",
        "CD is the plain sum of both mean distances; the appendix summaries say squared, which is the column CD (L2).",
        "Empty or broken predictions count F1 = vIoU = 0 and CD = EMD = 2 sqrt(3), never left out.",
        "ULIP and Uni3D need encoders that are not part of this project; without them they are not available. Their "
        "published figures are of ISO3D's pictures: see iso3d.",
        NOT_COMPARABLE,
    )

    def __init__(
        self,
        name: str,
        title: str,
        source: str,
        rows: Callable[[], Sequence[PublishedRow]],
        encoders: Mapping[str, PerceptualEncoder] | None = None,
    ) -> None:
        self.name, self.title, self.source = name, title, source
        self._rows = rows
        self.encoders = dict(encoders or {})

    def open(self, data: Path) -> list[Sample]:
        return [self._sample(files) for files in find_objects(data, posed=False)]

    def _sample(self, files: ObjectFiles) -> Sample:
        def query() -> Query:
            return object_query(files.name, files.load_image(), files.load_mask(), wants=("mesh",))

        def truth() -> Truth:
            facts = {"sampling": dataclasses.asdict(PUBLISHED), "group": files.group}
            return Truth(mesh=files.load_mesh(), facts=facts)

        return Sample(files.name, files.group, query, truth)

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        make = object_cache()
        sampling = dataclasses.asdict(SAMPLING[budget])

        def sample(plan: ObjectPlan) -> Sample:
            name = f"object_{plan.seed:06d}"

            def query() -> Query:
                picture = make(plan)
                return object_query(name, picture.image, picture.objects[0].mask, wants=("mesh",))

            def truth() -> Truth:
                return Truth(mesh=make(plan).objects[0].mesh, facts={"sampling": sampling})

            return Sample(name, name, query, truth)

        return [sample(plan) for plan in twin_plans(budget, seed, smoke=3, mini=16)]

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        if truth.mesh is None:
            raise InputError(f"the truth of '{query.name}' has no mesh")
        result = compare_shapes(answer.mesh, truth.mesh, sampling_of(truth))
        values = shape_values(result)
        if self.encoders:
            values |= similarity_values(self.encoders, query, answer)
        return Measurement(query.name, group_of(query, truth), values)

    def failure(self, query: Query, truth: Truth, reason: str) -> Measurement | None:
        values = shape_values(worst_shape()) | dict.fromkeys(self.encoders, UNRELATED)
        return Measurement(query.name, group_of(query, truth), values)

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        summary = {c.key: mean(measurements, c.key) for c in self.columns}
        summary["degenerate"] *= 100
        return summary

    def published(self) -> Sequence[PublishedRow]:
        return self._rows()


def shape_values(result: ShapeMetrics) -> dict[str, float]:
    """Shape metrics under the names of the columns."""
    values = {k: float(v) for k, v in dataclasses.asdict(result).items()}
    values["chamfer"] = values.pop("chamfer_l1")
    return values


def similarity_values(
    encoders: Mapping[str, PerceptualEncoder], query: Query, answer: Answer
) -> dict[str, float]:
    """Similarity of the answered mesh to the query's picture by every encoder."""
    if answer.mesh is None or is_degenerate(answer.mesh) or query.scene is None:
        return dict.fromkeys(encoders, UNRELATED)
    image = query.scene.views[0].load_image()
    mask = query.tensors["mask"][0] if "mask" in query.tensors else None
    return perceptual_similarity(encoders, answer.mesh, image, mask)


def sampling_of(truth: Truth) -> ShapeSampling:
    """The sampling a truth asks for, the published one where it does not say."""
    given = truth.facts.get("sampling")
    return PUBLISHED if given is None else ShapeSampling(**given)


def group_of(query: Query, truth: Truth) -> str:
    """The picture a sample belongs to."""
    return str(truth.facts.get("group", query.name))
