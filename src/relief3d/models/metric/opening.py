"""Any network for metric depth of single pictures, by the name of a packaged or published one or by a file of weights.

One way in for everything that uses such networks: ``relief3d depth``, ``reconstruct``, ``label``, ``eval`` and Python.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.data.metric_prompt import MetricPrompt
from relief3d.data.prompt_preparation import PreparedPrompt, prepare_prompt
from relief3d.io.json_file import read_json_object
from relief3d.models.catalogue import CATALOGUE, architecture_of, fetch
from relief3d.models.checkpoints import file_digest, read_config, read_header
from relief3d.models.metric import pointmap_configs, pointmap_loading, pyramid_loading, refiner_loading
from relief3d.models.metric.inference import PyramidOptions, wrap_metric
from relief3d.models.metric.interface import (
    Focal,
    GuessedFocalWarning,
    MetricModel,
    MetricPrediction,
    PromptedModel,
)
from relief3d.models.metric.networks import PyramidNetwork
from relief3d.models.metric.pointmap import PointMap, PointMapConfig
from relief3d.models.metric.pointmap_configs import Size as PointMapSize
from relief3d.models.metric.pointmap_configs import pointmap_config
from relief3d.models.metric.pointmap_infer import PointMapModel
from relief3d.models.metric.pointmap_loading import load_pointmap
from relief3d.models.metric.prompted import SIDE, PromptedDepth
from relief3d.models.metric.pyramid_loading import load_pyramid
from relief3d.models.metric.refiner import PromptRefiner, refiner_config
from relief3d.models.metric.refiner_loading import load_refiner, size_of
from relief3d.models.metric.sizes import depth_map_config, depth_pro_config, teacher_config
from relief3d.models.packaged import CARD, PURPOSES, packaged, packaged_names
from relief3d.models.published import cached_file, to_console
from relief3d.models.shards import is_index, read_index

REFINER = "prompt-refiner"
POINTMAP = "pointmap"
PYRAMIDS = ("depth_pro", "depth_map", "teacher")
PROMPTED = ("teacher", REFINER)
KNOWN = (*PYRAMIDS, POINTMAP, REFINER)
_CONFIG_KEYS = {REFINER: refiner_loading.CONFIG_KEY, POINTMAP: pointmap_loading.CONFIG_KEY}


@dataclass(frozen=True)
class MetricWeights:
    """Which network weights are for, known from their header.

    Attributes:
        architecture: depth_pro, depth_map, teacher, pointmap or prompt-refiner.
        file: of the weights, or the index of their shards.
        label: for people.
        size: of our own networks, or None where the file itself says it.
        fingerprint: changes with the weights.
    """

    architecture: str
    file: Path
    label: str
    size: str | None
    fingerprint: tuple[str, int | str, int]

    @property
    def needs_prompt(self) -> bool:
        """Whether it cannot do without sparse metric depth."""
        return self.architecture in PROMPTED

    @property
    def digest(self) -> str:
        """SHA-256 of the file of weights, or of its shards' one after the other."""
        if not is_index(self.file):
            return file_digest(self.file)
        return ",".join(file_digest(p) for p in sorted(read_index(self.file)))


@dataclass(frozen=True)
class MetricRunOptions:
    """How a network is run; what is not for it must be None.

    Attributes:
        side: longer side in pixels at which a prompt-refiner works.
        pixels: that a pyramid network sees, relative to its own resolution.
        tokens: of a point-map network.
        masked: a point-map network's depth is 0 where it sees no surface; otherwise its raw values stay.
    """

    side: int | None = None
    pixels: float | None = None
    tokens: int | None = None
    masked: bool = True


def check_options(options: MetricRunOptions, architecture: str, prefix: str = "") -> None:
    """Refuse options that a network does not have, and values that say nothing.

    Args:
        options: of the run.
        architecture: of the network.
        prefix: of the options' names, for people.

    Raises:
        InputError: naming the option.
    """
    for name, value, kinds in (
        ("side", options.side, (REFINER,)),
        ("pixels", options.pixels, PYRAMIDS),
        ("tokens", options.tokens, (POINTMAP,)),
    ):
        if value is None:
            continue
        if architecture not in kinds:
            raise InputError(
                f"{prefix}{name} is not for a {architecture} network", remedy=f"leave {prefix}{name} away"
            )
        if not 0 < value < math.inf:
            raise InputError(f"{prefix}{name} must be positive, got {value}")


def find_metric(
    name: str,
    *,
    size: str | None = None,
    download: bool = True,
    announce: Callable[[str], None] = to_console,
) -> MetricWeights:
    """Find the weights that a name stands for and see which network they are for.

    Args:
        name: of a packaged network, of a published one, or a file.
        size: of our own network, where neither the file nor the ``model.json`` beside it says so.
        download: fetch published weights; otherwise they must be on this machine.
        announce: see :func:`~relief3d.models.published.fetch_published`.

    Raises:
        InputError: no such network, damaged weights, or of no network for metric depth.
        RunError: see :func:`~relief3d.models.published.fetch_published`.
    """
    if name in PURPOSES or name in packaged_names():
        found = packaged(name)
        if found.architecture not in KNOWN:
            raise InputError(f"{name} is a {found.architecture} network, not one for metric depth")
        digest = "".join(str(s["sha256"]) for s in found.card["shards"])
        return MetricWeights(found.architecture, found.index, name, None, (name, digest, found.bytes))
    if name in CATALOGUE:
        path = _published(name, download, announce)
    else:
        path = Path(name)
        if not path.is_file():
            raise InputError(
                f"'{name}' is no file and no packaged or published network",
                remedy="relief3d models list shows what there is",
            )
    header = read_header(path)
    card = {} if name in CATALOGUE else _card(path)
    architecture = architecture_of(path, header)
    if architecture not in KNOWN:
        raise InputError(
            "holds weights of no network for metric depth", path=path, remedy=f"known are {', '.join(KNOWN)}"
        )
    said = card.get("size")
    size = size or (said if isinstance(said, str) else None)
    if architecture == REFINER and size is None:
        size = size_of(header)
    stat = path.stat()
    label = name if name in CATALOGUE else path.name
    return MetricWeights(architecture, path, label, size, (path.name, stat.st_size, stat.st_mtime_ns))


def _published(name: str, download: bool, announce: Callable[[str], None]) -> Path:
    known = CATALOGUE[name]
    if known.architecture not in KNOWN:
        raise InputError(
            f"{name} is a {known.architecture} network, not one for metric depth of single pictures"
        )
    if download:
        return fetch(name, announce=announce)
    found = cached_file(known)
    if found is None:
        raise InputError(
            f"the weights of '{name}' are not on this machine", remedy="set download=true, or give a file"
        )
    return found


def _card(weights: Path) -> Mapping[str, Any]:
    """What the training says about weights of ours; empty without the file, or when it is about another file."""
    path = weights.with_name(CARD)
    if not path.is_file():
        return {}
    card = read_json_object(path)
    return card if card.get("file", weights.name) == weights.name else {}


@dataclass(frozen=True)
class MetricEstimator:
    """A network on its device; one picture at a time, so that memory does not grow with their number."""

    weights: MetricWeights
    network: MetricModel | PromptedModel | PromptedDepth | PointMapModel
    device: torch.device
    side: int = SIDE

    @property
    def module(self) -> nn.Module:
        """The network itself, whose names are those of its files."""
        wrapped = (
            self.network.net if isinstance(self.network, PromptedDepth) else cast(Any, self.network).network
        )
        return cast(nn.Module, wrapped)

    @torch.no_grad()
    def estimate(
        self, image: Tensor, focal: Focal, prompt: MetricPrompt | PreparedPrompt | None = None
    ) -> MetricPrediction:
        """Depth of one picture; a focal length that is guessed is marked, the caller warns.

        Args:
            image: (3, H, W) RGB in [0, 1].
            focal: of the one picture.
            prompt: sparse metric depth of the picture's size, for a network that needs it; a teacher also takes one
                that was prepared under the guidance of a prior (:func:`with_prior`).

        Raises:
            InputError: a picture or prompt that cannot be used, or a network that needs a prompt and gets none.
        """
        if isinstance(prompt, MetricPrompt) and prompt.size != tuple(image.shape[-2:]):
            raise InputError(
                f"the prompt has {prompt.size[1]}x{prompt.size[0]} pixels, the picture "
                f"{image.shape[-1]}x{image.shape[-2]}",
                remedy="bring it to the picture's size with at_size, if it shows the same view",
            )
        images = image[None].to(self.device)
        if self.weights.needs_prompt and prompt is None:
            raise InputError(
                f"a {self.weights.architecture} network needs sparse metric depth", remedy="give a prompt"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GuessedFocalWarning)
            if isinstance(self.network, PromptedDepth):
                if not isinstance(prompt, MetricPrompt):
                    raise InputError(f"a {REFINER} network takes no prior", remedy="leave the prior away")
                return self.network.predict_sparse(images, [prompt.depth], focal, side=self.side)
            if self.weights.needs_prompt:
                assert prompt is not None
                ready = prompt if isinstance(prompt, PreparedPrompt) else prepare_prompt(prompt)
                condition = ready.condition[None].to(self.device)
                return cast(PromptedModel, self.network).predict(images, condition, focal)
            return cast(MetricModel, self.network).predict(images, focal)


def with_prior(prompt: MetricPrompt, prior: MetricPrediction) -> PreparedPrompt:
    """A prompt filled under the guidance of what another network says about the same picture, for a teacher.

    Args:
        prompt: sparse metric depth (H, W).
        prior: of one picture of that size.

    Raises:
        InputError: see :func:`~relief3d.data.prompt_preparation.prepare_prompt`; also where the two differ by a unit.
    """
    depth = prior.depth_map(0)
    disparity = torch.where(depth.valid, 1 / depth.values.clamp_min(1e-6), 0.0).cpu().float()
    return prepare_prompt(prompt, disparity, metric_prior="guessed" not in prior.focal_sources)


def open_metric(
    weights: MetricWeights,
    device: torch.device,
    options: MetricRunOptions = MetricRunOptions(),
    *,
    announce: Callable[[str], None] = to_console,
) -> MetricEstimator:
    """Load the weights.

    Raises:
        InputError: names or shapes do not fit; or an option that the network does not have, or out of range.
    """
    kind = weights.architecture
    check_options(options, kind)
    # A size only names the usual configuration: the file's own may have other skips or another injection.
    carried = read_config(weights.file, _CONFIG_KEYS.get(kind, pyramid_loading.CONFIG_KEY)) is not None
    size = None if carried else weights.size
    if kind == REFINER:
        config = None if size is None else refiner_config(size)
        refiner = load_refiner(weights.file, config=config, device=device)
        return MetricEstimator(weights, refiner, device, options.side or SIDE)
    sizes: Mapping[str, Callable[[Any], Any]] = {
        "depth_pro": depth_pro_config,
        "depth_map": depth_map_config,
        "teacher": teacher_config,
    }
    if kind == POINTMAP:
        pointmap = load_pointmap(
            weights.file, config=_pointmap_config(weights, size), device=device, announce=announce
        )
        return MetricEstimator(
            weights, PointMapModel(pointmap, tokens=options.tokens, masked=options.masked), device
        )
    own = None if size is None else sizes[kind](size)
    pyramid = load_pyramid(weights.file, config=own, device=device, announce=announce)
    running = PyramidOptions(pixels=options.pixels or 1.0)
    if device.type == "cpu":
        running = running.low_memory()
    return MetricEstimator(weights, wrap_metric(pyramid, running), device)


def _pointmap_config(weights: MetricWeights, size: str | None) -> PointMapConfig | None:
    """Of a file that carries none, as a training run of ours may have written; None: the file's own."""
    if size is None:
        return None
    if size not in get_args(PointMapSize):
        raise InputError(f"there is no point-map network of size '{size}'", path=weights.file)
    names = read_header(weights.file)
    heads = {k: any(n.startswith(f"{k}_head.") for n in names) for k in ("normal", "mask", "scale")}
    config = pointmap_config(cast(PointMapSize, size), normals=heads["normal"], mask=heads["mask"])
    tokens = _card(weights.file).get("tokens")
    if isinstance(tokens, list) and len(tokens) == 2:
        config = replace(config, tokens=(int(tokens[0]), int(tokens[1])))
    return config if heads["scale"] else replace(config, scale=None)


def configuration(network: nn.Module) -> tuple[str, str, dict[str, Any]]:
    """What a file of a network's weights must carry, so that it can be built again.

    Returns:
        Architecture, key of the entry, and configuration in JSON types.

    Raises:
        InputError: it is no network for metric depth.
    """
    inner = network.net if isinstance(network, PromptedDepth) else network
    if isinstance(inner, PromptRefiner):
        return REFINER, refiner_loading.CONFIG_KEY, refiner_loading.config_to_dict(inner.config)
    if isinstance(inner, PointMap):
        return POINTMAP, pointmap_loading.CONFIG_KEY, pointmap_configs.config_to_dict(inner.config)
    if isinstance(inner, PyramidNetwork):
        stored = pyramid_loading.config_to_dict(inner.config)
        return str(stored["network"]), pyramid_loading.CONFIG_KEY, stored
    raise InputError(f"{type(inner).__name__} is no network for metric depth")
