"""What MetricAnything's teacher is used for, in miniature: radar and camera, and larger pictures.

The pretrained network is the main one of :mod:`relief3d.pipelines.repro.experiments.metric_teacher`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from relief3d.eval.protocols.base import Column
from relief3d.methods.metric_anything.config import PromptedConfig
from relief3d.methods.metric_anything.pattern_test import Spread, constant, family_mean, lean, lean_at
from relief3d.pipelines.repro.experiment import Arm, ArmRun, Comparison, Experiment, ExperimentPlan
from relief3d.pipelines.repro.experiments.metric_teacher import (
    PAPER,
    SUMMARY,
    SUMMARY_KEYS,
    main_entrant,
    trained_with,
)
from relief3d.pipelines.repro.prompted import (
    CLASSICAL,
    HELD_OUT,
    LEAN,
    Entrant,
    Preset,
    Scores,
    classical_entrant,
    lean_config,
    network,
    preset,
    radar_config,
)
from relief3d.pipelines.repro.trained import trained_network
from relief3d.pipelines.train.configuration import to_plain
from relief3d.train.recipe import Budget

REACHES = (50.0, 70.0, 80.0)

# ---- radar ----------------------------------------------------------------------------------------------------------


def _radar(p: Preset) -> tuple[Scores, PromptedConfig, PromptedConfig, Entrant]:
    """The test, training on radar, pretraining, and one after the other."""
    scores = Scores(p.test(("street", HELD_OUT), 2, reaches=REACHES), ("radar_returns",))
    main = lean_config(p)

    def tuned(run: ArmRun) -> tuple[str, Spread]:
        first = trained_network(run, LEAN, p.size, main)
        return network(LEAN, radar_config(p, str(first.weights)), lean)(run)

    return scores, radar_config(p), main, tuned


def plan_radar(budget: Budget) -> ExperimentPlan:
    """Training on radar from the pretrained network and from nothing, with the same steps."""
    p = preset(budget)
    scores, scratch, main, tuned = _radar(p)
    entrants: dict[str, tuple[str, Entrant, dict[str, Any]]] = {
        "finetuned": (
            "pretrained on uniform prompts, then trained on radar",
            tuned,
            trained_with(scratch, pretraining=to_plain(main)),
        ),
        "scratch": (
            "trained on radar from nothing, the same radar steps",
            network(LEAN, scratch, lean),
            trained_with(scratch),
        ),
        "pretrained": ("pretrained on uniform prompts, no radar seen", main_entrant(p), trained_with(main)),
    }
    arms = [
        Arm(name, title, {**scores.parameters, **more}, partial(_radar_numbers, scores, entrant))
        for name, (title, entrant, more) in entrants.items()
    ]
    arms += [
        Arm(name, title, scores.parameters, partial(_radar_numbers, scores, classical_entrant(name)))
        for name, title in CLASSICAL.items()
    ]
    flat = scores.classical_arms()[-1]
    arms.append(replace(flat, run=partial(_radar_numbers, scores, _constant)))
    return ExperimentPlan(p.size, tuple(arms), p.seeds)


def _constant(run: ArmRun) -> tuple[str, Spread]:
    return "classical-constant", constant


def _radar_numbers(scores: Scores, entrant: Entrant, run: ArmRun) -> dict[str, float]:
    found = scores.of(run, *entrant(run), "radar_returns")
    out = {"abs_rel": 100 * family_mean(found, lambda m: m.abs_rel)}
    for n, reach in enumerate(REACHES):
        out[f"mae_{reach:.0f}"] = 1000 * family_mean(found, lambda m, n=n: m.mae[n])  # type: ignore[misc]
        out[f"rmse_{reach:.0f}"] = 1000 * family_mean(found, lambda m, n=n: m.rmse[n])  # type: ignore[misc]
    return out


def plan_saved(budget: Budget) -> ExperimentPlan:
    """What the first two arms of the radar table differ by, seed by seed."""
    p = preset(budget)
    scores, scratch, main, tuned = _radar(p)
    parameters = {**scores.parameters, **trained_with(scratch, pretraining=to_plain(main))}
    run = partial(_saved, scores, tuned, network(LEAN, scratch, lean))
    return ExperimentPlan(p.size, (Arm("saved", "saved by pretraining", parameters, run),), p.seeds)


def _saved(scores: Scores, first: Entrant, second: Entrant, run: ArmRun) -> dict[str, float]:
    a, b = (_radar_numbers(scores, entrant, run) for entrant in (first, second))
    return {key: 100 * (1 - a[key] / b[key]) for key in a}


_RADAR_KEYS = tuple(f"{kind}_{reach:.0f}" for reach in REACHES for kind in ("mae", "rmse"))
RADAR_TABLE = Experiment(
    PAPER,
    "teacher_radar",
    "Radar and camera: fine-tuning the pretrained network against training from nothing (Tab 2)",
    (
        *(Column(key, f"{key.split('_')[0].upper()} to {key.split('_')[1]} m", "mm") for key in _RADAR_KEYS),
        Column("abs_rel", "AbsRel", "%"),
    ),
    plan_radar,
    tuple(
        Comparison("finetuned", other, key)
        for key in ("mae_50", "mae_80")
        for other in ("scratch", "pretrained", "linear")
    ),
    {"metric-anything/table2": {key: key for key in _RADAR_KEYS}},
    (
        "Streets of unseen worlds and the unseen family outdoor. Raw returns of a radar beside the camera: up to 96 "
        "per picture, of unknown height, with errors in direction and range; truth is exact, not lidar.",
        "The last two published rows are the paper's own pair.",
    ),
)
SAVED_TABLE = Experiment(
    PAPER,
    "teacher_radar_saved",
    "Radar and camera: error saved by pretraining",
    tuple(
        Column(key, f"{key.split('_')[0].upper()} to {key.split('_')[1]} m", "%", None) for key in _RADAR_KEYS
    ),
    plan_saved,
    notes=("Of the first two rows of the table above: 100 (1 - fine-tuned / from nothing), seed by seed.",),
)


# ---- resolution -----------------------------------------------------------------------------------------------------


def plan_resolution(budget: Budget) -> ExperimentPlan:
    """The main network on larger pictures, at three working resolutions."""
    p = preset(budget)
    (_, width), _, points = p.detailed
    scores = Scores(p.detailed_test(), (f"uniform-{points}",))
    config = lean_config(p)
    arms = []
    for factor in (1, 3, 9):
        side = round(width * math.sqrt(factor / 9))
        wrap: Callable[..., Spread] = partial(lean_at, size=p.size, side=side)
        entrant = network(LEAN, config, wrap, way=f"side{side}")
        arms.append(
            Arm(
                f"{factor}x",
                f"{factor}x: longer side of {side} pixels",
                {**scores.parameters, **trained_with(config, side=side)},
                partial(_resolved, scores, entrant),
            )
        )
    arms += [
        replace(arm, run=lambda run, arm=arm: _short(arm.run(run)))  # type: ignore[misc]
        for arm in scores.classical_arms(best=False)
    ]
    return ExperimentPlan(p.size, tuple(arms), p.seeds)


def _resolved(scores: Scores, entrant: Entrant, run: ArmRun) -> dict[str, float]:
    return _short(scores.numbers(run, entrant))


def _short(numbers: Mapping[str, float]) -> dict[str, float]:
    return {key: numbers[key] for key in SUMMARY_KEYS}


RESOLUTION_TABLE = Experiment(
    PAPER,
    "teacher_resolution",
    "Working resolution at test time: 1x, 3x, 9x the pixels, on pictures of 256 x 320",
    SUMMARY,
    plan_resolution,
    (
        Comparison("3x", "1x", "f1"),
        Comparison("9x", "3x", "f1"),
        Comparison("9x", "1x", "f1"),
        Comparison("9x", "1x", "mean"),
    ),
    notes=(
        "The same picture and prompt at three working resolutions, results brought to 256 x 320 and compared there. "
        "Trained on crops of pictures of 128 x 160.",
    ),
)

EXPERIMENTS = (RADAR_TABLE, SAVED_TABLE, RESOLUTION_TABLE)
