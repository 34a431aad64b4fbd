"""Parameter groups, freezing, AdamW and clipping."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from relief3d.core.errors import InputError
from relief3d.train.config import GroupConfig, OptimiserConfig

_BLOCK = re.compile(r"((?:[^.]+\.)*?\w*(?:blocks|decoder|layers))\.(\d+)\.")
"""The outermost stack of blocks in a parameter's name, and the number of the block."""


@dataclass(frozen=True)
class ParameterPlan:
    """How one parameter is treated.

    Attributes:
        name: as in ``named_parameters()``.
        lr_scale: factor on the learning rate.
        weight_decay: decoupled.
        frozen: not trained: by a group, or because the network itself holds it fixed (``requires_grad`` is false).
        clip: set whose gradients are clipped together.
    """

    name: str
    lr_scale: float
    weight_decay: float
    frozen: bool
    clip: str


def plan_parameters(model: nn.Module, config: OptimiserConfig) -> list[ParameterPlan]:
    """How every parameter of a network is treated.

    Raises:
        InputError: a group's pattern fits no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    scales = _layer_scales(names, config.layer_decay)
    fitted: set[int] = set()
    plans = []
    for name, parameter in model.named_parameters():
        found = next((i for i, g in enumerate(config.groups) if fnmatchcase(name, g.pattern)), None)
        group = GroupConfig("*") if found is None else config.groups[found]
        fitted |= set() if found is None else {found}
        decay = config.weight_decay if group.weight_decay is None else group.weight_decay
        if parameter.ndim < 2 and not config.decay_vectors and group.weight_decay is None:
            decay = 0.0
        scale = group.lr_scale * scales.get(name, 1.0)
        plans.append(
            ParameterPlan(name, scale, decay, group.frozen or not parameter.requires_grad, group.clip)
        )
    for index, group in enumerate(config.groups):
        if index not in fitted and config.must_match:
            taken = any(fnmatchcase(name, group.pattern) for name in names)
            raise InputError(
                f"every parameter that fits '{group.pattern}' is taken by an earlier group"
                if taken
                else f"no parameter of {type(model).__name__} fits '{group.pattern}'",
                remedy="put the narrower pattern first" if taken else f"names look like {_some(names)}",
            )
    if all(p.frozen for p in plans):
        raise InputError("every parameter is frozen, so there is nothing to train")
    return plans


def _layer_scales(names: Sequence[str], decay: float) -> dict[str, float]:
    """Learning-rate factors by depth, for parameters in or before stacks of blocks; ``names`` in the model's order."""
    if decay == 1.0:
        return {}
    depths: dict[str, int] = {}
    parents: dict[str, int] = {}
    for name in names:
        if found := _BLOCK.match(name):
            stack = found.group(1)
            depths[stack] = max(depths.get(stack, 0), int(found.group(2)) + 1)
    for stack, depth in depths.items():
        parent = stack.rpartition(".")[0]
        parents[parent] = max(parents.get(parent, 0), depth)
    out: dict[str, float] = {}
    begun: set[str] = set()
    for name in names:
        if found := _BLOCK.match(name):
            begun.add(found.group(1).rpartition(".")[0])
            out[name] = decay ** (depths[found.group(1)] - int(found.group(2)))
            continue
        parts = name.split(".")
        above = [".".join(parts[:n]) for n in range(len(parts))]
        # The nearest stack decides: a norm behind the blocks of an encoder does not come before those of a decoder.
        around = [p for p in above if p in parents]
        if around and around[-1] not in begun:
            out[name] = decay ** (parents[around[-1]] + 1)
    return out


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:: max(1, len(names) // 3)][:3])


def freeze(model: nn.Module, plans: Iterable[ParameterPlan]) -> None:
    """Take gradients from frozen parameters; see :func:`train_mode` for their modules."""
    frozen = {p.name for p in plans if p.frozen}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def train_mode(model: nn.Module) -> None:
    """Training mode, but for modules whose parameters are all frozen."""
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(p.requires_grad for p in own):
            module.eval()


def make_optimiser(
    model: nn.Module, plans: Iterable[ParameterPlan], config: OptimiserConfig
) -> torch.optim.AdamW:
    """AdamW with one group per kind of treatment; groups remember ``lr_scale`` and the names of their parameters."""
    parameters = dict(model.named_parameters())
    kinds: dict[tuple[float, float], list[str]] = {}
    for plan in plans:
        if not plan.frozen:
            kinds.setdefault((plan.lr_scale, plan.weight_decay), []).append(plan.name)
    groups = [
        {"params": [parameters[n] for n in names], "weight_decay": decay, "lr_scale": scale, "names": names}
        for (scale, decay), names in kinds.items()
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of every group, times its scale."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_scale"]
