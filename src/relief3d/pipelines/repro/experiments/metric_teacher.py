"""MetricAnything's teacher in miniature: patterns, density, data scaling, injections, sizes.

One network, trained on uniform prompts of all sources, stands in most tables; it is trained once per seed. Sizes,
steps and worlds are those of :data:`relief3d.pipelines.repro.prompted.PRESETS`, fixed before the first compared run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from relief3d.eval.protocols.base import Column
from relief3d.eval.published.metric_prompted import POINTS
from relief3d.methods.metric_anything.config import PromptConfig, SourcesConfig
from relief3d.methods.metric_anything.pattern_test import Spread, aligned, lean
from relief3d.methods.metric_anything.pattern_test import pyramid as pyramid_way
from relief3d.pipelines.repro.experiment import Arm, ArmRun, Comparison, Experiment, ExperimentPlan
from relief3d.pipelines.repro.prompted import (
    BEST,
    CLASSICAL,
    LEAN,
    PYRAMID,
    Entrant,
    Preset,
    Scores,
    lean_config,
    network,
    preset,
    pyramid_config,
)
from relief3d.pipelines.repro.trained import trained_network
from relief3d.pipelines.train.configuration import to_plain
from relief3d.train.recipe import Budget

PAPER = "metric-anything"
SHARES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
PATTERNS: Mapping[str, tuple[str, str]] = {
    "every_8": ("8x", "nyu.8x"),
    "every_16": ("16x", "nyu.16x"),
    "LiDAR_16": ("lidar, 16 lines", "nyu.lidar"),
    "20": ("extreme, 20 points", "nyu.extreme"),
    "hole-300": ("300 points, a hole", ""),
    "range-300": ("300 points, near only", ""),
    "keypoints-200-noisy": ("200 keypoints, noise and outliers", ""),
    "lidar_returns": ("raw lidar", ""),
    "radar_returns": ("raw radar", ""),
}
"""Patterns of the main table: label, and column of the paper's Table 1 where there is one."""
PAPER_PATTERNS = tuple(p for p, (_, published) in PATTERNS.items() if published)
COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)
INJECTIONS = {
    "dpt": "prompt branches in the decoder (the paper's)",
    "adaln": "adaptive norms",
    "cross_attention": "cross attention",
    "controlnet": "control branch",
    "parallel": "parallel patch embedding",
    "none": "no prompt at all",
}
_SMALL = (
    "Pictures of 128 x 160 of procedural worlds; the families room, objects and street are trained on, outdoor is "
    "never seen. Every number is the mean over families, each counting the same, on held-out worlds; the mean over "
    "patterns is geometric, so that each counts by its ratio."
)
_BASE = "A network is trained once per seed and stands in several tables; times are those of the table that came first."
SUMMARY = (
    Column("mean", "AbsRel, geometric mean", "%"),
    Column("held_out", "the same, unseen family", "%"),
    Column("f1", "boundary F1", "", "higher"),
)
SUMMARY_KEYS = tuple(c.key for c in SUMMARY)


def main_entrant(p: Preset, **changes: Any) -> Entrant:
    """The lean network on uniform prompts of all sources, or with changes to that."""
    return network(LEAN, lean_config(p, **changes), lean)


def trained_with(config: Any, **more: Any) -> dict[str, Any]:
    """Parameters of an arm that trains."""
    return {"training": to_plain(config), **more}


def _columns(patterns: tuple[str, ...]) -> tuple[Column, ...]:
    return (*(Column(p, f"AbsRel, {PATTERNS[p][0]}", "%") for p in patterns), *SUMMARY)


# ---- patterns -------------------------------------------------------------------------------------------------------


def plan_patterns(budget: Budget) -> ExperimentPlan:
    """The main network, the same on rendered depth alone, two on a single pattern, aligned depth, interpolation."""
    p = preset(budget)
    scores = Scores(p.test(), tuple(PATTERNS))
    own: dict[str, tuple[str, dict[str, Any]]] = {
        "uniform": ("trained on uniform prompts, all sources", {}),
        "rendered": ("trained on uniform prompts, rendered depth only", {"sources": SourcesConfig()}),
        "lidar_only": (
            "trained on lidar lines only",
            {"prompts": PromptConfig(*p.points, "lidar", noise=False)},
        ),
        "grid_only": (
            "trained on regular grids only",
            {"prompts": PromptConfig(*p.points, "grid", noise=False)},
        ),
    }
    arms = [
        scores.arm(name, title, main_entrant(p, **changes), trained_with(lean_config(p, **changes)))
        for name, (title, changes) in own.items()
    ]
    blind = pyramid_config(p, injection="none")
    alone = network(PYRAMID, blind, aligned, way="aligned", seed=p.seeds[0])
    title = "depth from the picture alone, fitted to the prompt (one network for all seeds)"
    arms.append(scores.arm("aligned", title, alone, trained_with(blind, seed=p.seeds[0])))
    return ExperimentPlan(p.size, (*arms, *scores.classical_arms()), p.seeds)


PATTERN_TABLE = Experiment(
    PAPER,
    "teacher_patterns",
    "Prompted depth under every pattern, none of them trained on (Tab 1)",
    _columns(tuple(PATTERNS)),
    plan_patterns,
    (
        *(Comparison("uniform", BEST, key) for key in (*PATTERNS, *SUMMARY_KEYS)),
        *(Comparison("uniform", name, "mean") for name in (*CLASSICAL, "aligned", "lidar_only", "grid_only")),
        *(Comparison("uniform", name, "held_out") for name in ("aligned", "lidar_only", "grid_only")),
        Comparison("uniform", "lidar_only", "LiDAR_16"),
        Comparison("uniform", "grid_only", "every_8"),
        Comparison("uniform", "rendered", "keypoints-200-noisy"),
        Comparison("uniform", "rendered", "mean"),
    ),
    {"metric-anything/table1": {p: published for p, (_, published) in PATTERNS.items() if published}},
    (
        _SMALL,
        _BASE,
        "Extreme is 20 points, lidar 16 lines, 8x and 16x every 8th or 16th pixel in both directions: patterns of the "
        "paper brought to small pictures. (The sampler behind the paper's 8x puts averaged values up to 7 pixels "
        "beside their place, which is little in its pictures and much in these.) Raw lidar and radar are returns of "
        "sensors beside the camera, projected.",
        "Depth from the picture alone is a pyramid network that never saw a prompt, trained as long on the same "
        "pictures; it is far weaker than the paper's monocular networks.",
        "Interpolators need no seed; their rows repeat the same numbers so that differences have an interval.",
    ),
)


# ---- density --------------------------------------------------------------------------------------------------------


def plan_density(budget: Budget) -> ExperimentPlan:
    """The main network and interpolation with more and more points."""
    p = preset(budget)
    scores = Scores(p.test(), tuple(f"uniform-{n}" for n in COUNTS))
    arm = scores.arm(
        "network", "trained on uniform prompts, all sources", main_entrant(p), trained_with(lean_config(p))
    )
    return ExperimentPlan(p.size, (arm, *scores.classical_arms()), p.seeds)


DENSITY_TABLE = Experiment(
    PAPER,
    "teacher_density",
    "Number of prompt points at test time (Tab 15, left)",
    (
        *(
            Column(f"uniform-{n}", f"AbsRel, {n} points (paper: {m})", "%")
            for n, m in zip(COUNTS, POINTS, strict=True)
        ),
        *SUMMARY,
    ),
    plan_density,
    (
        *(Comparison("network", BEST, f"uniform-{n}") for n in COUNTS),
        Comparison("network", BEST, "mean"),
    ),
    {
        "metric-anything/table15_left": {
            f"uniform-{n}": f"absrel_{m}" for n, m in zip(COUNTS, POINTS, strict=True)
        }
    },
    (
        _SMALL,
        "Eight doublings as in the paper, on pictures with a hundredth of its pixels. The paper's numbers are not in "
        "percent; its milliseconds are not reproduced here.",
    ),
)


# ---- scaling --------------------------------------------------------------------------------------------------------


def _share(share: float) -> str:
    return f"data_{round(100 * share)}"


def plan_scaling(budget: Budget) -> ExperimentPlan:
    """The main network on nested shares of the worlds, always with the same number of steps."""
    p = preset(budget)
    scores = Scores(p.test(), PAPER_PATTERNS)
    arms = [
        scores.arm(
            _share(s),
            f"{round(100 * s)} % of the worlds",
            main_entrant(p, share=s),
            trained_with(lean_config(p, s)),
        )
        for s in SHARES
    ]
    return ExperimentPlan(p.size, (*arms, *scores.classical_arms()), p.seeds)


SCALING_TABLE = Experiment(
    PAPER,
    "teacher_scaling",
    "Data scaling of the prompted network: 5 to 100 % of the worlds, the same steps",
    _columns(PAPER_PATTERNS),
    plan_scaling,
    tuple(Comparison("data_100", "data_5", key) for key in ("every_8", *SUMMARY_KEYS)),
    {"metric-anything/scaling": {"every_8": "8x"}},
    (_SMALL, _BASE, "Shares are nested: the worlds of a smaller one are part of every larger one."),
)


def plan_trend(budget: Budget) -> ExperimentPlan:
    """Rank correlation of share and error over the networks of the scaling table."""
    p = preset(budget)
    scores = Scores(p.test(), PAPER_PATTERNS)
    parameters = {
        **scores.parameters,
        "shares": list(SHARES),
        "training": {_share(s): to_plain(lean_config(p, s)) for s in SHARES},
    }
    return ExperimentPlan(
        p.size,
        (
            Arm("each", "errors of one seed", parameters, lambda run: _trend(p, scores, run, (run.seed,))),
            Arm(
                "seeds",
                "errors averaged over all seeds",
                {**parameters, "seeds": list(p.seeds)},
                lambda run: _trend(p, scores, run, p.seeds),
                True,
            ),
        ),
        p.seeds,
    )


def _trend(p: Preset, scores: Scores, run: ArmRun, seeds: tuple[int, ...]) -> dict[str, float]:
    from scipy.stats import spearmanr

    errors: dict[str, list[float]] = {key: [] for key in ("every_8", "mean", "held_out")}
    for share in SHARES:
        each = [scores.numbers(replace(run, seed=seed), main_entrant(p, share=share)) for seed in seeds]
        for key, values in errors.items():
            values.append(sum(numbers[key] for numbers in each) / len(each))
    out = {key: float(spearmanr(SHARES, values).statistic) for key, values in errors.items()}
    return {**out, "gain": 100 * (1 - errors["mean"][-1] / errors["mean"][0])}


TREND_TABLE = Experiment(
    PAPER,
    "teacher_scaling_trend",
    "Data scaling: Spearman correlation of share and error",
    (
        Column("mean", "correlation with AbsRel, geometric mean", "", None),
        Column("every_8", "with 8x AbsRel", "", None),
        Column("held_out", "with AbsRel, unseen family", "", None),
        Column("gain", "error saved from 5 to 100 %", "%", None),
    ),
    plan_trend,
    notes=("Of the networks of the table above; -1 says that every larger share has a smaller error.",),
)


# ---- networks -------------------------------------------------------------------------------------------------------


def plan_injections(budget: Budget) -> ExperimentPlan:
    """The pyramid with every way for the condition to enter."""
    p = preset(budget)
    scores = Scores(p.test(), PAPER_PATTERNS)
    arms = []
    for kind, title in INJECTIONS.items():
        config = pyramid_config(p, injection=kind)
        way = _blind if kind == "none" else pyramid_way
        entrant = network(PYRAMID, config, way)
        run = partial(_with_size, scores, PYRAMID, config, entrant)
        arms.append(Arm(kind, title, {**scores.parameters, **trained_with(config)}, run))
    return ExperimentPlan(p.pyramid, (*arms, *_sizeless(scores)), p.seeds[:1])


def _blind(model: Any) -> Spread:
    return pyramid_way(model, blind=True)


def _with_size(scores: Scores, recipe: str, config: Any, entrant: Entrant, run: ArmRun) -> dict[str, float]:
    net = trained_network(run, recipe, config.size, config)
    facts = {"parameters": float(net.card["parameters"]), "seconds": net.seconds}
    return {**scores.numbers(run, entrant), **facts}


def _sizeless(scores: Scores) -> tuple[Arm, ...]:
    """Rows of methods without parameters."""

    def sized(arm: Arm) -> Arm:
        return replace(arm, run=lambda run: {**arm.run(run), "parameters": 0.0, "seconds": math.nan})

    return tuple(sized(arm) for arm in scores.classical_arms())


_SIZE = (Column("parameters", "parameters", "", None), Column("seconds", "training", "s", None))
INJECTION_TABLE = Experiment(
    PAPER,
    "teacher_injections",
    "How the condition enters the pyramid teacher",
    (*_columns(PAPER_PATTERNS), *_SIZE),
    plan_injections,
    tuple(Comparison("dpt", kind, "mean") for kind in INJECTIONS if kind != "dpt"),
    notes=(
        _SMALL,
        "One seed, so no order is claimed. The pyramid (nano) sees the samples of the lean network, without a prior; "
        "the condition is the mean of the nearest points, the mean of all, and the mask.",
    ),
)


def plan_sizes(budget: Budget) -> ExperimentPlan:
    """The lean network in two sizes and the pyramid, on the same samples."""
    p = preset(budget)
    scores = Scores(p.test(), PAPER_PATTERNS)
    arms = []
    named = {"small": p.small, "main": p.size}
    for name, size in named.items():
        config = lean_config(p, size=size)
        run = partial(_with_size, scores, LEAN, config, main_entrant(p, size=size))
        arms.append(Arm(name, f"lean, {size}", {**scores.parameters, **trained_with(config)}, run))
    tall = pyramid_config(p)
    run = partial(_with_size, scores, PYRAMID, tall, network(PYRAMID, tall, pyramid_way))
    arms.append(Arm("pyramid", f"pyramid, {p.pyramid}", {**scores.parameters, **trained_with(tall)}, run))
    return ExperimentPlan(p.size, (*arms, *_sizeless(scores)), p.seeds)


SIZE_TABLE = Experiment(
    PAPER,
    "teacher_sizes",
    "Sizes of the lean network, and the pyramid of the paper on the same samples",
    (*_columns(PAPER_PATTERNS), *_SIZE),
    plan_sizes,
    (
        Comparison("main", "small", "mean"),
        Comparison("main", "pyramid", "mean"),
        Comparison("small", "pyramid", "mean"),
    ),
    notes=(
        _SMALL,
        "Same pictures, prompts, order and steps for all; seconds of training tell what that cost on the machine "
        "named below. The paper's network sees pictures with a hundred times as many pixels and starts from DINOv3; "
        "this pyramid starts from nothing.",
    ),
)


EXPERIMENTS = (
    PATTERN_TABLE,
    DENSITY_TABLE,
    SCALING_TABLE,
    TREND_TABLE,
    INJECTION_TABLE,
    SIZE_TABLE,
)
