"""``relief3d train`` in several processes, which ``torchrun`` or ``accelerate launch`` starts: process 0 writes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relief3d.core.errors import InputError
from relief3d.core.progress import Progress
from relief3d.pipelines.train.run_folder import CONFIG_FILE, RunSpec, claim
from relief3d.train.distributed import AccelerateEngine, engine_for
from relief3d.train.engine import Engine
from relief3d.train.processes import by_first, launched, world_size
from relief3d.train.recipe import Strategy


def check_alone(what: str) -> None:
    """Refuse several processes for what one does.

    Raises:
        InputError: a launcher started several.
    """
    if launched():
        raise InputError(f"{what} is for one process", remedy="start it without a launcher")


@contextmanager
def engine_of(spec: RunSpec, device: str, strategy: Strategy | None) -> Iterator[Engine]:
    """Where a run trains: one device, or this process' share of those that a launcher started; left at the end.

    Args:
        spec: of the run.
        device: cpu, cuda, mps or auto.
        strategy: of several processes; None: ddp.

    Raises:
        MissingExtraError: several processes without accelerate, or without deepspeed where it is asked for.
        InputError: a strategy for one process; the device is absent, or the precision does not fit.
    """
    if strategy is not None and not launched():
        raise InputError(
            f"the strategy '{strategy}' is for several processes",
            remedy="start with torchrun or accelerate launch (docs/distributed.md), or leave --strategy away",
        )
    engine = engine_for(spec.config.train, device=device, strategy=strategy or "ddp")
    try:
        yield engine
    except KeyboardInterrupt:
        _leave(engine)  # all processes end together
        raise
    # After an error the others may not answer, and leaving would wait for them.
    _leave(engine)


def _leave(engine: Engine) -> None:
    if isinstance(engine, AccelerateEngine):
        engine.close()


def check_shares(spec: RunSpec, device: str) -> None:
    """Refuse batches that cannot be shared between the processes of a launcher, before anything is written.

    Raises:
        InputError: the samples of a batch do not divide.
    """
    world = world_size()
    if world == 1:
        return
    counts = spec.recipe.task(spec.config, device).data_plan().counts
    for count in counts:
        if count % world:
            common = math.gcd(*counts)
            fewer = f"start a number of processes that divides {common}, or " if common > 1 else ""
            raise InputError(
                f"a batch of {count} samples does not divide among {world} processes",
                remedy=f"{fewer}begin the run with --set stream.divisible_by={world}",
            )


def claim_together(engine: Engine, folder: Path, spec: RunSpec, progress: Progress) -> RunSpec:
    """Process 0 claims the folder, see :func:`claim`; all others wait and look at it.

    Raises:
        InputError: see :func:`claim`, or a process does not see what process 0 wrote.
    """
    claimed = by_first(engine, lambda: claim(folder, spec, progress.message))
    if claimed is None and not (folder / CONFIG_FILE).is_file():
        raise InputError(
            f"process {engine.rank} does not see the run that process 0 has here",
            path=folder,
            remedy="put the run's folder on a disk that all machines share",
        )
    return claimed or spec
