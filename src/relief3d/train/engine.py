"""Where a step runs: one device here; several processes in :mod:`relief3d.train.distributed`. The loop sees no
difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from relief3d.core.device import synchronize

Optimizer = torch.optim.Optimizer


class Engine(Protocol):
    """What the loop asks of the machinery below it.

    Attributes:
        device: of this process.
        dtype: of the forward pass under autocast; None: as the weights are.
        rank: of this process, 0 for the one that writes.
        world: number of processes.
    """

    device: torch.device
    dtype: torch.dtype | None
    rank: int
    world: int

    def prepare(self, model: nn.Module, optimiser: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Network and optimiser on the device and wrapped as needed; parameter names stay those of :meth:`plain`."""
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

    def gradients(
        self, model: nn.Module, optimiser: Optimizer, sets: Mapping[str, Sequence[str]], limit: float | None
    ) -> dict[str, Tensor]:
        """Take the scaling out of the gradients and clip those of every set of parameters to a norm.

        Returns:
            Norms before clipping, (), by set; on the device, so that asking for them waits for nothing.
        """
        ...

    def update(self, optimiser: Optimizer, good: bool) -> None:
        """Update the weights, or leave the step out."""
        ...

    def total(self, flag: Tensor, *numbers: float) -> list[float]:
        """Sums over the processes of a () flag on the device and of numbers; the one place where a step waits."""
        ...

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over the processes of () tensors; every process gives the same names."""
        ...

    def names(self, own: Sequence[str]) -> list[str]:
        """The names of all processes."""
        ...

    def barrier(self) -> None:
        """Wait for the others."""
        ...

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor, gathered when it is spread over processes."""
        ...

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """All parameters and buffers, whole, by name."""
        ...

    def load_weights(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of :meth:`weights`."""
        ...

    def moments(self, model: nn.Module, optimiser: Optimizer) -> dict[str, Tensor]:
        """The optimiser's tensors, whole, as ``parameter name`` + ``:`` + ``key``."""
        ...

    def load_moments(self, model: nn.Module, optimiser: Optimizer, tensors: Mapping[str, Tensor]) -> None:
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
        self._sets: list[tuple[str, list[nn.Parameter]]] | None = None

    def prepare(self, model: nn.Module, optimiser: Optimizer) -> tuple[nn.Module, Optimizer]:
        self._sets = None
        # Parameters move in place, so that the optimiser keeps them.
        return model.to(self.device), optimiser

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

    def gradients(
        self, model: nn.Module, optimiser: Optimizer, sets: Mapping[str, Sequence[str]], limit: float | None
    ) -> dict[str, Tensor]:
        self.scaler.unscale_(optimiser)
        if self._sets is None:
            parameters = dict(model.named_parameters())
            self._sets = [(name, [parameters[n] for n in names]) for name, names in sets.items()]
        norms = {}
        for name, members in self._sets:
            with_gradient = [p for p in members if p.grad is not None]
            norm = self.whole(get_total_norm([p.grad for p in with_gradient if p.grad is not None]))
            norms[name] = norm.to(self.device)
            if limit is not None:
                clip_grads_with_norm_(with_gradient, limit, norm)
        return norms

    def update(self, optimiser: Optimizer, good: bool) -> None:
        if good:
            self.scaler.step(optimiser)
        # After a step that is left out too: the scale has to fall when the gradients overflowed.
        self.scaler.update()

    def total(self, flag: Tensor, *numbers: float) -> list[float]:
        return [float(flag), *numbers]

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        return dict(zip(values, _stacked(values.values()).tolist()))

    def names(self, own: Sequence[str]) -> list[str]:
        return list(own)

    def barrier(self) -> None:
        synchronize(self.device)

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: self.whole(value) for name, value in model.state_dict().items()}

    def load_weights(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        model.load_state_dict(tensors)

    def moments(self, model: nn.Module, optimiser: Optimizer) -> dict[str, Tensor]:
        out = {}
        for name, parameter in model.named_parameters():
            for key, value in optimiser.state.get(parameter, {}).items():
                out[f"{name}:{key}"] = self.whole(torch.as_tensor(value))
        return out

    def load_moments(self, model: nn.Module, optimiser: Optimizer, tensors: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters())
        for full, value in tensors.items():
            name, key = full.rsplit(":", 1)
            optimiser.state[parameters[name]][key] = self.spread_as(parameters[name], value, key)

    def spread_as(self, parameter: nn.Parameter, value: Tensor, key: str) -> Tensor:
        """A whole tensor of the optimiser's state, where and how its parameter is; counters stay on the CPU."""
        return value.clone() if key == "step" else value.clone().to(parameter.device)

    def scaler_state(self) -> dict[str, Any]:
        return dict(self.scaler.state_dict())

    def load_scaler_state(self, state: Mapping[str, Any]) -> None:
        if state:
            self.scaler.load_state_dict(dict(state))


def _stacked(values: Iterable[Tensor]) -> Tensor:
    """() tensors of any type as one float vector, so that they cross to the host together."""
    return torch.stack([v.detach().float() for v in values])
