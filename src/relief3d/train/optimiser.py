"""Parameter groups, freezing, AdamW and clipping."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from relief3d.core.errors import InputError
from relief3d.train.config import GroupConfig, OptimiserConfig

_BLOCK = re.compile(r"(?:^|\.)(\w*(?:blocks|decoder|layers))\.(\d+)\.")


@dataclass(frozen=True)
class ParameterPlan:
    """How one parameter is treated.

    Attributes:
        name: as in ``named_parameters()``.
        lr_scale: factor on the learning rate.
        weight_decay: decoupled.
        frozen: not trained.
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
    depths: dict[str, int] = {}
    for name in names:
        for stack, index in _BLOCK.findall(name):
            depths[stack] = max(depths.get(stack, 0), int(index) + 1)
    fitted: set[str] = set()
    plans = []
    for name, parameter in model.named_parameters():
        group = next((g for g in config.groups if fnmatchcase(name, g.pattern)), GroupConfig("*"))
        fitted.add(group.pattern)
        decay = config.weight_decay if group.weight_decay is None else group.weight_decay
        if parameter.ndim < 2 and not config.decay_vectors and group.weight_decay is None:
            decay = 0.0
        scale = group.lr_scale
        found = _BLOCK.search(name)
        if found and config.layer_decay != 1.0:
            scale *= config.layer_decay ** (depths[found.group(1)] - 1 - int(found.group(2)))
        plans.append(ParameterPlan(name, scale, decay, group.frozen, group.clip))
    unfitted = [g.pattern for g in config.groups if g.pattern not in fitted]
    if unfitted and config.must_match:
        raise InputError(
            f"no parameter of {type(model).__name__} fits '{unfitted[0]}'",
            remedy=f"names look like {', '.join(names[:3])}",
        )
    if all(p.frozen for p in plans):
        raise InputError("every parameter is frozen, so there is nothing to train")
    return plans


def freeze(model: nn.Module, plans: Iterable[ParameterPlan]) -> None:
    """Take gradients from frozen parameters; modules all of whose parameters are frozen stay in evaluation mode."""
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
