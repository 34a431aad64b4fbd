"""Runs the arms of an experiment one after another; every finished run leaves a marker and is not run again."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relief3d.core.device import peak_memory, reset_peak_memory, resolve_device
from relief3d.core.errors import InputError, RunError
from relief3d.core.progress import Progress, SilentProgress
from relief3d.core.provenance import commit, hardware, versions
from relief3d.io.folder_lock import locked_folder
from relief3d.io.json_file import read_json_object, to_jsonable, write_json
from relief3d.pipelines.repro.experiment import (
    Arm,
    ArmRun,
    Comparison,
    Experiment,
    ExperimentPlan,
    folder_name,
)
from relief3d.pipelines.repro.intervals import excludes_zero, mean_interval
from relief3d.pipelines.repro.registry import find_experiments
from relief3d.pipelines.repro.render import write_page
from relief3d.pipelines.train.configuration import flat
from relief3d.pipelines.train.run import PATIENCE
from relief3d.pipelines.train.run_folder import make_folder
from relief3d.train.fingerprint import first_difference
from relief3d.train.recipe import Budget

FORMAT = 1
LEAST_SEEDS = 3
DONE, ATTEMPTS, PARAMETERS = "done.json", "attempts.json", "parameters.json"
SHARED = "shared"
"""Folder of what runs of different tables share, beside the tables' own."""


def reproduce(
    paper: str,
    budget: Budget,
    out: Path,
    *,
    device: str = "auto",
    command: Sequence[str] | None = None,
    progress: Progress | None = None,
    only: Sequence[str] = (),
) -> Path:
    """Run everything of a paper that is not done yet, and write results and page.

    Args:
        paper: see :func:`find_experiments`.
        budget: of the runs.
        out: gets ``runs/`` (work in progress), ``results/PAPER/NAME.json`` and ``docs/results/PAPER.md``.
        device: cpu, cuda, mps or auto.
        command: what is written into results as the command; None: this process'.
        progress: the console.
        only: names of the tables to run; none: all. The page shows all that there are results of.

    Returns:
        The page.

    Raises:
        InputError: unknown paper or table, a budget it does not have, an absent device, parameters that changed since
            the first run, or another process at work in the folder.
        RunError: an arm failed; arms that are done stay done.
        KeyboardInterrupt: interrupted; the same command goes on.
    """
    progress = progress or SilentProgress()
    experiments = _chosen(paper, only)
    words = ["relief3d", *sys.argv[1:]] if command is None else list(command)
    resolve_device(device)  # refused before anything is written
    for experiment in experiments:
        experiment.plan(budget)
    runs = out / "runs" / folder_name(paper) / budget
    make_folder(runs)
    with locked_folder(runs, PATIENCE, progress.message):
        for experiment in experiments:
            result = run_experiment(experiment, budget, out, device=device, command=words, progress=progress)
            write_json(result_path(out, experiment, budget), result)
        return write_page(out, paper)


def _chosen(paper: str, only: Sequence[str]) -> tuple[Experiment, ...]:
    experiments = find_experiments(paper)
    names = [experiment.name for experiment in experiments]
    for name in only:
        if name not in names:
            raise InputError(f"{paper} has no table '{name}'", remedy=f"there are {', '.join(names)}")
    return tuple(e for e in experiments if not only or e.name in only)


def result_path(out: Path, experiment: Experiment, budget: Budget) -> Path:
    """Where a result goes; budgets other than ``mini`` are part of the name, so that they do not replace each other."""
    end = "" if budget == "mini" else f"_{budget}"
    return out / "results" / folder_name(experiment.paper) / f"{experiment.name}{end}.json"


def run_experiment(
    experiment: Experiment,
    budget: Budget,
    out: Path,
    *,
    device: str,
    command: Sequence[str],
    progress: Progress,
) -> dict[str, Any]:
    """All arms and seeds of an experiment; see :func:`reproduce`. Returns the content of the result file."""
    plan = experiment.plan(budget)
    folder = out / "runs" / folder_name(experiment.paper) / budget / experiment.name
    settled = _settle(folder, experiment, plan, budget)
    done: dict[str, dict[int, dict[str, Any]]] = {}
    for arm in plan.arms:
        for seed in _seeds(arm, plan):
            place = folder / arm.name / f"seed_{seed}"
            job = ArmRun(place, seed, device, progress, folder.parent / SHARED, budget)
            done.setdefault(arm.name, {})[seed] = _one(experiment, arm, job, command)
    return _summary(experiment, budget, plan, done, settled, command)


def _seeds(arm: Arm, plan: ExperimentPlan) -> tuple[int, ...]:
    return plan.seeds[:1] if arm.baseline else plan.seeds


def _settle(folder: Path, experiment: Experiment, plan: ExperimentPlan, budget: Budget) -> dict[str, Any]:
    """Parameters as they stood before the first run, with the commit; the same ones are asked for ever after."""
    now = to_jsonable(
        {
            "size": plan.size,
            "budget": budget,
            "seeds": plan.seeds,
            "arms": {arm.name: dict(arm.parameters) for arm in plan.arms},
        }
    )
    path = folder / PARAMETERS
    if path.is_file():
        settled = read_json_object(path)
        difference = first_difference(flat(settled.get("parameters", {})), flat(now))
        if difference is not None:
            raise InputError(
                f"the runs of '{experiment.name}' began with other parameters: {difference}",
                path=path,
                remedy="use another folder, so that all arms run again",
            )
        return settled
    settled = {"commit": commit(), "parameters": now}
    write_json(path, settled)
    return settled


def _one(experiment: Experiment, arm: Arm, run: ArmRun, command: Sequence[str]) -> dict[str, Any]:
    """One run, or what its marker says."""
    label, marker = f"{arm.name}, seed {run.seed}", run.folder / DONE
    if marker.is_file():
        found = read_json_object(marker)
        if found.get("format") != FORMAT or not isinstance(found.get("numbers"), dict):
            raise InputError("is no marker of a finished run", path=marker, remedy="remove it to run again")
        run.progress.message(f"{label}: done before")
        return found
    tries = run.folder / ATTEMPTS
    attempts = 1 + (int(read_json_object(tries)["attempts"]) if tries.is_file() else 0)
    write_json(tries, {"attempts": attempts})
    run.progress.message(f"{label}{'' if attempts == 1 else f' (attempt {attempts})'}")
    own_peak = reset_peak_memory(resolve_device(run.device))
    began = time.perf_counter()
    numbers = {k: float(v) for k, v in arm.run(run).items()}
    missing = [c.key for c in experiment.columns if c.key not in numbers]
    if missing and not arm.baseline:
        raise RunError(f"the arm '{arm.name}' gave no '{missing[0]}'")
    found = {
        "format": FORMAT,
        "arm": arm.name,
        "seed": run.seed,
        "numbers": numbers,
        "wall_seconds": round(time.perf_counter() - began, 3),
        "attempts": attempts,
        "peak_bytes": peak_memory(resolve_device(run.device)),
        "peak_is_own": own_peak,
        "commit": commit(),
        "command": shlex.join(command),
        "hardware": hardware(),
    }
    write_json(marker, found)
    return read_json_object(marker)


def _summary(
    experiment: Experiment,
    budget: Budget,
    plan: ExperimentPlan,
    done: Mapping[str, Mapping[int, Mapping[str, Any]]],
    settled: Mapping[str, Any],
    command: Sequence[str],
) -> dict[str, Any]:
    runs = [found for seeds in done.values() for found in seeds.values()]
    began = settled.get("commit")
    machines = [found["hardware"] for found in runs]
    arms = {}
    for arm in plan.arms:
        seeds = done[arm.name]
        entry: dict[str, Any] = {
            "title": arm.title,
            "baseline": arm.baseline,
            "per_seed": {str(seed): dict(found["numbers"]) for seed, found in seeds.items()},
            "wall_seconds": {str(seed): found["wall_seconds"] for seed, found in seeds.items()},
            "attempts": {str(seed): found["attempts"] for seed, found in seeds.items()},
            "peak_bytes": {str(seed): found["peak_bytes"] for seed, found in seeds.items()},
            "mean": {},
            "interval": {},
        }
        for column in experiment.columns:
            values = [found["numbers"].get(column.key) for found in seeds.values()]
            if None not in values:
                entry["mean"][column.key], entry["interval"][column.key] = mean_interval(values)
        arms[arm.name] = entry
    return {
        "format": FORMAT,
        "paper": experiment.paper,
        "name": experiment.name,
        "budget": budget,
        "size": plan.size,
        "seeds": plan.seeds,
        "command": shlex.join(command),
        "commit": commit(),
        "run_commits": sorted({str(found["commit"]) for found in runs}),
        "parameters_commit": began,
        "parameters_were_committed": bool(began) and not str(began).endswith("+"),
        "hardware": runs[0]["hardware"],
        "other_hardware": [h for i, h in enumerate(machines) if i and h not in machines[:i]],
        "versions": versions(),
        "wall_seconds": round(sum(found["wall_seconds"] for found in runs), 3),
        "peak_bytes": max(found["peak_bytes"] for found in runs),
        "peak_is_own": all(found.get("peak_is_own") for found in runs),
        "parameters": settled["parameters"],
        "arms": arms,
        "comparisons": [_compared(c, experiment, arms, done) for c in experiment.comparisons],
    }


def _compared(
    comparison: Comparison,
    experiment: Experiment,
    arms: Mapping[str, Mapping[str, Any]],
    done: Mapping[str, Mapping[int, Mapping[str, Any]]],
) -> dict[str, Any]:
    """Differences of two arms seed by seed.

    An effect is claimed of three seeds or more, when the interval excludes zero and both arms have learned something:
    their means beat those of every baseline, of which there must be one.
    """
    first, second, key = comparison.first, comparison.second, comparison.column
    pairs = [
        (done[first][seed]["numbers"].get(key), done[second][seed]["numbers"].get(key))
        for seed in done[first]
        if seed in done[second]
    ]
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    whole = len(differences) == len(pairs)
    mean, interval = mean_interval(differences) if whole else (None, None)
    column = next(c for c in experiment.columns if c.key == key)
    sign = -1.0 if column.better == "lower" else 1.0
    baselines = [v for arm in arms.values() if arm["baseline"] and (v := arm["mean"].get(key)) is not None]
    means = [arms[name]["mean"].get(key) for name in (first, second)]
    learned = bool(baselines) and all(
        m is not None and all(sign * m > sign * b for b in baselines) for m in means
    )
    return {
        "first": first,
        "second": second,
        "column": key,
        "differences": differences,
        "mean": mean,
        "interval": interval,
        "baselines": len(baselines),
        "learned": learned,
        "claimed": learned and len(differences) >= LEAST_SEEDS and excludes_zero(interval),
    }
