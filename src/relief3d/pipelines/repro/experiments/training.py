"""The training engine's own experiment: does a moving average help, and does bfloat16 cost anything?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from relief3d.core.errors import InputError
from relief3d.core.provenance import commit
from relief3d.eval.protocols.base import Column
from relief3d.methods.supervised.config import SupervisedConfig
from relief3d.methods.supervised.task import SupervisedTask
from relief3d.pipelines.repro.experiment import Arm, ArmRun, Comparison, Experiment, ExperimentPlan
from relief3d.pipelines.train.configuration import changed, to_plain
from relief3d.pipelines.train.registry import find_recipe
from relief3d.pipelines.train.run import train
from relief3d.pipelines.train.run_folder import RunSpec, claim
from relief3d.train.recipe import Budget, Size

RECIPE = "multiview-supervised"
_COLUMNS = (
    Column("abs_rel", "AbsRel"),
    Column("auc30", "AUC@30", "%", "higher"),
    Column("rotation_deg", "rotation", "deg"),
)
_ARMS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("plain", "float32, no average", ("train.ema=null",)),
    ("average", "float32, moving average", ("train.ema={decay: 0.99, ramp: 10}",)),
    ("bfloat16", "bfloat16, no average", ("train.ema=null", "train.precision=bfloat16")),
)
_BUDGETS: Mapping[Budget, tuple[Size, tuple[int, ...], tuple[str, ...]]] = {
    "smoke": (
        "nano",
        (0, 1),
        ("train.steps=12", "train.log.evaluate=0", "train.log.panels=0", "train.log.utilisation=false"),
    ),
    "mini": (
        "nano",
        (0, 1, 2),
        (
            "train.steps=400",
            "train.log.evaluate=100",
            "train.log.panels=0",
            "train.checkpoint.every=100",
            "evaluation.scenes=48",
            "evaluation.constants=64",
        ),
    ),
}


def plan(budget: Budget) -> ExperimentPlan:
    """Three arms of the supervised recipe and the best constants."""
    if budget not in _BUDGETS:
        raise InputError(
            f"the experiment 'training' has no budget '{budget}'", remedy=f"there are {', '.join(_BUDGETS)}"
        )
    size, seeds, common = _BUDGETS[budget]
    recipe = find_recipe(RECIPE)
    base = recipe.make(size, "smoke")
    configs = {name: changed(base, (*common, *own)) for name, _, own in _ARMS}
    arms = [
        Arm(name, title, to_plain(configs[name]), partial(_train, size, configs[name]))
        for name, title, _ in _ARMS
    ]
    constants = changed(base, common)
    seen = {"evaluation": to_plain(constants.evaluation)}
    arms.append(Arm("constant", "best constants (see the truth)", seen, partial(_constant, constants), True))
    return ExperimentPlan(size, tuple(arms), seeds)


def _train(size: Size, config: SupervisedConfig, run: ArmRun) -> dict[str, float]:
    config = replace(config, train=replace(config.train, seed=run.seed))
    spec = RunSpec(find_recipe(RECIPE), size, "smoke", config, commit())
    spec = claim(run.folder / "train", spec, run.progress.message)
    result = train(spec, run.folder / "train", run.device, run.progress).result
    return _numbers(result.numbers)


def _constant(config: SupervisedConfig, run: ArmRun) -> dict[str, float]:
    found = SupervisedTask(config, run.device).constants
    return {"abs_rel": found["tabletop_abs_rel_constant"], "auc30": found["tabletop_auc30_constant"]}


def _numbers(found: Mapping[str, Any]) -> dict[str, float]:
    return {column.key: float(found[f"tabletop_{column.key}"]) for column in _COLUMNS}


EXPERIMENTS = (
    Experiment(
        "training",
        "engine",
        "The engine: moving average and bfloat16 on the supervised recipe",
        _COLUMNS,
        plan,
        (
            Comparison("average", "plain", "abs_rel"),
            Comparison("bfloat16", "plain", "abs_rel"),
        ),
        notes=(
            "Depth AbsRel after one ratio of medians per sequence and AUC@30 of poses, on held-out worlds of the same "
            "family; views in random order.",
        ),
    ),
)
