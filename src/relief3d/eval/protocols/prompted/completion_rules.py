"""Metric depth from one picture and sparse depth: prompts cut out of the truth, errors without any alignment.

One class serves depth completion and super-resolution (MetricAnything Tab 1, section 10.1), the data scaling (one of
its columns) and the density sweep (Tab 15 left): every picture is asked once per prompt pattern, AbsRel is taken per
picture over the true depths inside the range and then averaged over pictures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.data.prompt_alignment import GlobalOptions, align_global, inverse
from relief3d.data.prompt_patterns import Prompt, image_seed, make_prompt
from relief3d.eval.aggregation import mean
from relief3d.eval.metrics.depth_errors import DepthErrors, depth_errors
from relief3d.eval.protocols.base import (
    Answer,
    Budget,
    Column,
    Measurement,
    Model,
    Protocol,
    Query,
    Sample,
    Truth,
)
from relief3d.eval.protocols.metric.frames import FrameFile, check_same_size
from relief3d.eval.protocols.metric.mono_depth_rules import CLAMP, Shot, file_shot, one_map, resize_bilinear
from relief3d.eval.published.table import PublishedRow
from relief3d.eval.twins.rendered import Clip, ClipPlan, clip_cache, query_scene
from relief3d.worlds.config import Family

LEFT_OUT = Column("left_out", "no number", "%", "lower")

Reader = Callable[[Path], list[FrameFile]]


@dataclass(frozen=True)
class PromptColumn:
    """One prompt pattern of a table.

    Attributes:
        key: of the column, and last part of the sample names.
        label: heading.
        pattern: see :mod:`relief3d.data.prompt_patterns`.
    """

    key: str
    label: str
    pattern: str


TABLE_1_COLUMNS = (
    PromptColumn("8x", "8x", "downscale_8"),
    PromptColumn("16x", "16x", "downscale_16"),
    PromptColumn("lidar", "LiDAR-64", "LiDAR_64"),
    PromptColumn("extreme", "Extreme", "100"),
)
LIDAR_COLUMNS = tuple(PromptColumn(f"lidar_{n}", f"LiDAR-{n}", f"LiDAR_{n}") for n in (8, 16, 32))
"""The paper does not say how many lines its lidar has, so fewer are shown beside it."""


@dataclass(frozen=True)
class FrameTwin:
    """Procedural pictures that stand for a data set.

    Attributes:
        families: kinds of worlds, in turn.
        smoke_size: (H, W) of the smallest budget, which has two worlds.
        mini_size: (H, W) otherwise.
        mini_clips: number of worlds otherwise.
        frames: pictures per world.
        known: share of pixels whose depth is known, drawn at random: accumulated lidar leaves gaps; 1 keeps all.
    """

    families: tuple[Family, ...] = ("room",)
    smoke_size: tuple[int, int] = (48, 64)
    mini_size: tuple[int, int] = (240, 320)
    mini_clips: int = 12
    frames: int = 1
    known: float = 1.0


def twin_shots(twin: FrameTwin, budget: Budget, seed: int) -> list[Shot]:
    """Procedural pictures with exact depth, rendered when first used."""
    render = clip_cache()
    clips, size = (2, twin.smoke_size) if budget == "smoke" else (twin.mini_clips, twin.mini_size)
    out = []
    for index in range(clips):
        family = twin.families[index % len(twin.families)]
        plan = ClipPlan(seed=derive_seed(seed, index), frames=twin.frames, size=size, family=family)
        out += [_twin_shot(twin, plan, render, f"{family}{index:03d}", i) for i in range(twin.frames)]
    return out


def _twin_shot(
    twin: FrameTwin, plan: ClipPlan, render: Callable[[ClipPlan], Clip], group: str, i: int
) -> Shot:
    def truth() -> tuple[Tensor, Tensor]:
        depth = render(plan).depth[i]
        luck = torch.rand(depth.shape, generator=torch_generator(derive_seed(plan.seed, "known", i)))
        return depth, (depth > 0) & (luck < twin.known)

    return Shot(
        name=f"{group}/{i:06d}",
        group=group,
        load_image=lambda: render(plan).images[i],
        load_truth=truth,
        load_K=lambda: render(plan).K[i],
    )


@dataclass(frozen=True)
class LoadedFrame:
    """A picture in memory.

    Attributes:
        image: (3, H, W) uint8.
        depth: (H, W) metres, 0 where not valid.
        K: (3, 3) or None.
    """

    image: Tensor
    depth: Tensor
    K: Tensor | None


def shot_loader(shots: Sequence[Shot]) -> Callable[[int], LoadedFrame]:
    """Loads pictures by index and keeps the last two, because several samples in a row share a picture."""

    @functools.lru_cache(maxsize=2)
    def load(index: int) -> LoadedFrame:
        shot = shots[index]
        image, (depth, valid) = shot.load_image(), shot.load_truth()
        check_same_size(shot.name, image, depth)
        known = valid & torch.isfinite(depth) & (depth > 0)
        return LoadedFrame(image, torch.where(known, depth, torch.zeros_like(depth)), shot.load_K())

    return load


def in_range(depth: Tensor, low: float, high: float) -> Tensor:
    """Where true depth counts: known and inside the closed range [low, high] metres."""
    return (depth > 0) & (depth >= low) & (depth <= high)


def clamped_errors(answer: Answer, truth: Tensor, valid: Tensor) -> tuple[DepthErrors, float]:
    """Errors over valid pixels with a finite prediction, and the share of valid pixels without one.

    The prediction is resized bilinearly to the size of the truth and clamped to [0.001, 1000] m (9.1).

    Args:
        answer: with ``depth`` (1, h, w) metres.
        truth: (1, H, W) metres.
        valid: (1, H, W) bool.

    Raises:
        InputError: no depth map, or "no valid pixels", also when the prediction is nowhere finite.
    """
    p = resize_bilinear(one_map(answer), (truth.shape[1], truth.shape[2]))
    counted = valid[0] & torch.isfinite(p)
    errors = depth_errors(p.double().clamp(*CLAMP), truth[0].double(), counted)
    return errors, 1.0 - float(counted.sum()) / float(valid.sum())


class PromptedDepth(Protocol):
    """AbsRel of depth predicted from a picture and a sparse prompt, per picture, then the mean.

    Args:
        name: see :class:`Protocol`; likewise title, source, layout, notes.
        title: one line.
        source: paper and sections.
        reader: root folder -> pictures with depth.
        prompts: the columns.
        depth_range: [low, high] metres of true depth that counts; prompts hold all valid depth.
        twin: procedural stand-in.
        unit: "%" multiplies AbsRel by 100.
        rows: published figures, keyed by our columns.
        seconds: also show the run time, in milliseconds, where answers carry ``seconds`` among their facts.
        layout: the public folder layout.
        notes: added to those all protocols of this kind share.
    """

    task = "prompted_depth"

    def __init__(
        self,
        name: str,
        title: str,
        source: str,
        *,
        reader: Reader,
        prompts: Sequence[PromptColumn],
        depth_range: tuple[float, float],
        twin: FrameTwin,
        unit: str = "%",
        rows: Sequence[PublishedRow] = (),
        seconds: bool = False,
        layout: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        self.name, self.title, self.source, self.layout = name, title, source, layout
        self.notes = (*_NOTES, *notes)
        self.prompts, self.depth_range = tuple(prompts), depth_range
        self._reader, self._twin, self._rows, self._seconds = reader, twin, tuple(rows), seconds
        self._factor = 100.0 if unit == "%" else 1.0
        error = [Column(p.key, p.label, unit, "lower") for p in self.prompts]
        times = [Column(_time_key(p.key), f"{p.label} time", "ms", "lower") for p in self.prompts]
        self.columns = (*error, *(times if seconds else ()), LEFT_OUT)

    def open(self, data: Path) -> list[Sample]:
        """One sample per picture and pattern; see :class:`Protocol`."""
        return self._samples([file_shot(frame) for frame in self._reader(data)])

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Procedural pictures with the same patterns."""
        return self._samples(twin_shots(self._twin, budget, derive_seed(seed, self.name)))

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """AbsRel of one picture and pattern; the answer needs ``depth`` (1, H, W) in metres."""
        depth = truth.need("depth")
        errors, missing = clamped_errors(answer, depth, truth.need("valid"))
        column = str(truth.facts["column"])
        values = {column: self._factor * float(errors.abs_rel), LEFT_OUT.key: 100 * missing}
        times = answer.facts.get("seconds")
        if self._seconds and times:
            values[_time_key(column)] = 1e3 * float(torch.tensor(times, dtype=torch.float64).median())
        return Measurement(query.name, str(truth.facts["group"]), values, weight=float(errors.pixels))

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """Mean over the pictures of each pattern."""
        return {column.key: mean(measurements, column.key) for column in self.columns}

    def published(self) -> Sequence[PublishedRow]:
        """Rows given by the benchmark."""
        return self._rows

    def _samples(self, shots: Sequence[Shot]) -> list[Sample]:
        load = shot_loader(shots)
        return [self._sample(shot, load, i, p) for i, shot in enumerate(shots) for p in self.prompts]

    def _sample(
        self, shot: Shot, load: Callable[[int], LoadedFrame], index: int, prompt: PromptColumn
    ) -> Sample:
        name = f"{shot.name}/{prompt.key}"

        def query() -> Query:
            loaded = load(index)
            given = make_prompt(prompt.pattern, loaded.depth, seed=image_seed(shot.name), image=loaded.image)
            return prompted_query(name, loaded, given)

        def truth() -> Truth:
            depth = load(index).depth[None]
            facts = {"group": shot.group, "column": prompt.key}
            return Truth({"depth": depth, "valid": in_range(depth, *self.depth_range)}, facts=facts)

        return Sample(name, shot.group, query, truth)


def prompted_query(name: str, frame: LoadedFrame, prompt: Prompt) -> Query:
    """What a model sees: the picture, its intrinsics where known, and the prompt.

    For patterns that give a whole area, ``fit`` (1, H, W) bool marks the pixels to align a prior with.
    """
    scene = query_scene(frame.image[None], K=None if frame.K is None else frame.K[None], metric=True)
    tensors = {"prompt": prompt.depth[None].clone()}
    if prompt.cover is not None:
        tensors["fit"] = prompt.mask[None]
    return Query(name, "prompted_depth", ("depth",), scene=scene, tensors=tensors)


def post_aligned(model: Model, options: GlobalOptions | None = None) -> Model:
    """A model that knows no prompts, aligned to them afterwards: one affine map in disparity over all prompt pixels.

    This is how the paper's Tab 1 rates DAv2 and Depth Pro (section 10.1).

    Args:
        model: gives ``depth`` (1, H, W), metric or not.
        options: of the fit; the plain affine one when None.

    Raises:
        InputError: from the returned model: the query gives no prompt.
    """

    def aligned(query: Query) -> Answer:
        if "prompt" not in query.tensors:
            raise InputError(f"{query.name} gives no prompt")
        prompt = query.tensors["prompt"][0]
        mask = query.tensors["fit"][0] if "fit" in query.tensors else prompt > 0
        prior = inverse(model(query).need("depth", query.tensors["prompt"].shape)[0])
        fit = align_global(prior, inverse(prompt), mask, options or GlobalOptions())
        return Answer({"depth": (1.0 / fit.disparity)[None]})

    return aligned


def _time_key(key: str) -> str:
    return "ms_" + key.removeprefix("absrel_")


_NOTES = (
    "No alignment and no median scaling; per picture, then the mean over pictures (the paper does not say which).",
    "Predictions are resized bilinearly to the size of the truth where they differ, then clamped to [0.001, 1000] m; "
    "pixels without a finite prediction are left out and counted in 'no number'.",
    "True depth counts inside the closed range; prompts are cut out of all valid depth, also outside of it.",
    "Random prompts are seeded by the CRC-32 of the picture's name; no noise is added.",
)
