"""From the options of ``relief3d train`` to trained weights."""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, SilentProgress
from relief3d.core.provenance import commit
from relief3d.io.folder_lock import locked_folder
from relief3d.io.json_file import to_jsonable
from relief3d.pipelines.train.check import check_run
from relief3d.pipelines.train.configuration import to_plain
from relief3d.pipelines.train.export import export_model, read_samples
from relief3d.pipelines.train.plan import format_plan, make_plan
from relief3d.pipelines.train.run_folder import CONFIG_FILE, RunSpec, make_folder, read_run, resolve
from relief3d.pipelines.train.several import check_alone, check_shares, claim_together, engine_of
from relief3d.train.engine import Engine
from relief3d.train.loop import TrainResult, fit
from relief3d.train.processes import is_first
from relief3d.train.recipe import Budget, Size, Strategy

PATIENCE = 15.0
"""Seconds to wait for a folder: workers of a run that was killed take some to notice."""


@dataclass(frozen=True)
class TrainRequest:
    """What a command asks for.

    Attributes:
        recipe: name; empty when a file or folder says.
        size: of the network; None: what the file says, or nano.
        budget: None: what the file says, or smoke.
        file: configuration.
        changes: ``option=value``.
        device: cpu, cuda, mps or auto.
        strategy: of several processes; None: ddp.
    """

    recipe: str = ""
    size: Size | None = None
    budget: Budget | None = None
    file: Path | None = None
    changes: tuple[str, ...] = ()
    device: str = "auto"
    strategy: Strategy | None = None


@dataclass(frozen=True)
class Trained:
    """Result of a run.

    Attributes:
        spec: what was trained.
        result: of the loop.
        weights: the exported file.
    """

    spec: RunSpec
    result: TrainResult
    weights: Path


def plan_run(request: TrainRequest) -> str:
    """What a run would need, for the console; nothing is written.

    Raises:
        InputError: see :func:`resolve`, or several processes.
    """
    check_alone("--dry-run")
    spec = _resolve(request)
    return format_plan(spec, make_plan(spec, request.device))


def start_run(request: TrainRequest, folder: Path, progress: Progress | None = None) -> Trained:
    """Train in a folder, or go on with the same run there; in every process that a launcher started.

    Raises:
        InputError: see :func:`resolve`, :func:`check_run`, :func:`check_shares` and :func:`claim`, or another process
            works in the folder.
        RunError: the run failed.
        KeyboardInterrupt: interrupted, after saving.
    """
    progress = _of_first(progress)
    wanted = _resolve(request)
    check_run(wanted, request.device)
    check_shares(wanted, request.device)
    with engine_of(wanted, request.device, request.strategy) as engine:
        make_folder(folder)
        with _alone(folder, progress):
            spec = claim_together(engine, folder, wanted, progress)
            return _train(spec, folder, request.device, progress, engine)


def resume_run(
    folder: Path, device: str = "auto", progress: Progress | None = None, *, strategy: Strategy | None = None
) -> Trained:
    """Go on with what a folder holds, with any number of processes between which its batches divide.

    Raises:
        InputError: it holds no run, another process works in it, or see :func:`check_shares`.
        RunError: the run failed.
        KeyboardInterrupt: interrupted, after saving.
    """
    progress = _of_first(progress)
    spec = read_run(folder)
    now = commit()
    if spec.commit != now:
        progress.message(f"the run began with commit {spec.commit}, and goes on with {now}")
    check_run(spec, device)
    check_shares(spec, device)
    with engine_of(spec, device, strategy) as engine, _alone(folder, progress):
        return _train(spec, folder, device, progress, engine)


def _of_first(progress: Progress | None) -> Progress:
    """Of several processes, the first speaks."""
    return progress if progress is not None and is_first() else SilentProgress()


def _alone(folder: Path, progress: Progress) -> AbstractContextManager[None]:
    """The lock of a run's folder; of several processes of one run, the first holds it."""
    return locked_folder(folder, PATIENCE, progress.message) if is_first() else nullcontext()


def _train(spec: RunSpec, folder: Path, device: str, progress: Progress, engine: Engine) -> Trained:
    try:
        return train(spec, folder, device, progress, engine)
    except KeyboardInterrupt:
        progress.message(f"to go on: relief3d train --resume {shlex.quote(str(folder))}")
        raise


def train(
    spec: RunSpec, folder: Path, device: str, progress: Progress, engine: Engine | None = None
) -> Trained:
    """Run the loop in a folder that was claimed, then write the weights and their card.

    Args:
        spec: of the run.
        folder: of the run.
        device: cpu, cuda, mps or auto.
        progress: the console.
        engine: where; None: one process on ``device``.
    """
    task = spec.recipe.task(spec.config, device)
    settings = {k: v for k, v in to_plain(spec.config).items() if k != "train"}
    result = fit(
        task, spec.config.train, folder, engine=engine, device=device, settings=settings, progress=progress
    )
    weights = export_model(folder, spec, task, result, read_samples(folder), engine=engine)
    return Trained(spec, result, weights)


def format_trained(trained: Trained) -> str:
    """The last numbers and where things are."""
    spec, result = trained.spec, trained.result
    width = max((len(name) for name in result.numbers), default=0)
    lines = [f"{spec.recipe.name}, size {spec.size}, budget {spec.budget}: {result.step} steps"]
    if result.skipped:
        lines.append(f"{result.skipped} steps were left out, because something was not finite (log.jsonl)")
    lines += [f"  {name:<{width}} {_number(value)}" for name, value in result.numbers.items()]
    lines.append(f"weights: {trained.weights}")
    use = spec.recipe.use.format(
        weights=shlex.quote(str(trained.weights)), size=spec.size, side=_side(spec.config)
    )
    lines.append(f"to use them: {use}")
    return "\n".join(lines)


def _side(config: Any) -> str:
    """The option for pictures of the size that the network knows: at other sizes a small network is lost."""
    sizes = getattr(getattr(config, "stream", None), "sizes", ())
    return f" --side {max(map(max, sizes))}" if sizes else ""


def resolved_yaml(request: TrainRequest) -> str:
    """The configuration that a request comes to, as YAML."""
    from relief3d.pipelines.train.configuration import dump_yaml

    spec = _resolve(request)
    return dump_yaml({**spec.header(), "config": to_plain(spec.config)})


def _resolve(request: TrainRequest) -> RunSpec:
    if not request.recipe and request.file is None:
        raise InputError("name a recipe", remedy="relief3d train --list shows them")
    return resolve(request.recipe, request.size, request.budget, request.file, request.changes, commit())


def _number(value: float) -> str:
    value = to_jsonable(float(value))
    return "not finite" if value is None else f"{value:.4g}"


__all__ = [
    "CONFIG_FILE",
    "TrainRequest",
    "Trained",
    "format_trained",
    "plan_run",
    "resolved_yaml",
    "resume_run",
    "start_run",
    "train",
]
