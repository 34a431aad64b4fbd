"""Networks by architecture and size, with random weights, and the one that a file of weights fills."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from relief3d.models.multiview.configs import pi3_config, pi3x_config, reliev3r_config, vggt_config
from relief3d.models.multiview.loading import has_fov_head, heads_in, identify_file
from relief3d.models.multiview.pi3 import Pi3
from relief3d.models.multiview.pi3x import Pi3X
from relief3d.models.multiview.reliev3r import Reliev3rNet
from relief3d.models.multiview.vggt import Head, Vggt


def build_network(
    architecture: str, size: str, *, heads: tuple[Head, ...] | None = None, fov_head: bool = True
) -> nn.Module:
    """A network of a named size with random weights.

    Args:
        architecture: vggt, pi3, pi3x or reliev3r.
        size: nano to full.
        heads: of a VGGT; None: camera and depth, which is what a reconstruction reads.
        fov_head: whether a Reliev3R network predicts the field of view (else it must be given intrinsics).
    """
    if architecture == "vggt":
        return Vggt(replace(vggt_config(size), heads=heads or ("camera", "depth")))  # type: ignore[arg-type]
    if architecture == "pi3":
        return Pi3(pi3_config(size))  # type: ignore[arg-type]
    if architecture == "pi3x":
        return Pi3X(pi3x_config(size))  # type: ignore[arg-type]
    return Reliev3rNet(reliev3r_config(size, fov_head=fov_head))  # type: ignore[arg-type]


def network_for_file(path: Path, size: str) -> nn.Module | None:
    """The network that a file of weights fills; None leaves the published size to the loader.

    Raises:
        InputError: see :func:`identify_file`.
    """
    if size == "full":
        return None
    found, header = identify_file(path)
    return build_network(found, size, heads=heads_in(header) or None, fov_head=has_fov_head(header))
