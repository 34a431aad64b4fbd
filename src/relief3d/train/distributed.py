"""Many processes, started by ``accelerate launch`` or ``torchrun``; each takes its share of every batch.

DDP goes through Hugging Face Accelerate, FSDP2 is PyTorch's own, DeepSpeed is in :mod:`relief3d.train.zero`.
Checkpoints are whole and portable: any number of processes goes on with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from relief3d.core.device import autocast_dtype, resolve_device
from relief3d.core.errors import InputError
from relief3d.core.optional import require
from relief3d.nn.blocks import Block
from relief3d.train.config import TrainConfig
from relief3d.train.engine import Engine, Optimizer, SingleEngine
from relief3d.train.processes import launched
from relief3d.train.recipe import Strategy


def engine_for(config: TrainConfig, *, device: str = "auto", strategy: Strategy = "ddp") -> Engine:
    """The engine that a command should use: one device, or this process' share of those that a launcher started.

    Raises:
        MissingExtraError: several processes without accelerate.
        InputError: the device is absent or cannot exchange, or the precision does not fit.
    """
    where = resolve_device(device)
    dtype = autocast_dtype(config.precision, where)
    if not launched():
        return SingleEngine(where, dtype)
    if where.type == "mps":
        raise InputError("mps cannot exchange between processes", remedy="use --device cpu, or one process")
    if strategy == "deepspeed":
        from relief3d.train.zero import ZeroEngine

        return ZeroEngine(config, dtype, cpu=where.type == "cpu")
    return AccelerateEngine(dtype, strategy=strategy, cpu=where.type == "cpu")


class AccelerateEngine(SingleEngine):
    """One of several processes: DDP (weights on each), or FSDP2 (weights, gradients and moments spread over all).

    Precision is this class' own, the same as on one device: autocast to bfloat16 or float16 with weights in float32;
    float16 scales the loss, which only works with DDP. An average is whole on every process in both. FSDP2 is applied
    here and not by Accelerate, which takes DDP on CPU processes whatever it is asked for.

    Args:
        dtype: of the forward pass; None: float32.
        strategy: ``ddp`` or ``fsdp``.
        cpu: processes on the CPU, exchanging through gloo.
        timeout: seconds that a process waits for the others before it gives up.

    Raises:
        MissingExtraError: accelerate is not installed.
        InputError: the launcher started one process only, or float16 with FSDP2.
    """

    def __init__(
        self,
        dtype: torch.dtype | None = None,
        *,
        strategy: Strategy = "ddp",
        cpu: bool = False,
        timeout: float = 1800.0,
    ) -> None:
        accelerate = require("accelerate", extra="train", purpose="training in several processes")
        if not launched():
            raise InputError(
                "only one process was started",
                remedy="use torchrun or accelerate launch (docs/distributed.md)",
            )
        if strategy == "fsdp" and dtype is torch.float16:
            raise InputError("float16 needs whole gradients", remedy="use bfloat16, or the strategy ddp")
        # Nothing of the caller's environment decides the strategy: what runs is what the command says.
        self.accelerator = accelerate.Accelerator(
            cpu=cpu,
            mixed_precision="no",
            dynamo_backend="no",
            kwargs_handlers=[accelerate.InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))],
        )
        kind = str(self.accelerator.distributed_type.value)
        if not kind.startswith("MULTI_"):
            raise InputError(
                f"Accelerate was launched for '{kind}'",
                remedy="launch without it, and choose the strategy here",
            )
        super().__init__(self.accelerator.device, dtype)
        self.strategy = strategy
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes

    def prepare(self, model: nn.Module, optimiser: Optimizer) -> tuple[nn.Module, Optimizer]:
        self._sets = None
        if self.strategy == "deepspeed":
            raise InputError("this engine is not DeepSpeed's", remedy="use engine_for")
        if self.strategy == "fsdp":
            spread(model.to(self.device), self.device.type, self.world)
            parameters = dict(model.named_parameters())
            for group in optimiser.param_groups:
                group["params"] = [parameters[name] for name in group["names"]]
            return model, optimiser
        wrapped, handled = self.accelerator.prepare(model, optimiser)
        # The loop steps the plain optimiser: what Accelerate's wrapper adds, accumulation and scaling, is done here.
        return wrapped, handled.optimizer

    def plain(self, model: nn.Module) -> nn.Module:
        found: nn.Module = self.accelerator.unwrap_model(model)
        return found

    def together(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
            return nullcontext()
        if last:
            return nullcontext()
        waiting: AbstractContextManager[Any] = self.accelerator.no_sync(model)
        return waiting

    def total(self, flag: Tensor, *numbers: float) -> list[float]:
        # Counts and their squares stay exact.
        values = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        values = torch.cat([flag.detach().to(values).view(1), values])
        dist.all_reduce(values)
        return values.tolist()

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        names = sorted(values)
        stacked = torch.stack([values[n].detach().float().to(self.device) for n in names])
        dist.all_reduce(stacked)
        found = dict(zip(names, (stacked / self.world).tolist()))
        return {n: found[n] for n in values}

    def names(self, own: Sequence[str]) -> list[str]:
        gathered: list[list[str]] = [[] for _ in range(self.world)]
        dist.all_gather_object(gathered, list(own))
        return [name for part in gathered for name in part]

    def barrier(self) -> None:
        self.accelerator.wait_for_everyone()

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def load_weights(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        own = model.state_dict()
        if set(own) != set(tensors):
            raise KeyError(f"unexpected names: {sorted(set(own) ^ set(tensors))[:3]}")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(_like(value, tensors[name]))

    def spread_as(self, parameter: nn.Parameter, value: Tensor, key: str) -> Tensor:
        if key == "step":
            return value.clone()
        return _like(parameter, value.clone())

    def close(self) -> None:
        """Leave the group of processes; call it at the end of the program."""
        if dist.is_initialized():
            dist.destroy_process_group()


def spread(model: nn.Module, device_type: str, world: int) -> None:
    """Spread the parameters of a network over all processes, in place (FSDP2, PyTorch's ``fully_shard``).

    Transformer blocks are gathered one by one, the rest at once; outside of a pass every parameter is a ``DTensor``.
    """
    mesh = init_device_mesh(device_type, (world,))
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for module in [*reversed(blocks), model]:  # inner ones first
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def _like(held: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, spread as ``held`` is."""
    if held.shape != value.shape:
        raise ValueError(f"shapes {tuple(value.shape)} and {tuple(held.shape)} differ")
    if not isinstance(held, DTensor):
        return value.to(held.device)
    # Every process read the same file, so none has to send it.
    return distribute_tensor(
        value.to(held.device), held.device_mesh, list(held.placements), src_data_rank=None
    )
