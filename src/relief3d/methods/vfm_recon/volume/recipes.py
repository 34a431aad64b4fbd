"""Recipes of the volumetric network. Published values stand under ``paper`` (FineRecon, VFM-Recon; specification 5).

The papers train on ScanNet; here all data are procedural rooms, so ``paper`` gives the schedule, never the results.
"""

from __future__ import annotations

from relief3d.methods.vfm_recon.volume.config import (
    FoundationConfig,
    VolumeConfig,
    VolumeEvaluationConfig,
)
from relief3d.methods.vfm_recon.volume.scenes import SceneSet
from relief3d.methods.vfm_recon.volume.task import VolumeTask
from relief3d.train.config import (
    CheckpointConfig,
    GroupConfig,
    LogConfig,
    OptimiserConfig,
    ScheduleConfig,
    TrainConfig,
)
from relief3d.train.recipe import Budget, Recipe, Size

_ADAPTERS = (GroupConfig("*.adapter.*", lr_scale=0.1),)


def _optimiser() -> OptimiserConfig:
    """Adam at 1e-3 without decay, adapters at a tenth, clipped at 1 (the last two are our choice)."""
    # Variants without adapters have no parameter that fits the group.
    return OptimiserConfig(lr=1e-3, weight_decay=0.0, clip_norm=1.0, groups=_ADAPTERS, must_match=False)


def volume(size: Size, budget: Budget) -> VolumeConfig:
    """Configuration for a size and a budget."""
    return {"smoke": _smoke, "mini": _mini, "gpu": _gpu, "paper": _paper}[budget](size)


def _smoke(size: Size) -> VolumeConfig:
    """Seconds; the foundation network is untrained and the card says so."""
    rule = SceneSet(count=1, frames=4, size=(48, 64), voxel_size=0.08, truncation=0.16, texture_size=32)
    return VolumeConfig(
        size,
        voxel_size=0.16,
        scenes=(rule,),
        crop=(16, 16, 8),
        views=3,
        points=512,
        foundation=FoundationConfig(untrained=True),
        evaluation=VolumeEvaluationConfig(("room",), scenes=1, fragments=1),
        train=TrainConfig(
            steps=6,
            precision="float32",
            optimiser=_optimiser(),
            schedule=ScheduleConfig("step", warmup=0.0, milestones=(5 / 6,)),
            checkpoint=CheckpointConfig(every=3),
            log=LogConfig(every=2, panels=6, evaluate=6),
        ),
    )


def _mini(size: Size) -> VolumeConfig:
    """At most three quarters of an hour on two cores, rendering included."""
    return VolumeConfig(
        size,
        voxel_size=0.08,
        scenes=(SceneSet(count=60),),
        crop=(32, 32, 16),
        views=6,
        points=8192,
        train=TrainConfig(
            steps=1500,
            workers=1,
            precision="float32",
            optimiser=_optimiser(),
            schedule=ScheduleConfig("step", warmup=0.02, milestones=(5 / 6,)),
            checkpoint=CheckpointConfig(every=100, seconds=120),
            log=LogConfig(every=20, panels=500, evaluate=250),
        ),
    )


def _gpu(size: Size) -> VolumeConfig:
    """At most ten minutes on one large GPU, with scenes rendered ahead."""
    rule = SceneSet(count=600, frames=24, size=(192, 256), voxel_size=0.03, truncation=0.06, texture_size=256)
    return VolumeConfig(
        size,
        voxel_size=0.06,
        scenes=(rule,),
        crop=(64, 64, 40),
        views=12,
        points=32_768,
        batch=4,
        train=TrainConfig(
            steps=3000,
            workers=12,
            optimiser=_optimiser(),
            schedule=ScheduleConfig("step", warmup=0.02, milestones=(5 / 6,)),
            checkpoint=CheckpointConfig(every=500, seconds=120),
            log=LogConfig(every=20, panels=1000, evaluate=500),
        ),
    )


def _paper(size: Size) -> VolumeConfig:
    """96 x 96 x 56 voxels of 4 cm, 20 views of 640 x 480, 129,024 points, 60 k steps of 2 per process, the last 10 k at
    a tenth of the learning rate. FineRecon uses float16; bfloat16 where there is one is our choice. Blocks of the
    foundation network are recomputed in the backward pass; variants without it need checkpointing = false.
    """
    rule = SceneSet(
        count=1200,
        frames=60,
        size=(480, 640),
        voxel_size=0.02,
        truncation=0.04,
        max_depth=3.5,
        texture_size=512,
    )
    return VolumeConfig(
        size,
        voxel_size=0.04,
        scenes=(rule,),
        crop=(96, 96, 56),
        views=20,
        points=129_024,
        evaluation=VolumeEvaluationConfig(scenes=16, fragments=1),
        train=TrainConfig(
            steps=60_000,
            workers=12,
            checkpointing=True,
            optimiser=_optimiser(),
            schedule=ScheduleConfig("step", warmup=0.0, milestones=(5 / 6,)),
            checkpoint=CheckpointConfig(every=1000, seconds=1800, keep_last=3),
            log=LogConfig(every=50, panels=5000, evaluate=5000),
        ),
    )


RECIPES = (
    Recipe(
        "volume",
        "posed pictures and depth to a signed distance field, on procedural rooms with true distances",
        VolumeConfig,
        volume,
        VolumeTask,
        "relief3d mesh INPUT -o OUT --quality refine --weights {weights}",
    ),
)
