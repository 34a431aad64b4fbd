"""Published multi-view checkpoints and local files to networks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from relief3d.core.errors import InputError, RunError
from relief3d.core.optional import require
from relief3d.models.checkpoints import load_weights, read_state
from relief3d.models.multiview.pi3 import Pi3
from relief3d.models.multiview.pi3x import Pi3X
from relief3d.models.multiview.reliev3r import Reliev3rNet
from relief3d.models.multiview.vggt import Head, Vggt, VggtConfig


@dataclass(frozen=True)
class PublishedModel:
    """A checkpoint that others publish.

    Attributes:
        name: repository on the hub.
        architecture: key of :data:`ARCHITECTURES`.
        file: of the weights in the repository.
        licence: as stated by the publisher.
        parameters: millions.
        download_gb: size of the file.
        memory_gb: of the weights in float32.
        source: paper.
        optional: beginnings of names that the file may lack.
    """

    name: str
    architecture: str
    file: str
    licence: str
    parameters: float
    download_gb: float
    memory_gb: float
    source: str
    optional: tuple[str, ...] = ()


PUBLISHED: Mapping[str, PublishedModel] = {
    m.name: m
    for m in (
        PublishedModel(
            "facebook/VGGT-1B", "vggt", "model.safetensors", "non-commercial (see the repository)",
            1256.54, 5.03, 4.7, "Wang et al., VGGT, CVPR 2025",
        ),
        PublishedModel(
            "facebook/VGGT-1B-Commercial", "vggt", "vggt_1B_commercial.pt", "commercial (see the repository)",
            1256.54, 5.03, 4.7, "Wang et al., VGGT, CVPR 2025",
        ),
        PublishedModel(
            "Changearthmore/SelfEvoVGGT", "vggt", "model.safetensors", "see the repository",
            1256.54, 5.03, 4.7, "SelfEvo, arXiv 2604.08532", ("point_head.", "track_head."),
        ),
        PublishedModel(
            "yyfz233/Pi3", "pi3", "model.safetensors", "weights CC BY-NC 4.0", 958.70, 3.83, 3.6,
            "Wang et al., pi3, arXiv 2507.13347",
        ),
        PublishedModel(
            "yyfz233/Pi3X", "pi3x", "model.safetensors", "weights CC BY-NC 4.0", 1360.03, 5.44, 5.1,
            "pi3, engineering update of December 2025",
        ),
    )
}  # fmt: skip

ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = {
    "vggt": Vggt,
    "pi3": Pi3,
    "pi3x": Pi3X,
    "reliev3r": Reliev3rNet,
}
_SIGNATURES = (
    ("vggt", ("aggregator.camera_token",)),
    ("pi3x", ("metric_token", "point_head.output_block.0.0.weight")),
    ("pi3", ("point_head.proj.weight", "register_token")),
    ("reliev3r", ("depth_head.proj.weight", "register_token")),
)


def identify(state: Mapping[str, Tensor]) -> str | None:
    """Which architecture the names of a state belong to; None when none fits."""
    for name, keys in _SIGNATURES:
        if all(k in state for k in keys):
            return name
    return None


def describe(model: PublishedModel) -> str:
    """What a user should know before a download."""
    return (
        f"{model.name}: {model.architecture}, {model.parameters:.0f} M parameters, "
        f"download {model.download_gb:.1f} GB, {model.memory_gb:.1f} GB in memory (float32); "
        f"licence: {model.licence}; source: {model.source}"
    )


def describe_file(path: Path) -> str:
    """What a file of weights holds.

    Raises:
        InputError: see :func:`read_state`; or it belongs to none of the networks.
    """
    if not path.exists() and str(path) not in PUBLISHED:
        _published(str(path))
    state = read_state(path)
    found = identify(state)
    if found is None:
        raise InputError(
            "holds weights of none of the multi-view networks",
            path=path,
            remedy=f"known are {', '.join(ARCHITECTURES)}",
        )
    count = sum(v.numel() for v in state.values())
    size = sum(v.numel() * v.element_size() for v in state.values())
    kinds = ", ".join(sorted({str(v.dtype).removeprefix("torch.") for v in state.values()}))
    return f"{path.name}: {found}, {len(state)} tensors, {count / 1e6:.2f} M values, {size / 1e9:.2f} GB ({kinds})"


def _to_console(text: str) -> None:
    sys.stderr.write(text + "\n")


def fetch(name: str, *, announce: Callable[[str], None] = _to_console) -> Path:
    """The weights of a published model, downloaded once to the hub's cache.

    ``HF_HUB_OFFLINE``, ``HF_ENDPOINT`` and ``HF_HOME`` are honoured, since huggingface_hub does the work; it also
    verifies what it downloads.

    Args:
        name: key of :data:`PUBLISHED`.
        announce: gets licence, size, memory and source before anything is downloaded.

    Raises:
        InputError: unknown name, or huggingface_hub is not installed.
        RunError: no network, or not in the cache while offline.
    """
    model = _published(name)
    announce(describe(model))
    hub = require("huggingface_hub", extra="hub", purpose="downloading weights")
    try:
        return Path(hub.hf_hub_download(model.name, model.file))
    except Exception as exc:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
        remedy = (
            "unset HF_HUB_OFFLINE or give a local file"
            if offline
            else "check the network or give a local file"
        )
        raise RunError(
            f"the weights of {name} could not be fetched ({type(exc).__name__})", remedy=remedy
        ) from exc


def _published(name: str) -> PublishedModel:
    if name not in PUBLISHED:
        raise InputError(
            f"there is no published model '{name}'",
            remedy=f"known are {', '.join(PUBLISHED)}; or give a file",
        )
    return PUBLISHED[name]


def load_multiview(
    source: str | Path,
    *,
    network: nn.Module | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    announce: Callable[[str], None] = _to_console,
) -> nn.Module:
    """A network with weights, in evaluation mode.

    Args:
        source: name of a published model, or a file of weights.
        network: to be filled, for other than full size; None builds the full size of what the file holds.
        device: of the result.
        dtype: of the result.
        announce: see :func:`fetch`.

    Raises:
        InputError: the file belongs to another architecture (says which), or names do not fit.
        RunError: see :func:`fetch`.
    """
    known = PUBLISHED.get(str(source))
    path = fetch(str(source), announce=announce) if known else Path(source)
    state = read_state(path)
    found = identify(state)
    if found is None:
        raise InputError(
            "holds weights of none of the multi-view networks",
            path=path,
            remedy=f"known are {', '.join(ARCHITECTURES)}",
        )
    own = network is None
    if network is None:
        network = _full_size(found, state)
    elif not isinstance(network, _CLASSES[found]):
        raise InputError(
            f"these are weights of {found}, not of {type(network).__name__}",
            path=path,
            remedy="choose the other model",
        )
    load_weights(network, state, optional=known.optional if known else (), source=path, assign=own)
    if own:
        _refill_constants(network)
    return network.to(device=device, dtype=dtype).eval()


_CLASSES: Mapping[str, type[nn.Module]] = {"vggt": Vggt, "pi3": Pi3, "pi3x": Pi3X, "reliev3r": Reliev3rNet}


_HEAD_PREFIXES: tuple[tuple[Head, str], ...] = (
    ("camera", "camera_head."),
    ("depth", "depth_head."),
    ("points", "point_head."),
    ("tracks", "track_head."),
)


def _full_size(architecture: str, state: Mapping[str, Tensor]) -> nn.Module:
    """The published size without values; a VGGT gets only the heads that the file has."""
    with torch.device("meta"):
        if architecture == "vggt":
            heads = tuple(h for h, prefix in _HEAD_PREFIXES if any(k.startswith(prefix) for k in state))
            return Vggt(replace(VggtConfig(), heads=heads))
        return ARCHITECTURES[architecture]()


def _refill_constants(network: nn.Module) -> None:
    """Buffers that are not part of the state lost their values on the meta device."""
    fresh = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
    for module in network.modules():
        for name, values in fresh.items():
            if name in module._buffers:
                kept = name not in module._non_persistent_buffers_set
                module.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=kept)
