"""ISO3D (SAM 3D, 6.3): pictures of single objects without any truth; similarity of shape and picture only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from relief3d.core.errors import InputError
from relief3d.eval.aggregation import mean
from relief3d.eval.metrics.perceptual import PerceptualEncoder
from relief3d.eval.metrics.shapes import is_degenerate
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
from relief3d.eval.protocols.objects.shape_rules import (
    NOT_COMPARABLE,
    SIZES,
    UNRELATED,
    object_query,
    similarity_values,
)
from relief3d.eval.published.sam3d import SHAPE
from relief3d.eval.published.table import PublishedRow
from relief3d.eval.twins.objects import ObjectPlan, object_cache
from relief3d.io.images import read_image
from relief3d.io.names import natural_key

_FOLDER = "png@1024"


class Iso3d(Protocol):
    """Isolated synthetic objects.

    Attributes:
        encoders: perceptual encoders by column name ("ulip", "uni3d"); none are shipped.
    """

    name = "iso3d"
    title = "ISO3D: similarity of shape and picture"
    source = "SAM 3D, Table 2; objects.md 6.3, 6.5"
    task = "object"
    columns = (
        Column("ulip", "ULIP", better="higher"),
        Column("uni3d", "Uni3D", better="higher"),
        Column("answered", "with a surface", "%", better="higher"),
    )
    layout = (
        "DATA/png@1024/*.png (or DATA/*.png): RGBA pictures, opaque where the object is; dylanebert/iso3d."
    )
    notes = (
        "The set has no shapes to compare with. Without the encoders of ULIP and Uni3D, which are not part of this "
        "project, nothing but the share of answers with a surface is available.",
        "The published rows are the right-hand part of Table 2, which needs no true shape; the left-hand part is "
        "sa3dao_shape.",
        "The specification counts 101 pictures, the card of the data set says 100.",
        "An empty prediction counts a similarity of 0. Votes on ISO3D go through preference_objects and "
        "preference_texture.",
        NOT_COMPARABLE,
    )

    def __init__(self, encoders: Mapping[str, PerceptualEncoder] | None = None) -> None:
        self.encoders = dict(encoders or {})

    def open(self, data: Path) -> list[Sample]:
        folder = data / _FOLDER if (data / _FOLDER).is_dir() else data
        if not folder.is_dir():
            raise InputError("is not a folder", path=data, remedy=self.layout)
        pictures = sorted(folder.glob("*.png"), key=lambda p: natural_key(p.name))
        if not pictures:
            raise InputError("holds no .png pictures", path=folder, remedy=self.layout)
        return [self._sample(path) for path in pictures]

    def _sample(self, path: Path) -> Sample:
        def query() -> Query:
            loaded = read_image(path)
            if loaded.mask is None:
                raise InputError("has no transparency to take the object's mask from", path=path)
            if not bool(loaded.mask.any()):
                raise InputError("is transparent everywhere", path=path)
            image = (loaded.rgb * 255).round().to(torch.uint8)
            return object_query(path.stem, image, loaded.mask, wants=("mesh",))

        return Sample(path.stem, path.stem, query, Truth)

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        make = object_cache()

        def sample(plan: ObjectPlan) -> Sample:
            name = f"object_{plan.seed:06d}"

            def query() -> Query:
                picture = make(plan)
                return object_query(name, picture.image, picture.objects[0].mask, wants=("mesh",))

            # The twin knows its shapes, but like the data set it compares answers with the picture alone.
            return Sample(name, name, query, lambda: Truth(mesh=make(plan).objects[0].mesh))

        height = SIZES[budget][0]
        count = 3 if budget == "smoke" else 20
        return [sample(ObjectPlan(seed * 1000 + i, (height, height), isolated=True)) for i in range(count)]

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        values = {"answered": float(not is_degenerate(answer.mesh))}
        return Measurement(query.name, query.name, values | similarity_values(self.encoders, query, answer))

    def failure(self, query: Query, truth: Truth, reason: str) -> Measurement | None:
        values = {"answered": 0.0} | dict.fromkeys(self.encoders, UNRELATED)
        return Measurement(query.name, query.name, values)

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        summary = {c.key: mean(measurements, c.key) for c in self.columns}
        summary["answered"] *= 100
        return summary

    def published(self) -> Sequence[PublishedRow]:
        return SHAPE.select({"ulip": "ulip", "uni3d": "uni3d"})


PROTOCOLS: tuple[Protocol, ...] = (Iso3d(),)
