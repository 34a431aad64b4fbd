"""From what ``--model`` names to a network that is ready to be asked for the depth of one picture."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from relief3d.core.errors import InputError, RunError
from relief3d.data.metric_prompt import MetricPrompt
from relief3d.data.prompt_preparation import prepare_prompt
from relief3d.io.json_file import read_json_object
from relief3d.models.catalogue import CATALOGUE, architecture_of, fetch
from relief3d.models.checkpoints import load_weights, read_header, read_state
from relief3d.models.metric.inference import PyramidOptions, wrap_metric
from relief3d.models.metric.interface import (
    Focal,
    GuessedFocalWarning,
    MetricModel,
    MetricPrediction,
    PromptedModel,
)
from relief3d.models.metric.pointmap_infer import PointMapModel
from relief3d.models.metric.pointmap_loading import load_pointmap
from relief3d.models.metric.prompted import SIDE, PromptedDepth
from relief3d.models.metric.pyramid_loading import load_pyramid
from relief3d.models.metric.refiner import PromptRefiner, refiner_config
from relief3d.models.metric.sizes import depth_map_config, depth_pro_config, teacher_config
from relief3d.pipelines.depth.config import DepthConfig

REFINER = "prompt-refiner"
PYRAMIDS = ("depth_pro", "depth_map", "teacher")
PROMPTED = ("teacher", REFINER)
_CARD = "model.json"
_REFINER_SIZES = ("nano", "micro", "mini", "small", "full")


@dataclass(frozen=True)
class Weights:
    """Which network a file is for, known from its header.

    Attributes:
        architecture: depth_pro, depth_map, teacher, pointmap or prompt-refiner.
        file: of the weights.
        label: for people.
        size: of our own networks, or None where the file itself says it.
        fingerprint: changes with the file.
    """

    architecture: str
    file: Path
    label: str
    size: str | None
    fingerprint: tuple[str, int, int]

    @property
    def needs_prompt(self) -> bool:
        """Whether it cannot do without sparse metric depth."""
        return self.architecture in PROMPTED


def find_weights(config: DepthConfig, announce: Callable[[str], None]) -> Weights:
    """Find (for published ones: download) the weights and see which network they are for.

    Raises:
        InputError: nothing was named, no such file, damaged, of none of the networks, or options that do not fit.
    """
    if not config.model:
        raise InputError(
            "no weights are shipped with relief3d yet",
            remedy="name a file of weights or a published network with --model (relief3d models list)",
        )
    path = Path(config.model)
    if config.model in CATALOGUE:
        known = CATALOGUE[config.model].architecture
        if known not in (*PYRAMIDS, "pointmap"):
            raise InputError(
                f"{config.model} is a {known} network, not one for metric depth of single pictures"
            )
        try:
            path = fetch(config.model, announce=announce)
        except RunError as exc:
            # Nothing has been started: without weights the request itself cannot be served.
            raise InputError(exc.message, remedy=exc.remedy) from exc
    elif not path.is_file():
        raise InputError(
            f"--model '{config.model}' is no file and no published network",
            remedy="relief3d models list shows the published ones",
        )
    header = read_header(path)
    card = _card(path) if config.model not in CATALOGUE else {}
    architecture = architecture_of(path, header)
    if architecture is None and _is_refiner(header):
        architecture = REFINER
    if architecture not in (*PYRAMIDS, "pointmap", REFINER):
        raise InputError(
            "holds weights of no network for metric depth", path=path, remedy=f"known are {', '.join(_KNOWN)}"
        )
    size = config.model_size or _text(card, "size")
    if architecture == REFINER:
        size = size or _refiner_size(header, path)
    _check_options(config, architecture)
    stat = path.stat()
    label = config.model if config.model in CATALOGUE else path.name
    return Weights(architecture, path, label, size, (path.name, stat.st_size, stat.st_mtime_ns))


_KNOWN = (*PYRAMIDS, "pointmap", REFINER)


def _card(weights: Path) -> Mapping[str, Any]:
    """What the training says about weights of ours; empty without the file, or when it is about another file."""
    path = weights.with_name(_CARD)
    if not path.is_file():
        return {}
    card = read_json_object(path)
    return card if card.get("file", weights.name) == weights.name else {}


def _text(card: Mapping[str, Any], key: str) -> str | None:
    value = card.get(key)
    return value if isinstance(value, str) else None


def _bare(header: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the network itself, whether it was saved alone or inside its wrapper."""
    return {k.removeprefix("net."): v for k, v in header.items()}


def _is_refiner(header: Mapping[str, Tensor]) -> bool:
    return {"features.enter.weight", "judge.0.weight", "to_key.weight"} <= set(_bare(header))


def _refiner_size(header: Mapping[str, Tensor], path: Path) -> str:
    """The named size whose shapes are those of the file."""
    shapes = {k: tuple(v.shape) for k, v in _bare(header).items()}
    for size in _REFINER_SIZES:
        with torch.device("meta"):
            state = PromptRefiner(refiner_config(size)).state_dict()
        if {k: tuple(v.shape) for k, v in state.items()} == shapes:
            return size
    raise InputError(
        f"holds a {REFINER} of none of the named sizes", path=path, remedy="train one of a named size"
    )


def _check_options(config: DepthConfig, architecture: str) -> None:
    for option, value, kinds in (
        ("--side", config.side, (REFINER,)),
        ("--pixels", config.pixels, PYRAMIDS),
        ("--tokens", config.tokens, ("pointmap",)),
    ):
        if value is None:
            continue
        if architecture not in kinds:
            raise InputError(f"{option} is not for a {architecture} network", remedy=f"leave {option} away")
        if not value > 0:
            raise InputError(f"{option} must be positive, got {value}")
    if config.prompt is not None and architecture not in PROMPTED:
        raise InputError(
            f"a {architecture} network takes no prompt",
            remedy=f"leave --prompt away, or name weights of a {' or '.join(PROMPTED)}",
        )
    if config.prompt is None and architecture in PROMPTED:
        raise InputError(
            f"a {architecture} network needs sparse metric depth", remedy="give it with --prompt"
        )


@dataclass(frozen=True)
class Estimator:
    """A network on its device; one picture at a time, so that memory does not grow with their number."""

    weights: Weights
    network: MetricModel | PromptedModel | PromptedDepth | PointMapModel
    device: torch.device
    side: int = SIDE

    @torch.no_grad()
    def estimate(self, image: Tensor, focal: Focal, prompt: MetricPrompt | None) -> MetricPrediction:
        """Depth of one picture (3, H, W); a focal length that is guessed is marked, the caller warns.

        Raises:
            InputError: a picture or prompt that cannot be used.
        """
        images = image[None].to(self.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GuessedFocalWarning)
            if isinstance(self.network, PromptedDepth):
                assert prompt is not None
                return self.network.predict_sparse(images, [prompt.depth], focal, side=self.side)
            if self.weights.needs_prompt:
                assert prompt is not None
                condition = prepare_prompt(prompt).condition[None].to(self.device)
                return cast(PromptedModel, self.network).predict(images, condition, focal)
            return cast(MetricModel, self.network).predict(images, focal)


def open_estimator(
    weights: Weights, config: DepthConfig, device: torch.device, announce: Callable[[str], None]
) -> Estimator:
    """Load the weights.

    Raises:
        InputError: names or shapes do not fit.
    """
    kind, size = weights.architecture, weights.size
    if kind == REFINER:
        assert size is not None
        refiner = PromptedDepth(refiner_config(size))
        load_weights(refiner.net, _bare(read_state(weights.file)), source=weights.file)
        return Estimator(weights, refiner.to(device).eval(), device, config.side or SIDE)
    if kind == "pointmap":
        pointmap = load_pointmap(weights.file, device=device, announce=announce)
        return Estimator(weights, PointMapModel(pointmap, tokens=config.tokens), device)
    sizes: Mapping[str, Callable[[Any], Any]] = {
        "depth_pro": depth_pro_config,
        "depth_map": depth_map_config,
        "teacher": teacher_config,
    }
    own = None if size is None else sizes[kind](size)
    pyramid = load_pyramid(weights.file, config=own, device=device, announce=announce)
    options = PyramidOptions(pixels=config.pixels or 1.0)
    if device.type == "cpu":
        options = options.low_memory()
    return Estimator(weights, wrap_metric(pyramid, options), device)
