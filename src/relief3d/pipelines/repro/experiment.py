"""What an experiment is: arms, each run with several seeds, and what is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relief3d.core.errors import InputError
from relief3d.core.progress import Progress
from relief3d.eval.protocols.base import Column
from relief3d.train.recipe import Budget, Size


@dataclass(frozen=True)
class ArmRun:
    """One run of one arm.

    Attributes:
        folder: of this run alone; what an interrupted run left in it is still there, so that it can go on.
        seed: of everything random.
        device: cpu, cuda, mps or auto.
        progress: the console.
        shared: folder that all runs of a paper and budget share, see :mod:`relief3d.pipelines.repro.trained`.
        budget: named in what the run writes.
    """

    folder: Path
    seed: int
    device: str
    progress: Progress
    shared: Path
    budget: Budget = "smoke"


@dataclass(frozen=True)
class Arm:
    """One way of doing it.

    Attributes:
        name: short, for folders and tables.
        title: one line.
        parameters: everything that decides its numbers, as plain values; a run with others is not continued.
        run: gives the numbers by column; called again after an interruption, with the same folder.
        baseline: needs no training and no seed (a constant); run once, with the first seed.
    """

    name: str
    title: str
    parameters: Mapping[str, Any]
    run: Callable[[ArmRun], Mapping[str, float]]
    baseline: bool = False


@dataclass(frozen=True)
class Comparison:
    """A claim that the numbers may or may not bear out: ``first`` minus ``second``, seed by seed.

    Attributes:
        first: name of an arm.
        second: name of an arm.
        column: key.
    """

    first: str
    second: str
    column: str


@dataclass(frozen=True)
class ExperimentPlan:
    """An experiment at a budget.

    Attributes:
        size: of the networks.
        arms: in the order of the table.
        seeds: of every arm.
    """

    size: Size
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if not names or len(set(names)) < len(names) or not self.seeds:
            raise InputError(f"an experiment needs arms with different names and seeds, got {names}")


@dataclass(frozen=True)
class Experiment:
    """One table.

    Attributes:
        paper: as on the command line, such as ``reliev3r``; folders have underscores for its hyphens.
        name: of the table, for files.
        title: what it shows.
        columns: of the table; arms give their keys.
        plan: for a budget; raises InputError for a budget that it does not have.
        comparisons: see :class:`Comparison`.
        published: key of a published table to {our column: its column}.
        notes: what a reader has to know.
    """

    paper: str
    name: str
    title: str
    columns: tuple[Column, ...]
    plan: Callable[[Budget], ExperimentPlan]
    comparisons: tuple[Comparison, ...] = ()
    published: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        directed = {column.key for column in self.columns if column.better is not None}
        for comparison in self.comparisons:
            if comparison.column not in directed:
                raise InputError(
                    f"'{self.name}' compares '{comparison.column}', which is no column with a better side"
                )


def folder_name(paper: str) -> str:
    """Name of a paper's folders."""
    return paper.replace("-", "_")
