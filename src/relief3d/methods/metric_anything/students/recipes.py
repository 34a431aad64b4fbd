"""Recipes of the students. Where the paper is silent, the choice is ours and says so."""

from __future__ import annotations

from dataclasses import replace

from relief3d.data.photometric import Photometric
from relief3d.losses.moge_local import PatchOptions
from relief3d.methods.metric_anything.pictures import PictureSet
from relief3d.methods.metric_anything.students.config import (
    DepthMapStudentConfig,
    PointLosses,
    PointMapStudentConfig,
    StudentEvaluation,
)
from relief3d.methods.metric_anything.students.task import DepthMapTask, PointMapTask
from relief3d.train.config import (
    CheckpointConfig,
    EmaConfig,
    GroupConfig,
    LogConfig,
    OptimiserConfig,
    ScheduleConfig,
    TrainConfig,
)
from relief3d.train.recipe import Budget, Recipe, Size
from relief3d.worlds.config import Family

FAMILIES: tuple[Family, ...] = ("room", "objects", "street", "outdoor")
COLOURS = Photometric(
    probability=0.8, shared=1.0, hue=0.03, gamma=0.3, grey=0.05, blur=0.7, noise=0.03, jpeg=0.4
)
GENTLE = Photometric(
    probability=0.5, shared=1.0, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02, gamma=0.2, blur=0.5,
    noise=0.02, jpeg=0.2,
)  # fmt: skip
SMOKE_SETS = tuple(
    PictureSet((family,), 2, size=(48, 64), lidar=(0, 0), texture_size=64) for family in FAMILIES[:2]
)
_SMOKE_EVALUATION = StudentEvaluation(
    tuple(replace(rule, worlds=1, views=2, seed=1_000_003) for rule in SMOKE_SETS), near=3.0
)
_WORLDS = {"mini": 240, "gpu": 2000, "paper": 20_000}


def _sets(budget: Budget) -> tuple[PictureSet, ...]:
    return tuple(PictureSet((family,), _WORLDS[budget]) for family in FAMILIES)


def _small_train(steps: int, budget: Budget, lr: float) -> TrainConfig:
    """Our choice for networks of up to some million parameters from scratch."""
    return TrainConfig(
        steps=steps,
        workers=1 if budget == "mini" else 12,
        precision="bfloat16",
        optimiser=OptimiserConfig(lr=lr, betas=(0.9, 0.98), weight_decay=0.02),
        schedule=ScheduleConfig(warmup=0.05, end=0.01),
        ema=EmaConfig(decay=0.998, ramp=10),
        checkpoint=CheckpointConfig(every=500, seconds=120),
        log=LogConfig(every=25, panels=1000, evaluate=1000, utilisation=False),
    )


def _smoke_train() -> TrainConfig:
    return TrainConfig(
        steps=6,
        precision="float32",
        optimiser=OptimiserConfig(lr=1e-3),
        checkpoint=CheckpointConfig(every=3),
        log=LogConfig(every=2, panels=6, evaluate=6, utilisation=False),
    )


def _paper_train(steps: int, warmup: int, lr: float, backbone: str) -> TrainConfig:
    """Published steps and learning rates; the rest is ours (specification 8)."""
    return TrainConfig(
        steps=steps,
        workers=12,
        precision="bfloat16",
        checkpointing=True,
        optimiser=OptimiserConfig(
            lr=lr,
            betas=(0.9, 0.95),
            weight_decay=0.01,
            clip_norm=1.0,
            groups=(GroupConfig(backbone, lr_scale=0.1),),
        ),
        schedule=ScheduleConfig(warmup=float(warmup), end=0.01),
        ema=EmaConfig(decay=0.9999, ramp=10),
        checkpoint=CheckpointConfig(every=1000, seconds=900),
        log=LogConfig(every=50, panels=5000, evaluate=5000),
    )


def depthmap(size: Size, budget: Budget) -> DepthMapStudentConfig:
    """Configuration of Student-DepthMap."""
    if budget == "smoke":
        return DepthMapStudentConfig(
            size=size,
            pictures=SMOKE_SETS,
            shape=(24, 32),
            batch=2,
            evaluation=_SMOKE_EVALUATION,
            train=_smoke_train(),
        )
    base = DepthMapStudentConfig(size=size, pictures=_sets(budget), colours=COLOURS)
    if budget == "paper":
        train = _paper_train(200_000, 5000, 2e-5, "encoder.patch_encoder*")
        return replace(base, batch=144, train=train)
    steps, batch = {"mini": (1500, 8), "gpu": (10_000, 64)}[budget]
    # On processors bfloat16 makes attention over the many small tiles slower.
    train = _small_train(steps, budget, 1e-3)
    return replace(
        base, batch=batch, train=replace(train, precision="float32") if budget == "mini" else train
    )


def pointmap(size: Size, budget: Budget) -> PointMapStudentConfig:
    """Configuration of Student-PointMap."""
    if budget == "smoke":
        return PointMapStudentConfig(
            size=size,
            pictures=SMOKE_SETS,
            shape=(24, 32),
            tokens=(12, 20),
            batch=2,
            losses=PointLosses(resolution=6, patches=(PatchOptions(4, 6, 2),), metric_depth=1.0, rays=1.0),
            evaluation=_SMOKE_EVALUATION,
            train=_smoke_train(),
        )
    base = PointMapStudentConfig(size=size, pictures=_sets(budget), colours=COLOURS)
    if budget == "paper":
        return replace(
            base,
            batch=80,
            tokens=(1200, 3600),
            train=_paper_train(10_000, 1000, 2.5e-5, "encoder.backbone*"),
        )
    # Exact alignment of many points is dearer than a small network; local patches cost three times as much again.
    losses = PointLosses(resolution=10, patches=(), metric_scale=0.0, metric_depth=1.0, rays=1.0)
    if budget == "gpu":
        losses = replace(losses, resolution=24, patches=(PatchOptions(4, 12, 8), PatchOptions(16, 8, 32)))
    steps, batch = {"mini": (9000, 4), "gpu": (15_000, 64)}[budget]
    if budget == "mini":  # few samples: small batches, and less that does not matter to learn
        # Windows are nearly whole pictures: smaller ones have narrower fields of view than the pictures asked about.
        base = replace(base, colours=GENTLE, zoom=(0.85, 1.0))
        losses = replace(losses, rays=3.0)
    return replace(base, batch=batch, losses=losses, train=_small_train(steps, budget, 1e-3))


STUDENTS = (
    Recipe(
        "metric-student-depthmap",
        "metric depth of single pictures of known focal length (Student-DepthMap), without a prompt",
        DepthMapStudentConfig,
        depthmap,
        DepthMapTask,
        "relief3d depth PICTURES -o OUT --model {weights} --model-size {size}",
    ),
    Recipe(
        "metric-student-pointmap",
        "metric points, mask and focal length of single pictures (Student-PointMap), without a prompt",
        PointMapStudentConfig,
        pointmap,
        PointMapTask,
        "relief3d depth PICTURES -o OUT --model {weights} --model-size {size}",
    ),
)
