"""What is done about a step whose loss or gradient is not finite: nothing of it stays, and its samples are named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relief3d.core.errors import RunError
from relief3d.train.config import GuardConfig
from relief3d.train.task import LossReport


@dataclass(frozen=True)
class Piece:
    """What went through the network at once, and its losses on the device, looked at only when something is wrong.

    Attributes:
        batch: as the task made it.
        names: of its samples.
        total: () loss.
        each: (B,) loss per sample; None when the task does not say.
    """

    batch: Any
    names: Sequence[str]
    total: Tensor
    each: Tensor | None

    @staticmethod
    def of(batch: Any, names: Sequence[str], report: LossReport) -> Piece:
        """Without the graph of the report."""
        each = report.per_sample
        return Piece(batch, names, report.total.detach(), None if each is None else each.detach())

    def culprits(self, alone: Callable[[Any], Iterable[LossReport]] | None) -> list[str]:
        """Samples whose loss is not finite; all of them when nobody can say which.

        Args:
            alone: losses of the samples of a batch one by one, without gradients; for tasks that give no ``each``.
        """
        if self.each is not None:
            wrong = (~torch.isfinite(self.each)).tolist()
            named = [name for name, bad in zip(self.names, wrong) if bad]
            if named:
                return named
        if bool(torch.isfinite(self.total)):
            return []
        if self.each is None and alone is not None and len(self.names) > 1:
            named = self._tried(alone)
            if named:
                return named
        return list(self.names)

    def _tried(self, alone: Callable[[Any], Iterable[LossReport]]) -> list[str]:
        try:
            return [
                name
                for name, report in zip(self.names, alone(self.batch))
                if not bool(torch.isfinite(report.total))
            ]
        except (RuntimeError, ValueError, MemoryError):
            return []  # a network or loss that cannot take single samples: then all are suspects


class HeldBuffers:
    """The buffers of a network that are part of its state (running statistics), to be put back when a step is left out.

    They change in the forward pass, before anybody knows whether the step is good.
    """

    def __init__(self, model: nn.Module) -> None:
        """Hold those of ``model``, which is where it will stay."""
        stored = model.state_dict().keys()
        self._live = [buffer for name, buffer in model.named_buffers() if name in stored]
        self._kept = [torch.empty_like(buffer) for buffer in self._live]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember them."""
        if self._live:
            torch._foreach_copy_(self._kept, self._live)

    @torch.no_grad()
    def back(self) -> None:
        """As they were remembered."""
        if self._live:
            torch._foreach_copy_(self._live, self._kept)


def verdict(
    guard: GuardConfig, where: str, samples: Sequence[str], step: int, in_a_row: int, overflow: bool
) -> RunError | None:
    """The end of a run because of a step that is not finite, or None when it is only left out.

    Args:
        guard: what the run asks for.
        where: ``loss`` or ``gradient``.
        samples: names of the culprits.
        step: number of the step, from 1.
        in_a_row: steps left out since the last good one, with this one.
        overflow: scaled gradients overflowed, which float16 does now and then.
    """
    stop = guard.action == "stop" and not overflow
    if not stop and in_a_row < guard.patience:
        return None
    more = f" and {len(samples) - 3} more" if len(samples) > 3 else ""
    return RunError(
        f"the {where} is not finite at step {step} ({in_a_row} in a row; samples {', '.join(samples[:3])}{more})",
        remedy="look at these samples; resuming meets them again, "
        + (
            "but guard.action = skip leaves them out"
            if stop
            else "and a lower learning rate needs another folder"
        ),
    )
