"""From the name that a user gave to a network that is ready to predict, with what must be said about it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError, RunError
from relief3d.core.seeding import derive_seed
from relief3d.models.multiview.interface import InferenceOptions, MultiViewModel, autocast_dtype, wrap
from relief3d.models.multiview.loading import PUBLISHED, fetch, identify_file, load_multiview
from relief3d.models.multiview.sizes import build_network, network_for_file
from relief3d.pipelines.multiview.config import ARCHITECTURE_NAMES, UNTRAINED, MultiviewConfig

DEFAULT_WEIGHTS: Mapping[str, str] = {
    "vggt": "facebook/VGGT-1B",
    "pi3": "yyfz233/Pi3",
    "pi3x": "yyfz233/Pi3X",
}
"""Published weights of a bare architecture name."""


@dataclass(frozen=True)
class Source:
    """Where a network comes from, known before anything large is read.

    Attributes:
        architecture: vggt, pi3, pi3x or reliev3r; None: the file will say.
        label: for people and ``scene.json``.
        published: name of published weights, or None.
        file: of weights, or None.
        untrained: random weights.
    """

    architecture: str | None
    label: str
    published: str | None = None
    file: Path | None = None
    untrained: bool = False


def find_source(config: MultiviewConfig) -> Source:
    """What ``--model`` names.

    Raises:
        InputError: neither a network, nor published, nor a file; or options that contradict it.
    """
    name, size = config.model, config.model_size
    if config.untrained:
        return Source(name, f"{UNTRAINED} {name} {size}", untrained=True)
    if config.weights is not None:
        if not config.weights.is_file():
            raise InputError(
                "there is no such file of weights", path=config.weights, remedy="check --weights"
            )
        return Source(name, f"{name} {size} ({config.weights.name})", file=config.weights)
    published = DEFAULT_WEIGHTS.get(name, name if name in PUBLISHED else None)
    if published is not None:
        if size != "full":
            raise InputError(
                f"{published} is published at full size, not {size}",
                remedy="drop --model-size, or name a file with --weights",
            )
        return Source(PUBLISHED[published].architecture, published, published=published)
    if name in ARCHITECTURE_NAMES:
        raise InputError(f"there are no published weights of {name}", remedy="name a file with --weights")
    if not Path(name).is_file():
        raise InputError(
            f"--model '{name}' is no network, no published name and no file",
            remedy=f"known are {', '.join((*ARCHITECTURE_NAMES, *PUBLISHED))}",
        )
    return Source(None, Path(name).name, file=Path(name))


def check_precision(config: MultiviewConfig, device: str) -> None:
    """Refuse float16 on a CPU before any work.

    Raises:
        InputError: see :func:`relief3d.models.multiview.interface.autocast_dtype`.
    """
    if config.precision != "auto":
        autocast_dtype(config.precision, resolve_device(device))


def check_weights(config: MultiviewConfig, announce: Callable[[str], None]) -> Source:
    """Find (for published weights: download) the weights, and see that the file belongs to the network named.

    Raises:
        InputError: no such file, damaged, of another architecture, or published weights that cannot be fetched.
    """
    source = find_source(config)
    if source.published is not None:
        try:
            return replace(source, file=fetch(source.published, announce=announce))
        except RunError as exc:
            # Nothing has been started: without weights the request itself cannot be served.
            raise InputError(exc.message, remedy=exc.remedy) from exc
    if source.file is not None:
        found, _ = identify_file(source.file)
        if source.architecture not in (None, found):
            raise InputError(
                f"these are weights of {found}, not of {source.architecture}",
                path=source.file,
                remedy=f"use --model {found}",
            )
        return replace(source, architecture=found)
    return source


def open_network(
    config: MultiviewConfig,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    options: InferenceOptions | None = None,
    announce: Callable[[str], None],
) -> tuple[MultiViewModel, Source]:
    """The network that a user named, in evaluation mode on its device.

    Args:
        config: see :class:`MultiviewConfig`.
        device: where it runs.
        seed: of random weights.
        options: of inference.
        announce: gets licence, size and source before a download.

    Raises:
        InputError: see :func:`check_weights`; or names or shapes of the weights do not fit.
    """
    source = check_weights(config, announce)
    network: nn.Module
    if source.untrained:
        assert source.architecture is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "untrained", config.model, config.model_size))
            network = build_network(source.architecture, config.model_size).to(device).eval()
    else:
        assert source.file is not None
        # By file, since published weights have been fetched, announced and verified above.
        own = None if source.published else network_for_file(source.file, config.model_size)
        network = load_multiview(source.file, network=own, device=device, announce=announce)
    return wrap(network, options), source


def source_and_size(config: MultiviewConfig) -> tuple[Source, int]:
    """What ``--model`` names, with its number of values; nothing is built, and of files only the header is read.

    Raises:
        InputError: see :func:`find_source`; or the file is damaged or of none of the networks.
    """
    source = find_source(config)
    if source.published is not None:
        return source, round(PUBLISHED[source.published].parameters * 1e6)
    if source.file is not None:
        found, header = identify_file(source.file)
        return replace(source, architecture=found), sum(v.numel() for v in header.values())
    assert source.architecture is not None
    with torch.device("meta"):
        network = build_network(source.architecture, config.model_size)
    return source, sum(p.numel() for p in network.parameters())


def parameters_of(model: MultiViewModel) -> int:
    """Number of values of a network that is at hand; 0 for a model that is none."""
    inner = getattr(model, "network", None)
    return sum(p.numel() for p in inner.parameters()) if isinstance(inner, nn.Module) else 0


def weights_digest(model: object) -> str:
    """Fingerprint of everything that a network holds; empty for a model that is none.

    Buffers count too, those that no checkpoint holds among them: they change what the network says.
    """
    inner = model if isinstance(model, nn.Module) else getattr(model, "network", None)
    if not isinstance(inner, nn.Module):
        return ""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in (*inner.named_parameters(), *inner.named_buffers()):
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
