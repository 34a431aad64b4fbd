"""Video depth of pi3 and SelfEvo: one alignment per video, pixels pooled (specification multiview.md 6.1).

One class serves every benchmark of this kind; a benchmark gives its reader, its choice of frames, its largest depth,
its clip, its twin and its published rows.
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
from relief3d.eval.aggregation import weighted_mean
from relief3d.eval.metrics.depth_alignment import (
    AlignmentScope,
    DepthAlignment,
    aligned_pixel_errors,
    masked_parts,
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
from relief3d.eval.published.table import PublishedRow
from relief3d.eval.twins.rendered import Clip, ClipPlan, clip_cache, query_scene
from relief3d.worlds.config import Family
from relief3d.worlds.sequences import PathKind

ALIGNMENTS: tuple[tuple[DepthAlignment, str], ...] = (
    ("scale", "scale"),
    ("scale_shift", "scale & shift"),
    ("lstsq", "least squares, ours"),
    ("lad", "exact least absolute, ours"),
)
"""Reported alignments with their headings; the first two are the papers', the others show what they leave."""

PAPER_COLUMNS = ("abs_rel_scale", "delta1_scale", "abs_rel_scale_shift", "delta1_scale_shift")
"""Our columns in the order of SelfEvo's tables."""


@dataclass(frozen=True)
class DepthVideo:
    """One video with true depth; nothing is read before it is used.

    Attributes:
        name: unique within the protocol, usable as a relative path.
        frames: names of all frames in order.
        pictures: reads the frames of the given indices as (n, 3, H, W) uint8, all of one size.
        depth: reads z-depth of the given indices, (n, h, w) float32, 0 or less where unknown; may have another size.
        group: unit of the bootstrap; the name when empty.
    """

    name: str
    frames: Sequence[str]
    pictures: Callable[[Sequence[int]], Tensor]
    depth: Callable[[Sequence[int]], Tensor]
    group: str = ""


Reader = Callable[[Path], list[DepthVideo]]
Chooser = Callable[[int], Sequence[int]]
"""Indices of the frames to use, given how many there are."""


@dataclass(frozen=True)
class VideoDepthRules:
    """What differs between benchmarks.

    Attributes:
        max_depth: true depth counts where 0 < depth < max_depth; None for no limit. Unit of the data set.
        post_clip_max: the aligned prediction is lowered to this; None for no clip.
        choose: the frames.
        scope: what shares one alignment.
        learning_rate: of the papers' scale & shift.
    """

    max_depth: float | None = None
    post_clip_max: float | None = None
    choose: Chooser = range
    scope: AlignmentScope = "video"
    learning_rate: float = 1e-4


@dataclass(frozen=True)
class DepthTwin:
    """Procedural stand-in: clips of one kind of world.

    Attributes:
        family, path, moving, seconds: see :class:`ClipPlan`.
        clips: number of clips by budget.
        frames: pictures per clip by budget, before the choice of frames.
        size: (H, W) by budget.
    """

    family: Family = "room"
    path: PathKind | None = None
    moving: int = 0
    seconds: float = 2.0
    clips: Mapping[Budget, int] = field(default_factory=lambda: {"smoke": 2, "mini": 12})
    frames: Mapping[Budget, int] = field(default_factory=lambda: {"smoke": 4, "mini": 12})
    size: Mapping[Budget, tuple[int, int]] = field(
        default_factory=lambda: {"smoke": (48, 64), "mini": (120, 160)}
    )


def about_every_tenth(count: int) -> list[int]:
    """SelfEvo's frames: max(1, n // 10) indices evenly spread over [0, n - 1], cut to whole numbers (6.1).

    Raises:
        InputError: no frames.
    """
    if count < 1:
        raise InputError("a video without frames cannot be measured")
    return [int(i) for i in np.linspace(0, count - 1, max(1, count // 10)).astype(int)]


def resize_prediction(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, h, w) depth at (H, W): bicubic (a = -0.75), no anti-aliasing, half-pixel centres, as ``INTER_CUBIC``."""
    if tuple(depth.shape[-2:]) == tuple(size):
        return depth
    return torch.nn.functional.interpolate(depth[:, None], size, mode="bicubic", align_corners=False)[:, 0]


class VideoDepthProtocol(Protocol):
    """Depth of all chosen frames of a video in one go, measured after one alignment per video.

    Args:
        name, title, source, layout, notes, version: see :class:`Protocol`.
        reader: root folder -> videos; raises InputError naming what is missing.
        rules: mask, clip, frames and alignment.
        rows: published figures, keyed by our columns.
        twin: the procedural stand-in.
        deviation: see :meth:`Protocol.deviation`.
    """

    task = "video_depth"

    def __init__(
        self,
        name: str,
        title: str,
        source: str,
        reader: Reader,
        rules: VideoDepthRules,
        rows: Sequence[PublishedRow] = (),
        twin: DepthTwin | None = None,
        layout: str = "",
        notes: Sequence[str] = (),
        version: int = 1,
        deviation: Deviation | None = None,
    ) -> None:
        self.name, self.title, self.source, self.layout = name, title, source, layout
        self.version, self.rules = version, rules
        self.notes = (*_rule_notes(rules), *notes)
        self._reader, self._rows, self._twin = reader, tuple(rows), twin or DepthTwin()
        self._deviation = deviation
        self.columns = tuple(
            column
            for key, label in ALIGNMENTS
            for column in (
                Column(f"abs_rel_{key}", f"AbsRel ({label})"),
                Column(f"delta1_{key}", f"delta < 1.25 ({label})", better="higher"),
            )
        )

    def open(self, data: Path) -> list[Sample]:
        """One sample per video; see :class:`Protocol`."""
        return [self._sample(video) for video in self._reader(data)]

    def deviation(self, data: Path, samples: Sequence[Sample]) -> str | None:
        """As the benchmark says; see :class:`Protocol`."""
        return None if self._deviation is None else self._deviation(data, samples)

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Clips of procedural worlds through the same choice of frames, mask and alignment."""
        videos = clip_videos(self._twin, budget, derive_seed(seed, self.name))
        return [self._sample(video) for video in videos]

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """Errors of one video; the answer needs ``depth`` (N, h, w) of any size, brought to that of the truth."""
        g = truth.need("depth")
        valid = truth.need("valid", g.shape)
        p = answer.need("depth")
        if p.ndim != 3 or p.shape[0] != g.shape[0]:
            raise InputError(
                f"the depth of '{query.name}' has shape {tuple(p.shape)}, expected {g.shape[0]} maps",
                remedy="give one map per frame of the query, in its order",
            )
        # The published code resizes and aligns in single precision.
        parts = masked_parts(
            resize_prediction(p.float(), (g.shape[-2], g.shape[-1])), g, valid, self.rules.scope
        )
        values: dict[str, float] = {}
        for method, _ in ALIGNMENTS:
            errors = aligned_pixel_errors(
                parts,
                method,
                post_clip_max=self.rules.post_clip_max,
                learning_rate=self.rules.learning_rate,
            )
            values |= {f"abs_rel_{method}": errors.abs_rel, f"delta1_{method}": errors.delta1}
        group = str(truth.facts.get("group", query.name))
        return Measurement(query.name, group, values, weight=float(errors.pixels))

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """Means over videos weighted by their numbers of valid pixels."""
        return {column.key: weighted_mean(measurements, column.key) for column in self.columns}

    def published(self) -> Sequence[PublishedRow]:
        """Rows given by the benchmark."""
        return self._rows

    def _sample(self, video: DepthVideo) -> Sample:
        chosen = list(self.rules.choose(len(video.frames)))
        names = [video.frames[i] for i in chosen]
        group = video.group or video.name
        consecutive = chosen == list(range(len(chosen)))

        def query() -> Query:
            scene = query_scene(video.pictures(chosen), names=names, ordered=consecutive)
            return Query(video.name, "video_depth", ("depth",), scene=scene)

        def truth() -> Truth:
            depth = video.depth(chosen).float()
            valid = torch.isfinite(depth) & (depth > 0)
            if self.rules.max_depth is not None:
                valid &= depth < self.rules.max_depth
            return Truth({"depth": depth, "valid": valid}, facts={"group": group})

        return Sample(video.name, group, query, truth)


def clip_videos(twin: DepthTwin, budget: Budget, seed: int) -> list[DepthVideo]:
    """Procedural videos, one clip each, rendered when a picture or depth map is first used."""
    cache = clip_cache()
    names = tuple(f"{i:06d}.png" for i in range(twin.frames[budget]))
    out = []
    for index in range(twin.clips[budget]):
        plan = ClipPlan(
            seed=derive_seed(seed, index),
            frames=len(names),
            size=twin.size[budget],
            family=twin.family,
            path=twin.path,
            moving=twin.moving,
            seconds=twin.seconds,
        )
        out.append(_clip_video(f"clip{index:03d}", names, plan, cache))
    return out


def _clip_video(
    name: str, frames: Sequence[str], plan: ClipPlan, render: Callable[[ClipPlan], Clip]
) -> DepthVideo:
    return DepthVideo(
        name,
        frames,
        pictures=lambda chosen: render(plan).images[list(chosen)],
        depth=lambda chosen: render(plan).depth[list(chosen)],
    )


def _rule_notes(rules: VideoDepthRules) -> tuple[str, ...]:
    limit = "" if rules.max_depth is None else f" and below {rules.max_depth:g}"
    clip = (
        ""
        if rules.post_clip_max is None
        else f" The aligned prediction is clipped at {rules.post_clip_max:g}."
    )
    scope = "one alignment per video" if rules.scope == "video" else "one alignment per frame"
    return (
        f"True depth above 0{limit} counts; {scope}, over all such pixels of all frames.{clip}",
        "Predictions of another size are resized (bicubic, no anti-aliasing). Means over videos are weighted by the "
        "number of valid pixels.",
        "'scale' iterates ten times and depends on rounding in the fourth digit; 'scale & shift' is the papers' Adam, "
        "which stops far from the optimum and depends on the unit of depth. The columns marked ours are "
        "the exact fits.",
    )
