"""What can be known of a run before anything is written: device, options that fit the network, memory."""

from __future__ import annotations

import torch
from torch import nn

from relief3d.core.device import autocast_dtype, resolve_device
from relief3d.core.errors import InputError
from relief3d.core.memory import available_memory
from relief3d.core.optional import require
from relief3d.pipelines.train.export import parameter_bytes
from relief3d.pipelines.train.run_folder import RunSpec
from relief3d.train.config import TrainConfig
from relief3d.train.optimiser import freeze, plan_parameters

STATE_SHARE = 0.8
"""Of the free memory, for what a run always holds; the rest is for pictures, activations and the program."""


def check_run(spec: RunSpec, device: str = "auto") -> None:
    """Refuse what cannot be trained, from the shapes of the network alone.

    Raises:
        InputError: the device is absent or has not the precision; groups of parameters that fit none; weights,
            gradients and moments take more than four fifths of the machine's free memory (CPU).
        MissingExtraError: TensorBoard's format is asked for and its package is absent.
    """
    where = resolve_device(device)
    config: TrainConfig = spec.config.train
    autocast_dtype(config.precision, where)
    if config.log.tensorboard:
        require("tensorboard", extra="train", purpose="TensorBoard logs")
    task = spec.recipe.task(spec.config, device)
    task.data_plan()
    with torch.device("meta"):
        model = task.model()
    need = sum(state_bytes(model, config).values())
    free = available_memory() if where.type == "cpu" else None
    if free is not None and need > STATE_SHARE * free:
        raise InputError(
            f"weights, gradients and moments of size '{spec.size}' take {need / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free",
            remedy="choose a smaller --size, or another device; --dry-run shows the plan",
        )


def state_bytes(model: nn.Module, config: TrainConfig) -> dict[str, int]:
    """Bytes of weights, gradients, the optimiser's moments and the moving average; freezes what is to be frozen.

    Raises:
        InputError: groups of parameters that fit none, or all are frozen.
    """
    freeze(model, plan_parameters(model, config.optimiser))
    weights, trained = parameter_bytes(model), parameter_bytes(model, trained=True)
    return {
        "weights": weights,
        "gradients": trained,
        "moments": 2 * trained,
        "average": 0 if config.ema is None else weights,
    }
