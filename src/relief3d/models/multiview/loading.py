"""Published multi-view checkpoints and local files to networks."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from relief3d.core.errors import InputError, RunError
from relief3d.core.optional import require
from relief3d.models.checkpoints import load_weights, read_header, read_state, verify_file
from relief3d.models.multiview.aggregator import IMAGE_MEAN, IMAGE_STD
from relief3d.models.multiview.pi3 import Pi3
from relief3d.models.multiview.pi3x import Pi3X
from relief3d.models.multiview.reliev3r import Reliev3rConfig, Reliev3rNet
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
        sha256: digest of the file; None: not known here, downloads are compared with the digest that the hub states.
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
    sha256: str | None = None


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


def identify_file(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The architecture that a file of weights belongs to, and its header (:func:`read_header`).

    Raises:
        InputError: see :func:`read_state`; or it belongs to none of the networks.
    """
    header = read_header(path)
    return _known_architecture(header, path), header


def _known_architecture(state: Mapping[str, Tensor], path: Path) -> str:
    found = identify(state)
    if found is None:
        raise InputError(
            "holds weights of none of the multi-view networks",
            path=path,
            remedy=f"known are {', '.join(ARCHITECTURES)}",
        )
    return found


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
    found, state = identify_file(path)
    count = sum(v.numel() for v in state.values())
    size = sum(v.numel() * v.element_size() for v in state.values())
    kinds = ", ".join(sorted({str(v.dtype).removeprefix("torch.") for v in state.values()}))
    return f"{path.name}: {found}, {len(state)} tensors, {count / 1e6:.2f} M values, {size / 1e9:.2f} GB ({kinds})"


def _to_console(text: str) -> None:
    sys.stderr.write(text + "\n")


def fetch(name: str, *, announce: Callable[[str], None] = _to_console) -> Path:
    """The weights of a published model, downloaded once to the hub's cache.

    ``HF_HUB_OFFLINE``, ``HF_ENDPOINT`` and ``HF_HOME`` are honoured, since huggingface_hub does the work. It compares
    sizes only, so the SHA-256 is compared here: with that in :data:`PUBLISHED` if it is known, else with the one that
    the hub states for the file. It is computed once, and again after a change of the file.

    Args:
        name: key of :data:`PUBLISHED`.
        announce: gets licence, size, memory and source before anything is downloaded, and whether it is verified.

    Raises:
        InputError: unknown name, or huggingface_hub is not installed.
        RunError: no network, not in the cache while offline, or a file with another checksum.
    """
    model = _published(name)
    announce(describe(model))
    hub = require("huggingface_hub", extra="hub", purpose="downloading weights")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    try:
        path = Path(hub.hf_hub_download(model.name, model.file))
    except Exception as exc:
        remedy = (
            "unset HF_HUB_OFFLINE or give a local file"
            if offline
            else "check the network or give a local file"
        )
        raise RunError(
            f"the weights of {name} could not be fetched ({type(exc).__name__})", remedy=remedy
        ) from exc
    blob = _cached_blob(path)
    digest = model.sha256 or (blob.name if blob else _stated_digest(hub, model, path, offline))
    if digest is None:
        announce(f"{path.name} could not be verified: neither the cache nor the hub states its SHA-256")
    else:
        verify_file(blob or path, digest, announce=announce)
    return path


def _cached_blob(path: Path) -> Path | None:
    """What a file of the hub's cache links to, if that is named by its SHA-256, as large files are.

    Only the first link counts: it may lead on to a store that is shared between repositories, whose names are hashes of
    another kind.
    """
    if not path.is_symlink():
        return None
    blob = path.parent / path.readlink()
    return blob if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) else None


def _stated_digest(hub: ModuleType, model: PublishedModel, path: Path, offline: bool) -> str | None:
    """SHA-256 of a file according to the hub, which gives it as the etag of large files."""
    if offline:
        return None
    try:
        # Of the revision that was downloaded: .../snapshots/REVISION/FILE.
        revision = path.parent.name if path.parent.parent.name == "snapshots" else None
        url = hub.hf_hub_url(model.name, model.file, revision=revision)
        etag = hub.get_hf_file_metadata(url).etag
    except Exception as exc:
        raise RunError(
            f"the checksum of {model.name} could not be fetched ({type(exc).__name__})",
            remedy="check the network or give a local file",
        ) from exc
    return etag if isinstance(etag, str) and _SHA256.fullmatch(etag) else None


_SHA256 = re.compile("[0-9a-f]{64}")


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
    found = _known_architecture(state, path)
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
        _refuse_holes(network, path)
    return network.to(device=device, dtype=dtype).eval()


_CLASSES: Mapping[str, type[nn.Module]] = {"vggt": Vggt, "pi3": Pi3, "pi3x": Pi3X, "reliev3r": Reliev3rNet}


_HEAD_PREFIXES: tuple[tuple[Head, str], ...] = (
    ("camera", "camera_head."),
    ("depth", "depth_head."),
    ("points", "point_head."),
    ("tracks", "track_head."),
)


def heads_in(state: Mapping[str, Tensor]) -> tuple[Head, ...]:
    """Heads of a VGGT that a state has values for."""
    return tuple(h for h, prefix in _HEAD_PREFIXES if any(k.startswith(prefix) for k in state))


def has_fov_head(state: Mapping[str, Tensor]) -> bool:
    """Whether a state of a Reliev3R network has the field-of-view head."""
    return any(k.startswith("fov_head.") for k in state)


def _full_size(architecture: str, state: Mapping[str, Tensor]) -> nn.Module:
    """The published size without values; heads are those that the file has."""
    with torch.device("meta"):
        if architecture == "vggt":
            return Vggt(replace(VggtConfig(), heads=heads_in(state)))
        if architecture == "reliev3r":
            return Reliev3rNet(replace(Reliev3rConfig(), fov_head=has_fov_head(state)))
        return ARCHITECTURES[architecture]()


def _refill_constants(network: nn.Module) -> None:
    """Give constants that the file does not have, and that so lost their values on the meta device, theirs again."""
    for module in network.modules():
        for name, values in (("image_mean", IMAGE_MEAN), ("image_std", IMAGE_STD)):
            buffer = module._buffers.get(name)
            if buffer is not None and buffer.is_meta:
                kept = name not in module._non_persistent_buffers_set
                module.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=kept)


def _refuse_holes(network: nn.Module, path: Path) -> None:
    """A part may be absent, but not half of it: nothing may be left without values."""
    holes = [k for k, v in (*network.named_parameters(), *network.named_buffers()) if v.is_meta]
    if holes:
        raise InputError(
            f"lacks {len(holes)} values of parts that it has otherwise: {', '.join(holes[:6])}"
            f"{' ...' if len(holes) > 6 else ''}",
            path=path,
            remedy="download it again, or remove the rest of those parts",
        )
