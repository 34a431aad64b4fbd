"""DeepSpeed's ZeRO stage 2 (Rajbhandari et al. 2020): weights on every process, gradients and moments spread over all.

DeepSpeed does the forward and backward pass, the exchange of gradients and the update. Clipping by sets, the guard and
the checkpoints stay those of the other engines, so that a run may go from one strategy to another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.core.optional import require
from relief3d.train.config import TrainConfig
from relief3d.train.deepspeed import deepspeed_config
from relief3d.train.distributed import AccelerateEngine
from relief3d.train.engine import Optimizer

_MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroEngine(AccelerateEngine):
    """One of several processes under ZeRO-2, in float32 or with autocast to bfloat16 and weights in float32.

    Args:
        config: of the run.
        dtype: of the forward pass; None: float32.
        cpu: processes on the CPU, exchanging through gloo.
        timeout: seconds that a process waits for the others before it gives up.

    Raises:
        MissingExtraError: accelerate or deepspeed is not installed.
        InputError: the launcher started one process only, or float16.
    """

    def __init__(
        self,
        config: TrainConfig,
        dtype: torch.dtype | None = None,
        *,
        cpu: bool = False,
        timeout: float = 1800.0,
    ) -> None:
        if dtype is torch.float16:
            raise InputError("float16 is not for DeepSpeed here", remedy="use bfloat16, or the strategy ddp")
        if cpu:
            os.environ.setdefault(
                "DS_ACCELERATOR", "cpu"
            )  # the documented way; else it takes any GPU there is
        # Its messages go to the standard output, where results belong.
        with contextlib.redirect_stdout(sys.stderr):
            self.deepspeed = require("deepspeed", extra="deepspeed", purpose="the strategy deepspeed")
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        super().__init__(dtype, strategy="deepspeed", cpu=cpu, timeout=timeout)
        self.settings = deepspeed_config(config, samples=self.world, world=self.world, dtype=dtype)
        self._network: Any = None

    def prepare(self, model: nn.Module, optimiser: Optimizer) -> tuple[nn.Module, Optimizer]:
        self._members: dict[str, list[nn.Parameter]] | None = None
        with contextlib.redirect_stdout(sys.stderr):
            self._network, handled, _, _ = self.deepspeed.initialize(
                model=model.to(self.device), optimizer=optimiser, config=self.settings
            )
        self._begin_moments(handled)
        return self._network, handled

    def plain(self, model: nn.Module) -> nn.Module:
        found: nn.Module = self._network.module
        return found

    def together(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        # Gradients are exchanged with every micro-batch, since no process keeps all of them; this ends the sum.
        self._network.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self._network.backward(loss, scale_wrt_gas=False)

    def gradients(
        self, model: nn.Module, optimiser: Optimizer, sets: Mapping[str, Sequence[str]], limit: float | None
    ) -> dict[str, Tensor]:
        if self._members is None:
            parameters = dict(model.named_parameters())
            self._members = {name: [parameters[n] for n in names] for name, names in sets.items()}
        own = {name: self._fragments(members) for name, members in self._members.items()}
        squares = torch.stack(
            [
                torch.stack(torch._foreach_norm(parts)).square().sum()
                if parts
                else torch.zeros((), device=self.device)
                for parts in own.values()
            ]
        )
        dist.all_reduce(squares)
        norms = dict(zip(own, squares.sqrt().unbind()))
        for name, parts in own.items():
            if limit is not None and parts:
                torch._foreach_mul_(parts, (limit / (norms[name] + 1e-6)).clamp(max=1.0))
        return norms

    def update(self, optimiser: Optimizer, good: bool) -> None:
        if not good:
            # DeepSpeed itself leaves out a step whose gradient is not finite on any process.
            for members in (self._members or {}).values():
                for part in self._fragments(members):
                    part.fill_(torch.nan)
        self._network.step()

    def load_weights(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().load_weights(model, tensors)
        self._network.optimizer.refresh_fp32_params()

    def moments(self, model: nn.Module, optimiser: Optimizer) -> dict[str, Tensor]:
        held: Any = optimiser
        out: dict[str, Tensor] = {}
        steps: dict[nn.Parameter, Tensor] = {}
        for flat, members in zip(held.single_partition_of_fp32_groups, held.bit16_groups):
            steps |= dict.fromkeys(members, held.optimizer.state[flat]["step"])
        for name, parameter in model.named_parameters():
            if parameter in steps and float(steps[parameter]) > 0:
                out[f"{name}:step"] = steps[parameter].clone()
                for key in _MOMENTS:
                    out[f"{name}:{key}"] = self.deepspeed.utils.safe_get_full_optimizer_state(parameter, key)
        return out

    def load_moments(self, model: nn.Module, optimiser: Optimizer, tensors: Mapping[str, Tensor]) -> None:
        if not tensors:
            return
        names = {parameter: name for name, parameter in model.named_parameters()}
        held: Any = optimiser
        for flat, members in zip(held.single_partition_of_fp32_groups, held.bit16_groups):
            steps = [float(tensors.get(f"{names[p]}:step", torch.zeros(()))) for p in members]
            if len(set(steps)) > 1:
                raise InputError(
                    "parameters had different numbers of updates, which ZeRO-2 cannot hold",
                    remedy="go on with one process, ddp or fsdp",
                )
            held.optimizer.state[flat]["step"].fill_(steps[0])
            for parameter in members if steps[0] else ():
                for key in _MOMENTS:
                    value = tensors[f"{names[parameter]}:{key}"]
                    if value.shape != parameter.shape:
                        raise ValueError(f"shapes {tuple(value.shape)} and {tuple(parameter.shape)} differ")
                    self.deepspeed.utils.safe_set_full_optimizer_state(parameter, value.to(self.device), key)

    def _begin_moments(self, optimiser: Any) -> None:
        """Moments of all groups before the first update; DeepSpeed links none but the first group's by itself."""
        for flat in optimiser.single_partition_of_fp32_groups:
            optimiser.optimizer.state[flat] = {
                "step": torch.zeros((), dtype=torch.float32),
                **{key: torch.zeros_like(flat) for key in _MOMENTS},
            }
        optimiser._lazy_init_hp_params_optimizer_state()

    def _fragments(self, members: Sequence[nn.Parameter]) -> list[Tensor]:
        """The parts of the parameters' gradients that this process keeps."""
        return [
            found
            for p in members
            if p._hp_mapping is not None  # type: ignore[attr-defined]
            and (
                found := p._hp_mapping.get_lp_grad_fragment(  # type: ignore[attr-defined]
                    p._index_in_param_group  # type: ignore[attr-defined]
                )
            ).numel()
        ]
