"""Boundary sharpness on Sintel, Spring and iBims-1 (MetricAnything, table 8; Depth Pro's F1).

The model sees one picture; its depth, of any scale, is compared with the truth at the picture's own size. F1 of every
picture, then the mean. Spec: metric_depth.md 9.6.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.eval.aggregation import mean
from relief3d.eval.metrics.boundaries import boundary_f1, has_all_contours, matte_recall, moge_boundary_f1
from relief3d.eval.panels import boundary_overlay
from relief3d.eval.protocols.base import Answer, Budget, Column, Measurement, Protocol, Query, Sample, Truth
from relief3d.eval.protocols.metric.frames import FrameFile, check_same_size
from relief3d.eval.protocols.metric.readers_ibims import LAYOUT as IBIMS_LAYOUT
from relief3d.eval.protocols.metric.readers_ibims import read_ibims
from relief3d.eval.protocols.metric.readers_sintel import LAYOUT as SINTEL_LAYOUT
from relief3d.eval.protocols.metric.readers_sintel import read_sintel
from relief3d.eval.protocols.metric.readers_spring import FARTHEST, read_spring
from relief3d.eval.protocols.metric.readers_spring import LAYOUT as SPRING_LAYOUT
from relief3d.eval.published.metric_tables_7_8 import TABLE_8
from relief3d.eval.published.table import PublishedRow
from relief3d.eval.twins.rendered import Clip, ClipPlan, query_scene, render_clip
from relief3d.worlds.config import Family

RADII = (1, 2, 3)
_ATTEMPTS = 8
_VALUES = ("f1", "f1_unmasked", "precision", "recall", *(f"moge_f1_r{r}" for r in RADII))
COLUMNS = (
    Column("f1", "boundary F1", "", "higher"),
    Column("f1_unmasked", "F1 with unknown depth as it is", "", "higher"),
    Column("precision", "precision", "", "higher"),
    Column("recall", "recall", "", "higher"),
    *(Column(f"moge_f1_r{r}", f"MoGe F1, radius {r}", "", "higher") for r in RADII),
    # No better direction: the outline of an object need not be a contour of depth.
    Column("matte_recall", "matte recall (twin)", "", None),
)


@dataclass(frozen=True)
class BoundaryTwin:
    """Procedural pictures that stand for a data set.

    Attributes:
        family: kind of world.
        sky: depth in metres given to the sky; None leaves it unknown.
        holes: cut patches of unknown depth into the truth, as a laser scan has.
        matte: add the outline of one object.
    """

    family: Family
    sky: float | None = None
    holes: bool = False
    matte: bool = False


class BoundaryProtocol(Protocol):
    """Boundary F1 of one data set.

    Args:
        name: of the protocol.
        title: one line.
        reader: of the public layout.
        layout: that layout.
        published: the column of table 8.
        twin: of the data set.
        notes: particular to the data set.
    """

    task = "mono_depth"
    columns = COLUMNS
    source = "MetricAnything, Table 8; Depth Pro's boundary F1; spec metric_depth 9.6"

    def __init__(
        self,
        name: str,
        title: str,
        reader: Callable[[Path], list[FrameFile]],
        layout: str,
        published: str,
        twin: BoundaryTwin,
        notes: Sequence[str] = (),
    ) -> None:
        self.name, self.title, self.layout = name, title, layout
        self._reader, self._published, self._twin = reader, published, twin
        self.notes = (
            "Depth Pro's released F1: no thinning, mean of four direction-wise precisions and recalls, ten "
            "thresholds from 1.05 to 1.25 weighted by themselves.",
            "F1: pairs of pixels with unknown truth are left out (our choice); the second column is the official "
            "rule, under which unknown depth counts as very near.",
            "MoGe's variant (depth ratios, neighbours within a radius, pooled counts) is another measure than the "
            "table's.",
            *notes,
        )

    def open(self, data: Path) -> list[Sample]:
        """Samples of the real data set, one per picture."""
        return [
            Sample(
                frame.name,
                frame.group,
                functools.partial(self._query, frame.name, frame.load_image),
                functools.partial(_file_truth, frame),
            )
            for frame in self._reader(data)
        ]

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Two tiny pictures, or twenty of 320 x 240, whose truth has contours of every strength and direction."""
        count, size = (2, (48, 64)) if budget == "smoke" else (20, (240, 320))
        plan = self._twin

        @functools.lru_cache(maxsize=2)
        def shot(index: int) -> TwinShot:
            return _render(plan, derive_seed(seed, self.name, index), size)

        def sample(index: int) -> Sample:
            name = f"world{index:02d}/picture"
            return Sample(
                name,
                f"world{index:02d}",
                lambda: self._query(name, lambda: shot(index).image),
                lambda: Truth(dict(shot(index).truth)),
            )

        return [sample(i) for i in range(count)]

    def _query(self, name: str, load_image: Callable[[], Tensor]) -> Query:
        return Query(name, self.task, ("depth",), query_scene(load_image()[None]))

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """F1 and its variants of one picture; the answer's depth has the picture's size."""
        true, valid = truth.need("depth"), truth.need("valid")
        predicted = answer.need("depth", tuple(true.shape))[0].to(true.dtype)
        true, valid = true[0], valid[0]
        masked = boundary_f1(predicted, true, valid)
        weights = masked.thresholds / masked.thresholds.sum()
        values = {
            "f1": masked.score,
            "f1_unmasked": masked.score
            if bool(valid.all())
            else boundary_f1(predicted.nan_to_num(0.0), true).score,
            "precision": float((masked.precision * weights).sum()),
            "recall": float((masked.recall * weights).sum()),
        }
        # MoGe divides depths themselves, so they must be positive.
        positive = predicted.clamp_min(1e-6)
        values |= {f"moge_f1_r{r}": moge_boundary_f1(positive, true, valid, r) for r in RADII}
        if "matte" in truth.tensors:
            values["matte_recall"] = matte_recall(predicted, truth.tensors["matte"][0])
        name, group = query.name, str(truth.facts.get("group", query.name.split("/")[0]))
        return Measurement(name, group, values, weight=float(valid.sum()))

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """Means over pictures."""
        return {column.key: mean(measurements, column.key) for column in self.columns}

    def published(self) -> Sequence[PublishedRow]:
        """Rows of table 8."""
        return TABLE_8.select({"f1": self._published})

    def failure(self, query: Query, truth: Truth, reason: str) -> Measurement:
        """Nothing found: every score is 0."""
        group = str(truth.facts.get("group", query.name.split("/")[0]))
        return Measurement(
            query.name, group, dict.fromkeys(_VALUES, 0.0), weight=float(truth.need("valid").sum())
        )

    def panels(self, query: Query, truth: Truth, answer: Answer) -> Mapping[str, Tensor]:
        """True and predicted contours over the picture."""
        if query.scene is None:
            return {}
        image = query.scene.views[0].load_image()
        image = image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)
        return {"boundaries": boundary_overlay(image, answer.need("depth")[0], truth.need("depth")[0])}


def _file_truth(frame: FrameFile) -> Truth:
    depth, valid = frame.load_depth(), frame.load_valid()
    check_same_size(frame.name, frame.load_image(), depth)
    return Truth({"depth": depth[None], "valid": valid[None]}, facts={"group": frame.group})


@dataclass(frozen=True)
class TwinShot:
    """A rendered picture (3, H, W) uint8 and the tensors of its truth."""

    image: Tensor
    truth: Mapping[str, Tensor]


def _render(plan: BoundaryTwin, seed: int, size: tuple[int, int]) -> TwinShot:
    """The first of a few pictures whose truth has all contours, so that the truth itself scores 1."""
    shot: TwinShot | None = None
    for attempt in range(_ATTEMPTS):
        clip = render_clip(ClipPlan(derive_seed(seed, attempt), 2, size, plan.family))
        for index in range(len(clip.images)):
            shot = _shot(plan, clip, index, seed)
            depth, valid = shot.truth["depth"][0], shot.truth["valid"][0]
            if has_all_contours(depth, valid) and has_all_contours(depth):
                return shot
    assert shot is not None
    return shot


def _shot(plan: BoundaryTwin, clip: Clip, index: int, seed: int) -> TwinShot:
    depth = clip.depth[index].clone()
    if plan.sky is not None:
        depth[depth == 0] = plan.sky
    if plan.holes:
        height, width = depth.shape
        generator = torch_generator(derive_seed(seed, "holes"))
        for _ in range(3):
            y, x = (int(torch.randint(side, (1,), generator=generator)) for side in (height, width))
            depth[y : y + height // 8, x : x + width // 8] = 0
    truth = {"depth": depth[None], "valid": (depth > 0)[None]}
    if plan.matte:
        matte = _object_matte(clip, index)
        if matte is not None:
            truth["matte"] = matte[None]
    return TwinShot(clip.images[index], truth)


def _object_matte(clip: Clip, index: int) -> Tensor | None:
    """(H, W) in {0, 1}: the nearest object of 1 to 40 % of the picture; None without one."""
    size = (clip.images.shape[-2], clip.images.shape[-1])
    cameras = (clip.K[None, index : index + 1].float(), clip.world_from_cam[None, index : index + 1].float())
    views = clip.world.render(cameras, size, times=clip.times[None, index : index + 1])
    numbers, depth = views.instance[0, 0], views.depth[0, 0]
    best, nearest = None, torch.inf
    for number in numbers[numbers >= 0].unique().tolist():
        inside = numbers == number
        share, distance = float(inside.double().mean()), float(depth[inside].median())
        if 0.01 <= share <= 0.4 and distance < nearest:
            best, nearest = inside.float(), distance
    return best


PROTOCOLS: tuple[Protocol, ...] = (
    BoundaryProtocol(
        "sintel_boundaries",
        "Boundary sharpness on Sintel",
        read_sintel,
        SINTEL_LAYOUT,
        "sintel.f1",
        BoundaryTwin("objects", matte=True),
        ("All 1064 frames of the final pass; the truth is dense, so both F1 columns agree.",),
    ),
    BoundaryProtocol(
        "spring_boundaries",
        "Boundary sharpness on Spring",
        read_spring,
        SPRING_LAYOUT,
        "spring.f1",
        BoundaryTwin("outdoor", sky=FARTHEST),
        (
            "The table's protocol on Spring is not known: Depth Pro scores .1100 there and .079 in its own paper.",
            "Our choice: all left frames of the training set, 1920 x 1080, the truth on every second pixel of the "
            "double-size disparity, the sky infinitely far.",
            ".dsp5 files need the package h5py; .npy or .npz exports of the same name are read without it.",
        ),
    ),
    BoundaryProtocol(
        "ibims_boundaries",
        "Boundary sharpness on iBims-1",
        read_ibims,
        IBIMS_LAYOUT,
        "ibims.f1",
        BoundaryTwin("room", holes=True),
        ("Transparent and invalid pixels of the laser scan are unknown depth.",),
    ),
)
