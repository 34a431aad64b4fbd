"""Moving average of a network's weights: a teacher, or the weights that are shipped."""

from __future__ import annotations

import copy

import torch
from torch import nn

from relief3d.train.config import EmaConfig


class MovingAverage:
    """A copy of a network whose weights follow the trained ones.

    Attributes:
        network: the copy, in evaluation mode, without gradients.
        updates: done so far.
    """

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self.config = config
        self.network = copy.deepcopy(model).eval().requires_grad_(False)
        self.updates = 0

    def decay(self) -> float:
        """Decay of the next update."""
        if self.config.ramp <= 0:
            return self.config.decay
        return min(self.config.decay, (1 + self.updates) / (self.config.ramp + self.updates))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the weights of ``model``; buffers that are no floats are copied."""
        keep = self.decay()
        for own, new in zip(self.network.parameters(), model.parameters(), strict=True):
            own.lerp_(new.detach().to(own.dtype), 1 - keep)
        for held, now in zip(self.network.buffers(), model.buffers(), strict=True):
            if held.is_floating_point() and self.config.buffers:
                held.lerp_(now.to(held.dtype), 1 - keep)
            else:
                held.copy_(now)
        self.updates += 1
