"""Moving average of a network's weights: a teacher, or the weights that are shipped."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from relief3d.train.config import EmaConfig


class MovingAverage:
    """A copy of a network whose weights follow the trained ones. Every process holds all of it.

    Attributes:
        network: the copy, in evaluation mode, without gradients.
        updates: done so far.
    """

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        """Start at the weights of ``model``, which is not wrapped yet."""
        self.config = config
        self.network = copy.deepcopy(model).eval().requires_grad_(False)
        self.updates = 0

    def decay(self, share: float) -> float:
        """Decay of the next update, when ``share`` in [0, 1) of the run's steps is done."""
        config = self.config
        if config.copy_first and self.updates == 0:
            return 0.0
        decay = config.decay
        if config.final is not None:
            decay = config.final - (config.final - config.decay) * 0.5 * (1 + math.cos(math.pi * share))
        if config.ramp > 0:
            decay = min(decay, (1 + self.updates) / (config.ramp + self.updates))
        return decay

    @torch.no_grad()
    def update(self, model: nn.Module, share: float, whole: Callable[[Tensor], Tensor]) -> None:
        """Move towards the weights of ``model``; buffers that are no floats are copied.

        Args:
            model: the trained network, with the same names.
            share: of the run's steps that is done.
            whole: gathers a tensor that is spread over processes.
        """
        weight = 1 - self.decay(share)
        new = dict(model.named_parameters())
        own: list[Tensor] = []
        goal: list[Tensor] = []
        for name, mine in self.network.named_parameters():
            own.append(mine)
            goal.append(whole(new[name].detach()).to(mine.dtype))
        buffers = dict(model.named_buffers())
        for name, held in self.network.named_buffers():
            now = whole(buffers[name])
            if held.is_floating_point() and self.config.buffers:
                # Between infinities (masks of attention) there is no average: where both agree, nothing moves.
                now = now.to(held.dtype)
                held.copy_(torch.where(held == now, held, torch.lerp(held, now, weight)))
            else:
                held.copy_(now)
        # One kernel for many tensors, as torch.optim.swa_utils does.
        torch._foreach_lerp_(own, goal, weight)
        self.updates += 1
