"""The training loop, for every method: read it from :func:`fit` downwards.

A step is a function of the weights and of its number alone: batches come by position, random numbers from a seed per
step. That is why a run that was killed goes on with the same bits, and why saving is cheap to reason about.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relief3d.core.device import autocast_dtype, is_out_of_memory, resolve_device
from relief3d.core.errors import InputError, RunError
from relief3d.core.progress import Progress, SilentProgress, stage
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.nn.blocks import Block
from relief3d.train.checkpoint import (
    Checkpoint,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    tidy_checkpoints,
)
from relief3d.train.config import TrainConfig
from relief3d.train.ema import MovingAverage
from relief3d.train.engine import Engine, SingleEngine
from relief3d.train.feeding import feed
from relief3d.train.optimiser import (
    freeze,
    make_optimiser,
    plan_parameters,
    set_learning_rate,
    train_mode,
)
from relief3d.train.run_log import RunLog
from relief3d.train.schedules import schedule_factor
from relief3d.train.task import LossReport, StepInfo, Task


@dataclass(frozen=True)
class TrainResult:
    """What a run ended with.

    Attributes:
        model: the trained network, on its device.
        average: the moving average, or None.
        step: optimiser steps done.
        numbers: of the last evaluation.
        best: step and value of the best evaluation, or None.
        skipped: steps that the guard left out.
        finished: False when the run was stopped early and can go on.
    """

    model: nn.Module
    average: nn.Module | None
    step: int
    numbers: Mapping[str, float]
    best: tuple[int, float] | None
    skipped: int
    finished: bool


def fit(
    task: Task,
    config: TrainConfig,
    folder: Path,
    *,
    engine: Engine | None = None,
    device: str = "auto",
    stop_at: int | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train, or go on with what the folder holds.

    Args:
        task: what is trained.
        config: how.
        folder: of the run: checkpoints, log, panels.
        engine: where; None: one process on ``device``.
        device: cpu, cuda, mps or auto.
        stop_at: save and return after this step, for runs in pieces.
        progress: the console.

    Raises:
        InputError: the folder holds a run of another configuration, or options do not fit the network.
        RunError: the run diverged, or does not fit in memory even sample by sample.
    """
    progress = progress or SilentProgress()
    if engine is None:
        where = resolve_device(device)
        engine = SingleEngine(where, autocast_dtype(config.precision, where))
    last = config.steps if stop_at is None else min(stop_at, config.steps)
    with _deterministic(config.deterministic):
        run = _Run(task, config, folder, engine, progress)
        run.begin()
        first = run.step * config.accumulate
        batches = feed(
            task,
            first,
            last * config.accumulate,
            workers=config.workers,
            part=engine.rank,
            parts=engine.world,
        )
        with stage(progress if engine.rank == 0 else SilentProgress(), task.name, config.steps) as shown:
            shown.advance(run.step)
            while run.step < last:
                numbers = run.one_step([next(batches) for _ in range(config.accumulate)])
                shown.advance(1, f"loss {numbers['loss']:.4g}")
                run.after_step(numbers, last)
        run.end()
    return run.result()


class _Run:
    """The state of a run and what is done to it."""

    def __init__(
        self, task: Task, config: TrainConfig, folder: Path, engine: Engine, progress: Progress
    ) -> None:
        self.task, self.config, self.folder = task, config, folder
        self.engine, self.progress = engine, progress
        model = task.model()
        self.plans = plan_parameters(model, config.optimiser)
        freeze(model, self.plans)
        if config.checkpointing or config.compile:
            _adapt_blocks(model, checkpointing=config.checkpointing, translate=config.compile)
        self.average = None if config.ema is None else MovingAverage(model, config.ema)
        self.model = engine.prepare(model)
        if self.average is not None:
            self.average.network.to(engine.device)
        named = engine.plain(self.model)
        self.optimiser = engine.prepare_optimiser(make_optimiser(named, self.plans, config.optimiser))
        self.sets: dict[str, list[str]] = {}
        for plan in self.plans:
            if not plan.frozen:
                self.sets.setdefault(plan.clip, []).append(plan.name)
        self.step, self.parts, self.samples = 0, 1, 0
        self.skipped, self.in_a_row = 0, 0
        self.best: tuple[int, float] | None = None
        self.numbers: dict[str, float] = {}
        self.saved_at, self.saved_time = -1, time.monotonic()
        self.log: RunLog | None = None

    # ---- one step -----------------------------------------------------------------------------------------------

    def one_step(self, batches: Sequence[Any]) -> dict[str, float]:
        """Gradients of all micro-batches, guard, update, average."""
        config = self.config
        factor = schedule_factor(config.schedule, self.step, config.steps)
        set_learning_rate(self.optimiser, config.optimiser.lr * factor)
        train_mode(self.engine.plain(self.model))
        while True:
            try:
                numbers, culprits = self._gradients(batches)
                break
            except (RuntimeError, MemoryError) as exc:
                if not is_out_of_memory(exc):
                    raise
                self._smaller_parts(batches)
        self.engine.unscale(self.optimiser)
        limit = config.optimiser.clip_norm
        norms = self.engine.clip(self.model, self.sets, float("inf") if limit is None else limit)
        bad_gradient = any(not _finite(v) for v in norms.values())
        scaling = bool(self.engine.scaler_state())
        if self.engine.any(bool(culprits) or (bad_gradient and not scaling)):
            self._guard(culprits or self._names(batches), "loss" if culprits else "gradient")
        else:
            # With scaled losses the scaler itself leaves out steps whose gradients overflow.
            self.engine.step(self.optimiser)
            self.in_a_row = 0
            if self.average is not None and (self.step + 1) % self.average.config.every == 0:
                self.average.update(self.engine.plain(self.model))
        self.step += 1
        self.samples += sum(len(self.task.samples(b)) for b in batches) * self.engine.world
        shown = {f"gradient_norm_{k}": v for k, v in norms.items()}
        return {**numbers, **shown, "lr": config.optimiser.lr * factor}

    def _gradients(self, batches: Sequence[Any]) -> tuple[dict[str, float], list[str]]:
        """Losses of the step's micro-batches, and names of samples whose loss is not finite."""
        self.optimiser.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        culprits: list[str] = []
        count = sum(len(self.task.samples(b)) for b in batches)
        for index, batch in enumerate(batches):
            pieces = [batch] if self.parts == 1 else list(self.task.split(batch, self.parts))
            for number, piece in enumerate(pieces):
                final = index + 1 == len(batches) and number + 1 == len(pieces)
                names = self.task.samples(piece)
                with self.engine.together(self.model, final):
                    report = self._loss(piece, index)
                    self.engine.backward(report.total * (len(names) / count))
                culprits += _not_finite(report, names)
                for key, value in {"loss": report.total, **report.parts}.items():
                    totals[key] = totals.get(key, 0.0) + float(value.detach()) * len(names) / count
        return self.engine.mean(totals, count), culprits

    def _loss(self, batch: Any, micro: int) -> LossReport:
        """Forward pass of one piece with random numbers of its own step."""
        seed = derive_seed(self.config.seed, "step", self.step, micro, self.engine.rank)
        torch.manual_seed(seed)
        info = StepInfo(self.step, self.config.steps, torch_generator(seed, self.engine.device))
        teacher = None if self.average is None else self.average.network
        with self.engine.autocast():
            return self.task.loss(self.model, self.task.to(batch, self.engine.device), info, teacher)

    def _smaller_parts(self, batches: Sequence[Any]) -> None:
        """Halve the pieces after the memory ran out."""
        largest = max(len(self.task.samples(b)) for b in batches)
        if self.engine.world > 1 or self.parts >= largest:
            raise RunError(
                f"out of memory at step {self.step}"
                + (" with single samples" if self.engine.world == 1 else ""),
                remedy="use a smaller batch, smaller pictures, or --train.checkpointing",
            )
        self.parts *= 2
        self.progress.message(
            f"out of memory at step {self.step}: batches now go through in {self.parts} parts; results are the same"
        )
        if self.log is not None:
            self.log.event("out_of_memory", self.step, parts=self.parts)

    def _names(self, batches: Sequence[Any]) -> list[str]:
        return [name for b in batches for name in self.task.samples(b)]

    def _guard(self, culprits: Sequence[str], where: str) -> None:
        """Leave the step out, or end the run."""
        self.skipped += 1
        self.in_a_row += 1
        if self.log is not None:
            self.log.event("not_finite", self.step, where=where, samples=list(culprits))
        broken = _first_not_finite(self.engine.weights(self.engine.plain(self.model)))
        if broken is not None:
            raise RunError(
                f"the weights '{broken}' are not finite at step {self.step}",
                remedy=f"resume from the checkpoint of step {max(0, self.saved_at)} with a lower learning rate",
            )
        if self.config.guard.action == "stop" or self.in_a_row >= self.config.guard.patience:
            shown = ", ".join(list(culprits)[:3])
            raise RunError(
                f"the {where} is not finite at step {self.step} ({self.in_a_row} in a row; samples {shown})",
                remedy="look at these samples, or lower the learning rate and resume",
            )

    # ---- between steps ------------------------------------------------------------------------------------------

    def after_step(self, numbers: Mapping[str, float], last: int) -> None:
        """Log, evaluate, draw, save, each when its time has come."""
        log, step, end = self.config.log, self.step, self.step >= self.config.steps
        if self.log is not None and (step % log.every == 0 or end):
            self.log.training(step, numbers, self.samples)
        if end or (log.evaluate and step % log.evaluate == 0):
            self._evaluate()
        if self.log is not None and log.panels and (step % log.panels == 0 or end):
            self.log.panels(step, self.task.panels(self._shown(), step))
        keep = self.config.checkpoint
        late = keep.seconds > 0 and time.monotonic() - self.saved_time >= keep.seconds
        if step % keep.every == 0 or step >= last or self.engine.any(late):
            self.save()

    def _shown(self) -> nn.Module:
        """The network that is evaluated: the average where there is one."""
        model = self.engine.plain(self.model) if self.average is None else self.average.network
        return model.eval()

    def _evaluate(self) -> None:
        with torch.no_grad():
            self.numbers = dict(self.task.evaluate(self._shown(), self.step))
        if self.log is not None and self.numbers:
            self.log.event("evaluation", self.step, **self.numbers)
        keep = self.config.checkpoint
        if not keep.best or not self.numbers:
            return
        if keep.best not in self.numbers:
            raise InputError(
                f"there is no evaluation number '{keep.best}' to keep the best checkpoint by",
                remedy=f"use one of {', '.join(self.numbers)}",
            )
        value = self.numbers[keep.best]
        if self.best is None or (value > self.best[1] if keep.higher else value < self.best[1]):
            self.best = (self.step, value)
            self.save()

    # ---- saving and going on ------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of this step, once; weights that are not finite are never written."""
        if self.saved_at == self.step:
            return
        engine, plain = self.engine, self.engine.plain(self.model)
        weights = engine.weights(plain)
        broken = _first_not_finite(weights)
        if broken is not None:
            raise RunError(
                f"the weights '{broken}' are not finite after step {self.step}, so nothing is saved",
                remedy="resume from the last checkpoint with a lower learning rate",
            )
        tensors: dict[str, Mapping[str, Tensor]] = {
            "model": weights,
            "optimiser": engine.moments(plain, self.optimiser),
            "random": {"cpu": torch.get_rng_state()},
        }
        if self.average is not None:
            tensors["ema"] = self.average.network.state_dict()
        if engine.rank == 0:
            state = {
                "position": self.step * self.config.accumulate,
                "samples": self.samples,
                "skipped": self.skipped,
                "in_a_row": self.in_a_row,
                "parts": self.parts,
                "best": None if self.best is None else list(self.best),
                "numbers": self.numbers,
                "ema_updates": 0 if self.average is None else self.average.updates,
                "scaler": engine.scaler_state(),
                "task": self.task.name,
                "accumulate": self.config.accumulate,
            }
            save_checkpoint(self.folder, Checkpoint(self.step, tensors, state))
            tidy_checkpoints(self.folder, self.config.checkpoint, None if self.best is None else self.best[0])
        self.saved_at, self.saved_time = self.step, time.monotonic()
        engine.barrier()

    def begin(self) -> None:
        """Start afresh, or from the newest checkpoint in the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = find_checkpoint(self.folder)
        if found is not None:
            self._restore(load_checkpoint(found), found)
            self.progress.message(f"resumed {self.task.name} at step {self.step} of {self.config.steps}")
        if self.engine.rank == 0:
            self.log = RunLog(
                self.folder,
                self.config.steps,
                self.progress,
                step=self.step,
                tensorboard=self.config.log.tensorboard,
            )

    def _restore(self, saved: Checkpoint, path: Path) -> None:
        state, plain = saved.state, self.engine.plain(self.model)
        if state["task"] != self.task.name or state["accumulate"] != self.config.accumulate:
            raise InputError(
                f"holds a run of '{state['task']}' with {state['accumulate']} micro-batches per step, not of "
                f"'{self.task.name}' with {self.config.accumulate}",
                path=path,
                remedy="use another folder",
            )
        if (self.average is None) != ("ema" not in saved.tensors):
            raise InputError("was saved with another setting of the moving average", path=path)
        try:
            self.engine.load_weights(plain, saved.tensors["model"])
            self.engine.load_moments(plain, self.optimiser, saved.tensors["optimiser"])
            if self.average is not None:
                self.average.network.load_state_dict(saved.tensors["ema"])
                self.average.updates = int(state["ema_updates"])
        except (RuntimeError, KeyError) as exc:
            raise InputError(
                "belongs to another network or other frozen parts", path=path, remedy="use another folder"
            ) from exc
        torch.set_rng_state(saved.tensors["random"]["cpu"])
        self.engine.load_scaler_state(state["scaler"])
        self.step = self.saved_at = saved.step
        self.samples, self.skipped, self.in_a_row = state["samples"], state["skipped"], state["in_a_row"]
        self.parts, self.numbers = state["parts"], dict(state["numbers"])
        self.best = None if state["best"] is None else (int(state["best"][0]), float(state["best"][1]))

    def end(self) -> None:
        """Close what is open."""
        if self.log is not None:
            self.log.close()

    def result(self) -> TrainResult:
        """What the caller gets."""
        return TrainResult(
            self.engine.plain(self.model).eval(),
            None if self.average is None else self.average.network,
            self.step,
            self.numbers,
            self.best,
            self.skipped,
            self.step >= self.config.steps,
        )


def _finite(value: float) -> bool:
    return value - value == 0


def _not_finite(report: LossReport, names: Sequence[str]) -> list[str]:
    """Samples whose loss is not finite; all of them when the task does not say which."""
    if report.per_sample is not None:
        bad = (~torch.isfinite(report.per_sample.detach())).tolist()
        named = [name for name, wrong in zip(names, bad) if wrong]
        if named:
            return named
    return [] if bool(torch.isfinite(report.total.detach())) else list(names)


def _first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return name
    return None


def _adapt_blocks(model: nn.Module, *, checkpointing: bool, translate: bool) -> None:
    """Recompute or translate the transformer blocks of a network, in place; names of parameters stay."""
    for block in model.modules():
        if isinstance(block, Block):
            if checkpointing:
                block.recompute = True
            if translate:
                block.compile(dynamic=True)


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Deterministic algorithms inside, as before outside."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
