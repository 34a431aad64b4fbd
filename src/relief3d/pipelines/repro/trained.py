"""Networks that several tables of a paper need: each configuration is trained once, resumed when it was interrupted.

A network lies in a folder of what all runs share, named by everything that decides its weights: recipe, size and
configuration with the seed. Where things lie on this machine is no part of the name: paths inside of the shared folder
(weights that a training starts from, labels that another network made) count by their place in it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError
from relief3d.core.provenance import commit
from relief3d.io.json_file import read_json_object, write_json
from relief3d.pipelines.repro.experiment import ArmRun
from relief3d.pipelines.train.configuration import to_plain
from relief3d.pipelines.train.export import CARD_FILE, MODEL_FILE
from relief3d.pipelines.train.registry import find_recipe
from relief3d.pipelines.train.run import train
from relief3d.pipelines.train.run_folder import RunSpec, claim
from relief3d.train.fingerprint import MAY_CHANGE
from relief3d.train.recipe import Recipe, Size

NETWORKS = "networks"
_TIMES = "seconds.json"


@dataclass(frozen=True)
class TrainedNetwork:
    """A network that is ready.

    Attributes:
        model: in evaluation mode, on the device of the run.
        config: that it was trained with, the seed included.
        weights: its file.
        card: what is said beside it: ``parameters``, ``steps``, ``samples``, ``numbers`` of the last evaluation ...
        seconds: of training, all attempts that ended or were interrupted by hand.
    """

    model: nn.Module
    config: Any
    weights: Path
    card: Mapping[str, Any]
    seconds: float


def trained_network(
    run: ArmRun,
    recipe: str,
    size: Size,
    config: Any,
    *,
    seed: int | None = None,
) -> TrainedNetwork:
    """The network of a configuration: trained now, or by another table before.

    Args:
        run: says where and on which device.
        recipe: name.
        size: of the network.
        config: of the recipe; its seed is replaced.
        seed: of training; None: that of the run.

    Raises:
        InputError: unknown recipe, or its files are damaged.
        RunError: training failed.
        KeyboardInterrupt: interrupted, after saving; the next call goes on.
    """
    made = find_recipe(recipe)
    config = replace(config, train=replace(config.train, seed=run.seed if seed is None else seed))
    folder = run.shared / NETWORKS / network_name(made, size, config, run.shared)
    if not (folder / CARD_FILE).is_file():
        _train(made, size, config, folder, run)
    else:
        run.progress.message(f"{folder.name}: trained before")
    return _read(made, config, folder, run)


def shared_result(run: ArmRun, name: str, make: Callable[[Path], None]) -> Path:
    """A folder of something else that several tables need, such as the labels of a teacher; made once.

    Args:
        run: says where.
        name: everything that decides its content, such as the name of a network with a number of pictures.
        make: fills the given folder; after an interruption it is called again with what there is.
    """
    folder = run.shared / name
    done = folder / "complete.json"
    if not done.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        make(folder)
        write_json(done, {"commit": commit()})
    return folder


def network_name(recipe: Recipe, size: Size, config: Any, shared: Path) -> str:
    """``RECIPE-SIZE-seedN-HASH`` of everything that decides the weights."""
    plain = to_plain(config)
    plain["train"] = {k: v for k, v in plain["train"].items() if k not in MAY_CHANGE}
    text = json.dumps(_places({"size": size, **plain}, shared), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{recipe.name}-{size}-seed{config.train.seed}-{digest}"


def _places(value: Any, shared: Path) -> Any:
    """Plain values with paths below the shared folder as places in it."""
    if isinstance(value, dict):
        return {k: _places(v, shared) for k, v in value.items()}
    if isinstance(value, list):
        return [_places(v, shared) for v in value]
    if isinstance(value, str) and value and Path(value).is_relative_to(shared):
        return f"shared:{Path(value).relative_to(shared).as_posix()}"
    return value


def _train(recipe: Recipe, size: Size, config: Any, folder: Path, run: ArmRun) -> None:
    spec = claim(folder, RunSpec(recipe, size, run.budget, config, commit()), run.progress.message)
    began = time.perf_counter()
    try:
        train(spec, folder, run.device, run.progress)
    finally:
        before = float(read_json_object(folder / _TIMES)["seconds"]) if (folder / _TIMES).is_file() else 0.0
        write_json(folder / _TIMES, {"seconds": before + time.perf_counter() - began})


def _read(recipe: Recipe, config: Any, folder: Path, run: ArmRun) -> TrainedNetwork:
    weights = folder / MODEL_FILE
    card = read_json_object(folder / CARD_FILE)
    model = recipe.task(config, run.device).model()
    try:
        model.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as exc:
        raise InputError(
            "trained weights cannot be read", path=weights, remedy=f"remove {folder} to train again"
        ) from exc
    took = read_json_object(folder / _TIMES) if (folder / _TIMES).is_file() else {}
    model = model.to(resolve_device(run.device)).eval()
    return TrainedNetwork(model, config, weights, card, float(took.get("seconds", 0.0)))
