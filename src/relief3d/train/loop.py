"""The training loop, for every method: read it from :func:`fit` downwards.

A step is a function of the weights and of its number alone: batches come by position, random numbers from a seed per
step. That is why a run that was killed goes on with the same bits, and why saving is cheap to reason about.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relief3d.core.device import autocast_dtype, is_out_of_memory, release_memory, resolve_device
from relief3d.core.errors import InputError, ReliefError, RunError
from relief3d.core.progress import Progress, SilentProgress, stage
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.train.adapt import adapt_blocks, own_torch_state
from relief3d.train.around import alone_in, in_words
from relief3d.train.checkpoint import newest_checkpoint, save_checkpoint, tidy_checkpoints
from relief3d.train.config import TrainConfig
from relief3d.train.ema import MovingAverage
from relief3d.train.engine import Engine, SingleEngine
from relief3d.train.feeding import feed
from relief3d.train.fingerprint import fingerprint
from relief3d.train.guard import HeldBuffers, Piece, verdict
from relief3d.train.interrupt import StopWish, stop_wishes
from relief3d.train.optimiser import freeze, make_optimiser, plan_parameters, set_learning_rate, train_mode
from relief3d.train.processes import remember_parts, remembered_parts
from relief3d.train.run_log import RunLog
from relief3d.train.run_state import BROKEN_REMEDY, Counters, Trained, restore, snapshot
from relief3d.train.schedules import schedule_factor
from relief3d.train.task import LossReport, StepInfo, Task
from relief3d.train.throughput import count_flops, measure_peak


@dataclass(frozen=True)
class TrainResult:
    """What a run ended with.

    Attributes:
        model: the trained network, on its device; with sharding engines its parameters are spread.
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
    settings: Mapping[str, Any] | None = None,
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
        settings: what the task's batches and losses depend on, of any type with a JSON form; stored with the run, and
            a folder of other settings is refused (see :mod:`relief3d.train.fingerprint`).
        stop_at: save and return after this step, for runs in pieces.
        progress: the console.

    Raises:
        InputError: the folder holds a run of other settings, another process trains in it, or options do not fit the
            network.
        RunError: the run diverged, does not fit in memory even sample by sample, or lost a worker.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the step under way is finished and saved.
    """
    if engine is None:
        where = resolve_device(device)
        engine = SingleEngine(where, autocast_dtype(config.precision, where))
    if progress is None or engine.rank > 0:
        progress = SilentProgress()
    last = config.steps if stop_at is None else min(stop_at, config.steps)
    with ExitStack() as stack:
        wish = stack.enter_context(stop_wishes())
        stack.enter_context(own_torch_state(engine.device, config.deterministic))
        stack.enter_context(in_words())
        stack.enter_context(alone_in(folder, progress.message) if engine.rank == 0 else nullcontext())
        run = _Run(task, config, folder, engine, progress, settings or {}, wish)
        stack.callback(run.close)
        run.begin()
        batches = feed(
            task,
            run.count.step * config.accumulate,
            last * config.accumulate,
            workers=config.workers,
            part=engine.rank,
            parts=engine.world,
        )
        stack.callback(batches.close)
        with stage(progress, task.name, config.steps) as shown:
            shown.advance(run.count.step)
            while run.count.step < last and not run.stopping:
                run.one_step([next(batches) for _ in range(config.accumulate)])
                run.after_step(last)
                shown.advance(1, run.note)
        # Also a wish that came after the last step, in its evaluation say: the caller may have more runs to come.
        asked = engine.total(torch.zeros((), device=engine.device), float(run.stopping or wish.wanted))[1] > 0
    if asked:
        progress.message(f"interrupted: step {run.count.step} of {config.steps} is saved")
        raise KeyboardInterrupt
    return run.result()


class _Run:
    """The state of a run and what is done to it."""

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        folder: Path,
        engine: Engine,
        progress: Progress,
        settings: Mapping[str, Any],
        wish: StopWish,
    ) -> None:
        self.task, self.config, self.folder = task, config, folder
        self.engine, self.progress, self.wish = engine, progress, wish
        self.identity = fingerprint(task.name, config, settings)
        # For tasks that draw their weights from torch's own random numbers: a run that begins again draws the same.
        torch.manual_seed(derive_seed(config.seed, "weights"))
        model = task.model()
        plans = plan_parameters(model, config.optimiser)
        freeze(model, plans)
        self.sets: dict[str, list[str]] = {}
        for plan in plans:
            if not plan.frozen:
                self.sets.setdefault(plan.clip, []).append(plan.name)
        self.average = None if config.ema is None else MovingAverage(model, config.ema)
        if self.average is not None:
            self.average.network.to(engine.device)
        adapt_blocks(model, config)
        self.model, self.optimiser = engine.prepare(model, make_optimiser(model, plans, config.optimiser))
        self.plain = engine.plain(self.model)
        self.trained = Trained(engine, self.model, self.optimiser, self.average)
        self.buffers = HeldBuffers(self.plain)
        self.count = Counters()
        self.shown: dict[str, Tensor] = {}
        self.note, self.stopping, self.late, self.better, self.lr = "", False, False, False, 0.0
        self.saved_at, self.saved_time = -1, time.monotonic()
        self.log: RunLog | None = None

    # ---- one step -----------------------------------------------------------------------------------------------

    def one_step(self, batches: Sequence[Any]) -> None:
        """Gradients of all micro-batches, guard, update, average."""
        config, count, engine = self.config, self.count, self.engine
        self.buffers.keep()
        lr = config.optimiser.lr * schedule_factor(config.schedule, count.step, config.steps)
        set_learning_rate(self.optimiser, lr)
        samples = sum(len(self.task.samples(b)) for b in batches)
        sums, reports = self._gradients(batches, samples)
        norms = engine.gradients(self.plain, self.optimiser, self.sets, config.optimiser.clip_norm)
        bad = ~torch.isfinite(torch.stack([sums["loss"], *norms.values()])).all()
        keep = config.checkpoint.seconds
        late = keep > 0 and time.monotonic() - self.saved_time >= keep
        # The only place where the host waits for the device, and processes for each other.
        wrong, total, squares, stop, time_up = engine.total(
            bad, samples, samples * samples, float(self.wish.wanted), float(late)
        )
        if engine.world * squares != total * total:
            raise InputError(f"processes have batches of different sizes at step {count.step + 1}")
        engine.update(self.optimiser, good=not wrong)
        if wrong:
            self._guard(reports)
        else:
            count.in_a_row = 0
            done = count.step + 1 - count.skipped
            if self.average is not None and done % self.average.config.every == 0:
                self.average.update(self.plain, count.step / config.steps, engine.whole)
        count.step += 1
        count.samples += int(total)
        self.stopping, self.late = stop > 0, time_up > 0
        self.shown = {**sums, **{f"gradient_norm_{k}": v for k, v in norms.items()}}
        self.lr = lr

    def _gradients(self, batches: Sequence[Any], samples: int) -> tuple[dict[str, Tensor], list[Piece]]:
        """As :meth:`_once`, with smaller pieces when the memory runs out."""
        while True:
            try:
                if self.count.step == 0 and self.config.log.utilisation:
                    result, flops = count_flops(lambda: self._once(batches, samples))
                    self.count.flops_per_sample = self.engine.mean({"": torch.tensor(flops / samples)})[""]
                    return result
                return self._once(batches, samples)
            except (RuntimeError, MemoryError) as exc:
                if not is_out_of_memory(exc):
                    raise
                reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
            # Outside of the handler, whose traceback holds the tensors of the failed pass.
            self.buffers.back()
            self._smaller_parts(batches, reason)

    def _once(self, batches: Sequence[Any], samples: int) -> tuple[dict[str, Tensor], list[Piece]]:
        """Gradients of the step's micro-batches; means of the losses over their samples, and losses by piece."""
        self.optimiser.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        losses: list[Piece] = []
        for index, batch in enumerate(batches):
            pieces = [batch] if self.count.parts == 1 else list(self.task.split(batch, self.count.parts))
            for number, piece in enumerate(pieces):
                names = self.task.samples(piece)
                share = len(names) / samples
                final = index + 1 == len(batches) and number + 1 == len(pieces)
                with self.engine.together(self.model, final):
                    report = self._loss(piece, index, number)
                    self.engine.backward(report.total * share)
                losses.append(Piece.of(piece, names, report))
                for key, value in {"loss": report.total, **report.parts}.items():
                    part = value.detach() * share
                    sums[key] = sums[key] + part if key in sums else part
        return sums, losses

    def _loss(self, batch: Any, micro: int, piece: int) -> LossReport:
        """Forward pass of one piece with random numbers of its own step."""
        seed = derive_seed(self.config.seed, "step", self.count.step, micro, self.engine.rank)
        # Draws for a batch as a whole (which views a student sees) stay the same in all of its pieces.
        generator = torch_generator(seed, self.engine.device)
        torch.manual_seed(seed if piece == 0 else derive_seed(seed, "piece", piece))
        info = StepInfo(self.count.step, self.config.steps, generator)
        teacher = None if self.average is None else self.average.network
        with self.engine.autocast():
            return self.task.loss(self.model, self.task.to(batch, self.engine.device), info, teacher)

    def _smaller_parts(self, batches: Sequence[Any], reason: str) -> None:
        """Halve the pieces after the memory ran out; in several processes with the next start.

        The others may already wait for gradients that this process cannot give any more, so nothing can be agreed on.
        """
        step, largest = self.count.step + 1, max(len(self.task.samples(b)) for b in batches)
        self.optimiser.zero_grad(set_to_none=True)
        release_memory(self.engine.device)
        if self.count.parts >= largest:
            raise RunError(
                f"out of memory at step {step}, even with single samples: {reason}",
                remedy="use smaller batches or pictures, more micro-batches (accumulate), or checkpointing",
            )
        if self.engine.world > 1:
            remember_parts(self.folder, self.count.parts * 2)
            raise RunError(
                f"out of memory at step {step} on process {self.engine.rank}: {reason}",
                remedy="the same command goes on from the last checkpoint, with batches in "
                f"{self.count.parts * 2} parts",
            )
        self.count.parts *= 2
        self.progress.message(
            f"out of memory at step {step}: batches go through in {self.count.parts} parts from now on; the gradients "
            "are those of whole batches where the loss is a mean over samples, but for dropout and batch statistics"
        )
        if self.log is not None:
            self.log.event("out_of_memory", step, parts=self.count.parts, reason=reason)

    def _guard(self, losses: Sequence[Piece]) -> None:
        """Note a step that was left out, or end the run."""
        count, step = self.count, self.count.step + 1
        self.buffers.back()
        alone = (
            self._alone if self.engine.world == 1 else None
        )  # one process of many cannot go forward by itself
        culprits = self.engine.names([name for piece in losses for name in piece.culprits(alone)])
        where = "loss" if culprits else "gradient"
        if not culprits:
            culprits = self.engine.names([name for piece in losses for name in piece.names])
        count.skipped += 1
        count.in_a_row += 1
        if self.log is not None:
            self.log.event("not_finite", step, where=where, samples=culprits, **_scale(self.engine))
        broken = self.trained.broken()
        if broken is not None:
            raise RunError(f"{broken} is not finite at step {step}", remedy=BROKEN_REMEDY)
        overflow = where == "gradient" and bool(self.engine.scaler_state())
        end = verdict(self.config.guard, where, culprits, step, count.in_a_row, overflow)
        if end is not None:
            raise end

    def _alone(self, batch: Any) -> Iterator[LossReport]:
        """Losses of the samples of a batch one by one, in evaluation mode."""
        self.plain.eval()
        try:
            with torch.no_grad():
                for sample in self.task.split(batch, len(self.task.samples(batch))):
                    yield self._loss(sample, 0, 0)
        finally:
            train_mode(self.plain)

    # ---- between steps ------------------------------------------------------------------------------------------

    def after_step(self, last: int) -> None:
        """Log, evaluate, draw, save, each when its time has come."""
        log, step, end = self.config.log, self.count.step, self.count.step >= self.config.steps
        if step % log.every == 0 or end:
            numbers = {**self.engine.mean(self.shown), "lr": self.lr}
            if self.log is not None:
                self.note = self.log.training(step, numbers, self.count.samples, self.count.flops_per_sample)
        evaluate = end or bool(log.evaluate and step % log.evaluate == 0)
        draw = bool(log.panels) and (step % log.panels == 0 or end)
        if evaluate or draw:
            self._look(evaluate, draw)
        keep = self.config.checkpoint.every
        if step % keep == 0 or step >= last or self.late or self.stopping or self.better:
            self.save()

    def _look(self, evaluate: bool, draw: bool) -> None:
        """Pictures, then numbers; when they fail, the training up to here is saved with a note that they are due."""
        self.count.due = [evaluate, draw]
        try:
            if draw:
                with self._evaluated() as network:  # by every process: its weights may be spread over all
                    pictures = self.task.panels(network, self.count.step)
                if self.log is not None:
                    self.log.panels(self.count.step, pictures)
            if evaluate:
                self._evaluate()
        except Exception:
            if self.engine.world == 1:  # several processes may fail one by one, and save only together
                with suppress(ReliefError):
                    self.save()
                    self.progress.message(f"step {self.count.step} is saved; resuming evaluates it again")
            raise
        self.count.due = [False, False]

    @contextmanager
    def _evaluated(self) -> Iterator[nn.Module]:
        """The network that is evaluated: the average where there is one."""
        with torch.no_grad():
            yield self.plain.eval() if self.average is None else self.average.network
        train_mode(self.plain)

    def _evaluate(self) -> None:
        count, keep = self.count, self.config.checkpoint
        with self._evaluated() as network:
            count.numbers = {k: float(v) for k, v in self.task.evaluate(network, count.step).items()}
        if keep.best and keep.best not in count.numbers:
            raise InputError(
                f"there is no evaluation number '{keep.best}' to keep the best checkpoint by",
                remedy=f"use one of {', '.join(count.numbers)}"
                if count.numbers
                else "there are none: leave it empty",
            )
        if self.log is not None and count.numbers:
            self.log.event("evaluation", count.step, **count.numbers)
        if not keep.best:
            return
        value = count.numbers[keep.best]
        before = None if count.best is None or count.best[2] != keep.best else count.best[1]
        better = before is None or (value > before if keep.higher else value < before)
        # The first process decides for all: a rounding difference must not send them different ways.
        decides = float(better and math.isfinite(value) and self.engine.rank == 0)
        if self.engine.total(torch.zeros((), device=self.engine.device), decides)[1] > 0:
            count.best = (count.step, value, keep.best)
            self.better = True

    # ---- saving and going on ------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of this step, once; a state that is not finite is never written."""
        if self.saved_at == self.count.step:
            return
        checkpoint = snapshot(self.trained, self.count, self.identity)
        if self.log is not None:
            self.log.flush()
            save_checkpoint(self.folder, checkpoint)
            best = None if self.count.best is None else self.count.best[0]
            tidy_checkpoints(self.folder, self.config.checkpoint, self.count.step, best)
        self.saved_at, self.saved_time, self.better = self.count.step, time.monotonic(), False
        self.engine.barrier()

    def begin(self) -> None:
        """Start afresh, or from the newest checkpoint in the folder."""
        config, engine = self.config, self.engine
        found = newest_checkpoint(self.folder, self.progress.message)
        if found is not None:
            self.count = restore(self.trained, *found, self.identity)
            self.saved_at = self.count.step
            self.progress.message(f"resumed {self.task.name} at step {self.count.step} of {config.steps}")
        self.count.parts = max(self.count.parts, remembered_parts(self.folder))
        peak = config.log.peak_flops
        if config.log.utilisation and peak <= 0:
            peak = measure_peak(engine.device, engine.dtype or torch.float32)
        state = (self.count.step, self.count.parts)
        _, *seen, peak = engine.total(torch.zeros((), device=engine.device), *state, peak)
        if seen != [number * engine.world for number in state]:
            raise InputError(
                "processes find different checkpoints here",
                path=self.folder,
                remedy="put the run's folder on a disk that all machines share",
            )
        train_mode(self.plain)
        if engine.rank == 0:
            self.log = RunLog(
                self.folder,
                config.steps,
                step=self.count.step,
                samples=self.count.samples,
                device=engine.device,
                flops_peak=peak,
                tensorboard=config.log.tensorboard,
            )
        if any(self.count.due):  # what failed when this step was saved
            self.saved_at = -1
            self._look(*self.count.due)
            self.save()

    def close(self) -> None:
        """Close what is open."""
        if self.log is not None:
            self.log.close()

    def result(self) -> TrainResult:
        """What the caller gets."""
        count = self.count
        return TrainResult(
            self.plain.eval(),
            None if self.average is None else self.average.network,
            count.step,
            count.numbers,
            None if count.best is None else count.best[:2],
            count.skipped,
            count.step >= self.config.steps,
        )


def _scale(engine: Engine) -> dict[str, Any]:
    state = engine.scaler_state()
    return {"scale": state["scale"]} if "scale" in state else {}
