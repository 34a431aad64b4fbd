"""The weights that a run ends with, for others to load, and a card that says what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.core.provenance import commit, hardware, versions
from relief3d.io.atomic import atomic_path
from relief3d.io.json_file import write_json
from relief3d.models.metric.opening import configuration
from relief3d.models.volume.network import VolumeNetwork
from relief3d.models.volume.opening import file_metadata
from relief3d.pipelines.train.run_folder import RunSpec
from relief3d.train.checkpoint import file_digest
from relief3d.train.engine import Engine
from relief3d.train.loop import TrainResult

if TYPE_CHECKING:
    from relief3d.train.recipe import RecipeTask

MODEL_FILE = "model.safetensors"
CARD_FILE = "model.json"
FORMAT = 1


def export_model(
    folder: Path,
    spec: RunSpec,
    task: RecipeTask,
    result: TrainResult,
    samples: int,
    *,
    engine: Engine | None = None,
) -> Path:
    """Write ``model.safetensors`` (the average where there is one) and ``model.json`` beside it; returns the former.

    Of several processes, all have to ask and process 0 writes.

    Args:
        folder: of the run.
        spec: of the run.
        task: for the card.
        result: of the loop.
        samples: seen by the run.
        engine: that the run had; None: one process.
    """
    network = result.model if result.average is None else result.average
    target = folder / MODEL_FILE
    tensors = network.state_dict()
    if engine is not None and result.average is None:
        tensors = engine.weights(network)  # they may be spread over the processes
    if engine is not None and engine.rank > 0:
        return target
    with atomic_path(target) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(_whole(tensors), str(temporary), metadata={"format": "pt", **_built_from(network)})
        temporary.chmod(mode)  # the library makes files that only their owner may read
    card: dict[str, Any] = {
        "format": FORMAT,
        **spec.header(),
        "commit_at_the_end": commit(),
        **dict(task.model_card()),
        "file": target.name,
        "sha256": file_digest(target),
        "bytes": target.stat().st_size,
        "parameters": sum(p.numel() for p in network.parameters()),
        "weights": "last" if result.average is None else "moving average",
        "steps": result.step,
        "skipped_steps": result.skipped,
        "samples": samples,
        "data": task.data_plan(),
        "numbers": dict(result.numbers),
        "hardware": hardware(),
        "versions": versions(),
    }
    write_json(folder / CARD_FILE, card)
    return target


def _built_from(network: nn.Module) -> dict[str, str]:
    """The configuration of a network for metric depth or of a volumetric one, so that its file can be loaded without
    being told a size.
    """
    if isinstance(network, VolumeNetwork):
        return file_metadata(network)
    try:
        _, key, config = configuration(network)
    except InputError:
        return {}
    return {key: json.dumps(config)}


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name, contiguous on the CPU, none sharing memory with another."""
    return {name: v.detach().cpu().contiguous().clone() for name, v in tensors.items()}


def read_samples(folder: Path) -> int:
    """Samples that the newest checkpoint of a run has seen; 0 without one."""
    from relief3d.train.checkpoint import STATE, find_checkpoint

    found = find_checkpoint(folder)
    if found is None:
        return 0
    from relief3d.io.json_file import read_json_object

    return int(read_json_object(found / STATE)["state"]["counters"]["samples"])


def parameter_bytes(network: nn.Module, *, trained: bool = False) -> int:
    """Bytes of parameters (with ``trained``: of those that learn) and, else, buffers."""
    if trained:
        return sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)
    tensors: list[torch.Tensor] = [*network.parameters(), *network.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)
