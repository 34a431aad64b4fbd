"""Options of a training run. Every value is a plain type, so that recipes go to YAML and come back unchanged."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from relief3d.core.errors import InputError


@dataclass(frozen=True)
class GroupConfig:
    """Parameters that are treated differently.

    Attributes:
        pattern: shell pattern on the parameter's name (``*camera_head*``); of several that fit, the first counts.
        lr_scale: factor on the learning rate.
        weight_decay: instead of the optimiser's; None keeps that.
        frozen: not trained at all; its modules also stay in evaluation mode.
        clip: name of the set whose gradients are clipped together.
    """

    pattern: str
    lr_scale: float = 1.0
    weight_decay: float | None = None
    frozen: bool = False
    clip: str = "all"

    def __post_init__(self) -> None:
        if not 0 <= self.lr_scale < math.inf or (
            self.weight_decay is not None and not self.weight_decay >= 0
        ):
            raise InputError(
                f"lr_scale and weight_decay of the group '{self.pattern}' must be numbers from 0"
            )


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW (Loshchilov & Hutter 2019) with groups.

    Attributes:
        lr: highest learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled; not applied to vectors and scalars (norms, biases) unless ``decay_vectors``.
        decay_vectors: apply it to everything.
        layer_decay: the learning rate of transformer block i (0, 1, ...) of n is multiplied by this to the power n - i,
            that of what comes before the first block of the stack nearest to it (patches, tokens) by the power n + 1
            (Bao et al. 2022); 1: off. Every stack of blocks counts for itself.
        clip_norm: largest gradient norm per clip set; None: no clipping.
        groups: see :class:`GroupConfig`.
        must_match: every group has to fit at least one parameter.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    decay_vectors: bool = False
    layer_decay: float = 1.0
    clip_norm: float | None = 1.0
    groups: tuple[GroupConfig, ...] = ()
    must_match: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.lr < math.inf:
            raise InputError(f"a learning rate is a number from 0, not {self.lr:g}", remedy="lr")
        if any(not 0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas {self.betas} must be from 0 and below 1", remedy="betas")
        if self.eps < 0 or self.weight_decay < 0 or self.layer_decay <= 0:
            raise InputError("eps and weight_decay must not be negative, and layer_decay must be positive")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise InputError("a clip_norm must be positive", remedy="null switches clipping off")


@dataclass(frozen=True)
class ScheduleConfig:
    """Factor on the learning rate over the run.

    Attributes:
        kind: ``cosine``: linear warm-up, then half a cosine. ``composite``: the same, but as a function of the share
            step / steps, as SelfEvo's training does. ``step``: warm-up, then ``factor`` at each milestone.
            ``constant``: warm-up, then 1.
        warmup: steps of the linear warm-up, or a share of all steps when below 1.
        start: factor at step 0 of the warm-up.
        end: factor at the end of the cosine.
        milestones: shares of all steps (``step`` only).
        factor: multiplied at every milestone.
    """

    kind: Literal["cosine", "composite", "step", "constant"] = "cosine"
    warmup: float = 0.05
    start: float = 0.0
    end: float = 0.0
    milestones: tuple[float, ...] = ()
    factor: float = 0.1

    def __post_init__(self) -> None:
        if min(self.warmup, self.start, self.end, self.factor) < 0:
            raise InputError("warmup, start, end and factor of a schedule must not be negative")


@dataclass(frozen=True)
class EmaConfig:
    """Teacher or evaluation weights: exponential moving average of the trained ones.

    Attributes:
        decay: shadow = decay * shadow + (1 - decay) * weights.
        ramp: with n updates done the decay is at most (1 + n) / (ramp + n); 0: constant from the start.
        final: the decay goes from ``decay`` to this along half a cosine (Grill et al. 2020); None: it is constant.
        copy_first: the first update copies the weights, as torch's ``AveragedModel`` does (SelfEvo's released code).
        every: optimiser steps between updates; steps that the guard leaves out do not count.
        buffers: averaged too when floating (else copied).
    """

    decay: float = 0.995
    ramp: float = 0.0
    final: float | None = None
    copy_first: bool = False
    every: int = 1
    buffers: bool = True

    def __post_init__(self) -> None:
        ends = [self.decay] if self.final is None else [self.decay, self.final]
        if any(not 0 <= d <= 1 for d in ends) or self.ramp < 0 or self.every < 1:
            raise InputError("an average needs decays in [0, 1], ramp >= 0 and every >= 1")


@dataclass(frozen=True)
class GuardConfig:
    """What happens when a loss or gradient is not finite. Weights or moments that are not finite always end the run.

    Attributes:
        action: ``skip``: the step is left out and its samples are logged; ``stop``: the run ends with an error.
        patience: so many steps skipped in a row end the run (with float16 also overflows of the scaled gradients).
    """

    action: Literal["skip", "stop"] = "skip"
    patience: int = 20

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise InputError(
                "the guard needs a patience of at least 1", remedy="action: stop ends a run at once"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run is saved and what is kept.

    Attributes:
        every: optimiser steps.
        seconds: also after so much wall time; 0: never.
        keep_last: newest checkpoints kept, at least 1.
        best: name of an evaluation number whose best checkpoint is kept too; empty: none.
        higher: whether larger is better.
    """

    every: int = 500
    seconds: float = 0.0
    keep_last: int = 2
    best: str = ""
    higher: bool = False

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise InputError("at least one checkpoint must be kept", remedy="raise keep_last to 1")
        if self.every < 1:
            raise InputError("a run must be saved at least now and then", remedy="raise every to 1")
        if self.seconds < 0:
            raise InputError("seconds between checkpoints must not be negative", remedy="0 means never")


@dataclass(frozen=True)
class LogConfig:
    """What a person sees of a run.

    Attributes:
        every: steps between lines of ``log.jsonl`` and the console.
        panels: steps between pictures; 0: never.
        evaluate: steps between evaluations; 0: only at the end.
        tensorboard: also write TensorBoard's format.
        utilisation: count the operations of the first step and log the share of the device's peak that is reached.
        peak_flops: peak of one device in operations per second; 0: measured with a short matrix product.
    """

    every: int = 20
    panels: int = 0
    evaluate: int = 0
    tensorboard: bool = False
    utilisation: bool = True
    peak_flops: float = 0.0

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError("a run must be logged now and then", remedy="raise log.every to 1")
        if self.panels < 0 or self.evaluate < 0:
            raise InputError(
                "steps between panels or evaluations must not be negative", remedy="0 means never"
            )


@dataclass(frozen=True)
class TrainConfig:
    """A run of the loop, whatever is trained.

    Attributes:
        steps: optimiser steps.
        accumulate: micro-batches per step; each counts by its number of samples (:class:`LossReport` says what that
            means for losses that are means over pixels).
        precision: of the forward pass; ``auto`` is bfloat16 on accelerators that have it, else float32.
        checkpointing: recompute activations of transformer blocks in the backward pass.
        compile: translate transformer blocks with torch.compile.
        compile_backend: of torch.compile.
        workers: processes that prepare batches; 0: none.
        deterministic: ask torch for deterministic algorithms, so that a resumed run ends with the same bits; it warns
            where an accelerator has none.
        seed: of everything.
        optimiser: see :class:`OptimiserConfig`.
        schedule: see :class:`ScheduleConfig`.
        ema: see :class:`EmaConfig`; None: no average.
        guard: see :class:`GuardConfig`.
        checkpoint: see :class:`CheckpointConfig`.
        log: see :class:`LogConfig`.
    """

    steps: int = 1000
    accumulate: int = 1
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    checkpointing: bool = False
    compile: bool = False
    compile_backend: str = "inductor"
    workers: int = 0
    deterministic: bool = True
    seed: int = 0
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig | None = None
    guard: GuardConfig = field(default_factory=GuardConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulate < 1:
            raise InputError("steps and accumulate must be at least 1")
        if self.workers < 0:
            raise InputError(
                "workers must not be negative", remedy="workers = 0 makes batches in the process itself"
            )
