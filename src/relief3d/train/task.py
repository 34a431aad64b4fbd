"""What a method hands to the loop: networks, batches by position, a loss. The loop knows nothing else about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class StepInfo:
    """Where the run is, for losses that change over time or draw random numbers.

    Attributes:
        step: optimiser steps done before this one.
        steps: of the whole run.
        generator: on the device; a function of seed, step and micro-batch alone, so that a resumed run draws the same.
    """

    step: int
    steps: int
    generator: torch.Generator

    @property
    def share(self) -> float:
        """Step over steps, in [0, 1)."""
        return self.step / self.steps


@dataclass(frozen=True)
class LossReport:
    """Result of a task's loss for one batch.

    Attributes:
        total: () to be minimised. Batches of a step count by their numbers of samples, so a mean over samples gives the
            gradient of the large batch exactly; a mean over valid pixels, as in the published multi-view losses, gives
            the mean of the batches' means.
        parts: () each, for the log; need no gradient. The names are the same in every step and process.
        per_sample: (B,) or None; the guard names the samples whose value is not finite. With None it asks for the loss
            of every sample alone when the total is not finite.
    """

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    per_sample: Tensor | None = None


class Task(Protocol):
    """A method, as the loop sees it.

    Attributes:
        name: for logs and errors.
    """

    name: str

    def model(self) -> nn.Module:
        """The network that is trained, on the CPU; called once. Its initial weights depend on the task's seed alone."""
        ...

    def batch(self, position: int, part: int = 0, parts: int = 1) -> Any:
        """Batch number ``position`` (0, 1, ...) on the CPU, or one of ``parts`` shares of it, all of one size.

        A function of its arguments alone, so that a resumed run sees the same samples, with any number of workers and
        processes. Picklable tasks may be asked in worker processes.
        """
        ...

    def samples(self, batch: Any) -> Sequence[str]:
        """Names of the samples of a batch, in order; their number is the batch's size."""
        ...

    def split(self, batch: Any, parts: int) -> Sequence[Any]:
        """The samples in order, in at most ``parts`` smaller batches, for little memory."""
        ...

    def to(self, batch: Any, device: torch.device) -> Any:
        """The batch on a device."""
        ...

    def loss(self, model: nn.Module, batch: Any, info: StepInfo, teacher: nn.Module | None) -> LossReport:
        """Loss of a batch.

        Args:
            model: what :meth:`model` gave, possibly wrapped; in training mode.
            batch: on the device.
            info: where the run is.
            teacher: the moving average, in evaluation mode without gradients; None without one.
        """
        ...

    def evaluate(self, model: nn.Module, step: int) -> Mapping[str, float]:
        """Numbers on held-out data; an empty mapping when there are none. Every process asks for all of them."""
        ...

    def panels(self, model: nn.Module, step: int) -> Mapping[str, Tensor]:
        """Pictures (3, H, W) uint8 by name, so that a person sees what is learned."""
        ...
