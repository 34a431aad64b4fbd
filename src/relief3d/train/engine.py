"""Where a step runs: one device here; several processes in :mod:`relief3d.train.distributed`. The loop sees no
difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from relief3d.core.device import synchronize


class Engine(Protocol):
    """What the loop asks of the machinery below it.

    Attributes:
        device: of this process.
        rank: of this process, 0 for the one that writes.
        world: number of processes.
    """

    device: torch.device
    rank: int
    world: int

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network, on the device and wrapped as needed; parameter names stay those of :meth:`plain`."""
        ...

    def prepare_optimiser(self, optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimiser, wrapped as needed."""
        ...

    def plain(self, model: nn.Module) -> nn.Module:
        """The network under the wrapping."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """Precision of the forward pass."""
        ...

    def together(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Around a micro-batch; gradients are exchanged only with the last one of a step."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss, scaled as the precision needs."""
        ...

    def unscale(self, optimiser: torch.optim.Optimizer) -> None:
        """Take the scaling out of the gradients, before they are looked at."""
        ...

    def step(self, optimiser: torch.optim.Optimizer) -> None:
        """Update the weights."""
        ...

    def clip(self, model: nn.Module, sets: Mapping[str, Sequence[str]], limit: float) -> dict[str, float]:
        """Clip the gradients of every set of parameter names to a norm; norms before, by set."""
        ...

    def mean(self, values: Mapping[str, float], weight: float) -> dict[str, float]:
        """Weighted mean of numbers over the processes."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        ...

    def barrier(self) -> None:
        """Wait for the others."""
        ...

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """All parameters and buffers, whole, by name."""
        ...

    def load_weights(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of :meth:`weights`."""
        ...

    def moments(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
        """The optimiser's tensors, whole, as ``parameter name`` + ``:`` + ``key``."""
        ...

    def load_moments(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
    ) -> None:
        """The inverse of :meth:`moments`."""
        ...

    def scaler_state(self) -> dict[str, Any]:
        """State of the loss scaling; empty without one."""
        ...

    def load_scaler_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`scaler_state`."""
        ...


class SingleEngine:
    """One process on one device."""

    def __init__(self, device: torch.device, dtype: torch.dtype | None) -> None:
        """Run on ``device``, with autocast to ``dtype`` unless it is None."""
        self.device, self.dtype, self.rank, self.world = device, dtype, 0, 1
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    def prepare(self, model: nn.Module) -> nn.Module:
        return model.to(self.device)

    def prepare_optimiser(self, optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
        return optimiser

    def plain(self, model: nn.Module) -> nn.Module:
        return model

    def autocast(self) -> AbstractContextManager[Any]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def together(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def unscale(self, optimiser: torch.optim.Optimizer) -> None:
        self.scaler.unscale_(optimiser)

    def step(self, optimiser: torch.optim.Optimizer) -> None:
        self.scaler.step(optimiser)
        self.scaler.update()

    def clip(self, model: nn.Module, sets: Mapping[str, Sequence[str]], limit: float) -> dict[str, float]:
        parameters = dict(model.named_parameters())
        return {
            name: float(nn.utils.clip_grad_norm_([parameters[n] for n in names], limit))
            for name, names in sets.items()
        }

    def mean(self, values: Mapping[str, float], weight: float) -> dict[str, float]:
        return dict(values)

    def any(self, flag: bool) -> bool:
        return flag

    def barrier(self) -> None:
        synchronize(self.device)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        return model.state_dict()

    def load_weights(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        model.load_state_dict(tensors)

    def moments(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
        out = {}
        for name, parameter in model.named_parameters():
            for key, value in optimiser.state.get(parameter, {}).items():
                out[f"{name}:{key}"] = torch.as_tensor(value)
        return out

    def load_moments(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
    ) -> None:
        parameters = dict(model.named_parameters())
        for full, value in tensors.items():
            name, key = full.rsplit(":", 1)
            # Step counters stay on the CPU, as the optimiser made them.
            where = "cpu" if key == "step" else parameters[name].device
            optimiser.state[parameters[name]][key] = value.clone().to(where)

    def scaler_state(self) -> dict[str, Any]:
        return dict(self.scaler.state_dict())

    def load_scaler_state(self, state: Mapping[str, Any]) -> None:
        if state:
            self.scaler.load_state_dict(dict(state))
