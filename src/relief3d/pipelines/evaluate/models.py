"""Models by name for ``relief3d eval --model NAME``."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Model, Task
from relief3d.eval.runner import Oracle
from relief3d.models.metric.opening import find_metric
from relief3d.models.packaged import PLAIN, PROMPTED, PURPOSES
from relief3d.pipelines.evaluate import baselines
from relief3d.pipelines.evaluate.main_job import main_job
from relief3d.pipelines.evaluate.networks import (
    PLAIN_TASKS,
    PREFIX,
    PROMPTED_TASKS,
    metric_key,
    metric_model,
    metric_tasks,
)

PICTURE_TASKS: tuple[Task, ...] = (
    "views", "video_depth", "cameras", "mono_depth", "mono_points", "intrinsics", "prompted_depth", "runtime",
)  # fmt: skip
DENSE_TASKS: tuple[Task, ...] = ("views", "video_depth", "mono_depth", "mono_points", "prompted_depth")
ALL_TASKS: tuple[Task, ...] = (*PICTURE_TASKS, "surface", "object", "records")


@dataclass(frozen=True)
class NamedModel:
    """A model of the command line.

    Attributes:
        name: on the command line and in tables.
        title: one line.
        tasks: that it answers.
        make: builds the model; gets a folder for intermediate files.
        oracle: instead of ``make``: sees the truth.
        parallel: several samples may be computed side by side.
        key: name of its answers in the cache, where weights may change under one name; by default the model's own.
    """

    name: str
    title: str
    tasks: tuple[Task, ...]
    make: Callable[[Path], Model] | None = None
    oracle: Oracle | None = None
    parallel: bool = True
    key: Callable[[], str] | None = None

    @property
    def cache_name(self) -> str:
        """Folder of its answers.

        Raises:
            InputError: it has no weights.
        """
        return self.name if self.key is None else self.key()


def _plain(model: Model) -> Callable[[Path], Model]:
    return lambda folder: model


def _network(name: str, weights: str, tasks: tuple[Task, ...]) -> NamedModel:
    """Networks answer one sample at a time: torch uses all cores itself."""
    title = PURPOSES.get(name, f"weights {weights}")
    return NamedModel(
        name, title, tasks, metric_model(weights), parallel=False, key=lambda: metric_key(weights)
    )


MODELS: tuple[NamedModel, ...] = (
    NamedModel(
        "constant",
        "2 m everywhere, 60 degrees, cameras in a row",
        PICTURE_TASKS,
        _plain(baselines.constant),
    ),
    NamedModel("ball", "a ball for every object", ("object",), _plain(baselines.constant)),
    NamedModel(
        "prompt-nearest",
        "depth of the nearest given pixel",
        ("prompted_depth",),
        _plain(baselines.prompt_nearest),
    ),
    NamedModel(
        "prompt-linear",
        "given pixels interpolated in inverse depth",
        ("prompted_depth",),
        _plain(baselines.prompt_interpolation),
    ),
    NamedModel("first-option", "first choice, the number 2", ("records",), _plain(baselines.first_option)),
    NamedModel(
        "reconstruct",
        "relief3d reconstruct: structure from motion, stereo, fusion",
        ("views", "video_depth", "cameras", "surface"),
        main_job,
        parallel=False,
    ),
    _network(PROMPTED, PROMPTED, PROMPTED_TASKS),
    _network(PLAIN, PLAIN, PLAIN_TASKS),
    NamedModel(
        "best-constant", "best constant depth of each sample", DENSE_TASKS, oracle=baselines.best_constant
    ),
    NamedModel(
        "truth",
        "the truth itself, to see what a perfect answer scores",
        ALL_TASKS,
        oracle=baselines.truth_itself,
    ),
)


def named_model(name: str) -> NamedModel:
    """The model of that name; ``metric:FILE`` is any network for metric depth.

    Raises:
        InputError: there is none; names the nearest ones.
    """
    known = {m.name: m for m in MODELS}
    if name in known:
        return known[name]
    if name.startswith(PREFIX):
        weights = name.removeprefix(PREFIX)
        found = find_metric(weights)
        return _network(PREFIX + found.label, weights, metric_tasks(found))
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(known)}"
    raise InputError(f"there is no model '{name}'", remedy=hint)


def find_model(name: str, task: Task) -> NamedModel:
    """The model of that name, checked for the task.

    Raises:
        InputError: there is none, or it does not do the task.
    """
    model = named_model(name)
    if task not in model.tasks:
        able = ", ".join(m.name for m in MODELS if task in m.tasks) or "none"
        raise InputError(
            f"the model '{name}' does not do the task '{task}'", remedy=f"models that do: {able}"
        )
    return model


def default_models(task: Task) -> tuple[str, ...]:
    """What ``relief3d eval all`` measures when no model is named: the plain baselines of a task, then the truth."""
    plain: dict[Task, tuple[str, ...]] = {
        "views": ("constant",),
        "video_depth": ("constant",),
        "cameras": ("constant",),
        "mono_depth": ("constant", "best-constant"),
        "mono_points": ("constant", "best-constant"),
        "intrinsics": ("constant",),
        "prompted_depth": ("best-constant", "prompt-nearest", "prompt-linear"),
        "surface": ("reconstruct",),
        "object": ("ball",),
        "records": ("first-option",),
        "runtime": ("constant",),
    }
    return (*plain[task], *(() if task == "runtime" else ("truth",)))
