"""What a benchmark protocol is: samples, what a model sees, what it answers, how that is measured.

A protocol turns a data set (its public folder layout, or the procedural twin) into :class:`Sample` objects. A model
maps the :class:`Query` of a sample to an :class:`Answer`; the protocol compares the answer with the
:class:`Truth` and gives a :class:`Measurement`; measurements are summarised to the columns of the published table.

Names of tensors, the same in queries, answers and truths (N views, all of one size H x W):

========================  ==============  ==================================================================
``depth``                 (N, H, W)       z-depth, 0 where unknown
``valid``                 (N, H, W)       bool, where the truth counts
``K``                     (N, 3, 3)       intrinsics in pixels, centres at +0.5
``world_from_cam``        (N, 4, 4)       OpenCV camera-to-world poses, any gauge in answers
``cam_points``            (N, H, W, 3)    points in each camera's frame
``world_points``          (N, H, W, 3)    points in one common frame
``prompt``                (N, H, W)       given metric z-depth, 0 where none (queries only)
``normals``               (N, H, W, 3)    unit normals, camera frame
``matte``                 (N, H, W)       foreground share in [0, 1] (truths only)
========================  ==============  ==================================================================
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from torch import Tensor

from relief3d.core.contract import Mesh, Scene
from relief3d.core.errors import InputError
from relief3d.eval.published.table import PublishedRow

Task = Literal[
    "views",  # N pictures -> depth, points, cameras
    "video_depth",  # N pictures of one video -> depth
    "cameras",  # N pictures -> world_from_cam
    "mono_depth",  # one picture -> depth
    "mono_points",  # one picture -> cam_points, depth, K
    "intrinsics",  # one picture -> K
    "prompted_depth",  # one picture and sparse depth -> depth
    "surface",  # posed pictures -> mesh
    "object",  # one picture and a mask -> mesh with a pose
    "records",  # questions, votes, episodes -> facts
    "runtime",  # a picture size -> seconds
]
Budget = Literal["smoke", "mini"]
"""Size of a procedural twin: seconds (tests), or minutes (results)."""


@dataclass(frozen=True)
class _Content:
    """Named tensors, an optional surface, and JSON facts."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    mesh: Mesh | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def need(self, name: str, shape: Sequence[int] | None = None) -> Tensor:
        """The tensor of that name.

        Raises:
            InputError: absent, or another shape than asked for.
        """
        if name not in self.tensors:
            have = ", ".join(sorted(self.tensors)) or "nothing"
            raise InputError(f"the {self._what()} lacks '{name}' (it holds {have})")
        value = self.tensors[name]
        if shape is not None and tuple(value.shape) != tuple(shape):
            raise InputError(
                f"'{name}' of the {self._what()} has shape {tuple(value.shape)}, expected {tuple(shape)}",
                remedy="give one map per frame at the size of the pictures",
            )
        return value

    def _what(self) -> str:
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Answer(_Content):
    """What a model says about a sample."""


@dataclass(frozen=True)
class Truth(_Content):
    """What is known about a sample; never shown to a model."""


@dataclass(frozen=True)
class Query:
    """What a model may see of a sample.

    Attributes:
        name: of the sample.
        task: what kind of answer is expected.
        wants: names of the answer's tensors, or ``"mesh"``, or names of facts.
        scene: pictures, with intrinsics or poses only where the protocol gives them.
        tensors: further input such as ``prompt``.
        facts: further input such as a question and its options.
        seed: for models that draw random numbers.
    """

    name: str
    task: Task
    wants: tuple[str, ...]
    scene: Scene | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


Model = Callable[[Query], Answer]


@dataclass(frozen=True)
class Sample:
    """One unit of a benchmark; nothing is loaded before it is used.

    Attributes:
        name: unique within the protocol, usable as a relative path ("scene/frame").
        group: scene or sequence it belongs to: the unit of the bootstrap.
        load_query: what the model sees.
        load_truth: what it is compared with.
    """

    name: str
    group: str
    load_query: Callable[[], Query]
    load_truth: Callable[[], Truth]


@dataclass(frozen=True)
class Measurement:
    """Numbers of one sample, from which the summary of any set of samples can be computed.

    Attributes:
        name: of the sample.
        group: of the sample.
        values: named numbers.
        weight: for weighted means, such as the number of valid pixels.
        arrays: named 1-D float arrays to be pooled, such as the errors of all pairs.
    """

    name: str
    group: str
    values: Mapping[str, float]
    weight: float = 1.0
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """A column of the result table.

    Attributes:
        key: name in the summary.
        label: heading.
        unit: as printed in the paper's table ("%", "cm", "deg", "" for a plain ratio); summaries use it.
        better: which direction is better; None for information.
    """

    key: str
    label: str
    unit: str = ""
    better: Literal["lower", "higher"] | None = "lower"


Deviation = Callable[[Path, Sequence[Sample]], "str | None"]
"""See :meth:`Protocol.deviation`."""


class Protocol(abc.ABC):
    """A benchmark: how samples are chosen, shown and measured.

    Attributes:
        name: on the command line: small letters, digits and underscores.
        title: one line.
        source: paper, table and specification section that define it.
        task: see :data:`Task`.
        columns: of its table, in the paper's order.
        version: raised whenever a change alters numbers; invalidates cached measurements.
        layout: the public folder layout that :meth:`open` reads, in a few lines.
        notes: subtle choices a reader of the table must know.
        floors: columns in which even the twin's truth is not perfect, with the worst value it may have, because the
            rules compare samples of surfaces, triangulated surfaces, or views that hide parts from each other.
    """

    name: str
    title: str
    source: str
    task: Task
    columns: Sequence[Column]
    version: int = 1
    layout: str = ""
    notes: Sequence[str] = ()
    floors: Mapping[str, float] = MappingProxyType({})

    @abc.abstractmethod
    def open(self, data: Path) -> list[Sample]:
        """Samples of the real data set.

        Raises:
            InputError: the folder does not have the public layout; says what is missing.
        """

    def deviation(self, data: Path, samples: Sequence[Sample]) -> str | None:
        """What makes this copy of the data set another one than the published rows were measured on, if anything.

        Args:
            data: its folder.
            samples: as :meth:`open` gave them.
        """
        return None

    @abc.abstractmethod
    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Samples of the procedural twin: the same rules on worlds rendered on the spot."""

    @abc.abstractmethod
    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """Compare one answer with the truth.

        Raises:
            InputError: the answer does not fit, or no valid pixel is left.
        """

    @abc.abstractmethod
    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """One number per column (NaN where nothing was measured), from any subset or resample of samples."""

    def published(self) -> Sequence[PublishedRow]:
        """Rows of the papers that stand beside ours, keyed by our columns; empty when there are none."""
        return ()

    def failure(self, query: Query, truth: Truth, reason: str) -> Measurement | None:
        """What a sample counts on which the model failed; None leaves it out and marks the result incomplete."""
        return None

    def panels(self, query: Query, truth: Truth, answer: Answer) -> Mapping[str, Tensor]:
        """Named (3, H, W) uint8 pictures beyond the usual ones of the task (depth, trajectory, surface)."""
        return {}
