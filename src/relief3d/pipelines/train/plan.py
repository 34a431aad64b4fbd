"""``relief3d train --dry-run``: memory, time and data of a run, before it starts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from relief3d.core.contract import Batch
from relief3d.core.device import autocast_dtype, resolve_device, synchronize
from relief3d.core.memory import available_memory, peak_rss
from relief3d.core.tensor_memory import PeakTensorBytes
from relief3d.pipelines.train.check import state_bytes
from relief3d.pipelines.train.run_folder import RunSpec
from relief3d.train.adapt import adapt_blocks
from relief3d.train.config import TrainConfig
from relief3d.train.engine import SingleEngine
from relief3d.train.optimiser import make_optimiser, plan_parameters, train_mode
from relief3d.train.recipe import DataPlan
from relief3d.train.task import StepInfo

if TYPE_CHECKING:
    from relief3d.train.recipe import RecipeTask

LARGE = 100_000_000
"""Networks with more parameters are not run on a CPU for a plan."""
STEPS = 2


@dataclass(frozen=True)
class RunPlan:
    """What a run needs; bytes and seconds, None where it was not measured.

    Attributes:
        parameters: of the network.
        weights: bytes.
        gradients: bytes.
        moments: bytes of the optimiser's.
        average: bytes of the moving average.
        activations: bytes of everything else alive at the worst moment of a micro-batch.
        measured: whether the activations come from a real micro-batch; else from a forward pass without values.
        seconds_per_step: with batches made in the same process.
        evaluation_seconds: of one evaluation.
        evaluations: in the run.
        steps: optimiser steps.
        accumulate: micro-batches per step.
        data: what the run sees.
        device: where it was measured.
        available: bytes of memory that are free there; None where unknown.
        program: bytes that this process took before there was a network; None on accelerators.
    """

    parameters: int
    weights: int
    gradients: int
    moments: int
    average: int
    activations: int
    measured: bool
    seconds_per_step: float | None
    evaluation_seconds: float | None
    evaluations: int
    steps: int
    accumulate: int
    data: DataPlan
    device: str
    available: int | None
    program: int | None = None

    @property
    def memory(self) -> int:
        """All bytes together."""
        return self.weights + self.gradients + self.moments + self.average + self.activations

    @property
    def seconds(self) -> float | None:
        """Of the whole run."""
        if self.seconds_per_step is None:
            return None
        return self.steps * self.seconds_per_step + self.evaluations * (self.evaluation_seconds or 0.0)


def make_plan(spec: RunSpec, device: str = "auto") -> RunPlan:
    """Build the network, put real micro-batches through it, and count. Writes nothing.

    Networks of more than 100 M parameters on a CPU go through a forward pass without values instead.
    """
    where = resolve_device(device)
    program = peak_rss() if where.type == "cpu" else None
    task: RecipeTask = spec.recipe.task(spec.config, device)
    config: TrainConfig = spec.config.train
    with torch.device("meta"):
        parameters = sum(p.numel() for p in task.model().parameters())
    shallow = where.type == "cpu" and parameters > LARGE
    if shallow:
        with FakeTensorMode():
            model = task.model()
            numbers = state_bytes(model, config)
            activations = _forward_bytes(model, task)
        seconds = evaluation = None
    else:
        model = task.model()
        numbers = state_bytes(model, config)
        activations, seconds, evaluation = _measure(model, task, config, where)
    log = config.log
    return RunPlan(
        parameters=parameters,
        **numbers,
        activations=activations,
        measured=not shallow,
        seconds_per_step=seconds,
        evaluation_seconds=evaluation,
        evaluations=1 + ((config.steps - 1) // log.evaluate if log.evaluate else 0),
        steps=config.steps,
        accumulate=config.accumulate,
        data=task.data_plan(),
        device=str(where),
        available=available_memory() if where.type == "cpu" else None,
        program=program,
    )


def _measure(
    model: nn.Module, task: RecipeTask, config: TrainConfig, where: torch.device
) -> tuple[int, float, float]:
    """Bytes of activations, seconds per step and per evaluation, from real micro-batches."""
    engine = SingleEngine(where, autocast_dtype(config.precision, where))
    adapt_blocks(model, config)
    plans = plan_parameters(model, config.optimiser)
    model, optimiser = engine.prepare(model, make_optimiser(model, plans, config.optimiser))
    train_mode(model)

    def gradients(batch: Any) -> None:
        info = StepInfo(0, config.steps, torch.Generator(where).manual_seed(0))
        with engine.autocast():
            report = task.loss(model, task.to(batch, where), info, model)
        engine.backward(report.total)

    # With gradients at hand from a pass before, the count holds what comes on top of them.
    batch = task.batch(0)
    gradients(batch)
    with PeakTensorBytes() as counted:
        gradients(batch)
    started = time.perf_counter()
    for step in range(STEPS):
        optimiser.zero_grad(set_to_none=True)
        for micro in range(config.accumulate):
            gradients(task.batch(1 + step * config.accumulate + micro))
        engine.update(optimiser, good=True)
    synchronize(where)
    seconds = (time.perf_counter() - started) / STEPS
    task.evaluate(model, 0)  # makes the held-out scenes
    started = time.perf_counter()
    task.evaluate(model, 0)
    return counted.peak, seconds, time.perf_counter() - started


def _forward_bytes(model: nn.Module, task: RecipeTask) -> int:
    """Bytes alive after a forward pass with gradients, without values; losses need values and are left out."""
    plan = task.data_plan()
    views = max(1, round(plan.images / max(plan.samples, 1)))
    scenes = max(1, round(plan.samples))
    height, width = plan.sizes[0]
    images = torch.zeros(scenes, views, 3, height, width)
    batch = Batch(images, K=torch.eye(3).expand(scenes, views, 3, 3))
    with PeakTensorBytes() as counted:
        held = task.forward(model, batch)
        peak = counted.peak
        del held
    return peak


def format_plan(spec: RunSpec, plan: RunPlan) -> str:
    """The plan for the console."""
    lines = [
        f"{spec.recipe.name}, size {spec.size}, budget {spec.budget}, seed {spec.seed}: "
        f"{plan.parameters / 1e6:.2f} M parameters, {plan.steps} steps",
        "",
        f"memory on {plan.device}:",
        *(
            f"  {name:<12} {_mib(value):>10}"
            for name, value in (
                ("weights", plan.weights),
                ("gradients", plan.gradients),
                ("moments", plan.moments),
                ("average", plan.average),
                ("activations", plan.activations),
                ("together", plan.memory),
            )
        ),
    ]
    lines.append(
        "  activations: measured on one micro-batch, without work space inside single operations"
        if plan.measured
        else "  activations: of a forward pass without values; the loss is not in it"
    )
    if plan.program is not None:
        lines.append(
            f"  on top of {_mib(plan.program)} of program and libraries, and of the held-out pictures"
        )
    if plan.available is not None and plan.memory > plan.available:
        lines.append(f"  this machine has only {_mib(plan.available)} free")
    lines += ["", "time:"]
    if plan.seconds_per_step is None or plan.seconds is None:
        lines.append("  not measured: the network is too large for a CPU")
    else:
        lines.append(f"  {plan.seconds_per_step:.3g} s per step (mean of {STEPS}, batches included)")
        lines.append(f"  {plan.evaluations} evaluations of {plan.evaluation_seconds or 0:.3g} s")
        lines.append(f"  {_duration(plan.seconds)} in all")
    data, micro = plan.data, plan.steps * plan.accumulate
    seen = data.samples * micro
    sizes = ", ".join(f"{width} x {height}" for height, width in data.sizes)
    lines += [
        "",
        f"data: {data.images * plan.accumulate:.1f} pictures in {data.samples * plan.accumulate:.1f} samples per "
        f"step, {sizes} pixels; {seen:.0f} samples in all",
    ]
    for source in data.sources:
        amount = f"{source.share * 100:.0f} %, {source.share * seen:.0f} samples"
        if source.samples is None:
            lines.append(f"  {source.name}: {amount}, endless, each sample once")
        else:
            epochs = source.share * seen / source.samples
            lines.append(f"  {source.name}: {amount}, {epochs:.3g} times through {source.samples}")
    return "\n".join(lines)


def _mib(value: float) -> str:
    return f"{value / 2**20:.1f} MiB" if value < 2**30 else f"{value / 2**30:.2f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
