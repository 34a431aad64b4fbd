"""What the tables about students share: presets per budget, the teacher whose labels they learn, and trained students.

A student's numbers are those of its last evaluation, on held-out worlds; a network that several tables need is trained
once (:mod:`relief3d.pipelines.repro.trained`). The teacher is the lean network of the prompted tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from relief3d.core.errors import InputError
from relief3d.data.photometric import Photometric
from relief3d.losses.moge_local import PatchOptions
from relief3d.methods.metric_anything.pictures import PictureSet
from relief3d.methods.metric_anything.students.config import (
    DepthMapStudentConfig,
    LabelConfig,
    Labels,
    PointLosses,
    PointMapStudentConfig,
    StudentConfig,
    StudentEvaluation,
)
from relief3d.methods.metric_anything.students.recipes import depthmap, pointmap
from relief3d.methods.metric_anything.students.task import StudentTask
from relief3d.pipelines.repro import prompted
from relief3d.pipelines.repro.experiment import Arm, ArmRun
from relief3d.pipelines.repro.trained import TrainedNetwork, trained_network
from relief3d.pipelines.train.configuration import to_plain
from relief3d.pipelines.train.registry import find_recipe
from relief3d.train.config import EmaConfig
from relief3d.train.recipe import Budget, Size
from relief3d.worlds.config import Family

DEPTHMAP, POINTMAP = "metric-student-depthmap", "metric-student-pointmap"
FAMILY: Family = "street"
"""The family of worlds that students learn: it has near and far, and the same things at every distance."""
SEVERITY = 2.0
"""Errors of the raw labels, relative to :mod:`relief3d.worlds.depth_sources`: real sources err by as much as good
students do, and a student in miniature errs several times as much."""


_POINT_LOSSES = PointLosses(resolution=10, patches=(), metric_scale=0.0, metric_depth=1.0, rays=3.0)


@dataclass(frozen=True)
class StudentPreset:
    """Sizes of all runs of students at a budget; pictures and teacher are those of the prompted tables.

    Attributes:
        depthmap, pointmap: sizes of the networks.
        steps, point_steps: of training.
        batch: of both.
        shape: height and width of training pictures.
        tokens: of the point map.
        losses: of the point map.
        points: most points that the teacher is told.
        compared: pictures whose labels are compared.
        near: metres that divide near from far.
        worlds, held: of training and of tests.
        seeds: of the main tables.
    """

    depthmap: Size = "nano"
    pointmap: Size = "micro"
    steps: int = 700
    point_steps: int = 700
    batch: int = 4
    shape: tuple[int, int] = (64, 80)
    tokens: tuple[int, int] = (20, 30)
    losses: PointLosses = _POINT_LOSSES
    points: int = 800
    compared: int = 120
    near: float = 20.0
    worlds: int = 240
    held: int = 24
    seeds: tuple[int, ...] = (0, 1, 2)


PRESETS: Mapping[Budget, StudentPreset] = {
    "smoke": StudentPreset(
        pointmap="nano",
        steps=1,
        point_steps=1,
        batch=2,
        shape=(24, 32),
        tokens=(12, 12),
        losses=PointLosses(resolution=5, patches=(PatchOptions(4, 5, 1),), metric_depth=1.0, rays=1.0),
        points=60,
        compared=2,
        near=2.0,
        worlds=2,
        held=1,
        seeds=(0,),
    ),
    "mini": StudentPreset(),
}


def student_preset(budget: Budget) -> StudentPreset:
    """Sizes at a budget.

    Raises:
        InputError: the tables do not have it.
    """
    if budget not in PRESETS:
        raise InputError(
            f"the tables about students have no budget '{budget}'", remedy=f"there are {', '.join(PRESETS)}"
        )
    return PRESETS[budget]


def training_sets(budget: Budget) -> tuple[PictureSet, ...]:
    """Pictures of one family, so that a small network learns something in minutes."""
    return (replace(_rule(budget), worlds=student_preset(budget).worlds),)


def _rule(budget: Budget) -> PictureSet:
    return replace(prompted.preset(budget).sets()[0], families=(FAMILY,))


def _test_sets(budget: Budget) -> tuple[PictureSet, ...]:
    held = replace(_rule(budget), worlds=student_preset(budget).held, views=2, seed=prompted.HELD_OUT_SEED)
    return tuple(replace(held, families=(family,)) for family in (FAMILY, prompted.HELD_OUT))


def detailed_sets(budget: Budget) -> tuple[PictureSet, ...]:
    """Larger held-out pictures."""
    (rule,) = prompted.preset(budget).detailed_test().pictures
    return (replace(rule, families=(FAMILY,), worlds=max(1, student_preset(budget).held // 2), views=2),)


def depthmap_config(budget: Budget, labels: Labels = "teacher", **changes: Any) -> DepthMapStudentConfig:
    """Student-DepthMap on the labels, in miniature; the teacher's weights are filled in when the arm runs."""
    s = student_preset(budget)
    base = depthmap(s.depthmap, "mini")
    return replace(base, **{**_common(budget, base, labels, s.steps, 2e-3), **changes})


def pointmap_config(budget: Budget, labels: Labels = "teacher", **changes: Any) -> PointMapStudentConfig:
    """Student-PointMap likewise."""
    s = student_preset(budget)
    base = pointmap(s.pointmap, "mini")
    own = {"tokens": s.tokens, "losses": s.losses}
    return replace(base, **{**_common(budget, base, labels, s.point_steps, 1e-3), **own, **changes})


def _common(budget: Budget, base: StudentConfig, labels: Labels, steps: int, lr: float) -> dict[str, Any]:
    s = student_preset(budget)
    train = replace(
        base.train,
        steps=steps,
        workers=0,
        optimiser=replace(base.train.optimiser, lr=lr),
        ema=EmaConfig(decay=0.98, ramp=10),
        checkpoint=replace(base.train.checkpoint, every=50, seconds=60),
        log=replace(base.train.log, every=20, panels=0, evaluate=0, utilisation=False),
    )
    return {
        "pictures": training_sets(budget),
        "hold_out": (prompted.HELD_OUT,),
        "shape": s.shape,
        "batch": s.batch,
        # Three thousand samples are too few to learn that light, colours and lenses do not matter.
        "colours": Photometric(probability=0.0),
        "zoom": (0.8, 1.0),
        # A placeholder stands for the teacher's weights, which lie elsewhere in every folder of runs.
        "labels": LabelConfig(
            labels, severity=SEVERITY, points=s.points, teacher=TEACHER if labels == "teacher" else ""
        ),
        "evaluation": StudentEvaluation(_test_sets(budget), s.near),
        "train": train,
    }


TEACHER = "the lean network of the prompted tables, first seed"


def teacher_network(run: ArmRun, budget: Budget) -> TrainedNetwork:
    """The teacher of all students: one network for all of their seeds, so that seeds differ by the student alone."""
    p = prompted.preset(budget)
    return trained_network(run, prompted.LEAN, p.size, prompted.lean_config(p), seed=p.seeds[0])


def trained_student(run: ArmRun, budget: Budget, config: StudentConfig) -> TrainedNetwork:
    """A student, its teacher first where labels ask for one."""
    recipe = DEPTHMAP if isinstance(config, DepthMapStudentConfig) else POINTMAP
    return trained_network(run, recipe, config.size, with_teacher(run, budget, config))


def with_teacher(run: ArmRun, budget: Budget, config: Any) -> Any:
    """A configuration with the weights of the teacher of this folder of runs."""
    if config.labels.kind != "teacher":
        return config
    weights = teacher_network(run, budget).weights.as_posix()
    return replace(config, labels=replace(config.labels, teacher=weights))


def student_numbers(
    run: ArmRun, budget: Budget, config: StudentConfig, keys: tuple[str, ...]
) -> dict[str, float]:
    """Numbers of a student by name; NaN where nothing of the kind is seen."""
    found = trained_student(run, budget, config).card["numbers"]
    return {key: float(found.get(key, math.nan)) for key in keys}


def student_arm(name: str, title: str, budget: Budget, config: StudentConfig, keys: tuple[str, ...]) -> Arm:
    """A student's row."""
    parameters = {"training": to_plain(config), **teacher_parameters(budget, config)}
    return Arm(name, title, parameters, lambda run: student_numbers(run, budget, config, keys))


def teacher_parameters(budget: Budget, config: StudentConfig) -> dict[str, Any]:
    """What decides a student's labels besides its own configuration."""
    if config.labels.kind != "teacher":
        return {}
    p = prompted.preset(budget)
    return {"teacher": to_plain(prompted.lean_config(p)), "teacher_seed": p.seeds[0]}


def constant_arm(budget: Budget, config: StudentConfig, keys: tuple[str, ...]) -> Arm:
    """The row of the best constants, which see the truth."""

    def numbers(run: ArmRun) -> dict[str, float]:
        found = student_task(run, config).constants
        return {key: float(found.get(key, math.nan)) for key in keys if key in found}

    return Arm(
        "constant",
        "best constants (see the truth)",
        {"evaluation": to_plain(config.evaluation), "hold_out": list(config.hold_out)},
        numbers,
        True,
    )


def student_task(run: ArmRun, config: StudentConfig) -> StudentTask:
    """The task of a configuration."""
    recipe = DEPTHMAP if isinstance(config, DepthMapStudentConfig) else POINTMAP
    task = find_recipe(recipe).task(config, run.device)
    assert isinstance(task, StudentTask)
    return task
