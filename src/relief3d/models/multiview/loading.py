"""Published multi-view checkpoints and local files to networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.models.checkpoints import load_weights, read_header, read_state
from relief3d.models.multiview.aggregator import IMAGE_MEAN, IMAGE_STD
from relief3d.models.multiview.pi3 import Pi3
from relief3d.models.multiview.pi3x import Pi3X
from relief3d.models.multiview.reliev3r import Reliev3rConfig, Reliev3rNet
from relief3d.models.multiview.vggt import Head, Vggt, VggtConfig
from relief3d.models.published import PublishedModel, describe, fetch_published, to_console

__all__ = [
    "ARCHITECTURES", "PUBLISHED", "PublishedModel", "describe", "fetch", "has_fov_head", "heads_in",
    "identify", "identify_file", "load_multiview",
]  # fmt: skip


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


def fetch(name: str, *, announce: Callable[[str], None] = to_console) -> Path:
    """The weights of a published model of :data:`PUBLISHED`; see :func:`fetch_published`.

    Raises:
        InputError: unknown name, or huggingface_hub is not installed.
        RunError: see :func:`fetch_published`.
    """
    return fetch_published(_published(name), announce=announce)


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
    announce: Callable[[str], None] = to_console,
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
