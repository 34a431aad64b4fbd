"""The lean prompted network from files: with the configuration that they carry, or of a named size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.models.checkpoints import load_weights, read_state
from relief3d.models.metric.prompted import PromptedDepth
from relief3d.models.metric.refiner import SIZES, PromptRefiner, RefinerConfig, refiner_config
from relief3d.models.metric.stored import stored_config

CONFIG_KEY = "refiner_config"
_WRAPPER = "net."


def bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own names, whether it was saved alone or inside :class:`PromptedDepth`."""
    return {k.removeprefix(_WRAPPER): v for k, v in state.items()}


def identify(state: Mapping[str, Tensor]) -> bool:
    """Whether the names of a state are those of the lean prompted network."""
    return {"features.enter.weight", "judge.0.weight", "to_key.weight"} <= set(bare(state))


def config_to_dict(config: RefinerConfig) -> dict[str, Any]:
    """JSON types only; see :func:`config_from_dict`."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def config_from_dict(stored: Mapping[str, Any]) -> RefinerConfig:
    """The configuration that :func:`config_to_dict` wrote.

    Raises:
        InputError: it describes no such network.
    """
    names = {f.name for f in fields(RefinerConfig)}
    try:
        if unknown := set(stored) - names:
            raise ValueError(f"unknown entries {', '.join(sorted(unknown))}")
        values: dict[str, Any] = {
            k: tuple(int(n) for n in v) if isinstance(v, list) else int(v) for k, v in stored.items()
        }
        return RefinerConfig(**values)
    except (TypeError, ValueError) as exc:
        raise InputError(f"the stored configuration describes no prompted network ({exc})") from exc


def size_of(state: Mapping[str, Tensor]) -> str | None:
    """The named size whose shapes are those of a state or header; None for none."""
    shapes = {k: tuple(v.shape) for k, v in bare(state).items()}
    for size in SIZES:
        with torch.device("meta"):
            wanted = PromptRefiner(refiner_config(size)).state_dict()
        if {k: tuple(v.shape) for k, v in wanted.items()} == shapes:
            return size
    return None


def load_refiner(
    path: str | Path,
    *,
    config: RefinerConfig | None = None,
    device: torch.device | str = "cpu",
) -> PromptedDepth:
    """The lean prompted network with weights, in float32 and evaluation mode.

    Args:
        path: file of weights, or the index of shards.
        config: of the network; None: what the file carries, else the named size whose shapes fit.
        device: of the result.

    Raises:
        InputError: the file cannot be read, its size is none that is known, or names and shapes do not fit.
    """
    path = Path(path)
    state = bare(read_state(path))
    config = config or stored_config(path, CONFIG_KEY, config_from_dict)
    if config is None:
        size = size_of(state)
        if size is None:
            raise InputError(
                "holds a prompted network of none of the named sizes",
                path=path,
                remedy="train one of a named size",
            )
        config = refiner_config(size)
    network = PromptedDepth(config)
    load_weights(network.net, state, source=path)
    return network.to(device).eval()
