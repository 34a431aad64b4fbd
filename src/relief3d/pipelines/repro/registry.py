"""Finds the experiments: every module of ``experiments`` names its own in ``EXPERIMENTS``."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping

import relief3d.pipelines.repro.experiments as package
from relief3d.core.errors import InputError
from relief3d.pipelines.repro.experiment import Experiment


def load_experiments() -> Mapping[str, tuple[Experiment, ...]]:
    """All experiments by paper."""
    found: dict[str, list[Experiment]] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        for experiment in importlib.import_module(f"{package.__name__}.{info.name}").EXPERIMENTS:
            same = found.setdefault(experiment.paper, [])
            if any(e.name == experiment.name for e in same):
                raise RuntimeError(f"two experiments of {experiment.paper} have the name {experiment.name}")
            same.append(experiment)
    return {paper: tuple(experiments) for paper, experiments in sorted(found.items())}


def find_experiments(paper: str) -> tuple[Experiment, ...]:
    """The experiments of a paper.

    Raises:
        InputError: there are none; names the nearest and all that exist.
    """
    known = load_experiments()
    if paper in known:
        return known[paper]
    near = difflib.get_close_matches(paper, known, n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise InputError(
        f"there is no reproduction '{paper}'" if paper else "name a reproduction",
        remedy=f"{hint}there are {', '.join(known)}",
    )


def list_experiments() -> str:
    """One line per table."""
    return "\n".join(
        f"{paper}: {experiment.name}: {experiment.title}"
        for paper, experiments in load_experiments().items()
        for experiment in experiments
    )
