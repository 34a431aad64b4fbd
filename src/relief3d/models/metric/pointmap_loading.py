"""Point-map networks from files: MoGe-2's and MetricAnything's checkpoints, which carry their configuration, and ours.

Source: MetricAnything specification 6.1, 6.6, 12.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.models.checkpoints import load_weights, read_state
from relief3d.models.metric.pointmap import PointMap, PointMapConfig
from relief3d.models.metric.pointmap_configs import config_from_dict, config_to_dict
from relief3d.models.metric.stored import save_network, stored_config, weights_file
from relief3d.models.published import PublishedModel, to_console

CONFIG_KEY = "model_config"

_SOURCE = "Wang et al., MoGe-2, arXiv 2507.02546"
PUBLISHED: Mapping[str, PublishedModel] = {
    m.name: m
    for m in (
        PublishedModel(
            "yjh001/metricanything_student_pointmap", "pointmap", "student_pointmap.pt",
            "Apache-2.0 (code; MoGe's code MIT, DINOv2's Apache-2.0)", 326.21, 1.31, 1.22,
            "MetricAnything, arXiv 2601.22054",
        ),
        PublishedModel(
            "Ruicheng/moge-2-vitl", "pointmap", "model.pt", "code MIT", 326.21, 1.31, 1.22, _SOURCE,
        ),
        PublishedModel(
            "Ruicheng/moge-2-vitl-normal", "pointmap", "model.pt", "code MIT", 330.90, 1.32, 1.23, _SOURCE,
        ),
        PublishedModel(
            "Ruicheng/moge-2-vitb-normal", "pointmap", "model.pt", "code MIT", 104.0, 0.42, 0.39, _SOURCE,
        ),
        PublishedModel(
            "Ruicheng/moge-2-vits-normal", "pointmap", "model.pt", "code MIT", 35.0, 0.14, 0.13, _SOURCE,
        ),
    )
}  # fmt: skip
"""Checkpoints that others publish; the two sizes without two decimals are as published, in whole millions."""


def identify(state: Mapping[str, Tensor]) -> bool:
    """Whether the names of a state are those of a point-map network."""
    return {"encoder.backbone.cls_token", "points_head.input_blocks.0.weight"} <= set(state)


def load_pointmap(
    source: str | Path,
    *,
    config: PointMapConfig | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    announce: Callable[[str], None] = to_console,
) -> PointMap:
    """A point-map network with weights, in evaluation mode.

    Args:
        source: name of a published model, or a file of weights.
        config: for files that carry none.
        device: of the result.
        dtype: of the result.
        announce: see :func:`~relief3d.models.published.fetch_published`.

    Raises:
        InputError: the file cannot be read, carries no configuration, or names and shapes do not fit it.
        RunError: see :func:`~relief3d.models.published.fetch_published`.
    """
    path = weights_file(source, PUBLISHED, "point-map ", announce)
    state = read_state(path)
    if config is None:
        config = stored_config(path, CONFIG_KEY, config_from_dict)
    if config is None:
        raise InputError(
            "carries no configuration of a point-map network", path=path, remedy="give the configuration"
        )
    with torch.device("meta"):
        network = PointMap(config)
    load_weights(network, _known_heads(network, state), source=path, assign=True)
    return network.to(device=device, dtype=dtype).eval()


def save_pointmap(network: PointMap, path: str | Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write weights and configuration; see :func:`~relief3d.models.metric.stored.save_network`."""
    save_network(network, path, CONFIG_KEY, config_to_dict(network.config), metadata)


def _known_heads(network: PointMap, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without heads that the configuration leaves out, as the published loader does."""
    absent = tuple(
        f"{name}." for name in ("mask_head", "normal_head", "scale_head") if getattr(network, name) is None
    )
    return {k: v for k, v in state.items() if not (absent and k.startswith(absent))}
