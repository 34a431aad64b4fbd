"""Pyramid networks from files: Student-DepthMap's and Depth Pro's checkpoints, backbones, and files of our own.

Files of our own carry their configuration; a file without one is of the published size. Source: MetricAnything
specification 3.8, 5.7, 12.1, 12.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.models.checkpoints import load_weights, read_state
from relief3d.models.metric.decoder import PromptConfig
from relief3d.models.metric.injection import ControlBranch
from relief3d.models.metric.networks import (
    DepthMap,
    DepthMapConfig,
    DepthPro,
    DepthProConfig,
    PyramidConfig,
    PyramidNetwork,
    Teacher,
    TeacherConfig,
)
from relief3d.models.metric.sizes import teacher_config
from relief3d.models.metric.stored import save_network, stored_config, weights_file
from relief3d.models.published import PublishedModel, to_console
from relief3d.nn.attention import KeyUnbiasedLinear
from relief3d.nn.dinov3 import DinoV3Config
from relief3d.nn.vit import VitConfig

CONFIG_KEY = "pyramid_config"
PUBLISHED: Mapping[str, PublishedModel] = {
    m.name: m
    for m in (
        PublishedModel(
            "yjh001/metricanything_student_depthmap", "depth_map", "student_depthmap.pt",
            "code Apache-2.0; built on DINOv3, whose code and weights have a licence of their own; not stated for the "
            "weights", 876.66, 3.51, 3.27, "MetricAnything, arXiv 2601.22054",
        ),
        PublishedModel(
            "apple/DepthPro", "depth_pro", "depth_pro.pt", "Apple's research licence (see the repository)",
            951.99, 1.90, 3.55, "Bochkovskii et al., Depth Pro, arXiv 2410.02073",
        ),
    )
}  # fmt: skip
"""Checkpoints that others publish; that of Depth Pro is stored in half precision. No teacher has been released."""

_CONFIGS: Mapping[str, type[PyramidConfig]] = {
    "depth_pro": DepthProConfig, "depth_map": DepthMapConfig, "teacher": TeacherConfig,
}  # fmt: skip
_BACKBONE = "encoder.patch_encoder."
_ONLY_DEPTH_PRO = ("encoder.image_encoder.", "fov.")


def identify(state: Mapping[str, Tensor]) -> str | None:
    """Which of the pyramid networks the names of a state belong to ("depth_pro", "depth_map", "teacher"), or None."""
    if f"{_BACKBONE}cls_token" not in state or "decoder.convs.1.weight" not in state:
        return None
    if "encoder.image_encoder.cls_token" in state:
        return "depth_pro"
    if "encoder.upsample_latent2.0.weight" in state:
        return "depth_map"
    return "teacher"


def build(config: PyramidConfig) -> PyramidNetwork:
    """The network of a configuration, without weights."""
    if isinstance(config, DepthProConfig):
        return DepthPro(config)
    if isinstance(config, DepthMapConfig):
        return DepthMap(config)
    if isinstance(config, TeacherConfig):
        return Teacher(config)
    raise InputError(f"{type(config).__name__} is the configuration of no network")


def config_to_dict(config: PyramidConfig) -> dict[str, Any]:
    """JSON types only; see :func:`config_from_dict`."""
    kind = next(k for k, v in _CONFIGS.items() if isinstance(config, v))
    layout = "dinov3" if isinstance(config.vit, DinoV3Config) else "dinov2"
    return {"network": kind, "layout": layout, **asdict(config)}


def config_from_dict(stored: Mapping[str, Any]) -> PyramidConfig:
    """The configuration that :func:`config_to_dict` wrote.

    Raises:
        InputError: it describes no network.
    """
    try:
        facts = dict(stored)
        kind = _CONFIGS[facts.pop("network")]
        vit = {"dinov3": DinoV3Config, "dinov2": VitConfig}[facts.pop("layout")]
        facts["vit"] = vit(**facts["vit"])
        if "prompt" in facts:
            facts["prompt"] = PromptConfig(**facts["prompt"])
        for name in ("hooks", "dims"):
            facts[name] = tuple(facts[name])
        if unknown := set(facts) - {f.name for f in fields(kind)}:
            raise ValueError(f"unknown entries {', '.join(sorted(unknown))}")
        return kind(**facts)
    except (KeyError, TypeError, ValueError) as exc:
        raise InputError(f"the stored configuration describes no pyramid network ({exc})") from exc


def load_pyramid(
    source: str | Path,
    *,
    config: PyramidConfig | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    announce: Callable[[str], None] = to_console,
) -> PyramidNetwork:
    """A pyramid network with weights, in evaluation mode.

    Args:
        source: name of a published model, or a file of weights.
        config: of the network, for files that carry none and are not of the published size.
        device: of the result.
        dtype: of the result.
        announce: see :func:`~relief3d.models.published.fetch_published`.

    Raises:
        InputError: the file cannot be read, belongs to another network, or names and shapes do not fit (lists them).
        RunError: see :func:`~relief3d.models.published.fetch_published`.
    """
    path = weights_file(source, PUBLISHED, "", announce)
    state = {k: v for k, v in read_state(path).items() if "fc_norm" not in k}
    found = identify(state)
    if found is None:
        raise InputError(
            "holds weights of none of the pyramid networks",
            path=path,
            remedy=f"known are {', '.join(_CONFIGS)}",
        )
    if config is None:
        config = stored_config(path, CONFIG_KEY, config_from_dict) or _full_size(found, state)
    if not isinstance(config, _CONFIGS[found]):
        raise InputError(
            f"these are weights of {found}, not for a {type(config).__name__}",
            path=path,
            remedy="choose the other network",
        )
    with torch.device("meta"):
        network = build(config)
    load_weights(network, state, source=path, assign=True)
    _refuse_open_masks(network, path)
    return network.to(device=device, dtype=dtype).eval()


def save_pyramid(
    network: PyramidNetwork, path: str | Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write weights and configuration; see :func:`~relief3d.models.metric.stored.save_network`."""
    save_network(network, path, CONFIG_KEY, config_to_dict(network.config), metadata)


def _full_size(kind: str, state: Mapping[str, Tensor]) -> PyramidConfig:
    """The published size; the field-of-view head and the backbone are those that the file has."""
    if kind == "depth_pro":
        return DepthProConfig(fov=any(k.startswith("fov.") for k in state))
    if kind == "depth_map":
        return DepthMapConfig()
    backbone = "dinov3" if f"{_BACKBONE}storage_tokens" in state else "depth_pro"
    return teacher_config("full", backbone="dinov3" if backbone == "dinov3" else "depth_pro")


def _refuse_open_masks(network: nn.Module, path: Path) -> None:
    """DINOv3's own code fills the masks of biases with NaN until weights are loaded; such a file was saved before."""
    for name, module in network.named_modules():
        if isinstance(module, KeyUnbiasedLinear) and not bool(torch.isfinite(module.bias_mask).all()):
            raise InputError(
                f"the mask {name}.bias_mask was never filled",
                path=path,
                remedy="save it from a trained network",
            )


@torch.no_grad()
def start_teacher(
    state: Mapping[str, Tensor], config: TeacherConfig | None = None, *, source: str | Path | None = None
) -> Teacher:
    """A teacher that answers as Depth Pro would with one shared transformer; its condition has no influence yet.

    Args:
        state: of Depth Pro; its image encoder and field-of-view head are left out.
        config: of the teacher; None for the ViT-L size of the published weights.
        source: named in errors.

    Raises:
        InputError: names or shapes do not fit.
    """
    teacher = Teacher(config or teacher_config("full", backbone="depth_pro"))
    kept = {
        k: v.to(torch.float32)
        for k, v in state.items()
        if not k.startswith(_ONLY_DEPTH_PRO) and "fc_norm" not in k
    }
    prompts = tuple(f"decoder.fusions.{i}.prompt." for i in range(len(teacher.decoder.fusions)))
    load_weights(teacher, kept, optional=("injection.", *prompts), source=source)
    _follow(teacher)
    return teacher


@torch.no_grad()
def load_backbone(
    network: PyramidNetwork, state: Mapping[str, Tensor], *, source: str | Path | None = None
) -> None:
    """Fill the transformer over tiles with that of a file, in the names of DINOv3 (or DINOv2 for such a backbone).

    Args:
        network: of any of the pyramid kinds.
        state: names as in the backbone alone, or as in a whole pyramid network.
        source: named in errors.

    Raises:
        InputError: names or shapes do not fit.
    """
    if any(k.startswith(_BACKBONE) for k in state):
        state = backbone_state(state)
    vit = network.encoder.patch_encoder
    load_weights(vit, state, source=source)
    _refuse_open_masks(vit, Path("backbone" if source is None else source))
    _follow(network)


def backbone_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's own weights out of those of a pyramid network, named as DINOv3 names them."""
    return {k.removeprefix(_BACKBONE): v for k, v in state.items() if k.startswith(_BACKBONE)}


def _follow(network: PyramidNetwork) -> None:
    if isinstance(network.injection, ControlBranch):
        network.injection.follow(network.encoder.patch_encoder)
