"""Volumetric networks in files that say what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from relief3d.core.errors import InputError
from relief3d.models.checkpoints import load_weights, read_config, read_state
from relief3d.models.volume.back_projection import DepthWeight
from relief3d.models.volume.config import VolumeNetConfig
from relief3d.models.volume.network import VolumeNetwork
from relief3d.models.volume.vfm_features import VfmConfig

KEY = "volume_config"
"""Entry of a file's metadata with the network's configuration as JSON."""


def config_to_plain(config: VolumeNetConfig) -> dict[str, Any]:
    """A configuration as JSON types."""
    return json.loads(json.dumps(asdict(config)))


def config_from_plain(plain: Mapping[str, Any], source: str | Path | None = None) -> VolumeNetConfig:
    """The inverse of :func:`config_to_plain`.

    Raises:
        InputError: unknown entries, or values that make no network.
    """
    known = {f.name for f in fields(VolumeNetConfig)}
    if set(plain) - known:
        raise InputError(
            f"its configuration has unknown entries: {', '.join(sorted(set(plain) - known))}",
            path=source,
            remedy="use the version of relief3d that made it",
        )
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
    try:
        if values.get("vfm") is not None:
            values["vfm"] = VfmConfig(**values["vfm"])
        if "depth_weight" in values:
            values["depth_weight"] = DepthWeight(**values["depth_weight"])
        return VolumeNetConfig(**values)
    except TypeError as exc:
        raise InputError(f"its configuration makes no network: {exc}", path=source) from exc


def file_metadata(network: VolumeNetwork) -> dict[str, str]:
    """What a file of weights has to carry, so that it can be opened without being told a size."""
    return {KEY: json.dumps(config_to_plain(network.config))}


def open_volume(path: str | Path, device: torch.device | str = "cpu") -> VolumeNetwork:
    """A network from a file (or index of shards) that carries its configuration, in evaluation mode and float32.

    Raises:
        InputError: the file is missing, damaged or of another network.
    """
    path = Path(path)
    plain = read_config(path, KEY)
    if plain is None:
        raise InputError(
            "is no volumetric network: it does not say its configuration",
            path=path,
            remedy="use model.safetensors of a run of relief3d train volume",
        )
    network = VolumeNetwork(config_from_plain(plain, path))
    load_weights(network, read_state(path), source=path)
    return network.to(device).eval()
