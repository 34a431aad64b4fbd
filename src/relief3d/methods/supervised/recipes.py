"""Recipes of supervised training. Published values stand under ``paper``; where a paper is silent, the choice says so.

Sources: VGGT (Wang et al., CVPR 2025, section 4 "Training"), pi3 (Wang et al. 2025, released training branch),
Reliev3R (its supervised twin: pi3's losses, 30 k steps, section 4.5 of the specification of the multi-view models). The
papers train on captured and rendered data sets; here all data are procedural worlds, so ``paper`` gives their schedule,
never their results.
"""

from __future__ import annotations

from functools import partial

from relief3d.data.augmentation import Augmentation
from relief3d.data.geometric import Geometric
from relief3d.data.photometric import Photometric
from relief3d.data.streams import StreamConfig
from relief3d.data.view_groups import Grouping, Modality
from relief3d.methods.supervised.config import (
    EvaluationConfig,
    LossConfig,
    Network,
    SupervisedConfig,
    WorldShare,
)
from relief3d.methods.supervised.task import SupervisedTask
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

_NEED: frozenset[Modality] = frozenset({"K", "pose", "depth"})
_AUGMENT = Augmentation(
    Geometric(crop=(1.0, 1.0), mirror=0.5), Photometric(shared=1.0, hue=0.1, channels=0.5, noise=0.02)
)
_TABLETOP = (WorldShare("tabletop"),)
_MIXED = (
    WorldShare("tabletop", 1.0, pool=8),
    WorldShare("room", 2.0, pool=12),
    WorldShare("objects", 1.0, pool=12),
    WorldShare("outdoor", 1.0, pool=12),
)


def supervised(network: Network, size: Size, budget: Budget) -> SupervisedConfig:
    """Configuration of a network for a size and a budget."""
    make = {"smoke": _smoke, "mini": _mini, "gpu": _gpu, "paper": _paper}[budget]
    return make(network, size)


def _smoke(network: Network, size: Size) -> SupervisedConfig:
    """Seconds at nano: proves that everything runs."""
    return SupervisedConfig(
        network,
        size,
        worlds=_TABLETOP,
        stream=StreamConfig((2, 4), 16, sizes=((42, 42),), need=_NEED, augmentation=_AUGMENT),
        evaluation=EvaluationConfig(scenes=8, constants=16),
        train=TrainConfig(
            steps=30,
            precision="float32",
            optimiser=OptimiserConfig(lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02),
            schedule=ScheduleConfig(warmup=0.1, end=0.02),
            checkpoint=CheckpointConfig(every=10),
            log=LogConfig(every=5, panels=30, evaluate=15),
        ),
    )


def _mini(network: Network, size: Size) -> SupervisedConfig:
    """At most half an hour at micro on two cores."""
    return SupervisedConfig(
        network,
        size,
        worlds=_TABLETOP,
        stream=StreamConfig(
            (2, 4), 48, sizes=((56, 56),), need=_NEED, grouping=Grouping("random"), augmentation=_AUGMENT
        ),
        evaluation=EvaluationConfig(("tabletop", "objects"), scenes=48),
        train=TrainConfig(
            steps=2000,
            workers=1,
            precision="float32",
            optimiser=OptimiserConfig(lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02),
            schedule=ScheduleConfig(warmup=0.05, end=0.02),
            ema=EmaConfig(decay=0.995, ramp=10),
            checkpoint=CheckpointConfig(every=200, seconds=120),
            log=LogConfig(every=20, panels=500, evaluate=200),
        ),
    )


def _gpu(network: Network, size: Size) -> SupervisedConfig:
    """At most ten minutes on one large GPU; worlds are rendered there. The street family is held out whole."""
    return SupervisedConfig(
        network,
        size,
        worlds=_MIXED,
        render_on="device",
        stream=StreamConfig(
            (2, 8),
            128,
            sizes=((112, 112),),
            need=_NEED,
            grouping=Grouping("random"),
            augmentation=_AUGMENT,
        ),
        evaluation=EvaluationConfig(("tabletop", "room", "street"), scenes=64),
        train=TrainConfig(
            steps=2000,
            precision="auto",
            optimiser=OptimiserConfig(lr=5e-4, betas=(0.9, 0.98)),
            schedule=ScheduleConfig(warmup=0.05, end=0.02),
            ema=EmaConfig(decay=0.999, ramp=10),
            checkpoint=CheckpointConfig(every=500, seconds=120),
            log=LogConfig(every=20, panels=500, evaluate=500),
        ),
    )


def _paper(network: Network, size: Size) -> SupervisedConfig:
    """The published schedule, for one process; on several each takes its share of a batch."""
    end = 0.01
    if network == "vggt":
        # 160 k steps, AdamW 2e-4 with 8 k of warm-up and a cosine, clipping at 1, 2-24 views, up to 518 pixels.
        steps, views, images, shape = 160_000, (2, 24), 48, (518, 518)
        optimiser, warmup = OptimiserConfig(lr=2e-4, betas=(0.9, 0.999)), 8000.0
    elif network == "pi3":
        # Stage 1 of the training branch: 80 epochs x 800 steps, 224 x 224, 64 pictures per GPU, AdamW 5e-5, a tenth of
        # it for an encoder that is not frozen (here none is: nothing is loaded), and a cosine to 5e-5 / 1000 / 100.
        # Leaving out batches whose loss exceeds 10 is not copied.
        steps, views, images, shape = 64_000, (2, 24), 64, (224, 224)
        encoder = GroupConfig("encoder.*", lr_scale=0.1)
        optimiser, warmup = OptimiserConfig(lr=5e-5, betas=(0.9, 0.95), groups=(encoder,)), 0.0
        end = 1e-5
    else:
        # 30 k steps, batches of 64 sequences of 8 views, 1e-4 with a cosine; the rest is the specification's choice.
        steps, views, images, shape = 30_000, (8, 8), 512, (280, 504)
        optimiser, warmup = OptimiserConfig(lr=1e-4, betas=(0.9, 0.95)), 1000.0
    return SupervisedConfig(
        network,
        size,
        worlds=tuple(WorldShare(w.family, w.weight, pool=32, texture_size=512) for w in _MIXED),
        render_on="device",
        stream=StreamConfig(
            views, images, sizes=(shape,), need=_NEED, grouping=Grouping("random"), augmentation=_AUGMENT
        ),
        losses=LossConfig(normals=network == "pi3"),
        evaluation=EvaluationConfig(("room", "street"), scenes=64, views=8, chunk=1),
        train=TrainConfig(
            steps=steps,
            checkpointing=True,
            optimiser=optimiser,
            schedule=ScheduleConfig(warmup=warmup, end=end),
            checkpoint=CheckpointConfig(every=1000, seconds=1800, keep_last=3),
            log=LogConfig(every=50, panels=5000, evaluate=5000),
        ),
    )


_ALL: tuple[tuple[str, Network, str], ...] = (
    ("multiview-supervised", "pi3", "pi3 on procedural worlds, with full truth and pi3's losses"),
    ("multiview-supervised-vggt", "vggt", "VGGT on procedural worlds, with full truth and VGGT's losses"),
    (
        "multiview-supervised-reliev3r",
        "reliev3r",
        "the Reliev3R network on procedural worlds, with full truth and pi3's losses",
    ),
)
RECIPES = tuple(
    Recipe(name, title, SupervisedConfig, partial(supervised, network), SupervisedTask)
    for name, network, title in _ALL
)
